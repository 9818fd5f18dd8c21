"""Judge new parts with a saved detector (docs/own_data.md).

python predict.py --detector bagel.m3dm --rgb part.png --xyz part.tiff
python predict.py --detector bagel.m3dm --input FOLDER --output DIR
python predict.py --detector bagel.m3dm --watch FOLDER --output DIR     # until Ctrl-C
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from evaluation.verdicts import Output
from utils.arrivals import Arrivals
from utils.console import encodable, fail, one_line, print_anything, status_of
from utils.flags import HelpFormatter, named_path, natural, positive, positive_float
from utils.formats.organised import CloudOptions
from utils.formats.parts import Part, parts_anywhere
from utils.part_reader import PartReader, recorded_parameters
from utils.resources import shortage_named
from utils.signals import INTERRUPTED, TERMINATED, Terminated, ended_by_sigterm
from utils.verdict_folder import check_apart, output_alone

if TYPE_CHECKING:
    from m3dm_runner import M3DM
    from utils.structures import Sample, Score

# Threads that wait must not spin: torch's and the loaders' share the cores. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

PROGRAM = "predict.py"


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "predict.py",
        description="Judge new parts with a detector that main.py --save_detector has saved.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--detector", type=named_path, required=True, help="the saved detector, such as detectors/bagel.m3dm")

    add = parser.add_argument_group("parts: one pair, a folder, or a folder to watch").add_argument
    add("--rgb", type=named_path, help="the image of one part")
    add("--xyz", type=named_path, help="its organised cloud: tiff, PLY, PCD, npy, or a depth png")
    add("--input", type=named_path, metavar="FOLDER", help="all parts in it, at any depth, paired by name")
    add("--watch", type=named_path, metavar="FOLDER", help="each part as it arrives, until Ctrl-C")
    add(
        "--unit",
        default="auto",
        choices=["auto", "m", "mm"],
        help="of the points; auto tells it from each cloud",
    )
    add(
        "--preprocessed",
        action="store_true",
        help="the parts come without background, padded to squares; do not preprocess them",
    )

    add = parser.add_argument_group("output").add_argument
    add(
        "--output",
        type=named_path,
        metavar="DIR",
        help="write report.csv, maps, overlays and colored clouds there",
    )
    add("--view", action="store_true", help="show each part's colored cloud in a window (needs Open3D)")

    add = parser.add_argument_group("weights and machine").add_argument
    add("--checkpoint_dir", default="checkpoints", type=named_path, help="folder of the downloaded weights")
    add(
        "--fusion_module_path", type=named_path, help="UFF checkpoint (default: checkpoints/checkpoint-0.pth)"
    )
    add("--random_weights", action="store_true", help="random initialisation, for smoke tests only")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:I; auto takes the GPU if there is one")
    add(
        "--point_ops",
        default="cpu",
        choices=["cpu", "cuda"],
        help="who groups points: the loader's processes, or pointnet2_ops and knn_cuda on the GPU (docs/point_ops.md)",
    )
    add("--batch_size", default=1, type=positive, help="parts in a forward pass; results do not depend on it")
    add("--num_workers", default=0, type=natural, help="processes that read and prepare parts of --input")
    add("--poll_seconds", default=1.0, type=positive_float, help="time between two looks at --watch's folder")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 when every part was judged, whatever the verdicts; 1 when one was not, or nothing could be; wrong
    flags exit with 2.
    """
    print_anything()
    parser = get_args_parser()
    args = parser.parse_args(argv)
    if problem := find_contradiction(args):
        parser.error(problem)
    try:
        with ended_by_sigterm(), shortage_named():
            return run(args)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        return fail(PROGRAM, f"error: {error}", 1)
    except MemoryError as error:
        remedy = "use a smaller --num_workers, or a detector of a smaller --img_size or --f_coreset"
        return fail(PROGRAM, f"error: out of memory ({error}); {remedy}", 1)
    except KeyboardInterrupt:
        return fail(PROGRAM, "interrupted", INTERRUPTED)
    except Terminated:
        return fail(PROGRAM, "terminated", TERMINATED)


def find_contradiction(args: argparse.Namespace) -> str | None:
    """What is wrong with the flags taken together; None if nothing is."""
    one_part = args.rgb is not None or args.xyz is not None
    if sum((one_part, args.input is not None, args.watch is not None)) != 1:
        return "name the parts by --rgb and --xyz, or by --input FOLDER, or by --watch FOLDER"
    if one_part and args.xyz is None:
        return "--rgb names an image, --xyz must name its cloud"
    return None


def run(args: argparse.Namespace) -> int:
    """Judge the parts; returns the exit status."""
    for folder in (args.input, args.watch):
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
        if folder is not None and args.output is not None:
            check_apart(folder, args.output)
    with output_alone(args.output) if args.output is not None else nullcontext():
        return judge_with(load_model(args), args)


def load_model(args: argparse.Namespace) -> M3DM:
    """The saved detector with its networks."""
    from m3dm_runner import M3DM

    model = M3DM.load(
        args.detector,
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
            "warning: --random_weights: these verdicts mean nothing, only that the code runs", file=sys.stderr
        )
    return model


def judge_with(model: M3DM, args: argparse.Namespace) -> int:
    """Judge the parts with a model; returns the exit status."""
    reader = make_reader(args, model)
    calibration = model.calibration_
    if calibration is None:
        print(
            f"warning: {args.detector} has no threshold, so there are scores but no verdicts", file=sys.stderr
        )
    elif calibration.warning():
        print(f"warning: {calibration.warning()}", file=sys.stderr)
    judge = Judge(model, reader, Output(args.output, reader, calibration, args.view))
    status = watch(args.watch, judge, args.poll_seconds) if args.watch is not None else judge_all(args, judge)
    if judge.output.begun:
        write_report(args, model, judge.output)
    return status


def make_reader(args: argparse.Namespace, model: M3DM) -> PartReader:
    """How parts are read. Raises ValueError when the detector does not know how its parts were preprocessed."""
    options = CloudOptions(unit=args.unit)
    if args.preprocessed:
        return PartReader(None, options)
    parameters = recorded_parameters(model.preprocessing_)
    if parameters is None:
        raise ValueError(
            f"{args.detector}: does not know how its training parts were preprocessed, so raw parts can't be brought "
            "to the same form; preprocess them alike and add --preprocessed, or fit it on data that "
            "utils/preprocessing.py wrote"
        )
    return PartReader(parameters, options)


def judge_all(args: argparse.Namespace, judge: Judge) -> int:
    """The parts that the flags name."""
    if args.input is None:
        return judge.run([Part(args.xyz.stem, PurePosixPath(), args.xyz, args.rgb)])
    found = parts_anywhere(args.input)
    for problem in found.problems:
        print(one_line(f"left out: {problem}"), file=sys.stderr)
    if not found.parts:
        raise FileNotFoundError(
            f"--input {args.input}: no part in it; images and clouds of one name make a part"
        )
    return max(judge.run(found.parts), int(bool(found.problems)))


def watch(folder: Path, judge: Judge, poll_seconds: float) -> int:
    """Judge each part that arrives, once its files have stopped changing, until Ctrl-C or SIGTERM; a changed one again.

    Returns the exit status.
    """
    print(f"watching {folder}; Ctrl-C ends", flush=True)
    status, arrivals = 0, Arrivals(folder)
    try:
        with ended_by_sigterm():
            while True:
                look = arrivals.look()
                for line in look.news:
                    print(one_line(line), file=sys.stderr, flush=True)
                if look.ready:
                    status = max(status, judge.run(look.ready, look.present))
                time.sleep(poll_seconds)
    except KeyboardInterrupt:
        return max(status, int(bool(arrivals.left_out)))
    except Terminated:
        return TERMINATED


@dataclass
class Judge:
    """A loaded model with what is done for each part: score, line, files."""

    model: M3DM
    reader: PartReader
    output: Output

    def run(self, parts: list[Part], present: list[Part] | None = None) -> int:
        """Judge the parts, one line each; 1 when one could not be judged. present: all whose files are to stay."""
        from utils.observer import Observer

        self.output.keep(parts if present is None else present)
        problems = {part.name: problem for part in parts if (problem := self.output.find_conflict(part))}

        class Collecting(Observer):
            def left_out(self, sample: str, reason: str) -> None:
                problems[sample] = reason

        self.model.observer = Collecting()
        for part in parts:
            if part.name in problems:
                self.output.take(part, None, 0, problems[part.name])
        others = [part for part in parts if part.name not in problems]
        load = partial(load_for_model, self.reader, self.model.settings.img_size)
        for part, score, milliseconds in _timed(others, self.model.predict_all(others, "", load)):
            if problem := self.output.take(part, score, milliseconds, problems.get(part.name, "")):
                problems[part.name] = problem
        return int(bool(problems))


def load_for_model(reader: PartReader, image_size: int, part: Part) -> Sample:
    """A part as the model takes it; runs in the loader's workers. Raises SampleFileError."""
    from dataset import load_sample
    from utils.image_files import SampleFileError
    from utils.plausibility import too_few_points

    rgb, cloud = reader.model_view(part)
    sample = load_sample(rgb, cloud, image_size)
    if (reason := too_few_points(cloud, len(sample.points))) is not None:
        raise SampleFileError(part.xyz, reason, "is the part there, and the cloud whole?")
    return sample


def write_report(args: argparse.Namespace, model: M3DM, output: Output) -> None:
    """report.html, of what has been judged."""
    from utils.report.parts_report import write_parts_report
    from utils.versions import versions

    settings = model.settings.as_dict()
    about = {
        "Settings of the detector": {**settings, **settings.pop("quirks")},
        "Run and weights": {
            "detector": encodable(str(args.detector)),
            "device": model.device,
            **model.weights,
            **model.counts_,
        },
        "Versions": versions(),
    }
    calibration = model.calibration_
    path = write_parts_report(
        args.output,
        one_line(args.detector.name),
        about,
        calibration.thresholds if calibration else None,
        calibration.image_scores if calibration else [],
        output.picture_of,
        calibration.colors() if calibration else None,
        args.random_weights,
    )
    print(f"report: {path}")


def _timed(parts: list[Part], scores: Iterable[Score | None]) -> Iterator[tuple[Part, Score | None, float]]:
    """Each part with its score and the milliseconds a part has taken so far; several are worked on at once."""
    start = time.perf_counter()
    for done, (part, score) in enumerate(zip(parts, scores, strict=True), start=1):
        yield part, score, 1000 * (time.perf_counter() - start) / done


if __name__ == "__main__":
    sys.exit(status_of(PROGRAM, main))
