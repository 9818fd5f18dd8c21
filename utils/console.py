"""What is printed must reach the screen, whatever the screen can show."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path


def print_anything() -> None:
    """From now on characters that stdout or stderr can't encode are escaped, where they would end the program.

    A class name such as 电缆 on a console of code page 1252 is shown as \\u7535\\u7f06.
    """
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


def one_line(text: str) -> str:
    """`text` in one line of printable characters: file names may hold anything but '/' and NUL."""
    known = text.encode("utf-8", "backslashreplace").decode("utf-8")  # bytes that were no UTF-8
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in known)
