"""Tables for a paper out of results folders: runs as rows, classes as columns, published figures beside them.

    python utils/tables.py results/two_banks results/three_banks --against m3dm
    python utils/tables.py results/seed_0 results/seed_1 results/seed_2 --join --format latex --output table.tex
    python utils/tables.py results/study --metric au_pro_exact_01 image_ap --format csv

Each folder is one row. A study (a results.json that holds variants) is one row of mean and sample deviation. A folder
without results.json stands for its sub-folders, joined as by --join: runs of the same row name, settings and weights
that differ in seeds only become one row. The mean is over all columns; a row that lacks one of them has none.
Random weights, runs cut and classes that are doubtful or failed are named on stderr.

Exit status: 0; 1 when a folder can't be read, and then nothing is written; 2 flags that can't be followed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.console import one_line, print_anything
from utils.files import write_text
from utils.flags import HelpFormatter
from utils.metrics import METRICS
from utils.report.formats import FORMATS
from utils.report.joined import named_apart, remarks
from utils.report.published import names
from utils.report.runs import ResultsError, Run, join, read_folder, why_apart
from utils.reporting import TABLES

METRIC_ROWS = {metric.key: metric for metric in METRICS}


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Tables of runs beside published figures.", formatter_class=HelpFormatter
    )
    add = parser.add_argument
    add(
        "results",
        type=Path,
        nargs="+",
        metavar="RESULTS_DIR",
        help="--results_dir of a run, or the folder of several",
    )
    add(
        "--against",
        nargs="+",
        default=[],
        choices=names(),
        metavar="NAME",
        help="published figures to compare with; a paper's name means its row of the same --method_name, else its "
        f"main row. Names: {', '.join(names())}",
    )
    add("--format", choices=list(FORMATS), default="markdown")
    add(
        "--metric",
        nargs="+",
        choices=list(METRIC_ROWS),
        default=[metric.key for metric in TABLES],
        metavar="KEY",
        help=f"one table each, of {', '.join(METRIC_ROWS)}",
    )
    add(
        "--join",
        action="store_true",
        help="runs that differ in seeds only become one row: mean and deviation",
    )
    add("--output", type=Path, metavar="FILE", help="write there instead of to the screen")
    return parser


def read_rows(folders: Iterable[Path], joining: bool) -> list[Run]:
    """The rows of all folders, each folder once, in order. Raises ResultsError."""
    runs = [run for folder in dict.fromkeys(folders) for run in read_folder(folder)]
    return join(runs) if joining else runs


def apart_lines(rows: Iterable[Run]) -> list[str]:
    """Why rows of one name are not one row."""
    return [
        f"{one.folders[0]} and {other.folders[0]} are two rows: {reason}"
        for one, other in combinations(rows, 2)
        if one.name == other.name and (reason := why_apart(one, other))
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    print_anything()
    parser = get_args_parser()
    args = parser.parse_args(argv)
    try:
        rows = read_rows(args.results, args.join)
        metrics = [METRIC_ROWS[key] for key in dict.fromkeys(args.metric)]
        named = named_apart(rows)
        text = FORMATS[args.format](named, metrics, list(dict.fromkeys(args.against)))
        for line in [*remarks(named), *apart_lines(rows)]:
            print(one_line(f"{parser.prog}: {line}"), file=sys.stderr)
        if args.output:
            write_text(args.output, text)
        else:
            print(text, end="")
    except (ResultsError, OSError) as error:
        print(one_line(f"{parser.prog}: error: {error}"), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
