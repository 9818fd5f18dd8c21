"""What a run does with bad input: a clear error before the work, or a loud report and the rest of the work."""

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import m3dm_runner
import models.backbones
from tests.conftest import write_class
from tests.tiny_runs import all_files, read_record, read_scores, run_main
from utils.image_files import read_xyz, write_png, write_xyz


@pytest.fixture
def no_work(monkeypatch):
    """Fails the test when networks are loaded, which comes before all work."""
    monkeypatch.setattr(m3dm_runner, "load_networks", lambda *_: pytest.fail("the work has begun"))


def _only_error(capsys) -> str:
    """The one line on stderr; a traceback would be more."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("main.py: error: ")
    return line


# The data set


def test_missing_dataset_folder_is_named_and_nothing_is_written(tmp_path, capsys, no_work):
    assert run_main(tmp_path / "nowhere", tmp_path / "results", "DINO") == 1
    assert f"--dataset_path {tmp_path / 'nowhere'}: no such folder" in _only_error(capsys)
    assert all_files(tmp_path) == []


def test_unknown_class_is_answered_with_those_there_are(tiny_dataset, tmp_path, capsys, no_work):
    assert run_main(tiny_dataset, tmp_path / "results", "DINO", "--class_name", "bagle") == 1
    assert "no class folder bagle; classes there: bagel" in _only_error(capsys)


def test_absent_classes_are_named_once(tiny_dataset, tmp_path, capsys):
    assert run_main(tiny_dataset, tmp_path / "results", "Point_MAE") == 0
    absent = [
        line for line in capsys.readouterr().out.splitlines() if "left out: cable_gland, carrot" in line
    ]
    assert len(absent) == 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_class_without_images_is_found_before_the_work(tiny_dataset, tmp_path, capsys, no_work, split):
    write_class(tiny_dataset, "rope", **({"train": 0} if split == "train" else {"good": 0, "bad": 0}))
    (tiny_dataset / "rope" / "train").mkdir(exist_ok=True)
    assert run_main(tiny_dataset, tmp_path / "results", "DINO") == 1
    assert f"rope/{split}: no sample" in _only_error(capsys)


@pytest.mark.parametrize("lost", ["train/good/rgb/001.png", "test/hole/xyz/000.tiff", "test/hole/gt/001.png"])
def test_files_that_do_not_pair_are_found_before_the_work(tiny_dataset, tmp_path, capsys, no_work, lost):
    (tiny_dataset / "bagel" / lost).unlink()
    assert run_main(tiny_dataset, tmp_path / "results", "DINO") == 1
    split, kind, folder, file = lost.split("/")
    assert f"{split}/{kind}: {folder}/ lacks {Path(file).stem}" in _only_error(capsys)


# Single samples


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _write_cloud(path: Path, cloud: np.ndarray) -> None:
    import tifffile

    tifffile.imwrite(path, cloud)


DAMAGES = {  # file: what happens to it, and what the report says
    "train/good/xyz/001.tiff": (_cut, "cut short"),
    "train/good/rgb/002.png": (_cut, "cut short"),
    "test/good/rgb/000.png": (lambda p: write_png(p, np.zeros((40, 40), np.uint8)), "is gray"),
    "test/good/xyz/001.tiff": (lambda p: _write_cloud(p, np.ones((40, 40, 2), np.float32)), "has 40 pages"),
    "test/hole/xyz/000.tiff": (lambda p: _write_cloud(p, np.ones((40, 40, 3), np.int32)), "holds int32"),
    "test/hole/gt/001.png": (_cut, "cut short"),
    "test/hole/rgb/002.png": (lambda p: p.write_bytes(b""), "is not a png"),
}


def _siblings(class_folder: Path, file: str) -> list[Path]:
    kind, stem = class_folder / Path(file).parents[1], Path(file).stem
    return [path for path in kind.rglob("*.*") if path.stem == stem]


def test_samples_that_can_not_be_used_are_left_out_and_named(tmp_path, capsys):
    damaged, without = (
        write_class(tmp_path / root, "bagel", train=5, good=4, bad=4) for root in ("damaged", "without")
    )
    for file, (damage, _) in DAMAGES.items():
        damage(damaged / file)
        for path in _siblings(without, file):
            path.unlink()
    assert run_main(damaged.parent, tmp_path / "results", "Point_MAE") == 1
    said = capsys.readouterr()
    skipped = read_record(tmp_path / "results")["classes"]["bagel"]["skipped_samples"]
    assert len(skipped) == len(DAMAGES)
    for sample, (file, (_, reason)) in zip(skipped, DAMAGES.items(), strict=True):
        assert sample["path"] == f"{Path(file).parents[1].as_posix()}/rgb/{Path(file).stem}.png"
        assert str(damaged / file) in sample["reason"]
        assert reason in sample["reason"]
        for text in (said.out, said.err):  # at once, and again at the end
            assert f"left out {sample['path']}" in text
    assert run_main(without.parent, tmp_path / "expected", "Point_MAE") == 0
    assert read_scores(tmp_path / "results", "bagel") == read_scores(tmp_path / "expected", "bagel")
    assert (
        said.err.splitlines()[-1] == "bagel: doubtful: 5 of 8 test samples were left out; mend or remove them"
    )


def _keep_points(path: Path, count: int) -> None:
    cloud = read_xyz(path)
    flat = cloud.reshape(-1, 3)
    flat[np.flatnonzero(flat.all(axis=1))[count:]] = 0
    write_xyz(path, cloud)


def _spoil_points(path: Path) -> None:
    cloud = read_xyz(path)
    cloud[18:22, 18:22, 1], cloud[10, 20] = np.nan, np.inf
    write_xyz(path, cloud)


@pytest.mark.parametrize("method", ["DINO+Point_MAE+Fusion", "Point_MAE", "FPFH"])
def test_odd_clouds_are_remarked_on_and_those_without_a_point_left_out(
    tiny_dataset, tmp_path, method, capsys
):
    bagel = tiny_dataset / "bagel"
    for file, count in {
        "train/good/xyz/000.tiff": 0,
        "test/good/xyz/000.tiff": 0,
        "test/hole/xyz/000.tiff": 3,
    }.items():
        _keep_points(bagel / file, count)
    for file in ("train/good/xyz/001.tiff", "test/hole/xyz/001.tiff"):
        _spoil_points(bagel / file)
    assert (
        run_main(tiny_dataset, tmp_path / "results", method) == 1
    )  # a quarter of the test samples is left out
    result = read_record(tmp_path / "results")["classes"]["bagel"]
    remarks = {remark["path"]: remark["remark"] for remark in result["remarks"]}
    skipped = {"path": "train/good/rgb/000.png"}, {"path": "test/good/rgb/000.png"}
    assert result["skipped_samples"] == [{**sample, "reason": "the cloud has no point"} for sample in skipped]
    assert "17 pixels with NaN, infinite or absurdly far points" in remarks["train/good/rgb/001.png"]
    assert "17 pixels with NaN, infinite or absurdly far points" in remarks["test/hole/rgb/001.png"]
    if method != "FPFH":
        assert "has 3 points, --num_group and --group_size want 16" in remarks["test/hole/rgb/000.png"]
    scores = [float(row["score"]) for row in read_scores(tmp_path / "results", "bagel")]
    assert len(scores) == 3
    assert np.isfinite(scores).all()
    assert "left out test/good/rgb/000.png: the cloud has no point" in capsys.readouterr().out


@pytest.mark.parametrize("labels", [{"good": 2, "bad": 0}, {"good": 0, "bad": 2}])
def test_metrics_that_the_labels_do_not_allow_are_null_and_na(tmp_path, labels):
    write_class(tmp_path / "data", "bagel", **labels)
    assert run_main(tmp_path / "data", tmp_path / "results", "Point_MAE") == 0
    result = read_record(tmp_path / "results")["classes"]["bagel"]
    assert result["image_rocauc"] is None
    assert "| n/a | n/a |" in (tmp_path / "results" / "image_rocauc_results.md").read_text()
    assert (result["pixel_rocauc"] is None) == (result["au_pro"] is None) == (labels["bad"] == 0)


# Whole classes


@pytest.mark.parametrize("split", ["train", "test"])
def test_class_that_fails_is_reported_and_the_others_go_on(tmp_path, capsys, split):
    for name in ("bagel", "rope"):
        write_class(tmp_path / "data", name)
    for path in (tmp_path / "data" / "bagel" / split).rglob("*.tiff"):
        _cut(path)
    assert run_main(tmp_path / "data", tmp_path / "results", "Point_MAE") == 1
    record = read_record(tmp_path / "results")
    assert list(record["classes"]) == ["rope"]
    assert f"no {split}" in record["failed_classes"]["bagel"]
    assert "| Method | Rope | Mean |" in (tmp_path / "results" / "aupro_results.md").read_text()
    assert "bagel: failed: " in capsys.readouterr().err.splitlines()[-1]


def test_class_too_small_for_its_bank_does_not_end_the_run(tmp_path, capsys):
    write_class(tmp_path / "data", "bagel", train=1)
    write_class(tmp_path / "data", "rope", train=4)
    assert run_main(tmp_path / "data", tmp_path / "results", "DINO", "--f_coreset", "0.1") == 1
    assert list(read_record(tmp_path / "results")["classes"]) == ["rope"]
    assert "bagel: failed: a memory bank of 1 rows" in capsys.readouterr().err


# Folders, devices, weights


@pytest.mark.parametrize("flag", ["--results_dir", "--save_feature_path"])
def test_file_in_the_place_of_a_folder_is_found_before_the_work(
    tiny_dataset, tmp_path, capsys, no_work, flag
):
    (tmp_path / "file").touch()
    flags = ["--save_feature", flag, str(tmp_path / "file")]
    assert run_main(tiny_dataset, tmp_path / "results", "DINO+Point_MAE", *flags) == 1
    assert f"{flag} {tmp_path / 'file'}: can't write there" in _only_error(capsys)


@pytest.mark.parametrize(
    ("name", "is_folder", "message"),
    [
        ("scores", False, "scores is no folder; move it away"),
        ("report.html", True, "report.html: is no regular file"),
        ("aupro_results.md", True, "aupro_results.md: is no regular file"),
        ("classes/bagel.json", True, "bagel.json: is no regular file"),
    ],
)
def test_what_stands_where_results_go_is_found_before_the_work(
    tiny_dataset, tmp_path, capsys, no_work, name, is_folder, message
):
    path = tmp_path / "results" / name
    path.mkdir(parents=True) if is_folder else (path.parent.mkdir(), path.touch())
    assert run_main(tiny_dataset, tmp_path / "results", "DINO") == 1
    assert message in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="has no named pipes")
def test_a_pipe_in_the_place_of_a_table_is_not_waited_for(tiny_dataset, tmp_path, capsys, no_work):
    (tmp_path / "results").mkdir()
    os.mkfifo(tmp_path / "results/aupro_results.md")
    assert run_main(tiny_dataset, tmp_path / "results", "DINO") == 1
    assert "aupro_results.md: is no regular file" in capsys.readouterr().err


def test_data_where_pictures_would_replace_them_are_refused(tmp_path, capsys, no_work):
    write_class(tmp_path / "pred_maps", "bagel")
    assert run_main(tmp_path / "pred_maps", tmp_path, "DINO", "--save_preds") == 1
    assert "results would replace the data in" in capsys.readouterr().err
    assert len(list((tmp_path / "pred_maps/bagel/train/good/rgb").iterdir())) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all names are Unicode")
def test_names_that_no_result_file_could_hold_are_refused_before_the_work(
    tiny_dataset, tmp_path, capsys, no_work
):
    folder = tiny_dataset / "bagel/train/good"
    for sub, suffix in (("rgb", ".png"), ("xyz", ".tiff")):
        (folder / sub / f"000{suffix}").rename(
            os.fsdecode(bytes(folder / sub) + b"/M\xfcller" + suffix.encode())
        )
    assert run_main(tiny_dataset, tmp_path / "results", "DINO") == 1
    assert "M\\udcfcller.png: its name is not UTF-8; rename it" in capsys.readouterr().err


def test_full_disk_is_found_before_the_work(tiny_dataset, tmp_path, capsys, monkeypatch, no_work):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert run_main(tiny_dataset, tmp_path / "results", "DINO") == 1
    assert "can't write there (No space left on device)" in _only_error(capsys)
    assert all_files(tmp_path / "results") == []


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "mps", "gpu 0"])
def test_device_that_is_not_there_is_found_before_the_work(tiny_dataset, tmp_path, capsys, no_work, device):
    assert run_main(tiny_dataset, tmp_path / "results", "DINO", "--device", device) == 1
    assert f"--device {device}: " in _only_error(capsys)


@pytest.fixture
def no_random_weights(monkeypatch):
    build = models.backbones.find_builder

    def strict(name):
        def checked(row, options, checkpoint):
            assert checkpoint is not None, "random weights without the flag"
            return build(name)(row, options, checkpoint)

        return checked

    monkeypatch.setattr(models.backbones, "find_builder", strict)


def test_missing_point_weights_are_named_with_where_to_get_them(
    tiny_dataset, tmp_path, capsys, no_random_weights
):
    flags = ["--checkpoint_dir", str(tmp_path / "nowhere")]
    assert run_main(tiny_dataset, tmp_path / "results", "Point_MAE", *flags, random_weights=False) == 1
    error = _only_error(capsys)
    assert f"{tmp_path / 'nowhere' / 'pointmae_pretrain.pth'}: no such file" in error
    assert "README, 'Checkpoints'" in error


def test_missing_files_are_all_named_at_once(tiny_dataset, tmp_path, capsys, no_random_weights):
    flags = ["--checkpoint_dir", str(tmp_path), "--fusion_module_path", str(tmp_path / "uff.pth")]
    method = "DINO+Point_MAE+Fusion"
    assert run_main(tiny_dataset, tmp_path / "results", method, *flags, random_weights=False) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("main.py: error: ")
    for line, file in zip(
        lines, ("dino_deitsmall8_pretrain.pth", "pointmae_pretrain.pth", "uff.pth"), strict=True
    ):
        assert f"{tmp_path / file}: no such file" in line
        assert "README, 'Checkpoints'" in line


def test_missing_fusion_weights_are_named(tiny_dataset, tmp_path, capsys):
    flags = ["--fusion_module_path", str(tmp_path / "uff.pth")]
    assert run_main(tiny_dataset, tmp_path / "results", "Fusion", *flags) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path / 'uff.pth'}: no such file" in error


def test_weights_that_are_not_weights_are_named(tiny_dataset, tmp_path, capsys, no_random_weights):
    torch.save({"base_model": {}}, tmp_path / "pointmae_pretrain.pth")
    flags = ["--checkpoint_dir", str(tmp_path)]
    assert run_main(tiny_dataset, tmp_path / "results", "Point_MAE", *flags, random_weights=False) == 1
    assert "pointmae_pretrain.pth: " in _only_error(capsys)


def test_random_weights_are_warned_of(tiny_dataset, tmp_path, capsys):
    assert run_main(tiny_dataset, tmp_path / "results", "Point_MAE") == 0
    assert "warning: --random_weights" in capsys.readouterr().err
