"""The classes that a run is to do: their samples, seen to pair before the hours of work, and what tells data apart."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dataset import DATASETS, DatasetError, SampleFiles, check_plausible, find_classes, list_samples
from utils.files import stamp
from utils.preprocess.record import not_done
from utils.resources import sha256_of

UNKNOWN = "unknown"  # a test kind of parts that nobody has judged
FingerprintBy = Literal["times", "contents"]


@dataclass(frozen=True)
class DataOptions:
    """Which classes of which data set; fields are named as main.py's flags.

    class_name: None = all that are there. needs_test: whether a class without a test sample is an error.
    """

    dataset_path: Path
    dataset_type: str = "mvtec3d"
    class_name: list[str] | None = None
    label_by_folder: bool = False
    unchecked: bool = False
    needs_test: bool = True
    fingerprint: FingerprintBy = "times"


@dataclass(frozen=True)
class ClassFiles:
    """The samples of a class by split; fingerprint: equal as long as their files are."""

    name: str
    dataset_path: Path
    train: list[SampleFiles]
    validation: list[SampleFiles]
    test: list[SampleFiles]
    fingerprint: str


def find_class_files(options: DataOptions) -> list[ClassFiles]:
    """The classes to run, in the data set's order.

    Raises DatasetError when something is missing, does not pair, or looks raw or as if it were in millimetres.
    """
    dataset = DATASETS[options.dataset_type]
    classes = find_classes(options.dataset_path, dataset, options.class_name)
    absent = [name for name in dataset.classes if name not in classes] if options.class_name is None else []
    if absent:
        print(f"not in {options.dataset_path}, left out: {', '.join(absent)}")
    return [_class_files(options, name) for name in classes]


def _class_files(options: DataOptions, name: str) -> ClassFiles:
    find_samples = DATASETS[options.dataset_type].find_samples
    folder = options.dataset_path / name
    train = list_samples(folder, "train", find_samples)
    test = find_samples(folder, "test")
    if not test and options.needs_test:
        list_samples(folder, "test", find_samples)  # says what is missing
    validation = find_samples(folder, "validation")
    if options.label_by_folder:
        test = [_labelled_by_folder(sample) for sample in test]
    if not options.unchecked:
        _check_preprocessed(options.dataset_path, [*train, *validation, *test])
        for remark in check_plausible([*train, *validation, *test]):
            print(f"warning: {name}: {remark}", file=sys.stderr)
    stamp = fingerprint([*train, *validation, *test], options.fingerprint)
    return ClassFiles(name, options.dataset_path, train, validation, test, stamp)


def _check_preprocessed(root: Path, samples: list[SampleFiles]) -> None:
    """Raises DatasetError where a preprocessing was cut: some of a class's samples are raw still.

    A class that its record does not know at all has come from elsewhere; how its clouds look decides.
    """
    raw = not_done(root, [sample.xyz for sample in samples])
    if 0 < len(raw) < len(samples):
        raise DatasetError(
            f"{raw[0]}: is not done by the record of the preprocessing in {root} ({len(raw)} of {len(samples)} samples "
            "are not); repeat utils/preprocessing.py, or add --unchecked if they are preprocessed all the same"
        )


def fingerprint(samples: Iterable[SampleFiles], by: FingerprintBy = "times") -> str:
    """A checksum of the names of the samples' files and of their sizes and times, or of their contents."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.path}\0{sample.label}\0".encode("utf-8", "surrogateescape"))
        for path in (sample.rgb, sample.xyz, sample.mask):
            if path is not None:
                told = stamp(path) if by == "times" else f"{path.name} {sha256_of(path)}"
                digest.update(f"{told}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _labelled_by_folder(sample: SampleFiles) -> SampleFiles:
    if sample.label is not None or sample.rgb.parents[1].name == UNKNOWN:
        return sample
    return dataclasses.replace(sample, label=1)
