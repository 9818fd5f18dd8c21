"""What is special about a study's variants: drawn shots, shaken features, and the summary over all of them."""

from __future__ import annotations

import statistics
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dataset import SampleFiles
from evaluation.options import Variant
from utils.metrics import METRICS, mean_of_all
from utils.structures import Modality, Patches

Found = Mapping[Modality, Patches]


def drawn(variant: Variant, samples: Sequence[SampleFiles], class_name: str) -> list[SampleFiles]:
    """The training samples that a variant uses, in order; of one seed fewer shots are among those of more.

    Raises ValueError when there are not so many.
    """
    if variant.shots is None:
        return list(samples)
    if variant.shots > len(samples):
        raise ValueError(
            f"--shots {variant.shots}: {class_name} has {len(samples)} training samples; use fewer shots"
        )
    order = np.random.default_rng([variant.shot_seed, _number_of(class_name)]).permutation(len(samples))
    return [samples[i] for i in sorted(order[: variant.shots].tolist())]


def shaken_all(
    variant: Variant, class_name: str, samples: Sequence[SampleFiles], patches: Iterator[Found | None]
) -> Iterator[Found | None]:
    """`shaken` of each sample's patches, in order."""
    for sample, found in zip(samples, patches, strict=True):
        yield None if found is None else shaken(variant, found, f"{class_name}/{sample.path}")


def shaken(variant: Variant, patches: Found, sample: str) -> Found:
    """A sample's patches, times 1 + noise; zeros stay zeros. The same for the same sample, modality and seed."""
    if not variant.shake:
        return patches
    return {
        name: _noisy(found, variant.shake, [variant.shake_seed, _number_of(f"{sample} {name}")])
        for name, found in patches.items()
    }


def _noisy(patches: Patches, share: float, seed: Sequence[int]) -> Patches:
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal(patches.rows.shape))
    rows = (patches.rows.double() * (1 + share * noise.to(patches.rows.device))).to(patches.rows.dtype)
    return Patches(rows, patches.row_of_patch, patches.side)


def summary(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One class over the variants, by name: mean and sample standard deviation of every metric.

    A metric that one of them lacks is None; so is the deviation of a single one. Kinds of defects have means alone.
    Seconds are summed, of doubts the first counts, what the variants differ in is None, and all else is that of the
    first.
    """
    each = list(results.values())
    values = _values(each)
    stages = {stage for result in each for stage in result["seconds"]}
    return {
        **each[0],
        **{key: mean_of_all(found) for key, found in values.items()},
        "kinds": {
            kind: {
                key: mean_of_all(found)
                for key, found in _values([r["kinds"].get(kind, {}) for r in each]).items()
            }
            for kind in each[0]["kinds"]
        },
        "training_samples": same_in_all(result["training_samples"] for result in each),
        "seconds": {
            stage: round(sum(r["seconds"].get(stage, 0) for r in each), 3) for stage in sorted(stages)
        },
        "doubt": next((result["doubt"] for result in each if result["doubt"]), None),
        "deviation": {key: deviation(found) for key, found in values.items()},
        "variants": {
            name: {metric.key: result[metric.key] for metric in METRICS} for name, result in results.items()
        },
    }


def deviation(values: Sequence[float | None]) -> float | None:
    """Sample standard deviation; None of a single value, and where one is not known."""
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) == len(values) > 1 else None


def same_in_all(values: Iterable[Any]) -> Any:
    """The value that all are; None where they differ."""
    first, *others = values
    return first if all(other == first for other in others) else None


def _values(results: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Of each metric its values, None where it is missing."""
    return {metric.key: [result.get(metric.key) for result in results] for metric in METRICS}


def _number_of(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogateescape"))
