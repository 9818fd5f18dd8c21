"""python utils/check_dataset.py: what it finds, how it says it, and that nothing stops it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from dataset import DATASETS
from tests.conftest import write_class
from utils import check_dataset
from utils.check.findings import CODES
from utils.check.tree import PUBLIC_CLASSES
from utils.image_files import encode_xyz, read_mask, read_rgb, read_xyz, write_png, write_xyz

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bagel(tiny_dataset: Path) -> Path:
    """A class without a fault: 3 training samples, 2 good and 2 defective test samples."""
    return tiny_dataset / "bagel"


@pytest.fixture
def check(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """Run the command in this process: its exit status and stdout."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["check_dataset.py", "--num_workers", "1", *map(str, arguments)])
        status = check_dataset.main()
        return status, capsys.readouterr().out

    return run


def _findings(report: str) -> list[dict[str, Any]]:
    return json.loads(report)["findings"]


def test_class_without_a_fault_is_described_and_exits_0(bagel: Path, check: Any) -> None:
    status, report = check(bagel.parent)
    assert status == 0
    first, second, last = report.splitlines()
    assert first == "bagel: train good 3; test good 2, hole 2"
    assert "40x40 pixels" in second
    assert "preprocessed; unit m" in second
    assert last == "0 errors, 0 remarks"


def _edit_cloud(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda path: write_xyz(path, change(read_xyz(path)))


def _all_clouds(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        for path in folder.rglob("*.tiff"):
            _edit_cloud(change)(path)

    return edit


def _plane(cloud: np.ndarray) -> np.ndarray:
    return np.where(cloud.any(axis=2, keepdims=True), cloud, np.float32(0.7))


def _save_as(mode: str, image_format: str = "PNG") -> Callable[[Path], None]:
    return lambda path: Image.open(path).convert(mode).save(path, format=image_format)


def _copy(source: str) -> Callable[[Path], None]:
    return lambda path: shutil.copy(path.parents[3] / source, path) and None


def _rename(name: str) -> Callable[[Path], None]:
    return lambda path: path.rename(path.with_name(name)) and None


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def _no_masks(folder: Path) -> None:
    shutil.rmtree(folder / "gt")


def _mirror(path: Path) -> None:
    """Make part and image lopsided, and mirror the image."""
    cloud = read_xyz(path.parents[1] / "xyz" / f"{path.stem}.tiff")
    cloud[20:, 12:] = 0
    write_xyz(path.parents[1] / "xyz" / f"{path.stem}.tiff", cloud)
    image = read_rgb(path)
    image[20:, 12:] = 0
    write_png(path, np.ascontiguousarray(image[:, ::-1]))


def _foot(cloud: np.ndarray) -> np.ndarray:
    return np.where(np.indices(cloud.shape)[0] > 32, np.nan, cloud)


def _halve(folder: Path) -> None:
    rgb, xyz = folder / "rgb" / "000.png", folder / "xyz" / "000.tiff"
    write_png(rgb, read_rgb(rgb)[::2, ::2])
    write_xyz(xyz, read_xyz(xyz)[::2, ::2])


FAULTS = {  # what is done to which path of the class, and the finding: code, named path, words
    "ply as tiff": (
        "train/good/xyz/001.tiff",
        lambda path: path.write_bytes(b"ply\nformat ascii 1.0\n"),
        ("unreadable", "is a PLY file named .tiff", "utils/convert.py --input"),
    ),
    "jpeg as png": (
        "test/good/rgb/000.png",
        _save_as("RGB", "JPEG"),
        ("unreadable", "is a JPEG", "convert.py"),
    ),
    "alpha": ("test/good/rgb/000.png", _save_as("RGBA"), ("unreadable", "is RGBA", "convert.py")),
    "gray": ("test/good/rgb/000.png", _save_as("L"), ("unreadable", "is gray", "convert.py")),
    "16 bits": (
        "test/hole/gt/000.png",
        lambda path: Image.fromarray(np.zeros((40, 40), np.uint16)).save(path),
        ("unreadable", "16 bits a channel", "convert.py"),
    ),
    "empty file": (
        "test/good/rgb/001.png",
        lambda path: path.write_bytes(b""),
        ("unreadable", "empty", "archive"),
    ),
    "cut short": ("test/good/xyz/001.tiff", _cut, ("unreadable", "cut short", "archive")),
    "pages": (
        "test/good/xyz/001.tiff",
        lambda path: tifffile.imwrite(path, read_xyz(path), photometric="rgb", append=True),
        ("unreadable", "has 2 pages", "one page"),
    ),
    "pipe": (
        "test/good/rgb/001.png",
        lambda path: (path.unlink(), os.mkfifo(path)),
        ("unreadable", "no regular file", ""),
    ),
    "dead link": (
        "test/good/rgb/001.png",
        lambda path: (path.unlink(), path.symlink_to("nowhere")),
        ("unreadable", "No such file", "check the path"),
    ),
    "lost file": ("train/good/rgb/002.png", Path.unlink, ("unpaired", "is missing, xyz/ has it", "")),
    "lost mask": ("test/hole/gt/001.png", Path.unlink, ("unpaired", "rgb/ and xyz/ has it", "")),
    "other name": (
        "train/good/rgb/002.png",
        _rename("002.jpg"),
        ("foreign_file", "end in .png", "convert.py"),
    ),
    "capitals": ("train/good/rgb/002.png", _rename("002.PNG"), ("foreign_file", "end in .png", "rename it")),
    "notes": ("train/good/rgb/notes.txt", Path.touch, ("not_read", "is not read", "")),
    "other sizes": (
        "train/good/rgb/000.png",
        lambda path: write_png(path, np.ones((30, 20, 3), np.uint8)),
        ("size_mismatch", "rgb 20x30, xyz 40x40", ""),
    ),
    "raw sample": ("train/good/xyz/000.tiff", _edit_cloud(_plane), ("mixed_state", "is raw", "apart")),
    "millimetres in one": (
        "train/good/xyz/000.tiff",
        _edit_cloud(lambda cloud: cloud * 1000),
        ("mixed_units", "is in mm", "one unit"),
    ),
    "millimetres in all": (
        ".",
        _all_clouds(lambda cloud: cloud * 1000),
        ("unit", "median distance of 5", "mm"),
    ),
    "between the units": (
        ".",
        _all_clouds(lambda cloud: cloud * 10),
        ("unknown_unit", "metres or", "--unit mm"),
    ),
    "all raw": (".", _all_clouds(_plane), ("raw", "background at its border", "utils/preprocessing.py")),
    "raw millimetres": (
        ".",
        _all_clouds(lambda cloud: _plane(cloud) * 1000),
        ("raw_millimetres", "in millimetres", "utils/preprocessing.py"),
    ),
    "two sizes": (
        ".",
        lambda folder: _halve(folder / "train/good"),
        ("image_sizes", "40x40 (6), 20x20 (1)", ""),
    ),
    "no point": ("test/hole/xyz/000.tiff", _edit_cloud(np.zeros_like), ("empty_cloud", "no point", "leave")),
    "few points": (
        "test/hole/xyz/000.tiff",
        _edit_cloud(lambda cloud: np.where(np.indices(cloud.shape)[0] == 20, cloud, 0)),
        ("few_points", "only 1.9%", ""),
    ),
    "not finite": ("test/hole/xyz/000.tiff", _edit_cloud(_foot), ("not_finite", "280 pixels with NaN", "")),
    "training sample in test": (
        "test/good/xyz/001.tiff",
        _copy("train/good/xyz/002.tiff"),
        ("train_in_test", "same file as bagel/train/good/xyz/002.tiff", "scored too well"),
    ),
    "sample twice": (
        "train/good/rgb/001.png",
        _copy("train/good/rgb/000.png"),
        ("duplicate", "same file as bagel/train/good/rgb/000.png", ""),
    ),
    "mirrored image": ("train/good/rgb/000.png", _mirror, ("silhouette", "mirrored left to right", "")),
    "empty mask": (
        "test/hole/gt/000.png",
        lambda path: write_png(path, np.zeros_like(read_mask(path))),
        ("mask", "marks no defect", ""),
    ),
    "marked good": (
        "test/good/gt/000.png",
        lambda path: write_png(path, np.full_like(read_mask(path), 255)),
        ("mask", "marks a defect under good", ""),
    ),
    "no masks": ("test/hole", _no_masks, ("no_mask", "scored, without pixel metrics", "")),
    "no training": ("train", shutil.rmtree, ("layout", "no sample (expected train/good", "")),
    "no test": (
        "test",
        shutil.rmtree,
        ("no_test", "no sample (expected test/<kind>", "main.py --save_detector"),
    ),
    "file for a folder": (
        "test/good/xyz",
        lambda path: (shutil.rmtree(path), path.touch()),
        ("layout", "can't be listed (Not a directory)", "readable folder"),
    ),
    "loop of links": (
        "test/good/xyz",
        lambda path: (shutil.rmtree(path), path.symlink_to(path)),
        ("layout", "can't be listed", "readable folder"),
    ),
    "defects in training": ("train/hole", Path.mkdir, ("not_read", "read from good/ only", "")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found_and_named_with_its_remedy(fault: str, bagel: Path, check: Any) -> None:
    name, spoil, (code, problem, remedy) = FAULTS[fault]
    spoil(bagel / name)
    status, report = check(bagel.parent, "--json")
    (found,) = [finding for finding in _findings(report) if finding["code"] == code]
    assert problem in found["problem"]
    assert remedy in found["remedy"]
    assert any(file.startswith(f"bagel/{name}".removesuffix("/.").split(".")[0]) for file in found["files"])
    assert found["level"] == CODES[code]
    assert status == any(CODES[finding["code"]] == "error" for finding in _findings(report))


def test_every_code_has_a_test() -> None:
    shown_elsewhere = {"absent_class"}
    assert {code for _, _, (code, *_) in FAULTS.values()} | shown_elsewhere == set(CODES)


def test_findings_alike_are_one_line_and_errors_come_first(bagel: Path, check: Any) -> None:
    shutil.rmtree(bagel / "test" / "hole" / "gt")
    for path in bagel.glob("*/*/rgb/*.png"):
        _save_as("RGBA")(path)
    status, report = check(bagel.parent)
    error, remark, last = report.splitlines()[-3:]
    assert status == 1
    assert error.startswith(
        "error: bagel/train/good/rgb/000.png (and 6 more, such as bagel/train/good/rgb/001.png"
    )
    assert error.endswith(f"python utils/convert.py --input {bagel.parent} --tree --output DIR")
    assert remark.startswith("remark: bagel/test/hole: ")
    assert last == "1 errors, 1 remarks"


def test_archive_is_spoken_of_only_where_there_is_one(tiny_dataset: Path, check: Any) -> None:
    shutil.copytree(tiny_dataset / "bagel", tiny_dataset / "gear")
    for name in ("bagel", "gear"):
        _cut(tiny_dataset / name / "train" / "good" / "xyz" / "000.tiff")
    _, report = check(tiny_dataset, "--json")
    remedies = {
        file: f["remedy"] for f in _findings(report) if f["code"] == "unreadable" for file in f["files"]
    }
    assert "archive" in remedies["bagel/train/good/xyz/000.tiff"]
    assert remedies["gear/train/good/xyz/000.tiff"] == "export it anew"


def test_classes_that_differ_in_unit_are_an_error(tiny_dataset: Path, check: Any) -> None:
    _all_clouds(lambda cloud: cloud * 1000)(write_class(tiny_dataset, "rope"))
    status, report = check(tiny_dataset, "--json")
    (found,) = [finding for finding in _findings(report) if finding["code"] == "mixed_units"]
    assert status == 1
    assert "m: bagel; mm: rope" in found["problem"]


def test_json_has_the_documented_form_and_stdout_holds_nothing_else(bagel: Path, check: Any) -> None:
    (bagel / "train" / "good" / "rgb" / "000.png").unlink()
    status, report = check(bagel.parent, "--json")
    value = json.loads(report)
    assert set(value) == {"root", "classes", "findings", "errors", "remarks", "status"}
    assert set(value["classes"]["bagel"]) == {
        *("samples", "image_sizes", "state", "unit", "median_distance", "low", "high", "valid_share")
    }
    assert set(value["findings"][0]) == {"level", "code", "problem", "remedy", "count", "files"}
    assert value["classes"]["bagel"]["samples"] == {"train": {"good": 3}, "test": {"good": 2, "hole": 2}}
    assert (value["status"], value["errors"]) == (status, 1)


def test_odd_names_stay_in_their_line(bagel: Path, check: Any) -> None:
    odd = os.fsdecode(b"a\nb\xff")
    for part, suffix in (("rgb", ".png"), ("xyz", ".tiff")):
        folder = bagel / "train" / "good" / part
        (folder / f"002{suffix}").rename(folder / f"{odd}{suffix}")
    shutil.copytree(bagel, bagel.with_name(f"gear\n{odd}"))
    _save_as("L")(bagel / "train" / "good" / "rgb" / f"{odd}.png")
    status, report = check(bagel.parent)
    assert status == 1
    assert any(
        line.startswith("error: bagel/train/good/rgb/a\\nb\\udcff.png: is gray")
        for line in report.splitlines()
    )
    assert check(bagel.parent, "--json")[1].isascii()


def test_empty_class_and_other_folders_are_told_apart(tiny_dataset: Path, check: Any) -> None:
    (tiny_dataset / "rope" / "train").mkdir(parents=True)
    (tiny_dataset / "papers").mkdir()
    (tiny_dataset / "again").symlink_to(tiny_dataset / "again")
    _, report = check(tiny_dataset, "--json")
    layout = {file for f in _findings(report) if f["code"] == "layout" for file in f["files"]}
    assert layout == {"rope/train"}
    assert [f["files"] for f in _findings(report) if f["code"] == "not_read"] == [["papers"]]


def test_folder_without_permission_is_named(bagel: Path, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = Path.iterdir

    def refuse(path: Path) -> Any:
        if path.name == "xyz":
            raise PermissionError(13, os.strerror(13))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    status, report = check(bagel.parent)
    assert status == 1
    assert "bagel/test/good/xyz" in report
    assert "can't be listed (Permission denied)" in report


def test_eyecandies_as_downloaded_is_recognised(tmp_path: Path, check: Any) -> None:
    (tmp_path / "Lollipop" / "train" / "data").mkdir(parents=True)
    status, report = check(tmp_path)
    assert status == 1
    assert "is Eyecandies as downloaded; python utils/preprocess_eyecandies.py" in report


def test_dataset_type_takes_its_classes_and_names_the_absent(tiny_dataset: Path, check: Any) -> None:
    write_class(tiny_dataset, "gear")
    status, report = check(tiny_dataset, "--dataset_type", "mvtec3d")
    assert status == 0
    assert "gear" not in report
    assert "mvtec3d also has cable_gland, carrot" in report


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nowhere"], "ROOT nowhere: can't be listed (No such file or directory)"),
        (["{data}/bagel"], "looks like one class; name the folder that holds it"),
        (["{data}", "--class_name", "bagle"], "--class_name bagle: no such class; classes there: bagel"),
        (["{data}", "--dataset_type", "eyecandies"], "holds none of its classes"),
    ],
)
def test_flags_that_can_not_be_followed_exit_2_in_one_line(
    arguments: list[str],
    problem: str,
    tiny_dataset: Path,
    check: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["check_dataset.py", *(text.format(data=tiny_dataset) for text in arguments)]
    )
    assert check_dataset.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line


def test_processes_find_what_one_process_finds_and_say_how_far_they_are(bagel: Path, check: Any) -> None:
    (bagel / "train" / "good" / "xyz" / "001.tiff").write_bytes(encode_xyz(np.ones((4, 4, 3), np.float32)))
    command = [sys.executable, "utils/check_dataset.py", str(bagel.parent), "--num_workers", "2"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == check(bagel.parent)
    assert run.stderr.splitlines()[-1] == "checked 7 of 7 samples"


def test_public_classes_are_those_of_the_data_sets() -> None:
    assert {name: spec.classes for name, spec in DATASETS.items()} == PUBLIC_CLASSES


@pytest.mark.real_data
def test_real_samples_have_nothing_but_their_background(real_data: Path, check: Any) -> None:
    status, report = check(real_data / "mvtec3d", "--json")
    assert status == 0
    assert [finding["code"] for finding in _findings(report)] == ["raw"]


def test_a_stated_unit_is_believed(tiny_dataset: Path, check: Any) -> None:
    for path in tiny_dataset.rglob("*.tiff"):
        write_xyz(path, read_xyz(path) * np.float32(10))
    status, report = check(tiny_dataset, "--json")
    assert "unknown_unit" in {finding["code"] for finding in _findings(report)}
    status, report = check(tiny_dataset, "--json", "--unit", "m")
    assert status == 0
    assert not {"unknown_unit", "unit"} & {finding["code"] for finding in _findings(report)}
