"""Which weights files a method needs, and whether they are there; told without torch, within a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from feature_extractors.settings import Settings
from models.downloads import CHECKPOINT_DIR, UFF, CheckpointError, Download

DEFAULT_FUSION_CHECKPOINT = Path("checkpoints/checkpoint-0.pth")  # the release's --fusion_module_path


@dataclass(frozen=True)
class WeightsSource:
    """Where weights come from; random ones only where the user asked for them.

    fusion_module_path None: DEFAULT_FUSION_CHECKPOINT, or random with random_weights.
    """

    checkpoint_dir: Path = CHECKPOINT_DIR
    fusion_module_path: Path | None = None
    random_weights: bool = False

    def backbone(self, download: Download | None) -> Path | None:
        """The file of a backbone; None where its weights are random, or it has none."""
        if self.random_weights or download is None:
            return None
        return download.path_in(self.checkpoint_dir)

    def fusion(self) -> Path | None:
        """The file of the fusion block; None where its weights are random."""
        if self.random_weights and self.fusion_module_path is None:
            return None
        return self.fusion_module_path or DEFAULT_FUSION_CHECKPOINT


def check_files(settings: Settings, weights: WeightsSource) -> None:
    """Raises CheckpointError naming every weights file that the method needs and that is not there."""
    downloads = {"rgb": settings.rgb_backbone.download, "xyz": settings.xyz_backbone.download}
    missing = [
        f"{path}: no such file; {download.remedy(weights.checkpoint_dir)}"
        for part, download in downloads.items()
        if part in settings.method.backbones
        and download
        and (path := weights.backbone(download))
        and not path.is_file()
    ]
    if "fusion" in settings.method.sources and (path := weights.fusion()) and not path.is_file():
        missing.append(
            f"{path}: no such file; train it with fusion_pretrain.py, or {UFF.remedy(weights.checkpoint_dir)}, and "
            f"name it: --fusion_module_path {UFF.path_in(weights.checkpoint_dir)}"
        )
    if missing:
        raise CheckpointError("\n  ".join(missing) + "; or --random_weights, for smoke tests only")
