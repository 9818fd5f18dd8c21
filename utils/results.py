"""Results on disk: a class a file, `classes/<class>.json`, and `results.json`, which joins those of equal runs.

A class's file says by which run it was made (the header: equal headers give equal numbers) from which data, so that
runs of other classes, on other machines too, may share a folder, and nothing stale is taken for new.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.files import (
    TEMPORARY_PREFIX,
    after_others,
    alone_with,
    check_regular,
    read_regular,
    remove,
    write_json,
)
from utils.metrics import METRICS
from utils.schema import check_fields

RESULTS_NAME = "results.json"
REPORT_NAME = "report.html"
CLASS_FILES = {
    "classes": ".json",
    "scores": ".csv",
    "report": ".json",
}  # sub-folder -> suffix of a class's file there
PICTURES = "pred_maps"  # a folder a class
LOCKS = ".locks"
LARGEST_RECORD = 64 << 20  # bytes of a file that is believed
RECORD_FIELDS = {
    "header": dict[str, Any],
    "data": dict[str, Any],
    "result": dict[str, Any] | None,
    "failure": str | None,
    "run_complete": bool,
}
RESULT_FIELDS = {
    **{metric.key: float | None for metric in METRICS},
    "seconds": dict[str, float],
    "memory_mb": dict[str, float | None],
    "peak_memory_mb": float | None,
    "counts": dict[str, int],
    "remarks": list[dict[str, str]],
    "skipped_samples": list[dict[str, str]],
    "doubt": str | None,
    "kinds": dict[str, dict[str, float | None]],  # of defects, each among all good samples
    "training_samples": list[str] | None,
    "device": str,  # what computed the class: no reason to do it again
}


@dataclass(frozen=True)
class ClassRecord:
    """What is known of a class: its result, or why it failed.

    data: what identifies the data it was made from; run_complete: whether its run got to its end.
    """

    header: dict[str, Any]
    data: dict[str, Any]
    result: dict[str, Any] | None = None
    failure: str | None = None
    run_complete: bool = False

    @classmethod
    def read(cls, path: Path) -> ClassRecord | None:
        """None where there is no such file, or it is none of ours: then the class is not done."""
        try:
            if path.stat().st_size > LARGEST_RECORD:
                return None
            values = json.loads(read_regular(path).decode("utf-8"))
            check_fields(values, RECORD_FIELDS)
            if values["result"] is not None:
                check_fields(values["result"], RESULT_FIELDS)
            if (values["result"] is None) == (values["failure"] is None):
                return None
        except (OSError, ValueError, RecursionError):
            return None
        return cls(**values)


class ResultsFolder:
    """The results of one run, which `header` identifies, in a folder that others may share.

    order: of the classes in results.json; others follow by name.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], order: Sequence[str] = ()) -> None:
        self.folder = folder
        self.order = tuple(order)
        self.header: dict[str, Any] = json.loads(json.dumps(header))  # as it is read back

    def record(self, name: str) -> ClassRecord | None:
        """The class's record, if it was made by such a run."""
        record = ClassRecord.read(self._path(name))
        return record if record is not None and record.header == self.header else None

    def was_cut_after(self, name: str, data: Mapping[str, Any]) -> bool:
        """Whether such a run has done the class, with the same data, and was cut before its own end."""
        record = self.record(name)
        return (
            record is not None
            and record.result is not None
            and record.data == data
            and not record.run_complete
        )

    def begin(self, name: str) -> None:
        """Remove what any earlier run has left of a class, from results.json too."""
        remove_class(self.folder, name)
        self.join(at_work=True)

    def write(
        self,
        name: str,
        data: Mapping[str, Any],
        result: Mapping[str, Any] | None = None,
        failure: str | None = None,
    ) -> None:
        """Record that a class is done, or why it failed; ValueError for NaN and for what could not be read back."""
        if result is not None:
            check_fields(result, RESULT_FIELDS)
        self._write(name, ClassRecord(self.header, dict(data), dict(result) if result else None, failure))
        self.join()

    def complete(self, classes: Sequence[str]) -> None:
        """Record that the run of these classes got to its end: the same command then does them again."""
        for name in classes:
            record = self.record(name)
            if record is not None:
                self._write(name, replace(record, run_complete=True))
        self.join()

    def joined(self, ending: Collection[str] = ()) -> dict[str, Any]:
        """The content of results.json: all classes of such runs; `ending`: those whose run is at its end."""
        found = self._names()
        names = [*(name for name in self.order if name in found), *sorted(found - set(self.order))]
        records = {name: record for name in names if (record := self.record(name)) is not None}
        results = {name: record.result for name, record in records.items() if record.result is not None}
        return {
            **self.header,
            "device": _all_of(result["device"] for result in results.values()),
            "complete": bool(records)
            and all(record.run_complete or name in ending for name, record in records.items()),
            "classes": results,
            "failed_classes": {n: record.failure for n, record in records.items() if record.failure},
        }

    def join(self, *, at_work: bool = False) -> dict[str, Any]:
        """Write results.json, and return its content; runs that share the folder do so one after the other."""
        with others_waiting(self.folder, "join"):
            content = self.joined()
            if at_work:
                content["complete"] = False
            write_json(self.folder / RESULTS_NAME, content)
        return content

    def of_other_runs(self) -> list[str]:
        """Classes in the folder whose results another kind of run has made."""
        return [name for name in sorted(self._names()) if self.record(name) is None]

    def _write(self, name: str, record: ClassRecord) -> None:
        write_json(self._path(name), vars(record))

    def _names(self) -> set[str]:
        """The classes that have a record, by whatever run."""
        paths = (self.folder / "classes").glob("*.json")
        return {path.stem for path in paths if not path.name.startswith(TEMPORARY_PREFIX)}

    def _path(self, name: str) -> Path:
        return self.folder / "classes" / f"{name}.json"


def check_results_folder(folder: Path, class_folders: Sequence[Path]) -> None:
    """Find out now that a run can't write there, or would write over its own data. Raises ValueError or OSError."""
    for name in (*CLASS_FILES, PICTURES):
        place = folder / name
        if place.exists() and not place.is_dir():
            raise ValueError(
                f"--results_dir {folder}: {place} is no folder; move it away, or use another one"
            )
        for data in class_folders:
            if data.resolve().is_relative_to(place.resolve()):
                raise ValueError(
                    f"--results_dir {folder}: results would replace the data in {data}; use another folder"
                )
    for name, suffix in CLASS_FILES.items():
        for data in class_folders:
            check_regular(folder / name / f"{data.name}{suffix}")
    check_regular(folder / RESULTS_NAME)
    check_regular(folder / REPORT_NAME)


def remove_class(folder: Path, name: str) -> None:
    """Remove what runs have left of a class in a results folder, but for results.json and the tables."""
    for sub, suffix in CLASS_FILES.items():
        remove(folder / sub / f"{name}{suffix}")
    remove(folder / PICTURES / name)


@contextmanager
def others_waiting(folder: Path, what: str = "tables") -> Iterator[None]:
    """While the block writes files of all classes; runs that share the folder do so one after the other.

    Who takes several folders takes them in order of their paths, lest two runs wait for each other.
    """
    locks = folder / LOCKS / "of_all"
    locks.mkdir(parents=True, exist_ok=True)
    with after_others(locks / what):
        yield


@contextmanager
def alone_with_classes(folder: Path, classes: Sequence[str]) -> Iterator[None]:
    """Keep other runs from these classes of a results folder while the block runs.

    Raises OSError when one is at work on them.
    """
    locks = folder / LOCKS / "classes"
    locks.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        for name in classes:
            problem = f"--results_dir {folder}: another run is at work on {name} there; use another folder"
            held.enter_context(alone_with(locks / name, problem))
        yield


def _all_of(values: Iterable[Any]) -> str:
    """What all agree on; else all there are."""
    return ", ".join(dict.fromkeys(str(value) for value in values))
