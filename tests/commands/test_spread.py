"""Several processes share a run of main.py: the files are those of one process, and a lost process is named."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation import team as team_module
from evaluation.at_work import AtWork, _is_locked
from evaluation.finish import VariantRun
from evaluation.options import ClassOptions, RunOptions, Variant
from evaluation.run import _check_equal
from evaluation.team import Team, shares
from tests.conftest import write_class
from tests.tiny_runs import SMALL, VIT_S, all_files, run_main
from utils.files import try_lock
from utils.image_files import write_xyz
from utils.observer import Observer
from utils.results import ResultsFolder

ROOT = Path(__file__).parents[2]
TIMES = ("seconds", "memory_mb", "peak_memory_mb")


@contextmanager
def _started(size: int, data: Path, results: Path, *flags: str) -> Iterator[list[subprocess.Popen]]:
    """The processes of one run, as a launcher starts them; none lives on after the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = ["--dataset_path", str(data), "--results_dir", str(results)]
    command = [sys.executable, "main.py", *folders, *SMALL, *VIT_S, "--random_weights", *flags]
    world = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _contents(results: Path) -> dict[str, object]:
    """All files; of those that hold times what they hold besides."""
    found: dict[str, object] = {}
    for name in all_files(results):
        content = (results / name).read_bytes()
        if name == "report.html":
            continue
        found[name] = _without_times(json.loads(content)) if name.endswith(".json") else content
    return found


def _without_times(value):
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in TIMES}
    return value


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three classes of different sizes; in the last one a training and a test sample can't be used."""
    root = tmp_path_factory.mktemp("data")
    for name, train, good, bad in (("bagel", 3, 2, 2), ("rope", 2, 2, 1), ("tire", 5, 3, 8)):
        write_class(root, name, train=train, good=good, bad=bad)
    for path in ("train/good/xyz/001.tiff", "test/hole/xyz/001.tiff"):
        write_xyz(root / "tire" / path, np.zeros((40, 40, 3), np.float32))
    return root


@pytest.mark.parametrize(
    ("size", "flags"),
    [
        (2, ["--method_name", "DINO+Point_MAE", "--save_preds"]),
        (
            3,
            [
                "--method_name",
                "DINO+Point_MAE+Fusion",
                "--use_uff",
                "--class_name",
                "tire",
                "--batch_size",
                "2",
            ],
        ),
    ],
    ids=["two processes, three classes", "three processes, one class"],
)
def test_several_processes_write_what_one_writes(data, tmp_path, size, flags):
    store = ["--save_feature", "--save_feature_path"]
    method, rest = flags[1], flags[2:]
    assert run_main(data, tmp_path / "one", method, *rest, *store, str(tmp_path / "features")) == 0
    features = _contents((tmp_path / "features").rename(tmp_path / "features of one"))
    with _started(size, data, tmp_path / "more", *flags, *store, str(tmp_path / "features")) as processes:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    assert _contents(tmp_path / "one") == _contents(tmp_path / "more")
    assert features == _contents(tmp_path / "features")
    skipped = json.loads((tmp_path / "more/results.json").read_text())["classes"]["tire"]["skipped_samples"]
    assert [sample["path"] for sample in skipped] == ["train/good/rgb/001.png", "test/hole/rgb/001.png"]


def test_what_fails_between_the_steps_of_a_team_fails_the_class_in_all_of_them(tmp_path):
    root = tmp_path / "data"
    write_class(root, "tire", validation=1)
    write_xyz(root / "tire/validation/good/xyz/000.tiff", np.zeros((40, 40, 3), np.float32))
    flags = ["--method_name", "FPFH", "--save_detector", str(tmp_path / "detectors")]
    with _started(2, root, tmp_path / "results", *flags) as processes:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 0], errors
    assert "tire: failed: " in errors[0]
    assert "Traceback" not in "".join(errors)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_under_torchrun_a_killed_process_is_named_by_the_others(data, tmp_path, victim):
    command = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "main.py",
        *SMALL,
        *VIT_S,
        "--random_weights",
    ]
    command += ["--method_name", "Point_MAE", "--num_group", "400", "--num_workers", "1"]
    folders = ["--dataset_path", str(data), "--results_dir", str(tmp_path)]
    launcher = subprocess.Popen(
        [sys.executable, *command, *folders],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        name = _when_at_work(tmp_path, victim)
        (process,) = (
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/environ")
            if f"\0RANK={victim}\0" in f"\0{_environment(path)}" and _parent(path) == launcher.pid
        )
        os.kill(process, signal.SIGKILL)
        _, errors = launcher.communicate(timeout=120)
    finally:
        launcher.terminate()
        launcher.communicate()
    assert f"process {victim} of 2 ended while it worked on {name}; repeat the command to go on" in errors
    assert "RuntimeError" not in errors


def _environment(path: Path) -> str:
    """Of a process; "" of one that is gone or not ours."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _parent(path: Path) -> int:
    return int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])


def test_a_process_that_dies_ends_the_run_with_its_class_named_and_the_command_goes_on(data, tmp_path):
    flags = ["--method_name", "Point_MAE", "--num_group", "400"]
    with _started(2, data, tmp_path, *flags) as processes:
        second = _when_at_work(tmp_path, rank=1)
        processes[1].send_signal(signal.SIGKILL)
        _, errors = processes[0].communicate(timeout=300)
        assert processes[0].returncode == 1
        assert f"process 1 of 2 ended while it worked on {second}; repeat the command to go on" in errors
    assert run_main(data, tmp_path, *flags[1:]) == 0
    assert sorted(json.loads((tmp_path / "results.json").read_text())["classes"]) == ["bagel", "rope", "tire"]
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".at_work")] == []


def _when_at_work(results: Path, rank: int) -> str:
    """The class that a process is at work on, as soon as it is."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        for path in results.glob(f".at_work_*/{rank}"):
            if path.read_text():
                return path.read_text()
        time.sleep(0.01)
    raise AssertionError("no process is at work")


def test_classes_go_to_processes_and_when_they_are_few_processes_to_classes():
    assert shares(3, 1) == [[(0,)], [(0,)], [(0,)]]
    assert shares(3, 2) == [[(0,), (1,)], [(0, 1)]]
    assert shares(2, 5) == [[(0, 2, 4), (1, 3)]]
    assert shares(1, 3, alone=True) == [[(0,)]]
    for classes in range(1, 12):
        for processes in range(1, 6):
            for teams in shares(classes, processes):
                assert sorted(rank for team in teams for rank in team) == list(range(processes))


class _Mailbox:
    """Stands in for torch.distributed between the places of a team, each in a thread of its own."""

    def __init__(self, monkeypatch):
        self._of = {1: queue.Queue(maxsize=1), 2: queue.Queue(maxsize=1)}
        self._here = threading.local()
        monkeypatch.setattr(team_module.dist, "send_object_list", self._send)
        monkeypatch.setattr(team_module.dist, "recv_object_list", self._receive)

    def _send(self, message, _to, _group):
        self._of[self._here.place].put(message[0], timeout=20)

    def _receive(self, message, rank, _group):
        message[0] = self._of[rank].get(timeout=20)

    def run(self, items, work):
        """Results, or the error, of each place."""

        def of_place(place):
            self._here.place = place
            team = Team((0, 1, 2), place)
            try:
                return list(team.in_order(items, work, team.observer(Observer())))
            except ValueError as error:
                return str(error)

        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(of_place, range(3)))


@pytest.mark.parametrize("bad", [0, 1, 5, 10])
def test_an_error_in_any_process_ends_the_class_and_nobody_waits(monkeypatch, bad):
    def work(items):
        for item in items:
            if item == bad:
                raise ValueError(f"item {item}")
            yield item

    assert _Mailbox(monkeypatch).run(range(11), work)[0] == f"item {bad}"
    assert _Mailbox(monkeypatch).run(range(20, 31), work) == [list(range(20, 31)), [], []]


def test_a_process_that_would_do_another_run_is_refused(tmp_path, monkeypatch):
    def check(seed: int = 0, **changes: object) -> None:
        options = replace(RunOptions(tmp_path, tmp_path, tmp_path, "DINO"), **changes)
        runs = [
            VariantRun(variant, None, ResultsFolder(tmp_path, {"settings": {"seed": seed}}))
            for variant in options.variants
        ]
        _check_equal(options, runs, Team((0, 1), 1))

    told = []
    monkeypatch.setattr(Team, "from_leader", lambda self, make: (told.append(make()), told[0])[1])
    check()
    check(device="cuda:1", num_workers=3, checkpoint_dir=tmp_path / "other")
    with pytest.raises(ValueError, match="1 has other settings than process 0; start all processes with"):
        check(seed=1)
    with pytest.raises(ValueError, match="process 1 has other results_dir than process 0"):
        check(results_dir=tmp_path / "other")
    with pytest.raises(ValueError, match="process 1 has other each_class than process 0"):
        check(each_class=ClassOptions(save_preds=True))
    with pytest.raises(ValueError, match="process 1 has other variants, settings than process 0"):
        check(variants=(Variant(shake_seed=0), Variant(shake_seed=1)))


def test_what_a_killed_run_left_of_its_roll_goes_and_a_living_one_keeps_its(tmp_path):
    for name in ("left", "living"):
        (tmp_path / f".at_work_{name}").mkdir()
        (tmp_path / f".at_work_{name}/0").write_text("bagel")
    with (tmp_path / ".at_work_living/0").open("a") as file:
        assert try_lock(file)
        with AtWork.announced(tmp_path, Team()) as at_work:
            at_work.on("rope")
            at_work.done()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".at_work_living", ".locks"]


def test_two_who_ask_at_once_both_see_that_a_process_is_gone(tmp_path):
    (tmp_path / "0").write_text("bagel")
    with (tmp_path / "0").open() as file:
        assert try_lock(file, shared=True)
        assert not _is_locked(tmp_path / "0")
    with (tmp_path / "0").open("a") as file:
        assert try_lock(file)
        assert _is_locked(tmp_path / "0")


def test_alone_a_team_does_everything_in_order():
    team = Team()
    assert list(team.in_order([3, 1, 2], iter, observer=None)) == [3, 1, 2]
    assert team.from_leader(lambda: 5) == 5
