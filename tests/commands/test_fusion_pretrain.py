"""fusion_pretrain.py as its users run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fusion_pretrain
from models.checkpoints import CheckpointError
from models.uff.block import load_fusion_block
from models.uff.pairing import paired_rgb
from tests.synthetic_features import write_toy_store
from utils.files import TEMPORARY_PREFIX

ROOT = Path(__file__).parents[2]
PUBLISHED = (
    "--accum_iter 16 --epoch 5 --lr 0.003 --batch_size 16 "
    "--data_path datasets/patch_lib --output_dir checkpoints"
)


def _parse(text):
    return fusion_pretrain.get_args_parser().parse_args(text.split())


def _common(features, output):
    paths = f"--data_path {features} --output_dir {output} --log_dir {output}"
    return f"{paths} --num_workers 0 --device cpu --lr 0.003"


def _train(features, output, flags=""):
    fusion_pretrain.main(_parse(f"{_common(features, output)} --batch_size 2 {flags}"))
    return output


def _launch(launcher, features, output, flags):
    command = f"-m {launcher} fusion_pretrain.py {_common(features, output)} {flags}"
    done = subprocess.run(
        [sys.executable, *command.split()],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return output


def _checkpoint(folder, epoch):
    return torch.load(folder / f"checkpoint-{epoch}.pth", weights_only=False)


def _log(folder):
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The networks are tiny: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_toy_store(tmp_path_factory.mktemp("features"), 7)


def test_the_published_command_is_understood():
    args = _parse(PUBLISHED)
    assert (args.accum_iter, args.epochs, args.lr, args.batch_size) == (16, 5, 0.003, 16)
    assert (args.data_path, args.output_dir) == ("datasets/patch_lib", "checkpoints")


def test_the_defaults_are_the_released_ones():
    expected = {
        "batch_size": 64, "epochs": 3, "accum_iter": 1, "input_size": 224, "lr": None, "blr": 2e-3, "min_lr": 0,
        "warmup_epochs": 1, "data_path": "", "output_dir": "./output_dir", "log_dir": "./output_dir",
        "seed": 0, "resume": "", "start_epoch": 0, "num_workers": 10, "pin_mem": True, "world_size": 1,
        "local_rank": -1, "dist_on_itp": False, "dist_url": "env://",
    }  # fmt: skip
    assert expected.items() <= vars(_parse("")).items()
    ours = {
        "weight_decay": 0.01,
        "no_decay_bias_norm": False,
        "device": "auto",
        "amp": None,
        "max_steps": None,
    }
    assert ours.items() <= vars(_parse("")).items()


@pytest.mark.parametrize("flag", ["--local_rank 1", "--local-rank=1"])
def test_both_spellings_of_the_launchers_flag_are_understood(flag):
    assert _parse(flag).local_rank == 1


def test_help_and_wrong_flags_answer_without_importing_torch():
    code = "import sys, fusion_pretrain; fusion_pretrain.get_args_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_without_a_learning_rate_it_follows_the_effective_batch():
    assert fusion_pretrain.plan_training(_parse("--batch_size 32 --accum_iter 2"), 1, 4).schedule.lr == 2e-3


def test_training_lifts_held_out_retrieval_above_chance(features, tmp_path):
    log = _log(_train(features, tmp_path, "--max_steps 60 --warmup_steps 5 --save_every 100"))
    assert log[-1]["train_loss"] < log[0]["train_loss"]
    assert log[-1]["retrieval"] > 4 * log[-1]["retrieval_chance"]
    assert log[-1]["steps"] == 60
    assert {p.name for p in tmp_path.glob("*.pth")} == {"checkpoint-19.pth"}


def test_every_epoch_leaves_a_checkpoint_a_log_line_and_scalars(features, tmp_path, capsys):
    _train(features, tmp_path, "--epochs 2 --accum_iter 2")
    assert sorted(p.name for p in tmp_path.glob("*.pth")) == ["checkpoint-0.pth", "checkpoint-1.pth"]
    assert any(tmp_path.glob("events.out.tfevents*"))
    keys = {
        "epoch", "steps", "train_loss", "train_lr", "retrieval", "retrieval_chance", "seconds", "peak_memory_mb",
    }  # fmt: skip
    log = _log(tmp_path)
    assert all(record.keys() == keys for record in log)
    assert [record["steps"] for record in log] == [2, 4]  # 6 samples: batches 2 2 2, windows 2 1
    assert "only 4 optimiser steps" in capsys.readouterr().out


def test_every_epoch_comes_to_its_last_batch_in_a_log_file(features, tmp_path, capsys):
    _train(features, tmp_path, "--epochs 2 --accum_iter 2 --holdout 0")
    lines = capsys.readouterr().err.splitlines()
    for epoch in (0, 1):
        counts = [line.split(", ")[0] for line in lines if line.startswith(f"epoch {epoch}: ")]
        assert counts == [f"epoch {epoch}: {done} of 4 batches" for done in (1, 2, 3, 4)]


def test_checkpoints_have_the_released_layout(features, tmp_path):
    _train(features, tmp_path, "--epochs 1")
    checkpoint = _checkpoint(tmp_path, 0)
    assert checkpoint.keys() == {"model", "optimizer", "epoch", "scaler", "args"}
    assert (checkpoint["epoch"], checkpoint["args"].lr) == (0, 0.003)
    assert len(checkpoint["optimizer"]["param_groups"]) == 1
    block = load_fusion_block(tmp_path / "checkpoint-0.pth", xyz_dim=32, rgb_dim=16)
    assert torch.equal(block.rgb_head.weight, checkpoint["model"]["rgb_head.weight"])


def test_two_and_two_epochs_are_four(features, tmp_path):
    whole = _train(features, tmp_path / "whole", "--epochs 4")
    part = _train(features, tmp_path / "part", "--epochs 4")
    for epoch in (2, 3):
        (part / f"checkpoint-{epoch}.pth").unlink()
    _train(features, part, f"--epochs 4 --resume {part / 'checkpoint-1.pth'}")
    a, b = _checkpoint(whole, 3), _checkpoint(part, 3)
    assert a["epoch"] == b["epoch"] == 3
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    for i, moments in a["optimizer"]["state"].items():
        assert all(torch.equal(moments[k], b["optimizer"]["state"][i][k]) for k in moments)


def test_resuming_says_what_does_not_fit(features, tmp_path):
    path = _train(features, tmp_path, "--epochs 1") / "checkpoint-0.pth"
    with pytest.raises(CheckpointError, match="--resume"):
        _train(features, tmp_path, f"--resume {path} --no_decay_bias_norm")
    with pytest.raises(ValueError, match="--epochs"):
        _train(features, tmp_path, f"--resume {path} --epochs 1")


def test_weight_decay_changes_the_weights(features, tmp_path):
    norms = []
    for decay in (0.0, 5.0):
        output = _train(features, tmp_path / str(decay), f"--epochs 3 --weight_decay {decay}")
        norms.append(_checkpoint(output, 2)["model"]["xyz_mlp.fc1.weight"].norm())
    assert norms[1] < norms[0]


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(tmp_path):
    features = write_toy_store(tmp_path / "features", 3)
    good = _train(features, tmp_path / "out", "--epochs 1") / "checkpoint-0.pth"
    before = good.read_bytes()
    _poison(features / "bagel_002.npz")
    with pytest.raises(FloatingPointError, match=r"bagel_002\.npz"):
        _train(features, tmp_path / "out", f"--epochs 2 --resume {good}")
    assert good.read_bytes() == before
    assert [p.name for p in (tmp_path / "out").glob("*.pth")] == ["checkpoint-0.pth"]


def _poison(path):
    with np.load(path) as file:
        arrays = dict(file)
    arrays["xyz"][0] = np.inf
    np.savez(path, **arrays)


def test_wrong_settings_end_with_one_line(tmp_path):
    command = [sys.executable, "fusion_pretrain.py", "--data_path", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"fusion_pretrain.py: error: {tmp_path}: holds no features")


def test_two_processes_make_the_updates_of_one_with_twice_the_batch(features, tmp_path):
    # 5 training samples: batches of 4 and 1, which the processes share as 2 + 2 and 1 + 0
    flags = "--lr 0.001 --max_steps 3 --warmup_steps 1 --seed 1 --holdout 0.3"
    launcher = "torch.distributed.run --standalone --nproc_per_node=2"
    two = _launch(launcher, features, tmp_path / "two", f"{flags} --batch_size 2")
    one = _train(features, tmp_path / "one", f"{flags} --batch_size 4")
    for epoch in (0, 1):
        a, b = _checkpoint(one, epoch), _checkpoint(two, epoch)
        for name, value in a["model"].items():
            torch.testing.assert_close(b["model"][name], value, rtol=1e-4, atol=2e-6)
        for i, moments in a["optimizer"]["state"].items():  # these also show the size of the gradients
            torch.testing.assert_close(b["optimizer"]["state"][i], moments, rtol=1e-3, atol=1e-6)
    for alone, shared in zip(_log(one), _log(two), strict=True):
        assert shared["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-5)
        assert (shared["steps"], shared["retrieval"]) == (alone["steps"], alone["retrieval"])


def test_the_old_launcher_trains(features, tmp_path):
    _launch("torch.distributed.launch --nproc_per_node=1", features, tmp_path, "--accum_iter 16 --epoch 2")
    assert _checkpoint(tmp_path, 1)["epoch"] == 1


@pytest.mark.cuda
def test_a_gpu_trains_what_the_cpu_trains(features, tmp_path):
    for device in ("cpu", "cuda"):
        _train(features, tmp_path / device, f"--device {device} --amp none --epochs 2")
    assert (tmp_path / "cuda" / "checkpoint-1.pth").is_file()
    losses = [[line["train_loss"] for line in _log(tmp_path / device)] for device in ("cpu", "cuda")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ("--lr nan", "not a positive number"),
        ("--lr -1", "not a positive number"),
        ("--blr inf", "not a positive number"),
        ("--min_lr nan", "not a number of at least 0"),
        ("--warmup_epochs nan", "not a number of at least 0"),
        ("--warmup_steps -3", "negative"),
        ("--weight_decay -1", "not a number of at least 0"),
        ("--seed -1", "not within 0"),
        ("--num_workers -1", "negative"),
        ("--world_size 0", "not a positive whole number"),
    ],
)
def test_wrong_numbers_are_refused_with_their_flag(flags, problem, capsys):
    with pytest.raises(SystemExit):
        _parse(flags)
    flag, value = flags.split()
    assert f"argument {flag}: {value} is {problem}" in capsys.readouterr().err


def test_a_learning_rate_above_1_is_refused(features, tmp_path):
    with pytest.raises(ValueError, match=r"--lr 1e\+30: must be at most 1"):
        _train(features, tmp_path, "--lr 1e30")


def test_a_holdout_that_leaves_nothing_names_the_flag(features, tmp_path):
    with pytest.raises(ValueError, match=r"--holdout 0\.99: leaves none of the 7 samples"):
        _train(features, tmp_path, "--holdout 0.99")


def test_a_damaged_file_is_one_line_from_a_worker_too(tmp_path):
    features = write_toy_store(tmp_path / "features", 3)
    path = sorted(features.glob("*.npz"))[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 50] = bytes(50)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"not a readable \.npz file") as error:
        _train(features, tmp_path / "out", "--num_workers 1 --holdout 0")
    assert "Traceback" not in str(error.value)


def test_features_without_pairs_are_an_error(tmp_path):
    folder = tmp_path / "released"
    folder.mkdir()
    rgb = torch.randn(784, 8)[paired_rgb("colocated", 28, 56)]
    for i in range(2):
        torch.save(torch.cat([torch.zeros(3136, 1152), rgb], dim=1), folder / f"bagel{i}.pt")
    with pytest.raises(ValueError, match="nothing to learn"):
        _train(folder, tmp_path / "out", "--epochs 1")
    assert not list((tmp_path / "out").glob("*.pth"))


def test_what_a_cut_run_left_is_swept_and_the_scaler_is_one_that_the_release_takes(features, tmp_path):
    (tmp_path / f"{TEMPORARY_PREFIX}abcd1234.pth").write_bytes(b"half")
    _train(features, tmp_path, "--epochs 1")
    assert not list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))
    torch.amp.GradScaler("cpu").load_state_dict(_checkpoint(tmp_path, 0)["scaler"])


def test_a_ruined_checkpoint_is_refused(features, tmp_path):
    _train(features, tmp_path, "--epochs 1")
    checkpoint = _checkpoint(tmp_path, 0)
    checkpoint["model"]["rgb_head.bias"][0] = float("nan")
    torch.save(checkpoint, tmp_path / "ruined.pth")
    with pytest.raises(CheckpointError, match=r"ruined\.pth: NaN or infinite numbers under rgb_head\.bias"):
        _train(features, tmp_path, f"--epochs 2 --resume {tmp_path / 'ruined.pth'}")
