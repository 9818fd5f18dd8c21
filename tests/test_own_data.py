"""The commands of docs/own_data.md, run as written on clouds of 1280x1024 points in PLY and millimetres."""

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
WIDTH, HEIGHT = 1280, 1024
SMALL = "--img_size 64 --num_group 32 --group_size 8 --rgb_backbone_name vit_small_patch8_224_dino --f_coreset 0.3"
NETWORKS = "--random_weights --device cpu"  # there are no weights here
SPLITS = {"good": "train/good", "validation": "validation/good", "new": "test"}


def _commands(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


def _resampled(pixels: np.ndarray) -> np.ndarray:
    """(H, W, C) -> (HEIGHT, WIDTH, C), nearest."""
    rows, columns = (
        np.arange(new) * old // new for new, old in zip((HEIGHT, WIDTH), pixels.shape, strict=False)
    )
    return pixels[rows[:, None], columns]


def _camera_files(source: Path, target: Path, most: int) -> None:
    """Samples of a class as a camera's software would save them: NNN.ply in millimetres, NNN.png."""
    target.mkdir(parents=True)
    for number, xyz in enumerate(sorted(source.rglob("xyz/*.tiff"))[:most]):
        cloud = _resampled(read_xyz(xyz)) * np.float32(1000)
        cloud[~cloud.any(axis=2)] = np.nan
        write_ply(target / f"{number:03d}.ply", cloud, obj_info=(f"width {WIDTH}", f"height {HEIGHT}"))
        image = _resampled(read_rgb(xyz.parents[1] / "rgb" / f"{xyz.stem}.png"))
        write_png(target / f"{number:03d}.png", image)


def _demo(folder: Path) -> Path:
    settings = DemoSettings(train=4, validation=2, test_per_kind=1)
    write_demo_data(folder / "demo", settings)
    return folder / "demo" / "bagel"


@pytest.fixture(params=["demo", pytest.param("real", marks=pytest.mark.real_data)])
def camera(request, tmp_path) -> Path:
    """A working folder with camera/{good,validation,new} in it."""
    if request.param == "real":
        source = request.getfixturevalue("real_data") / "mvtec3d" / "cable_gland"
    else:
        source = _demo(tmp_path)
    for name, most in (("good", 4), ("validation", 2), ("new", 2)):
        _camera_files(source / SPLITS[name], tmp_path / "camera" / name, most)
    return tmp_path


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
    said = {command: _run(command, camera) for command in _commands(PAGES[0])}
    assert any("--plane_distance 0.00" in text for text in said.values())
    verdicts = camera / "verdicts"
    with (verdicts / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["part"] for row in rows] == ["000", "001"]
    assert all(row["verdict"] in ("good", "anomalous") for row in rows)
    for part in ("000", "001"):
        assert read_rgb(verdicts / "overlays" / f"{part}.png").shape == (HEIGHT, WIDTH, 3)
        assert (verdicts / "clouds" / f"{part}.ply").stat().st_size > 1e5
    shutil.rmtree(camera / "camera")


def test_both_languages_give_the_same_commands():
    english, chinese = map(_commands, PAGES)
    assert len(english) == 7
    assert english == chinese
