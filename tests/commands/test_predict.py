"""predict.py: the verdicts of main.py's detectors on raw parts, in the camera's geometry, whatever arrives."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from plyfile import PlyData

import main
import predict
from evaluation import verdicts
from evaluation.class_run import held_out_apart
from feature_extractors.calibration import Calibration, ThresholdRule
from tests.sensor_files import write_ply
from tests.tiny_runs import VIT_S
from utils.demo_data import DemoSettings, write_demo_data
from utils.image_files import read_rgb, read_xyz, write_png, write_xyz
from utils.plausibility import LEAST_POINTS
from utils.preprocess.sample import crop_from_square, pad_to_square
from utils.preprocessing import Parameters, preprocess_dataset
from utils.structures import Score
from utils.verdict_folder import KINDS, LOCK_NAME, append_row

ROOT = Path(__file__).parents[2]
TINY = "--img_size 64 --num_group 32 --group_size 8 --f_coreset 0.3 --device cpu --num_workers 0".split()
WAIT_S = 60


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A raw data set, the same preprocessed, a detector of its rope (which is not square) and main.py's scores."""
    folder = tmp_path_factory.mktemp("work")
    write_demo_data(folder / "raw", DemoSettings(train=4, validation=2, test_per_kind=1, image_size=200))
    preprocess_dataset(folder / "raw", folder / "ready", Parameters(), num_workers=1, progress=False)
    flags = [
        "--method_name",
        "DINO+Point_MAE",
        "--dataset_path",
        str(folder / "ready"),
        "--class_name",
        "rope",
    ]
    out = ["--results_dir", str(folder / "results"), "--save_detector", str(folder / "detectors")]
    assert main.main([*flags, *TINY, *VIT_S, *out, "--random_weights"]) == 0
    return folder


def _predict(work: Path, *flags: object) -> int:
    detector = work / "detectors" / "rope.m3dm"
    common = ["--detector", str(detector), "--random_weights", "--device", "cpu"]
    return predict.main([*common, *map(str, flags)])


def _report(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "report.csv").open(newline="", encoding="utf-8") as file:
        return {row["part"]: row for row in csv.DictReader(file)}


def _main_scores(work: Path) -> dict[str, str]:
    with (work / "results" / "scores" / "rope.csv").open(newline="") as file:
        return {
            row["path"].replace("/rgb/", "/").removesuffix(".png"): row["score"]
            for row in csv.DictReader(file)
        }


def test_raw_parts_get_the_scores_that_main_gave_the_preprocessed_ones(work, tmp_path):
    assert _predict(work, "--input", work / "raw", "--output", tmp_path) == 0
    report = _report(tmp_path)
    expected = _main_scores(work)
    assert len(expected) > 3
    assert {name: report[f"rope/{name}"]["score"] for name in expected} == expected


def test_preprocessed_parts_get_main_s_scores_too(work, tmp_path):
    assert _predict(work, "--input", work / "ready/rope/test", "--preprocessed", "--output", tmp_path) == 0
    expected = _main_scores(work)
    assert {f"test/{name}": row["score"] for name, row in _report(tmp_path).items()} == expected


def test_verdicts_follow_the_thresholds_of_validation_good(work, tmp_path, capsys):
    assert _predict(work, "--input", work / "raw/rope", "--output", tmp_path) == 0
    said = capsys.readouterr()
    assert "threshold rests on 2 good parts" in said.err
    report = _report(tmp_path)
    held_out = [float(report[f"validation/good/00{i}"]["score"]) for i in range(2)]
    for name, row in report.items():
        anomalous = float(row["score"]) > max(held_out)
        assert row["verdict"] == ("anomalous" if anomalous else "good"), name
        assert (float(row["calibrated"]) > 0.5) == anomalous
        assert float(row["threshold"]) == max(held_out)
        assert f"{name}: {row['verdict']}, " in said.out


def test_outputs_are_in_the_geometry_of_the_camera(work, tmp_path):
    raw = work / "raw/rope/test/good"
    assert (
        _predict(work, "--rgb", raw / "rgb/000.png", "--xyz", raw / "xyz/000.tiff", "--output", tmp_path) == 0
    )
    shape = read_rgb(raw / "rgb/000.png").shape[:2]
    assert shape[0] != shape[1]
    assert tifffile.imread(tmp_path / "maps/000.tiff").shape == shape
    assert read_rgb(tmp_path / "overlays/000.png").shape[:2] == shape
    cloud = read_xyz(raw / "xyz/000.tiff")
    vertices = PlyData.read(str(tmp_path / "clouds/000.ply"))["vertex"]
    found = np.stack([vertices[axis] for axis in "xyz"], axis=1)
    np.testing.assert_array_equal(found, cloud[cloud.any(axis=2)])
    assert {prop.name for prop in vertices.properties} == {"x", "y", "z", "red", "green", "blue"}


@pytest.mark.parametrize("shape", [(1024, 1280), (900, 400), (400, 400), (333, 501)])
def test_a_marked_pixel_comes_back_to_its_place(shape):
    marked = np.zeros(shape)
    marked[shape[0] // 3, shape[1] // 4] = 1
    np.testing.assert_array_equal(crop_from_square(pad_to_square(marked), shape), marked)


def test_a_ply_in_millimetres_is_the_same_part(work, tmp_path):
    raw = work / "raw/rope/test/good"
    cloud = read_xyz(raw / "xyz/000.tiff")
    height, width = cloud.shape[:2]
    ply = tmp_path / "000.ply"
    write_ply(ply, cloud * np.float32(1000), obj_info=(f"width {width}", f"height {height}"))
    assert _predict(work, "--rgb", raw / "rgb/000.png", "--xyz", ply, "--output", tmp_path / "out") == 0
    found = float(_report(tmp_path / "out")["000"]["score"])
    assert found == pytest.approx(
        float(_main_scores(work)["test/good/000"]), rel=0.05
    )  # RANSAC's draws differ


def test_a_bad_part_is_named_and_does_not_stop_the_others(work, tmp_path, capsys):
    parts = tmp_path / "parts"
    shutil.copytree(work / "raw/rope/test/good", parts / "good")
    shutil.copytree(work / "raw/rope/test/good", parts / "cut")
    cut = parts / "cut/xyz/000.tiff"
    cut.write_bytes(cut.read_bytes()[:1000])
    (parts / "good/rgb/777.png").write_bytes(b"")
    assert _predict(work, "--input", parts, "--output", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "cut/000: not judged: " in said.err
    assert "777" in said.err
    report = _report(tmp_path / "out")
    assert report["cut/000"]["score"] == ""
    assert str(cut) in report["cut/000"]["problem"]
    assert report["good/000"]["verdict"] in ("good", "anomalous")


def _empty(path: Path) -> None:
    write_xyz(path, np.zeros_like(read_xyz(path)))


def _far(path: Path) -> None:
    write_xyz(path, read_xyz(path) * np.float32(8))


def _background_alone(path: Path) -> None:
    cloud = read_xyz(path)
    plane = cloud[:10].reshape(-1, 3)
    cloud[...] = plane[plane.any(axis=1)].mean(axis=0)
    cloud[..., :2] += np.random.default_rng(0).uniform(-0.1, 0.1, (*cloud.shape[:2], 2))
    write_xyz(path, cloud)


def _points_left(count: int) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        cloud = read_xyz(path)
        pixels = np.argwhere(cloud.all(axis=2))
        kept = np.zeros(cloud.shape[:2], bool)
        kept[tuple(np.random.default_rng(0).permutation(pixels)[:count].T)] = True
        write_xyz(path, np.where(kept[..., None], cloud, np.float32(0)))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_empty, "no point"),
        (_far, "--unit m or --unit mm"),
        (_background_alone, "shows no part (no points: "),
        (_points_left(2), "shows no part (mostly scattered points: 2 points of no cluster kept"),
        (_points_left(30), "shows no part (mostly scattered points: 30 points of no cluster kept"),
    ],
)
def test_clouds_that_would_be_scored_wrongly_are_not_judged(work, tmp_path, capsys, spoil, message):
    shutil.copytree(work / "raw/rope/test/good", tmp_path / "good")
    spoil(tmp_path / "good/xyz/000.tiff")
    assert _predict(work, "--input", tmp_path) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2, 5, 20, LEAST_POINTS - 1])
def test_a_preprocessed_part_of_too_few_points_is_not_judged(work, tmp_path, capsys, count):
    shutil.copytree(work / "ready/rope/test/good", tmp_path / "good")
    _points_left(count)(tmp_path / "good/xyz/000.tiff")
    assert _predict(work, "--input", tmp_path, "--preprocessed") == 1
    shown = re.search(r"000.tiff: shows (\d+) points of the part, 128 are the least", capsys.readouterr().err)
    assert int(shown[1]) <= count


@pytest.mark.parametrize("form", ["raw", "ready"])
@pytest.mark.parametrize(("unit", "scale"), [("m", 1000), ("mm", 1)])
def test_a_part_in_another_unit_than_the_flag_says_is_not_judged(work, tmp_path, capsys, form, unit, scale):
    shutil.copytree(work / form / "rope/test/good", tmp_path / "good")
    xyz = tmp_path / "good/xyz/000.tiff"
    write_xyz(xyz, read_xyz(xyz) * np.float32(scale))
    flags = ["--unit", unit, *(["--preprocessed"] if form == "ready" else [])]
    assert _predict(work, "--input", tmp_path, *flags) == 1
    assert "where no part lies; is it in the unit that --unit says?" in capsys.readouterr().err
    assert _predict(work, "--input", tmp_path, *flags, "--unit", "mm" if unit == "m" else "m") == 0


@pytest.mark.parametrize(
    ("folder", "flags", "message"),
    [("raw", ["--preprocessed"], "does not look preprocessed"), ("ready", [], "add --preprocessed")],
)
def test_parts_of_the_wrong_form_are_not_judged(work, capsys, folder, flags, message):
    assert _predict(work, "--input", work / folder / "rope/test/good", *flags) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "name the parts"),
        (["--rgb", "a.png"], "--xyz must name its cloud"),
        (["--input", "a", "--watch", "b"], "name the parts"),
    ],
)
def test_contradicting_flags_exit_with_2(work, capsys, flags, message):
    with pytest.raises(SystemExit) as ended:
        _predict(work, *flags)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--input", "nowhere"], ["--watch", "nowhere"]])
def test_a_missing_folder_is_one_line(work, capsys, flags):
    assert _predict(work, *flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "predict.py: error: nowhere: no such folder"


def test_other_weights_than_the_detectors_are_refused(work, tmp_path, capsys):
    flags = ["--detector", str(work / "detectors/rope.m3dm"), "--input", str(work / "raw")]
    assert predict.main([*flags, "--checkpoint_dir", str(tmp_path)]) == 1
    assert "dino_deitsmall8_pretrain.pth: no such file" in capsys.readouterr().err


def test_watch_judges_what_arrives_and_waits_for_files_that_grow(work, tmp_path):
    incoming, out = tmp_path / "incoming", tmp_path / "out"
    incoming.mkdir()
    command = [
        sys.executable,
        "predict.py",
        "--detector",
        str(work / "detectors/rope.m3dm"),
        "--random_weights",
    ]
    command += ["--device", "cpu", "--watch", str(incoming), "--output", str(out), "--poll_seconds", "0.3"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout.readline().startswith("watching")
        raw = work / "raw/rope/test/good"
        shutil.copy(raw / "rgb/000.png", incoming / "first.png")
        content = (raw / "xyz/000.tiff").read_bytes()
        with (incoming / "first.tiff").open("wb") as file:
            for i in range(6):  # a slow writer
                file.write(content[i * len(content) // 6 : (i + 1) * len(content) // 6])
                file.flush()
                os.utime(incoming / "first.tiff")
                time.sleep(0.15)
        assert process.stdout.readline().startswith("first: ")
        write_png(incoming / "second.png", read_rgb(raw / "rgb/000.png"))
        write_xyz(incoming / "second.tiff", read_xyz(raw / "xyz/000.tiff"))
        assert process.stdout.readline().startswith("second: ")
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 0
    finally:
        process.kill()
        process.stdout.close()
    assert set(_report(out)) == {"first", "second"}
    assert [path.name for path in out.rglob(".*")] == [LOCK_NAME]


def _part_in(folder: Path, work: Path, stem: str = "000") -> Path:
    """A folder with one good raw part in it."""
    source = work / "raw/rope/test/good"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "rgb/000.png", folder / f"{stem}.png")
    shutil.copy(source / "xyz/000.tiff", folder / f"{stem}.tiff")
    return folder


def test_watch_ended_by_sigterm_leaves_its_report(work, tmp_path, monkeypatch):
    looks = iter(range(10))
    monkeypatch.setattr(
        predict.time, "sleep", lambda _: next(looks) < 2 or os.kill(os.getpid(), signal.SIGTERM)
    )
    assert _predict(work, "--watch", _part_in(tmp_path / "in", work), "--output", tmp_path / "out") == 143
    assert list(_report(tmp_path / "out")) == ["000"]
    assert (tmp_path / "out/report.html").is_file()


class TestOutput:
    @pytest.mark.parametrize("flag", ["--input", "--watch"])
    @pytest.mark.parametrize(
        ("parts", "output"), [("a", "a"), ("a", "a/out"), ("a/clouds", "a"), ("a", "link/out")]
    )
    def test_a_folder_that_overlaps_with_the_parts_is_refused(
        self, work, tmp_path, capsys, flag, parts, output
    ):
        _part_in(tmp_path / parts, work)
        (tmp_path / "link").symlink_to(tmp_path / "a")
        before = sorted(tmp_path.rglob("*"))
        assert _predict(work, flag, tmp_path / parts, "--output", tmp_path / output) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "overlaps with the parts' folder" in line
        assert sorted(tmp_path.rglob("*")) == before

    @pytest.mark.parametrize("name", ["report.csv", "report.html", "maps/000.tiff", "clouds/other.ply"])
    def test_a_folder_with_files_that_we_did_not_write_is_refused(self, work, tmp_path, capsys, name):
        theirs = tmp_path / "out" / name
        theirs.parent.mkdir(parents=True)
        theirs.write_text("theirs")
        for _ in range(2):
            assert (
                _predict(work, "--input", _part_in(tmp_path / "in", work), "--output", tmp_path / "out") == 1
            )
            assert "was not written by predict.py" in capsys.readouterr().err
        assert theirs.read_text() == "theirs"

    @pytest.mark.parametrize("kind", ["maps", "clouds"])
    def test_a_part_s_own_file_is_never_replaced_or_removed(self, work, tmp_path, capsys, kind):
        source, out = _part_in(tmp_path / "in", work), tmp_path / "out"
        assert _predict(work, "--input", source, "--output", out) == 0
        xyz = out / kind / f"000{KINDS[kind]}"
        if kind == "maps":
            shutil.copy(source / "000.tiff", xyz)
        else:
            write_ply(xyz, read_xyz(source / "000.tiff"))
        content = xyz.read_bytes()
        assert _predict(work, "--rgb", source / "000.png", "--xyz", xyz, "--output", out) == 1
        assert "is the file of a part, and would be replaced" in capsys.readouterr().err
        assert xyz.read_bytes() == content

    def test_an_earlier_report_stays_until_there_is_a_new_row(self, work, tmp_path):
        out = tmp_path / "out"
        assert _predict(work, "--input", _part_in(tmp_path / "in", work), "--output", out) == 0
        before = {name: (out / name).read_bytes() for name in ("report.csv", "report.html")}
        (tmp_path / "empty").mkdir()
        assert _predict(work, "--input", tmp_path / "empty", "--output", out) == 1
        assert {name: (out / name).read_bytes() for name in before} == before
        assert _predict(work, "--input", _part_in(tmp_path / "other", work, "111"), "--output", out) == 0
        assert list(_report(out)) == ["111"]

    def test_a_part_without_a_row_has_no_pictures(self, work, tmp_path, monkeypatch):
        def full(path, row, mode="ab"):
            if mode == "ab":
                raise OSError("No space left on device")
            append_row(path, row, mode)

        monkeypatch.setattr(verdicts, "append_row", full)
        assert _predict(work, "--input", _part_in(tmp_path / "in", work), "--output", tmp_path / "out") == 1
        files = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
        assert sorted(files) == [LOCK_NAME, "report.csv"]

    @pytest.mark.skipif(os.name != "posix", reason="a full disk is made with a limit of file sizes")
    def test_a_row_that_does_not_fit_leaves_no_piece(self, tmp_path):
        import resource

        path = tmp_path / "report.csv"
        append_row(path, ["a", 1], "wb")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        try:
            with pytest.raises(OSError, match=r"report.csv: can't be written"):
                append_row(path, ["b", 12345678])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == b"a,1\r\n"

    @pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
    def test_a_name_that_is_no_utf_8_is_shown_with_escapes(self, work, tmp_path, capsys):
        source = _part_in(tmp_path / "in", work, os.fsdecode(b"M\xfcller"))
        _part_in(source, work, "other")
        assert _predict(work, "--input", source, "--output", tmp_path / "out") == 0
        assert "M\\udcfcller: " in capsys.readouterr().out
        assert set(_report(tmp_path / "out")) == {"M\\udcfcller", "other"}
        assert (tmp_path / "out/report.html").read_text(encoding="utf-8").count("<img") == 2


class TestRules:
    VALUES = np.array([1.0, 2.0, 3.0, 10.0])

    @pytest.mark.parametrize(("rule", "threshold"), [("max", 10.0), ("quantile:0.5", 2.5), ("sigma:0", 4.0)])
    def test_threshold(self, rule, threshold):
        assert ThresholdRule(rule).threshold(self.VALUES) == threshold

    @pytest.mark.parametrize(
        "rule", ["median", "max:1", "quantile", "quantile:0", "quantile:x", "sigma:inf", ""]
    )
    def test_unknown_rules_are_refused(self, rule):
        with pytest.raises(ValueError, match="--threshold_rule"):
            ThresholdRule(rule)

    def test_the_calibrated_score_is_half_at_the_threshold_and_rises(self):
        scores = [Score(value, np.full((4, 4), value, np.float32)) for value in self.VALUES * 1e-6]
        calibration = Calibration.of(scores, ThresholdRule(), "validation/good")
        assert calibration.calibrated(scores[-1]) == 0.5
        assert not calibration.is_anomalous(scores[-1])
        found = [
            calibration.calibrated(Score(value, scores[0].map)) for value in np.linspace(-1e-3, 1e-3, 99)
        ]
        assert (np.diff(found) > 0).all()
        assert 0 < found[0] < 0.5 < found[-1] < 1
        assert json.loads(json.dumps(calibration.as_dict())) == calibration.as_dict()

    def test_equal_held_out_scores_leave_a_calibrated_score(self):
        scores = [Score(0.0, np.zeros((2, 2), np.float32))] * 3
        calibration = Calibration.of(scores, ThresholdRule(), "validation/good")
        assert calibration.calibrated(Score(1.0, scores[0].map)) > 0.5
        assert calibration.warning() is not None


def test_holdout_takes_a_seeded_share_and_leaves_the_rest():
    samples = list(range(40))
    rest, held = held_out_apart(samples, 0.1, seed=3)
    assert len(held) == 4
    assert sorted(rest + held) == samples
    assert held_out_apart(samples, 0.1, seed=3)[1] == held
    assert held_out_apart(samples, 0.1, seed=4)[1] != held
    assert held_out_apart(samples, 0.0, seed=3) == (samples, [])
