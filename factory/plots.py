"""The report's plots as PNG files.

Does: draw loss, score by step, dropped rows, error kinds and score against size, each only when there is something to draw.
Does not: read a run's files (`factory.facts`) or write text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.facts import RunFacts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GRID = "#24292f", "#d8dee4"
BLUE, ORANGE, GREEN, RED, GRAY = "#1f6feb", "#bf5b00", "#1a7f37", "#cf222e", "#8c959f"
COLORS = {"teacher": GREEN, "untrained": GRAY, "student": BLUE}
BARS = 12
"""Most bars in one plot; the rest are one bar, "others"."""
WIDTH_IN, HEIGHT_IN, DPI = 7.2, 4.0, 130


def draw_all(facts: RunFacts, directory: Path) -> dict[str, Path]:
    """Draw what the facts allow into `directory`; plot name -> file."""
    directory.mkdir(parents=True, exist_ok=True)
    plots: dict[str, tuple[bool, float, Callable[[Axes], None]]] = {
        "loss": (len(facts.losses) > 1, HEIGHT_IN, lambda axes: _loss(axes, facts)),
        "score": (bool(facts.step_scores), HEIGHT_IN, lambda axes: _score(axes, facts)),
        "drops": (bool(drop_counts(facts)), _bar_height(drop_counts(facts)), lambda axes: _drops(axes, facts)),
        "errors": (bool(_errors(facts)), _bar_height(_errors(facts)), lambda axes: _error_bars(axes, facts)),
        "size": (bool(sizes(facts)[1]), HEIGHT_IN, lambda axes: _size(axes, facts)),
    }
    written = {}
    for name, (wanted, height, draw) in plots.items():
        path = directory / f"{name}.png"
        path.unlink(missing_ok=True)
        if wanted:
            _figure(path, height, draw)
            written[name] = path
    return written


def drop_counts(facts: RunFacts) -> dict[str, int]:
    """Rows lost, "reason (stage)" -> number, most first."""
    counts = {f"{reason} ({stage})": n for stage, reasons in facts.drops.items() for reason, n in reasons.items()}
    return dict(sorted(counts.items(), key=lambda pair: -pair[1]))


def sizes(facts: RunFacts) -> tuple[str, dict[str, float]]:
    """What is known of the scored models' sizes: ("bytes" or "parameters", name -> number), whichever is known of more."""
    found = {
        unit: {name: float(entry[key]) for name, entry in facts.scores.items() if entry.get(key)}
        for unit, key in (("bytes", "model_bytes"), ("parameters", "parameters"))
    }
    return max(found.items(), key=lambda pair: len(pair[1]))


def _figure(path: Path, height: float, draw: Callable[[Axes], None]) -> None:
    # The object interface, not pyplot: no global state, no display, whatever MPLBACKEND says.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    style: dict[Any, Any] = {"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
             "axes.edgecolor": GRAY, "text.parse_math": False, "font.family": "DejaVu Sans"}  # fmt: skip
    with rc_context(style):
        figure = Figure(
            figsize=(WIDTH_IN, height), dpi=DPI, facecolor="white", layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
        )
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(True, color=GRID, linewidth=0.8)
        draw(axes)
        temporary = path.with_suffix(".png.tmp")
        figure.savefig(temporary, format="png", metadata={"Software": None})
        temporary.replace(path)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=11.5, fontweight="bold")


def _loss(axes: Axes, facts: RunFacts) -> None:
    steps, values = zip(*facts.losses, strict=True)
    window = max(1, len(values) // 40)
    if window > 1:
        axes.plot(steps, values, color=BLUE, alpha=0.25, linewidth=1)
    axes.plot(steps, _smooth(values, window), color=BLUE, linewidth=1.8, label="training")
    if facts.validation_losses:
        axes.plot(*zip(*facts.validation_losses, strict=True), color=ORANGE, marker="o", linewidth=1.8, label="validation")
        axes.legend(frameon=False)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    _title(axes, "Training loss")


def _smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean over the `window` values around each."""
    parts = [values[max(0, i - window // 2) : i + window // 2 + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def _score(axes: Axes, facts: RunFacts) -> None:
    steps, scores = [row[0] for row in facts.step_scores], [100 * row[1] for row in facts.step_scores]
    below = [0.0 if low is None else 100 * (score - low) for _, score, low, _ in facts.step_scores]
    above = [0.0 if high is None else 100 * (high - score) for _, score, _, high in facts.step_scores]
    axes.errorbar(steps, scores, yerr=[below, above], color=BLUE, marker="o", capsize=4, linewidth=1.8, label="checkpoints",
                  clip_on=False)  # fmt: skip
    for name in ("teacher", "untrained"):
        if name in facts.scores:
            axes.axhline(100 * facts.scores[name]["score"], color=COLORS[name], linestyle="--", linewidth=1.5, label=name)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("correct answers (%)")
    axes.set_ylim(-2, 102)
    axes.set_xlim(left=0)
    _legend_below(axes)
    _title(axes, "Score of the checkpoints on validation questions" + (", 95 % intervals" if any(below + above) else ""))


def _legend_below(axes: Axes) -> None:
    axes.figure.legend(loc="outside lower center", ncols=4, frameon=False)


def _bar_height(counts: Mapping[str, int]) -> float:
    return 1.3 + 0.32 * min(len(counts), BARS + 1)


def _bars(axes: Axes, counts: Mapping[str, int], color: str, total: int | None) -> None:
    from matplotlib.ticker import MaxNLocator

    shown = dict(sorted(counts.items(), key=lambda pair: -pair[1])[:BARS])
    rest = sum(counts.values()) - sum(shown.values())
    if rest:
        shown[f"others ({len(counts) - BARS})"] = rest
    names = [name if len(name) <= 44 else name[:43] + "…" for name in shown]
    positions = range(len(names))
    axes.barh(positions, list(shown.values()), color=color, height=0.66)
    axes.set_yticks(positions, names)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    most = max(shown.values())
    for position, n in zip(positions, shown.values(), strict=True):
        text = f"{n:,}" if total is None else f"{n:,} ({100 * n / total:.1f} %)"
        axes.text(n + 0.012 * most, position, text, va="center", fontsize=9)
    axes.set_xlim(0, 1.22 * most)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _drops(axes: Axes, facts: RunFacts) -> None:
    _bars(axes, drop_counts(facts), ORANGE, None)
    axes.set_xlabel("rows")
    _title(axes, "Rows lost, by reason and stage")


def _errors(facts: RunFacts) -> dict[str, int]:
    return dict(facts.scores.get("student", {}).get("errors_by_kind") or {})


def _error_bars(axes: Axes, facts: RunFacts) -> None:
    n = int(facts.scores["student"]["n"])
    _bars(axes, _errors(facts), RED, n)
    axes.set_xlabel(f"wrong answers (share of all {n:,} questions)")
    _title(axes, "The student's errors, by kind")


def _size(axes: Axes, facts: RunFacts) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    unit, known = sizes(facts)
    axes.set_xscale("log")
    for name, entry in facts.scores.items():
        color, score = COLORS.get(name, ORANGE), 100 * entry["score"]
        if name not in known:
            axes.axhline(score, color=color, linestyle="--", linewidth=1.5, label=f"{name} (no size)")
            continue
        below, above = score - 100 * entry["low"], 100 * entry["high"] - score
        axes.errorbar(known[name], score, yerr=[[below], [above]], color=color, marker="o", markersize=8, capsize=4,
                      linestyle="none", label=name)  # fmt: skip
    low, high = min(known.values()) / 4, max(known.values()) * 4
    axes.set_xlim(low, high)
    axes.set_ylim(-2, 102)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count_text(value)))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1e3 else (1,), numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("size of the weights (bytes, log scale)" if unit == "bytes" else "parameters (log scale)")
    axes.set_ylabel("correct answers (%)")
    _legend_below(axes)
    _title(axes, "Score against size, 95 % intervals")


def count_text(value: float) -> str:
    """5800000 -> "5.8 M"; 1e9 is "1 G"."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
