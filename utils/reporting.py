"""Result files: the release's three markdown tables, results.json, the scores of each class."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import os
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.files import write_json, write_text

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "numba", "pillow", "tifffile")
NOT_AVAILABLE = "n/a"


@dataclass(frozen=True)
class Table:
    """One markdown table: its title, its file, and the metric's key in results.json."""

    title: str
    file: str
    metric: str


TABLES = (
    Table("Image ROCAUC", "image_rocauc_results.md", "image_rocauc"),
    Table("Pixel ROCAUC", "pixel_rocauc_results.md", "pixel_rocauc"),
    Table("AU PRO", "aupro_results.md", "au_pro"),
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def check_writable(folder: Path) -> None:
    """Find out now, not after hours, that results can't be written. Raises OSError naming the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".write_test") as probe:
            probe.write(b"\0" * 65536)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise OSError(
            f"--results_dir {folder}: can't write there ({error.strerror}); choose another"
        ) from error


def markdown_table(row_name: str, values: dict[str, float | None]) -> str:
    """A table of one row: a column a class and their mean, three decimals; what is not available says so."""
    known = [value for value in values.values() if value is not None]
    mean = sum(known) / len(known) if known else None
    cells = {**values, "Mean": mean}
    header = ["Method", *(name.title() if name.islower() else name for name in cells)]
    row = [row_name, *(format_metric(value) for value in cells.values())]
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, row)) + "\n"


def append_tables(folder: Path, row_name: str, classes: dict[str, dict[str, Any]]) -> str:
    """Append the three tables to their files and return them as one text."""
    texts = []
    for table in TABLES:
        text = markdown_table(row_name, {name: result[table.metric] for name, result in classes.items()})
        path = folder / table.file
        before = path.read_text(encoding="utf-8") + "\n" if path.exists() else f"# {table.title}\n\n"
        write_text(path, before + text)
        texts.append(f"{table.title}\n{text}")
    return "\n".join(texts)


def write_scores(folder: Path, class_name: str, rows: list[tuple[str, int, float]]) -> None:
    """Write scores/<class>.csv: path, label, score; scores as the shortest text that reads back equal."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "score"])
    writer.writerows([path, label, repr(score)] for path, label, score in rows)
    write_text(folder / "scores" / f"{class_name}.csv", text.getvalue())


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write results.json atomically."""
    write_json(folder / "results.json", results)


def open_record(folder: Path, header: dict[str, Any]) -> dict[str, Any]:
    """The content of results.json to go on with.

    A run that was cut, with an equal header, keeps the classes it has finished; any other starts anew.
    """
    fresh = {**header, "complete": False, "classes": {}, "failed_classes": {}}
    earlier = _read_record(folder)
    as_stored = json.loads(json.dumps(header))
    if earlier is None or earlier.get("complete") or any(earlier.get(k) != v for k, v in as_stored.items()):
        return fresh
    return {**fresh, "classes": earlier.get("classes", {})}


def format_metric(value: float | None) -> str:
    """Three decimals, or that the value is not available."""
    return NOT_AVAILABLE if value is None else f"{value:.3f}"


def _read_record(folder: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
