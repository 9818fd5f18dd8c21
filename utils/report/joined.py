"""Runs and published figures as tables: a line a run or a published row, a column a class, then the mean."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from utils.class_names import EYECANDIES_CLASSES, MVTEC3D_CLASSES
from utils.metrics import Metric, mean_of_all
from utils.report import published
from utils.report.page import difference
from utils.report.published import Figure
from utils.report.runs import Run

ORDER = {name: i for i, name in enumerate((*MVTEC3D_CLASSES, *EYECANDIES_CLASSES))}
Kind = Literal["ours", "published", "difference"]


class Value(NamedTuple):
    """Mean over `n` variants and its sample deviation, None for one variant; value None: not available."""

    value: float | None
    deviation: float | None = None
    n: int = 0


NOTHING = Value(None)


@dataclass(frozen=True)
class Cell:
    """text: of a cell that is no value, such as a difference; doubtful: to be marked."""

    value: Value = NOTHING
    text: str = ""
    doubtful: bool = False


@dataclass(frozen=True)
class Line:
    """ranked: whether it competes for the best of a column."""

    name: str
    kind: Kind
    cells: tuple[Cell, ...]
    ranked: bool = False


@dataclass(frozen=True)
class Table:
    """One metric; `columns` are classes, and each line has one more cell, the mean."""

    metric: Metric
    columns: tuple[str, ...]
    lines: tuple[Line, ...]


def columns_of(runs: Iterable[Run]) -> tuple[str, ...]:
    """All classes, done or failed, in the data sets' order; others follow in the order they are met."""
    names = dict.fromkeys(name for run in runs for name in (*run.samples, *run.failed))
    return tuple(sorted(names, key=lambda name: ORDER.get(name, len(ORDER))))


def named_apart(runs: Sequence[Run]) -> list[Run]:
    """The same runs; names that several of them have are followed by the folder."""
    names = [run.name for run in runs]
    return [
        replace(run, name=f"{run.name} [{run.folders[0]}]") if names.count(run.name) > 1 else run
        for run in runs
    ]


def class_value(run: Run, metric: str, name: str) -> Value:
    """A class over the variants that have it."""
    return _over([metrics[metric] for metrics in run.samples.get(name, {}).values()])


def mean_value(run: Run, metric: str, columns: Sequence[str]) -> Value:
    """The mean over all columns, over the variants that have them all; not available where none has."""
    variants = dict.fromkeys(variant for samples in run.samples.values() for variant in samples)
    return _over([_variant_mean(run, metric, columns, variant) for variant in variants])


def make_table(runs: Sequence[Run], metric: Metric, columns: Sequence[str], against: Sequence[str]) -> Table:
    """The published rows asked for, then each run, followed by its differences to them."""
    lines = [_published_line(figures, metric.key, columns) for figures in compared_rows(runs, against)]
    for run in runs:
        line = _our_line(run, metric.key, columns)
        lines += [line, *(_difference_line(line, f, metric.key, columns) for f in rows_of(run, against))]
    return Table(metric, tuple(columns), tuple(lines))


def rows_of(run: Run, against: Iterable[str]) -> list[list[Figure]]:
    """The published rows that a run is compared with, each once; against: names of `published.names`."""
    rows = [published.counterpart(name, run.method_name) for name in against]
    return list({figures[0].name: figures for figures in rows}.values())


def compared_rows(runs: Iterable[Run], against: Iterable[str]) -> list[list[Figure]]:
    """Every published row that a run is compared with, once."""
    rows = [figures for name in against for run in runs for figures in rows_of(run, [name])]
    return list({figures[0].name: figures for figures in rows}.values())


def published_value(
    figures: Sequence[Figure], metric: str, column: str | None, columns: Sequence[str]
) -> float | None:
    """Of a class, or with None the mean over the columns; None where it is not known."""
    if column is None:
        return published.mean_of(figures, metric, columns)
    return published.value_of(figures, metric, column)


def remarks(runs: Iterable[Run]) -> list[str]:
    """A line on each thing that makes figures doubtful: random weights, other data, runs cut, classes that failed."""
    lines = []
    for run in runs:
        if run.random_weights:
            lines.append(f"{run.name}: random weights: these figures mean nothing")
        if len(run.datasets) > 1:
            lines.append(f"{run.name}: one row of {' and '.join(run.datasets)}: are these the same data?")
        counts = {name: len(variants) for name, variants in run.samples.items()}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{name} {count}" for name, count in counts.items())
            lines.append(
                f"{run.name}: some classes have more seeds than others ({told}); the mean is over those of all"
            )
        if not run.complete:
            lines.append(f"{run.name}: the run is not complete")
        lines += [f"{run.name}: {name}: failed: {why}" for name, why in run.failed.items()]
        lines += [f"{run.name}: {name}: doubtful: {why}" for name, why in run.doubts.items()]
    return lines


def _over(values: Iterable[float | None]) -> Value:
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Value(statistics.fmean(known), deviation, len(known))


def _variant_mean(run: Run, metric: str, columns: Sequence[str], variant: str) -> float | None:
    return mean_of_all(run.samples.get(name, {}).get(variant, {}).get(metric) for name in columns)


def _our_line(run: Run, metric: str, columns: Sequence[str]) -> Line:
    odd = {*run.doubts, *run.failed}
    cells = [
        Cell(class_value(run, metric, name), doubtful=name in odd)
        if run.samples.get(name)
        else Cell(text="failed" if name in run.failed else "")
        for name in columns
    ]
    cells.append(Cell(mean_value(run, metric, columns), doubtful=not odd.isdisjoint(columns)))
    return Line(run.name, "ours", tuple(cells), ranked=not run.random_weights)


def _published_line(figures: Sequence[Figure], metric: str, columns: Sequence[str]) -> Line:
    values = (published_value(figures, metric, column, columns) for column in (*columns, None))
    name = f"{published.label(figures)} (published)"
    return Line(name, "published", tuple(Cell(Value(value)) for value in values), ranked=True)


def _difference_line(ours: Line, figures: Sequence[Figure], metric: str, columns: Sequence[str]) -> Line:
    theirs = [published_value(figures, metric, column, columns) for column in (*columns, None)]
    cells = [
        Cell(text=difference(cell.value.value, value).text)
        for cell, value in zip(ours.cells, theirs, strict=True)
    ]
    return Line(f"difference to {published.label(figures)}", "difference", tuple(cells))
