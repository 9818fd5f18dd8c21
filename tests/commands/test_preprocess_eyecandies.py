"""preprocess_eyecandies.py: the target layout, bad inputs, and runs that are repeated."""

from __future__ import annotations

import json
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
from utils import preprocess_eyecandies
from utils.image_files import read_xyz
from utils.preprocess.driver import Converted
from utils.preprocess.eyecandies import object_cloud, read_depth
from utils.preprocess.record import RECORD_NAME
from utils.preprocess_eyecandies import convert, preprocess_dataset

REPOSITORY = Path(__file__).resolve().parents[2]
SPLITS = ("train", "test_public")


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
    assert "done now 5, done before 0, failed 0" in result.stdout
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
    assert "done now 1, done before 5, failed 0" in result.stdout
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
    suffix, spoil, words = BAD_INPUTS[case]
    spoiled = download / "Lollipop/test_public/data" / f"00_{suffix}"
    spoil(spoiled)
    summary = preprocess_dataset(download, download.parent / "target", SPLITS, num_workers=1)
    assert summary.done == 4
    [error] = summary.errors
    assert str(spoiled) in error
    assert words in error


def test_others_go_on_and_a_repeated_run_does_only_what_is_missing(download: Path) -> None:
    depth = download / "Lollipop/train/data/001_depth.png"
    intact = depth.read_bytes()
    cut_short(depth)
    first = run_script(download)
    assert first.returncode == 1
    assert "done now 4, done before 0, failed 1" in first.stdout
    assert f"failed: {depth}" in first.stderr
    done = {path: path.stat().st_mtime_ns for path in (download.parent / "target").rglob("*.tiff")}
    depth.write_bytes(intact)
    second = run_script(download)
    assert (second.returncode, "done now 1, done before 4, failed 0" in second.stdout) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert (download.parent / "target/Lollipop/train/good/xyz/001.tiff").is_file()


def test_a_run_that_was_cut_between_two_samples_continues(
    download: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = download.parent / "target"

    def cut(root: Path, name: str) -> Converted:
        if name.endswith("012"):
            raise KeyboardInterrupt
        return convert(root, name)

    with monkeypatch.context() as patch:
        patch.setattr(preprocess_eyecandies, "convert", cut)
        with pytest.raises(KeyboardInterrupt):
            preprocess_dataset(download, target, ("train",), num_workers=1)
    summary = preprocess_dataset(download, target, ("train",), num_workers=1)
    assert (summary.done, summary.done_before) == (1, 2)


def test_private_test_set_is_skipped_with_a_word(download: Path) -> None:
    write_sample(download / "Lollipop/test_private/data", "00")
    result = run_script(download)
    assert "test_private is skipped" in result.stdout
    assert "done now 5," in result.stdout


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


def test_a_folder_of_the_other_preprocessing_command_is_refused_in_one_sentence(download: Path) -> None:
    target = download.parent / "target"
    target.mkdir()
    files = dict.fromkeys(["bagel/train/good/xyz/000.tiff"], 1)
    lines = [
        {"version": 1, "plane_distance": 0.004, "seed": 0},
        {"sample": "b", "files": files, "report": {}},
    ]
    (target / RECORD_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run_script(download)
    assert result.returncode == 1
    assert result.stderr == (
        f"error: {target}: holds the results of another preprocessing command; name another folder\n"
    )


def test_a_file_as_target_is_refused_by_name(download: Path) -> None:
    (download.parent / "target").write_bytes(b"")
    result = run_script(download)
    assert (result.returncode, "target: is a file; name a folder" in result.stderr) == (1, True)


def test_a_sample_without_an_object_is_named_and_not_written(download: Path) -> None:
    limits = download / "Lollipop/train/data/001_info_depth.yaml"
    limits.write_text("normalization: {min: 1, max: 1.001}")  # a flat wall: everything is ground
    result = run_script(download)
    assert "done now 4, done before 0, failed 1" in result.stdout
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "failed: Lollipop/train/001: not written, it shows no part (no points: nothing above the ground); "
        "do unit and distances suit the data?"
    )
    assert not [name for name in samples(download.parent / "target") if "001" in name]


def test_a_mask_that_was_made_good_moves_its_sample(download: Path) -> None:
    run_script(download)
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(download / "Lollipop/test_public/data/31_mask.png")
    result = run_script(download)
    assert "done now 1, done before 4, failed 0" in result.stdout
    found = {name for name in samples(download.parent / "target") if "31." in name}
    assert found == {f"Lollipop/test/good/{file}" for file in ("rgb/31.png", "xyz/31.tiff", "gt/31.png")}


def test_a_sample_that_is_gone_from_the_download_is_named(download: Path) -> None:
    run_script(download, "--use_val")
    for path in (download / "Lollipop/train/data").glob("001_*"):
        path.unlink()
    result = run_script(download)
    assert (result.returncode, "done now 0, done before 4, failed 1" in result.stdout) == (1, True)
    assert "holds Lollipop/train/001, which the source does not have any more" in result.stderr


def test_a_link_that_would_mix_two_folders_of_the_target_is_refused(download: Path) -> None:
    folder = download.parent / "target/Lollipop/test"
    folder.mkdir(parents=True)
    (folder / "bad").symlink_to("good")
    result = run_script(download)
    assert result.returncode == 1
    assert "Lollipop/test/bad/xyz are the same file, by a link" in result.stderr
    assert [path.name for path in folder.iterdir()] == ["bad"]
