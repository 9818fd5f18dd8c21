"""Does the pairing of UFF's training features matter? Co-located, as ours, against scrambled, as released.

python benchmarks/uff_pairing.py [--dataset_path DIR --checkpoint_dir checkpoints --max_steps 250]

From the same start, on the same features, one block is trained on co-located pairs and one on pairs scrambled
as the release saves them. Reported are the held-out retrieval and the metrics of both methods that fuse: column
"plain" is the scrambled block, "ours" the co-located one, "exactness" names the untrained block's value. Without
--dataset_path the demo data are used, without --checkpoint_dir backbones of random weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch

import fusion_pretrain
from benchmarks.timing import table_row
from dataset import SampleFiles, list_samples, resized_mask
from feature_extractors.detector import Detector, fit_banks, fit_decision
from feature_extractors.extractor import fuse_patches
from feature_extractors.memory_bank.training_patches import TrainingPatches
from feature_extractors.saved_features import store_meta
from feature_extractors.settings import Settings
from m3dm_runner import M3DM
from models.uff.block import FusionBlock, load_fusion_block, random_fusion_block
from models.uff.engine import evaluate_retrieval
from models.uff.feature_store import FeatureStoreWriter
from models.uff.pairs import open_folder, read_pairs, split_files
from utils.demo_data import DemoSettings, write_demo_data
from utils.devices import choose_device
from utils.metrics import Predictions, measure
from utils.preprocessing import Parameters, preprocess_dataset
from utils.structures import Modality, Patches

METHODS = ("Fusion", "DINO+Point_MAE+Fusion")
PAIRINGS = ("scrambled", "colocated")
DEMO = DemoSettings(train=6, validation=0, test_per_kind=1)
METRICS = {"image_rocauc": "I-AUROC", "pixel_rocauc": "P-AUROC", "au_pro": "AU-PRO"}
Extracted = list[tuple[SampleFiles, dict[Modality, Patches]]]


@dataclass(frozen=True)
class Options:
    """What is compared on what; see --help."""

    dataset_path: Path | None = None
    class_name: str = "bagel"
    checkpoint_dir: Path | None = None
    rgb_backbone_name: str = "vit_small_patch8_224_dino"
    max_steps: int = 12
    batch_size: int = 1
    lr: float = 0.001
    holdout: float = 0.2
    seed: int = 0
    device: str = "auto"


def run(options: Options | None = None) -> list[dict[str, Any]]:
    """The rows of the comparison: untrained, scrambled and co-located block on the same features."""
    options = options or Options()
    settings = Settings(method_name="DINO+Point_MAE", rgb_backbone_name=options.rgb_backbone_name)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        root = options.dataset_path or _write_demo(work / "demo")
        model = M3DM(
            settings,
            checkpoint_dir=options.checkpoint_dir or "",
            random_weights=options.checkpoint_dir is None,
            device=options.device,
        )
        train, test = (_extract(model, root / options.class_name, split) for split in ("train", "test"))
        features = work / "patch_lib"
        _save_features(features, train, model, options)
        blocks = _blocks(work, features, options)
        rows = [_disk_row(features, len(train)), _retrieval_row(blocks, features, options)]
        for method in METHODS:
            changed = dataclasses.replace(settings, method_name=method)
            found = {name: _measured(changed, block, train, test) for name, block in blocks.items()}
            rows += _metric_rows(method, found)
    data = "demo data" if options.dataset_path is None else "given data"
    size = f"{options.class_name} ({data}), {len(train)} train, {len(test)} test, {options.max_steps} steps"
    return [table_row(size=size, **row) for row in rows]


def _write_demo(folder: Path) -> Path:
    write_demo_data(folder, DEMO, num_workers=os.cpu_count() or 1)
    preprocess_dataset(folder, folder, Parameters(), num_workers=os.cpu_count() or 1, progress=False)
    return folder


def _extract(model: M3DM, class_folder: Path, split: str) -> Extracted:
    """Samples with their xyz and rgb patches, on the model's device."""
    samples = list_samples(class_folder, split)
    return [(files, model.extract(files.rgb, files.xyz)) for files in samples]


def _save_features(folder: Path, train: Extracted, model: M3DM, options: Options) -> None:
    with FeatureStoreWriter.open(folder, store_meta(model.settings, model.weights, "benchmark")) as store:
        for i, (_, patches) in enumerate(train):
            store.save(options.class_name, i, patches)
        store.complete_class(options.class_name, len(train))


def _blocks(work: Path, features: Path, options: Options) -> dict[str, FusionBlock]:
    """An untrained block, and what fusion_pretrain.py makes of it with either pairing."""
    meta = open_folder(features).meta
    blocks = {"untrained": random_fusion_block(meta.xyz_dim, meta.rgb_dim, options.seed)}
    for pairing in PAIRINGS:
        output = work / pairing
        flags = {
            "data_path": features, "pairing": pairing, "num_workers": 0, "device": options.device,
            "output_dir": output, "log_dir": output, "save_every": options.max_steps,
            "max_steps": options.max_steps, "warmup_steps": options.max_steps // 3,
            "batch_size": options.batch_size, "lr": options.lr, "holdout": options.holdout, "seed": options.seed,
        }  # fmt: skip
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        fusion_pretrain.main(fusion_pretrain.get_args_parser().parse_args(words))
        last = max(output.glob("checkpoint-*.pth"), key=lambda path: path.stat().st_mtime)
        blocks[pairing] = load_fusion_block(last, xyz_dim=meta.xyz_dim, rgb_dim=meta.rgb_dim)
    device = choose_device(options.device)
    return {name: block.to(device) for name, block in blocks.items()}


def _retrieval_row(blocks: dict[str, FusionBlock], features: Path, options: Options) -> dict[str, Any]:
    """Top-1 retrieval on the samples that the training held out."""
    folder = open_folder(features)
    held_out = split_files(folder.files, options.holdout, options.seed)[1]
    pairs = [read_pairs(file, folder, "colocated") for file in held_out]
    found = {name: evaluate_retrieval(block, pairs) for name, block in blocks.items()}
    chance = next(result.chance for result in found.values() if result is not None)
    values = {name: result and result.accuracy for name, result in found.items()}
    return _row(f"held-out retrieval of {len(held_out)} samples (chance {chance:.4f})", values)


def _measured(
    settings: Settings, block: FusionBlock, train: Extracted, test: Extracted
) -> dict[str, float | None]:
    """Metrics of a method with this fusion block."""

    def fused(patches: dict[Modality, Patches]) -> dict[Modality, Patches]:
        return patches | {"fusion": fuse_patches(block, patches["xyz"], patches["rgb"])}

    with torch.inference_mode():
        samples = [fused(patches) for _, patches in train]
        training = {
            name: TrainingPatches.collect([patches[name] for patches in samples])
            for name in settings.method.sources
        }
        banks = fit_banks(training, settings)
        detector = Detector(banks, fit_decision(banks, training, settings))
        scores = [detector.score(fused(patches)) for _, patches in test]
    found = measure(
        Predictions(
            labels=np.array([files.label for files, _ in test]),
            scores=np.array([score.image for score in scores]),
            masks=np.array([resized_mask(files, settings.img_size) for files, _ in test]),
            maps=np.stack([score.map for score in scores]),
        )
    )
    return {title: found[name] for name, title in METRICS.items()}


def _metric_rows(method: str, results: dict[str, dict[str, float | None]]) -> list[dict[str, Any]]:
    return [
        _row(f"{method}, {title}", {name: result[title] for name, result in results.items()})
        for title in METRICS.values()
    ]


def _row(part: str, values: dict[str, float | None]) -> dict[str, Any]:
    texts = {name: "-" if value is None else f"{value:.4f}" for name, value in values.items()}
    return {
        "part": part,
        "plain": texts["scrambled"],
        "ours": texts["colocated"],
        "exactness": f"untrained {texts['untrained']}",
    }


def _disk_row(features: Path, num_samples: int) -> dict[str, Any]:
    """Ours against the release's float32 rows of all xyz patches, each with its rgb patch."""
    meta = open_folder(features).meta
    plain = meta.xyz_side**2 * (meta.xyz_dim + meta.rgb_dim) * 4 / 1e6
    ours = sum(path.stat().st_size for path in features.iterdir()) / num_samples / 1e6
    return {
        "part": "features on disk, a sample",
        "plain": f"{plain:.1f} MB",
        "ours": f"{ours:.2f} MB",
        "ratio": round(plain / ours, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for field in dataclasses.fields(Options):
        kind = Path if field.name in ("dataset_path", "checkpoint_dir") else type(field.default)
        parser.add_argument(f"--{field.name}", type=kind, default=field.default)
    for row in run(Options(**vars(parser.parse_args()))):
        print(row)


if __name__ == "__main__":
    main()
