"""The end of a run: the classes' results joined, rows in the tables, reports, and what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

from evaluation.options import TEMPORARY_FEATURES, RunOptions, Variant
from evaluation.study import deviation, same_in_all, summary
from feature_extractors.settings import Settings
from m3dm_runner import M3DM
from utils.files import remove, write_json
from utils.metrics import METRICS, mean_of_all
from utils.report.run_report import write_report
from utils.reporting import TableRow, append_tables, problem_lines
from utils.results import REPORT_NAME, RESULTS_NAME, ResultsFolder, others_waiting, remove_class

Record = Mapping[str, Any]  # what results.json holds


class VariantRun(NamedTuple):
    """One variant with its model, which shares the networks with the others, and its results folder."""

    variant: Variant
    model: M3DM
    results: ResultsFolder


def remove_stale(options: RunOptions, classes: Sequence[str]) -> None:
    """Before classes are done: what the run will write at its end must not stand for it until then.

    A study has its classes' files in its variants' folders: what a plain run has left beside these goes.
    """
    for folder in {
        options.results_dir,
        *(options.results_dir / variant.name for variant in options.variants),
    }:
        remove(folder / REPORT_NAME)
    if options.is_study:
        remove(options.results_dir / RESULTS_NAME)
        for name in classes:
            remove_class(options.results_dir, name)


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
            f"{where}in {run.results.folder} classes of runs with other data, settings, weights or packages are left "
            f"as they are, and not joined with these: {', '.join(others)}"
        )
    for name in names:
        if name not in record["classes"] and name not in record["failed_classes"]:
            print(
                f"{where}{name}: no result of this run in {run.results.folder}; what removed it?",
                file=sys.stderr,
            )
    trusted = [name for name in names if not record["classes"].get(name, {"doubt": "not there"})["doubt"]]
    return int(len(trusted) < len(names))


def _write_summary(options: RunOptions, runs: Sequence[VariantRun], records: Mapping[str, Record]) -> str:
    """The study's results.json and tables: mean and deviation over the variants, of the classes that all have."""
    first = next(iter(records.values()))
    _warn_of_copies(records)
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
        "settings": _of_all_variants([record["settings"] for record in records.values()]),
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
    return deviation([mean_of_all(of_variant) for of_variant in zip(*columns, strict=True)])


def _of_all_variants(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings; None for those that the variants differ in."""
    return {key: same_in_all(of_one[key] for of_one in settings) for key in settings[0]}


def _warn_of_copies(records: Mapping[str, Record]) -> None:
    """Where half of the variants give figures of others: seeds that decide nothing make deviations look too small."""
    figures = [
        tuple(result[metric.key] for result in record["classes"].values() for metric in METRICS)
        for record in records.values()
    ]
    copies = len(figures) - len(set(figures))
    if 2 * copies >= len(figures) and figures[0]:
        print(
            f"warning: {copies} of {len(figures)} variants give the very figures of another one: a seed that changes "
            "nothing is no sample, and makes the deviations too small",
            file=sys.stderr,
        )
