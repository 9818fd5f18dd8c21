"""Train UFF, the fusion block, on the features that main.py --save_feature wrote (README, "UFF")."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from utils.flags import HelpFormatter, natural, natural_float, positive, positive_float, seed
from utils.reporting import check_writable

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

    from models.uff.engine import PatchPairs, TrainingState
    from models.uff.feature_store import StoreMeta
    from models.uff.pairs import PairsDataset
    from models.uff.plan import Plan
    from utils.distributed import World

LR_REFERENCE_BATCH = 256  # samples; --blr is the learning rate of an effective batch of so many


def get_args_parser() -> argparse.ArgumentParser:
    # no other flag may begin with --epoch, of which the published command uses the first seven characters
    parser = argparse.ArgumentParser(
        "fusion_pretrain.py",
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument_group("training").add_argument
    add("--batch_size", default=64, type=positive, help="samples a process and batch")
    add("--epochs", default=3, type=positive, help="passes over the samples")
    add(
        "--max_steps",
        type=positive,
        help="optimiser steps in all, instead of --epochs; the schedule fits them",
    )
    add("--accum_iter", default=1, type=positive, help="batches whose gradients make one optimiser step")
    add("--amp", choices=["none", "bf16", "fp16"], help="mixed precision on CUDA (default there: bf16)")
    add("--seed", default=0, type=seed, help="of the first weights, the order and the held-out samples")
    add("--resume", default="", help="checkpoint to go on from")
    add("--start_epoch", default=0, type=natural, help="first epoch, unless --resume says it")

    add = parser.add_argument_group("optimiser").add_argument
    add("--lr", type=positive_float, help="learning rate (default: blr * effective batch / 256)")
    add("--blr", default=2e-3, type=positive_float, help="learning rate of an effective batch of 256")
    add("--min_lr", default=0.0, type=natural_float, help="learning rate at the end of the cosine")
    add(
        "--warmup_epochs",
        default=1.0,
        type=natural_float,
        help="epochs in which the learning rate rises from 0",
    )
    add("--warmup_steps", type=natural, help="optimiser steps in which it rises, instead of --warmup_epochs")
    add("--weight_decay", default=0.01, type=natural_float, help="of AdamW, on all parameters")
    add("--no_decay_bias_norm", action="store_true", help="no weight decay on biases and norms")

    add = parser.add_argument_group("data").add_argument
    add("--data_path", default="", help="folder of the features, such as datasets/patch_lib")
    add(
        "--pairing",
        choices=["colocated", "scrambled"],
        help="rgb patch beside an xyz patch (default: as indexed)",
    )
    add(
        "--holdout",
        default=0.1,
        type=natural_float,
        help="share of the samples that is kept for the retrieval score",
    )
    add("--input_size", default=224, type=int, help="accepted as in the release; the features decide")
    add("--num_workers", default=10, type=natural, help="loader processes, at most one a batch")
    add("--pin_mem", action="store_true", default=True, help="pin the loaders' memory on CUDA")
    add("--no_pin_mem", action="store_false", dest="pin_mem", help="do not")

    add = parser.add_argument_group("output").add_argument
    add("--output_dir", default="./output_dir", help="where checkpoints and log.txt go")
    add(
        "--save_every",
        default=1,
        type=positive,
        help="epochs between checkpoints of 190 MB; the last always is",
    )
    add("--log_dir", default="./output_dir", help="where TensorBoard's files go")

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="auto, cpu or cuda; each process takes the GPU of its local rank")
    add("--world_size", default=1, type=positive, help="processes, where the launcher does not say")
    add("--local_rank", "--local-rank", default=-1, type=int, help="set by the launcher")
    add("--dist_on_itp", action="store_true", help="read Open MPI's variables, as ITP sets them")
    add("--dist_url", default="env://", help="where the processes meet")
    return parser


def main(args: argparse.Namespace) -> None:
    """Join the other processes, if there are any, and train.

    Raises ValueError or OSError when flags, features or a checkpoint are wrong, and FloatingPointError when
    the loss or a gradient stops being finite; the last checkpoint is then from before that.
    """
    # torch takes seconds to import: --help and wrong flags have answered by now
    from utils.devices import choose_device
    from utils.distributed import find_world, join, leave

    world = find_world(dist_on_itp=args.dist_on_itp, world_size=args.world_size, local_rank=args.local_rank)
    device = choose_device(args.device)
    if device.type == "cuda" and device.index is None:
        device = choose_device(f"cuda:{world.local_rank}")
    join(world, device, args.dist_url)
    try:
        train(args, world, device)
    finally:
        leave()


def train(args: argparse.Namespace, world: World, device: torch.device) -> None:
    """All epochs; each leaves a checkpoint, a line of log.txt and TensorBoard's scalars."""
    from tqdm import tqdm

    from models.uff.engine import evaluate_retrieval, resume, save_checkpoint, train_one_epoch
    from models.uff.log import TrainingLog, peak_mb, reset_peak

    if world.is_main:
        check_writable(Path(args.output_dir), "--output_dir")
        check_writable(Path(args.log_dir), "--log_dir")
    loader, held_out, meta = load_data(args, world, device)
    plan = plan_training(args, len(loader), world.size)
    state = initial_state(args, meta, device)
    first_epoch = resume(Path(args.resume), state) if args.resume else args.start_epoch
    if first_epoch >= plan.epochs:
        raise ValueError(
            f"epoch {first_epoch} would be next, but there are {plan.epochs}; give more --epochs"
        )
    log = TrainingLog(Path(args.output_dir), Path(args.log_dir)) if world.is_main else None
    if log is not None:
        announce(plan, loader, held_out, meta, device)
    for epoch in range(first_epoch, plan.epochs):
        start = time.perf_counter()
        reset_peak(device)
        loader.batch_sampler.epoch = epoch
        bar = tqdm(loader, desc=f"epoch {epoch}", unit="batch", disable=None if world.is_main else True)
        steps = train_one_epoch(state, bar, plan, epoch)
        retrieval = evaluate_retrieval(state.model, held_out)
        if log is None:
            continue
        if (epoch + 1) % args.save_every == 0 or epoch + 1 == plan.epochs:
            save_checkpoint(Path(args.output_dir, f"checkpoint-{epoch}.pth"), state, epoch, args)
        first_step = epoch * plan.steps_per_epoch + 1
        log.write_steps(first_step, [step._asdict() for step in steps])
        log.write_epoch(
            {
                "epoch": epoch,
                "steps": first_step + len(steps) - 1,
                "train_loss": sum(step.loss for step in steps) / len(steps),
                "train_lr": steps[-1].lr,
                "retrieval": retrieval.accuracy if retrieval else None,
                "retrieval_chance": retrieval.chance if retrieval else None,
                "seconds": time.perf_counter() - start,
                "peak_memory_mb": peak_mb(device),
            }
        )


def load_data(
    args: argparse.Namespace, world: World, device: torch.device
) -> tuple[DataLoader[PatchPairs], PairsDataset, StoreMeta]:
    """This process's training batches and held-out samples, and what the features are."""
    from models.uff.pairs import (
        GlobalBatches,
        PairsDataset,
        make_loader,
        open_folder,
        split_files,
    )

    folder = open_folder(args.data_path)
    training_files, held_out_files = split_files(folder.files, args.holdout, args.seed)
    training = PairsDataset(folder, training_files, args.pairing or folder.meta.pairing)
    held_out = PairsDataset(folder, held_out_files[world.rank :: world.size], "colocated")
    batches = GlobalBatches(len(training), args.batch_size, args.seed, world.rank, world.size)
    pin_memory = args.pin_mem and device.type == "cuda"
    loader = make_loader(training, batches, folder.meta, num_workers=args.num_workers, pin_memory=pin_memory)
    return loader, held_out, folder.meta


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


def announce(
    plan: Plan, loader: DataLoader[PatchPairs], held_out: PairsDataset, meta: StoreMeta, device: torch.device
) -> None:
    """Say what is trained on, for how long, and what is doubtful about it."""
    print(
        f"{meta.rgb_backbone} + {meta.xyz_backbone} features of {len(loader.dataset)} samples, "
        f"{len(held_out)} more held out; {plan.epochs} epochs, {plan.steps} optimiser steps on {device}"
    )
    if meta.random_weights:
        print("warning: a backbone of these features had random weights; the block will know nothing")
    if not len(held_out):
        print("warning: no sample is held out, so there is no retrieval score")
    if plan.warning() is not None:
        print(f"warning: {plan.warning()}")


if __name__ == "__main__":
    try:
        main(get_args_parser().parse_args())
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"fusion_pretrain.py: error: {error}")
