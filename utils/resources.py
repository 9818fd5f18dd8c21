"""Where the time and the memory of a class went, and what is said when memory is short."""

from __future__ import annotations

import hashlib
import re
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
RESET_SLACK_MB = 16  # what may be given back between a reset and a look at its effect
SHORT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator")  # in what torch says
LOST_WORKER = re.compile(r"DataLoader worker .*(exited unexpectedly|signal: (?!Terminated))")


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


@contextmanager
def shortage_named() -> Iterator[None]:
    """Around work with torch, which says by RuntimeError that memory is short: here it is MemoryError.

    So is a loader's process that was killed, which is what systems do when memory is short.
    """
    try:
        yield
    except RuntimeError as error:
        said = next(iter(str(error).splitlines()), "")
        if any(sign in said for sign in SHORT_OF_MEMORY) or LOST_WORKER.match(said):
            raise MemoryError(said) from error
        raise


def reset_peak_memory() -> bool:
    """Start a new measurement, where the system allows it: on Linux, but not in every container.

    Returns whether it did; if not, the peak stays that of the whole process.
    """
    try:
        PROC_CLEAR.write_text(RESET_PEAK)
        return _status_mb("VmHWM") - _status_mb("VmRSS") < RESET_SLACK_MB  # some containers ignore the write
    except (OSError, KeyError):
        return False


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process in MB (10^6 bytes), since the last reset where there is one.

    None on Windows.
    """
    try:
        return _status_mb("VmHWM")
    except (OSError, KeyError):
        pass  # not Linux, or a container that tells less
    if sys.platform == "win32":
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _status_mb(field: str) -> float:
    """A field of proc(5)'s status that is given in kB, in MB. Raises OSError or KeyError where there is none."""
    fields = dict(line.split(":", 1) for line in PROC_STATUS.read_text().splitlines() if ":" in line)
    return int(fields[field].split()[0]) * 1024 / 1e6


def sha256_of(path: Path) -> str:
    """Checksum of a file, to tell weights apart."""
    return digest_of(path, "sha256")


def digest_of(path: Path, algorithm: str) -> str:
    """A file's checksum by any of hashlib's algorithms, as hexadecimal digits; it protects from damage, not malice."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
