"""Data that would give wrong scores that look right: without labels, in millimetres, raw, mirrored."""

import numpy as np
import pytest

import main
from tests.conftest import write_class
from tests.tiny_runs import SMALL, read_record, read_scores, run_main
from utils.image_files import read_rgb, read_xyz, write_png, write_xyz

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
