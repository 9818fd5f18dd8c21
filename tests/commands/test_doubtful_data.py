"""Data that would give wrong scores that look right: without labels, in millimetres, raw, mirrored."""

import json
from dataclasses import asdict

import numpy as np
import pytest

import main
from tests.conftest import write_class
from tests.tiny_runs import SMALL, read_record, read_scores, run_main
from utils.demo_data import DemoSettings, write_demo_data
from utils.image_files import read_mask, read_rgb, read_xyz, write_png, write_xyz
from utils.preprocess.sample import Parameters
from utils.preprocessing import preprocess_dataset

CHECKED = [flag for flag in SMALL if flag != "--unchecked"]


def _run_checked(data, results, *flags):
    folders = ["--dataset_path", str(data), "--results_dir", str(results)]
    return main.main(["--method_name", "Point_MAE", *folders, *CHECKED, "--random_weights", *flags])


def _without_truth(root, kind):
    bagel = write_class(root, "bagel")
    (bagel / "test" / "hole").rename(bagel / "test" / kind)
    for path in (bagel / "test" / kind / "gt").iterdir():
        path.unlink()
    (bagel / "test" / kind / "gt").rmdir()
    return root


@pytest.mark.parametrize("kind", ["unknown", "scratch"])
def test_kinds_without_ground_truth_are_scored_without_label_and_metrics(tmp_path, kind):
    data = _without_truth(tmp_path / "data", kind)
    assert run_main(data, tmp_path / "results", "Point_MAE", "--save_preds") == 0
    labels = {row["path"]: row["label"] for row in read_scores(tmp_path / "results", "bagel")}
    assert labels == {f"test/good/rgb/00{i}.png": "0" for i in range(2)} | {
        f"test/{kind}/rgb/00{i}.png": "" for i in range(2)
    }
    result = read_record(tmp_path / "results")["classes"]["bagel"]
    assert result["image_rocauc"] is result["pixel_rocauc"] is result["au_pro"] is None
    assert result["counts"]["test_unlabelled"] == 2


def test_labels_by_folder_give_image_metrics_only(tmp_path):
    data = _without_truth(tmp_path / "data", "scratch")
    assert run_main(data, tmp_path / "results", "Point_MAE", "--label_by_folder") == 0
    assert [row["label"] for row in read_scores(tmp_path / "results", "bagel")] == ["0", "0", "1", "1"]
    result = read_record(tmp_path / "results")["classes"]["bagel"]
    assert 0 <= result["image_rocauc"] <= 1
    assert result["pixel_rocauc"] is result["au_pro"] is None


def test_unknown_stays_unknown_whatever_the_flag(tmp_path):
    data = _without_truth(tmp_path / "data", "unknown")
    assert run_main(data, tmp_path / "results", "Point_MAE", "--label_by_folder") == 0
    assert {row["label"] for row in read_scores(tmp_path / "results", "bagel")} == {"0", ""}


def _change_clouds(root, change):
    for path in root.rglob("*.tiff"):
        write_xyz(path, change(read_xyz(path)))


def _with_background(cloud):
    cloud[cloud[..., 2] == 0] = (0.01, 0.01, 0.6)
    return cloud


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cloud: cloud * np.float32(1000), "points are in millimetres"),
        (lambda cloud: cloud * np.float32(10), "--unit m or --unit mm"),
        (_with_background, "does not look preprocessed"),
    ],
)
def test_clouds_that_would_score_wrongly_are_refused_before_the_work(tmp_path, capsys, change, message):
    write_class(tmp_path / "data", "bagel")
    _change_clouds(tmp_path / "data", change)
    assert _run_checked(tmp_path / "data", tmp_path / "results") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "results").exists()


def test_the_check_can_be_left_out(tmp_path):
    write_class(tmp_path / "data", "bagel")
    _change_clouds(tmp_path / "data", _with_background)
    assert _run_checked(tmp_path / "data", tmp_path / "results", "--unchecked") == 0


def test_an_image_mirrored_against_its_cloud_is_remarked_on(tmp_path, capsys):
    bagel = write_class(tmp_path / "data", "bagel", side=80)
    for path in [*bagel.rglob("rgb/*.png")]:  # a part in a corner
        cloud_path = path.parents[1] / "xyz" / f"{path.stem}.tiff"
        rgb, cloud = (np.zeros((160, 160, 3), kind) for kind in (np.uint8, np.float32))
        rgb[10:90, 20:100], cloud[10:90, 20:100] = read_rgb(path), read_xyz(cloud_path)
        write_png(path, rgb[:, ::-1])
        write_xyz(cloud_path, cloud)
    for path in bagel.rglob("gt/*.png"):
        write_png(path, np.pad(read_rgb(path.parents[1] / "rgb" / path.name)[..., 0] * 0, 0))
    assert _run_checked(tmp_path / "data", tmp_path / "results") == 0
    assert "warning: bagel: train/good/rgb/000.png: " in capsys.readouterr().err


@pytest.mark.parametrize("split", ["test/hole", "test/good", "validation/good"])
def test_each_kind_is_looked_at_before_the_work(tmp_path, capsys, split):
    root = write_class(tmp_path / "data", "bagel", validation=2)
    _change_clouds(root / split, lambda cloud: cloud * 1000)
    assert _run_checked(tmp_path / "data", tmp_path / "results") == 1
    assert f"bagel/{split}: its points are in millimetres" in capsys.readouterr().err
    assert not (tmp_path / "results/scores").exists()


def test_a_kind_in_two_units_is_named(tmp_path, capsys):
    root = write_class(tmp_path / "data", "bagel")
    path = root / "test/hole/xyz/001.tiff"
    write_xyz(path, read_xyz(path) * 1000)
    assert _run_checked(tmp_path / "data", tmp_path / "results") == 1
    assert f"{root / 'test/hole'}: clouds in metres and in millimetres" in capsys.readouterr().err


def test_a_sample_in_millimetres_among_others_is_left_out_by_name(tmp_path):
    write_class(tmp_path / "data", "bagel", train=5, good=12)
    path = tmp_path / "data/bagel/test/good/xyz/007.tiff"
    write_xyz(path, read_xyz(path) * 1000)
    assert run_main(tmp_path / "data", tmp_path / "results", "Point_MAE") == 0
    (skipped,) = read_record(tmp_path / "results")["classes"]["bagel"]["skipped_samples"]
    assert skipped["path"] == "test/good/rgb/007.png"
    assert "so they are not in metres; preprocess the raw data with --unit mm" in skipped["reason"]


@pytest.mark.parametrize(
    ("change", "remark"),
    [(lambda mask: ~mask, "of the image; is it inverted?"), (np.zeros_like, "its mask marks no defect")],
)
def test_masks_that_are_inverted_or_empty_are_remarked_on(tmp_path, capsys, change, remark):
    root = write_class(tmp_path / "data", "bagel")
    for path in (root / "test/hole/gt").iterdir():
        write_png(path, np.where(change(read_mask(path) > 0), 255, 0).astype(np.uint8))
    assert _run_checked(tmp_path / "data", tmp_path / "results") == 0
    assert remark in capsys.readouterr().err


def test_thresholds_of_few_of_the_good_parts_are_doubtful(tmp_path, capsys):
    root = write_class(tmp_path / "data", "bagel", validation=4)
    for i in (0, 2, 3):
        write_xyz(root / f"validation/good/xyz/{i:03d}.tiff", np.zeros((40, 40, 3), np.float32))
    flags = ["--save_detector", str(tmp_path / "detectors")]
    assert run_main(tmp_path / "data", tmp_path / "results", "FPFH", *flags) == 1
    assert "bagel: doubtful: 3 of 4 validation samples were left out" in capsys.readouterr().err


def test_a_detector_of_parts_that_were_preprocessed_otherwise_is_refused(tmp_path, capsys):
    write_class(tmp_path / "data", "bagel", validation=2)
    record = tmp_path / "data/.preprocessed.jsonl"
    header = {**asdict(Parameters()), "unit": "m"}
    record.write_text(json.dumps(header) + "\n")
    assert (
        run_main(tmp_path / "data", tmp_path / "a", "FPFH", "--save_detector", str(tmp_path / "detectors"))
        == 0
    )
    assert (
        run_main(tmp_path / "data", tmp_path / "b", "FPFH", "--load_detector", str(tmp_path / "detectors"))
        == 0
    )
    record.write_text(json.dumps({**header, "background_distance": 0.02}) + "\n")
    assert (
        run_main(tmp_path / "data", tmp_path / "c", "FPFH", "--load_detector", str(tmp_path / "detectors"))
        == 1
    )
    assert (
        "preprocessed with background_distance 0.005, here 0.02; preprocess these alike"
        in capsys.readouterr().err
    )


def test_a_run_that_fails_leaves_the_detector_of_an_earlier_one(tmp_path):
    root = write_class(tmp_path / "data", "bagel")
    flags = ["--save_detector", str(tmp_path / "detectors")]
    assert run_main(tmp_path / "data", tmp_path / "a", "FPFH", *flags) == 0
    before = (tmp_path / "detectors/bagel.m3dm").read_bytes()
    _change_clouds(root / "train", np.zeros_like)
    assert run_main(tmp_path / "data", tmp_path / "b", "FPFH", *flags) == 1
    assert (tmp_path / "detectors/bagel.m3dm").read_bytes() == before


def test_data_whose_preprocessing_was_cut_are_refused_before_the_work(tmp_path, capsys):
    root = tmp_path / "data"
    write_demo_data(root, DemoSettings(train=2, validation=1, test_per_kind=1, image_size=128))
    preprocess_dataset(root, root, Parameters(), num_workers=1, progress=False)
    record = root / ".preprocessed.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join(lines[:-1]))
    flags = ["--num_group", "16"]
    assert _run_checked(root, tmp_path / "results", *flags) == 1
    assert "samples are not); repeat utils/preprocessing.py" in capsys.readouterr().err
    record.write_text("".join(lines))
    assert _run_checked(root, tmp_path / "results", *flags) == 0
