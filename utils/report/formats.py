"""Tables of runs as markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from utils.console import one_line
from utils.metrics import Metric
from utils.report.joined import (
    Cell,
    Line,
    Table,
    class_value,
    columns_of,
    compared_rows,
    make_table,
    mean_value,
    published_value,
    rows_of,
)
from utils.report.page import UNKNOWN
from utils.report.published import IN_FILES, Figure, label
from utils.report.runs import Run
from utils.reporting import NOT_AVAILABLE, format_metric, in_cell

DAGGER = "†"
DOUBTFUL = f"{DAGGER}: doubtful, or failed in part"
SPREAD = "±: sample standard deviation over seeds"
CSV_COLUMNS = (
    "method,class,metric,value,deviation,n,doubtful,failed,random_weights,against,published,difference,source"
).split(",")
LATEX_SPECIALS = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "±": r"$\pm$",
    "−": "$-$",
    UNKNOWN: "--",
    DAGGER: r"$^\dagger$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{special: f"\\{special}" for special in "&%$#_{}"},
}


def as_markdown(runs: Sequence[Run], metrics: Iterable[Metric], against: Sequence[str]) -> str:
    """A heading and a table a metric, then what its marks mean and where published figures are from."""
    columns = columns_of(runs)
    tables = [make_table(runs, metric, columns, against) for metric in metrics]
    parts = [_markdown_table(table) for table in tables]
    notes = dict.fromkeys([*(mark for table in tables for mark in _marks(table)), *_sources(runs, against)])
    return "\n".join([*parts, "".join(f"* {one_line(note)}\n" for note in notes)])


def as_latex(runs: Sequence[Run], metrics: Iterable[Metric], against: Sequence[str]) -> str:
    """A floating table a metric; the best of each column is bold, ties too. Sources are comments."""
    columns = columns_of(runs)
    tables = [make_table(runs, metric, columns, against) for metric in metrics]
    comments = ["needs \\usepackage{booktabs,graphicx}", *map(one_line, _sources(runs, against))]
    return "\n".join([*(f"% {comment}" for comment in comments), "", *map(_latex_table, tables)])


def as_csv(runs: Sequence[Run], metrics: Iterable[Metric], against: Sequence[str]) -> str:
    """A line a method, class (and `mean`), metric and published row compared with; unrounded, empty = unknown."""
    columns = columns_of(runs)
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for metric in metrics:
        for run in runs:
            for column in (*columns, None):
                for figures in rows_of(run, against) or [[]]:
                    writer.writerow(_csv_row(run, metric.key, column, columns, figures))
    return text.getvalue()


FORMATS = {"markdown": as_markdown, "csv": as_csv, "latex": as_latex}


def cell_text(cell: Cell) -> str:
    """Three decimals, with the deviation where there is one."""
    text = cell.text or format_metric(cell.value.value)
    if cell.value.deviation is not None:
        text += f" ± {cell.value.deviation:.3f}"
    return text + DAGGER if cell.doubtful and cell.value.value is not None else text


def latex_escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(LATEX_SPECIALS.get(character, character) for character in one_line(text))


def _texts(line: Line) -> list[str]:
    """The cells of a line; what no source says is left open, what we lack is named."""
    texts = [cell_text(cell) for cell in line.cells]
    return [UNKNOWN if t == NOT_AVAILABLE else t for t in texts] if line.kind == "published" else texts


def _header(table: Table) -> list[str]:
    return ["Method", *(name.title() if name.islower() else name for name in table.columns), "Mean"]


def _markdown_table(table: Table) -> str:
    header = _header(table)
    lines = [header, ["---"] * len(header), *([line.name, *_texts(line)] for line in table.lines)]
    rows = ("| " + " | ".join(in_cell(text) for text in line) + " |\n" for line in lines)
    return f"## {table.metric.title}\n\n{''.join(rows)}"


def _latex_table(table: Table) -> str:
    best = _best(table)
    lines = [_latex_row(_header(table)), "\\midrule"]
    for line in table.lines:
        bold = [line.ranked and _is_best(cell, top) for cell, top in zip(line.cells, best, strict=True)]
        lines.append(_latex_row([line.name, *_texts(line)], [False, *bold]))
    body = "\n".join(lines)
    caption = " ".join(f"{latex_escaped(text)}." for text in (table.metric.title, *_marks(table)))
    return (
        f"\\begin{{table*}}\n\\centering\n\\caption{{{caption}}}\n"
        f"\\label{{tab:{table.metric.key}}}\n\\resizebox{{\\linewidth}}{{!}}{{%\n"
        f"\\begin{{tabular}}{{l{'c' * len(table.columns)}c}}\n\\toprule\n{body}\n\\bottomrule\n"
        "\\end{tabular}}\n\\end{table*}\n"
    )


def _latex_row(texts: Sequence[str], bold: Sequence[bool] = ()) -> str:
    escaped = [latex_escaped(text) for text in texts]
    if bold:
        escaped = [f"\\textbf{{{t}}}" if is_bold else t for t, is_bold in zip(escaped, bold, strict=True)]
    return " & ".join(escaped) + r" \\"


def _best(table: Table) -> list[float | None]:
    """The largest value of each column, as printed, among the lines that are ranked; doubtful ones don't count."""
    ranked = [line for line in table.lines if line.ranked]
    columns = ([line.cells[i] for line in ranked] for i in range(len(table.columns) + 1))
    values = ([_printed(cell) for cell in column if not cell.doubtful] for column in columns)
    return [max((value for value in column if value is not None), default=None) for column in values]


def _is_best(cell: Cell, best: float | None) -> bool:
    return best is not None and not cell.doubtful and _printed(cell) == best


def _printed(cell: Cell) -> float | None:
    return None if cell.value.value is None else round(cell.value.value, 3)


def _marks(table: Table) -> list[str]:
    """What the marks in a table mean."""
    cells = [cell for line in table.lines for cell in line.cells]
    spread = [SPREAD] if any(cell.value.deviation is not None for cell in cells) else []
    return spread + ([DOUBTFUL] if any(DAGGER in cell_text(cell) for cell in cells) else [])


def _sources(runs: Sequence[Run], against: Sequence[str]) -> list[str]:
    """A line on each published row: where its figures are from."""
    return [
        f"{label(figures)}: {'; '.join(dict.fromkeys(figure.source for figure in figures))}"
        for figures in compared_rows(runs, against)
    ]


def _csv_row(
    run: Run, metric: str, column: str | None, columns: Sequence[str], figures: Sequence[Figure]
) -> dict[str, str | int]:
    """column None: the mean over all columns; figures: the published row compared with, empty for none."""
    ours = mean_value(run, metric, columns) if column is None else class_value(run, metric, column)
    concerned = columns if column is None else [column]
    return {
        "method": one_line(run.name),
        "class": IN_FILES if column is None else one_line(column),
        "metric": metric,
        "value": "" if ours.value is None else repr(ours.value),
        "deviation": "" if ours.deviation is None else repr(ours.deviation),
        "n": ours.n,
        "doubtful": int(any(name in run.doubts for name in concerned)),
        "failed": int(any(name in run.failed for name in concerned)),
        "random_weights": int(run.random_weights),
        **_csv_comparison(ours.value, published_value(figures, metric, column, columns), metric, figures),
    }


def _csv_comparison(
    ours: float | None, theirs: float | None, metric: str, figures: Sequence[Figure]
) -> dict[str, str]:
    named = {"against": figures[0].name} if figures else {}
    if theirs is None:
        return named
    source = next(figure.source for figure in figures if figure.metric == metric)
    known = {**named, "published": repr(theirs), "source": source}
    return known if ours is None else {**known, "difference": f"{ours - theirs:.6f}"}
