"""Result files: the release's three markdown tables, and the scores of each class."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.files import write_text
from utils.metrics import METRICS
from utils.structures import Thresholds

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "numba", "pillow", "tifffile")
NOT_AVAILABLE = "n/a"
LABELS = {0: "good", 1: "defect"}


TABLES = tuple(metric for metric in METRICS if metric.table_file)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def markdown_table(row_name: str, values: dict[str, float | None]) -> str:
    """A table of one row: a column a class and their mean, three decimals; what is not available says so."""
    known = [value for value in values.values() if value is not None]
    mean = sum(known) / len(known) if known else None
    cells = {**values, "Mean": mean}
    header = ["Method", *(name.title() if name.islower() else name for name in cells)]
    row = [row_name, *(format_metric(value) for value in cells.values())]
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, row)) + "\n"


def check_tables(folder: Path) -> None:
    """Find out now that a table's file can't be appended to. Raises ValueError or OSError naming it."""
    for table in TABLES:
        _read_table(folder / str(table.table_file))


def append_tables(folder: Path, row_name: str, classes: Mapping[str, Mapping[str, Any]]) -> str:
    """Append a row to each of the three tables' files, unless it is the last one there; returns the run's tables.

    Without a class nothing is written.
    """
    if not classes:
        return ""
    texts = []
    for table in TABLES:
        text = markdown_table(row_name, {name: result[table.key] for name, result in classes.items()})
        path = folder / str(table.table_file)
        write_text(path, _with_row(_read_table(path) or f"# {table.title}\n", text))
        texts.append(f"{table.title}\n{text}")
    return "\n".join(texts)


def write_scores(folder: Path, class_name: str, rows: list[tuple[str, int | None, float]]) -> None:
    """Write scores/<class>.csv: path, label (empty where unknown), score.

    Scores are written as the shortest text that reads back equal.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "score"])
    writer.writerows([path, "" if label is None else label, repr(score)] for path, label, score in rows)
    write_text(folder / "scores" / f"{class_name}.csv", text.getvalue())


def class_summary(name: str, result: dict[str, Any]) -> str:
    """One line on a class that is done."""
    metrics = ", ".join(f"{table.title} {format_metric(result[table.key])}" for table in TABLES)
    skipped = len(result["skipped_samples"])
    left_out = f"; samples left out: {skipped}" if skipped else ""
    return f"{name}: {metrics} ({sum(result['seconds'].values()):.0f} s){left_out}"


def problem_lines(record: dict[str, Any], classes: list[str]) -> list[str]:
    """A line on each sample left out, each class whose results are doubtful and each that failed, among `classes`."""
    left_out = [
        f"{name}: left out {sample['path']}: {sample['reason']}"
        for name in classes
        if name in record["classes"]
        for sample in record["classes"][name]["skipped_samples"]
    ]
    doubtful = [
        f"{name}: doubtful: {doubt}"
        for name in classes
        if name in record["classes"] and (doubt := record["classes"][name].get("doubt"))
    ]
    failed = [
        f"{name}: failed: {reason}" for name, reason in record["failed_classes"].items() if name in classes
    ]
    return left_out + doubtful + failed


def format_metric(value: float | None) -> str:
    """Three decimals, or that the value is not available."""
    return NOT_AVAILABLE if value is None else f"{value:.3f}"


def in_words(score: float, label: int | None, thresholds: Thresholds | None) -> str:
    """A sample's score, the threshold and the verdict where there is one, and the truth where it is known."""
    verdict = ""
    if thresholds is not None:
        said = "anomalous" if score > thresholds.image else "good"
        verdict = f", threshold {thresholds.image:.4g}: {said}"
    truth = "" if label is None else f"; truth: {LABELS[label]}"
    return f"score {score:.4g}{verdict}{truth}"


def _read_table(path: Path) -> str:
    """The file's text, "" where there is none."""
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8, so no row can be appended; convert or move it") from error


def _with_row(before: str, table: str) -> str:
    """The file's text with the table's row under its last table, or the table where the columns differ."""
    header, rule, row = table.splitlines()
    lines = before.splitlines()
    headers = [line for line in lines if line.startswith("| Method |")]
    if headers and headers[-1] == header:
        # a run that was cut may have been here before
        return before if lines[-1] == row else f"{before}{row}\n"
    return f"{before}\n{header}\n{rule}\n{row}\n"
