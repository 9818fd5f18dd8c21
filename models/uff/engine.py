"""Training the fusion block: one epoch, the held-out score, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from models.checkpoints import CheckpointError, entry, load_complete
from models.uff.block import FusionBlock, read_uff_checkpoint
from models.uff.loss import contrastive_loss
from models.uff.plan import Plan
from utils.distributed import gather_rows, sum_gradients, sum_over_ranks
from utils.files import atomic_path

ADAM_BETAS = (0.9, 0.95)  # those of MAE, which the released trainer descends from
RESUME_REMEDY = "--resume wants a checkpoint of this training: the same backbones and optimiser flags"
NOT_FINITE_REMEDY = (
    "use a lower --lr (with --resume, from a checkpoint of an earlier epoch), or save the features of these "
    "samples anew"
)


class PatchPairs(NamedTuple):
    """Pairs of patches, of one sample or several.

    xyz (n, Dx): xyz patches; rgb (m, Dr): the rgb patches that belong to them, each once; rgb_index (n,)
    int64: which one; files: where the samples come from.
    """

    xyz: torch.Tensor
    rgb: torch.Tensor
    rgb_index: torch.Tensor
    files: tuple[str, ...]

    def to(self, device: torch.device) -> PatchPairs:
        """The pairs on `device`, features as float32."""
        xyz, rgb, rgb_index = (x.to(device, non_blocking=True) for x in self[:3])
        return PatchPairs(xyz.float(), rgb.float(), rgb_index, self.files)


class Batches(Protocol):
    """The batches of an epoch, of which one knows how many there are."""

    def __iter__(self) -> Iterator[PatchPairs]: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class TrainingState:
    """What training changes; amp_dtype is None for float32, and the scaler is at work with float16 only."""

    model: FusionBlock
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    amp_dtype: torch.dtype | None

    @property
    def device(self) -> torch.device:
        return self.model.rgb_head.weight.device


def new_state(
    model: FusionBlock, *, weight_decay: float, no_decay_bias_norm: bool, amp_dtype: torch.dtype | None
) -> TrainingState:
    """The state of an untrained model: AdamW with all parameters in one group, as released.

    `no_decay_bias_norm` puts biases and norms in a second group without weight decay.
    """
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if no_decay_bias_norm:
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=ADAM_BETAS, weight_decay=weight_decay)
    device = model.rgb_head.weight.device
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype == torch.float16)
    return TrainingState(model, optimizer, scaler, amp_dtype)


class StepLog(NamedTuple):
    """One optimiser step: the mean loss of its batches and its learning rate."""

    loss: float
    lr: float


def train_one_epoch(state: TrainingState, batches: Batches, plan: Plan, epoch: int) -> list[StepLog]:
    """Train on every batch, or until the plan's steps are made; returns the steps.

    Every `plan.accum_iter` batches make a step, at the end of the epoch those that are left; their losses are
    divided by their number. Raises FloatingPointError at a loss or gradient that is not finite, before the
    weights see it, and at weights that are not, and ValueError when no batch has anything to learn from.
    """
    state.model.train()
    steps: list[StepLog] = []
    losses: list[float] = []
    for i, pairs in enumerate(batches):
        place = f"epoch {epoch}, {', '.join(pairs.files) or 'no file of this process'}"
        window = min(plan.accum_iter, len(batches) - i + len(losses))
        if not losses:
            lr = _set_learning_rate(state.optimizer, plan.schedule.at(epoch + i / len(batches)))
        with _autocast(state):
            loss = batch_loss(state.model, pairs.to(state.device))
        losses.append(_finite_total(loss, place))
        state.scaler.scale(loss / window).backward()
        if len(losses) == window:
            _step(state, place)
            steps.append(StepLog(sum(losses) / window, lr))
            losses = []
            if epoch * plan.steps_per_epoch + len(steps) == plan.steps:
                break
    if not any(step.loss for step in steps):
        raise ValueError(
            f"epoch {epoch}: no sample has two xyz patches without a zero, so there is nothing to learn; "
            "save features of clouds that have points"
        )
    if not all(p.isfinite().all() for p in state.model.parameters()):
        raise FloatingPointError(f"the weights are not finite after epoch {epoch}; {NOT_FINITE_REMEDY}")
    return steps


def batch_loss(model: FusionBlock, pairs: PatchPairs) -> torch.Tensor:
    """This process's part of the loss over the pairs of all processes: the parts' sum is the loss."""
    queries, keys = model.queries(pairs.rgb), model.keys(pairs.xyz)
    all_keys, first_key = gather_rows(keys)
    with torch.autocast(keys.device.type, enabled=False):
        return contrastive_loss(queries, all_keys, pairs.rgb_index, first_key=first_key)


class Retrieval(NamedTuple):
    """Share of rgb patches whose nearest xyz patch of the same sample is one of their own, and that of chance."""

    accuracy: float
    chance: float


@torch.no_grad()
def evaluate_retrieval(model: FusionBlock, samples: Iterable[PatchPairs]) -> Retrieval | None:
    """Top-1 retrieval over samples that this and the other processes hold; None without any patch.

    An rgb patch has up to four xyz patches of its own. Picking at random finds one of them, over all rgb
    patches of a sample, once on average.
    """
    model.eval()
    device = next(model.parameters()).device
    counts = torch.zeros(3, dtype=torch.float64, device=device)  # hits, rgb patches, samples with any
    for pairs in samples:
        if len(pairs.xyz) == 0:
            continue
        on_device = pairs.to(device)
        similarity = model.queries(on_device.rgb) @ model.keys(on_device.xyz).T  # (m, n)
        found = on_device.rgb_index[similarity.argmax(dim=1)]
        hits = int((found == torch.arange(len(found), device=device)).sum())
        counts += torch.tensor([hits, len(found), 1], device=device)
    hits_total, patches, num_samples = sum_over_ranks(counts).tolist()
    return Retrieval(hits_total / patches, num_samples / patches) if patches else None


def save_checkpoint(path: Path, state: TrainingState, epoch: int, args: object) -> None:
    """Write the release's layout atomically; `epoch` is the one just finished, `args` a Namespace of plain values."""
    content = {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "epoch": epoch,
        "scaler": state.scaler.state_dict()
        or torch.amp.GradScaler("cpu").state_dict(),  # the release wants one
        "args": args,
    }
    for left_by_a_cut_run in path.parent.glob(".checkpoint-*.pth"):
        left_by_a_cut_run.unlink()
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def resume(path: Path, state: TrainingState) -> int:
    """Take up a checkpoint of ours or of the release; returns the epoch to go on with.

    The weight decay stays that of the flags. Raises CheckpointError when the file does not fit.
    """
    checkpoint = read_uff_checkpoint(path, RESUME_REMEDY)
    epoch: int = entry(checkpoint, "epoch", path, RESUME_REMEDY, int)
    optimizer = entry(checkpoint, "optimizer", path, RESUME_REMEDY, dict)
    load_complete(state.model, checkpoint["model"], path, RESUME_REMEDY)
    decays = [group["weight_decay"] for group in state.optimizer.param_groups]
    try:
        state.optimizer.load_state_dict(optimizer)
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: its optimiser does not fit ({error}); {RESUME_REMEDY}") from error
    for group, decay in zip(state.optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    if state.scaler.is_enabled() and checkpoint.get("scaler"):
        state.scaler.load_state_dict(checkpoint["scaler"])
    return epoch + 1


def choose_amp(name: str | None, device: torch.device) -> torch.dtype | None:
    """The dtype of --amp; without the flag bf16 or, on GPUs that lack it, fp16, and none on the CPU."""
    if device.type == "cpu":
        if name not in (None, "none"):
            raise ValueError(f"--amp {name}: mixed precision is for CUDA; use --amp none on the CPU")
        return None
    default = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name or default]


def _autocast(state: TrainingState) -> torch.autocast:
    return torch.autocast(state.device.type, dtype=state.amp_dtype, enabled=state.amp_dtype is not None)


def _set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def _finite_total(loss: torch.Tensor, place: str) -> float:
    """The loss over all processes; every process stops when it is not finite."""
    total = float(sum_over_ranks(loss))
    if not math.isfinite(total):
        raise FloatingPointError(f"the loss is {total} in {place}; {NOT_FINITE_REMEDY}")
    return total


def _step(state: TrainingState, place: str) -> None:
    sum_gradients(state.model.parameters())
    if not state.scaler.is_enabled():  # an enabled scaler leaves such steps out and lowers its scale
        norms = torch.stack([p.grad.norm() for p in state.model.parameters() if p.grad is not None])
        if not norms.isfinite().all():
            raise FloatingPointError(f"a gradient is not finite after {place}; {NOT_FINITE_REMEDY}")
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
