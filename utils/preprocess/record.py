"""A record of the samples that are done, by which a run that was cut at any moment can simply be repeated.

All files of a sample count as done or not done together: they are first written beside their targets as drafts of
this run (`write_part`), which become parts; then one line in the record commits the sample, and only then the parts
replace the targets. Opening the record finishes what a cut run had committed and sweeps the parts of samples that it
had not. A sample is made anew by one line that forgets it, with no files, and another one that commits it again.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any
from weakref import WeakSet

from utils.files import naming, try_lock
from utils.signals import Terminated

RECORD_NAME = ".preprocessed.jsonl"
PART_SUFFIX = ".part"
DEPTH = 5  # of a sample's files below the root: <class>/<split>/<kind>/<xyz, rgb or gt>/<file>
SAMPLE_SUFFIXES = (".tiff", ".png")
BEFORE_THE_UNIT_WAS_RECORDED = {"unit": "m"}

Header = dict[str, Any]  # what decides the files beside the data
# sample: name; files: {path below the root: bytes}; source: stamps of the files it was made of, in records of 0.1.0
# none; report: see Outcome of the driver
Entry = dict[str, Any]


class RecordError(ValueError):
    """The record and the data set, or the parameters asked for, do not go together; the message has the remedy."""


def read_record(root: Path) -> tuple[Header, dict[str, Entry]]:
    """Header and entries by sample of the record at `root`, both empty where there is none; changes nothing.

    Raises RecordError when the record is damaged.
    """
    path = root / RECORD_NAME
    if not path.exists():
        return {}, {}
    header, lines = _parse(path, path.read_bytes())
    return header, _done(lines)


def not_done(root: Path, files: Sequence[Path]) -> list[Path]:
    """Those of the samples' files below `root` (their clouds, say) that the record there does not list as done.

    Not done is also a sample that a cut run had committed without putting all its files in place, and a file of
    another size than recorded. Empty where there is no record. Raises RecordError when the record is damaged.
    """
    if not (root / RECORD_NAME).exists():
        return []
    entries = read_record(root)[1].values()
    recorded = {(root / name).absolute(): (name, entry) for entry in entries for name in entry["files"]}
    return [
        path
        for path in files
        if (found := recorded.get(path.absolute())) is None or not _is_in_place(root, *found)
    ]


def write_part(path: Path, content: bytes, draft: str = "") -> None:
    """Write `content` safely to disk beside `path`, as a draft that `SampleRecord.commit` takes; folders are made."""
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _part(path, draft).open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())


def copy_file(source: Path, target: Path) -> None:
    """Copy to `target`, which is there complete, with the source's time, or not at all; folders are made."""
    with naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        part, time = _part(target), source.stat().st_mtime_ns
        try:
            shutil.copyfile(source, part)
            os.utime(part, ns=(time, time))
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


class SampleRecord:
    """Lines of JSON: first the parameters, then per sample its name, its files with their sizes, and a report.

    draft: names the parts that this run's workers write. Those of a run that was killed may live on for a moment, or
    be stopped and continue at any time: they never write to a file of another run.
    """

    def __init__(self, root: Path, handle: FileIO) -> None:
        self.entries: dict[str, Entry] = {}
        self.draft = secrets.token_hex(4)
        self._former: dict[str, dict[str, int]] = {}  # files that a sample had before it was made anew
        self.root, self._handle = root, handle

    def commit(
        self, sample: str, files: Iterable[str], report: dict[str, Any], source: Sequence[str]
    ) -> None:
        """Let this run's drafts of `files` (relative to the root) replace their targets, and remember it."""
        sizes = {}
        for name in files:
            part = _part(self.root / name)
            with naming(self.root / name):
                _part(self.root / name, self.draft).replace(part)
            sizes[name] = part.stat().st_size
        entry = {"sample": sample, "files": sizes, "source": list(source), "report": report}
        self.entries[sample] = (
            entry  # before the line is written: it may be there though an error ends the run
        )
        self._append(entry)
        self._replace_targets(entry)
        self._remove_former(entry)

    def forget(self, sample: str) -> None:
        """The sample is to be made anew; its files stay until then."""
        entry = self.entries.pop(sample)
        self._append(entry | {"files": {}, "source": []})
        self._former.setdefault(sample, {}).update(entry["files"])

    def files_of(self, sample: str) -> list[Path]:
        """Those files of a done sample that are there."""
        return [path for name in self.entries[sample]["files"] if (path := self.root / name).exists()]

    def sweep(self) -> None:
        """Remove the parts of samples that were begun and not committed."""
        entries = self.entries.values()
        needed = {_part(self.root / name) for entry in entries for name in entry["files"]}
        for suffix in SAMPLE_SUFFIXES:
            for part in self.root.glob("*/" * (DEPTH - 1) + f".*{suffix}{PART_SUFFIX}"):
                if part not in needed:
                    part.unlink(missing_ok=True)

    def _load(self, parameters: Header) -> None:
        self._handle.seek(0)
        content = self._handle.read()
        header, lines = _parse(self.root / RECORD_NAME, content)
        self.entries = _done(lines)
        for line in lines:
            self._former.setdefault(line["sample"], {}).update(line["files"])
        if not lines:
            self._truncate(0)
            self._append(parameters)
        else:
            self._truncate(content.rindex(b"\n") + 1)  # a cut run's torn line committed nothing
            _check_parameters(self.root, header, parameters)
        for entry in self.entries.values():
            self._replace_targets(entry)
            self._check_unchanged(entry)
            self._remove_former(entry)
        self.sweep()

    def _truncate(self, size: int) -> None:
        with naming(self.root / RECORD_NAME):
            self._handle.truncate(size)

    def _append(self, line: dict[str, Any]) -> None:
        with naming(self.root / RECORD_NAME):
            content = json.dumps(line, allow_nan=False).encode() + b"\n"
            if self._handle.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._handle.fileno())

    def _replace_targets(self, entry: Entry) -> None:
        for name in entry["files"]:
            part = _part(self.root / name)
            if part.exists():  # else it had been renamed before the run was cut
                with naming(self.root / name):
                    part.replace(self.root / name)

    def _remove_former(self, entry: Entry) -> None:
        """Remove what the sample had before, under other names, as it was written."""
        for name, size in self._former.get(entry["sample"], {}).items():
            path = self.root / name
            if name not in entry["files"] and path.exists() and path.stat().st_size == size:
                path.unlink()

    def _check_unchanged(self, entry: Entry) -> None:
        paths = {self.root / name: size for name, size in entry["files"].items()}
        if not any(path.exists() for path in paths):  # removed with its class, say
            return
        for path, size in paths.items():
            if not path.exists() or path.stat().st_size != size:
                raise changed(path, self.root)


@contextmanager
def open_record(root: Path, parameters: Header) -> Iterator[SampleRecord]:
    """Open the record of the data set at `root` for one run alone, finishing what a cut run had committed.

    Parts are swept at the end, unless the process is killed. Processes forked in the block do not hold the lock.
    Raises RecordError when samples were done with other parameters, when files were changed since, when the
    record is damaged, and when another run is at work; OSError when `root` can't be written.
    """
    with naming(root):
        root.mkdir(parents=True, exist_ok=True)
        handle = (root / RECORD_NAME).open("a+b", buffering=0)  # closing it writes nothing
    with handle:
        if not try_lock(handle):
            raise RecordError(f"{root}: another run is preprocessing it; wait for it to end")
        _opened.add(handle)
        record = SampleRecord(root, handle)
        record._load(parameters)
        try:
            yield record
            record.sweep()
        except Exception:
            with suppress(OSError):
                record.sweep()
            raise
        except (KeyboardInterrupt, Terminated):  # perhaps in the middle of a commit
            with suppress(OSError, RecordError):
                os.fsync(handle.fileno())
                record._load(parameters)
            raise


_opened: WeakSet[FileIO] = WeakSet()


def _leave_the_locks() -> None:
    """In a process just forked: its copy of a handle would hold the lock for as long as it lives, or is stopped."""
    for handle in _opened:
        handle.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_the_locks)


def is_bookkeeping(path: Path) -> bool:
    """Whether a file is the record itself or a part, and so none of the data set's own files."""
    return path.name == RECORD_NAME or (path.name.startswith(".") and path.name.endswith(PART_SUFFIX))


def changed(path: Path, root: Path) -> RecordError:
    """The error for a result that is not as it was written."""
    return RecordError(
        f"{path}: missing or changed since it was preprocessed; where original files were unpacked "
        f"again, delete their lines in {root / RECORD_NAME} and run again"
    )


def _part(path: Path, draft: str = "") -> Path:
    """Of another suffix, so that nobody takes it for a sample."""
    return path.with_name(f".{draft}{path.name}{PART_SUFFIX}")


def _is_in_place(root: Path, name: str, entry: Entry) -> bool:
    """Whether a file of a done sample has the recorded size, and none of the sample's files is still a part."""
    path, waiting = root / name, any(_part(root / other).exists() for other in entry["files"])
    return not waiting and path.exists() and path.stat().st_size == entry["files"][name]


def _done(lines: list[Entry]) -> dict[str, Entry]:
    """Of each sample the last line, but for those that were forgotten since."""
    return {name: line for name, line in {line["sample"]: line for line in lines}.items() if line["files"]}


def _parse(path: Path, content: bytes) -> tuple[Header, list[Entry]]:
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
    return header, entries


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("sample"), str):
        return False
    files, report = entry.get("files"), entry.get("report")
    if not isinstance(files, dict) or not isinstance(report, dict):
        return False
    source, odd = entry.get("source", []), report.get("odd", {})
    if not isinstance(source, list) or not all(isinstance(stamp, str) for stamp in source):
        return False
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
