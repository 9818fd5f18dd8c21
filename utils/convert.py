"""Bring a 3D sensor's files into the layout that main.py reads: rgb png, xyz tiff in metres, gt png.

    python utils/convert.py --xyz part.ply --rgb part.png --width 1280 --height 1024 --output DIR
    python utils/convert.py --input FOLDER --xyz_pattern '{stem}_cloud.ply' --rgb_pattern '{stem}_color.jpg' \\
        --output datasets/own --class_name bracket --split train --kind good
    python utils/convert.py --input ROOT --tree --output datasets/own

Clouds are organised, one point a pixel: PLY, PCD, tiff, npy, npz, or depth images (png of 16 bits, tiff) with the
camera's parameters. With --class_name the files go to OUTPUT/<class>/<split>/<kind>/{rgb,xyz,gt}, else to
OUTPUT/{rgb,xyz,gt}. Nothing is resized. A part that can't be used is named, the others go on, and the exit status is
then 1. Repeating the command leaves equal files alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from utils.console import print_anything, status_of
from utils.files import alone_with, sweep_leftovers
from utils.flags import HelpFormatter, finite_float, named_path, positive, positive_float
from utils.formats.cameras import Camera, CameraError, PinholeCamera, read_camera
from utils.formats.clouds import CloudOptions
from utils.formats.conversion import UNIT_NAMES, Conversion, Outcome, convert_part, tell_unit
from utils.formats.parts import SPLITS, Found, Part, parts_by_pattern, parts_by_tree
from utils.preprocess.workers import run_jobs
from utils.progress import tracked

LOCK_NAME = ".convert.lock"
EXAMPLES_SHOWN = 5  # of each note
INTRINSICS = ("fx", "fy", "cx", "cy")
DISTORTION = ("k1", "k2", "k3", "p1", "p2")
PATTERNS = {"xyz": "xyz_pattern", "rgb": "rgb_pattern", "gt": "mask_pattern"}


class FlagError(ValueError):
    """Flags that do not go together."""


def get_args_parser() -> argparse.ArgumentParser:
    """The script's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_HelpFormatter)
    part = parser.add_argument_group("one part")
    part.add_argument("--xyz", type=named_path, help="its cloud or depth image")
    part.add_argument("--rgb", type=named_path, help="its image; without it the cloud's colours are taken")
    part.add_argument("--mask", type=named_path, help="its mask, where anything but black is a defect")
    folder = parser.add_argument_group("many parts")
    folder.add_argument("--input", type=named_path, help="folder of the sensor's files")
    folder.add_argument(
        "--tree", action="store_true", help="it is laid out as MVTec 3D-AD, in other file types"
    )
    names = {"xyz": "clouds", "rgb": "images", "gt": "masks"}
    for kind, flag in PATTERNS.items():
        folder.add_argument(
            f"--{flag}", help=f"names of the {names[kind]}, with {{stem}} for what pairs them"
        )
    target = parser.add_argument_group("target")
    target.add_argument("--output", type=named_path, required=True, help="folder of the data set")
    target.add_argument("--class_name", type=_folder_name, help="class folder in it")
    target.add_argument("--split", choices=SPLITS, default="train", help="with --class_name")
    target.add_argument(
        "--kind", type=_folder_name, default="good", help="with --class_name: good or a defect"
    )
    target.add_argument("--overwrite", action="store_true", help="replace files that are there and differ")
    _add_sensor_flags(parser.add_argument_group("what the files don't say"))
    parser.add_argument("--num_workers", type=positive, default=os.cpu_count() or 1, help="processes")
    return parser


def _add_sensor_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--unit",
        choices=("auto", "m", "mm"),
        default="auto",
        help="of the clouds; auto: told by their distances",
    )
    add("--width", type=positive, help="pixels a row, of clouds stored as a list of points")
    add("--height", type=positive, help="rows of them")
    add("--depth_scale", type=positive_float, help="metres a unit of a depth image: 0.001 for millimetres")
    add(
        "--camera",
        type=named_path,
        help="JSON of the depth camera: fx, fy, cx, cy ..., or MVTec 3D-AD's file",
    )
    for name in INTRINSICS:
        add(f"--{name}", type=finite_float, help="of the depth camera, in pixels, instead of --camera")
    for name in DISTORTION:
        add(f"--{name}", type=finite_float, help="its distortion (Brown's model, as in OpenCV)")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status, 1 when a part or the run failed."""
    print_anything()
    parser = get_args_parser()
    args = parser.parse_args(argv)
    try:
        options = _cloud_options(args)
        found = _find(args)
        outcomes = _convert_all(found.parts, args, options)
    except FlagError as error:
        parser.error(str(error))
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenProcessPool:
        print("error: a worker was killed, perhaps for memory; use fewer --num_workers", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    print(summarize(outcomes, args.output))
    problems = [*found.problems, *(outcome.problem for outcome in outcomes if outcome.problem)]
    for problem in problems:
        print(f"failed: {problem}", file=sys.stderr)
    return int(bool(problems))


def _convert_all(parts: list[Part], args: argparse.Namespace, options: CloudOptions) -> list[Outcome]:
    told = tell_unit(parts, options) if options.unit == "auto" else None
    if told:
        print(f"unit: {UNIT_NAMES[told]}, told by the distances (name it with --unit {told} if it is so)")
        options = replace(options, unit=told)
    conversion = Conversion(args.output, options, told is not None, args.overwrite)
    args.output.mkdir(parents=True, exist_ok=True)
    busy = f"--output {args.output}: another run is writing there; wait for it to end"
    with alone_with(args.output / LOCK_NAME, busy):
        for folder in {args.output / part.folder for part in parts}:
            sweep_leftovers(folder)
        jobs = run_jobs(partial(convert_part, conversion=conversion), parts, args.num_workers)
        with closing(jobs) as outcomes:
            return list(tracked(outcomes, len(parts), "converted", "part", shown=len(parts) > 1))


def _find(args: argparse.Namespace) -> Found:
    """The parts that the flags name. Raises FlagError, and OSError when there are none."""
    patterns = {kind: value for kind, flag in PATTERNS.items() if (value := getattr(args, flag)) is not None}
    if (args.xyz is None) == (args.input is None):
        raise FlagError("name one part with --xyz, or a folder with --input")
    if args.xyz is not None:
        if args.tree or patterns:
            raise FlagError("--tree and the patterns need --input")
        return Found([Part(args.xyz.stem, _kind_folder(args), args.xyz, args.rgb, args.mask)], [])
    if args.rgb or args.mask:
        raise FlagError(
            "--rgb and --mask belong to --xyz; for --input there are --rgb_pattern and --mask_pattern"
        )
    if args.tree == ("xyz" in patterns) or (args.tree and (patterns or args.class_name)):
        raise FlagError(
            "--input needs either --tree alone, or --xyz_pattern, with --rgb_pattern and --class_name"
        )
    if not args.input.is_dir():
        raise OSError(f"--input {args.input}: no such folder")
    if args.output.resolve() == args.input.resolve():
        raise OSError(f"--output {args.output}: is the folder of the sensor's files; name another one")
    if args.tree:
        found, sought = parts_by_tree(args.input), "<class>/<split>/<kind>/xyz/"
    else:
        found, sought = parts_by_pattern(args.input, patterns, _kind_folder(args)), args.xyz_pattern
    if not found.parts and not found.problems:
        raise OSError(f"--input {args.input}: no file matches {sought}")
    return found


def _kind_folder(args: argparse.Namespace) -> PurePosixPath:
    if args.class_name is None:
        return PurePosixPath()
    return PurePosixPath(args.class_name, args.split, args.kind)


def _cloud_options(args: argparse.Namespace) -> CloudOptions:
    """Raises FlagError, and SampleFileError on the camera's file."""
    if (args.width is None) != (args.height is None):
        raise FlagError("--width and --height go together")
    size = None if args.width is None else (args.width, args.height)
    return CloudOptions(unit=args.unit, size=size, camera=_camera(args), depth_scale=args.depth_scale)


def _camera(args: argparse.Namespace) -> Camera | None:
    given = {name: value for name in INTRINSICS + DISTORTION if (value := getattr(args, name)) is not None}
    if args.camera is not None:
        if given:
            raise FlagError(f"--camera and --{next(iter(given))}: name the camera in one way")
        return read_camera(args.camera)
    if not given:
        return None
    if missing := [f"--{name}" for name in INTRINSICS if name not in given]:
        raise FlagError(f"the camera lacks {', '.join(missing)}")
    try:
        return PinholeCamera(**given)
    except CameraError as error:
        raise FlagError(f"--{error}") from error


def summarize(outcomes: list[Outcome], output: Path) -> str:
    """Counts, the least measured part, and each note with some of the parts that it was made on."""
    done = [outcome for outcome in outcomes if not outcome.problem]
    lines = [f"{output}: {len(done)} of {len(outcomes)} parts converted"]
    if done:
        worst = min(done, key=lambda outcome: outcome.measured)
        lines.append(f"measured points: at least {worst.measured:.1%} of the pixels ({worst.name})")
    notes: dict[str, list[str]] = defaultdict(list)
    for outcome in done:
        for note in outcome.notes:
            notes[note].append(outcome.name)
    for note, names in sorted(notes.items()):
        more = ", ..." if len(names) > EXAMPLES_SHOWN else ""
        lines.append(f"{note} ({len(names)}): {', '.join(names[:EXAMPLES_SHOWN])}{more}")
    return "\n".join(lines)


class _HelpFormatter(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the description as it is written, and the defaults."""


def _folder_name(text: str) -> str:
    if text in ("", ".", "..") or "/" in text or "\\" in text or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is no folder's name")
    return text


if __name__ == "__main__":
    sys.exit(status_of("convert.py", main))
