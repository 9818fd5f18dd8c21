"""What is printed must reach the screen, whatever the screen can show."""

from __future__ import annotations

import io
import sys


def print_anything() -> None:
    """From now on characters that stdout or stderr can't encode are escaped, where they would end the program.

    A class name such as 电缆 on a console of code page 1252 is shown as \\u7535\\u7f06.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def one_line(text: str) -> str:
    """`text` in one line of printable characters: file names may hold anything but '/' and NUL."""
    known = text.encode("utf-8", "backslashreplace").decode("utf-8")  # bytes that were no UTF-8
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in known)
