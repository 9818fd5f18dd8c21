"""Training the fusion block: one epoch, the held-out score, checkpoints."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from models.checkpoints import CheckpointError, entry, is_plain_tensor, load_complete
from models.uff.block import FusionBlock, read_uff_checkpoint
from models.uff.loss import contrastive_loss
from models.uff.pairs import PatchPairs
from models.uff.plan import Plan
from utils.distributed import gather_rows, sum_gradients, sum_over_ranks
from utils.files import atomic_path
from utils.progress import Advance

ADAM_BETAS = (0.9, 0.95)  # those of MAE, which the released trainer descends from
MOMENTS = ("exp_avg", "exp_avg_sq")
MIN_SCALER = 1e-30  # its scale and factors are larger
LARGEST_COUNT = 10**9  # of epochs and steps in a checkpoint that is believed
RESUME_REMEDY = "--resume wants a checkpoint of this training: the same backbones and optimiser flags"
NOT_FINITE_REMEDY = (
    "use a lower --lr (with --resume, from a checkpoint of an earlier epoch), or save the features of these "
    "samples anew"
)


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


def train_one_epoch(
    state: TrainingState, batches: Batches, plan: Plan, epoch: int, advance: Advance = lambda count: None
) -> list[StepLog]:
    """Train on every batch, or until the plan's steps are made; returns the steps. `advance` is told of each batch.

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
        advance(1)
        if not losses and epoch * plan.steps_per_epoch + len(steps) == plan.steps:
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
        return contrastive_loss(queries, all_keys, pairs.rgb_row, first_key=first_key)


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
        found = on_device.rgb_row[similarity.argmax(dim=1)]
        hits = int((found == torch.arange(len(found), device=device)).sum())
        counts += torch.tensor([hits, len(found), 1], device=device)
    hits_total, patches, num_samples = sum_over_ranks(counts).tolist()
    return Retrieval(hits_total / patches, num_samples / patches) if patches else None


def checkpoint_bytes(model: FusionBlock) -> int:
    """About the size of a checkpoint: the parameters and AdamW's two moments."""
    return 3 * sum(p.numel() * p.element_size() for p in model.parameters())


def save_checkpoint(path: Path, state: TrainingState, epoch: int, args: object) -> None:
    """Write the release's layout atomically; `epoch` is the one just finished, `args` a Namespace of plain values.

    Raises OSError when it can't be written; earlier checkpoints stay as they are.
    """
    content = {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "epoch": epoch,
        "scaler": state.scaler.state_dict()
        or torch.amp.GradScaler("cpu").state_dict(),  # the release wants one
        "args": args,
    }
    buffer = io.BytesIO()  # torch's own file writer fails with a RuntimeError that hides the reason
    torch.save(content, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def trained_on(path: Path) -> str | None:
    """The fingerprint of the features that a checkpoint was trained on, as its args hold it; None where they don't."""
    found = getattr(read_uff_checkpoint(path, RESUME_REMEDY).get("args"), "features", None)
    return found if isinstance(found, str) else None


def resume(path: Path, state: TrainingState) -> int:
    """Take up a checkpoint of ours or of the release; returns the epoch to continue with.

    Learning rate, betas and weight decay stay those of the flags. Raises CheckpointError when the file does not
    fit, and then leaves the state as it is.
    """
    checkpoint = read_uff_checkpoint(path, RESUME_REMEDY)
    epoch: int = entry(checkpoint, "epoch", path, RESUME_REMEDY, int)
    if not 0 <= epoch < LARGEST_COUNT:
        raise CheckpointError(f"{path}: is of epoch {epoch}; {RESUME_REMEDY}")
    moments = _read_moments(entry(checkpoint, "optimizer", path, RESUME_REMEDY, dict), state.optimizer, path)
    scaler = _read_scaler(checkpoint, path) if state.scaler.is_enabled() else None
    load_complete(state.model, checkpoint["model"], path, RESUME_REMEDY)
    own_groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": own_groups})
    if scaler is not None:
        state.scaler.load_state_dict(scaler)
    return epoch + 1


def _read_moments(
    content: dict[str, Any], optimizer: torch.optim.Optimizer, path: Path
) -> dict[int, dict[str, torch.Tensor]]:
    """AdamW's state of each parameter, none before the first step. CheckpointError when it does not fit."""
    remedy = f"its optimiser does not fit; {RESUME_REMEDY}"
    groups = entry(content, "param_groups", path, remedy, list)
    numbers = [entry(group, "params", path, remedy, list) for group in groups]
    own_numbers = [group["params"] for group in optimizer.state_dict()["param_groups"]]
    if any(type(i) is not int for group in numbers for i in group) or numbers != own_numbers:
        raise CheckpointError(f"{path}: has other parameter groups: {remedy}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    found = entry(content, "state", path, remedy, dict)
    if not found:
        return {}
    if set(found) != set(range(len(parameters))):
        raise CheckpointError(f"{path}: knows {len(found)} of {len(parameters)} parameters: {remedy}")
    return {i: _read_moment(found[i], p.shape, f"{path}: parameter {i}") for i, p in enumerate(parameters)}


def _read_moment(content: Any, shape: torch.Size, place: str) -> dict[str, torch.Tensor]:
    """One parameter's step count, which old versions of torch save as an int, and its two moments."""
    values: dict[str, Any] = dict.fromkeys(("step", *MOMENTS))
    values |= content if isinstance(content, dict) else {}
    step = values["step"]
    if is_plain_tensor(step) and step.numel() == 1:
        step = step.item()
    if type(step) not in (int, float) or not 0 <= step < LARGEST_COUNT:  # NaN is none either
        raise CheckpointError(f"{place}: its optimiser's step is no count; {RESUME_REMEDY}")
    for name in MOMENTS:
        moment = values[name]
        fits = is_plain_tensor(moment) and moment.is_floating_point() and moment.shape == shape
        if not fits or not moment.isfinite().all() or (name == "exp_avg_sq" and (moment < 0).any()):
            raise CheckpointError(
                f"{place}: its optimiser's {name} is no tensor {tuple(shape)} of finite numbers, or has negative "
                f"squares; {RESUME_REMEDY}"
            )
    return {"step": torch.tensor(float(step)), **{name: values[name] for name in MOMENTS}}


def _read_scaler(checkpoint: dict[str, Any], path: Path) -> dict[str, float]:
    """The gradient scaler's numbers."""
    content = entry(checkpoint, "scaler", path, RESUME_REMEDY, dict)
    names = torch.amp.GradScaler("cpu").state_dict()
    numbers: dict[str, Any] = {name: content.get(name) for name in names}
    for name, number in numbers.items():
        least = 0 if name == "_growth_tracker" else MIN_SCALER
        if type(number) not in (int, float) or not least <= number < math.inf:
            raise CheckpointError(f"{path}: the scaler's {name} is no sensible number; {RESUME_REMEDY}")
    return numbers


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
