"""What every command does whatever the console and the shell: names are shown, empty paths refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import write_class
from tests.tiny_runs import run_main

ROOT = Path(__file__).parents[2]
COMMANDS = [
    "fusion_pretrain.py",
    "predict.py",
    *(
        f"utils/{name}.py"
        for name in "preprocessing preprocess_eyecandies demo_data check_dataset convert download".split()
    ),
]
EMPTY = {
    "fusion_pretrain.py": ["--output_dir", ""],
    "predict.py": ["--detector", "x.m3dm", "--output", ""],
    "utils/preprocessing.py": ["data", "--output_dir", " "],
    "utils/preprocess_eyecandies.py": ["--target_dir", ""],
    "utils/demo_data.py": [""],
    "utils/check_dataset.py": [""],
    "utils/convert.py": ["--xyz", "a.ply", "--output", ""],
    "utils/download.py": ["--checkpoint_dir", ""],
}


def run(*command: str, encoding: str = "cp1252") -> subprocess.CompletedProcess[bytes]:
    """A command on a console of another encoding."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_shown_on_any_console(command, encoding):
    shown = run(command, "--help", encoding=encoding)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert b"--help" in shown.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_path_is_refused(command):
    refused = run(command, *EMPTY[command])
    assert refused.returncode == 2
    assert b"is empty; was a variable of the shell not set?" in refused.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="there a console has its own way to print")
def test_a_part_whose_name_the_console_lacks_is_judged_and_shown(tmp_path):
    part = write_class(tmp_path / "data", "电缆") / "test/good"
    assert (
        run_main(
            tmp_path / "data", tmp_path, "FPFH", "--class_name", "电缆", "--save_detector", str(tmp_path)
        )
        == 0
    )
    (part / "rgb/000.png").rename(tmp_path / "电\n缆.png")
    (part / "xyz/000.tiff").rename(tmp_path / "电\n缆.tiff")
    parts = ["--rgb", str(tmp_path / "电\n缆.png"), "--xyz", str(tmp_path / "电\n缆.tiff"), "--preprocessed"]
    detector = [
        "--detector",
        str(tmp_path / "电缆.m3dm"),
        "--output",
        str(tmp_path / "结果"),
        "--device",
        "cpu",
    ]
    judged = run("predict.py", *detector, *parts)
    assert judged.returncode == 0, judged.stderr
    first = judged.stdout.splitlines()[0]
    assert first.startswith(rb"\u7535\n\u7f06: ")
    assert "电\n缆" in (tmp_path / "结果/report.csv").read_text(encoding="utf-8")
    assert (tmp_path / "结果/maps/电\n缆.tiff").is_file()
