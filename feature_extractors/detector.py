"""Banks and decision of one class: fit on the training patches, predict a sample."""

from __future__ import annotations

import numpy as np

from feature_extractors.decision import OneClassDecision, make_decision
from feature_extractors.memory_bank.bank import MemoryBank, feeding, fit_memory_bank, standardizations
from feature_extractors.memory_bank.training_patches import Standardization, TrainingPatches
from feature_extractors.settings import Settings
from utils.structures import Modality, Patches, Score

DEFAULT_RANDOM_STATE = 0  # what the released code amounts to when --random_state is not given


class Detector:
    """The fitted method of one class.

    Attributes ending in _ are there after fit: banks_ and standardizations_ by modality.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.decision = make_decision(settings)
        self.banks_: dict[Modality, MemoryBank] = {}
        self.standardizations_: dict[Modality, Standardization | None] = {}

    def fit_banks(self, training: dict[Modality, TrainingPatches]) -> Detector:
        """Standardise the training patches, in place, and reduce each kind to its bank."""
        self.standardizations_ = standardizations(training, self.settings)
        for name, by in self.standardizations_.items():
            if by is not None:
                training[name].standardize(by)
        random_state = self._random_state()
        for name in self.settings.method.banks:
            self.banks_[name] = fit_memory_bank(
                feeding(training[name], name, self.settings),
                self.settings,
                size_of=self._coreset_size_of(name, training),
                zero_row=self.settings.method.zero_row and name == "xyz",
                random_state=random_state,
            )
        return self

    def fit_decision(self, training: dict[Modality, TrainingPatches]) -> Detector:
        """Fit the decision on the training samples' scores; `training` is what fit_banks has standardised."""
        if isinstance(self.decision, OneClassDecision):
            per_sample = zip(*(training[name] for name in self.settings.method.banks), strict=True)
            self.decision.fit([self._bank_scores(list(patches)) for patches in per_sample])
        return self

    def predict(self, patches: dict[Modality, Patches]) -> Score:
        """Image score and map of one sample from its raw patches; higher = more anomalous."""
        standardized = [self._standardized(name, patches[name]) for name in self.settings.method.banks]
        return self.decision.decide(self._bank_scores(standardized))

    def _bank_scores(self, standardized: list[Patches]) -> list[Score]:
        banks = (self.banks_[name] for name in self.settings.method.banks)
        return [bank.score(patches) for bank, patches in zip(banks, standardized, strict=True)]

    def _standardized(self, name: Modality, patches: Patches) -> Patches:
        by = self.standardizations_[name]
        return patches if by is None else Patches(by.apply(patches.rows), patches.index, patches.side)

    def _random_state(self) -> int | np.random.RandomState:
        if self.settings.random_state is None:
            return np.random.RandomState(DEFAULT_RANDOM_STATE)  # consumed bank by bank
        return self.settings.random_state  # anew for each bank

    def _coreset_size_of(self, name: Modality, training: dict[Modality, TrainingPatches]) -> int | None:
        """How many rows the coreset's fraction counts; None = the bank's own.

        As released, all banks after xyz count the rows that the coreset has left of xyz.
        """
        banks, each = self.settings.method.banks, self.settings.quirks.coreset_size == "each"
        if each or name == banks[0]:
            return None
        return int(self.settings.f_coreset * len(feeding(training[banks[0]], banks[0], self.settings).index))
