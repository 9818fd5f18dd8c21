"""The table of versions says what could not be tried, and its exit status whether anything was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import versions

NO_WHEELS = "torch has no wheels for this Python"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The exit status for these Pythons where uv and pytest answer as told."""

    def with_answers(*pythons, absent=(), without_wheels=(), failing=()):
        def uv(*arguments):
            words = [str(argument) for argument in arguments]
            refused = absent if words[0] == "python" else without_wheels if words[0] == "pip" else ()
            if any(version in word for version in refused for word in words):
                raise subprocess.CalledProcessError(2, "uv", stderr=NO_WHEELS)
            return "".join(f"{name}==1.0\n" for name in versions.SHOWN)

        def run_tests(python, log):
            failed = any(version in str(python) for version in failing)
            return int(failed), "1 failed" if failed else "1 passed"

        monkeypatch.setattr(versions.importlib.util, "find_spec", lambda name: object())
        monkeypatch.setattr(versions, "uv", uv)
        monkeypatch.setattr(versions, "run_tests", run_tests)
        flags = ["--folder", str(tmp_path / "new"), "--resolution", "newest"]
        monkeypatch.setattr(sys, "argv", ["versions.py", *pythons, *flags])
        return versions.main()

    return with_answers


def test_a_python_without_wheels_is_a_row_and_the_others_are_tried(run, tmp_path, capsys):
    assert run("3.13", "3.12", without_wheels=["3.13"]) == 0
    log = tmp_path / "new/3.13-newest.log"
    said = capsys.readouterr().out
    assert (
        f"| 3.13 | newest | can't be installed, see {log} | |\n| 3.12 | newest | 1 passed | torch 1.0" in said
    )
    assert log.read_text(encoding="utf-8") == NO_WHEELS


def test_the_exit_status_is_1_when_a_test_fails_or_none_ran(run):
    assert run("3.12", "3.11", absent=["3.11"]) == 0
    assert run("3.12", "3.11", failing=["3.11"]) == 1
    assert run("3.12", absent=["3.12"]) == 1
    assert run("3.12", without_wheels=["3.12"]) == 1


def test_without_uv_it_is_said_in_one_line():
    command = [sys.executable, "-S", str(Path(versions.__file__))]  # -S: as if nothing was installed
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "versions.py: error: uv is missing; pip install uv\n"
