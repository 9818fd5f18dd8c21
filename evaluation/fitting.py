"""A team's model of one class: fitted or loaded by the leader, given to all, asked for the scores of samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from dataset import SampleFiles
from evaluation.options import Variant
from evaluation.study import Found, shaken_all
from evaluation.team import Team
from feature_extractors.detector_file import detector_of, detector_tensors
from feature_extractors.saved_features import saving
from m3dm_runner import M3DM, plausible
from models.uff.feature_store import FeatureStoreWriter
from utils.structures import Score


def fit_in_team(
    model: M3DM,
    samples: list[SampleFiles],
    team: Team,
    variant: Variant,
    class_name: str,
    store: FeatureStoreWriter | None = None,
) -> None:
    """Fit in the leader, on what the team extracts; then every process's model has the detector.

    store: where the leader also saves the features. Raises ValueError, in every process, when there is nothing to fit.
    """

    def extracted(share: list[SampleFiles]) -> Iterator[Found | None]:
        for found in model.extract_all(share, f"{class_name} train"):
            yield found if team.leads or found is None else _portable(found)

    patches = team.in_order(samples, extracted, model.observer)

    def fit() -> dict[str, Any]:
        here = (found and _on(model, found) for found in patches)
        of_samples: Iterable[Found | None] = shaken_all(variant, class_name, samples, here)
        if store is not None:
            of_samples = saving(store, class_name, of_samples)
        try:
            model.fit_patches(of_samples, expected=len(samples))
        except ValueError:
            team.let_go(patches)
            raise
        return _shared(model, team)

    if not team.leads:
        with suppress(ValueError):  # the leader knows of it, and tells all
            next(patches, None)  # there are none; its share is extracted on the way
    _take(model, team, fit)


def restore_in_team(model: M3DM, path: Path, team: Team) -> None:
    """Load a saved detector in the leader; then every process's model has it. Raises DetectorFileError in all."""

    def restore() -> dict[str, Any]:
        model.restore(path)
        return _shared(model, team)

    _take(model, team, restore)


def scores_of(
    model: M3DM, samples: list[SampleFiles], variant: Variant, class_name: str
) -> Iterator[Score | None]:
    """The scores of test samples, in order; None for one that can't be used, of which the model's observer is told."""
    title = f"{class_name} test"
    if not variant.shake:
        yield from model.predict_all(samples, title)
        return
    patches = shaken_all(variant, class_name, samples, model.extract_all(samples, title))
    for sample, found in zip(samples, patches, strict=True):
        try:
            yield None if found is None else plausible(model.detector_.score(found))
        except ValueError as error:
            model.observer.left_out(sample.path, str(error))
            yield None


def _shared(model: M3DM, team: Team) -> dict[str, Any]:
    """What the leader's model is made of, for the others."""
    return detector_tensors(model.detector_) if len(team.ranks) > 1 else {}


def _take(model: M3DM, team: Team, make: Callable[[], dict[str, Any]]) -> None:
    """`make` in the leader; the others take what it returns."""
    tensors = team.from_leader(make)
    if not team.leads:
        model.detector_ = detector_of(tensors, model.settings, model.device)
        model.calibration_ = None


def _on(model: M3DM, patches: Found) -> Found:
    return {name: found.to(model.device) for name, found in patches.items()}


def _portable(patches: Found) -> Found:
    """Patches that can be sent to another process: on the CPU, without the batch that they are a view of."""
    return {
        name: dataclasses.replace(found.to("cpu"), rows=found.rows.to("cpu").clone())
        for name, found in patches.items()
    }
