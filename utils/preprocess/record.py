"""A record of the samples that are done, by which a run that was cut at any moment can simply be repeated.

All files of a sample count as done or not done together: they are first written beside their targets under other
names (`write_part`), then one line in the record commits the sample, and only then the parts replace the targets.
Opening the record finishes what a cut run had committed; parts without a line are written anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from utils.files import try_lock

RECORD_NAME = ".preprocessed.jsonl"
PART_SUFFIX = ".part"


class RecordError(ValueError):
    """The record and the data set, or the parameters asked for, do not go together; the message has the remedy."""


def write_part(path: Path, content: bytes) -> None:
    """Write `content` safely to disk beside `path`, where `SampleRecord.commit` expects it; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _part(path).open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


class SampleRecord:
    """Lines of JSON: first the parameters, then per sample its name, its files with their sizes, and a report."""

    def __init__(self, root: Path, handle: BinaryIO) -> None:
        self.entries: dict[str, dict[str, Any]] = {}
        self._root, self._handle = root, handle

    def commit(self, sample: str, files: Iterable[str], report: dict[str, Any]) -> None:
        """Let the parts of `files` (relative to the root) replace their targets, and remember it."""
        sizes = {name: _part(self._root / name).stat().st_size for name in files}
        entry = {"sample": sample, "files": sizes, "report": report}
        self._append(entry)
        self.entries[sample] = entry
        self._replace_targets(entry)

    def _load(self, parameters: dict[str, Any]) -> None:
        header, entries = self._read_lines()
        if entries and header != parameters:
            raise RecordError(self._mismatch(header, parameters))
        if not entries:
            self._handle.truncate(0)
            self._append(parameters)
        self.entries = {entry["sample"]: entry for entry in entries}
        for entry in entries:
            self._replace_targets(entry)
            self._check_unchanged(entry)

    def _read_lines(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        self._handle.seek(0)
        complete, _, torn = self._handle.read().rpartition(b"\n")
        if torn:  # a cut run's last line, which committed nothing
            self._handle.truncate(len(complete) + 1 if complete else 0)
        try:
            lines = [json.loads(line) for line in complete.splitlines()]
        except ValueError as error:
            raise RecordError(
                f"{self._root / RECORD_NAME}: damaged ({error}); unpack the data set anew and delete this file"
            ) from error
        return (lines[0], lines[1:]) if lines else ({}, [])

    def _append(self, line: dict[str, Any]) -> None:
        self._handle.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._handle.flush()
        os.fsync(self._handle.fileno())

    def _replace_targets(self, entry: dict[str, Any]) -> None:
        for name in entry["files"]:
            part = _part(self._root / name)
            if part.exists():  # else it had been renamed before the run was cut
                part.replace(self._root / name)

    def _check_unchanged(self, entry: dict[str, Any]) -> None:
        paths = {self._root / name: size for name, size in entry["files"].items()}
        if not any(path.exists() for path in paths):  # removed with its class, say
            return
        for path, size in paths.items():
            if not path.exists() or path.stat().st_size != size:
                raise RecordError(
                    f"{path}: missing or changed since it was preprocessed; where original files were unpacked "
                    f"again, delete their lines in {self._root / RECORD_NAME} and run again"
                )

    def _mismatch(self, header: dict[str, Any], parameters: dict[str, Any]) -> str:
        changed = sorted(name for name in {*header, *parameters} if header.get(name) != parameters.get(name))
        asked = ", ".join(f"{name} {header.get(name)} (now {parameters.get(name)})" for name in changed)
        return (
            f"{self._root} was preprocessed with {asked} and does not hold the original points any more: use the "
            f"same value, or unpack the data set anew, delete {self._root / RECORD_NAME}, and run again"
        )


@contextmanager
def open_record(root: Path, parameters: dict[str, Any]) -> Iterator[SampleRecord]:
    """Open the record of the data set at `root` for one run alone, finishing what a cut run had committed.

    Raises RecordError when samples were done with other parameters, when files were changed since, when the
    record is damaged, and when another run is at work.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / RECORD_NAME).open("a+b") as handle:
        if not try_lock(handle):
            raise RecordError(f"{root}: another run is preprocessing it; wait for it to end")
        record = SampleRecord(root, handle)
        record._load(parameters)
        yield record


def is_bookkeeping(path: Path) -> bool:
    """Whether a file is the record itself or a part, and so none of the data set's own files."""
    return path.name == RECORD_NAME or (path.name.startswith(".") and path.name.endswith(PART_SUFFIX))


def _part(path: Path) -> Path:
    return path.with_name(
        f".{path.name}{PART_SUFFIX}"
    )  # of another suffix, so that nobody takes it for a sample
