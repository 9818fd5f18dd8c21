"""The blocks that reports are made of, as HTML. All text that comes in is escaped here, once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from utils.annotate import color_table
from utils.report.figures import Case
from utils.reporting import in_words
from utils.structures import Thresholds

TEMPLATE = Path(__file__).with_name("template.html")
GRADIENT_STEPS = 17
UNKNOWN = "–"


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than text; `style` is a class of the template."""

    text: str
    style: str


def page(title: str, blocks: Iterable[str]) -> str:
    """The whole file."""
    steps = (round(i * 255 / (GRADIENT_STEPS - 1)) for i in range(GRADIENT_STEPS))
    gradient = ", ".join("rgb({}, {}, {})".format(*color_table()[i].tolist()) for i in steps)
    text = Template(TEMPLATE.read_text(encoding="utf-8"))
    return text.substitute(title=escape(title), body="\n".join(blocks), gradient=gradient)


def heading(level: int, text: str, anchor: str = "") -> str:
    place = f' id="{escape(anchor)}"' if anchor else ""
    return f"<h{level}{place}>{escape(text)}</h{level}>"


def paragraph(text: str, style: str = "") -> str:
    return f'<p class="{style}">{escape(text)}</p>' if style else f"<p>{escape(text)}</p>"


def warning(text: str, first: bool = False) -> str:
    """first: what nobody may overlook."""
    return paragraph(text, "warning first" if first else "warning")


def links(targets: Mapping[str, str]) -> str:
    """Jumps within the page; `targets`: anchor -> text."""
    items = (f'<a href="#{escape(anchor)}">{escape(text)}</a>' for anchor, text in targets.items())
    return f"<nav>{' '.join(items)}</nav>"


def table(
    header: Sequence[str], rows: Sequence[Sequence[str | Cell]], last_is_sum: bool = False, caption: str = ""
) -> str:
    """A row's first cell is its name."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "\n".join(_row(row, last_is_sum and row is rows[-1]) for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="table"><table>{title}\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def name_value_table(values: Mapping[str, Any]) -> str:
    """One row a value."""
    rows = (_row([name, Cell(_plain(value), "text")], False) for name, value in values.items())
    return '<div class="table"><table class="values"><tbody>\n' + "\n".join(rows) + "\n</tbody></table></div>"


def folded(title: str, content: str) -> str:
    """What is shown on a click."""
    return f"<details><summary>{escape(title)}</summary>\n{content}\n</details>"


def charts(svgs: Iterable[str]) -> str:
    return '<div class="charts">\n' + "\n".join(svgs) + "\n</div>"


def tables(blocks: Iterable[str]) -> str:
    """Side by side where there is room."""
    return '<div class="tables">\n' + "\n".join(blocks) + "\n</div>"


def key(names: Mapping[str, str]) -> str:
    """What the colors of a histogram mean; `names`: class of the template -> text."""
    items = (f'<span><i class="{style}"></i>{escape(text)}</span>' for style, text in names.items())
    return f'<p class="key soft">{"".join(items)}</p>'


def color_scale(limits: Sequence[float]) -> str:
    """The colors of the maps, with the scores at their ends."""
    low, high = (escape(f"{limit:.3g}") for limit in limits)
    return f'<div class="scale"><span>{low}</span><span class="bar"></span><span>{high}</span></div>'


def cases(shown: Iterable[Case], thresholds: Thresholds | None) -> str:
    """Pictures with what is to be said of each."""
    figures = (
        f'<figure><img alt="{escape(case.name)}" src="data:image/jpeg;base64,{escape(case.picture)}">'
        f"<figcaption><b>{escape(case.name)}</b><br>"
        f"{escape(in_words(case.score, case.label, thresholds))}</figcaption></figure>"
        for case in shown
    )
    return '<div class="cases">\n' + "\n".join(figures) + "\n</div>"


def number(value: float | None, digits: int = 3) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def difference(ours: float | None, theirs: float | None) -> Cell:
    """Ours minus theirs, as the two are printed."""
    if ours is None or theirs is None:
        return Cell(UNKNOWN, "")
    value = round(ours, 3) - round(theirs, 3)
    style = "up" if value > 0.0005 else "down" if value < -0.0005 else ""
    return Cell(f"{value:+.3f}".replace("-", "−") if style else "0.000", style)


def _row(cells: Sequence[str | Cell], is_sum: bool) -> str:
    name, *rest = cells
    first = name.text if isinstance(name, Cell) else name
    marks = [f'<th scope="row">{escape(first)}</th>', *(_cell(cell) for cell in rest)]
    return f'<tr class="sum">{"".join(marks)}</tr>' if is_sum else f"<tr>{''.join(marks)}</tr>"


def _cell(cell: str | Cell) -> str:
    if isinstance(cell, Cell) and cell.style:
        return f'<td class="{cell.style}">{escape(cell.text)}</td>'
    return f"<td>{escape(cell.text if isinstance(cell, Cell) else cell)}</td>"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    return UNKNOWN if value is None else str(value)
