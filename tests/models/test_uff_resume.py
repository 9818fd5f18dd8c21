"""Resuming from checkpoints that are damaged, tampered with, or of old versions of torch."""

import argparse
import copy

import numpy as np
import pytest
import torch

from models.checkpoints import CheckpointError
from models.uff.block import FusionBlock, load_fusion_block
from models.uff.engine import checkpoint_bytes, new_state, resume, save_checkpoint
from tests.mutants import mutants

ODD_VALUES = [
    None, True, -1, 3, 10**400, 0.5, 1e308, float("nan"), "text", b"bytes", [], [[0]], {}, {0: 1}, (1,),
    torch.zeros(0), torch.full((4,), torch.nan), torch.full((4,), -1.0), torch.ones(4, dtype=torch.int64),
    torch.ones(4, dtype=torch.complex64), torch.eye(4).to_sparse(), torch.ones(1).expand(10**9),
    torch.ones(4, device="meta"), torch.ones(4, dtype=torch.float8_e5m2), torch.tensor(float("inf")),
]  # fmt: skip


def _new_state(scaler=False):
    block = FusionBlock(4, 2, hidden_ratio=1, head_dim=3)
    state = new_state(block, weight_decay=0.01, no_decay_bias_norm=True, amp_dtype=None)
    if scaler:
        state = copy.copy(state)
        object.__setattr__(state, "scaler", torch.amp.GradScaler("cpu"))
    return state


@pytest.fixture
def trained(tmp_path):
    """A state after one step, and its checkpoint."""
    torch.manual_seed(0)
    state = _new_state()
    sum(p.square().sum() for p in state.model.parameters()).backward()
    state.optimizer.step()
    save_checkpoint(tmp_path / "trained.pth", state, 3, argparse.Namespace(lr=0.1))
    return state, tmp_path / "trained.pth"


def _is_finite(state):
    moments = [
        value
        for moment in state.optimizer.state.values()
        for value in (moment["exp_avg"], moment["exp_avg_sq"], moment["step"])
    ]
    return all(tensor.isfinite().all() for tensor in [*state.model.parameters(), *moments])


def _is_refused(path, scaler=False):
    """Whether `path` is refused, with the one error and without a trace; else it must resume to finite numbers."""
    state = _new_state(scaler)
    before = copy.deepcopy(state.model.state_dict())
    problem = None
    try:
        next_epoch = resume(path, state)
    except CheckpointError as error:
        problem = str(error)
    if problem is None:
        assert next_epoch >= 1
        assert _is_finite(state)
        return False
    assert problem.startswith(str(path))
    assert "\n" not in problem
    assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())
    return True


def test_a_checkpoint_brings_back_weights_and_moments(trained):
    state, path = trained
    resumed = _new_state()
    assert resume(path, resumed) == 4
    for ours, theirs in zip(state.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert all(
            torch.equal(value, resumed.optimizer.state[theirs][name])
            for name, value in state.optimizer.state[ours].items()
        )


def test_step_counts_of_old_torch_are_whole_numbers(trained):
    state, path = trained
    checkpoint = torch.load(path, weights_only=False)
    for moment in checkpoint["optimizer"]["state"].values():
        moment["step"] = 1
    torch.save(checkpoint, path)
    resumed = _new_state()
    resume(path, resumed)
    for optimizer in (state.optimizer, resumed.optimizer):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        optimizer.step()
    for ours, theirs in zip(state.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_flags_decide_what_the_optimiser_does_not_the_file(trained):
    _, path = trained
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["optimizer"]["param_groups"][0].update(maximize=True, betas=(2.0, -1.0), weight_decay=1e9)
    torch.save(checkpoint, path)
    state = _new_state()
    resume(path, state)
    group = state.optimizer.param_groups[0]
    assert (group["maximize"], group["betas"], group["weight_decay"]) == (False, (0.9, 0.95), 0.01)


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_checkpoints_load_or_are_one_error(trained, zipped):
    _, path = trained
    checkpoint = torch.load(path, weights_only=False)
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    refused = 0
    for mutant in mutants(path.read_bytes(), 300):
        path.write_bytes(mutant)
        refused += _is_refused(path)
    assert 100 < refused < 300


@pytest.mark.parametrize("scaler", [True, False])
def test_checkpoints_that_were_tampered_with_load_or_are_one_error(trained, scaler):
    _, path = trained
    checkpoint = torch.load(path, weights_only=False)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(250):
        tampered = copy.deepcopy(checkpoint)
        _tamper(tampered, rng)
        torch.save(tampered, path)
        refused += _is_refused(path, scaler)
    assert 100 < refused < 250


def _tamper(content, rng):
    """Replace, remove or misname one entry somewhere in a nested checkpoint."""
    children = list(content) if isinstance(content, dict) else list(range(len(content)))
    key = children[int(rng.integers(len(children)))]
    if isinstance(content[key], (dict, list)) and content[key] and rng.random() < 0.85:
        _tamper(content[key], rng)
    elif rng.random() < 0.7:
        content[key] = ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]
    elif isinstance(content, dict) and rng.random() < 0.5:
        content[f"{key}\n"] = content.pop(key)
    else:
        del content[key]


def test_a_block_that_claims_an_absurd_size_is_refused(trained):
    _, path = trained
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["model"]["rgb_head.weight"] = torch.ones(1).expand(10**12, 2)
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match="claims hidden ratio 1 and head dim 1000000000000"):
        load_fusion_block(path, xyz_dim=4, rgb_dim=2)


def test_the_announced_size_of_a_checkpoint_is_about_its_size(tmp_path):
    block = FusionBlock(64, 32)
    state = new_state(block, weight_decay=0.01, no_decay_bias_norm=False, amp_dtype=None)
    sum(p.square().sum() for p in block.parameters()).backward()
    state.optimizer.step()
    save_checkpoint(tmp_path / "a.pth", state, 0, argparse.Namespace())
    assert (tmp_path / "a.pth").stat().st_size == pytest.approx(checkpoint_bytes(block), rel=0.1)


def test_equal_trainings_leave_equal_files(tmp_path):
    for name in ("a.pth", "b.pth"):
        torch.manual_seed(0)
        save_checkpoint(tmp_path / name, _new_state(), 0, argparse.Namespace())
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
