"""Result files: the release's three markdown tables, and the scores of each class."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.console import one_line
from utils.files import check_regular, write_text
from utils.metrics import METRICS, mean_of_all
from utils.structures import Thresholds

NOT_AVAILABLE = "n/a"
LABELS = {0: "good", 1: "defect"}
TABLES = tuple(metric for metric in METRICS if metric.table_file)


def markdown_table(row_name: str, values: dict[str, float | None]) -> str:
    """A table of one row: a column a class and their mean, three decimals; what is not available says so."""
    return _table(row_name, {**values, "Mean": mean_of_all(values.values())})


def _table(row_name: str, cells: dict[str, float | None]) -> str:
    header = ["Method", *(in_cell(name.title() if name.islower() else name) for name in cells)]
    row = [in_cell(row_name), *(format_metric(value) for value in cells.values())]
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, row)) + "\n"


def in_cell(text: str) -> str:
    """`text` as a cell of a markdown table."""
    return one_line(text).replace("|", "\\|")


def check_tables(folder: Path) -> None:
    """Find out now that a table's file can't be appended to. Raises ValueError or OSError naming it."""
    for table in TABLES:
        _read_table(folder / str(table.table_file))


class TableRow(NamedTuple):
    """A row's name, its metrics by class and key, and, where it is not their mean, what stands in the last column."""

    name: str
    classes: Mapping[str, Mapping[str, Any]]
    last: Mapping[str, float | None] | None = None


def append_tables(folder: Path, rows: Sequence[TableRow]) -> str:
    """Append rows of equal classes to each of the three tables' files; returns these rows' tables as one text.

    Nothing is written without a class, or where the rows are the last ones there: then a run that was cut, or an equal
    one, has been there before.
    """
    if not rows[0].classes:
        return ""
    texts = []
    for table in TABLES:
        lines = [_of_table(row, table.key).splitlines() for row in rows]
        header, rule = lines[0][:2]
        own = [line[2] for line in lines]
        path = folder / str(table.table_file)
        write_text(path, _with_rows(_read_table(path) or f"# {table.title}\n", header, rule, own))
        texts.append("\n".join([table.title, header, rule, *own, ""]))
    return "\n".join(texts)


def _of_table(row: TableRow, key: str) -> str:
    values = {name: result[key] for name, result in row.classes.items()}
    return (
        markdown_table(row.name, values)
        if row.last is None
        else _table(row.name, {**values, "Mean": row.last[key]})
    )


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
    check_regular(path)
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8, so no row can be appended; convert or move it") from error


def _with_rows(before: str, header: str, rule: str, rows: list[str]) -> str:
    """The file's text with rows under its last table, or in a new one where the columns differ."""
    before += "" if before.endswith("\n") else "\n"  # a file that was edited by hand
    lines = before.splitlines()
    headers = [line for line in lines if line.startswith("| Method |")]
    same_table = headers and headers[-1] == header
    if same_table and lines[-len(rows) :] == rows:
        return before
    own = "\n".join(rows)
    return f"{before}{own}\n" if same_table else f"{before}\n{header}\n{rule}\n{own}\n"
