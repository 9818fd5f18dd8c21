"""What a run is to do, as plain data: with each class, in which variants, with what and where to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from feature_extractors.calibration import MAX
from models.backbones import PointOps

TEMPORARY_FEATURES = ".features"  # of a study without --features; its classes' folders go when they are done


@dataclass(frozen=True)
class ClassOptions:
    """What is done with each class beside scoring it; fields are named as main.py's flags."""

    save_preds: bool = False
    save_detector: Path | None = None
    load_detector: Path | None = None
    holdout: float = 0.0
    threshold_rule: str = MAX


@dataclass(frozen=True)
class Variant:
    """One of the runs of a study, or the only run; `name` is that of its folder, "" for an only run.

    shots: how many training samples are drawn, by `shot_seed`; None = all. shake: standard deviation of the noise
    that multiplies each feature, relative to it, drawn by `shake_seed`; 0 = none.
    """

    random_state: int | None = None
    shots: int | None = None
    shot_seed: int = 0
    shake: float = 0.0
    shake_seed: int = 0
    name: str = ""

    @property
    def row_suffix(self) -> str:
        """What tells its row in the tables from that of a plain run; runs that differ in a seed have one name."""
        told = [f"{self.shots} shots"] if self.shots else []
        told += [f"shake {self.shake:g}"] if self.shake else []
        return f" ({', '.join(told)})" if told else ""


@dataclass(frozen=True)
class RunOptions:
    """What a run is beside its settings and data; fields are named as main.py's flags.

    each_class: what is done with each class. variants: more than one make it a study. features: folder that keeps
    what the networks extract. save_feature_path: folder for UFF's training features; None = they are not saved.
    """

    results_dir: Path
    dataset_path: Path
    checkpoint_dir: Path
    method_name: str
    fusion_module_path: Path | None = None
    random_weights: bool = False
    device: str = "auto"
    point_ops: PointOps = "cpu"
    batch_size: int = 1
    num_workers: int = 0
    features: Path | None = None
    save_feature_path: Path | None = None
    dist_url: str = "env://"
    dataset_type: str = "mvtec3d"
    label_by_folder: bool = False
    each_class: ClassOptions = field(default_factory=ClassOptions)
    variants: Sequence[Variant] = (Variant(),)

    @property
    def is_study(self) -> bool:
        return len(self.variants) > 1


def variants(
    *,
    random_state: int | None = None,
    random_states: Sequence[int] | None = None,
    shots: int | None = None,
    shot_seeds: Sequence[int] = (0,),
    shake: float = 0.0,
    shake_seeds: Sequence[int] = (0,),
) -> list[Variant]:
    """All combinations; only when there are several do they have names."""
    found = [
        Variant(state, shots, shot_seed, shake, shake_seed)
        for shot_seed, shake_seed, state in product(
            shot_seeds if shots else (0,),
            shake_seeds if shake else (0,),
            random_states if random_states is not None else (random_state,),
        )
    ]
    if len(found) == 1:
        return found
    return [_named(variant, with_state=random_states is not None) for variant in found]


def _named(variant: Variant, *, with_state: bool) -> Variant:
    parts = [f"shots_{variant.shots}_seed_{variant.shot_seed}"] if variant.shots else []
    parts += [f"shake_{variant.shake:g}_seed_{variant.shake_seed}"] if variant.shake else []
    parts += [f"random_state_{variant.random_state}"] if with_state else []
    return replace(variant, name="_".join(parts))
