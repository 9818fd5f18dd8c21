"""A run's results: files, schema, repetition, and going on after a cut."""

import dataclasses
import itertools
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from evaluation.class_run import ClassRun
from feature_extractors.detector import Detector
from feature_extractors.extractor import Extractor
from m3dm_runner import M3DM
from models.uff.pairs import open_folder
from tests.conftest import write_class
from tests.tiny_runs import all_files, read_record, read_scores, run_main
from utils.annotate import with_contour
from utils.image_files import read_mask, read_rgb, read_xyz, write_png, write_xyz
from utils.pictures import LABEL_COLORS, TRUTH_COLOR
from utils.report.run_report import run_page
from utils.results import ClassRecord
from utils.signals import INTERRUPTED

CLASSES = ["bagel", "rope"]
STAGES = ["extract_train", "fit_banks", "fit_decision", "predict", "metrics"]
TABLES = ["aupro_results.md", "image_rocauc_results.md", "pixel_rocauc_results.md"]


def _crop(class_folder: Path, height: int) -> None:
    """Make a class's images wider than high."""
    for path in class_folder.rglob("*.tiff"):
        write_xyz(path, read_xyz(path)[:height])
    for path in class_folder.rglob("*.png"):
        write_png(path, (read_mask if path.parent.name == "gt" else read_rgb)(path)[:height])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name in CLASSES:
        write_class(root, name)
    _crop(root / "rope", 30)
    return root


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """The results of a run with everything that can be saved."""
    results = tmp_path_factory.mktemp("results")
    store = ["--save_feature", "--save_feature_path", str(results / "patch_lib")]
    assert run_main(data, results, "DINO+Point_MAE", "--save_preds", *store) == 0
    return results


def test_results_json_says_what_was_run(finished):
    record = read_record(finished)
    assert record["method_name"] == record["settings"]["method_name"] == "DINO+Point_MAE"
    assert record["random_weights"] is True
    assert record["weights"] == {"rgb": "random, seed 0", "xyz": "random, seed 0"}
    assert record["settings"]["quirks"]["blur"] == "pil_8bit"
    assert {"python", "torch", "scikit-learn"} <= set(record["versions"])
    assert record["device"] == "cpu"
    assert record["complete"] is True
    assert list(record["classes"]) == CLASSES
    assert record["failed_classes"] == {}


@pytest.mark.parametrize("name", CLASSES)
def test_results_json_holds_each_classs_metrics_time_memory_and_counts(finished, name):
    result = read_record(finished)["classes"][name]
    for metric in ("image_rocauc", "pixel_rocauc", "au_pro"):
        assert 0 <= result[metric] <= 1
    assert list(result["seconds"]) == STAGES
    assert result["peak_memory_mb"] > 10
    assert {key: result["counts"][key] for key in ("train", "test", "test_anomalous")} == {
        "train": 3,
        "test": 4,
        "test_anomalous": 2,
    }
    xyz_rows = 3 * 8 * 8
    assert result["counts"]["xyz_bank_rows"] == xyz_rows // 2
    assert result["counts"]["rgb_bank_rows"] == min(xyz_rows // 4, 3 * 4 * 4)
    assert result["skipped_samples"] == []


@pytest.mark.parametrize("name", CLASSES)
def test_scores_have_one_row_a_test_sample_in_order(finished, name):
    text = (finished / "scores" / f"{name}.csv").read_bytes().decode()
    assert text.startswith("path,label,score\ntest/good/rgb/000.png,0,")
    rows = read_scores(finished, name)
    assert [(row["path"], row["label"]) for row in rows] == [
        ("test/good/rgb/000.png", "0"),
        ("test/good/rgb/001.png", "0"),
        ("test/hole/rgb/000.png", "1"),
        ("test/hole/rgb/001.png", "1"),
    ]
    assert all(np.isfinite(float(row["score"])) for row in rows)


@pytest.mark.parametrize("file", TABLES)
def test_tables_have_a_column_a_class_and_their_mean(finished, file):
    lines = (finished / file).read_text().splitlines()
    assert lines[2] == "| Method | Bagel | Rope | Mean |"
    name, *cells = (cell.strip() for cell in lines[4].strip("|").split("|"))
    assert name == "DINO+Point_MAE (random weights)"
    bagel, rope, mean = map(float, cells)
    assert mean == pytest.approx((bagel + rope) / 2, abs=1e-3)


@pytest.mark.parametrize(("name", "shape"), [("bagel", (40, 40)), ("rope", (30, 40))])
def test_maps_and_pictures_have_the_size_of_the_stored_image(finished, name, shape):
    for defect in ("good", "hole"):
        for stem in ("000", "001"):
            anomaly_map = tifffile.imread(finished / "pred_maps" / name / "test" / defect / f"{stem}.tiff")
            assert anomaly_map.shape == shape
            assert anomaly_map.dtype == np.float32
            with Image.open(finished / "pred_maps" / name / defect / f"{stem}.png") as picture:
                assert picture.width > 3 * shape[1]  # with the color bar
                assert picture.height > shape[0]  # with the caption


def test_pictures_show_the_image_and_its_ground_truth(finished, data):
    picture = read_rgb(finished / "pred_maps" / "bagel" / "hole" / "000.png")
    sample = data / "bagel" / "test" / "hole"
    image, mask = read_rgb(sample / "rgb" / "000.png"), read_mask(sample / "gt" / "000.png") > 0
    np.testing.assert_array_equal(picture[:40, :40], image)
    np.testing.assert_array_equal(picture[:40, 40:80], with_contour(image, mask, TRUTH_COLOR))


@pytest.mark.parametrize("name", CLASSES)
def test_a_contact_sheet_shows_all_samples_of_a_class(finished, name):
    sheet = read_rgb(finished / "pred_maps" / name / "contact_sheet.png")
    frames = [(sheet[0] == LABEL_COLORS[label]).all(axis=1).sum() for label in (0, 1)]
    assert frames[0] == frames[1] == sheet.shape[1] // 2  # two good ones and two defects in one row


def test_saved_features_can_be_trained_on(finished):
    folder = open_folder(finished / "patch_lib")
    assert len(folder.files) == 6
    assert (folder.meta.rgb_dim, folder.meta.xyz_dim, folder.meta.random_weights) == (384, 1152, True)
    sample = folder.read(folder.files[0])
    assert tuple(sample.rgb.shape) == (16, 384)
    assert 0 < len(sample.xyz) < 64


def test_run_leaves_no_temporary_files(finished):
    assert [name for name in all_files(finished) if Path(name).name.startswith(".")] == []


def test_loader_processes_do_not_change_a_bit(finished, data, tmp_path):
    assert run_main(data, tmp_path, "DINO+Point_MAE", "--class_name", "bagel", "--num_workers", "2") == 0
    assert (tmp_path / "scores/bagel.csv").read_bytes() == (finished / "scores/bagel.csv").read_bytes()


def test_same_command_gives_the_same_bytes_and_no_second_row(data, tmp_path):
    contents = []
    for _ in range(2):
        assert run_main(data, tmp_path, "Point_MAE", "--class_name", "bagel") == 0
        contents.append((tmp_path / "scores/bagel.csv").read_bytes())
    assert contents[0] == contents[1]
    for file in TABLES:
        title, _, *table = (tmp_path / file).read_text().splitlines()
        assert title.startswith("# ")
        assert len(table) == 3


class TestCutRun:
    """A run that Ctrl-C ends in its second class; Point_MAE with live DropPath, whose draws go on."""

    METHOD = ("Point_MAE", "--quirk", "drop_path=live")

    @pytest.fixture
    def fitted(self, monkeypatch) -> list[str]:
        """Names of the classes that were fitted, in order."""
        names: list[str] = []
        run = ClassRun.run
        monkeypatch.setattr(ClassRun, "run", lambda self: (names.append(self.files.name), run(self)))
        return names

    @pytest.fixture(scope="class")
    def cut_once(self, data, tmp_path_factory) -> Path:
        results = tmp_path_factory.mktemp("cut")
        predict_all = M3DM.predict_all

        def interrupted(model, samples, title):
            if title == "rope test":
                raise KeyboardInterrupt
            return predict_all(model, samples, title)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(M3DM, "predict_all", interrupted)
            assert run_main(data, results, *self.METHOD) == INTERRUPTED
        return results

    @pytest.fixture
    def cut(self, cut_once, tmp_path) -> Path:
        return Path(shutil.copytree(cut_once, tmp_path / "cut"))

    def test_finished_classes_are_on_disk_and_no_table(self, cut):
        assert all_files(cut) == [
            "classes/bagel.json",
            "report/bagel.json",
            "results.json",
            "scores/bagel.csv",
        ]
        assert ClassRecord.read(cut / "classes/bagel.json").run_complete is False

    def test_same_command_does_the_rest_and_equals_an_uncut_run(self, cut, data, tmp_path, fitted):
        assert run_main(data, cut, *self.METHOD) == 0
        assert fitted == ["rope"]
        uncut = tmp_path / "uncut"
        assert run_main(data, uncut, *self.METHOD) == 0
        assert all_files(cut) == all_files(uncut)
        for name in CLASSES:
            csv = f"scores/{name}.csv"
            assert (cut / csv).read_bytes() == (uncut / csv).read_bytes()
        for file in TABLES:
            assert (cut / file).read_text() == (uncut / file).read_text()
        assert self._page_without_times(cut) == self._page_without_times(uncut)

    @staticmethod
    def _page_without_times(results) -> str:
        """The report, which holds all metrics, and the figures that each class has left."""
        record = read_record(results)
        for result in record["classes"].values():
            result |= {"seconds": {}, "memory_mb": {}, "peak_memory_mb": None}
        return run_page(results, record, {})

    @pytest.mark.parametrize("other", [("DINO",), (*METHOD, "--save_preds")])
    def test_another_command_does_not_take_over_its_classes(self, cut, data, fitted, other):
        assert run_main(data, cut, *other) == 0
        assert fitted == CLASSES
        assert list(read_record(cut)["classes"]) == CLASSES


def test_classes_run_one_by_one_share_the_results_file(data, tmp_path):
    for name in CLASSES:
        assert run_main(data, tmp_path, "Point_MAE", "--class_name", name) == 0
    assert list(read_record(tmp_path)["classes"]) == CLASSES


def test_ctrl_c_while_a_map_is_written_leaves_no_part_of_it(data, tmp_path, monkeypatch):
    def half(path, array):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(tifffile, "imwrite", half)
    assert run_main(data, tmp_path, "Point_MAE", "--save_preds") == INTERRUPTED
    assert all_files(tmp_path) == [
        "classes/bagel.json",
        "report/bagel.json",
        "results.json",
        "scores/bagel.csv",
    ]
    assert list(read_record(tmp_path)["classes"]) == ["bagel"]


def test_disk_that_fills_up_ends_the_run_and_keeps_the_classes_that_are_done(
    data, tmp_path, monkeypatch, capsys
):
    replace = Path.replace

    def full(path, target):
        if Path(target).name == "rope.csv":
            raise OSError(28, os.strerror(28), str(target))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", full)
    assert run_main(data, tmp_path, "Point_MAE") == 1
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert all_files(tmp_path) == [
        "classes/bagel.json",
        "report/bagel.json",
        "results.json",
        "scores/bagel.csv",
    ]
    assert list(read_record(tmp_path)["classes"]) == ["bagel"]


def test_disk_that_fills_up_under_the_pictures_leaves_the_metrics(data, tmp_path, monkeypatch, capsys):
    replace = Path.replace

    def full(path, target):
        if Path(target).suffix == ".tiff":
            raise OSError(28, os.strerror(28), str(target))
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        assert run_main(data, tmp_path, "Point_MAE", "--save_preds", "--class_name", "bagel") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("main.py: error: bagel: ")
    assert "000.tiff: can't be written" in line
    assert ClassRecord.read(tmp_path / "classes/bagel.json").result["image_rocauc"] is not None
    assert run_main(data, tmp_path, "Point_MAE", "--save_preds", "--class_name", "bagel") == 0
    assert (tmp_path / "pred_maps/bagel/contact_sheet.png").is_file()


@pytest.mark.parametrize("by", ["times", "contents"])
def test_a_class_whose_data_changed_since_the_cut_is_done_again(tmp_path, capsys, by):
    root = tmp_path / "data"
    write_class(root, "bagel")
    flags = ("Point_MAE", "--fingerprint", by)

    def cut_and_repeat() -> str:
        record = tmp_path / "results/classes/bagel.json"
        record.write_text(record.read_text().replace('"run_complete": true', '"run_complete": false'))
        assert run_main(root, tmp_path / "results", *flags) == 0
        return capsys.readouterr().out

    assert run_main(root, tmp_path / "results", *flags) == 0
    assert "done by the run that was cut, kept" in cut_and_repeat()
    image = root / "bagel/train/good/rgb/000.png"
    os.utime(image)
    assert ("kept" in cut_and_repeat()) == (by == "contents")
    write_png(image, read_rgb(image)[::-1])
    assert "kept" not in cut_and_repeat()


def test_a_run_that_fails_leaves_nothing_of_the_one_before(tmp_path):
    root = tmp_path / "data"
    write_class(root, "bagel")
    assert run_main(root, tmp_path / "results", "Point_MAE", "--save_preds") == 0
    for path in (root / "bagel/train/good/xyz").iterdir():
        write_xyz(path, np.zeros((40, 40, 3), np.float32))
    assert run_main(root, tmp_path / "results", "Point_MAE", "--save_preds") == 1
    assert [name for name in all_files(tmp_path / "results") if "bagel" in name] == ["classes/bagel.json"]
    record = read_record(tmp_path / "results")
    assert record["classes"] == {}
    assert "no training sample can be used" in record["failed_classes"]["bagel"]


def test_training_uses_at_most_max_sample_samples(data, tmp_path):
    assert run_main(data, tmp_path, "Point_MAE", "--max_sample", "2", "--class_name", "bagel") == 0
    assert read_record(tmp_path)["classes"]["bagel"]["counts"]["train"] == 2


def test_sample_without_a_finite_score_is_left_out_and_named(data, tmp_path, monkeypatch, capsys):
    score = Detector.score
    scores = iter([math.nan, 1.0, 2.0, math.inf])
    monkeypatch.setattr(Extractor, "batches_at_once", 1)  # in order
    monkeypatch.setattr(
        Detector, "score", lambda *given: dataclasses.replace(score(*given), image=next(scores))
    )
    assert run_main(data, tmp_path, "Point_MAE", "--class_name", "bagel") == 1
    assert [row["score"] for row in read_scores(tmp_path, "bagel")] == ["1.0", "2.0"]
    assert "left out test/good/rgb/000.png: its score is nan" in capsys.readouterr().err
    assert len(read_record(tmp_path)["classes"]["bagel"]["skipped_samples"]) == 2


def test_sample_whose_features_are_not_finite_is_left_out_and_named(data, tmp_path, monkeypatch):
    extract, count = Extractor.backbone_patches, itertools.count(1)
    monkeypatch.setattr(Extractor, "batches_at_once", 1)  # in order

    def spoil_third(self, batch):
        found = extract(self, batch)
        if next(count) == 3:
            xyz = found[0]["xyz"]
            found[0]["xyz"] = dataclasses.replace(xyz, rows=xyz.rows * math.nan)
        return found

    monkeypatch.setattr(Extractor, "backbone_patches", spoil_third)
    assert run_main(data, tmp_path, "DINO+Point_MAE", "--class_name", "bagel") == 0
    result = read_record(tmp_path)["classes"]["bagel"]
    assert result["counts"]["train"] == 2
    reason = "its xyz features are not finite"
    assert result["skipped_samples"] == [{"path": "train/good/rgb/002.png", "reason": reason}]
