"""Fit and evaluate M3DM, class by class, and write the result tables (README, "The three stages")."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dataset import DATASETS, SampleFiles, check_plausible, find_classes, list_samples
from feature_extractors.calibration import MAX, RULE_HELP, ThresholdRule
from feature_extractors.methods import METHODS
from feature_extractors.quirks import PROTOCOLS, Quirks, quirk_values
from feature_extractors.settings import LAMBDAS, Settings
from feature_extractors.weights import WeightsSource, check_files
from models.backbones import RGB_BACKBONES, XYZ_BACKBONES
from utils.files import alone_with
from utils.flags import HelpFormatter, finite_float, natural, natural_float, positive, positive_float, seed
from utils.preprocess.record import read_record
from utils.reporting import (
    append_tables,
    check_writable,
    class_summary,
    open_record,
    problem_lines,
    versions,
    write_results,
    write_scores,
)

if TYPE_CHECKING:
    from m3dm_runner import M3DM, EvaluatedClass
    from models.uff.feature_store import FeatureStoreWriter
    from utils.observer import ClassReport

# Threads that wait must not spin: torch's and the loaders' share the cores. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it
MOST_WORKERS = 4  # one or two already keep up with the networks
SHOWN_REASONS = 3  # of left-out samples, in an error
DETECTOR_SUFFIX = ".m3dm"
MOST_TRAIN_LEFT_OUT, MOST_TEST_LEFT_OUT = 0.5, 0.1  # shares of a class; beyond them its results are doubtful
UNKNOWN = "unknown"  # a test kind of parts that nobody has judged


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
    add("--dataset_path", default="datasets/mvtec3d", type=Path, help="the preprocessed data set")
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
    add("--max_sample", type=positive, help="training samples a class at most")
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
    add("--checkpoint_dir", default="checkpoints", type=Path, help="folder of the downloaded weights")
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

    _add_output_flags(parser)
    _add_machine_flags(parser)
    return parser


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add("--results_dir", default="results", type=Path, help="where tables, scores and pictures go")
    add("--save_feature_path", default="datasets/patch_lib", type=Path, help="where --save_feature writes")
    add("--save_detector", type=Path, metavar="DIR", help="also write each class's fitted detector there")
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
        type=Path,
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
    return next((text for holds, text in problems if holds), None)


def settings_from_args(args: argparse.Namespace) -> Settings:
    """The flags that numbers depend on, as one object. Raises ValueError naming the flag that is wrong."""
    names = {item.name for item in dataclasses.fields(Settings) if item.init} - {"quirks"}
    return Settings(**{name: getattr(args, name) for name in names}, quirks=_quirks_from_args(args))


def main(argv: list[str] | None = None) -> int:
    """Run the classes one after another.

    Returns the exit status: 1 when the set-up or a class failed, 130 after Ctrl-C; wrong flags exit with 2.
    """
    parser = get_args_parser()
    args = parser.parse_args(argv)
    try:
        settings = settings_from_args(args)
    except ValueError as error:
        parser.error(str(error))
    problem = find_contradiction(args)
    if problem:
        parser.error(problem)
    try:
        return run(args, settings)
    except (ValueError, OSError) as error:
        print(f"main.py: error: {error}", file=sys.stderr)
        return 1
    except MemoryError as error:
        print(
            f"main.py: error: out of memory ({error}); use a smaller --img_size, --batch_size or --max_sample, or "
            "--feature_dtype float16",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("main.py: interrupted; repeat the same command to resume", file=sys.stderr)
        return INTERRUPTED


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Evaluate the classes; each class's results are on disk as soon as it is done."""
    check_files(settings, WeightsSource(args.checkpoint_dir, args.fusion_module_path, args.random_weights))
    samples = _find_samples(args)
    check_writable(args.results_dir, "--results_dir")
    if args.save_feature:
        check_writable(args.save_feature_path, "--save_feature_path")
    if args.save_detector is not None:
        check_writable(args.save_detector, "--save_detector")
    with alone_with(
        args.results_dir / ".running",
        f"--results_dir {args.results_dir}: another run is writing there; use another",
    ):
        return _run_classes(args, settings, samples)


Samples = Mapping[str, Mapping[str, list[SampleFiles]]]  # by class and split


def _run_classes(args: argparse.Namespace, settings: Settings, samples: Samples) -> int:
    # torch takes seconds to import: --help and wrong flags have answered by now
    from m3dm_runner import M3DM

    model = M3DM(
        settings,
        checkpoint_dir=args.checkpoint_dir,
        fusion_module_path=args.fusion_module_path,
        random_weights=args.random_weights,
        device=args.device,
        point_ops=args.point_ops,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
    )
    if args.random_weights:
        print(
            "warning: --random_weights: these results mean nothing, only that the code runs", file=sys.stderr
        )
    record = open_record(args.results_dir, _header(args, model), list(samples))
    with _feature_store(args, model) as store:
        for name in samples:
            if name in record["classes"] and _has_its_files(name, args, store):
                print(f"{name}: done by the run that was cut, kept")
                continue
            _run_class(name, samples[name], model, store, args, record)
    return _write_tables(args, list(samples), record)


def _feature_store(
    args: argparse.Namespace, model: M3DM
) -> AbstractContextManager[FeatureStoreWriter | None]:
    """The folder that --save_feature fills, for this run alone."""
    if not args.save_feature:
        return nullcontext()
    from feature_extractors.saved_features import store_meta
    from models.uff.feature_store import FeatureStoreWriter

    dataset = f"{args.dataset_type} {args.dataset_path.resolve()}"
    return FeatureStoreWriter.open(args.save_feature_path, store_meta(model.settings, model.weights, dataset))


def _has_its_files(name: str, args: argparse.Namespace, store: FeatureStoreWriter | None) -> bool:
    """Whether what a done class has left on disk is there still."""
    return (
        (args.results_dir / "scores" / f"{name}.csv").is_file()
        and (not args.save_preds or (args.results_dir / "pred_maps" / name).is_dir())
        and (args.save_detector is None or _detector_path(args.save_detector, name).is_file())
        and (store is None or store.has_class(name))
    )


def _run_class(
    name: str,
    samples: Mapping[str, list[SampleFiles]],
    model: M3DM,
    store: FeatureStoreWriter | None,
    args: argparse.Namespace,
    record: dict[str, Any],
) -> None:
    """One class, its results on disk when it is done; if its data is no good it is recorded as failed."""
    from m3dm_runner import figures_of, save_predictions
    from utils.observer import ClassReport
    from utils.report.figures import write_figures

    model.observer = report = ClassReport()
    try:
        evaluated = _evaluated(name, samples, model, store, args, report)
        write_scores(args.results_dir, name, evaluated.rows() if evaluated else [])
        if evaluated:
            write_figures(args.results_dir, name, figures_of(evaluated))
        if args.save_preds and evaluated:
            save_predictions(args.results_dir / "pred_maps" / name, evaluated)
    except ValueError as error:
        record["classes"].pop(name, None)
        record["failed_classes"][name] = f"{error}{_reasons(report)}"
        print(f"{name}: failed: {record['failed_classes'][name]}", file=sys.stderr)
    else:
        record["classes"][name] = report.as_dict()
        print(class_summary(name, record["classes"][name]))
    write_results(args.results_dir, record)


def _evaluated(
    name: str,
    samples: Mapping[str, list[SampleFiles]],
    model: M3DM,
    store: FeatureStoreWriter | None,
    args: argparse.Namespace,
    report: ClassReport,
) -> EvaluatedClass | None:
    """The class's fitted or loaded model on its test samples, None without any; the report gets metrics and counts."""
    from feature_extractors.saved_features import saving
    from m3dm_runner import evaluate
    from utils.metrics import METRICS, measure

    if args.load_detector is not None:
        model.restore(_detector_path(args.load_detector, name))
    else:
        training, held_out = held_out_apart(samples["train"], args.holdout, args.seed)
        training = training[: model.settings.sample_limit]
        patches = model.extract_all(training, f"{name} train")
        model.fit_patches(saving(store, name, patches) if store else patches, expected=len(training))
        if args.save_detector is not None:
            _save_detector(model, held_out or samples["validation"], name, args)
    if not samples["test"]:
        print(f"{name}: no test samples; the detector is fitted and saved, and not evaluated")
        report.metrics, report.counts = dict.fromkeys(metric.key for metric in METRICS), model.counts_
        return None
    evaluated = evaluate(model, samples["test"], f"{name} test")
    with report.stage("metrics"):
        report.metrics = measure(evaluated.predictions)
    labels = evaluated.predictions.labels
    counts = {"test": len(evaluated.files), "test_anomalous": int(labels.sum())}
    unlabelled = len(evaluated.files) - len(labels)
    report.counts = {**model.counts_, **counts, **({"test_unlabelled": unlabelled} if unlabelled else {})}
    report.doubt = _doubt(samples, report)
    return evaluated


def _doubt(samples: Mapping[str, list[SampleFiles]], report: ClassReport) -> str | None:
    """Why a class's results can't be trusted: so many samples were left out; None if they can."""
    for split, most in (("train", MOST_TRAIN_LEFT_OUT), ("test", MOST_TEST_LEFT_OUT)):
        left_out = sum(sample["path"].startswith(f"{split}/") for sample in report.skipped)
        if left_out > most * len(samples[split]):
            return f"{left_out} of {len(samples[split])} {split} samples were left out; mend or remove them"
    return None


def held_out_apart(
    samples: list[SampleFiles], share: float, seed: int
) -> tuple[list[SampleFiles], list[SampleFiles]]:
    """The training samples without a share of them, drawn by `seed`, and that share."""
    count = max(1, round(share * len(samples))) if share > 0 else 0
    chosen = set(np.random.default_rng(seed).permutation(len(samples))[:count].tolist())
    return (
        [sample for i, sample in enumerate(samples) if i not in chosen],
        [sample for i, sample in enumerate(samples) if i in chosen],
    )


def _save_detector(model: M3DM, held_out: list[SampleFiles], name: str, args: argparse.Namespace) -> None:
    """Save the fitted model, with thresholds where there are good parts to take them from."""
    if held_out:
        origin = "held-out training parts" if args.holdout else "validation/good"
        with model.observer.stage("calibrate"):
            model.calibrate(held_out, args.threshold_rule, origin)
        warning = model.calibration_ and model.calibration_.warning()
    else:
        warning = "no validation/good and no --holdout: the saved detector has no threshold, only scores"
    if warning:
        print(f"warning: {name}: {warning}", file=sys.stderr)
    model.preprocessing_ = read_record(args.dataset_path)[0] or None
    model.save(_detector_path(args.save_detector, name))


def _find_samples(args: argparse.Namespace) -> Samples:
    """The files of the classes to run, seen to pair before the hours of work."""
    dataset = DATASETS[args.dataset_type]
    classes = find_classes(args.dataset_path, dataset, args.class_name)
    absent = [name for name in dataset.classes if name not in classes] if args.class_name is None else []
    if absent:
        print(f"not in {args.dataset_path}, left out: {', '.join(absent)}")
    found = {}
    for name in classes:
        folder = args.dataset_path / name
        train = list_samples(folder, "train", dataset.find_samples)
        test = dataset.find_samples(folder, "test")
        if not test and args.save_detector is None:  # a detector can be fitted without
            list_samples(folder, "test", dataset.find_samples)
        validation = dataset.find_samples(folder, "validation")
        if args.label_by_folder:
            test = [_labelled_by_folder(sample) for sample in test]
        if not args.unchecked:
            for remark in check_plausible(train):
                print(f"warning: {name}: {remark}", file=sys.stderr)
        found[name] = {"train": train, "validation": validation, "test": test}
    return found


def _labelled_by_folder(sample: SampleFiles) -> SampleFiles:
    if sample.label is not None or sample.rgb.parents[1].name == UNKNOWN:
        return sample
    return dataclasses.replace(sample, label=1)


def _header(args: argparse.Namespace, model: M3DM) -> dict[str, Any]:
    """What identifies a run: equal headers give equal results and files."""
    from feature_extractors.networks import attention

    return {
        "method_name": args.method_name,
        "random_weights": args.random_weights,
        "weights": model.weights,
        "settings": model.settings.as_dict(),
        "attention": attention(),
        "dataset_path": str(args.dataset_path),
        "device": str(model.device),
        "point_ops": model.point_ops,
        "save_preds": args.save_preds,
        "save_feature_path": str(args.save_feature_path) if args.save_feature else None,
        "label_by_folder": args.label_by_folder,
        "holdout": args.holdout,
        "threshold_rule": args.threshold_rule,
        "save_detector": str(args.save_detector) if args.save_detector else None,
        "load_detector": str(args.load_detector) if args.load_detector else None,
        "versions": versions(),
    }


def _write_tables(args: argparse.Namespace, classes: list[str], record: dict[str, Any]) -> int:
    """Append the run's row to the tables, and write the report; returns the exit status."""
    from utils.report.run_report import write_report

    report = write_report(args.results_dir, record, Settings(args.method_name).as_dict())
    done = {name: record["classes"][name] for name in classes if name in record["classes"]}
    if done:
        row_name = args.method_name + (" (random weights)" if args.random_weights else "")
        print(append_tables(args.results_dir, row_name, done))
    record["complete"] = True  # last: a run cut in the tables goes on with them
    write_results(args.results_dir, record)
    print(f"report: {report}")
    for line in problem_lines(record, classes):
        print(line, file=sys.stderr)
    doubtful = any(result.get("doubt") for result in done.values())
    return 1 if record["failed_classes"] or doubtful else 0


def _detector_path(folder: Path, class_name: str) -> Path:
    return folder / f"{class_name}{DETECTOR_SUFFIX}"


def _reasons(report: ClassReport) -> str:
    """Why samples were left out, the first few."""
    reasons = [f"{sample['path']}: {sample['reason']}" for sample in report.skipped]
    shown = "; ".join(reasons[:SHOWN_REASONS]) + (" ..." if len(reasons) > SHOWN_REASONS else "")
    return f"; {shown}" if reasons else ""


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
