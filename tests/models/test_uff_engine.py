"""Schedule, plan, one epoch and the held-out score."""

import copy

import numpy as np
import pytest
import torch

from models.uff.block import initial_fusion_block
from models.uff.engine import (
    TrainingState,
    choose_amp,
    evaluate_retrieval,
    new_state,
    train_one_epoch,
)
from models.uff.pairs import PatchPairs, open_folder, read_pairs
from models.uff.plan import Plan, Schedule, make_plan
from tests.reference.uff import plain_batch_loss
from tests.synthetic_features import write_toy_store

CONSTANT = Schedule(lr=0.1, min_lr=0.1, warmup_epochs=0, epochs=1)
FLAGS = {"accum_iter": 1, "epochs": 3, "max_steps": None, "lr": 0.1, "min_lr": 0.0, "warmup_epochs": 1.0}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The networks are tiny: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _batches(folder, count):
    opened = open_folder(write_toy_store(folder, count))
    return [read_pairs(file, opened, "colocated") for file in opened.files]


def _sgd_state(block):
    return TrainingState(
        block, torch.optim.SGD(block.parameters()), torch.amp.GradScaler("cpu", enabled=False), None
    )


def test_the_schedule_is_the_released_one(goldens):
    golden = np.load(goldens / "uff.npz")
    schedule = Schedule(lr=0.003, min_lr=1e-5, warmup_epochs=1, epochs=5)
    np.testing.assert_allclose([schedule.at(e) for e in golden["lr_epoch"]], golden["lr_value"], rtol=1e-9)


def test_max_steps_bring_a_schedule_that_ends_with_them():
    plan = make_plan(10, **FLAGS | {"accum_iter": 3, "max_steps": 750, "warmup_steps": 250})
    assert (plan.steps, plan.steps_per_epoch, plan.epochs) == (750, 4, 188)
    assert plan.schedule.warmup_epochs * plan.steps_per_epoch == 250
    assert plan.schedule.at(750 / 4) == pytest.approx(0, abs=1e-12)
    assert plan.warning() is None


def test_few_steps_are_warned_of_with_numbers():
    warning = make_plan(10, **FLAGS | {"accum_iter": 16, "epochs": 5, "warmup_steps": None}).warning()
    assert "only 5 optimiser steps (1 an epoch with --accum_iter 16), 1 of them in the warm-up" in warning


def test_an_incomplete_window_makes_a_step_divided_by_its_own_number(tmp_path):
    batches = _batches(tmp_path, 3)
    state = _sgd_state(initial_fusion_block(32, 16, seed=0))
    plain = copy.deepcopy(state.model)
    steps = train_one_epoch(state, batches, Plan(2, 2, 2, CONSTANT), epoch=0)
    for window in (batches[:2], batches[2:]):
        loss = sum(plain_batch_loss(plain, pairs) for pairs in window) / len(window)
        for p, g in zip(plain.parameters(), torch.autograd.grad(loss, plain.parameters()), strict=True):
            p.data -= 0.1 * g
    assert len(steps) == 2
    assert steps[1].loss == pytest.approx(loss.item(), rel=1e-5)
    for ours, theirs in zip(state.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_training_stops_at_the_planned_steps(tmp_path):
    state = _sgd_state(initial_fusion_block(32, 16, seed=0))
    plan = Plan(steps=4, steps_per_epoch=3, accum_iter=1, schedule=CONSTANT)
    assert len(train_one_epoch(state, _batches(tmp_path, 3), plan, epoch=1)) == 1


def test_weight_decay_is_used_on_all_parameters_or_spares_biases_and_norms():
    block = initial_fusion_block(32, 16, seed=0)
    for spare in (False, True):
        state = new_state(block, weight_decay=0.3, no_decay_bias_norm=spare, amp_dtype=None)
        decay = {p: g["weight_decay"] for g in state.optimizer.param_groups for p in g["params"]}
        for name, p in block.named_parameters():
            exempt = spare and (name.endswith("bias") or "norm" in name)
            assert decay[p] == (0.0 if exempt else 0.3), name


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    good, bad = _batches(tmp_path, 2)
    bad.xyz[0, 0] = float("inf")
    state = _sgd_state(initial_fusion_block(32, 16, seed=0))
    before = copy.deepcopy(state.model.state_dict())
    with pytest.raises(FloatingPointError, match=r"the loss is nan in epoch 7, bagel_001\.npz"):
        train_one_epoch(state, [good, bad], Plan(99, 1, 2, CONSTANT), epoch=7)
    assert all(torch.equal(before[name], value) for name, value in state.model.state_dict().items())


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    state = _sgd_state(initial_fusion_block(32, 16, seed=0))
    before = copy.deepcopy(state.model.state_dict())
    state.model.xyz_head.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match=r"a gradient .* bagel_000\.npz"):
        train_one_epoch(state, _batches(tmp_path, 1), Plan(9, 1, 1, CONSTANT), epoch=0)
    assert all(torch.equal(before[name], value) for name, value in state.model.state_dict().items())


class _Identity(torch.nn.Module):
    """Stands for a block whose queries and keys are the features themselves."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def queries(self, rgb):
        return rgb

    def keys(self, xyz):
        return xyz


def test_retrieval_counts_rgb_patches_whose_nearest_xyz_patch_is_their_own():
    axes = torch.eye(3)
    perfect = PatchPairs(axes[[0, 0, 1, 2]], axes, torch.tensor([0, 0, 1, 2]), ("a",))
    swapped = PatchPairs(axes[[1, 0]], axes[:2], torch.tensor([0, 1]), ("b",))
    empty = PatchPairs(axes[:0], axes[:0], torch.zeros(0, dtype=torch.int64), ("c",))
    assert evaluate_retrieval(_Identity(), [perfect, empty]) == (1.0, 1 / 3)
    assert evaluate_retrieval(_Identity(), [swapped]) == (0.0, 1 / 2)
    assert evaluate_retrieval(_Identity(), [perfect, swapped]) == (3 / 5, 2 / 5)
    assert evaluate_retrieval(_Identity(), [empty]) is None


def test_mixed_precision_is_refused_on_the_cpu():
    assert choose_amp(None, torch.device("cpu")) is None
    with pytest.raises(ValueError, match="--amp none"):
        choose_amp("bf16", torch.device("cpu"))


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["none", "bf16", "fp16"])
def test_mixed_precision_on_a_gpu_follows_float32(tmp_path, name):
    batches, losses = _batches(tmp_path, 3), []
    for device, amp in (("cpu", None), ("cuda", name)):
        block = initial_fusion_block(32, 16, seed=0).to(device)
        amp_dtype = choose_amp(amp, torch.device(device))
        state = new_state(block, weight_decay=0.01, no_decay_bias_norm=False, amp_dtype=amp_dtype)
        losses.append([step.loss for step in train_one_epoch(state, batches, Plan(3, 3, 1, CONSTANT), 0)])
    assert losses[1][0] == pytest.approx(losses[0][0], rel={"none": 1e-5, "fp16": 1e-3, "bf16": 1e-2}[name])
    assert name == "none" or losses[1] != losses[0]


def test_a_warm_up_that_never_ends_is_remarked_on():
    flags = FLAGS | {"max_steps": 120}
    assert "lie in the warm-up of 250" in make_plan(10, warmup_steps=250, **flags).warning()
    assert make_plan(10, warmup_steps=20, **flags).warning() is None
