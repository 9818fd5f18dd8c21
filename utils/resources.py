"""Where the time and the memory of a class went."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import resource

PROC_STATUS = Path("/proc/self/status")
PROC_CLEAR = Path("/proc/self/clear_refs")
HASH_BLOCK = 1 << 20  # bytes
RESET_PEAK = "5"  # proc(5): resets the peak resident set size


class Stopwatch:
    """Sums the seconds spent in named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def reset_peak_memory() -> None:
    """Start a new measurement, where the system allows it (Linux)."""
    if PROC_CLEAR.exists():
        try:
            PROC_CLEAR.write_text(RESET_PEAK)
        except OSError:
            return  # not allowed in some containers: the peak is then that of the whole run


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process in MB (10^6 bytes), since the last reset where there is one.

    None on Windows.
    """
    if PROC_STATUS.exists():
        for line in PROC_STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    if sys.platform == "win32":
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def sha256_of(path: Path) -> str:
    """Checksum of a file, to tell weights apart."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
