"""Damaged files for every reader of `EVERY_READER`: each must be refused in the reader's own words or give a value.

python -m tests.attacks.fuzz --mutants 10000 [--keep DIR] [READER ...]     # a line for each reader
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tests.attacks.mutations import damaged
from tests.attacks.readers import READERS, Reader
from tests.attacks.result_readers import RESULT_READERS

LONGEST_S = 60  # for one mutant; then it counts as a hang
LONGEST_MESSAGE = 1200
MOST_MEMORY = 2**30  # bytes that a reader may take beyond what the process had: an allocation above it fails
COLUMNS = ("reader", "mutants", "refused", "accepted", "escaped", "s", "slowest, ms", "peak, MB")
ROOT = Path(__file__).parents[2]

EVERY_READER = {**READERS, **RESULT_READERS}


@dataclass
class Figures:
    """What became of the mutants: accepted, refused by class of error, escaped (each a description)."""

    reader: str
    mutants: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    escaped: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest_ms: float = 0.0
    peak_mb: float = 0.0


class HangError(BaseException):
    """No Exception, so that no reader takes it for damage."""


def fuzz(name: str, count: int, folder: Path, keep: Path | None = None) -> Figures:
    """Read `count` mutants, the same in every call; those that escape are kept where `keep` says."""
    reader, figures = EVERY_READER[name], Figures(name)
    path = folder / reader.file
    path.parent.mkdir(parents=True, exist_ok=True)
    seeds = reader.seeds()
    for seed in seeds:
        path.write_bytes(seed)
        value = reader.read(path)
        assert reader.is_valid(value), f"{name}: a seed is not valid"
        assert not _is_nothing(value), f"{name}: a seed is read as if it was not there"
    before, start = _memory_bytes()[1], time.perf_counter()
    for i in range(count):
        mutant = _mutant(reader, seeds, i)
        path.write_bytes(mutant)
        begun = time.perf_counter()
        problem = _problem(reader, path, figures)
        figures.slowest_ms = max(figures.slowest_ms, 1000 * (time.perf_counter() - begun))
        figures.mutants += 1
        if problem:
            figures.escaped[problem] += 1
            if keep is not None:
                (keep / f"{name.replace(' ', '_')}-{i}").write_bytes(mutant)
    figures.seconds = time.perf_counter() - start
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures.peak_mb = max(0, peak - before) / 1e6
    return figures


def fuzz_in_child(name: str, count: int, keep: Path | None = None) -> Figures:
    """As `fuzz`, in a process of its own whose memory is bounded."""
    command = [sys.executable, "-m", "tests.attacks.fuzz", name, "--child", "--mutants", str(count)]
    command += ["--keep", str(keep)] if keep else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        return Figures(name, escaped=Counter({f"exit {done.returncode}: {done.stderr[-300:]}": 1}))
    values = json.loads(done.stdout.splitlines()[-1])
    return Figures(**values | {key: Counter(values[key]) for key in ("refused", "escaped")})


def _is_nothing(value: Any) -> bool:
    """Whether the value is what some readers give for a file that is not there, or that they pass over."""
    return value is None or (isinstance(value, Sized) and len(value) == 0)


def _mutant(reader: Reader, seeds: list[bytes], i: int) -> bytes:
    rng = np.random.default_rng([i, *reader.file.encode()])
    content = seeds[i % len(seeds)]
    change = reader.inside if reader.inside and rng.random() < 0.5 else damaged
    return change(content, seeds, rng)


def _problem(reader: Reader, path: Path, figures: Figures) -> str:
    """Reads; what went wrong, "" if nothing."""
    try:
        with _alarm(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = reader.read(path)
            if not reader.is_valid(value):
                return f"accepted: {value!r:.300}"
    except reader.error as error:
        figures.refused[type(error).__name__] += 1
        return _problem_of_message(str(error), path)
    except (Exception, HangError) as error:
        return f"{type(error).__name__}: {error!s:.200}"
    figures.accepted += 1
    return ""


def _problem_of_message(message: str, path: Path) -> str:
    if str(path.parent) not in message:
        return f"names no file: {message:.200}"
    if len(message.splitlines()) != 1:
        return f"several lines: {message!r:.200}"
    return f"long: {message:.200}" if len(message) > LONGEST_MESSAGE else ""


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise HangError(f"after {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _memory_bytes() -> tuple[int, int]:
    """Virtual and resident memory of this process; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    virtual, resident = statm.read_text().split()[:2] if statm.exists() else ("0", "0")
    return int(virtual) * resource.getpagesize(), int(resident) * resource.getpagesize()


def _bound_memory() -> None:
    """An allocation fails that would take MOST_MEMORY more than there is now."""
    now = _memory_bytes()[0]
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST_MEMORY,) * 2)


def _line(figures: Figures) -> str:
    refused = ", ".join(f"{count} {kind}" for kind, count in figures.refused.most_common()) or "none"
    escaped = sum(figures.escaped.values())
    return (
        f"| {figures.reader} | {figures.mutants} | {refused} | {figures.accepted} | {escaped} "
        f"| {figures.seconds:.0f} | {figures.slowest_ms:.0f} | {figures.peak_mb:.0f} |"
    )


def main() -> int:
    """Exit status: 1 when a mutant escaped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("readers", nargs="*", default=list(EVERY_READER), metavar="READER")
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _bound_memory()
        faulthandler.dump_traceback_later(3600, exit=True)
        with TemporaryDirectory() as folder:
            print(json.dumps(vars(fuzz(args.readers[0], args.mutants, Path(folder), args.keep))))
        return 0
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    status = 0
    for name in args.readers:
        figures = fuzz_in_child(name, args.mutants, args.keep)
        print(_line(figures), flush=True)
        for problem, count in figures.escaped.most_common(8):
            print(f"    {count} x {problem}", flush=True)
        status |= bool(figures.escaped)
    return status


if __name__ == "__main__":
    sys.exit(main())
