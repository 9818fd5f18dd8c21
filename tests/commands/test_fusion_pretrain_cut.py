"""fusion_pretrain.py cut short: full disks, Ctrl-C, kills, and errors under a launcher."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

import fusion_pretrain
from tests.synthetic_features import write_toy_store
from utils.files import alone_with

ROOT = Path(__file__).parents[2]
WAIT_S = 60
USAGE = namedtuple("USAGE", "total used free")


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_toy_store(tmp_path_factory.mktemp("features"), 7)


def _flags(features, output, more=""):
    paths = f"--data_path {features} --output_dir {output} --log_dir {output}"
    return f"{paths} --num_workers 0 --device cpu --lr 0.003 --batch_size 2 {more}".split()


def _train(features, output, more=""):
    fusion_pretrain.main(fusion_pretrain.get_args_parser().parse_args(_flags(features, output, more)))


def _start(command, **options):
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def _fail_from_the_second_write(monkeypatch):
    write_bytes, calls = Path.write_bytes, []

    def full_disk(path, content):
        calls.append(path)
        if len(calls) > 1:
            write_bytes(path, content[:1000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", full_disk)


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(features, tmp_path, monkeypatch, capsys):
    _fail_from_the_second_write(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["fusion_pretrain.py", *_flags(features, tmp_path, "--epochs 3")])
    assert fusion_pretrain.run() == 1
    *_, line = capsys.readouterr().err.splitlines()  # after the progress
    assert "checkpoint-1.pth: can't be written ([Errno 28]" in line
    assert line.endswith(f"repeat the command with --resume {tmp_path}/checkpoint-0.pth to continue")
    assert [path.name for path in tmp_path.glob("*.pth")] == ["checkpoint-0.pth"]
    assert torch.load(tmp_path / "checkpoint-0.pth", weights_only=False)["epoch"] == 0
    assert [path.name for path in tmp_path.glob(".*")] == [fusion_pretrain.LOCK_NAME]


def test_a_disk_without_room_for_a_checkpoint_is_found_before_the_training(features, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: USAGE(10**9, 10**9, 10_000))
    with pytest.raises(OSError, match=r"--output_dir .*: a checkpoint needs 0\.\d+ MB, 0 MB are free"):
        _train(features, tmp_path)
    assert not list(tmp_path.glob("*.pth"))


def test_checkpoints_that_will_not_all_fit_are_warned_of(features, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: USAGE(10**9, 10**9, 700_000))
    _train(features, tmp_path, "--epochs 3")
    said = capsys.readouterr().out
    assert "3 checkpoints of 0." in said
    assert "warning: only 2 of them fit; use a larger --save_every" in said


def test_ctrl_c_is_one_line_with_the_way_to_continue(features, tmp_path):
    command = ["fusion_pretrain.py", *_flags(features, tmp_path, "--epochs 100000 --save_every 3")]
    process = _start([*command, "--num_workers", "2"], start_new_session=True)
    end = time.monotonic() + WAIT_S
    while not (tmp_path / "checkpoint-2.pth").exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    last = errors.splitlines()[-1]
    assert last.startswith("fusion_pretrain.py: interrupted; repeat the command with --resume ")
    assert Path(last.split()[-3]).is_file()
    assert "Traceback" not in errors


def test_ctrl_c_before_the_first_checkpoint_says_so(features, tmp_path, monkeypatch, capsys):
    import models.uff.engine

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(models.uff.engine, "train_one_epoch", interrupted)
    monkeypatch.setattr(sys, "argv", ["fusion_pretrain.py", *_flags(features, tmp_path)])
    assert fusion_pretrain.run() == 130
    assert capsys.readouterr().err == (
        "fusion_pretrain.py: interrupted; no checkpoint was written yet, so repeat the command to begin again\n"
    )


@pytest.mark.parametrize("launcher", ["launch --nproc_per_node=1", "run --standalone --nproc_per_node=2"])
def test_an_error_is_the_last_thing_that_a_launcher_says(tmp_path, launcher):
    features = write_toy_store(tmp_path / "features", 4)
    path = features / "bagel_003.npz"
    path.write_bytes(path.read_bytes().replace(b"xyz_row.npy", b"xyz_raw.npy"))
    flags = _flags(features, tmp_path, "--holdout 0 --batch_size 1")
    process = _start(
        [
            "-m",
            f"torch.distributed.{launcher.split()[0]}",
            *launcher.split()[1:],
            "fusion_pretrain.py",
            *flags,
        ]
    )
    _, errors = process.communicate(timeout=2 * WAIT_S)
    assert process.returncode != 0
    lines = [line for line in errors.splitlines() if line.strip("= -")]
    assert lines[-1].strip().startswith(f"traceback : fusion_pretrain.py: error: {path}: ")
    own = [line for line in lines if line.startswith("fusion_pretrain.py: error: ")]
    assert len(own) == 1


def _epochs(folder):
    return [
        json.loads(line)["epoch"] for line in (folder / "log.txt").read_text(encoding="utf-8").splitlines()
    ]


def test_a_run_cut_between_log_and_checkpoint_has_each_epoch_once_in_the_log(features, tmp_path):
    _train(features, tmp_path, "--epochs 3")
    with (tmp_path / "log.txt").open("a", encoding="utf-8") as file:
        file.write('{"epoch": 3, "tra')  # killed in the middle of a line
    (tmp_path / "checkpoint-2.pth").unlink()
    _train(features, tmp_path, f"--epochs 4 --resume {tmp_path / 'checkpoint-1.pth'}")
    assert _epochs(tmp_path) == [0, 1, 2, 3]
    _train(features, tmp_path, "--epochs 1")
    assert _epochs(tmp_path) == [0]


def test_lines_of_others_stay_in_the_log(features, tmp_path):
    (tmp_path / "log.txt").write_text("mine\n[1]\n{}\n", encoding="utf-8")
    _train(features, tmp_path, "--epochs 1")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").startswith('mine\n[1]\n{}\n{"epoch": 0')


def test_a_second_training_into_the_same_folder_is_refused_while_one_is_at_work(features, tmp_path):
    with (
        alone_with(tmp_path / fusion_pretrain.LOCK_NAME, "taken"),
        pytest.raises(OSError, match=r"--output_dir .*: another training is writing there"),
    ):
        _train(features, tmp_path)
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.skipif(sys.platform == "win32", reason="kills")
def test_training_processes_end_with_a_launcher_that_was_killed(features, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "fusion_pretrain.py"]
    process = _start([*launcher, *_flags(features, tmp_path, "--epochs 100000 --save_every 10")])
    end = time.monotonic() + WAIT_S
    while not list(tmp_path.glob("*.pth")) and time.monotonic() < end:
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=WAIT_S)  # the pipes close when the last of the processes has ended
    with alone_with(tmp_path / fusion_pretrain.LOCK_NAME, "still held"):
        pass


def test_a_resume_on_other_features_is_warned_of(features, tmp_path, capsys):
    other = Path(shutil.copytree(features, tmp_path / "other"))
    file = sorted(other.glob("*.npz"))[0]
    with np.load(file) as stored:
        np.savez(tmp_path / "changed.npz", **{**stored, "rgb": stored["rgb"][::-1]})
    (tmp_path / "changed.npz").replace(file)
    _train(features, tmp_path / "out", "--epochs 1")
    resumed = f"--epochs 2 --resume {tmp_path / 'out/checkpoint-0.pth'}"
    capsys.readouterr()
    _train(features, tmp_path / "same", resumed)
    assert "warning" not in capsys.readouterr().err
    _train(other, tmp_path / "different", resumed)
    assert f"checkpoint-0.pth was trained on other features than {other} holds" in capsys.readouterr().err
