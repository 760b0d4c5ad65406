"""The way of `python -m export.gguf --lora adapter`: a GGUF adapter, checked on its base's file.

Does: write the adapter, check it on the base file given or on one made for the check, put card and seal into it, name it.
Does not: publish a base file; `python -m export.gguf BASE` does.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from agents.card import program
from agents.chat import Adapter, ModelError
from export.convert import TYPES, convert
from export.errors import ExportError
from export.gate import GateReport, card_for_file, gate
from export.lora import AdapterType, check_adapter, file_entry, write_adapter
from export.quants import llama_cpp_missing
from export.result import ExportResult, record
from export.source import Source
from export.workshop import REJECTED
from factory.events import EventLog

if TYPE_CHECKING:
    from export.gguf import GgufSettings


def export_adapter(source: Source, settings: GgufSettings, out: Path, quant: str, events: EventLog) -> ExportResult:
    """Write the adapter of `source` to `out`. Raises ExportError, OSError."""
    started = time.monotonic()
    check_adapter(source)
    _check_options(settings, quant)
    base = _given_base(settings.base, source) if settings.base is not None else None
    place = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        with events.stage("adapter"):
            made = write_adapter(source, place / out.name, out.name, settings.adapter_type)
        report = None
        if settings.gate:
            on = base
            if on is None and not llama_cpp_missing():
                on = _make_base(source, place / "base.gguf", quant, events)
            report = gate(source, f"gguf:{on if on is not None else place / 'base.gguf'}", settings,
                          adapters=(Adapter(path=str(made.path)),), events=events)  # fmt: skip
        path = _publish(source, made.path, out, report, settings.adapter_type)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    on_what = f"{settings.base.name}" if settings.base is not None else f"a {quant} file of its base"
    ranks = ", ".join(map(str, made.ranks))
    notes = [f"load it beside a file of its base ({source.model_dir}); rank {ranks}, {made.matrices} matrices"]
    if made.folded:
        notes.append(f"{made.folded} matrices have a scale of their own, carried in their lora_B")
    if report is not None:
        notes.append(f"checked on {on_what}")
    document = {
        "version": program(), "file": path.name, "source": str(source.path), "source_sha256": source.sha256,
        "base_sha256": source.base_sha256, "verdict": report.verdict if report is not None else "unchecked",
        "sentence": _sentence(report), "bytes": path.stat().st_size, "type": settings.adapter_type,
        "ranks": list(made.ranks), "alpha": made.alpha,
        "matrices": made.matrices, "folded": made.folded, "checked_on": on_what if report is not None else None, "notes": notes,
        "seconds": round(time.monotonic() - started, 3),
    }  # fmt: skip
    return record(ExportResult(
        path=path, kept=report is None or report.ok, checked=report is not None and report.verdict in ("kept", "rejected"),
        sentence=_sentence(report), bytes=path.stat().st_size, bits_per_weight=made.bits, gate=report, report=out.parent,
        notes=tuple(notes), document=document,
    ), settings.json_file)  # fmt: skip


def base_source(source: Source) -> Source:
    """The base of an adapter as a source of its own, with the adapter's tokenizer: what its file must be to take the adapter."""
    return replace(source, path=source.model_dir, adapter=None, card=None)


def _check_options(settings: GgufSettings, quant: str) -> None:
    for name in ("head", "importance", "calibration", "target"):
        if getattr(settings, name) is not None:
            raise ExportError(f"--{name} is about the base's file, not about an adapter; leave it away with --lora adapter")
    if quant not in TYPES and settings.base is None and settings.gate:
        raise ExportError(f"the base made for the check can be {', '.join(TYPES)}, not {quant}; give --base FILE.gguf")


def _given_base(file: Path, source: Source) -> Path:
    from agents.models.gguf_file import SOURCE_KEY, verify

    try:
        found = verify(file).metadata.get(SOURCE_KEY)
    except (OSError, ModelError) as error:
        raise ExportError(f"--base {file}: {error}") from None
    if found is not None and found != source.base_sha256:
        raise ExportError(
            f"--base {file}: was made from other weights (sha256 {str(found)[:12]}…) than this adapter's base "
            f"({str(source.base_sha256)[:12]}…); export {source.model_dir}"
        )
    return file


def _make_base(source: Source, path: Path, quant: str, events: EventLog) -> Path:
    base = base_source(source)
    with events.stage(f"convert the base to {quant}", total=base.parameters, unit="weights") as stage:
        convert(base, path, quant, lambda done, _: stage.advance(done - stage.done))
    return path


def _publish(source: Source, made: Path, out: Path, report: GateReport | None, type_name: AdapterType) -> Path:
    from export.seal import seal, write_card

    if source.card is not None:
        entry = file_entry(source, out.name, type_name)
        write_card(made, card_for_file(source.card, entry, report))
        seal(made)
    target = out if report is None or report.ok else out.with_name(out.name + REJECTED)
    made.replace(target)
    if target == out:
        out.with_name(out.name + REJECTED).unlink(missing_ok=True)
    return target


def _sentence(report: GateReport | None) -> str:
    return report.sentence if report is not None else "not checked against its source: --no-gate was given"
