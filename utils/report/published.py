"""Published figures of MVTec 3D-AD, as data: published.csv beside this file, a row a figure; nobody types one twice."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from utils.metrics import METRICS, mean_of_all

PUBLISHED = Path(__file__).with_name("published.csv")
IN_FILES = "mean"  # in place of a class: over all classes of the data set
MEAN = "/mean"  # the same here: no folder, and so no class, has such a name
TITLES = {metric.key: metric.title for metric in METRICS}


@dataclass(frozen=True)
class Figure:
    """One figure.

    name: of the row of figures, `paper` (its main row) or `paper/row`; method_name: our `--method_name`, empty
    where we have no such method; method: what the source calls it; metric: a key of METRICS; class_name: or MEAN.
    """

    name: str
    method_name: str
    method: str
    modality: str
    metric: str
    class_name: str
    value: float
    source: str


@lru_cache
def published_figures() -> tuple[Figure, ...]:
    """All of them, in the file's order."""
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return tuple(
        Figure(
            row["name"],
            row["method_name"],
            row["method"],
            row["modality"],
            row["metric"],
            MEAN if row["class"] == IN_FILES else row["class"],
            float(row["value"]),
            row["source"],
        )
        for row in rows
    )


def of_method(method_name: str) -> list[Figure]:
    """Those of one of our methods; [] where none is known."""
    return [figure for figure in published_figures() if figure.method_name == method_name]


def names() -> list[str]:
    """The names of all rows, in the file's order."""
    return list(dict.fromkeys(figure.name for figure in published_figures()))


def counterpart(name: str, method_name: str) -> list[Figure]:
    """What a method of ours is compared with: the named row, or of a paper the row of the same method.

    A paper without such a row is represented by its main row. name: one of `names()`.
    """
    in_paper = [f for f in of_method(method_name) if "/" not in name and f.name.partition("/")[0] == name]
    return in_paper or [figure for figure in published_figures() if figure.name == name]


def value_of(figures: Collection[Figure], metric: str, class_name: str) -> float | None:
    """The figure of a metric and a class; None where it is not known."""
    found = (f.value for f in figures if (f.metric, f.class_name) == (metric, class_name))
    return next(found, None)


def mean_of(figures: Collection[Figure], metric: str, classes: Collection[str]) -> float | None:
    """The published mean over just these classes, as printed where they are all; None where it is not known."""
    if set(classes) == set(all_classes()):
        return value_of(figures, metric, MEAN)
    return mean_of_all(value_of(figures, metric, name) for name in classes)


def all_classes() -> list[str]:
    """The classes that figures are known of, in the file's order."""
    return list(dict.fromkeys(f.class_name for f in published_figures() if f.class_name != MEAN))


def label(figures: Sequence[Figure]) -> str:
    """What one row of figures is called, with its modality."""
    return f"{figures[0].method}, {figures[0].modality}"


def markdown_table() -> str:
    """All figures as a markdown table, a line a row and a metric; empty where nothing is known."""
    columns = [*all_classes(), MEAN]
    lines = [
        ["name", "method", "`--method_name`", "metric", *all_classes(), IN_FILES],
        ["---"] * (len(columns) + 4),
    ]
    for name in names():
        figures = [figure for figure in published_figures() if figure.name == name]
        method_name = f"`{figures[0].method_name}`" if figures[0].method_name else ""
        for metric in dict.fromkeys(figure.metric for figure in figures):
            values = [value_of(figures, metric, column) for column in columns]
            cells = ["" if value is None else f"{value:.3f}" for value in values]
            lines.append([f"`{name}`", label(figures), method_name, TITLES[metric], *cells])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
