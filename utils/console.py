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
