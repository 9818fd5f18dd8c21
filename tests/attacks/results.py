"""What a command has left on disk, without what differs from run to run."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from pathlib import Path
from typing import Any

import torch

from utils.files import TEMPORARY_NAME, try_lock

LOCKS = {
    ".saving",
    ".index.lock",
    ".convert.lock",
    ".training",
    ".judging",
    ".downloading",
    ".out.lock",
}  # empty files that stay
DIFFERENT = {"seconds", "memory_mb", "peak_memory_mb", "milliseconds"}  # fields of JSON and CSV files
TIMES_IN_A_REPORT = re.compile(r"\d[\d.,]*( ms a part| s\b| MB)|(?<=<td>)[\d.,]+(?=</td>)")
PATIENCE_S = 5
EVENTS = "events.out.tfevents"  # TensorBoard's, a new one each run
GROWING = {
    "results.json",
    "report.csv",
    "log.txt",
    ".preprocessed.jsonl",
    "index.json",
}  # while a command runs

Snapshot = dict[str, Any]  # what counts of each file, by its path below the folder


def snapshot(folder: Path) -> Snapshot:
    """All files below a folder, hidden ones too, but for locks and TensorBoard's."""
    files = [path for path in folder.rglob("*") if path.is_file() and not _is_lock(path)]
    return {
        path.relative_to(folder).as_posix(): _content(path)
        for path in sorted(files)
        if not path.name.startswith(EVENTS)
    }


def _is_lock(path: Path) -> bool:
    return path.name in LOCKS or ".locks" in path.parts


def different(found: Snapshot, expected: Snapshot) -> list[str]:
    """Names of the files that are missing, unexpected or not equal."""
    return sorted(name for name in {**found, **expected} if found.get(name) != expected.get(name))


def torn(found: Snapshot, *versions: Snapshot) -> list[str]:
    """Names of the files that are as in none of the versions, though they may not be there at all.

    But for `temporaries`, which are looked for apart.
    """
    return sorted(
        name
        for name, content in found.items()
        if Path(name).name not in GROWING
        and Path(name).parent.name != "classes"  # which say whether their run has ended
        and not any(map(_is_temporary, Path(name).parts))
        and all(name not in version or version[name] != content for version in versions)
    )


def temporaries(folder: Path) -> list[str]:
    """Files that only a command at work may have."""
    return [path.name for path in folder.rglob(".*") if _is_temporary(path.name)]


def _is_temporary(name: str) -> bool:
    return bool(TEMPORARY_NAME.fullmatch(name)) or name.endswith((".part", ".partial"))


def held_locks(folder: Path) -> list[Path]:
    """Lock files that a process holds for longer than one that was killed takes to let go of its files."""
    end = time.monotonic() + PATIENCE_S
    while (held := _held_in(folder)) and time.monotonic() < end:
        time.sleep(0.05)
    return held


def _held_in(folder: Path) -> list[Path]:
    """Locks are hidden files, or lie in hidden folders: `.locks/classes/bagel`, `.at_work_1234/0`."""
    return [path for path in folder.rglob("*") if _is_hidden(path.relative_to(folder)) and _is_held(path)]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_held(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as handle:
        return not try_lock(handle)


def _content(path: Path) -> Any:
    reader = READERS.get(path.suffix)
    content = path.read_bytes()
    try:
        return reader(content) if reader else content
    except Exception:
        return content  # half a file, which is then not equal to a whole one


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(item) for name, item in value.items() if name not in DIFFERENT}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def _json(content: bytes) -> Any:
    return _without_times(json.loads(content))


def _lines_of_json(content: bytes) -> Any:
    return [_without_times(json.loads(line)) for line in content.splitlines()]


def _csv(content: bytes) -> Any:
    return [_without_times(row) for row in csv.DictReader(io.StringIO(content.decode("utf-8")))]


def _report(content: bytes) -> Any:
    return TIMES_IN_A_REPORT.sub("TIME", content.decode("utf-8"))


def _checkpoint(content: bytes) -> Any:
    """All but the flags: a run that was resumed has others."""
    stored = torch.load(io.BytesIO(content), weights_only=False)
    return {name: _plain(value) for name, value in stored.items() if name != "args"}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


READERS = {
    ".json": _json,
    ".csv": _csv,
    ".txt": _lines_of_json,
    ".html": _report,
    ".pth": _checkpoint,
}
