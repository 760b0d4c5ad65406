"""Plots of a comparison: score against bytes, score against speed.

Does: draw the rows that have both numbers, in the style of the factory's report.
Does not: measure; a plot without two points is not drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.plots import BLUE, GREEN, HEIGHT_IN, ORANGE, _figure, _title, count_text

if TYPE_CHECKING:
    from export.compare import Row


def draw(rows: Sequence[Row], directory: Path) -> list[Path]:
    """Write score-bytes.png and score-speed.png into `directory`, which is created; returns what was drawn."""
    directory.mkdir(parents=True, exist_ok=True)
    kinds: dict[str, tuple[Callable[[Row], float | None], str, str]] = {
        "score-bytes.png": (lambda row: row.bytes, "size (bytes, log scale)", "Score against size, 95 % intervals"),
        "score-speed.png": (
            lambda row: row.speed.decode_tokens_per_s if row.speed is not None else None,
            "decoded tokens per second of one core (log scale)",
            "Score against speed, 95 % intervals",
        ),
    }
    written = []
    for name, (number, label, title) in kinds.items():
        path = directory / name
        path.unlink(missing_ok=True)
        points = [(row, value) for row in rows if row.score is not None and (value := number(row)) is not None]
        if len(points) > 1:
            _figure(path, HEIGHT_IN + 0.8, lambda axes, p=points, x=label, t=title: _scatter(axes, p, x, t))  # type: ignore[misc]
            written.append(path)
    return written


def _scatter(axes: Any, points: Sequence[tuple[Row, float]], label: str, title: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    for number, (row, value) in enumerate(sorted(points, key=lambda point: point[1])):
        score = row.score
        assert score is not None
        color = GREEN if row.report is None else ORANGE if row.verdict == "rejected" else BLUE
        middle = 100 * score.score
        below, above = middle - 100 * score.low, 100 * score.high - middle
        axes.errorbar(value, middle, yerr=[[below], [above]], color=color, marker="o", markersize=6, capsize=3, linestyle="none",
                      alpha=0.9)  # fmt: skip
        up = number % 2 == 0
        # Neighbors have nearly the same score: names alternate above and below their intervals.
        axes.annotate(row.name, (value, 100 * (score.high if up else score.low)), xytext=(0, 6 if up else -6),
                      textcoords="offset points", ha="center", va="bottom" if up else "top", fontsize=8, rotation=20)  # fmt: skip
    values = [value for _, value in points]
    low, high = min(values) / 2, max(values) * 2
    axes.set_xlim(low, high)
    scores = [score for row, _ in points if row.score is not None for score in (row.score.low, row.score.high)]
    axes.set_ylim(max(-2.0, 100 * min(scores) - 6), min(106.0, 100 * max(scores) + 6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count_text(value)))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1e3 else (1,), numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)
    axes.set_ylabel("correct answers (%)")
    _title(axes, title)
