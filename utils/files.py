"""Writing files so that a cut run leaves either the old file or the new one, never half of one."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

TEMPORARY_PREFIX = ".m3dm-tmp-"
TEMPORARY_NAME = re.compile(
    rf"{re.escape(TEMPORARY_PREFIX)}[a-z0-9_]{{8}}(\.[^.]*)?"
)  # as mkstemp makes them
PROBE_BYTES = 65536
LONGEST_REASON = 300  # letters, of what an error says about damaged content


def _umask() -> int:
    """The permissions that new files do not get; can only be read by setting it, which is no matter of one thread."""
    current = os.umask(0)
    os.umask(current)
    return current


UMASK = _umask()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` when the block ends without error.

    The temporary name keeps the suffix, since image and array writers choose their format by it. Raises OSError
    naming `path` for any in the block.
    """
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary_in(path.parent, path.suffix) as temporary:
            yield temporary
            temporary.chmod(0o666 & ~UMASK)  # mkstemp makes files private; results are not
            temporary.replace(path)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let an OSError name the file that was to be written, which one about a full disk does not."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: can't be written ({error}); choose a folder with room and access") from error


def sweep_leftovers(folder: str | Path, *, deep: bool = True) -> int:
    """Remove the temporaries that killed runs have left in `folder`, and with `deep` below it; returns how many.

    Only those of this module, by their name, and none that a living process writes: it holds their lock. Without
    locks, as on Windows, nothing is removed.
    """
    removed = 0
    for parent, folders, names in os.walk(folder):
        temporaries = [Path(parent, name) for name in names if TEMPORARY_NAME.fullmatch(name)]
        removed += sum(map(_remove_abandoned, temporaries))
        if not deep:
            folders.clear()
    return removed


def check_writable(folder: Path, flag: str) -> None:
    """Find out now, not after hours, that a folder can't be written to. Raises OSError naming it and its flag."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _temporary_in(folder) as probe, probe.open("wb") as file:
            file.write(b"\0" * PROBE_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(f"{flag} {folder}: can't write there ({error.strerror}); choose another") from error


@contextmanager
def alone_with(path: Path, problem: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs. Raises OSError with `problem` while another process does.

    The empty file stays: another process may have opened it before it was deleted and would then lock a file that
    nobody else sees. Processes forked in the block hold the lock until they end.
    """
    with path.open("a") as handle:
        if not try_lock(handle):
            raise OSError(problem)
        yield


@contextmanager
def after_others(path: Path) -> Iterator[None]:
    """Wait for the lock file `path`, and hold it while the block runs; nobody waits where there are no locks."""
    with path.open("a") as handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        except (ImportError, OSError):
            pass
        yield


def try_lock(handle: IO[Any], *, shared: bool = False) -> bool:
    """Lock an open file, for this process alone unless `shared`; False when another process has it locked.

    True without a lock on Windows, and on file systems that have none: two at once are not noticed there.
    """
    try:
        import fcntl

        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return True
    return True


def in_short(reason: Exception | str) -> str:
    """What is wrong with damaged content, on one line of bounded length, whatever of the content it quotes."""
    return " ".join((reason if isinstance(reason, str) else repr(reason)).split())[:LONGEST_REASON]


def stamp(path: Path) -> str:
    """Name, size and time of a file, by which a change is noticed; "" where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return ""
    return f"{path.name} {stat.st_size} {stat.st_mtime_ns}"


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there. Raises OSError naming it when it can't be."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"{path}: can't be removed ({error.strerror}); remove it, or use another folder"
        ) from error


def check_regular(path: Path) -> None:
    """Raises OSError for what stands where a file is to be written, and is no regular file."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path}: is no regular file; remove it")


def read_regular(path: Path) -> bytes:
    """The bytes of a file. Raises OSError also for a pipe or a device, which may never come to an end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return path.read_bytes()


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8 with the line ends that `text` has."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` to `path` atomically as indented JSON; NaN is refused, use None for what is unknown."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def _temporary_in(folder: Path, suffix: str = "") -> Iterator[Path]:
    """A new file, locked while the block runs so that nobody takes it for a leftover; removed if it is there then."""
    while True:
        number, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=suffix, dir=folder)
        with os.fdopen(number, "wb") as handle:
            if not try_lock(handle) or not Path(name).exists():  # swept in the moment before it was locked
                continue
            if sys.platform == "win32":  # where an open file can't be renamed
                handle.close()
            try:
                yield Path(name)
            finally:
                Path(name).unlink(missing_ok=True)
            return


def _remove_abandoned(path: Path) -> bool:
    """Remove a temporary unless it is locked, or not there any more; whether it was removed."""
    try:
        import fcntl

        with path.open("r+b") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except (ImportError, OSError):
        return False
    return True
