"""The folder that predict.py writes to: what is in it, that it is ours alone, and that no camera's file is lost."""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from utils.console import encodable
from utils.files import alone_with, check_writable, naming, sweep_leftovers

LOCK_NAME = ".judging"
KINDS = {"maps": ".tiff", "overlays": ".png", "clouds": ".ply"}  # what is written of a part, by folder
COLUMNS = ("part", "score", "calibrated", "threshold", "verdict", "milliseconds", "problem")
TABLE_NAME, PAGE_NAME = "report.csv", "report.html"
TABLE_SIGN, PAGE_SIGN = ",".join(COLUMNS).encode(), b"<title>Parts judged by "  # by which we know ours
SIGN_WITHIN = 1000  # bytes from the beginning
Identity = tuple[int, int]  # device and number of a file


def check_apart(parts: Path, output: Path) -> None:
    """Raises ValueError when the parts' folder is in the output's or the other way round: either would take the
    other's files for its own.
    """
    if _lies_in(parts, output) or _lies_in(output, parts):
        raise ValueError(
            f"--output {output}: overlaps with the parts' folder {parts}; name one apart from it"
        )


def _lies_in(inner: Path, outer: Path) -> bool:
    real = inner.resolve()
    return outer.exists() and any(place.exists() and place.samefile(outer) for place in (real, *real.parents))


def check_ours(folder: Path) -> None:
    """Raises FileExistsError when a folder holds what would be replaced, but was not written by predict.py."""
    table = folder / TABLE_NAME
    foreign = [
        path for path, sign in ((table, TABLE_SIGN), (folder / PAGE_NAME, PAGE_SIGN)) if _lacks(path, sign)
    ]
    if not (folder / LOCK_NAME).exists() and not table.exists():
        foreign += [path for kind in KINDS if (path := folder / kind).is_dir() and any(path.iterdir())]
    if foreign:
        raise FileExistsError(
            f"{foreign[0]}: was not written by predict.py; name another --output, or move it away"
        )


def _lacks(path: Path, sign: bytes) -> bool:
    """Whether there is something else than a file with the sign at its beginning; an empty file is nothing."""
    if not path.exists():
        return False
    if not path.is_file():
        return True
    with path.open("rb") as file:
        start = file.read(SIGN_WITHIN)
    return bool(start) and sign not in start


@contextmanager
def output_alone(folder: Path) -> Iterator[None]:
    """Have the folder while the block runs, without what a killed run left half written. Raises OSError."""
    check_ours(folder)
    check_writable(folder, "--output")
    problem = f"--output {folder}: another run is writing there; wait for it to end, or use another folder"
    with alone_with(folder / LOCK_NAME, problem):
        sweep_leftovers(folder, deep=False)
        for kind in KINDS:
            sweep_leftovers(folder / kind)
        yield


def append_row(path: Path, row: Iterable[object], mode: Literal["ab", "wb"] = "ab") -> None:
    """Add a row to a table in UTF-8, or nothing at all. Raises OSError."""
    text = io.StringIO(newline="")
    csv.writer(text).writerow(row)
    content = encodable(text.getvalue()).encode("utf-8")
    with naming(path), path.open(mode, buffering=0) as file:
        before = file.tell()
        if file.write(content) < len(content):  # part of it did fit
            file.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def identities(path: Path) -> list[Identity]:
    """What tells a file from all others, by whatever name: of a link itself first, then of what it leads to."""
    found = []
    for look in (path.lstat, path.stat):
        with suppress(OSError):
            stat = look()
            found.append((stat.st_dev, stat.st_ino))
    return found
