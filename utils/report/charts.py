"""Charts as inline SVG; their colors are those of the page (template.html)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 320, 230
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 30, 36  # margins around the plot
BINS = 24
Points = Sequence[tuple[float, float]]


def line_chart(
    title: str, axes: tuple[str, str], points: Points, x_end: float = 1.0, diagonal: bool = False
) -> str:
    """A curve over [0, x_end] x [0, 1]; the diagonal is what random scores give."""
    marks = [_frame((0.0, x_end), (0.0, 1.0), axes)]
    if diagonal:
        marks.append(_path([(0.0, 0.0), (x_end, x_end)], x_end, "random"))
    marks.append(_path(points, x_end, "curve"))
    return _chart(title, marks)


def histogram(title: str, series: Mapping[str, Sequence[float]], threshold: float | None = None) -> str:
    """How many scores lie where; `series`: a CSS class (good, defect, unknown) -> scores, at least one in all."""
    scores = np.concatenate([np.asarray(values, dtype=float) for values in series.values()])
    ends = scores if threshold is None else np.append(scores, threshold)
    low, high = float(ends.min()), float(ends.max())
    if low == high:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    edges = np.linspace(low, high, BINS + 1)
    counts = {name: np.histogram(values, edges)[0] for name, values in series.items()}
    most = max(int(count.max()) for count in counts.values())
    marks = [_frame((low, high), (0.0, float(most)), ("score", "samples"))]
    marks += [_bars(count, most, name) for name, count in counts.items()]
    if threshold is not None:
        x = LEFT + (threshold - low) / (high - low) * _plot_width()
        marks.append(f'<line class="threshold" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    return _chart(title, marks)


def _chart(title: str, marks: list[str]) -> str:
    head = f'<text class="title" x="{LEFT}" y="16">{escape(title)}</text>'
    body = "\n".join([head, *marks])
    label = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">\n{body}\n</svg>'


def _frame(x: tuple[float, float], y: tuple[float, float], axes: tuple[str, str]) -> str:
    """Grid, ticks at both ends and in the middle, names of the axes."""
    marks = []
    for share in (0.0, 0.5, 1.0):
        at_x, at_y = LEFT + share * _plot_width(), HEIGHT - BOTTOM - share * _plot_height()
        marks.append(
            f'<line class="grid" x1="{at_x:.1f}" x2="{at_x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        )
        marks.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y:.1f}" y2="{at_y:.1f}"/>')
        anchor = {0.0: "start", 0.5: "middle", 1.0: "end"}[share]
        x_tick, y_tick = (f"{low + share * (high - low):.3g}" for low, high in (x, y))
        marks.append(f'<text x="{at_x:.1f}" y="{HEIGHT - 21}" text-anchor="{anchor}">{x_tick}</text>')
        marks.append(f'<text x="{LEFT - 5}" y="{at_y + 4:.1f}" text-anchor="end">{y_tick}</text>')
    x_name, y_name = (escape(name) for name in axes)
    middle = LEFT + _plot_width() / 2
    marks.append(f'<text x="{middle:.1f}" y="{HEIGHT - 5}" text-anchor="middle">{x_name}</text>')
    marks.append(f'<text x="{WIDTH - RIGHT}" y="16" text-anchor="end">{y_name}</text>')
    return "\n".join(marks)


def _path(points: Points, x_end: float, name: str) -> str:
    places = (
        f"{LEFT + x / x_end * _plot_width():.1f} {HEIGHT - BOTTOM - y * _plot_height():.1f}"
        for x, y in points
    )
    return f'<path class="{name}" d="M{" L".join(places)}"/>'


def _bars(counts: np.ndarray, most: int, name: str) -> str:
    width = _plot_width() / len(counts)
    bars = []
    for i, count in enumerate(counts.tolist()):
        height = count / most * _plot_height()
        place = f'x="{LEFT + i * width:.1f}" y="{HEIGHT - BOTTOM - height:.1f}"'
        if count:
            bars.append(f'<rect class="{name}" {place} width="{width:.1f}" height="{height:.1f}"/>')
    return "\n".join(bars)


def _plot_width() -> int:
    return WIDTH - LEFT - RIGHT


def _plot_height() -> int:
    return HEIGHT - TOP - BOTTOM
