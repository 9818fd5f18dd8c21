"""One class from its samples to its files in the results folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dataset import SampleFiles
from evaluation.data import ClassFiles
from evaluation.evaluate import EvaluatedClass, evaluate
from evaluation.fitting import fit_in_team, restore_in_team, scores_of
from evaluation.options import ClassOptions, Variant
from evaluation.saving import CONTACT_SHEET, save_predictions
from evaluation.study import drawn
from evaluation.team import Team
from m3dm_runner import M3DM
from models.uff.feature_store import FeatureStoreWriter
from utils.files import stamp
from utils.metrics import METRICS, measure
from utils.observer import ClassReport
from utils.part_reader import recorded_parameters
from utils.preprocess.record import read_record
from utils.report.figures import write_figures
from utils.reporting import class_summary, write_scores
from utils.results import ResultsFolder
from utils.structures import Score

SHOWN_REASONS = 3  # of left-out samples, in an error
DETECTOR_SUFFIX = ".m3dm"
MOST_TRAIN_LEFT_OUT, MOST_TEST_LEFT_OUT = 0.5, 0.1  # shares of a class; beyond them its results are doubtful


class ClassRun:
    """A class's run in one process of its team; the team's leader has the results and writes them.

    variant: what is special about this run; store: what --save_feature fills, None without; the model's networks are
    used as they are, what it was fitted on before is forgotten.
    """

    def __init__(
        self,
        files: ClassFiles,
        model: M3DM,
        results: ResultsFolder,
        options: ClassOptions,
        *,
        team: Team | None = None,
        variant: Variant | None = None,
        store: FeatureStoreWriter | None = None,
    ) -> None:
        self.files, self.model, self.results, self.options = files, model, results, options
        self.team = team or Team()
        self.variant = variant or Variant()
        self.store = store
        self._used: list[str] = []  # paths of the training samples
        self._calibrating: list[str] = []  # and of those that the thresholds come from

    def run(self) -> None:
        """Score the class; its files are on disk at the end. If its data is no good it is recorded as failed.

        Raises OSError when the disk is full, MemoryError and ConnectionError.
        """
        report = ClassReport(shown=self.team.ranks[0] == 0)
        self.model.observer = self.team.observer(report)
        if self.team.leads:
            self._begin()
        try:
            evaluated = self._evaluated(report)
            if self.team.leads:
                self._write(evaluated, report)
        except ValueError as error:  # which the leader has, or was told
            if self.team.leads:
                self._record_failure(f"{error}{_reasons(report)}")
        finally:
            self.model.forget()

    def _begin(self) -> None:
        """Remove what earlier runs have left of the class, but for a detector, which stays until there is a new one."""
        self.results.begin(self.files.name)

    def is_done(self) -> bool:
        """Whether a cut run has done the class, and what it left on disk is there still."""
        name, options, folder = self.files.name, self.options, self.results.folder
        record = self.results.was_cut_after(name, self.data())
        return (
            record
            and (folder / "scores" / f"{name}.csv").is_file()
            and (not options.save_preds or self._has_pictures())
            and (options.save_detector is None or detector_path(options.save_detector, name).is_file())
            and (self.store is None or self.store.has_class(name))
        )

    def data(self) -> dict[str, Any]:
        """What the class's record says of its data."""
        loaded = self.options.load_detector
        return {
            "fingerprint": self.files.fingerprint,
            "detector": stamp(detector_path(loaded, self.files.name)) if loaded else None,
        }

    def _has_pictures(self) -> bool:
        folder = self.results.folder / "pred_maps" / self.files.name
        return (folder / CONTACT_SHEET).is_file() or not self.files.test

    def _evaluated(self, report: ClassReport) -> EvaluatedClass | None:
        """The fitted or loaded model on the test samples, None without any; the report gets metrics and counts."""
        name, model, options = self.files.name, self.model, self.options
        if options.load_detector is not None:
            restore_in_team(model, detector_path(options.load_detector, name), self.team)
            self.team.from_leader(self._check_preprocessing)
        else:
            self._fit()
        report.counts = model.counts_ if self.team.leads else {}
        report.doubt = self._doubt(report)
        if not self.files.test:
            report.metrics = dict.fromkeys(metric.key for metric in METRICS)
            return None
        scores = self.team.in_order(self.files.test, self._scores, model.observer)
        if not self.team.leads:
            next(scores, None)  # there are none; its share is scored on the way
            return None
        evaluated = evaluate(model, self.files.test, f"{name} test", scores)
        with report.stage("metrics"):
            report.metrics = measure(evaluated.predictions)
        report.counts = {**model.counts_, **_test_counts(evaluated)}
        report.doubt = self._doubt(report)
        return evaluated

    def _fit(self) -> None:
        samples, held_out = held_out_apart(self.files.train, self.options.holdout, self.model.settings.seed)
        samples = drawn(self.variant, samples, self.files.name)[: self.model.settings.sample_limit]
        self._used = [sample.path for sample in samples]
        fit_in_team(self.model, samples, self.team, self.variant, self.files.name, self.store)
        folder = self.options.save_detector
        if folder is not None:
            good = held_out or self.files.validation
            self._calibrating = [sample.path for sample in good]
            self.team.from_leader(lambda: self._save_detector(folder, good))

    def _check_preprocessing(self) -> None:
        """Raises ValueError when the detector was fitted on parts that were preprocessed otherwise than these."""
        here, there = (
            recorded_parameters(record)
            for record in (read_record(self.files.dataset_path)[0], self.model.preprocessing_)
        )
        if here is None or there is None or here == there:
            return
        different = [
            f"{name} {value}, here {vars(here)[name]}"
            for name, value in vars(there).items()
            if vars(here)[name] != value
        ]
        raise ValueError(
            f"its detector is of parts that were preprocessed with {'; '.join(different)}; preprocess these alike"
        )

    def _scores(self, samples: list[SampleFiles]) -> Iterator[Score | None]:
        return scores_of(self.model, samples, self.variant, self.files.name)

    def _save_detector(self, folder: Path, held_out: list[SampleFiles]) -> None:
        """Save the fitted model, with thresholds where there are good parts to take them from.

        Raises DatasetError when these can't be used.
        """
        name, model, options = self.files.name, self.model, self.options
        if held_out:
            origin = "held-out training parts" if options.holdout else "validation/good"
            with model.observer.stage("calibrate"):
                model.calibrate(held_out, options.threshold_rule, origin)
            warning = model.calibration_ and model.calibration_.warning()
        else:
            warning = "no validation/good and no --holdout: the saved detector has no threshold, only scores"
        if warning:
            print(f"warning: {name}: {warning}", file=sys.stderr)
        model.preprocessing_ = read_record(self.files.dataset_path)[0] or None
        model.save(detector_path(folder, name))

    def _doubt(self, report: ClassReport) -> str | None:
        """Why the results can't be trusted: so many samples were left out; None if they can."""
        tested = [sample.path for sample in self.files.test]
        skipped = {sample["path"] for sample in report.skipped}
        for split, used, most in (
            ("training", self._used, MOST_TRAIN_LEFT_OUT),
            ("validation", self._calibrating, MOST_TRAIN_LEFT_OUT),
            ("test", tested, MOST_TEST_LEFT_OUT),
        ):
            left_out = len(skipped.intersection(used))
            if left_out > most * len(used):
                return f"{left_out} of {len(used)} {split} samples were left out; mend or remove them"
        return None

    def _write(self, evaluated: EvaluatedClass | None, report: ClassReport) -> None:
        """Scores and figures, then the record that says that the class is done, then pictures."""
        name, folder = self.files.name, self.results.folder
        write_scores(folder, name, evaluated.rows() if evaluated else [])
        kinds = {}
        if evaluated:
            figures = evaluated.figures()
            kinds = {kind.name: kind.metrics for kind in figures.kinds if kind.metrics}
            write_figures(folder, name, figures)
        used = self._used if self.variant.shots else None
        result = {**report.as_dict(), "kinds": kinds, "training_samples": used}
        result["device"] = str(self.model.device)
        self.results.write(name, self.data(), result)
        if evaluated and self.options.save_preds:
            save_predictions(folder / "pred_maps" / name, evaluated)
        if evaluated:
            print(class_summary(name, result), flush=True)
        else:
            print(f"{name}: no test samples; the detector is fitted and saved, and not evaluated", flush=True)

    def _record_failure(self, reason: str) -> None:
        self._begin()
        self.results.write(self.files.name, self.data(), failure=reason)
        print(f"{self.files.name}: failed: {reason}", file=sys.stderr, flush=True)


def held_out_apart(
    samples: list[SampleFiles], share: float, seed: int
) -> tuple[list[SampleFiles], list[SampleFiles]]:
    """The training samples without a share of them, drawn by `seed`, and that share."""
    count = max(1, round(share * len(samples))) if share > 0 else 0
    chosen = set(np.random.default_rng(seed).permutation(len(samples))[:count].tolist())
    return (
        [sample for i, sample in enumerate(samples) if i not in chosen],
        [sample for i, sample in enumerate(samples) if i in chosen],
    )


def detector_path(folder: Path, class_name: str) -> Path:
    """Where a class's detector is saved."""
    return folder / f"{class_name}{DETECTOR_SUFFIX}"


def _test_counts(evaluated: EvaluatedClass) -> dict[str, int]:
    labels = evaluated.predictions.labels
    counts = {"test": len(evaluated.files), "test_anomalous": int(labels.sum())}
    unlabelled = len(evaluated.files) - len(labels)
    return {**counts, **({"test_unlabelled": unlabelled} if unlabelled else {})}


def _reasons(report: ClassReport) -> str:
    """Why samples were left out, the first few."""
    reasons = [f"{sample['path']}: {sample['reason']}" for sample in report.skipped]
    shown = "; ".join(reasons[:SHOWN_REASONS]) + (" ..." if len(reasons) > SHOWN_REASONS else "")
    return f"; {shown}" if reasons else ""
