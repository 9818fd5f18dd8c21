"""Banks and decision of one class: fitted on the training patches, asked for the score of a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from feature_extractors.decision import Decision, SumDecision, fit_one_class_decision
from feature_extractors.memory_bank.bank import MemoryBank, fit_memory_bank
from feature_extractors.memory_bank.training_patches import (
    NO_STANDARDIZATION,
    Standardization,
    TrainingPatches,
)
from feature_extractors.methods import BankSpec
from feature_extractors.settings import Settings
from utils.structures import Modality, Patches, Score

DEFAULT_RANDOM_STATE = 0  # what the released code amounts to when --random_state is not given
Training = Mapping[Modality, TrainingPatches]


@dataclass(frozen=True)
class Detector:
    """A fitted method: its banks by what fills them, in column order, and the decision over their scores."""

    banks: Mapping[Modality, MemoryBank]
    decision: Decision

    def score(self, patches: Mapping[Modality, Patches]) -> Score:
        """Image score and map of one sample; higher = more anomalous."""
        return self.decision.decide([bank.score(patches[name]) for name, bank in self.banks.items()])


def fit_banks(training: Training, settings: Settings) -> dict[Modality, MemoryBank]:
    """The memory banks of the method's row. Raises ValueError when the features leave nothing to choose from."""
    first = _feeding(settings.method.banks[0], training, settings)
    # as released, all banks after the first count the rows that its coreset has left
    left_in_first = int(settings.f_coreset * len(first.row_of_patch))
    own_share = settings.quirks.coreset_size == "each"
    random_state = _random_state(settings)
    banks: dict[Modality, MemoryBank] = {}
    for spec in settings.method.banks:
        patches = _feeding(spec, training, settings)
        counts_own = own_share or not banks
        banks[spec.source] = fit_memory_bank(
            patches,
            _standardization(spec, training, settings),
            settings,
            coreset_rows=len(patches.row_of_patch) if counts_own else left_in_first,
            zero_row=spec.zero_row,
            random_state=random_state,
        )
    return banks


def fit_decision(banks: Mapping[Modality, MemoryBank], training: Training, settings: Settings) -> Decision:
    """The decision of the method's row; one-class SVMs learn from the training samples' scores."""
    if settings.method.decision == "sum":
        return SumDecision()
    samples = zip(*(training[name] for name in banks), strict=True)
    scores = [
        [bank.score(patches) for bank, patches in zip(banks.values(), sample, strict=True)]
        for sample in samples
    ]
    return fit_one_class_decision(scores, settings)


def _standardization(spec: BankSpec, training: Training, settings: Settings) -> Standardization:
    if spec.standardize == "none":
        return NO_STANDARDIZATION
    if spec.standardize == "own":
        patches = training[spec.source]
        return _checked(patches.mean(), patches.std(), spec.source)
    xyz = next(bank for bank in settings.method.banks if bank.source == "xyz")
    return _checked(_feeding(xyz, training, settings).mean(), training["rgb"].std(), "rgb")


def _checked(mean: float, std: float, name: str) -> Standardization:
    if std == 0:
        raise ValueError(f"all {name} features of the training samples are equal: nothing to standardise by")
    return Standardization(mean, std)


def _feeding(spec: BankSpec, training: Training, settings: Settings) -> TrainingPatches:
    """The training patches that feed a bank: with `--asy_memory_bank K` only the first K samples' for some."""
    patches = training[spec.source]
    if settings.asy_memory_bank is None or not spec.limited:
        return patches
    return patches.first(settings.asy_memory_bank)


def _random_state(settings: Settings) -> int | np.random.RandomState:
    if settings.random_state is None:
        return np.random.RandomState(DEFAULT_RANDOM_STATE)  # consumed bank by bank
    return settings.random_state  # anew for each bank
