"""convert.py: single parts, folders and trees; what it refuses, and what it leaves on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset import list_samples, load_sample
from tests.conftest import write_class
from tests.sensor_files import CAMERA, made_up_cloud, made_up_image, write_pcd, write_ply
from tests.tiny_runs import all_files
from utils import convert
from utils.files import TEMPORARY_PREFIX
from utils.formats.images import ORIENTATION
from utils.image_files import read_mask, read_rgb, read_xyz, write_png

REPOSITORY = Path(__file__).resolve().parents[2]
SIZE = ["--width", "30", "--height", "20"]


def run(*flags: object) -> int:
    return convert.main(["--num_workers", "1", *map(str, flags)])


@pytest.fixture
def sensor(tmp_path: Path) -> Path:
    """Three parts as a sensor writes them: 00x_cloud.ply in millimetres, 00x_color.bmp."""
    for i in range(3):
        write_ply(tmp_path / "sensor" / f"{i:03d}_cloud.ply", made_up_cloud(seed=i) * 1000)
        Image.fromarray(made_up_image(seed=i)).save(tmp_path / "sensor" / f"{i:03d}_color.bmp")
    return tmp_path / "sensor"


def run_folder(sensor: Path, *flags: object) -> int:
    patterns = ["--xyz_pattern", "{stem}_cloud.ply", "--rgb_pattern", "{stem}_color.bmp"]
    target = ["--output", sensor.parent / "own", "--class_name", "bracket"]
    return run("--input", sensor, *patterns, *target, *flags)


def assert_is_part(folder: Path, stem: str, seed: int) -> None:
    np.testing.assert_allclose(read_xyz(folder / "xyz" / f"{stem}.tiff"), made_up_cloud(seed=seed), rtol=2e-7)
    np.testing.assert_array_equal(read_rgb(folder / "rgb" / f"{stem}.png"), made_up_image(seed=seed))


# What is written


def test_folder_becomes_a_class_that_the_data_set_reads(sensor: Path, capsys) -> None:
    assert run_folder(sensor) == 0
    samples = list_samples(sensor.parent / "own" / "bracket", "train")
    assert [sample.path for sample in samples] == [f"train/good/rgb/00{i}.png" for i in range(3)]
    for i in range(3):
        assert_is_part(sensor.parent / "own/bracket/train/good", f"00{i}", i)
    assert len(load_sample(samples[0].rgb, samples[0].xyz, 32).points) > 500
    out = capsys.readouterr().out
    assert "unit: millimetres, told by the distances" in out
    assert "3 of 3 parts converted" in out
    assert not [name for name in all_files(sensor.parent / "own") if "/." in f"/{name}"]


def test_split_kind_and_mask_choose_the_place(sensor: Path) -> None:
    mask = np.zeros((20, 30, 3), np.uint8)
    mask[3, 4, 1] = 9
    for i in range(2):
        write_png(sensor / f"{i:03d}_mask.png", mask)
    (sensor / "002_cloud.ply").unlink()
    (sensor / "002_color.bmp").unlink()
    assert run_folder(sensor, "--split", "test", "--kind", "dent", "--mask_pattern", "{stem}_mask.png") == 0
    samples = list_samples(sensor.parent / "own" / "bracket", "test")
    assert [sample.label for sample in samples] == [1, 1]
    np.testing.assert_array_equal(read_mask(samples[0].mask), np.where(mask[..., 1], 255, 0))


def test_single_part_goes_to_the_folder_named(sensor: Path) -> None:
    part = ["--xyz", sensor / "001_cloud.ply", "--rgb", sensor / "001_color.bmp"]
    assert run(*part, "--output", sensor.parent / "one", "--unit", "mm", *SIZE) == 0
    assert all_files(sensor.parent / "one") == ["rgb/001_cloud.png", "xyz/001_cloud.tiff"]
    assert_is_part(sensor.parent / "one", "001_cloud", 1)


def test_image_is_made_of_the_clouds_colours_where_none_is_given(tmp_path: Path, capsys) -> None:
    write_ply(tmp_path / "a.ply", made_up_cloud(), colors=made_up_image())
    assert run("--xyz", tmp_path / "a.ply", "--output", tmp_path / "out", *SIZE) == 0
    np.testing.assert_array_equal(read_rgb(tmp_path / "out/rgb/a.png"), made_up_image())
    assert "image made of the cloud's colours (1): a" in capsys.readouterr().out


def test_depth_images_take_the_camera_of_a_file_or_of_flags(tmp_path: Path) -> None:
    cloud = made_up_cloud()
    Image.fromarray(np.round(cloud[..., 2] * 1e4).astype(np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(made_up_image()).save(tmp_path / "a.jpg")
    (tmp_path / "camera.json").write_text(json.dumps(asdict(CAMERA)))
    flags = [f"--{name}={value}" for name, value in asdict(CAMERA).items() if name not in ("width", "height")]
    for i, camera in enumerate((["--camera", tmp_path / "camera.json"], flags)):
        part = ["--xyz", tmp_path / "a.png", "--rgb", tmp_path / "a.jpg", "--output", tmp_path / f"{i}"]
        assert run(*part, "--depth_scale", "0.0001", *camera) == 0
        np.testing.assert_allclose(read_xyz(tmp_path / f"{i}/xyz/a.tiff"), cloud, atol=0.51e-4)


def as_other_types(root: Path, target: Path) -> None:
    """The tree at `root` with PLY and PCD in millimetres, and bmp images."""
    for i, path in enumerate(sorted(root.rglob("xyz/*.tiff"))):
        cloud, folder = read_xyz(path) * 1000, target / path.relative_to(root).parents[1]
        (folder / "rgb").mkdir(parents=True, exist_ok=True)
        write = write_ply if i % 2 else write_pcd
        write(folder / "xyz" / f"{path.stem}.{'ply' if i % 2 else 'pcd'}", cloud)
        pixels = Image.fromarray(read_rgb(path.parents[1] / "rgb" / f"{path.stem}.png"))
        pixels.save(folder / "rgb" / f"{path.stem}.bmp")
        mask = path.parents[1] / "gt" / f"{path.stem}.png"
        if mask.exists():
            write_png(folder / "gt" / f"{path.stem}.png", read_mask(mask))


def assert_same_tree(root: Path, target: Path, clouds_rtol: float) -> None:
    assert all_files(target) == [name for name in all_files(root) if name.startswith("bagel/")]
    for path in root.rglob("xyz/*.tiff"):
        np.testing.assert_allclose(
            read_xyz(target / path.relative_to(root)), read_xyz(path), rtol=clouds_rtol, atol=1e-11
        )
    for path in root.rglob("*.png"):
        read = read_mask if path.parent.name == "gt" else read_rgb
        np.testing.assert_array_equal(read(target / path.relative_to(root)), read(path))


def test_tree_keeps_its_places(tmp_path: Path) -> None:
    write_class(tmp_path / "data", "bagel")
    as_other_types(tmp_path / "data", tmp_path / "other")
    assert run("--input", tmp_path / "other", "--tree", "--output", tmp_path / "back") == 0
    assert_same_tree(tmp_path / "data", tmp_path / "back", clouds_rtol=2e-7)


@pytest.mark.real_data
def test_real_samples_come_back_from_other_types(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "mvtec3d/cable_gland"
    for name in ("train/good/{}/000", "test/hole/{}/000"):
        for kind, suffix in (("rgb", "png"), ("xyz", "tiff"), ("gt", "png")):
            path = source / f"{name.format(kind)}.{suffix}"
            if path.exists():
                copy = tmp_path / "data/bagel" / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
    as_other_types(tmp_path / "data", tmp_path / "other")
    assert run("--input", tmp_path / "other", "--tree", "--output", tmp_path / "back") == 0
    assert_same_tree(tmp_path / "data", tmp_path / "back", clouds_rtol=2e-7)


def test_processes_write_the_same_bytes(sensor: Path) -> None:
    for workers in ("1", "2"):
        assert run_folder(sensor, "--output", sensor.parent / workers, "--num_workers", workers) == 0
    names = all_files(sensor.parent / "1")
    assert len(names) == 6
    assert all_files(sensor.parent / "2") == names
    for name in names:
        assert (sensor.parent / "1" / name).read_bytes() == (sensor.parent / "2" / name).read_bytes()


# What is refused


def error_lines(capsys) -> list[str]:
    """Lines on stderr but for those on progress."""
    return [line for line in capsys.readouterr().err.splitlines() if not line.startswith("converted: ")]


def test_bad_parts_are_named_and_the_others_go_on(sensor: Path, capsys) -> None:
    (sensor / "000_cloud.ply").write_bytes(b"ply\n")
    (sensor / "003_color.bmp").write_bytes(b"")
    (sensor / "004_cloud.ply").write_bytes((sensor / "002_cloud.ply").read_bytes())
    assert run_folder(sensor) == 1
    first, second, third = error_lines(capsys)
    assert "003 has 003_color.bmp but no xyz file" in first
    assert "004 has 004_cloud.ply but no rgb file" in second
    assert third.startswith(f"failed: {sensor / '000_cloud.ply'}: has no PLY header; ")
    assert len(list_samples(sensor.parent / "own" / "bracket", "train")) == 2


def test_image_of_another_size_is_refused_with_both_sizes(sensor: Path, capsys) -> None:
    Image.fromarray(made_up_image(15, 10)).save(sensor / "001_color.bmp")
    assert run_folder(sensor, *SIZE) == 1
    (line,) = error_lines(capsys)
    assert (
        "001_color.bmp: has 15x10 pixels, its cloud 001_cloud.ply 30x20; both must show the same pixels"
        in line
    )


def test_image_turned_by_exif_does_not_shape_the_cloud(tmp_path: Path, capsys) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    write_ply(tmp_path / "a.ply", made_up_cloud())
    Image.fromarray(made_up_image()).save(tmp_path / "a.png", exif=exif)
    part = ["--xyz", tmp_path / "a.ply", "--rgb", tmp_path / "a.png", "--output", tmp_path / "out"]
    assert run(*part) == 1
    assert "no width and height known" in error_lines(capsys)[0]
    assert run(*part, *SIZE) == 1
    assert "20x30 pixels (turned upright by its EXIF tag), its cloud a.ply 30x20" in error_lines(capsys)[0]


def test_clouds_in_different_units_are_refused(sensor: Path, capsys) -> None:
    write_ply(sensor / "001_cloud.ply", made_up_cloud())
    assert run_folder(sensor) == 1
    (line,) = error_lines(capsys)
    assert line.startswith("error: ")
    assert "--unit" in line
    assert not list((sensor.parent / "own").rglob("*.png"))


def test_odd_unit_among_many_clouds_is_a_problem_of_that_part(sensor: Path, capsys) -> None:
    for i in range(30):
        write_ply(sensor / f"{i:03d}_cloud.ply", made_up_cloud(seed=i) * (1 if i == 1 else 1000))
        Image.fromarray(made_up_image(seed=i)).save(sensor / f"{i:03d}_color.bmp")
    assert run_folder(sensor) == 1
    (line,) = error_lines(capsys)
    assert "001_cloud.ply: looks like metres where other clouds are in millimetres" in line


def test_cloud_without_a_point_is_refused(tmp_path: Path, capsys) -> None:
    write_ply(tmp_path / "a.ply", np.full((20, 30, 3), np.nan), colors=made_up_image())
    assert run("--xyz", tmp_path / "a.ply", "--output", tmp_path / "out", "--unit", "mm", *SIZE) == 1
    assert "a.ply: has no measured point" in error_lines(capsys)[0]
    assert all_files(tmp_path / "out") == []


def test_missing_files_are_named(tmp_path: Path, capsys) -> None:
    write_ply(tmp_path / "a.ply", made_up_cloud())
    assert run("--xyz", tmp_path / "none.ply", "--output", tmp_path / "out") == 1
    assert "none.ply: can't be read (No such file" in error_lines(capsys)[0]
    assert run("--xyz", tmp_path / "a.ply", "--output", tmp_path / "out", *SIZE) == 1
    assert "a.ply: has no colours, and there is no image; name the image with --rgb" in error_lines(capsys)[0]
    assert run("--input", tmp_path / "none", "--tree", "--output", tmp_path / "out") == 1
    assert f"--input {tmp_path / 'none'}: no such folder" in error_lines(capsys)[0]
    assert run("--input", tmp_path, "--tree", "--output", tmp_path / "out") == 1
    assert "no file matches <class>/<split>/<kind>/xyz/" in error_lines(capsys)[0]
    assert run("--input", tmp_path, "--tree", "--output", tmp_path) == 1
    assert "is the folder of the sensor's files" in error_lines(capsys)[0]


def test_files_of_a_tree_that_are_of_no_use_are_named(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "in/bracket/train/good"
    write_ply(folder / "xyz/000.ply", made_up_cloud())
    write_pcd(folder / "xyz/001.pcd", made_up_cloud())
    write_ply(folder / "xyz/001.ply", made_up_cloud())
    (folder / "xyz/002.stl").write_text("solid")
    write_png(folder / "rgb/000.png", made_up_image())
    assert run("--input", tmp_path / "in", "--tree", "--output", tmp_path / "out") == 1
    first, second = error_lines(capsys)
    assert "002.stl: is of no type that is read here" in first
    assert "001.pcd, 001.ply have one name" in second
    assert len(list_samples(tmp_path / "out" / "bracket", "train")) == 1


WRONG_FLAGS = {
    "no source": ["--output", "x"],
    "two sources": ["--xyz", "a.ply", "--input", "b", "--output", "x"],
    "no output": ["--xyz", "a.ply"],
    "width alone": ["--xyz", "a.ply", "--output", "x", "--width", "3"],
    "half a camera": ["--xyz", "a.png", "--output", "x", "--fx", "3"],
    "camera of no focus": ["--xyz", "a.png", "--output", "x", *"--fx 0 --fy 1 --cx 1 --cy 1".split()],
    "two cameras": ["--xyz", "a.png", "--output", "x", "--camera", "c.json", "--fx", "3"],
    "folder without patterns": ["--input", "b", "--output", "x"],
    "tree with patterns": ["--input", "b", "--tree", "--xyz_pattern", "{stem}.ply", "--output", "x"],
    "class of two folders": ["--xyz", "a.ply", "--output", "x", "--class_name", "a/b"],
    "class above": ["--xyz", "a.ply", "--output", "x", "--class_name", ".."],
    "scale of 0": ["--xyz", "a.png", "--output", "x", "--depth_scale", "0"],
}


@pytest.mark.parametrize("case", WRONG_FLAGS)
def test_flags_that_do_not_go_together_end_in_usage(case: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        run(*WRONG_FLAGS[case])
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err
    assert all_files(tmp_path) == []


def test_pattern_without_a_stem_is_an_error(sensor: Path, capsys) -> None:
    flags = ["--input", sensor, "--xyz_pattern", "*.ply", "--output", sensor.parent / "own"]
    assert run(*flags) == 1
    assert "--xyz_pattern *.ply: must hold {stem} once" in error_lines(capsys)[0]


# What is there already


def test_other_files_are_not_overwritten_without_the_flag(sensor: Path, capsys) -> None:
    assert run_folder(sensor) == 0
    target = sensor.parent / "own/bracket/train/good/rgb/001.png"
    write_png(target, made_up_image(seed=9))
    kept = target.read_bytes()
    capsys.readouterr()
    assert run_folder(sensor) == 1
    (line,) = error_lines(capsys)
    assert f"{target}: exists with other content; name another --output, or add --overwrite" in line
    assert target.read_bytes() == kept
    assert run_folder(sensor, "--overwrite") == 0
    assert_is_part(target.parents[1], "001", 1)


def test_repeating_the_command_after_a_kill_completes_and_sweeps(sensor: Path, capsys) -> None:
    assert run_folder(sensor) == 0
    folder = sensor.parent / "own/bracket/train/good"
    whole = {name: (folder / name).read_bytes() for name in all_files(folder)}
    (folder / "xyz/001.tiff").unlink()
    (folder / f"xyz/{TEMPORARY_PREFIX}abcd1234.tiff").write_bytes(b"half")
    (folder / "rgb/.theirs.png").write_bytes(b"kept")
    capsys.readouterr()
    assert run_folder(sensor) == 0
    (folder / "rgb/.theirs.png").unlink()
    assert {name: (folder / name).read_bytes() for name in all_files(folder)} == whole
    assert "was there with the same content (2)" in capsys.readouterr().out


def test_two_runs_at_once_are_refused(sensor: Path, capsys) -> None:
    import fcntl

    (sensor.parent / "own").mkdir()
    with (sensor.parent / "own" / convert.LOCK_NAME).open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert run_folder(sensor) == 1
    assert "another run is writing there" in error_lines(capsys)[0]


@pytest.mark.skipif(os.name != "posix", reason="a full disk is made with a limit of file sizes")
def test_full_disk_is_one_line_and_leaves_no_half_file(sensor: Path) -> None:
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
    flags = ["--xyz", str(sensor / "000_cloud.ply"), "--rgb", str(sensor / "000_color.bmp")]
    flags += ["--output", str(sensor.parent / "own")]
    code = f"{limit} import sys; from utils.convert import main; sys.exit(main({flags!r}))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {sensor.parent / 'own'}")
    assert "can't be written" in line
    assert all_files(sensor.parent / "own") == []


def test_help_names_what_is_read() -> None:
    command = [sys.executable, "utils/convert.py", "--help"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert "--depth_scale" in result.stdout
    assert "{rgb,xyz,gt}" in result.stdout
