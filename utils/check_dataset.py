"""Look a data set through before hours of work: files, pairs, units, preprocessing, masks, duplicates.

    python utils/check_dataset.py datasets/mvtec3d/
    python utils/check_dataset.py datasets/mine/ --class_name gear --json > check.json

Prints what each class holds, then one line a finding, most serious first. Exit status: 0 nothing or remarks only,
1 errors, 2 flags that can't be followed. Nothing is written. --json prints one object instead:

    root      the folder
    classes   by name: samples {split: {kind: count}}, image_sizes {"WxH": count}, state "raw" or "preprocessed",
              unit "m" or "mm", median_distance, low [x, y, z], high [x, y, z] (of the measured points, in the
              files' own unit), valid_share [least, median, most]; null for what is unknown or differs in the class
    findings  list of {level "error" or "remark", code, problem, remedy, count, files}; the codes are the rows of
              CODES in utils/check/findings.py; files are relative to root
    errors, remarks, status    how many findings of each level there are, and the exit status
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from utils.check.classes import across_classes, class_findings, equal_files, shared_sizes, summary_of
from utils.check.findings import Finding, Group, grouped
from utils.check.sample import Job, check_sample
from utils.check.tree import PUBLIC_CLASSES, SPLITS, class_folders, list_tree
from utils.console import one_line, print_anything, status_of
from utils.flags import named_path, positive
from utils.plausibility import Unit
from utils.preprocess.workers import run_jobs
from utils.progress import tracked


class Check(NamedTuple):
    """What a data set holds, by class, and what was found."""

    root: Path
    classes: dict[str, dict[str, Any]]
    groups: list[Group]

    def count(self, level: str) -> int:
        """Findings of a level, each group one."""
        return sum(group.level == level for group in self.groups)

    @property
    def status(self) -> int:
        """The exit status."""
        return int(self.count("error") > 0)


def check_dataset(
    root: Path,
    wanted: list[str] | None,
    num_workers: int,
    dataset_type: str | None = None,
    unit: Unit | None = None,
) -> Check:
    """Check the `wanted` classes under `root`, None: all that are there; remark on the data set's absent ones.

    unit: that of all points, None = judged by their distances.
    """
    tree = list_tree(root, wanted)
    sizes = shared_sizes(tree.samples)
    jobs = [
        Job(root, entry, frozenset(part for part, size in entry.sizes.items() if (part, size) in sizes))
        for entry in tree.samples
    ]
    with closing(run_jobs(check_sample, jobs, num_workers)) as results:
        facts = [replace(one, stated_unit=unit) for one in tracked(results, len(jobs), "checked")]
    by_class = {name: [one for one in facts if one.entry.class_name == name] for name in tree.classes}
    summaries = {name: summary_of(ones) for name, ones in by_class.items()}
    findings = [
        *tree.findings,
        *(finding for one in facts for finding in one.findings),
        *(finding for name, ones in by_class.items() for finding in class_findings(name, ones)),
        *across_classes(root, summaries),
        *equal_files(root, facts),
        *_absent(root, dataset_type, tree.classes),
    ]
    return Check(
        root, {one_line(name): summary for name, summary in summaries.items()}, grouped(findings, root)
    )


def as_text(check: Check) -> str:
    """The check in lines for people."""
    lines = [line for name, summary in check.classes.items() for line in _class_lines(name, summary)]
    lines += [group.line() for group in check.groups]
    lines.append(f"{check.count('error')} errors, {check.count('remark')} remarks")
    return "\n".join(lines)


def as_json(check: Check) -> str:
    """The check as the JSON object that the module's docstring describes."""
    findings = [
        {
            "level": group.level,
            "code": group.code,
            "problem": group.problem,
            "remedy": group.remedy,
            "count": len(group.files),
            "files": group.files,
        }
        for group in check.groups
    ]
    value = {
        "root": one_line(str(check.root)),
        "classes": check.classes,
        "findings": findings,
        "errors": check.count("error"),
        "remarks": check.count("remark"),
        "status": check.status,
    }
    return json.dumps(value, indent=2, allow_nan=False)


def _class_lines(name: str, summary: dict[str, Any]) -> list[str]:
    splits = [
        f"{split} {', '.join(f'{one_line(kind)} {count}' for kind, count in kinds.items())}"
        for split, kinds in summary["samples"].items()
    ]
    lines = [f"{name}: {'; '.join(splits) or 'no samples'}"]
    if summary["median_distance"] is not None:
        least, median, most = summary["valid_share"]
        ranges = ", ".join(
            f"{axis} {low:.3g} to {high:.3g}"
            for axis, low, high in zip("xyz", summary["low"], summary["high"], strict=True)
        )
        lines.append(
            f"  {', '.join(summary['image_sizes'])} pixels, {median:.1%} of them measured ({least:.1%} to {most:.1%}); "
            f"{summary['state'] or 'preprocessed or not?'}; unit {summary['unit'] or '?'}, {ranges}, "
            f"median distance {summary['median_distance']:.3g}"
        )
    return lines


def get_args_parser() -> argparse.ArgumentParser:
    """Parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "root", metavar="ROOT", type=named_path, help="folder of the data set, with one folder a class"
    )
    parser.add_argument(
        "--unit",
        choices=["auto", "m", "mm"],
        default="auto",
        help="of all points (default: told by their distances)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--dataset_type", choices=sorted(PUBLIC_CLASSES), help="check its classes only (default: all folders)"
    )
    parser.add_argument("--class_name", nargs="+", help="check these classes only")
    parser.add_argument(
        "--num_workers", type=positive, default=os.cpu_count(), help="processes (default: all cores)"
    )
    return parser


def _wanted_classes(root: Path, dataset_type: str | None, class_names: list[str] | None) -> list[str] | None:
    """The classes to check, None for all. Raises ValueError where the flags do not fit the folder."""
    try:
        present = class_folders(root)
        is_class = any((root / split).is_dir() for split in SPLITS)
    except OSError as error:
        raise ValueError(f"ROOT {root}: can't be listed ({error.strerror})") from error
    if is_class:
        raise ValueError(f"ROOT {root}: looks like one class; name the folder that holds it, {root.parent}")
    if class_names:
        missing = [name for name in class_names if name not in present]
        if missing:
            there = ", ".join(present) or "none"
            raise ValueError(f"--class_name {' '.join(missing)}: no such class; classes there: {there}")
        return list(dict.fromkeys(class_names))
    if dataset_type is None:
        return None
    wanted = [name for name in PUBLIC_CLASSES[dataset_type] if name in present]
    if not wanted:
        raise ValueError(f"--dataset_type {dataset_type}: {root} holds none of its classes")
    return wanted


def _absent(root: Path, dataset_type: str | None, classes: Iterable[str]) -> list[Finding]:
    names = PUBLIC_CLASSES[dataset_type] if dataset_type else ()
    absent = [name for name in names if name not in classes]
    return (
        [Finding("absent_class", str(root), f"{dataset_type} also has {', '.join(absent)}")] if absent else []
    )


def main() -> int:
    """Run the command line; the exit status."""
    print_anything()
    parser = get_args_parser()
    args = parser.parse_args()
    try:
        wanted = _wanted_classes(args.root, args.dataset_type, args.class_name)
    except ValueError as error:
        print(f"{parser.prog}: error: {one_line(str(error))}", file=sys.stderr)
        return 2
    try:
        dataset_type = None if args.class_name else args.dataset_type
        unit = None if args.unit == "auto" else args.unit
        check = check_dataset(args.root, wanted, args.num_workers, dataset_type, unit)
    except BrokenProcessPool:
        print(
            f"error: a worker was killed, perhaps for lack of memory; use fewer than --num_workers "
            f"{args.num_workers}",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(as_json(check) if args.json else as_text(check))
    return check.status


if __name__ == "__main__":
    sys.exit(status_of("check_dataset.py", main))
