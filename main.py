"""Fit and evaluate M3DM, class by class, and write the result tables (README, "Training and testing")."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arguments import DEFAULT_FUSION_CHECKPOINT, find_contradiction, get_args_parser, settings_from_args
from feature_extractors.settings import Settings
from utils.files import alone_with
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
    from m3dm_runner import M3DM
    from models.uff.feature_store import FeatureStoreWriter

# Threads that wait must not spin: torch's and the loaders' share the cores. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


def main(argv: list[str] | None = None) -> int:
    """Run the classes one after another.

    Returns the exit status: 1 when the set-up or a class failed, 130 after Ctrl-C; wrong flags exit with 2.
    """
    parser = get_args_parser()
    args = parser.parse_args(argv)
    problem = find_contradiction(args)
    if problem:
        parser.error(problem)
    try:
        settings = settings_from_args(args)
    except ValueError as error:
        parser.error(str(error))
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
        print("main.py: interrupted; the same command goes on with the class that was cut", file=sys.stderr)
        return INTERRUPTED


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Evaluate the classes; each class's results are on disk as soon as it is done."""
    classes = _check_data(args)
    check_writable(args.results_dir, "--results_dir")
    if args.save_feature:
        check_writable(args.save_feature_path, "--save_feature_path")
    with alone_with(
        args.results_dir / ".running",
        f"--results_dir {args.results_dir}: another run is writing there; use another",
    ):
        return _run_classes(args, settings, classes)


def _run_classes(args: argparse.Namespace, settings: Settings, classes: list[str]) -> int:
    # torch takes seconds to import: --help and wrong flags have answered by now
    from feature_extractors.extractor import Extractor
    from feature_extractors.networks import load_networks
    from m3dm_runner import M3DM, DataSource, open_store
    from utils.devices import choose_device

    device = choose_device(args.device)
    if args.random_weights:
        print(
            "warning: --random_weights: the networks know nothing, the results mean nothing", file=sys.stderr
        )
    checkpoint_dir = None if args.random_weights else args.checkpoint_dir
    networks = load_networks(settings, checkpoint_dir, _fusion_path(args))
    extractor = Extractor(settings, networks, device)
    header = _header(args, settings, networks.sources, str(device))
    record = open_record(args.results_dir, header, classes)
    data = DataSource(args.dataset_path, args.num_workers, args.batch_size)
    dataset = f"{args.dataset_type} {args.dataset_path.resolve()}"
    with (
        open_store(args.save_feature_path, settings, networks.sources, dataset)
        if args.save_feature
        else nullcontext()
    ) as store:
        for name in classes:
            if name in record["classes"] and _has_its_files(name, args, store):
                print(f"{name}: done by the run that was cut, kept")
                continue
            _evaluate_class(name, M3DM(settings, extractor, data, store), args, record)
    return _finish(args, classes, record)


def _has_its_files(name: str, args: argparse.Namespace, store: FeatureStoreWriter | None) -> bool:
    """Whether what a done class has left on disk is there still."""
    pictures = args.results_dir / "pred_maps" / name
    return (
        (args.results_dir / "scores" / f"{name}.csv").is_file()
        and (not args.save_preds or pictures.is_dir())
        and (store is None or store.has_class(name))
    )


def _evaluate_class(name: str, runner: M3DM, args: argparse.Namespace, record: dict[str, Any]) -> None:
    """One class, its results on disk when it is done; if its data is no good it is recorded as failed."""
    from m3dm_runner import save_predictions

    try:
        scores = runner.fit(name).evaluate(name)
        write_scores(args.results_dir, name, scores.rows())
        if args.save_preds:
            save_predictions(args.results_dir / "pred_maps", name, scores)
    except ValueError as error:
        record["classes"].pop(name, None)
        record["failed_classes"][name] = str(error)
        print(f"{name}: failed: {error}", file=sys.stderr)
    else:
        record["classes"][name] = runner.report.as_dict()
        print(class_summary(name, record["classes"][name]))
    write_results(args.results_dir, record)


def _check_data(args: argparse.Namespace) -> list[str]:
    """The classes to run, once all their files have been seen to pair: found before the hours of work."""
    from dataset import absent_classes, find_classes, list_samples

    classes = find_classes(args.dataset_path, args.dataset_type, args.class_name)
    absent = absent_classes(classes, args.dataset_type) if args.class_name is None else []
    if absent:
        print(f"not in {args.dataset_path}, left out: {', '.join(absent)}")
    for name in classes:
        for split in ("train", "test"):
            list_samples(args.dataset_path, name, split)
    return classes


def _fusion_path(args: argparse.Namespace) -> Path | None:
    """The UFF checkpoint; None = random, only when --random_weights is given and no checkpoint is."""
    if args.fusion_module_path is None and args.random_weights:
        return None
    return args.fusion_module_path or Path(DEFAULT_FUSION_CHECKPOINT)


def _header(
    args: argparse.Namespace, settings: Settings, weights: dict[str, str], device: str
) -> dict[str, Any]:
    """What identifies a run: equal headers give equal results and files."""
    return {
        "method_name": settings.method_name,
        "random_weights": args.random_weights,
        "weights": weights,
        "settings": dataclasses.asdict(settings),
        "dataset_path": str(args.dataset_path),
        "device": device,
        "save_preds": args.save_preds,
        "save_feature_path": str(args.save_feature_path) if args.save_feature else None,
        "versions": versions(),
    }


def _finish(args: argparse.Namespace, classes: list[str], record: dict[str, Any]) -> int:
    done = {name: record["classes"][name] for name in classes if name in record["classes"]}
    if done:
        row_name = args.method_name + (" (random weights)" if args.random_weights else "")
        print(append_tables(args.results_dir, row_name, done))
    record["complete"] = True  # last: a run cut in the tables goes on with them
    write_results(args.results_dir, record)
    for line in problem_lines(record, classes):
        print(line, file=sys.stderr)
    return 1 if record["failed_classes"] else 0


if __name__ == "__main__":
    sys.exit(main())
