"""report.html of a run of main.py, from what it has left on disk."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.files import write_text
from utils.metrics import AU_PRO_LIMIT, METRICS, Metric, mean_of_all
from utils.report import published
from utils.report.charts import histogram, line_chart
from utils.report.figures import (
    HIGHEST,
    HIGHEST_DEFECTS,
    HIGHEST_GOOD,
    LOWEST_DEFECTS,
    ClassFigures,
    read_figures,
)
from utils.report.page import (
    Cell,
    cases,
    charts,
    color_scale,
    difference,
    folded,
    heading,
    key,
    links,
    name_value_table,
    number,
    page,
    paragraph,
    table,
    tables,
    warning,
)
from utils.report.published import Figure
from utils.reporting import NOT_AVAILABLE, problem_lines

MEANINGLESS = "Random weights: these results mean nothing, only that the code runs."
COMPARED = tuple(metric for metric in METRICS if metric.table_file)  # with published figures
OTHERS = tuple(metric for metric in METRICS if metric not in COMPARED)
STYLES = {"0": "good", "1": "defect", "": "unknown"}  # of the labels in scores/
KEYS = {"good": "good", "defect": "defect", "unknown": "not known"}
# keys of results.json that are shown elsewhere, or not yet true
ELSEWHERE = ("settings", "weights", "versions", "classes", "failed_classes", "complete")
GROUPS = {
    LOWEST_DEFECTS: "Worst misses: the defects with the lowest scores",
    HIGHEST_GOOD: "Worst false alarms: the good samples with the highest scores",
    HIGHEST_DEFECTS: "Best finds: the defects with the highest scores",
    HIGHEST: "The highest scores",
}
CURVES = {
    "image_roc": ("Image ROC", ("false positive rate", "found"), 1.0),
    "pixel_roc": ("Pixel ROC", ("false positive rate", "found"), 1.0),
    "pro": ("PRO", ("false positive rate", "mean overlap"), AU_PRO_LIMIT),
}
Classes = Mapping[str, Mapping[str, Any]]


def write_report(results: Path, record: Mapping[str, Any], defaults: Mapping[str, Any]) -> Path:
    """Write report.html into the results' folder; returns its path.

    record: the content of results.json; defaults: the settings that the method has without flags.
    """
    path = results / "report.html"
    write_text(path, run_page(results, record, defaults))
    return path


def run_page(results: Path, record: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The page; the same files give the same text."""
    classes: Classes = record["classes"]
    anchors = {f"class-{i}": name for i, name in enumerate(classes)}
    blocks = [heading(1, f"M3DM: {record['method_name']}")]
    count = "1 class" if len(classes) == 1 else f"{len(classes)} classes"
    blocks.append(paragraph(f"{count} of {record['dataset_path']}, on {record['device']}", "soft"))
    blocks += _warnings(record)
    if len(anchors) > 1:
        blocks.append(links(anchors))
    if classes:
        blocks += _results(record["method_name"], classes)
    for anchor, name in anchors.items():
        blocks += _class(anchor, name, results, classes[name])
    if classes:
        blocks += _costs(classes)
    return page(f"M3DM: {record['method_name']}", [*blocks, *_settings(record, defaults)])


def _warnings(record: Mapping[str, Any]) -> list[str]:
    blocks = [warning(MEANINGLESS, first=True)] if record["random_weights"] else []
    return blocks + [
        warning(line) for line in problem_lines(dict(record), [*record["classes"], *record["failed_classes"]])
    ]


def _results(method_name: str, classes: Classes) -> list[str]:
    """Ours beside the published figures, and what is to be known of those; the other metrics."""
    figures = published.of_method(method_name)
    header = ["", *(metric.title for metric in OTHERS)]
    rows = [[name, *(_metric(result.get(m.key)) for m in OTHERS)] for name, result in classes.items()]
    return [
        heading(2, "Results"),
        tables(_comparison(metric, figures, classes) for metric in COMPARED),
        paragraph(_about(figures), "soft"),
        folded("Other metrics", table(header, rows)),
    ]


def _comparison(metric: Metric, figures: Sequence[Figure], classes: Classes) -> str:
    """The table of a metric: a row a class, and their mean; the published mean is that of the same classes."""
    ours = {name: result[metric.key] for name, result in classes.items()}
    rows = [
        _compared(name, value, published.value_of(figures, metric.key, name)) for name, value in ours.items()
    ]
    mean = mean_of_all(ours.values())
    rows.append(_compared("Mean", mean, published.mean_of(figures, metric.key, list(ours))))
    return table(["", "here", "published", "diff."], rows, last_is_sum=True, caption=metric.title)


def _about(figures: Sequence[Figure]) -> str:
    if not figures:
        return "No published figures of this method are known here."
    sources = "; ".join(dict.fromkeys(figure.source for figure in figures))
    means = {metric.title: published.value_of(figures, metric.key, published.MEAN) for metric in COMPARED}
    told = ", ".join(f"{title} {number(value)}" for title, value in means.items())
    return (
        f"Published: {sources}; means over all {len(published.all_classes())} classes: {told}. They hold for the "
        "complete MVTec 3D-AD, trained weights and default settings; with other samples, weights or settings other "
        "figures are to be expected. In the tables the published mean is that of the classes shown."
    )


def _compared(name: str, ours: float | None, theirs: float | None) -> Sequence[str | Cell]:
    return [name, _metric(ours), number(theirs), difference(ours, theirs)]


def _class(anchor: str, name: str, results: Path, result: Mapping[str, Any]) -> list[str]:
    counts = ", ".join(f"{what.replace('_', ' ')} {count}" for what, count in result["counts"].items())
    blocks = [heading(2, name, anchor), paragraph(counts, "soft")]
    if not result["counts"].get("test"):
        return [*blocks, paragraph("No test samples: fitted, not evaluated.")]
    figures = read_figures(results, name)
    if figures is None:
        missing = f"report/{name}.json is not there, or can't be read: no curves and no pictures."
        return [*blocks, warning(missing), *_histogram(results, name, None)]
    curves = [
        line_chart(title, axes, [(x, y) for x, y in figures.curves[curve]], end, diagonal=True)
        for curve, (title, axes, end) in CURVES.items()
        if curve in figures.curves
    ]
    return [*blocks, *_histogram(results, name, figures, curves), *_kinds(figures), *_cases(figures)]


def _histogram(
    results: Path, name: str, figures: ClassFigures | None, curves: Sequence[str] = ()
) -> list[str]:
    """The charts of a class, with what the histogram's colors mean."""
    series = _scores(results, name)
    threshold = figures.thresholds if figures else None
    drawn = [histogram("Image scores", series, threshold.image if threshold else None)] if series else []
    names = {style: text for style, text in KEYS.items() if style in series}
    if threshold:
        names["threshold"] = f"threshold {threshold.image:.4g}: {threshold.origin}"
    return [charts([*curves, *drawn]), key(names)] if curves or drawn else []


def _scores(results: Path, name: str) -> dict[str, list[float]]:
    """Scores of a class by what is known of the samples; {} where the file is gone or can't be read."""
    series: dict[str, list[float]] = {}
    try:
        with (results / "scores" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                series.setdefault(STYLES[row["label"]], []).append(float(row["score"]))
    except (OSError, ValueError, KeyError, TypeError, csv.Error):  # rows cut short have None in them
        return {}
    return series


def _kinds(figures: ClassFigures) -> list[str]:
    above = ["above the threshold"] if figures.thresholds else []
    header = ["kind", "samples", *above, *(metric.title for metric in COMPARED)]
    rows = [
        [
            kind.name,
            str(kind.samples),
            *([] if kind.above is None else [str(kind.above)]),
            *(number(kind.metrics.get(metric.key)) for metric in COMPARED),
        ]
        for kind in figures.kinds
    ]
    return [heading(3, "By kind of defect, each among all good samples"), table(header, rows)]


def _cases(figures: ClassFigures) -> list[str]:
    """Pictures of the extremes, ahead of them how to read them."""
    white = "; white: the pixel threshold" if figures.thresholds else ""
    told = f"Left the image with the truth's contour (green), right the map over it{white}. One color scale a class:"
    blocks = [heading(3, "Samples to look at"), paragraph(told, "soft"), color_scale(figures.limits)]
    for group, title in GROUPS.items():
        shown = [case for case in figures.cases if case.group == group]
        if shown:
            blocks += [heading(3, title), cases(shown, figures.thresholds)]
    return blocks


def _costs(classes: Classes) -> list[str]:
    stages = list(dict.fromkeys(stage for result in classes.values() for stage in result["seconds"]))
    blocks = [heading(2, "Time and memory")]
    rows = [
        [
            name,
            *(number(result["seconds"].get(s), 1) for s in stages),
            number(sum(result["seconds"].values()), 1),
        ]
        for name, result in classes.items()
    ]
    blocks.append(table(["", *stages, "sum"], rows, caption="Seconds"))
    rows = [
        [
            name,
            *(number(result.get("memory_mb", {}).get(s), 0) for s in stages),
            number(result["peak_memory_mb"], 0),
        ]
        for name, result in classes.items()
    ]
    told = (
        "Largest resident memory in MB since the class began, up to the end of each stage (without a GPU's)"
    )
    return [*blocks, table(["", *stages, "whole class"], rows, caption=told)]


def _settings(record: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    settings = dict(record["settings"])
    quirks, default_quirks = settings.pop("quirks", {}), defaults.get("quirks", {})
    changed = {name: value for name, value in settings.items() if value != defaults.get(name)}
    changed |= {name: value for name, value in quirks.items() if value != default_quirks.get(name)}
    shown = {name: value for name, value in record.items() if name not in ELSEWHERE}
    return [
        heading(2, "Settings and versions"),
        heading(3, "Settings that are not the defaults"),
        name_value_table(changed) if changed else paragraph("None."),
        folded("Run and weights", name_value_table({**shown, **record["weights"]})),
        folded("All settings", name_value_table({**settings, **quirks})),
        folded("Versions", name_value_table(record["versions"])),
    ]


def _metric(value: float | None) -> str:
    return NOT_AVAILABLE if value is None else number(value)
