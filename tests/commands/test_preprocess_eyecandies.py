"""preprocess_eyecandies.py: the target layout, bad inputs, and runs that are repeated."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.eyecandies_scene import SIDE, camera_pose, write_sample
from utils.image_files import read_xyz
from utils.preprocess.eyecandies import object_cloud, read_depth

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """A class as it is downloaded: three digits in train, two elsewhere."""
    root = tmp_path / "eyecandies"
    for name in ("000", "001", "012"):
        write_sample(root / "Lollipop/train/data", name)
    write_sample(root / "Lollipop/val/data", "00")
    write_sample(root / "Lollipop/test_public/data", "00")
    write_sample(root / "Lollipop/test_public/data", "31", defect=True)
    return root


def run_script(download: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = str(REPOSITORY / "utils" / "preprocess_eyecandies.py")
    paths = ["--dataset_path", str(download), "--target_dir", str(download.parent / "target")]
    command = [sys.executable, script, *paths, "--num_workers", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def samples(target: Path) -> set[str]:
    return {
        path.relative_to(target).as_posix() for path in target.rglob("*") if not path.name.startswith(".")
    } - {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_dir()}


def test_layout_is_that_of_mvtec_3d_ad_and_val_is_left_out(download: Path) -> None:
    result = run_script(download)
    assert result.returncode == 0, result.stderr
    assert samples(download.parent / "target") == {
        *(
            f"Lollipop/train/good/{f}"
            for n in ("000", "001", "012")
            for f in (f"rgb/{n}.png", f"xyz/{n}.tiff")
        ),
        *(f"Lollipop/test/good/{f}" for f in ("rgb/00.png", "xyz/00.tiff", "gt/00.png")),
        *(f"Lollipop/test/bad/{f}" for f in ("rgb/31.png", "xyz/31.tiff", "gt/31.png")),
    }
    assert "5 samples: 5 converted" in result.stdout
    assert "not there: CandyCane, ChocolateCookie" in result.stdout


def test_files_hold_cloud_image_and_ground_truth(download: Path) -> None:
    run_script(download)
    source, bad = download / "Lollipop/test_public/data", download.parent / "target/Lollipop/test/bad"
    assert (bad / "rgb/31.png").read_bytes() == (source / "31_image_4.png").read_bytes()
    depth = read_depth(source / "31_depth.png", source / "31_info_depth.yaml")
    np.testing.assert_array_equal(read_xyz(bad / "xyz/31.tiff"), object_cloud(depth, camera_pose()))
    np.testing.assert_array_equal(tifffile.imread(bad / "xyz/31.tiff"), read_xyz(bad / "xyz/31.tiff"))
    gt = Image.open(bad / "gt/31.png")
    assert (gt.mode, np.asarray(gt).sum(), np.asarray(gt)[36, 30]) == ("L", 1, 1)
    assert not np.asarray(Image.open(bad.parent / "good/gt/00.png")).any()


def test_val_goes_to_validation_with_the_flag_also_after_a_run_without(download: Path) -> None:
    run_script(download)
    result = run_script(download, "--use_val")
    assert "6 samples: 1 converted, 5 done before, 0 failed" in result.stdout
    assert {"Lollipop/validation/good/rgb/00.png", "Lollipop/validation/good/xyz/00.tiff"} <= samples(
        download.parent / "target"
    )


def test_processes_write_the_same_bytes(download: Path) -> None:
    target = download.parent / "target"
    run_script(download)
    alone = {name: (target / name).read_bytes() for name in samples(target)}
    shutil.rmtree(target)
    assert run_script(download, "--num_workers", "2").returncode == 0
    assert {name: (target / name).read_bytes() for name in samples(target)} == alone


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def to_8_bits(path: Path) -> None:
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(path)


def to_half_size(path: Path) -> None:
    Image.open(path).resize((SIDE // 2, SIDE // 2)).save(path)


BAD_INPUTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no depth": ("depth.png", Path.unlink, "can't be read"),
    "depth cut short": ("depth.png", cut_short, "can't be read"),
    "depth of 8 bits": ("depth.png", to_8_bits, "16 bits"),
    "no limits": ("info_depth.yaml", Path.unlink, "No such file"),
    "limits without keys": ("info_depth.yaml", lambda p: p.write_text("normalization: {max: 3}"), "min and max"),
    "limits that are no yaml": ("info_depth.yaml", lambda p: p.write_text("{"), "min and max"),
    "limits swapped": ("info_depth.yaml", lambda p: p.write_text("normalization: {min: 3, max: 1}"), "0 < min"),
    "pose of 3 rows": ("pose.txt", lambda p: np.savetxt(p, camera_pose()[:3]), "4x4"),
    "pose of words": ("pose.txt", lambda p: p.write_text("to be done"), "can't be read as a matrix"),
    "no image": ("image_4.png", Path.unlink, "can't be read"),
    "image cut short": ("image_4.png", cut_short, "cut short"),
    "image of another size": ("image_4.png", to_half_size, "the sample's depth has (64, 64)"),
    "no mask": ("mask.png", Path.unlink, "can't be read"),
    "mask of another size": ("mask.png", to_half_size, "the sample's depth has (64, 64)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_reported_with_its_path(case: str, download: Path) -> None:
    from utils.preprocess_eyecandies import find_sources, preprocess

    suffix, spoil, words = BAD_INPUTS[case]
    spoiled = download / "Lollipop/test_public/data" / f"00_{suffix}"
    spoil(spoiled)
    outcomes = preprocess(find_sources(download, ("train", "test_public")), download.parent / "target", 1)
    problems = [outcome.problem for outcome in outcomes if outcome.problem]
    assert len(outcomes) == 5
    assert len(problems) == 1
    assert str(spoiled) in problems[0]
    assert words in problems[0]


def test_others_go_on_and_a_repeated_run_does_only_what_is_missing(download: Path) -> None:
    depth = download / "Lollipop/train/data/001_depth.png"
    intact = depth.read_bytes()
    cut_short(depth)
    first = run_script(download)
    assert first.returncode == 1
    assert "4 converted, 0 done before, 1 failed" in first.stdout
    assert f"failed: {depth}" in first.stderr
    done = {path: path.stat().st_mtime_ns for path in (download.parent / "target").rglob("*.tiff")}
    depth.write_bytes(intact)
    second = run_script(download)
    assert (second.returncode, "1 converted, 4 done before, 0 failed" in second.stdout) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert (download.parent / "target/Lollipop/train/good/xyz/001.tiff").is_file()


def test_a_run_that_was_cut_between_two_samples_continues(
    download: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from utils import preprocess_eyecandies as script

    target, sources = download.parent / "target", script.find_sources(download, ("train",))
    convert = script.convert

    def cut(source: script.Source, target: Path) -> script.Outcome:
        if source.stem == "012":
            raise KeyboardInterrupt
        return convert(source, target)

    monkeypatch.setattr(script, "convert", cut)
    with pytest.raises(KeyboardInterrupt):
        script.preprocess(sources, target, 1)
    monkeypatch.setattr(script, "convert", convert)
    assert [outcome.sample for outcome in script.preprocess(sources, target, 1)] == ["Lollipop/train/012"]


def test_private_test_set_is_skipped_with_a_word(download: Path) -> None:
    write_sample(download / "Lollipop/test_private/data", "00")
    result = run_script(download)
    assert "test_private is skipped" in result.stdout
    assert "5 samples" in result.stdout


def test_folder_without_samples_is_an_error_that_names_the_flag(tmp_path: Path) -> None:
    result = run_script(tmp_path / "nothing")
    assert result.returncode == 1
    assert "set --dataset_path" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_download_itself_is_refused_as_target(download: Path) -> None:
    before = {path: path.read_bytes() for path in download.rglob("*") if path.is_file()}
    result = run_script(download, "--target_dir", str(download))
    assert (result.returncode, "name another folder" in result.stderr) == (1, True)
    assert {path: path.read_bytes() for path in download.rglob("*") if path.is_file()} == before
