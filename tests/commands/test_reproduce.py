"""make reproduce, with a stand-in for Python that notes its arguments and leaves what the stages leave."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import fusion_pretrain
import main

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
STAND_IN = """#!/bin/sh
echo "$@" >> "{out}/commands.txt"
case "$*" in
  *fusion_pretrain.py*) mkdir -p "{out}/uff" && touch "{out}/uff/checkpoint-{epoch}.pth" && test {epoch} = 4 ;;
  *--use_uff*) mkdir -p "{out}/three_banks" && touch "{out}/three_banks/results.json" ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def reproduce(out: Path, *variables: str, epoch: int = 4) -> subprocess.CompletedProcess[str]:
    """A run whose stage 2 comes to `epoch`, of 0..4."""
    stand_in = out.parent / "bin" / "python"
    stand_in.parent.mkdir(exist_ok=True)
    stand_in.write_text(STAND_IN.format(out=out, epoch=epoch), encoding="utf-8")
    stand_in.chmod(0o755)
    command = ["make", "-o", ".venv/requirement.stamp", "reproduce", f"BIN={stand_in.parent}", f"OUT={out}"]
    return subprocess.run([*command, *variables], cwd=ROOT, capture_output=True, text=True, check=False)


def commands(out: Path) -> list[list[str]]:
    return [shlex.split(line) for line in (out / "commands.txt").read_text(encoding="utf-8").splitlines()]


def readme_commands() -> list[list[str]]:
    """Arguments of Python in the three commands of the README."""
    section = README[README.index("## The three stages") : README.index("Single banks")]
    lines = [line for line in section.splitlines() if "python3 " in line]
    return [shlex.split(line.partition("python3 ")[2]) for line in lines]


def test_the_three_stages_have_the_readme_s_flags_and_pass_on_what_they_leave(out):
    done = reproduce(out, "DATA=data")
    assert done.returncode == 0, done.stderr
    first, second, third = commands(out)
    data = ["--dataset_path", "data"]
    for ours, published in zip((first, second, third), readme_commands(), strict=True):
        flags = {flag for flag in published if not flag.startswith(("checkpoints", "datasets"))}
        assert flags <= set(ours)
    assert first[1:3] == third[1:3] == data
    assert first[3:5] == third[3:5] == ["--features", f"{out}/features"]
    stage1 = main.get_args_parser().parse_args(first[1:])
    stage2 = fusion_pretrain.get_args_parser().parse_args(second[second.index("fusion_pretrain.py") + 1 :])
    stage3 = main.get_args_parser().parse_args(third[1:])
    assert (stage1.save_feature, str(stage1.save_feature_path)) == (True, stage2.data_path)
    assert stage3.fusion_module_path == Path(stage2.output_dir) / f"checkpoint-{stage2.epochs - 1}.pth"
    assert (stage1.results_dir, stage3.results_dir) == (out / "two_banks", out / "three_banks")
    assert re.search(rf"results of the three stages, in {out}/three_banks:\nresults\.json\n", done.stdout)


def test_classes_are_those_of_both_stages_that_have_any(out):
    assert reproduce(out, "DATA=data", "CLASSES=bagel rope").returncode == 0
    first, _, third = commands(out)
    for stage in (first, third):
        assert main.get_args_parser().parse_args(stage[1:]).class_name == ["bagel", "rope"]


def test_a_repeated_command_does_only_what_is_left(out):
    assert reproduce(out, "DATA=data", epoch=2).returncode != 0
    assert len(commands(out)) == 2
    assert reproduce(out, "DATA=data").returncode == 0
    _, _, resumed, third = commands(out)
    assert resumed[-2:] == ["--resume", f"{out}/uff/checkpoint-2.pth"]
    assert "--use_uff" in third
    assert reproduce(out, "DATA=data").returncode == 0
    assert len(commands(out)) == 4


@pytest.mark.parametrize("other", [["DATA=other"], ["DATA=data", "CLASSES=rope"]])
def test_a_folder_of_another_run_is_refused(out, other):
    assert reproduce(out, "DATA=data").returncode == 0
    done = reproduce(out, *other)
    assert done.returncode != 0
    assert f"OUT={out} holds a run with other DATA or CLASSES: {ROOT / 'data'}" in done.stdout
    assert len(commands(out)) == 3


def test_without_data_it_says_what_to_type(out):
    done = reproduce(out)
    assert done.returncode != 0
    assert "DATA=datasets/mvtec3d" in done.stdout
    assert not out.exists()
