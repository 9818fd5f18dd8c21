"""What is printed must reach the screen, whatever the screen can show."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

NOBODY_READS = 128 + 13  # what a shell makes of SIGPIPE


def print_anything() -> None:
    """From now on characters that stdout or stderr can't encode are escaped, where they would end the program.

    A class name such as 电缆 on a console of code page 1252 is shown as \\u7535\\u7f06. Where one of the two is closed
    nothing is shown, and no file that is opened later gets its number and what libraries write to it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def fail(program: str, message: str, status: int) -> int:
    """Say why the program ends, on the screen and to torch's launcher, whose own report then ends with it too."""
    line = f"{program}: {message}"
    print(line, file=sys.stderr, flush=True)
    report = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if report:
        details = {"py_callstack": line, "timestamp": str(int(time.time()))}
        content = {"message": {"message": line, "extraInfo": details}}
        with suppress(OSError):  # the line above has been said already
            Path(report).write_text(json.dumps(content), encoding="utf-8")
    return status


def status_of(program: str, command: Callable[[], int]) -> int:
    """The exit status of a command, also where its output gets nowhere.

    Quietly NOBODY_READS when the reader of a pipe has gone, as head does; one line and 1 on a full disk.
    """
    status = 0
    try:
        status = command()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        status = NOBODY_READS
    except OSError as error:
        status = status or fail(program, f"error: can't print ({error.strerror})", 1)
    nowhere = os.open(
        os.devnull, os.O_WRONLY
    )  # for what is left in the buffer, which Python writes at its end
    os.dup2(nowhere, sys.stdout.fileno())
    return status


def encodable(text: str) -> str:
    """`text` with the bytes of file names that were no UTF-8 as escapes, so that it can be written as UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(text: str) -> str:
    """`text` in one line of printable characters: file names may hold anything but '/' and NUL."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in encodable(text))
