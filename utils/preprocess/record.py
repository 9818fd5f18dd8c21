"""A record of the samples that are done, by which a run that was cut at any moment can simply be repeated.

All files of a sample count as done or not done together: they are first written beside their targets under other
names (`write_part`), then one line in the record commits the sample, and only then the parts replace the targets.
Opening the record finishes what a cut run had committed and sweeps the parts of samples that it had not.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from utils.files import naming, try_lock

RECORD_NAME = ".preprocessed.jsonl"
PART_SUFFIX = ".part"
DEPTH = 5  # of a sample's files below the root: <class>/<split>/<kind>/<xyz, rgb or gt>/<file>
SAMPLE_SUFFIXES = (".tiff", ".png")
BEFORE_THE_UNIT_WAS_RECORDED = {"unit": "m"}

Header = dict[str, Any]  # what decides the files beside the data
Entry = dict[str, Any]  # sample: name; files: {path below the root: bytes}; report: see Outcome of the driver


class RecordError(ValueError):
    """The record and the data set, or the parameters asked for, do not go together; the message has the remedy."""


def read_record(root: Path) -> tuple[Header, dict[str, Entry]]:
    """Header and entries by sample of the record at `root`, both empty where there is none; changes nothing.

    Raises RecordError when the record is damaged.
    """
    path = root / RECORD_NAME
    return _parse(path, path.read_bytes()) if path.exists() else ({}, {})


def write_part(path: Path, content: bytes) -> None:
    """Write `content` safely to disk beside `path`, where `SampleRecord.commit` expects it; folders are made."""
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _part(path).open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())


def copy_file(source: Path, target: Path) -> None:
    """Copy to `target`, which is there complete or not at all; folders are made."""
    with naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, _part(target))
        _part(target).replace(target)


class SampleRecord:
    """Lines of JSON: first the parameters, then per sample its name, its files with their sizes, and a report."""

    def __init__(self, root: Path, handle: BinaryIO) -> None:
        self.entries: dict[str, Entry] = {}
        self._root, self._handle = root, handle

    def commit(self, sample: str, files: Iterable[str], report: dict[str, Any]) -> None:
        """Let the parts of `files` (relative to the root) replace their targets, and remember it."""
        sizes = {name: _part(self._root / name).stat().st_size for name in files}
        entry = {"sample": sample, "files": sizes, "report": report}
        self._append(entry)
        self.entries[sample] = entry
        self._replace_targets(entry)

    def _load(self, parameters: Header) -> None:
        self._handle.seek(0)
        content = self._handle.read()
        header, self.entries = _parse(self._root / RECORD_NAME, content)
        if not self.entries:
            self._handle.truncate(0)
            self._append(parameters)
        else:
            self._handle.truncate(content.rindex(b"\n") + 1)  # a cut run's torn line committed nothing
            _check_parameters(self._root, header, parameters)
        for entry in self.entries.values():
            self._replace_targets(entry)
            self._check_unchanged(entry)
        self._sweep()

    def _sweep(self) -> None:
        """Remove the parts of samples that a killed run had begun and not committed."""
        for suffix in SAMPLE_SUFFIXES:
            for part in self._root.glob("*/" * (DEPTH - 1) + f".*{suffix}{PART_SUFFIX}"):
                part.unlink()

    def _append(self, line: dict[str, Any]) -> None:
        with naming(self._root / RECORD_NAME):
            self._handle.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            self._handle.flush()
            os.fsync(self._handle.fileno())

    def _replace_targets(self, entry: Entry) -> None:
        for name in entry["files"]:
            part = _part(self._root / name)
            if part.exists():  # else it had been renamed before the run was cut
                part.replace(self._root / name)

    def _check_unchanged(self, entry: Entry) -> None:
        paths = {self._root / name: size for name, size in entry["files"].items()}
        if not any(path.exists() for path in paths):  # removed with its class, say
            return
        for path, size in paths.items():
            if not path.exists() or path.stat().st_size != size:
                raise RecordError(
                    f"{path}: missing or changed since it was preprocessed; where original files were unpacked "
                    f"again, delete their lines in {self._root / RECORD_NAME} and run again"
                )


@contextmanager
def open_record(root: Path, parameters: Header) -> Iterator[SampleRecord]:
    """Open the record of the data set at `root` for one run alone, finishing what a cut run had committed.

    Raises RecordError when samples were done with other parameters, when files were changed since, when the
    record is damaged, and when another run is at work; OSError when `root` can't be written.
    """
    with naming(root):
        root.mkdir(parents=True, exist_ok=True)
        handle = (root / RECORD_NAME).open("a+b")
    with handle:
        if not try_lock(handle):
            raise RecordError(f"{root}: another run is preprocessing it; wait for it to end")
        record = SampleRecord(root, handle)
        record._load(parameters)
        yield record


def is_bookkeeping(path: Path) -> bool:
    """Whether a file is the record itself or a part, and so none of the data set's own files."""
    return path.name == RECORD_NAME or (path.name.startswith(".") and path.name.endswith(PART_SUFFIX))


def _part(path: Path) -> Path:
    """Of another suffix, so that nobody takes it for a sample."""
    return path.with_name(f".{path.name}{PART_SUFFIX}")


def _parse(path: Path, content: bytes) -> tuple[Header, dict[str, Entry]]:
    """Header and entries of the complete lines in a record; RecordError when a line is not what we write."""
    complete, _, _ = content.rpartition(b"\n")
    try:
        header, *entries = [json.loads(line) for line in complete.splitlines()] or [{}]
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(header, dict) or not all(
        isinstance(value, int | float | str) for value in header.values()
    ):
        raise _damaged(path, "its first line holds no parameters")
    for number, entry in enumerate(entries, start=2):
        if not _is_entry(entry):
            raise _damaged(path, f"line {number} describes no sample of this data set")
    return header, {entry["sample"]: entry for entry in entries}


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("sample"), str):
        return False
    files, report = entry.get("files"), entry.get("report")
    if not isinstance(files, dict) or not isinstance(report, dict):
        return False
    odd = report.get("odd", {})
    if not isinstance(odd, dict) or not all(isinstance(detail, str) for detail in odd.values()):
        return False
    return all(_is_sample_file(name) and isinstance(size, int) for name, size in files.items())


def _is_sample_file(name: str) -> bool:
    """Whether it is a path as ours: relative, of the right depth, without steps out of the data set."""
    try:
        encoded = os.fsencode(name)
    except UnicodeError:
        return False
    path = Path(name)
    return len(path.parts) == DEPTH and b"\0" not in encoded and not path.anchor and ".." not in path.parts


def _damaged(path: Path, problem: str) -> RecordError:
    return RecordError(f"{path}: damaged ({problem}); unpack the data set anew and delete this file")


def _check_parameters(root: Path, header: Header, parameters: Header) -> None:
    if "plane_distance" in header:
        header = BEFORE_THE_UNIT_WAS_RECORDED | header
    if header.keys() != parameters.keys():
        raise RecordError(f"{root}: holds the results of another preprocessing command; name another folder")
    changed = sorted(name for name in parameters if header[name] != parameters[name])
    if changed:
        asked = ", ".join(f"{name} {header[name]} (now {parameters[name]})" for name in changed)
        raise RecordError(
            f"{root} was preprocessed with {asked} and does not hold the original points any more: use the "
            f"same value, or unpack the data set anew, delete {root / RECORD_NAME}, and run again"
        )
