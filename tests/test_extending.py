"""docs/extending.md does what it says: its files and rows are added to a copy of the project, and main.py runs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import write_class

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n# (.*?)\n(.*?)```", PAGE, flags=re.DOTALL)
MOST_LINES = 15  # of a block's code
SMALL = "--img_size 32 --num_group 16 --group_size 8 --f_coreset 0.5 --device cpu --num_workers 0 --random_weights"


def _add_row(path: Path, table: str, block: str) -> None:
    imports = "".join(re.findall(r"^from .*\n", block, flags=re.MULTILINE))
    row = re.sub(r"^from .*\n", "", block, flags=re.MULTILINE)
    text = path.read_text(encoding="utf-8")
    text, count = re.subn(rf"^({table} = [{{(]\n)", lambda m: m.group(1) + row, text, flags=re.MULTILINE)
    assert count == 1, f"no table {table} in {path}"
    start = "from __future__ import annotations\n"
    path.write_text(text.replace(start, start + imports, 1), encoding="utf-8")


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the project with everything that the page adds."""
    project = tmp_path_factory.mktemp("project")
    for name in ("evaluation", "feature_extractors", "models", "utils"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("main.py", "m3dm_runner.py", "dataset.py"):
        shutil.copy(ROOT / name, project)
    for place, block in BLOCKS:
        file, _, table = place.partition(", a row of ")
        if table:
            _add_row(project / file, table, block)
        else:
            assert not (project / file).exists()
            (project / file).write_text(block, encoding="utf-8")
    return project


@pytest.fixture(scope="module")
def gears(tmp_path_factory) -> Path:
    """One class in the flat layout of the page."""
    root = tmp_path_factory.mktemp("gears")
    source = write_class(tmp_path_factory.mktemp("source"), "spur_gear")
    for xyz in source.rglob("xyz/*.tiff"):
        kind, split = xyz.parents[1].name, xyz.parents[2].name
        folder = root / "spur_gear" / split
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(xyz, folder / f"{kind}_{xyz.stem}.tiff")
        shutil.copy(xyz.parents[1] / "rgb" / f"{xyz.stem}.png", folder / f"{kind}_{xyz.stem}.png")
        if kind != "good":
            shutil.copy(xyz.parents[1] / "gt" / f"{xyz.stem}.png", folder / f"{kind}_{xyz.stem}_gt.png")
    return root


def _run(project: Path, data: Path, *flags: str) -> dict:
    results = data.parent / "_".join(flag for flag in flags if not flag.startswith("-"))
    command = [
        sys.executable,
        "main.py",
        *SMALL.split(),
        "--dataset_path",
        str(data),
        "--results_dir",
        str(results),
    ]
    done = subprocess.run([*command, *flags], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (results / "quiet_recall_results.md").is_file()
    return json.loads((results / "results.json").read_text(encoding="utf-8"))


def test_each_addition_is_short():
    assert len(BLOCKS) == 9
    for place, block in BLOCKS:
        code = [
            line for line in block.splitlines() if line.strip() and not line.startswith(("from ", "import "))
        ]
        assert len(code) <= MOST_LINES, place


def test_all_additions_work_together(extended, gears):
    flags = "--dataset_type gears --method_name RGB+XYZ+own --rgb_backbone_name resnet18 --xyz_backbone_name positions"
    record = _run(extended, gears, *flags.split())
    result = record["classes"]["spur_gear"]
    assert result["counts"]["rgb_bank_rows"] == 3 * 4 * 4 // 2
    assert result["quiet_recall"] is not None
    assert record["weights"] == {"rgb": "random, seed 0", "xyz": "none needed"}


def test_help_offers_what_was_added(extended):
    command = [sys.executable, "main.py", "--help"]
    text = subprocess.run(command, cwd=extended, capture_output=True, text=True, check=True).stdout
    for name in ("resnet18", "positions", "RGB+XYZ+own", "gears"):
        assert name in text


def test_a_missing_download_of_an_added_backbone_is_named(extended, gears, tmp_path):
    flags = (
        f"--dataset_type gears --method_name DINO --rgb_backbone_name resnet18 --checkpoint_dir {tmp_path}"
    )
    command = [
        sys.executable,
        "main.py",
        "--dataset_path",
        str(gears),
        "--results_dir",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        [*command, *flags.split()], cwd=extended, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "resnet18_patches.pth: no such file; download 'ResNet-18'" in done.stderr
