"""One table of everything exported from a model: what each file costs, keeps and gives.

Does: run the gate's measurements and the speed measurement on every file, beside the source itself in float32 and bfloat16; print
a table, write JSON and two plots (score against bytes, score against speed).
Does not: export, or rename what falls short (it says so).

    python -m export.compare CKPT [FILES…] [--json FILE] [--plots DIR] [--no-speed]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from agents.card import ScoreEntry, program
from agents.chat import ModelError
from export.child import missing_backend
from export.errors import ExportError
from export.gate import GateReport, GateSettings, gate, size_of
from export.parity import Parity, sliding_window
from export.questions import questions_of
from export.reference import measured_source
from export.source import Source
from export.speed import Speed, measure_speed
from factory.events import EventLog
from factory.settings import parse


class CompareSettings(GateSettings):
    """`python -m export.compare CKPT [FILES…]`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, use_attribute_docstrings=True)

    model: Path
    """the source: a model or adapter directory"""
    files: tuple[Path, ...] = ()
    """.gguf files and ONNX directories; default: all under CKPT"""
    speed: bool = True
    """measure speed and memory"""
    prefill: int = Field(256, ge=1)
    """tokens of the prompt whose speed is measured"""
    decode: int = Field(64, ge=1)
    """tokens decoded after it"""
    rounds: int = Field(3, ge=1)
    """rounds of which the fastest counts"""
    json_file: Path | None = Field(None, alias="json")
    """write everything here as JSON"""
    plots: Path | None = None
    """directory for score-bytes.png and score-speed.png"""


class Row(BaseModel):
    """One line of the table."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: str
    path: str
    bytes: int | None = None
    bits_per_weight: float | None = None
    kld: float | None = None
    top1: float | None = None
    score: ScoreEntry | None = None
    drop: float | None = None
    """points lost against the source, on the same questions"""
    speed: Speed | None = None
    errors_by_kind: dict[str, int] = {}
    """kind of error -> wrong answers of that kind"""
    verdict: str = ""
    sentence: str = ""
    report: GateReport | None = None


def compare(settings: CompareSettings, events: EventLog | None = None) -> tuple[list[Row], str]:
    """(a row for the source in float32 and bfloat16 and one for every file, what the scores were measured on).

    A file that cannot be measured has its reason in its row. Raises ExportError, CardError or TaskError when the source or the
    questions cannot be used, or there is no file.
    """
    events = events if events is not None else EventLog()
    source = Source.open(settings.model)
    files = list(settings.files) or exported_files(settings.model)
    if not files:
        raise ExportError(
            f"{settings.model}: holds no .gguf file and no ONNX directory; export one with export.gguf or export.onnx"
        )
    for file in files:
        if not file.exists():
            raise ExportError(f"{file}: is not there; give .gguf files or ONNX directories")
    questions, remark = questions_of(source, settings)
    loaded = questions.load() if questions is not None else None
    window = sliding_window(source.config)
    ours = measured_source(source, questions, loaded, window, settings.batch, settings.patience_s, events)
    rows = [
        Row(name="source, float32", path=str(source.path), bytes=4 * source.parameters, bits_per_weight=32.0, kld=0.0, top1=1.0,
            score=ours.answers.entry(loaded), drop=0.0 if loaded is not None else None,
            errors_by_kind=ours.answers.errors_by_kind(),
            speed=_speed(f"hf:{source.path}", settings, events, "float32") if source.adapter is None else None),
        _bfloat16(source, settings, ours.bfloat16, events),
    ]  # fmt: skip
    for file in files:
        rows.append(_row(source, file, settings, events))
    about = f"{loaded.dataset} {loaded.split}, {len(loaded.examples):,} questions" if loaded is not None else remark
    return rows, about


def exported_files(directory: Path) -> list[Path]:
    """Every .gguf model and ONNX directory under `directory`, by name; adapters and rejected files are left out."""
    from agents.models.gguf_file import read_gguf

    found = []
    for file in sorted(directory.rglob("*.gguf")):
        try:
            if read_gguf(file).metadata.get("general.type") != "adapter":
                found.append(file)
        except ModelError:
            found.append(file)
    return found + sorted({file.parent for file in directory.rglob("*.onnx") if (file.parent / "tokenizer.json").is_file()})


def _row(source: Source, file: Path, settings: CompareSettings, events: EventLog) -> Row:
    from export.inspect import inspect_file

    kind = "onnx" if file.is_dir() else "gguf"
    report = gate(source, f"{kind}:{file}", settings, events=events)
    try:
        bits = inspect_file(file).bits_per_weight
    except (ExportError, ModelError):
        bits = None
    can_run = missing_backend(f"{kind}:{file}", file) is None and report.parity is not None
    return Row(
        name=file.name,
        path=str(file),
        bytes=size_of(file),
        bits_per_weight=bits,
        kld=report.parity.kld if report.parity is not None else None,
        top1=report.parity.top1 if report.parity is not None else None,
        score=report.score,
        drop=report.paired.drop if report.paired is not None else None,
        speed=_speed(f"{kind}:{file}", settings, events) if can_run else None,
        errors_by_kind=report.errors_by_kind,
        verdict=report.verdict,
        sentence=report.sentence,
        report=report,
    )


def _bfloat16(source: Source, settings: CompareSettings, parity: Parity | None, events: EventLog) -> Row:
    """The source in bfloat16: what half the bits cost without any export. Its task score is not measured."""
    return Row(
        name="source, bfloat16",
        path=str(source.path),
        bytes=2 * source.parameters,
        bits_per_weight=16.0,
        kld=parity.kld if parity is not None else None,
        top1=parity.top1 if parity is not None else None,
        speed=_speed(f"hf:{source.path}", settings, events, "bfloat16") if source.adapter is None else None,
        sentence="" if parity is not None else "its logits are not finite: numbers overflow in bfloat16",
    )


def _speed(spec: str, settings: CompareSettings, events: EventLog, dtype: str = "float32") -> Speed | None:
    if not settings.speed:
        return None
    with events.stage(f"time {Path(spec.partition(':')[2]).name}") as stage:
        try:
            return measure_speed(spec, dtype=dtype, prefill=settings.prefill, decode=settings.decode, rounds=settings.rounds)
        except ExportError as error:
            stage.warn(str(error))
            return None


UNITS = (
    "MB on disk, bits per weight, mean KLD and top-1 agreement to the source, points lost on the same questions; one thread: "
    "tokens per second of processor time, ms to the first token, MB of memory over a bare interpreter"
)
WIDTH = 118
"""Least width of the table, in characters, where it does not go to a terminal."""


def table(rows: Sequence[Row], title: str) -> Any:
    """The rows as a rich table."""
    from rich.markup import escape
    from rich.table import Table

    out = Table(title=title, title_justify="left", caption=UNITS, caption_justify="left")
    out.add_column("file", overflow="fold", min_width=12)
    for name in ("MB", "bits", "KLD", "top-1", "score (95 %)", "loss", "prefill", "decode", "first", "RAM", ""):
        out.add_column(name, justify="right" if name else "left", no_wrap=True)
    for row in rows:
        speed, score = row.speed, row.score
        out.add_row(
            escape(row.name),
            f"{row.bytes / 1e6:.1f}" if row.bytes is not None else "",
            f"{row.bits_per_weight:.2f}" if row.bits_per_weight else "",
            f"{row.kld:.1e}" if row.kld is not None else "",
            f"{row.top1:.1%}" if row.top1 is not None else "",
            f"{100 * score.score:.1f} ({100 * score.low:.1f}-{100 * score.high:.1f})" if score is not None else "",
            f"{row.drop:.2f}" if row.drop is not None else "",
            f"{speed.prefill_tokens_per_s:,.0f}" if speed is not None else "",
            f"{speed.decode_tokens_per_s:,.0f}" if speed is not None else "",
            f"{speed.first_token_ms:,.0f}" if speed is not None else "",
            f"{speed.rss_bytes / 1e6:,.0f}" if speed is not None else "",
            row.verdict,
        )
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m export.compare`: measure, print, write."""
    from rich.console import Console

    from factory.progress import ProgressView

    settings = parse(CompareSettings, argv, "python -m export.compare", "Compare everything exported from a model.")
    for place in (settings.json_file.parent if settings.json_file is not None else None, settings.plots):
        if place is not None:
            place.mkdir(parents=True, exist_ok=True)
    with ProgressView() as view:
        rows, about = compare(settings, EventLog(listener=view))
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, WIDTH))
    console.print(table(rows, about))
    for row in rows:
        if row.sentence and row.verdict != "kept":
            console.print(f"{row.name}: {row.verdict or 'not measured'}: {row.sentence}", markup=False, soft_wrap=True)
    written: list[Path] = []
    if settings.plots is not None:
        from export.plots import draw

        written += draw(rows, settings.plots)
    if settings.json_file is not None:
        document = {"version": program(), "source": str(settings.model), "questions": about,
                    "rows": [row.model_dump(mode="json") for row in rows]}  # fmt: skip
        temporary = settings.json_file.with_name(settings.json_file.name + ".tmp")
        temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(settings.json_file)
        written.append(settings.json_file)
    if written:
        console.print(f"written: {', '.join(map(str, written))}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    from factory.cli import run_cli

    raise SystemExit(run_cli(main))
