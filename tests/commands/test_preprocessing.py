"""Preprocessing of a data set: runs that are cut, repeated, in parallel, or meet files that can't be used."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reference.preprocessing import make_scene
from utils.image_files import read_mask, read_rgb, read_xyz, write_png, write_xyz
from utils.preprocess.driver import Summary, describe
from utils.preprocess.record import RECORD_NAME, RecordError, open_record
from utils.preprocess.sample import Parameters, pad_to_square, preprocess_sample
from utils.preprocessing import find_samples, main, preprocess_dataset

SCRIPT = Path(__file__).resolve().parents[2] / "utils" / "preprocessing.py"
NAMES = ["bagel/test/cut/000", "bagel/test/good/000", "bagel/train/good/000", "bagel/train/good/001"]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Four small samples; the folder's name holds "xyz", which paths built by replacing that would stumble over."""
    root = tmp_path / "data_xyz_rgb"
    for number, name in enumerate(NAMES):
        folder, stem = (root / name).parent, (root / name).name
        cloud, image, part = make_scene(60, 95, np.random.default_rng(number), stray_blob=number == 1)
        write_xyz(folder / "xyz" / f"{stem}.tiff", cloud)
        write_png(folder / "rgb" / f"{stem}.png", image)
        if "/test/" in name:
            code = 253 if "/cut/" in name else 0
            write_png(folder / "gt" / f"{stem}.png", np.where(part, code, 0).astype(np.uint8))
    (root / "bagel" / "calibration").mkdir()
    (root / "bagel" / "calibration" / "camera_parameters.json").write_text("{}")
    return root


def _run(root: Path, target: Path | None = None, num_workers: int = 1, **parameters: Any) -> Summary:
    return preprocess_dataset(root, target or root, Parameters(**parameters), num_workers, progress=False)


def _contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_run_in_place_equals_run_into_a_copy_which_leaves_the_source_alone(dataset: Path) -> None:
    before, copy = _contents(dataset), dataset.parent / "copy"
    assert _run(dataset, copy).done == 4
    assert _contents(dataset) == before
    _run(dataset)
    assert _contents(dataset) == _contents(copy)
    assert "bagel/calibration/camera_parameters.json" in _contents(copy)
    assert set(_contents(copy)) == {*before, RECORD_NAME}


def test_files_hold_what_the_sample_function_gives_and_gt_codes_are_kept(dataset: Path) -> None:
    cloud, image, part = make_scene(60, 95, np.random.default_rng(0))
    seeded = np.random.default_rng([0, *NAMES[0].encode()])
    new_cloud, new_image, _ = preprocess_sample(cloud, image, Parameters(), seeded)
    _run(dataset)
    folder = dataset / "bagel" / "test" / "cut"
    np.testing.assert_array_equal(read_xyz(folder / "xyz" / "000.tiff"), new_cloud)
    np.testing.assert_array_equal(read_rgb(folder / "rgb" / "000.png"), new_image)
    np.testing.assert_array_equal(
        read_mask(folder / "gt" / "000.png"), pad_to_square(np.where(part, 253, 0).astype(np.uint8))
    )
    assert not (dataset / "bagel" / "train" / "good" / "gt").exists()


def test_result_does_not_depend_on_the_number_of_workers(dataset: Path) -> None:
    copies = [dataset.parent / "one", dataset.parent / "two"]
    for num_workers, copy in enumerate(copies, start=1):
        _run(dataset, copy, num_workers)
    assert _contents(copies[0]) == _contents(copies[1])


def test_second_run_does_nothing(dataset: Path) -> None:
    first = _run(dataset)
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*") if path.name != RECORD_NAME}
    second = _run(dataset)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (second.done, second.done_before, second.reports) == (0, 4, first.reports)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.mark.parametrize("step", range(20))
def test_run_cut_at_any_step_and_repeated_gives_the_same_bytes(
    step: int, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = dataset.parent / "uncut"
    shutil.copytree(dataset, copy)
    _run(copy)
    left = iter(range(step))

    def or_die(function: Any) -> Any:
        def step_or_die(*args: Any) -> Any:
            if next(left, None) is None:
                raise Killed
            return function(*args)

        return step_or_die

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", or_die(os.fsync))
        patch.setattr(Path, "replace", or_die(Path.replace))
        with pytest.raises(Killed):
            _run(dataset)
    _run(dataset)
    assert _contents(dataset) == _contents(copy)


def _make_work_for_a_while(dataset: Path) -> None:
    """More samples, so that a run of them can be met at work."""
    for number in range(2, 30):
        for kind, suffix in (("xyz", "tiff"), ("rgb", "png")):
            folder = dataset / "bagel" / "train" / "good" / kind
            shutil.copy(folder / f"000.{suffix}", folder / f"{number:03}.{suffix}")


def _wait_for_the_first_samples(process: subprocess.Popen, dataset: Path) -> None:
    record = dataset / RECORD_NAME
    while process.poll() is None and not (record.exists() and record.read_bytes().count(b"\n") > 3):
        time.sleep(0.005)


def test_run_killed_with_its_workers_at_work_can_be_repeated(dataset: Path) -> None:
    _make_work_for_a_while(dataset)
    copy = dataset.parent / "uncut"
    shutil.copytree(dataset, copy)
    _run(copy)
    with subprocess.Popen(
        [sys.executable, SCRIPT, dataset, "--num_workers", "2"], stderr=subprocess.DEVNULL
    ) as process:
        _wait_for_the_first_samples(process, dataset)
        process.send_signal(signal.SIGKILL)
    _run(dataset)
    assert _contents(dataset) == _contents(copy)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_stopped_workers_of_a_killed_run_do_not_keep_the_next_one_waiting(dataset: Path) -> None:
    _make_work_for_a_while(dataset)
    copy = dataset.parent / "uncut"
    shutil.copytree(dataset, copy)
    _run(copy)
    command = [sys.executable, SCRIPT, dataset, "--num_workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        record, task = dataset / RECORD_NAME, Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None and not (record.exists() and record.read_bytes().count(b"\n") > 3):
            time.sleep(0.005)
        workers = [int(number) for number in task.read_text().split()]
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        process.kill()
    try:
        assert len(workers) >= 2
        _run(dataset)
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        time.sleep(0.01)
    _run(dataset)
    assert _contents(dataset) == _contents(copy)


def test_sigterm_is_one_line_and_leaves_no_parts(dataset: Path) -> None:
    _make_work_for_a_while(dataset)
    command = [sys.executable, SCRIPT, dataset, "--num_workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        _wait_for_the_first_samples(process, dataset)
        process.terminate()
        assert process.stderr is not None
        said = process.stderr.read().splitlines()
    assert process.returncode == 143
    assert said[-1] == "ended by SIGTERM; the same command continues where this run stopped"
    assert all(line.startswith("preprocessed: ") for line in said[:-1])
    assert not list(dataset.rglob("*.part"))


def test_torn_last_line_of_the_record_is_forgotten(dataset: Path) -> None:
    copy = dataset.parent / "copy"
    _run(dataset, copy)
    expected, record = _contents(copy), copy / RECORD_NAME
    record.write_bytes(record.read_bytes()[:-20])
    assert _run(dataset, copy).done == 1
    assert _contents(copy) == expected


def test_other_parameters_are_refused_with_the_remedy(dataset: Path) -> None:
    _run(dataset)
    before = _contents(dataset)
    with pytest.raises(RecordError, match=r"cluster_eps 0.006 \(now 0.007\).*unpack the data set anew"):
        _run(dataset, cluster_eps=0.007)
    assert _contents(dataset) == before


def test_parameters_of_a_run_that_finished_no_sample_do_not_bind(dataset: Path) -> None:
    with open_record(dataset, {"seed": 5}):
        pass
    assert _run(dataset).done == 4
    assert json.loads((dataset / RECORD_NAME).read_text().splitlines()[0])["seed"] == 0


def test_original_files_put_back_are_noticed(dataset: Path) -> None:
    originals = _contents(dataset)
    _run(dataset)
    path = dataset / "bagel/train/good/rgb/001.png"
    path.write_bytes(originals["bagel/train/good/rgb/001.png"])
    with pytest.raises(RecordError, match=r"001.png: missing or changed.*delete their lines"):
        _run(dataset)


def test_classes_removed_after_preprocessing_do_no_harm(dataset: Path) -> None:
    _run(dataset)
    shutil.rmtree(dataset / "bagel" / "train")
    summary = _run(dataset)
    assert (summary.done, summary.done_before) == (0, 2)


def test_damaged_record_is_an_error(dataset: Path) -> None:
    (dataset / RECORD_NAME).write_text("no json\n")
    with pytest.raises(RecordError, match="damaged"):
        _run(dataset)


def test_two_runs_at_once_are_refused(dataset: Path) -> None:
    with open_record(dataset, {}), pytest.raises(RecordError, match="another run"):
        _run(dataset)


def test_bad_files_are_named_and_left_and_the_others_go_on(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cut, lonely = dataset / "bagel/test/cut/xyz/000.tiff", dataset / "bagel/train/good/rgb/001.png"
    cut.write_bytes(cut.read_bytes()[:1000])
    lonely.unlink()
    write_png(dataset / "bagel/test/good/gt/000.png", np.zeros((60, 94), dtype=np.uint8))
    monkeypatch.setattr(sys, "argv", ["preprocessing.py", str(dataset), "--num_workers", "2"])
    assert main() == 1
    captured = capsys.readouterr()
    assert "Samples: done now 1, done before 0, failed 3" in captured.out
    for text in (f"failed: {cut}: ", f"failed: {lonely}: can't be read", "gt/000.png: has (60, 94) pixels"):
        assert text in captured.err
    assert len(cut.read_bytes()) == 1000
    write_png(lonely, make_scene(60, 95, np.random.default_rng(3))[1])
    assert _run(dataset).done == 1, "what was repaired is done by the next run"


def test_full_disk_stops_the_run(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    monkeypatch.setattr(sys, "argv", ["preprocessing.py", str(dataset), "--num_workers", "1"])
    assert main() == 1
    assert "No space left on device" in capsys.readouterr().err


def test_killed_worker_is_an_error_with_the_remedy(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lose_worker(*args: Any, **options: Any) -> Any:
        raise BrokenProcessPool

    monkeypatch.setattr(ProcessPoolExecutor, "map", lose_worker)
    monkeypatch.setattr(sys, "argv", ["preprocessing.py", str(dataset), "--num_workers", "2"])
    assert main() == 1
    assert "the same command continues" in capsys.readouterr().err


def test_folder_without_samples_is_an_error_with_a_remedy(dataset: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"looks like one class: name {dataset}"):
        find_samples(dataset / "bagel")
    with pytest.raises(FileNotFoundError, match="no samples such as"):
        find_samples(dataset / "nowhere")


def test_output_inside_the_data_set_is_refused(dataset: Path) -> None:
    with pytest.raises(ValueError, match="lies inside the data set"):
        _run(dataset, dataset / "preprocessed")


def test_output_folder_that_is_a_file_is_refused_by_name(dataset: Path) -> None:
    target = dataset.parent / "taken"
    target.write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="taken: is a file; name a folder"):
        _run(dataset, target)


def test_summary_names_oddities(dataset: Path) -> None:
    text = describe(_run(dataset))
    assert "several clusters (1):\n  bagel/test/good/000: 2 clusters" in text


def test_script_runs_from_any_folder_without_torch_and_open3d(dataset: Path) -> None:
    code = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['open3d'] = None; "
        f"sys.argv = ['preprocessing.py', {str(dataset)!r}, '--num_workers', '2']; "
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=dataset.parent, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "done now 4," in result.stdout


def test_images_of_another_ending_are_named(dataset: Path) -> None:
    stray = next(iter(sorted(dataset.glob("*/train/good/rgb")))) / "099.PNG"
    stray.write_bytes(b"")
    assert str(stray) in _run(dataset).errors[0]


@pytest.mark.parametrize(("name", "value"), [("plane_draw_size", 2), ("cluster_eps", float("inf"))])
def test_parameters_that_find_nothing_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"--{name}"):
        Parameters(**{name: value})
