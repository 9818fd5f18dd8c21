"""The end of a run: the classes' results joined, rows in the tables, reports, and what went wrong."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

from evaluation.options import TEMPORARY_FEATURES, RunOptions, Variant
from evaluation.study import summary
from feature_extractors.settings import Settings
from m3dm_runner import M3DM
from utils.files import write_json
from utils.metrics import METRICS, mean_over_classes
from utils.report.run_report import write_report
from utils.reporting import TableRow, append_tables, problem_lines
from utils.results import RESULTS_NAME, ResultsFolder, others_waiting

Record = Mapping[str, Any]  # what results.json holds
REPORT_NAME = "report.html"


class VariantRun(NamedTuple):
    """One variant with its model, which shares the networks with the others, and its results folder."""

    variant: Variant
    model: M3DM
    results: ResultsFolder


def remove_stale(options: RunOptions) -> None:
    """Before classes are done: what the run will write at its end must not stand for it until then."""
    names = [RESULTS_NAME, REPORT_NAME] if options.is_study else [REPORT_NAME]
    for variant in options.variants:
        (options.results_dir / variant.name / REPORT_NAME).unlink(missing_ok=True)
    for name in names:
        (options.results_dir / name).unlink(missing_ok=True)


def finish(options: RunOptions, runs: Sequence[VariantRun], names: Sequence[str]) -> int:
    """Join the classes' results, append the rows to the tables, write the reports; returns the exit status."""
    with ExitStack() as held:
        for folder in sorted({options.results_dir, *(run.results.folder for run in runs)}):
            held.enter_context(others_waiting(folder))
        records = {run.variant.name: run.results.joined(ending=names) for run in runs}
        shown = [_write_tables_and_report(run, records[run.variant.name]) for run in runs]
        print(_write_summary(options, runs, records) if options.is_study else shown[0])
        for run in runs:
            run.results.complete(names)  # last: a run cut in the tables goes on with them
    with suppress(OSError):  # there is none, or another run's are in it
        (options.results_dir / TEMPORARY_FEATURES).rmdir()
    return max(_tell_problems(run, records[run.variant.name], names) for run in runs)


def row_name(options: RunOptions) -> str:
    """Of a plain run."""
    return options.method_name + (" (random weights)" if options.random_weights else "")


def _write_tables_and_report(run: VariantRun, record: Record) -> str:
    """Returns what is to be shown on the screen: the tables, and where the report is."""
    report = write_report(run.results.folder, record, Settings(record["method_name"]).as_dict())
    tables = append_tables(run.results.folder, [TableRow(record["row"], record["classes"])])
    return f"{tables}\nreport: {report}"


def _tell_problems(run: VariantRun, record: Record, names: Sequence[str]) -> int:
    """What went wrong with this run's classes; returns 1 when one failed, is doubtful or not there."""
    where = f"{run.variant.name}: " if run.variant.name else ""
    for line in problem_lines(dict(record), list(names)):
        print(f"{where}{line}", file=sys.stderr)
    others = run.results.of_other_runs()
    if others:
        print(
            f"{where}in {run.results.folder} other runs' classes are left as they are, and not joined with these: "
            f"{', '.join(others)}"
        )
    trusted = [name for name in names if not record["classes"].get(name, {"doubt": "not there"})["doubt"]]
    return int(len(trusted) < len(names))


def _write_summary(options: RunOptions, runs: Sequence[VariantRun], records: Mapping[str, Record]) -> str:
    """The study's results.json and tables: mean and deviation over the variants, of the classes that all have."""
    first = next(iter(records.values()))
    everywhere = [name for name in first["classes"] if all(name in r["classes"] for r in records.values())]
    classes = {
        name: summary({variant: record["classes"][name] for variant, record in records.items()})
        for name in everywhere
    }
    failed: dict[str, str] = {}
    for variant, record in records.items():
        failed |= {name: f"{variant}: {reason}" for name, reason in record["failed_classes"].items()}
    row = f"{row_name(options)}{runs[0].variant.row_suffix} ({len(runs)} variants)"
    content = {
        **first,
        **{"row": row, "shot_seed": None, "shake_seed": None, "variants": list(records)},
        "complete": all(record["complete"] for record in records.values()),
        **{"classes": classes, "failed_classes": failed},
    }
    write_json(options.results_dir / RESULTS_NAME, content)
    deviations = {name: result["deviation"] for name, result in classes.items()}
    of_means = {metric.key: _deviation_of_means(metric.key, classes) for metric in METRICS}
    return append_tables(
        options.results_dir,
        [TableRow(f"{row}, mean", classes), TableRow(f"{row}, deviation", deviations, of_means)],
    )


def _deviation_of_means(key: str, classes: Mapping[str, Any]) -> float | None:
    """Sample standard deviation of the mean over the classes, over the variants."""
    columns = [[values[key] for values in result["variants"].values()] for result in classes.values()]
    means = [mean_over_classes(of_variant) for of_variant in zip(*columns, strict=True)]
    known = [mean for mean in means if mean is not None]
    return statistics.stdev(known) if len(known) == len(means) > 1 else None
