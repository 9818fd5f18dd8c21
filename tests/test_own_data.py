"""The commands of docs/own_data.md, run as written on PLY in millimetres, of 1280x1024 points where they are real."""

import csv
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.sensor_files import write_ply
from utils.demo_data import DemoSettings, write_demo_data
from utils.image_files import read_rgb, read_xyz, write_png

ROOT = Path(__file__).parents[1]
PAGES = ("own_data.md", "own_data.zh-CN.md")
SIZES = {"real": (1280, 1024), "demo": (500, 400)}  # width, height
SMALL = "--img_size 64 --num_group 32 --group_size 8 --rgb_backbone_name vit_small_patch8_224_dino --f_coreset 0.3"
NETWORKS = "--random_weights --device cpu"  # there are no weights here
SPLITS = {"good": "train/good", "validation": "validation/good", "new": "test"}


def _commands(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


def _resampled(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, C) -> (height, width, C), nearest."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size[::-1], pixels.shape, strict=False))
    return pixels[rows[:, None], columns]


def _camera_files(source: Path, target: Path, most: int, size: tuple[int, int]) -> None:
    """Samples of a class as a camera's software would save them: NNN.ply in millimetres, NNN.png."""
    target.mkdir(parents=True)
    for number, xyz in enumerate(sorted(source.rglob("xyz/*.tiff"))[:most]):
        cloud = _resampled(read_xyz(xyz), size) * np.float32(1000)
        cloud[~cloud.any(axis=2)] = np.nan
        write_ply(target / f"{number:03d}.ply", cloud, obj_info=(f"width {size[0]}", f"height {size[1]}"))
        image = _resampled(read_rgb(xyz.parents[1] / "rgb" / f"{xyz.stem}.png"), size)
        write_png(target / f"{number:03d}.png", image)


def _demo(folder: Path) -> Path:
    settings = DemoSettings(train=3, validation=1, test_per_kind=1)
    write_demo_data(folder / "demo", settings)
    return folder / "demo" / "bagel"


@pytest.fixture(params=["demo", pytest.param("real", marks=pytest.mark.real_data)])
def camera(request, tmp_path) -> tuple[Path, tuple[int, int]]:
    """A working folder with camera/{good,validation,new} in it, and the clouds' width and height."""
    if request.param == "real":
        source = request.getfixturevalue("real_data") / "mvtec3d" / "cable_gland"
    else:
        source = _demo(tmp_path)
    for name, most in (("good", 3), ("validation", 1), ("new", 2)):
        _camera_files(source / SPLITS[name], tmp_path / "camera" / name, most, SIZES[request.param])
    return tmp_path, SIZES[request.param]


def _run(command: str, folder: Path) -> str:
    words = shlex.split(command)
    script = words[1]
    extra = {"main.py": f"{SMALL} {NETWORKS}", "predict.py": NETWORKS}.get(script, "").split()
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *words[2:], *extra],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_page_leads_from_the_camera_to_the_verdict(camera):
    folder, (width, height) = camera
    said = {command: _run(command, folder) for command in _commands(PAGES[0])}
    assert any("--plane_distance 0.00" in text for text in said.values())
    verdicts = folder / "verdicts"
    with (verdicts / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["part"] for row in rows] == ["000", "001"]
    assert all(row["verdict"] in ("good", "anomalous") for row in rows)
    for part in ("000", "001"):
        assert read_rgb(verdicts / "overlays" / f"{part}.png").shape == (height, width, 3)
        assert (verdicts / "clouds" / f"{part}.ply").stat().st_size > 1e5
    shutil.rmtree(folder)


def test_both_languages_give_the_same_commands():
    english, chinese = map(_commands, PAGES)
    assert len(english) == 7
    assert english == chinese
