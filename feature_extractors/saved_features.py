"""What `--save_feature` writes on the way: the raw patches of training samples, for UFF's training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from feature_extractors.networks import RANDOM
from feature_extractors.settings import Settings
from models.uff.feature_store import FeatureStoreWriter, StoreMeta
from utils.structures import Modality, Patches

STORED_DTYPE: Literal["float16"] = "float16"  # of features on disk, unless --feature_dtype says otherwise
FEATURE_QUIRKS = ("batchnorm", "drop_path", "interpolation")  # those that change the features
FEATURE_SETTINGS = ("num_group", "group_size", "precision")
STORED: tuple[Modality, ...] = ("rgb", "xyz")


def store_meta(settings: Settings, weights: Mapping[str, str], dataset: str) -> StoreMeta:
    """What the features of `dataset` are, by these settings, with weights from `weights`."""
    return StoreMeta(
        dataset=dataset,
        rgb_backbone=settings.rgb_backbone_name,
        xyz_backbone=settings.xyz_backbone_name,
        rgb_dim=settings.rgb_backbone.dim,
        xyz_dim=settings.xyz_backbone.dim,
        rgb_side=settings.rgb_side,
        xyz_side=settings.xyz_side,
        pairing=settings.quirks.uff_pairing,
        feature_dtype=settings.feature_dtype or STORED_DTYPE,
        random_weights=any(weights[name].startswith(RANDOM) for name in STORED),
        extraction={
            **{name: getattr(settings.quirks, name) for name in FEATURE_QUIRKS},
            **{name: str(getattr(settings, name)) for name in FEATURE_SETTINGS},
            **{f"{name}_weights": weights[name] for name in STORED},
        },
    )


def saving(
    store: FeatureStoreWriter, class_name: str, patches: Iterable[Mapping[Modality, Patches] | None]
) -> Iterator[Mapping[Modality, Patches] | None]:
    """The patches of a class's samples, as they come, each written to the store; the class is complete at the end."""
    count = 0
    for of_sample in patches:
        if of_sample is not None:
            store.save(class_name, count, of_sample)
            count += 1
        yield of_sample
    store.complete_class(class_name, count)
