"""What `export.compare` measured, as tables and pictures: the JSON it writes and nothing else.

Does: read the file, put its rows into words, prepare pictures of score against bytes and speed, errors by kind, CSV; give
the command that measures.
Does not: measure, draw, or ask files anything (`app.ask_files`).

    found = read_comparison(Path("runs/sql/compare.json"))
    found.table()
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agents.card import ScoreEntry
from app.artifacts import Artifact
from export.compare import Row
from factory.progress import percent

FILE = "compare.json"
"""Where a run's comparison lies, beside its model."""
MOST_BYTES = 50_000_000
LEGEND_LINE = 18
"""Pixels that a file takes in a picture's legend, which is part of the picture's height."""
_LEGEND = {"orient": "bottom", "columns": 1, "title": None, "labelLimit": 300}


class ComparisonError(Exception):
    """A comparison that cannot be shown: one sentence with the way on."""


@dataclass(frozen=True)
class Comparison:
    """One file of `export.compare --json`."""

    source: str
    questions: str
    """what the scores were measured on, in words"""
    version: str
    rows: tuple[Row, ...]

    def table(self) -> list[dict[str, Any]]:
        """One row a file, numbers where there are some; the units stand in the names."""
        return [_line(row) for row in self.rows]

    def csv(self) -> str:
        """The table as CSV."""
        text = io.StringIO()
        lines = self.table()
        writer = csv.DictWriter(text, fieldnames=list(lines[0]) if lines else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _inert(value) for name, value in line.items()} for line in lines)
        return text.getvalue()

    def errors(self) -> list[dict[str, Any]]:
        """One row a kind of error, one column a file: wrong answers of that kind; the commonest kind first."""
        counted = [row for row in self.rows if row.score is not None]
        kinds: dict[str, int] = {}
        for row in counted:
            for kind, n in row.errors_by_kind.items():
                kinds[kind] = kinds.get(kind, 0) + n
        ordered = sorted(kinds, key=lambda kind: (-kinds[kind], kind))
        return [{"kind": kind, **{row.name: row.errors_by_kind.get(kind, 0) for row in counted}} for kind in ordered]

    def remarks(self) -> list[str]:
        """A sentence for every file that lost too much, or could not be measured."""
        return [f"{row.name}: {row.verdict or 'not measured'}: {row.sentence}" for row in self.rows
                if row.sentence and row.verdict != "kept"]  # fmt: skip

    def best(self) -> str:
        """The smallest file that keeps its source's score, in a sentence; "" where none was kept."""
        kept = [row for row in self.rows if row.verdict == "kept" and row.bytes and row.score is not None]
        if not kept:
            return ""
        row = min(kept, key=lambda row: row.bytes or 0)
        whole = self.rows[0].bytes
        part = f", {percent(row.bytes / whole)} of the source's {whole / 1e6:.1f} MB" if whole and row.bytes else ""
        return f"{row.name} is the smallest file that keeps the score: {(row.bytes or 0) / 1e6:.2f} MB{part}."

    def against_bytes(self) -> dict[str, Any] | None:
        """A Vega-Lite picture of score against size; None with fewer than two points."""
        return self._scatter(lambda row: row.bytes / 1e6 if row.bytes else None, "MB on disk")

    def against_speed(self) -> dict[str, Any] | None:
        """The same of score against decoding speed."""
        return self._scatter(lambda row: row.speed.decode_tokens_per_s if row.speed is not None else None,
                             "decoded tokens per second, one core")  # fmt: skip

    def errors_chart(self) -> dict[str, Any] | None:
        """A Vega-Lite picture of wrong answers by kind, a bar a file; None where nothing was counted."""
        bars = [{"kind": line["kind"], "file": name, "wrong": n}
                for line in self.errors() for name, n in line.items() if name != "kind"]  # fmt: skip
        if not bars:
            return None
        return {
            "data": {"values": bars},
            "mark": "bar",
            "height": 60 + (LEGEND_LINE + 4) * len({bar["file"] for bar in bars}) + 14 * len(bars) + 8 * len(self.errors()),
            "encoding": {
                "y": {"field": "kind", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 240}},
                "yOffset": {"field": "file"},
                "x": {"field": "wrong", "type": "quantitative", "title": "wrong answers", "axis": {"tickMinStep": 1}},
                "color": {"field": "file", "type": "nominal", "legend": _LEGEND},
                "tooltip": [{"field": "file"}, {"field": "kind"}, {"field": "wrong"}],
            },
        }

    def _scatter(self, number: Callable[[Row], float | None], title: str) -> dict[str, Any] | None:
        points: list[dict[str, Any]] = [
            {"file": row.name, "x": value, "score": row.score.score, "low": row.score.low, "high": row.score.high,
             "kind": "source" if row.report is None else row.verdict}
            for row in self.rows if row.score is not None and (value := number(row)) is not None
        ]  # fmt: skip
        if len(points) < 2:
            return None
        low, high = min(p["low"] for p in points), max(p["high"] for p in points)
        x = {"field": "x", "type": "quantitative", "title": title,
             "scale": {"type": "log", "nice": False, "padding": 30}, "axis": {"labelOverlap": True, "format": "~s"}}  # fmt: skip
        y = {"type": "quantitative", "title": "right answers", "axis": {"format": ".0%"},
             "scale": {"domain": [max(0.0, low - 0.03), min(1.0, high + 0.03)]}}  # fmt: skip
        tips = [{"field": "file"}, {"field": "score", "format": ".1%"}, {"field": "low", "format": ".1%"},
                {"field": "high", "format": ".1%"}, {"field": "x", "title": title, "format": ",.4~r"}]  # fmt: skip
        color = {"field": "file", "type": "nominal", "legend": _LEGEND}
        return {
            "data": {"values": points},
            "encoding": {"x": x, "color": color, "tooltip": tips},
            "layer": [
                {"mark": {"type": "rule"}, "encoding": {"y": {"field": "low", **y}, "y2": {"field": "high"}}},
                {"mark": {"type": "point", "filled": True, "size": 90}, "encoding": {"y": {"field": "score", **y}}},
            ],
            "height": 320 + LEGEND_LINE * len(points),
        }  # fmt: skip


def read_comparison(path: Path) -> Comparison:
    """A file that `export.compare --json` wrote. Raises ComparisonError when it is absent or not one."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ComparisonError(f"{path.name} has {path.stat().st_size / 1e6:,.0f} MB and is no comparison; measure again")
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(Row.model_validate(row) for row in found["rows"])
        return Comparison(str(found["source"]), str(found["questions"]), str(found["version"]), rows)
    except FileNotFoundError:
        raise ComparisonError(f"{path.name} is not there yet; measure the files first") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{error.errors()[0]['msg'].lower()} at {error.errors()[0]['loc']}" if isinstance(error, ValidationError) else error
        raise ComparisonError(f"{path.name} cannot be read ({why}); measure the files again") from None


def card_scores(artifacts: Sequence[Artifact]) -> Comparison:
    """What the cards of these models say they score, for a picture; those without a score of their own are left out."""
    rows = [
        Row(name=one.label, path=str(one.path), bytes=one.size_bytes, score=score)
        for one in artifacts if (score := own_score(one)) is not None
    ]  # fmt: skip
    return Comparison("cards", "each model's own card", "", tuple(rows))


def card_table(artifacts: Sequence[Artifact]) -> list[dict[str, Any]]:
    """One row a model, from its card and its size on disk."""
    lines = []
    for one in artifacts:
        score, file = own_score(one), one.card.file
        lines.append({
            "model": one.label,
            "task": one.card.task,
            "MB": _round(one.size_bytes / 1e6, 2),
            "precision": file.precision if file is not None else "as trained",
            "right %": _round(100 * score.score if score is not None else None, 1),
            "95 % interval": f"{100 * score.low:.1f} to {100 * score.high:.1f}" if score is not None else "",
            "questions": score.n if score is not None else None,
            "KLD": float(f"{file.kld:.2g}") if file is not None and file.kld is not None else None,
            "begun from": one.card.base.id,
            "taught by": one.card.teacher or "",
        })  # fmt: skip
    return lines


def own_score(artifact: Artifact) -> ScoreEntry | None:
    """The score that was measured on this file itself: the gate's for an exported one, the student's for a model directory."""
    return artifact.card.scores.get("student" if artifact.kind == "hf" else artifact.path.name)


def compare_job(model_dir: Path, json_file: Path, *, speed: bool, limit: int | None) -> list[str]:
    """The command that measures everything exported from a model."""
    argv = [sys.executable, "-m", "export.compare", str(model_dir), "--json", str(json_file)]
    return argv + ([] if speed else ["--no-speed"]) + (["--limit", str(limit)] if limit is not None else [])


QUANTS = ("Q8_0", "F16", "Q5_0", "Q4_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_NL", "auto")
"""Types the page offers; `export.gguf` knows all others too."""


def export_job(model_dir: Path, quant: str) -> list[str]:
    """The command that writes one GGUF file of a model."""
    return [sys.executable, "-m", "export.gguf", str(model_dir), "--quant", quant]


def _line(row: Row) -> dict[str, Any]:
    speed, score = row.speed, row.score
    return {
        "file": row.name,
        "MB": _round(row.bytes / 1e6 if row.bytes is not None else None, 2),
        "bits per weight": _round(row.bits_per_weight, 2),
        "right %": _round(100 * score.score if score is not None else None, 1),
        "95 % interval": f"{100 * score.low:.1f} to {100 * score.high:.1f}" if score is not None else "",
        "questions": score.n if score is not None else None,
        "points lost": _round(row.drop, 2),
        "KLD": float(f"{row.kld:.2g}") if row.kld is not None else None,
        "top-1 %": _round(100 * row.top1 if row.top1 is not None else None, 1),
        "prefill tok/s": _round(speed.prefill_tokens_per_s if speed is not None else None, 0),
        "decode tok/s": _round(speed.decode_tokens_per_s if speed is not None else None, 0),
        "first token ms": _round(speed.first_token_ms if speed is not None else None, 0),
        "RAM MB": _round(speed.rss_bytes / 1e6 if speed is not None else None, 0),
        "verdict": row.verdict or ("source" if row.report is None else ""),
    }


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _inert(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
