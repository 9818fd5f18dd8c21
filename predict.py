"""Judge new parts with a saved detector (docs/own_data.md).

python predict.py --detector bagel.m3dm --rgb part.png --xyz part.tiff
python predict.py --detector bagel.m3dm --input FOLDER --output DIR
python predict.py --detector bagel.m3dm --watch FOLDER --output DIR     # until Ctrl-C
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from utils.console import fail, one_line, print_anything
from utils.files import alone_with, check_writable, naming, sweep_leftovers
from utils.flags import HelpFormatter, named_path, natural, positive, positive_float
from utils.formats.organised import CloudOptions
from utils.formats.parts import Part, parts_anywhere
from utils.part_reader import PartReader, recorded_parameters
from utils.resources import shortage_named

if TYPE_CHECKING:
    import numpy as np

    from feature_extractors.calibration import Calibration
    from m3dm_runner import M3DM
    from utils.structures import Sample, Score

# Threads that wait must not spin: torch's and the loaders' share the cores. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

PROGRAM = "predict.py"
INTERRUPTED = 130
LOCK_NAME = ".judging"
KINDS = {"maps": ".tiff", "overlays": ".png", "clouds": ".ply"}  # what is written of a part, by folder
COLUMNS = ("part", "score", "calibrated", "threshold", "verdict", "milliseconds", "problem")
GOOD, ANOMALOUS, NO_VERDICT = "good", "anomalous", "no threshold"
MAP_PERCENTILES = (0.5, 99.9)  # of a map, for colors, where there is no calibration


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
        with shortage_named():
            return run(args)
    except (ValueError, OSError) as error:
        return fail(PROGRAM, f"error: {error}", 1)
    except MemoryError as error:
        remedy = "use a smaller --num_workers, or a detector of a smaller --img_size or --f_coreset"
        return fail(PROGRAM, f"error: out of memory ({error}); {remedy}", 1)
    except KeyboardInterrupt:
        return fail(PROGRAM, "interrupted", INTERRUPTED)


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
    with output_alone(args.output) if args.output is not None else nullcontext():
        return judge_with(load_model(args), args)


@contextmanager
def output_alone(folder: Path) -> Iterator[None]:
    """Have the folder while the block runs, without what a killed run left half written. Raises OSError."""
    check_writable(folder, "--output")
    problem = f"--output {folder}: another run is writing there; wait for it to end, or use another folder"
    with alone_with(folder / LOCK_NAME, problem):
        sweep_leftovers(folder, deep=False)
        for kind in KINDS:
            sweep_leftovers(folder / kind)
        yield


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
    if args.output is not None:
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
        print(f"left out: {problem}", file=sys.stderr)
    if not found.parts:
        raise FileNotFoundError(
            f"--input {args.input}: no part in it; images and clouds of one name make a part"
        )
    return max(judge.run(found.parts), int(bool(found.problems)))


def watch(folder: Path, judge: Judge, poll_seconds: float) -> int:
    """Judge each part that arrives, once its files have stopped changing, until Ctrl-C; one that changes, again."""
    print(f"watching {folder}; Ctrl-C ends", flush=True)
    status, done, before = 0, dict[str, State](), dict[str, State]()
    try:
        while True:
            found = {part.name: (part, _state(part)) for part in parts_anywhere(folder).parts}
            ready = [
                part
                for name, (part, state) in found.items()
                if state is not None and state == before.get(name) and state != done.get(name)
            ]
            if ready:
                status = max(status, judge.run(ready))
            done |= {part.name: before[part.name] for part in ready}
            before = {name: state for name, (_, state) in found.items() if state is not None}
            time.sleep(poll_seconds)
    except KeyboardInterrupt:
        return status


State = tuple[tuple[int, int], ...]  # size and time of a part's files


def _state(part: Part) -> State | None:
    """What the files of a part look like from outside; None when one is empty or gone again."""
    try:
        stats = [path.stat() for path in (part.xyz, part.rgb) if path is not None]
    except OSError:
        return None
    return (
        tuple((stat.st_size, stat.st_mtime_ns) for stat in stats) if all(s.st_size for s in stats) else None
    )


@dataclass
class Judge:
    """A loaded model with what is done for each part: score, line, files."""

    model: M3DM
    reader: PartReader
    output: Output

    def run(self, parts: list[Part]) -> int:
        """Judge the parts, one line each; 1 when one could not be judged."""
        from utils.observer import Observer

        problems: dict[str, str] = {}

        class Collecting(Observer):
            def left_out(self, sample: str, reason: str) -> None:
                problems[sample] = reason

        self.model.observer = Collecting()
        load = partial(load_for_model, self.reader, self.model.settings.img_size)
        for part, score, milliseconds in _timed(parts, self.model.predict_all(parts, "", load)):
            if score is not None:
                try:
                    self.output.write_files(part, score)
                except ValueError as error:  # the file has changed since it was scored
                    problems[part.name], score = str(error), None
            self.output.tell(part, score, milliseconds, problems.get(part.name, ""))
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
    from utils.reporting import versions

    settings = model.settings.as_dict()
    about = {
        "Settings of the detector": {**settings, **settings.pop("quirks")},
        "Run and weights": {
            "detector": args.detector,
            "device": model.device,
            **model.weights,
            **model.counts_,
        },
        "Versions": versions(),
    }
    calibration = model.calibration_
    path = write_parts_report(
        args.output,
        args.detector.name,
        about,
        calibration.thresholds if calibration else None,
        calibration.image_scores if calibration else [],
        output.picture_of,
        calibration.colors() if calibration else None,
        args.random_weights,
    )
    print(f"report: {path}")


@dataclass
class Output:
    """A line on the screen for each part, and under `folder`, where there is one, the report and the pictures."""

    folder: Path | None
    reader: PartReader
    calibration: Calibration | None
    view: bool
    parts: dict[str, Part] = field(default_factory=dict)  # those that have their files, by name

    def __post_init__(self) -> None:
        if self.folder is not None:
            (self.folder / "report.html").unlink(missing_ok=True)  # of an earlier run, and so of other parts
            self._write_row(COLUMNS, "w")

    def tell(self, part: Part, score: Score | None, milliseconds: float, problem: str) -> None:
        """Add the part to the report, and print its line: what is on the screen is in the report."""
        row = self._row(part, score, milliseconds, problem)
        if self.folder is not None:
            self._write_row([row[column] for column in COLUMNS], "a")
        if score is None:
            self._remove_files(part)
            print(one_line(f"{part.name}: not judged: {problem}"), file=sys.stderr, flush=True)
        else:
            print(one_line(f"{part.name}: {self._in_words(score)}, {milliseconds:.0f} ms"), flush=True)

    def _write_row(self, row: Iterable[object], mode: str) -> None:
        assert self.folder is not None
        path = self.folder / "report.csv"
        with naming(path), path.open(mode, newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(row)

    def write_files(self, part: Part, score: Score) -> None:
        """The map, the overlay and the colored cloud, all in the geometry of the camera's own image."""
        if self.folder is None and not self.view:
            return
        from utils.annotate import colored
        from utils.image_files import write_png
        from utils.pictures import overlay, write_colored_cloud, write_map

        seen = self.reader.view(part)
        shape = (seen.rgb.shape[0], seen.rgb.shape[1])
        anomaly_map = self._in_camera(score, shape)
        limits = self._limits(anomaly_map)
        colors = colored(anomaly_map, limits)
        if self.folder is not None:
            threshold = self.calibration.pixel_threshold if self.calibration else None
            write_map(self._file(part, "maps"), anomaly_map)
            picture = overlay(seen.rgb, anomaly_map, limits, threshold)
            write_png(self._file(part, "overlays"), picture)
            write_colored_cloud(self._file(part, "clouds"), seen.cloud, colors)
            self.parts[part.name] = part
        if self.view:
            show_cloud(part.name, seen.cloud, colors)

    def picture_of(self, name: str) -> str | None:
        """A part's picture for the report; None where its files are not there, or not any more."""
        import tifffile

        from utils.pictures import MapScale
        from utils.report.figures import encode_picture

        if name not in self.parts:
            return None
        part, threshold = self.parts[name], self.calibration.pixel_threshold if self.calibration else None
        try:
            image = self.reader.view(part).rgb
            anomaly_map = tifffile.imread(self._file(part, "maps"))
        except (OSError, ValueError):
            return None
        return encode_picture(image, None, anomaly_map, MapScale(self._limits(anomaly_map), threshold))

    def _in_camera(self, score: Score, shape: tuple[int, int]) -> np.ndarray:
        from utils.pictures import resize_map
        from utils.preprocess.sample import square_side

        if self.reader.parameters is None:
            return resize_map(score.map, shape)
        side = square_side(shape)
        return self.reader.in_camera(resize_map(score.map, (side, side)), shape)

    def _limits(self, anomaly_map: np.ndarray) -> tuple[float, float]:
        import numpy as np

        if self.calibration is not None:
            return self.calibration.colors()
        low, high = np.percentile(anomaly_map, MAP_PERCENTILES)
        return float(low), float(high)

    def _file(self, part: Part, kind: str) -> Path:
        assert self.folder is not None
        return self.folder / kind / part.folder / f"{part.stem}{KINDS[kind]}"

    def _remove_files(self, part: Part) -> None:
        """Those that an earlier run left: of a part that is not judged there is nothing to see."""
        if self.folder is not None:
            for kind in KINDS:
                self._file(part, kind).unlink(missing_ok=True)
            self.parts.pop(part.name, None)

    def _row(self, part: Part, score: Score | None, milliseconds: float, problem: str) -> dict[str, Any]:
        row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
        row |= {"part": part.name, "milliseconds": round(milliseconds), "problem": problem}
        if score is not None:
            row |= {"score": repr(score.image), "verdict": NO_VERDICT}
        if score is not None and self.calibration is not None:
            row["calibrated"] = f"{self.calibration.calibrated(score):.4f}"
            row["threshold"] = repr(self.calibration.image_threshold)
            row["verdict"] = ANOMALOUS if self.calibration.is_anomalous(score) else GOOD
        return row

    def _in_words(self, score: Score) -> str:
        if self.calibration is None:
            return f"score {score.image:.6g}, {NO_VERDICT}"
        verdict = ANOMALOUS if self.calibration.is_anomalous(score) else GOOD
        return (
            f"{verdict}, {self.calibration.calibrated(score):.2f} (0.5 = threshold), score {score.image:.6g}, "
            f"threshold {self.calibration.image_threshold:.6g}"
        )


def show_cloud(title: str, cloud: np.ndarray, colors: np.ndarray) -> None:
    """Show the measured points in a window. Raises ValueError when Open3D can't be used here."""
    try:
        import open3d
    except Exception as error:  # its system libraries may be missing
        raise ValueError(
            f"--view: Open3D can't be used here ({error}); see the .ply files in --output"
        ) from error
    measured = (cloud != 0).any(axis=2)
    points = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(cloud[measured].astype(float)))
    points.colors = open3d.utility.Vector3dVector(colors[measured] / 255.0)
    open3d.visualization.draw_geometries([points], window_name=title)


def _timed(parts: list[Part], scores: Iterable[Score | None]) -> Iterator[tuple[Part, Score | None, float]]:
    """Each part with its score and the milliseconds a part has taken so far; several are worked on at once."""
    start = time.perf_counter()
    for done, (part, score) in enumerate(zip(parts, scores, strict=True), start=1):
        yield part, score, 1000 * (time.perf_counter() - start) / done


if __name__ == "__main__":
    sys.exit(main())
