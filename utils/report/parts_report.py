"""report.html of predict.py, from its report.csv."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.files import write_text
from utils.report.charts import histogram
from utils.report.figures import Case
from utils.report.page import (
    cases,
    charts,
    color_scale,
    folded,
    heading,
    key,
    name_value_table,
    number,
    page,
    paragraph,
    table,
    warning,
)
from utils.structures import Thresholds

MEANINGLESS = "Random weights: these verdicts mean nothing, only that the code runs."
NO_THRESHOLD = "The detector has no threshold: there are scores, but no verdicts."
MAP_COLORS = (
    "In the pictures: left the image, right the map over it; white: the pixel threshold. Colors of all maps:"
)
MOST_ROWS = 500
HIGHEST, NEAREST = 8, 4  # parts that are shown
Row = Mapping[str, str]
PictureOf = Callable[[str], str | None]


def write_parts_report(
    folder: Path,
    detector: str,
    about: Mapping[str, Mapping[str, Any]],
    thresholds: Thresholds | None,
    held_out: Sequence[float],
    picture_of: PictureOf,
    limits: Sequence[float] | None = None,
    random_weights: bool = False,
) -> Path:
    """Write report.html beside the report.csv of the parts; returns its path.

    about: what to show folded, by title; held_out: the scores that the threshold follows from; picture_of: a part's
    jpeg in base64 by the part's name, None where there is none; limits: the scores of the maps' first and last color,
    None where each map has its own.
    """
    with (folder / "report.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    judged = [row for row in rows if row["score"]]
    title = f"Parts judged by {detector}"
    blocks = [heading(1, title), paragraph(_summary(rows), "soft")]
    blocks += [warning(MEANINGLESS, first=True)] if random_weights else []
    blocks += [] if thresholds else [warning(NO_THRESHOLD)]
    blocks += [warning(f"{row['part']}: not judged: {row['problem']}") for row in rows if row["problem"]]
    blocks += _histogram(judged, thresholds, held_out)
    blocks += [paragraph(MAP_COLORS, "soft"), color_scale(limits)] if judged and limits else []
    blocks += _pictures(judged, thresholds, picture_of) + _table(rows)
    blocks += [folded(name, name_value_table(values)) for name, values in about.items()]
    path = folder / "report.html"
    write_text(path, page(title, blocks))
    return path


def _summary(rows: Sequence[Row]) -> str:
    verdicts = Counter(row["verdict"] or "not judged" for row in rows)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    times = [float(row["milliseconds"]) for row in rows if row["milliseconds"]]
    return f"{len(rows)} parts: {counts}; {number(times[-1], 0) if times else '-'} ms a part"


def _histogram(judged: Sequence[Row], thresholds: Thresholds | None, held_out: Sequence[float]) -> list[str]:
    if not judged:
        return []
    series = {"unknown": [float(row["score"]) for row in judged]}
    names = {"unknown": "these parts"}
    if held_out:
        series, names = {"good": list(held_out), **series}, {"good": "good parts held out", **names}
    if thresholds:
        names["threshold"] = f"threshold {thresholds.image:.4g}: {thresholds.origin}"
    drawn = histogram("Image scores", series, thresholds.image if thresholds else None)
    return [heading(2, "Scores"), charts([drawn]), key(names)]


def _pictures(judged: Sequence[Row], thresholds: Thresholds | None, picture_of: PictureOf) -> list[str]:
    highest = sorted(judged, key=lambda row: -float(row["score"]))[:HIGHEST]
    groups = {"The highest scores": highest}
    if thresholds:
        others = [row for row in judged if row not in highest]
        nearest = sorted(others, key=lambda row: abs(float(row["score"]) - thresholds.image))
        groups["Nearest to the threshold of the others"] = nearest[:NEAREST]
    blocks = []
    for title, rows in groups.items():
        found = [(row, picture) for row in rows if (picture := picture_of(row["part"])) is not None]
        shown = [Case(title, row["part"], None, float(row["score"]), picture) for row, picture in found]
        blocks += [heading(2, title), cases(shown, thresholds)] if shown else []
    return blocks


def _table(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    names = ("part", "score", "calibrated", "verdict", "milliseconds")
    shown = [
        [row["part"], f"{float(row['score']):.4g}", *(row[name] for name in names[2:])]
        for row in rows[:MOST_ROWS]
        if row["score"]
    ]
    cut = f" (the first {MOST_ROWS}; all of them are in report.csv)" if len(rows) > MOST_ROWS else ""
    return [heading(2, f"Parts{cut}"), table(names, shown)]
