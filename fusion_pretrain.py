"""Train UFF, the fusion block, on the features that main.py --save_feature wrote; details in docs/uff.md."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from utils.console import fail, print_anything
from utils.files import alone_with, check_writable, sweep_leftovers
from utils.flags import HelpFormatter, natural, natural_float, not_empty, positive, positive_float, seed
from utils.resources import shortage_named
from utils.signals import INTERRUPTED, never_lost
from utils.world import World, end_with_launcher, find_world

if TYPE_CHECKING:
    import torch

    from models.uff.engine import StepLog, TrainingState
    from models.uff.feature_store import StoreMeta
    from models.uff.pairs import FeatureFolder, PairsLoader
    from models.uff.plan import Plan

LR_REFERENCE_BATCH = 256  # samples; --blr is the learning rate of an effective batch of so many
PROGRAM = "fusion_pretrain.py"
LOCK_NAME = ".training"
FIRST_ERROR_S = 5  # a launcher ends the other processes within this time of the first error


def get_args_parser() -> argparse.ArgumentParser:
    # no other flag may begin with --epoch, of which the published command uses the first seven characters
    parser = argparse.ArgumentParser("fusion_pretrain.py", description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument_group("training").add_argument
    add("--batch_size", default=64, type=positive, help="samples in a batch of one process")
    add("--epochs", default=3, type=positive, help="passes over the training samples")
    add(
        "--max_steps",
        type=positive,
        help="train for this many optimiser steps instead of --epochs; the learning rate reaches its end with them",
    )
    add("--accum_iter", default=1, type=positive, help="batches whose gradients make one optimiser step")
    add(
        "--amp",
        choices=["none", "bf16", "fp16"],
        help="mixed precision on a GPU (default there: bf16, or fp16 where the GPU lacks it)",
    )
    add(
        "--seed",
        default=0,
        type=seed,
        help="decides the initial weights, the order of the samples and which samples are held out",
    )
    add("--resume", default="", help="checkpoint to continue from; give the other flags as before")
    add(
        "--start_epoch",
        default=0,
        type=natural,
        help="begin untrained weights at this epoch of the schedule; ignored with --resume",
    )

    add = parser.add_argument_group("optimiser").add_argument
    add("--lr", type=positive_float, help="highest learning rate (default: blr * effective batch / 256)")
    add(
        "--blr",
        default=2e-3,
        type=positive_float,
        help="learning rate of an effective batch (batch_size * accum_iter * processes) of 256; ignored with --lr",
    )
    add("--min_lr", default=0.0, type=natural_float, help="learning rate at the end of the training")
    add(
        "--warmup_epochs",
        default=1.0,
        type=natural_float,
        help="epochs in which the learning rate rises from 0 to the highest",
    )
    add("--warmup_steps", type=natural, help="optimiser steps in which it rises, instead of --warmup_epochs")
    add("--weight_decay", default=0.01, type=natural_float, help="AdamW's weight decay, on all parameters")
    add("--no_decay_bias_norm", action="store_true", help="no weight decay on biases and norms")

    add = parser.add_argument_group("data").add_argument
    add("--data_path", default="", help="folder of the features, such as datasets/patch_lib (required)")
    add(
        "--pairing",
        choices=["colocated", "scrambled"],
        help="which rgb patch an xyz patch is compared with: that of the same place, or the one that the release's "
        "files put beside it (default: what main.py recorded, colocated unless told otherwise)",
    )
    add(
        "--holdout",
        default=0.1,
        type=natural_float,
        help="share of the samples that is not trained on but measures retrieval; 0 = train on all",
    )
    add(
        "--input_size",
        default=224,
        type=int,
        help="ignored: the features decide; for commands of the release",
    )
    add("--num_workers", default=10, type=natural, help="processes that read files; 0 = none but this one")
    parser.set_defaults(pin_mem=True)
    hidden = argparse.SUPPRESS  # of these two, as they share one default
    add(
        "--pin_mem",
        action="store_true",
        default=hidden,
        help="load batches into pinned memory, which GPUs copy faster (the default)",
    )
    add(
        "--no_pin_mem",
        action="store_false",
        dest="pin_mem",
        default=hidden,
        help="load batches into ordinary memory, where little can be pinned; makes no difference on the CPU",
    )

    add = parser.add_argument_group("output").add_argument
    add("--output_dir", default="./output_dir", type=not_empty, help="folder for checkpoints and log.txt")
    add(
        "--save_every",
        default=1,
        type=positive,
        help="epochs between checkpoints, about 190 MB each; the last epoch always leaves one",
    )
    add("--log_dir", default="./output_dir", type=not_empty, help="folder for TensorBoard's files")

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="auto, cpu or cuda; each process takes the GPU of its local rank")
    add("--world_size", default=1, type=positive, help="number of processes, if the launcher does not tell")
    add(
        "--local_rank",
        "--local-rank",
        default=-1,
        type=int,
        help="number of this process on its machine, set by the launcher",
    )
    add("--dist_on_itp", action="store_true", help="read Open MPI's variables, as the ITP cluster sets them")
    add("--dist_url", default="env://", help="address where several processes meet")
    return parser


def run() -> int:
    """The command line: exit status 1 after an error and 130 after Ctrl-C, each told in one line."""
    print_anything()
    args = get_args_parser().parse_args()
    try:
        with never_lost(), shortage_named():
            main(args)
    except ConnectionError as error:
        time.sleep(FIRST_ERROR_S)  # let the process that failed first be the one that is heard
        return fail(PROGRAM, f"error: {error}", 1)
    except (ValueError, OSError, FloatingPointError) as error:
        return fail(PROGRAM, f"error: {error}", 1)
    except MemoryError as error:
        return fail(
            PROGRAM, f"error: out of memory ({error}); use a smaller --batch_size or --num_workers", 1
        )
    except KeyboardInterrupt as interrupt:
        return fail(
            PROGRAM, f"interrupted; {str(interrupt) or 'repeat the command to begin again'}", INTERRUPTED
        )
    return 0


def main(args: argparse.Namespace) -> None:
    """Join the other processes, if there are any, and train.

    Raises ValueError or OSError when flags, features or a checkpoint are wrong or the disk is full,
    FloatingPointError when the loss or a gradient stops being finite, and KeyboardInterrupt, with a hint at how
    to continue; the last checkpoint is then from before that.
    """
    # torch takes seconds to import: --help and wrong flags have answered by now
    from utils.devices import choose_device
    from utils.distributed import join, leave

    end_with_launcher()
    world = find_world(dist_on_itp=args.dist_on_itp, world_size=args.world_size, local_rank=args.local_rank)
    device = choose_device(args.device)
    if device.type == "cuda" and device.index is None:
        device = choose_device(f"cuda:{world.local_rank}")
    join(world, "nccl" if device.type == "cuda" else "gloo", args.dist_url)
    try:
        with output_alone(args) if world.is_main else nullcontext():
            train(args, world, device)
    finally:
        leave()


@contextmanager
def output_alone(args: argparse.Namespace) -> Iterator[None]:
    """Have the folders for the results while the block runs, without what a killed run left half written.

    Raises OSError when they can't be written, or another training is at work there.
    """
    output = Path(args.output_dir)
    check_writable(output, "--output_dir")
    check_writable(Path(args.log_dir), "--log_dir")
    problem = (
        f"--output_dir {output}: another training is writing there; wait for it to end, or use another folder"
    )
    with alone_with(output / LOCK_NAME, problem):
        sweep_leftovers(output, deep=False)
        yield


class TrainingData(NamedTuple):
    """The features, this process's share of the batches, and the held-out files: all, and its share."""

    folder: FeatureFolder
    loader: PairsLoader
    held_out: list[Path]
    own_held_out: list[Path]


def train(args: argparse.Namespace, world: World, device: torch.device) -> None:
    """All epochs; each leaves a checkpoint, a line of log.txt and TensorBoard's scalars."""
    from models.uff.engine import resume, save_checkpoint, trained_on
    from models.uff.log import TrainingLog

    output, log_dir = Path(args.output_dir), Path(args.log_dir)
    data = load_data(args, world, device)
    plan = plan_training(args, len(data.loader), world.size)
    state = initial_state(args, data.folder.meta, device)
    first_epoch = resume(Path(args.resume), state) if args.resume else args.start_epoch
    if first_epoch >= plan.epochs:
        raise ValueError(
            f"epoch {first_epoch} would be next, but there are {plan.epochs}; give more --epochs"
        )
    log = TrainingLog(output, log_dir, first_epoch) if world.is_main else None
    if log is not None:
        announce(plan, data, device)
        args.features = data.folder.fingerprint()
        if args.resume and trained_on(Path(args.resume)) not in (None, args.features):
            print(
                f"warning: {args.resume} was trained on other features than {args.data_path} holds",
                file=sys.stderr,
            )
        check_room(output, state, sum(is_saved(e, plan, args) for e in range(first_epoch, plan.epochs)))
    checkpoint = args.resume
    try:
        for epoch in range(first_epoch, plan.epochs):
            steps, record = run_epoch(epoch, state, data, plan, show_progress=world.is_main)
            if log is None:
                continue
            # the log first: a run that was cut in between repeats the epoch, and its line
            log.write_steps(epoch * plan.steps_per_epoch + 1, [step._asdict() for step in steps])
            log.write_epoch(record)
            if is_saved(epoch, plan, args):
                save_checkpoint(output / f"checkpoint-{epoch}.pth", state, epoch, args)
                checkpoint = output / f"checkpoint-{epoch}.pth"
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(how_to_continue(checkpoint)) from interrupt
    except OSError as error:
        raise type(error)(f"{error}; {how_to_continue(checkpoint)}") from error


def run_epoch(
    epoch: int, state: TrainingState, data: TrainingData, plan: Plan, *, show_progress: bool
) -> tuple[list[StepLog], dict[str, float | int | None]]:
    """Train on all batches, measure on the held-out samples; returns the steps and the line of log.txt."""
    from models.uff.engine import evaluate_retrieval, train_one_epoch
    from models.uff.log import peak_mb, reset_peak
    from models.uff.pairs import read_pairs
    from utils.progress import progress

    start = time.perf_counter()
    reset_peak(state.device)
    data.loader.batch_sampler.epoch = epoch
    with progress(f"epoch {epoch}", len(data.loader), "batch", shown=show_progress) as advance:
        steps = train_one_epoch(state, data.loader, plan, epoch, advance)
    pairs = (read_pairs(file, data.folder, "colocated") for file in data.own_held_out)
    retrieval = evaluate_retrieval(state.model, pairs)
    return steps, {
        "epoch": epoch,
        "steps": epoch * plan.steps_per_epoch + len(steps),
        "train_loss": sum(step.loss for step in steps) / len(steps),
        "train_lr": steps[-1].lr,
        "retrieval": retrieval.accuracy if retrieval else None,
        "retrieval_chance": retrieval.chance if retrieval else None,
        "seconds": time.perf_counter() - start,
        "peak_memory_mb": peak_mb(state.device),
    }


def is_saved(epoch: int, plan: Plan, args: argparse.Namespace) -> bool:
    """Whether this epoch leaves a checkpoint."""
    return (epoch + 1) % args.save_every == 0 or epoch + 1 == plan.epochs


def how_to_continue(checkpoint: str | Path) -> str:
    """A hint for a run that was cut; `checkpoint` is its last one, if there is one."""
    if not str(checkpoint):
        return "no checkpoint was written yet, so repeat the command to begin again"
    return f"repeat the command with --resume {checkpoint} to continue"


def check_room(folder: Path, state: TrainingState, count: int) -> None:
    """Say how large `count` checkpoints will be, and how many fit. Raises OSError when not even one does."""
    from models.uff.engine import checkpoint_bytes

    size, free = checkpoint_bytes(state.model) / 1e6, shutil.disk_usage(folder).free / 1e6
    if free < size:
        raise OSError(
            f"--output_dir {folder}: a checkpoint needs {size:.3g} MB, {free:.0f} MB are free; make room or use "
            "another folder"
        )
    print(f"{count} checkpoints of {size:.3g} MB each will be written to {folder}; {free:.0f} MB are free")
    if free < count * size:
        print(f"warning: only {free // size:.0f} of them fit; use a larger --save_every, or make room")


def load_data(args: argparse.Namespace, world: World, device: torch.device) -> TrainingData:
    """What is trained and measured on."""
    from models.uff.pairs import GlobalBatches, make_loader, open_folder, split_files

    folder = open_folder(args.data_path)
    training_files, held_out = split_files(folder.files, args.holdout, args.seed)
    loader = make_loader(
        folder,
        training_files,
        args.pairing or folder.meta.pairing,
        GlobalBatches(len(training_files), args.batch_size, args.seed, world.rank, world.size),
        num_workers=args.num_workers,
        pin_memory=args.pin_mem and device.type == "cuda",
    )
    return TrainingData(folder, loader, held_out, held_out[world.rank :: world.size])


def plan_training(args: argparse.Namespace, num_batches: int, world_size: int) -> Plan:
    """The plan that the flags make for epochs of so many batches."""
    from models.uff.plan import make_plan

    effective_batch = args.batch_size * args.accum_iter * world_size
    return make_plan(
        num_batches,
        accum_iter=args.accum_iter,
        epochs=args.epochs,
        max_steps=args.max_steps,
        lr=args.lr if args.lr is not None else args.blr * effective_batch / LR_REFERENCE_BATCH,
        min_lr=args.min_lr,
        warmup_epochs=args.warmup_epochs,
        warmup_steps=args.warmup_steps,
    )


def initial_state(args: argparse.Namespace, meta: StoreMeta, device: torch.device) -> TrainingState:
    """The untrained block and its optimiser; equal in all processes."""
    from models.uff.block import initial_fusion_block
    from models.uff.engine import choose_amp, new_state

    return new_state(
        initial_fusion_block(meta.xyz_dim, meta.rgb_dim, args.seed).to(device),
        weight_decay=args.weight_decay,
        no_decay_bias_norm=args.no_decay_bias_norm,
        amp_dtype=choose_amp(args.amp, device),
    )


def announce(plan: Plan, data: TrainingData, device: torch.device) -> None:
    """Say what is trained on, for how long, and what is doubtful about it."""
    meta = data.folder.meta
    print(
        f"{meta.rgb_backbone} + {meta.xyz_backbone} features of {len(data.loader.dataset)} samples, "
        f"{len(data.held_out)} more held out; {plan.epochs} epochs, {plan.steps} optimiser steps on {device}"
    )
    if meta.random_weights:
        print("warning: a backbone of these features had random weights; the block will know nothing")
    if not data.held_out:
        print("warning: no sample is held out, so there is no retrieval score")
    if plan.warning() is not None:
        print(f"warning: {plan.warning()}")


if __name__ == "__main__":
    sys.exit(run())
