"""Fit and evaluate M3DM, class by class, and write the result tables (README, "The three stages")."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dataset import DATASETS
from evaluation.data import ClassFiles, DataOptions, find_class_files
from evaluation.options import ClassOptions, RunOptions, variants
from feature_extractors.calibration import MAX, RULE_HELP, ThresholdRule
from feature_extractors.methods import METHODS
from feature_extractors.quirks import FEATURES_ARE_DRAWN, PROTOCOLS, Quirks, quirk_values
from feature_extractors.settings import LAMBDAS, Settings
from feature_extractors.weights import WeightsSource, check_files
from models.backbones import RGB_BACKBONES, XYZ_BACKBONES
from utils.console import fail, print_anything
from utils.files import check_writable, sweep_leftovers
from utils.flags import (
    HelpFormatter,
    finite_float,
    named_path,
    natural,
    natural_float,
    positive,
    positive_float,
    seed,
)
from utils.preprocess.record import read_record
from utils.reporting import check_tables
from utils.resources import shortage_named
from utils.results import alone_with_classes, check_results_folder
from utils.signals import INTERRUPTED, TERMINATED, Terminated, ended_by_sigterm
from utils.world import end_with_launcher, find_world

# Threads that wait must not spin: torch's and the loaders' share the cores. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

PROGRAM = "main.py"
LESS_MEMORY = (
    "use a smaller --num_workers, --batch_size, --img_size or --max_sample, or --feature_dtype float16"
)
FIRST_ERROR_S = 5  # a launcher ends the other processes within this time of the first error
MOST_WORKERS = 4  # one or two already keep up with the networks


def get_args_parser() -> argparse.ArgumentParser:
    """Flags that numbers depend on have the names, and the defaults, of Settings' fields."""
    parser = argparse.ArgumentParser(
        "main.py",
        usage="%(prog)s [flags]",
        description="Fit and evaluate M3DM, class by class, and write the result tables.",
        formatter_class=HelpFormatter,
    )
    parser.set_defaults(**{name: value for name, value in Settings().as_dict().items() if name != "quirks"})
    add = parser.add_argument_group("what to run").add_argument
    add("--method_name", choices=list(METHODS), help=f"which banks and decision: {_summaries(METHODS)}")
    add("--memory_bank", choices=["multiple", "single"], help="as in the release; must agree with the method")
    add(
        "--use_uff", action="store_true", help="as in the release; required by the methods with a fusion bank"
    )
    add("--save_feature", action="store_true", help="also save the training features, for fusion_pretrain.py")
    add("--save_preds", action="store_true", help="also write a picture and a float map of each test sample")

    add = parser.add_argument_group("data").add_argument
    add(
        "--dataset_type",
        default="mvtec3d",
        choices=list(DATASETS),
        help="whose class names and file layout to expect when --class_name is not given",
    )
    add("--dataset_path", default="datasets/mvtec3d", type=named_path, help="the preprocessed data set")
    add("--class_name", nargs="+", metavar="NAME", help="classes to run (default: those that are there)")
    add(
        "--label_by_folder",
        action="store_true",
        help="test kinds without gt/ are defects all the same (but for unknown): image metrics, no pixel metrics",
    )
    add(
        "--unchecked",
        action="store_true",
        help="take data that look raw, or are in millimetres, all the same",
    )
    add("--max_sample", type=positive, help="training samples a class at most: the first ones")
    add(
        "--fingerprint",
        default="times",
        choices=["times", "contents"],
        help="by what a run that goes on sees that the data are the same: names, sizes and times, or all contents",
    )
    add(
        "--img_size",
        type=positive,
        help="side of the networks' input in pixels, a multiple of the patch size",
    )

    add = parser.add_argument_group("backbones and weights").add_argument
    add(
        "--rgb_backbone_name", choices=list(RGB_BACKBONES), help=f"image network: {_summaries(RGB_BACKBONES)}"
    )
    add(
        "--xyz_backbone_name",
        default="",
        choices=list(XYZ_BACKBONES),
        help="point network, or FPFH (default: FPFH for the method FPFH, else Point_MAE)",
    )
    add("--checkpoint_dir", type=named_path, default="checkpoints", help="folder of the downloaded weights")
    add("--fusion_module_path", type=Path, help="UFF checkpoint (default: checkpoints/checkpoint-0.pth)")
    add("--random_weights", action="store_true", help="random initialisation, for smoke tests only")
    add("--group_size", type=positive, help="points in a group")
    add("--num_group", type=positive, help="groups in a cloud")

    add = parser.add_argument_group("memory banks and decision").add_argument
    add("--f_coreset", type=positive_float, help="share of the rows that a bank keeps; 1 keeps all")
    add("--coreset_eps", type=positive_float, help="distortion that the random projection allows, below 1")
    add(
        "--coreset_dtype", choices=quirk_values()["coreset_dtype"], help="short for --quirk coreset_dtype=..."
    )
    add(
        "--random_state",
        type=seed,
        help="seed of each bank's random projection (default, as the release: 0, drawn on from bank to bank)",
    )
    add("--asy_memory_bank", type=positive, help="only so many samples feed the xyz and fusion banks")
    add(
        "--rm_zero_for_project",
        action="store_true",
        help="drop rows with zeros before the coreset (Point_MAE)",
    )
    add("--ocsvm_nu", type=positive_float, help="nu of the one-class SVMs")
    add("--ocsvm_maxiter", type=positive, help="passes of the one-class SVMs at most")
    for name in LAMBDAS:
        source, kind, _ = name.split("_")
        what = "image score" if kind == "s" else "map"
        default = 0.1 if source == "rgb" else 1
        add(f"--{name}", type=finite_float, help=f"factor of the {source} {what} (default: {default})")
    add("--protocol", default="ours", choices=list(PROTOCOLS), help="preset of the quirks (docs/quirks.md)")
    add("--quirk", nargs="+", default=[], metavar="NAME=VALUE", help=f"single quirks: {_quirk_help()}")

    _add_study_flags(parser)
    _add_output_flags(parser)
    _add_machine_flags(parser)
    return parser


def _add_study_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("studies (docs/studies.md)").add_argument
    add(
        "--features",
        type=named_path,
        metavar="DIR",
        help="keep what the networks extract there, and take what is there: for other methods, seeds and coresets",
    )
    add("--shots", type=positive, metavar="K", help="use only K training samples a class, drawn at random")
    add("--shot_seeds", type=seed, nargs="+", default=[0], metavar="SEED", help="of the drawing")
    add(
        "--random_states",
        type=seed,
        nargs="+",
        metavar="SEED",
        help="fit banks and decision once with each of them, on the same features; mean and deviation are reported",
    )
    add(
        "--shake",
        type=positive_float,
        metavar="SHARE",
        help="multiply each feature by 1 + noise of this standard deviation, such as 1e-6: what do near ties decide?",
    )
    add("--shake_seeds", type=seed, nargs="+", default=[0], metavar="SEED", help="of the noise")


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add("--results_dir", type=named_path, default="results", help="where tables, scores and pictures go")
    add(
        "--save_feature_path",
        type=named_path,
        default="datasets/patch_lib",
        help="where --save_feature writes",
    )
    add(
        "--save_detector",
        type=named_path,
        metavar="DIR",
        help="also write each class's fitted detector there",
    )
    add(
        "--holdout",
        default=0.0,
        type=natural_float,
        metavar="SHARE",
        help="with --save_detector: share of the training samples that is held out for its threshold, drawn by --seed "
        "(default: validation/good is used, where there is one)",
    )
    add("--threshold_rule", default=MAX, type=threshold_rule, help=f"of the held-out scores: {RULE_HELP}")
    add(
        "--load_detector",
        type=named_path,
        metavar="DIR",
        help="evaluate the detectors saved there, without fitting",
    )


def _add_machine_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:I; auto takes the GPU if there is one")
    add(
        "--point_ops",
        default="cpu",
        choices=["cpu", "cuda"],
        help="who groups points: the loader's processes, or pointnet2_ops and knn_cuda on the GPU (docs/point_ops.md)",
    )
    add(
        "--num_workers",
        default=min(MOST_WORKERS, (os.cpu_count() or 2) // 2),
        type=natural,
        help="processes that read and prepare samples",
    )
    add(
        "--batch_size",
        default=1,
        type=positive,
        help="samples in a forward pass; results do not depend on it",
    )
    add(
        "--feature_dtype",
        choices=["float32", "float16"],
        help="of training features (default: float32 in memory, float16 on disk)",
    )
    add("--precision", choices=["float32", "bf16"], help="arithmetic of the networks; bf16 shifts scores")
    add("--seed", type=seed, help="of random weights, of live DropPath and of --holdout")
    add("--dist_url", default="env://", help="address where several processes meet (docs/studies.md)")
    # torch.distributed.launch gives it to its processes, which know it from the environment
    add("--local_rank", "--local-rank", type=int, default=-1, help=argparse.SUPPRESS)


def find_contradiction(args: argparse.Namespace) -> str | None:
    """What is wrong with the flags that are not settings, and what to type instead; None if nothing is."""
    spec, name = METHODS[args.method_name], args.method_name
    has_fusion = "fusion" in spec.sources
    problems = [
        (
            args.memory_bank not in (None, spec.memory_bank),
            f"--memory_bank {args.memory_bank} does not go with --method_name {name}; "
            f"use --memory_bank {spec.memory_bank}",
        ),
        (has_fusion and not args.use_uff, f"--method_name {name} has a fusion bank; add --use_uff"),
        (
            args.use_uff and not has_fusion,
            f"--method_name {name} has no fusion bank; drop --use_uff, "
            "or use --method_name DINO+Point_MAE+Fusion or Fusion",
        ),
        (
            args.save_feature and spec.backbones != {"rgb", "xyz"},
            "--save_feature needs both modalities; use --method_name DINO+Point_MAE",
        ),
        (
            args.holdout >= 1 or (args.holdout > 0 and args.save_detector is None),
            f"--holdout {args.holdout}: must be a share below 1, and goes with --save_detector",
        ),
        (
            args.load_detector is not None and (args.save_feature or args.save_detector is not None),
            "--load_detector fits nothing, so there is nothing to save; drop --save_feature and --save_detector",
        ),
    ]
    return next((text for holds, text in [*problems, *_study_problems(args)] if holds), None)


def _study_problems(args: argparse.Namespace) -> list[tuple[bool, str]]:
    changes = args.random_states is not None or args.shots is not None or args.shake is not None
    lists = {
        "random_states": args.random_states or (),
        "shot_seeds": args.shot_seeds,
        "shake_seeds": args.shake_seeds,
    }
    return [
        (args.shots is None and args.shot_seeds != [0], "--shot_seeds goes with --shots"),
        (args.shake is None and args.shake_seeds != [0], "--shake_seeds goes with --shake"),
        (
            args.random_states is not None and args.random_state is not None,
            "--random_state and --random_states exclude each other; drop one of them",
        ),
        (
            args.shots is not None and args.shots > args.max_sample,
            f"--shots {args.shots}: --max_sample allows {args.max_sample}",
        ),
        *((len(set(v)) < len(v), f"--{name}: names a seed twice") for name, v in lists.items()),
        (
            changes and (args.save_feature or args.save_detector is not None),
            "--random_states, --shots and --shake are for studies; drop them, or --save_feature and --save_detector",
        ),
        (
            args.features is not None and args.fingerprint == "contents",
            "--features notices changes by sizes and times; drop it, or --fingerprint contents",
        ),
        (
            args.load_detector is not None and changes,
            "--load_detector fits nothing; drop --random_states, --shots and --shake",
        ),
        (
            args.features is not None and _quirks_from_args(args).draws_features,
            FEATURES_ARE_DRAWN,
        ),
    ]


def settings_from_args(args: argparse.Namespace) -> Settings:
    """The flags that numbers depend on, as one object. Raises ValueError naming the flag that is wrong."""
    names = {item.name for item in dataclasses.fields(Settings) if item.init} - {"quirks"}
    return Settings(**{name: getattr(args, name) for name in names}, quirks=_quirks_from_args(args))


def options_from_args(args: argparse.Namespace) -> RunOptions:
    """The flags that numbers do not depend on, but for those on data."""
    each_class = {item.name: getattr(args, item.name) for item in dataclasses.fields(ClassOptions)}
    same_name = {item.name for item in dataclasses.fields(RunOptions)} & set(vars(args))
    values = {name: getattr(args, name) for name in same_name}
    return RunOptions(
        **{**values, "save_feature_path": args.save_feature_path if args.save_feature else None},
        each_class=ClassOptions(**each_class),
        variants=variants(
            random_state=args.random_state,
            random_states=args.random_states,
            shots=args.shots,
            shot_seeds=args.shot_seeds,
            shake=args.shake or 0.0,
            shake_seeds=args.shake_seeds,
        ),
    )


def data_from_args(args: argparse.Namespace) -> DataOptions:
    """Which samples to use."""
    names = {item.name for item in dataclasses.fields(DataOptions)} & set(vars(args))
    return DataOptions(**{name: getattr(args, name) for name in names}, needs_test=args.save_detector is None)


def main(argv: list[str] | None = None) -> int:
    """Run the classes.

    Returns the exit status: 1 when the set-up or a class failed, 130 after Ctrl-C, 143 after SIGTERM; wrong flags exit
    with 2.
    """
    print_anything()
    parser = get_args_parser()
    args = parser.parse_args(argv)
    try:
        settings = settings_from_args(args)
        problem = find_contradiction(args)
    except ValueError as error:
        problem = str(error)
    if problem:
        parser.error(problem)
    try:
        with ended_by_sigterm(), shortage_named():
            return run(options_from_args(args), settings, data_from_args(args), args.local_rank)
    except ConnectionError as error:
        time.sleep(FIRST_ERROR_S)  # let the process that failed first be the one that is heard
        return fail(PROGRAM, f"error: {error}", 1)
    except (ValueError, OSError) as error:
        return fail(PROGRAM, f"error: {error}", 1)
    except MemoryError as error:
        return fail(PROGRAM, f"error: out of memory ({error}); {LESS_MEMORY}", 1)
    except KeyboardInterrupt:
        return fail(PROGRAM, "interrupted; repeat the same command to resume", INTERRUPTED)
    except Terminated:
        return fail(PROGRAM, "terminated; repeat the same command to resume", TERMINATED)


def run(options: RunOptions, settings: Settings, data: DataOptions, local_rank: int = -1) -> int:
    """Check what can be checked before the work, then do the classes; returns the exit status."""
    end_with_launcher()
    world = find_world(local_rank=local_rank)
    classes = _checked(options, settings, data) if world.is_main else []
    names = [files.name for files in classes]
    with alone_with_classes(options.results_dir, names) if world.is_main else nullcontext():
        # torch takes seconds to import: --help and what is wrong with flags, weights and data has been said by now
        from evaluation.run import run as run_classes

        return run_classes(options, settings, classes, world)


def _checked(options: RunOptions, settings: Settings, data: DataOptions) -> list[ClassFiles]:
    """The classes to run. Raises ValueError or OSError when weights, data or folders are no good."""
    check_files(
        settings, WeightsSource(options.checkpoint_dir, options.fusion_module_path, options.random_weights)
    )
    classes = find_class_files(data)
    check_writable(options.results_dir, "--results_dir")
    sweep_leftovers(options.results_dir)
    check_tables(options.results_dir)
    for variant in options.variants:
        check_results_folder(
            options.results_dir / variant.name, [data.dataset_path / c.name for c in classes]
        )
    if options.each_class.save_detector is not None:
        read_record(data.dataset_path)  # which the detectors will hold
    each = options.each_class
    for flag, path in (
        ("--save_feature_path", options.save_feature_path),
        ("--save_detector", each.save_detector),
        ("--features", options.features),
    ):
        if path is not None:
            check_writable(path, flag)
            sweep_leftovers(path)
    return classes


def _quirks_from_args(args: argparse.Namespace) -> Quirks:
    changes = dict(item.split("=", 1) if "=" in item else (item, "") for item in args.quirk)
    if args.coreset_dtype is not None:
        changes["coreset_dtype"] = args.coreset_dtype
    return PROTOCOLS[args.protocol].replace(changes)


def threshold_rule(text: str) -> str:
    """A value of --threshold_rule."""
    try:
        return ThresholdRule(text).text
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _summaries(rows: Mapping[str, Any]) -> str:
    return "; ".join(f"{name} = {row.summary}" for name, row in rows.items())


def _quirk_help() -> str:
    return ", ".join(f"{name}={'|'.join(values)}" for name, values in quirk_values().items())


if __name__ == "__main__":
    sys.exit(main())
