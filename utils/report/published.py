"""Published figures, as data: published.csv beside this file, a row a figure; nobody types one twice."""

from __future__ import annotations

import csv
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from utils.metrics import METRICS

PUBLISHED = Path(__file__).with_name("published.csv")
MEAN = "mean"  # over all classes of the data set
TITLES = {metric.key: metric.title for metric in METRICS}


@dataclass(frozen=True)
class Figure:
    """One figure: our `--method_name`, what the source calls the method, a key of METRICS, a class or MEAN."""

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
            row["method_name"],
            row["method"],
            row["modality"],
            row["metric"],
            row["class"],
            float(row["value"]),
            row["source"],
        )
        for row in rows
    )


def of_method(method_name: str) -> list[Figure]:
    """Those of one of our methods; [] where none is known."""
    return [figure for figure in published_figures() if figure.method_name == method_name]


def value_of(figures: Collection[Figure], metric: str, class_name: str) -> float | None:
    """The figure of a metric and a class; None where it is not known."""
    found = (f.value for f in figures if (f.metric, f.class_name) == (metric, class_name))
    return next(found, None)


def mean_of(figures: Collection[Figure], metric: str, classes: Collection[str]) -> float | None:
    """The published mean over just these classes, as printed where they are all; None where it is not known."""
    if set(classes) == set(all_classes()):
        return value_of(figures, metric, MEAN)
    known = [value_of(figures, metric, name) for name in classes]
    values = [value for value in known if value is not None]
    return sum(values) / len(values) if values and len(values) == len(known) else None


def all_classes() -> list[str]:
    """The classes that figures are known of, in the file's order."""
    return list(dict.fromkeys(f.class_name for f in published_figures() if f.class_name != MEAN))


def markdown_table() -> str:
    """All figures as a markdown table, a row a method and a metric; empty where nothing is known."""
    columns = [*all_classes(), MEAN]
    rows = dict.fromkeys((f.method_name, f.method, f.modality, f.metric) for f in published_figures())
    lines = [["method", "`--method_name`", "metric", *columns], ["---"] * (len(columns) + 3)]
    for method_name, method, modality, metric in rows:
        values = [value_of(of_method(method_name), metric, name) for name in columns]
        cells = ["" if value is None else f"{value:.3f}" for value in values]
        lines.append([f"{method}, {modality}", f"`{method_name}`", TITLES[metric], *cells])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
