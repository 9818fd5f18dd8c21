"""Printing what the screen can't show."""

import subprocess
import sys


def test_characters_that_stdout_cannot_encode_are_escaped():
    code = "from utils.console import print_anything; print_anything(); print('电缆')"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        check=False,
    )
    assert (run.returncode, run.stdout.strip()) == (0, rb"\u7535\u7f06")
