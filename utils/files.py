"""Writing files so that a cut run leaves either the old file or the new one, never half of one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

LONGEST_REASON = 300  # letters, of what an error says about damaged content


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` when the block ends without error.

    The temporary name keeps the suffix, since image and array writers choose their format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files private; results are not
        temporary.replace(path)
    except OSError as error:
        raise OSError(f"{path}: can't be written ({error}); is the disk full?") from error
    finally:
        temporary.unlink(missing_ok=True)


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


def try_lock(handle: IO[Any]) -> bool:
    """Lock an open file; False when another process has it locked.

    True without a lock on Windows, and on file systems that have none: two at once are not noticed there.
    """
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return True
    return True


def in_short(reason: Exception | str) -> str:
    """What is wrong with damaged content, on one line of bounded length, whatever of the content it quotes."""
    return " ".join((reason if isinstance(reason, str) else repr(reason)).split())[:LONGEST_REASON]


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8 with the line ends that `text` has."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` to `path` atomically as indented JSON; NaN is refused, use None for what is unknown."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
