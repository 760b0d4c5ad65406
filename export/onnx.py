"""A student as one ONNX directory for onnxruntime, checked against the student it came from.

Does: check everything that can be checked before a weight is read, then build the graph, round its weights, add tokenizer and
facts, gate, put the card inside and name the directory; the whole list of stages is `run`.
Does not: the stages themselves: `export.onnx_builder`, `export.onnx_torch`, `export.onnx_rewrite`, `export.lora_onnx`,
`export.gate`.

Run: python -m export.onnx CKPT [--precision fp32|int8|int4] [--lora merge|adapter] [--max-drop 0.5] [--out DIR] [--json FILE] …

The exit status is 1 for a directory that lost more than --max-drop: it is there, with `.rejected` behind its name.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from agents.card import FileEntry, program, sha256_of_weights
from agents.models.onnx_directory import FACTS_FILE, GENAI_FILE
from export.command import check_json, directory_of, make_callable, run_command
from export.errors import ExportError
from export.gate import GateReport, GateSettings, card_for_file, gate
from export.onnx_builder import build, builds, missing, staged
from export.onnx_rewrite import Rewritten, rewrite
from export.onnx_torch import trace
from export.result import ExportResult, record
from export.source import Source
from factory.cli import run_cli
from factory.events import EventLog, Listener
from factory.settings import build as build_settings

REJECTED = ".rejected"


class OnnxSettings(GateSettings):
    """`python -m export.onnx`: one checkpoint, one directory."""

    ckpt: Path
    """model or adapter directory, or the run directory around it"""
    precision: Literal["fp32", "int8", "int4"] = "int8"
    """bits of the weights; int4 keeps head, embedding and the most sensitive matrices in 8"""
    lora: Literal["merge", "adapter"] = "merge"
    """what becomes of a LoRA adapter: merged into its base, or an .onnx_adapter file in the base's directory, to be swapped"""
    gate: bool = True
    """measure the directory against its source before it gets its name"""
    out: Path | None = None
    """directory to write; default: CKPT/onnx-PRECISION"""
    json_file: Path | None = Field(None, alias="json")
    """write the whole report here as well"""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, use_attribute_docstrings=True)


def run(settings: OnnxSettings, listener: Listener | None = None) -> ExportResult:
    """Export. Raises ExportError, CardError, TaskError or OSError before or instead of a half-written directory."""
    started = time.monotonic()
    events = EventLog(listener=listener)
    with events.stage("plan"):
        absent = missing()
        if absent is not None:
            raise ExportError(absent)
        source = Source.open(directory_of(settings.ckpt, settings.lora))
        if settings.lora == "adapter":
            from export.lora_onnx import export_adapter

            return export_adapter(source, settings, events)
        out = settings.out if settings.out is not None else source.path / f"onnx-{settings.precision}"
        check_place(out)
        check_json(settings.json_file)
    with workplace(out) as place:
        made, how = make(source, place / out.name, settings.precision, events)
        report = gate(source, f"onnx:{place / out.name}", settings, events=events,
                      full_precision=settings.precision == "fp32") if settings.gate else None  # fmt: skip
        seal(source, place / out.name, settings.precision, made, report)
        path = publish(place / out.name, out, report is None or report.ok)
    notes = (f"built by {how}", *(f"stays in float32: {name}" for name in made.kept_float))
    document = {
        "version": program(), "file": path.name, "source": str(source.path), "source_sha256": source.sha256,
        "verdict": report.verdict if report is not None else "unchecked", "sentence": sentence(report), "bytes": made.bytes,
        "bits_per_weight": round(made.bits_per_weight, 4), "context": context_of(source), "precision": settings.precision,
        "builder": how, "matrices": _tally(made), "notes": list(notes), "seconds": round(time.monotonic() - started, 3),
    }  # fmt: skip
    return record(ExportResult(
        path=path, kept=report is None or report.ok, checked=report is not None and report.verdict in ("kept", "rejected"),
        sentence=sentence(report), bytes=made.bytes, bits_per_weight=made.bits_per_weight, gate=report, report=out.parent,
        notes=notes, document=document,
    ), settings.json_file)  # fmt: skip


def make(
    source: Source,
    out: Path,
    precision: Literal["fp32", "int8", "int4"],
    events: EventLog,
    insert: Any = None,
) -> tuple[Rewritten, str]:
    """Graph, weights, tokenizer and facts in the new directory `out`, no card yet; also says which builder made the graph."""
    place = out.parent
    how = "onnxruntime-genai" if builds(source) else "torch.onnx"
    with events.stage("prepare"):
        model_dir = staged(source, place / "float32")
    with events.stage(f"build with {how}"):
        built = place / "built"
        if how == "torch.onnx":
            trace(model_dir, built)
        else:
            build(model_dir, built, place / "cache")
    with events.stage(f"write {precision}"):
        out.mkdir()
        made = rewrite(built, out, precision, windows(source.config), insert)
        source.tokenizer.save_pretrained(out)
        _write_facts(source, out, built)
    for left in ("built", "cache", "float32"):
        shutil.rmtree(place / left, ignore_errors=True)
    return made, how


def seal(
    source: Source, directory: Path, precision: str, made: Rewritten, report: GateReport | None, **facts: str | None
) -> None:
    """Put the card into a finished directory, with its own hash and score."""
    if source.card is None:
        return
    entry = FileEntry(name=directory.name, format="onnx", precision=precision, bits_per_weight=made.bits_per_weight,
                      source_sha256=source.sha256, sha256=sha256_of_weights(directory), **facts)  # fmt: skip
    card_for_file(source.card, entry, report).save(directory)


def publish(made: Path, out: Path, kept: bool) -> Path:
    """Move a finished directory to its name, in place of what an earlier export wrote there; returns the name."""
    target = out if kept else out.with_name(out.name + REJECTED)
    rejected = out.with_name(out.name + REJECTED)
    for old in {target, rejected}:
        if old.is_dir():
            check_place(old)
            old.rename(made.parent / f"old-{old.name}")
    made.rename(target)
    return target


def check_place(out: Path) -> None:
    """Raises ExportError when `out` cannot be written, or holds anything but an earlier export, before anything costly."""
    parent = out.absolute().parent
    if out.exists() and not out.is_dir():
        raise ExportError(f"--out {out}: is a file; give a directory that does not exist yet")
    if not parent.is_dir():
        raise ExportError(f"--out {out}: there is no directory {out.parent}; create it, or choose another --out")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ExportError(f"--out {out}: {out.parent} cannot be written; choose another --out")
    if not out.is_dir():
        return
    try:
        ours = set(json.loads((out / FACTS_FILE).read_text(encoding="utf-8"))["files"]) | {FACTS_FILE, "card.json"}
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    strange = sorted(entry.name for entry in out.iterdir() if entry.name not in ours)
    if strange:
        raise ExportError(f"--out {out}: holds {strange[0]}, which no export wrote; choose another --out, or move it away")


@contextmanager
def workplace(out: Path) -> Iterator[Path]:
    """A directory beside `out` to work in, cleared away whatever happens. Raises OSError when nothing can be written there."""
    for left in out.parent.glob(f".{out.name}.*.tmp"):
        process = left.name.removeprefix(f".{out.name}.").split(".")[0]
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            shutil.rmtree(left, ignore_errors=True)
    place = Path(tempfile.mkdtemp(prefix=f".{out.name}.{os.getpid()}.", suffix=".tmp", dir=out.parent))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def windows(config: Mapping[str, Any]) -> dict[int, int]:
    """Layer -> tokens its attention sees, for the layers with a sliding window."""
    window, layers = config.get("sliding_window"), int(config["num_hidden_layers"])
    if not window or config.get("use_sliding_window") is False:
        return {}
    kinds = config.get("layer_types") or ["sliding_attention"] * layers
    return {i: int(window) for i, kind in enumerate(kinds) if kind == "sliding_attention"}


def context_of(source: Source) -> int | None:
    """Tokens of prompt and answer together."""
    found = source.config.get("max_position_embeddings")
    return int(found) if found is not None else None


def end_ids(source: Source) -> list[int]:
    """Ids that end an answer: the generation configuration's (config.json's where there is none) and the tokenizer's."""
    configured = (source.generation or source.config).get("eos_token_id")
    ids = configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(int(i) for i in [*ids, source.tokenizer.eos_token_id] if i is not None))


def sentence(report: GateReport | None) -> str:
    return report.sentence if report is not None else "not checked against its source: --no-gate was given"


def _write_facts(source: Source, out: Path, built: Path) -> None:
    ends = end_ids(source)
    if not ends:
        raise ExportError(
            f"{source.tokenizer_dir}: its tokenizer has no end-of-text token; set eos_token in tokenizer_config.json"
        )
    heads = source.config["num_attention_heads"]
    facts: dict[str, Any] = {
        "version": program(), "source_sha256": source.sha256, "base_sha256": source.base_sha256,
        "eos_ids": ends, "context": context_of(source), "kv_heads": source.config.get("num_key_value_heads") or heads,
        "head_size": source.config.get("head_dim") or source.config["hidden_size"] // heads,
        "vocab_size": source.config["vocab_size"], "weights_sha256": sha256_of_weights(out),
    }  # fmt: skip
    if (built / GENAI_FILE).is_file():
        shutil.copyfile(built / GENAI_FILE, out / GENAI_FILE)
    facts["files"] = sorted([*(entry.name for entry in out.iterdir()), FACTS_FILE, "card.json"])
    (out / FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _tally(made: Rewritten) -> dict[str, int]:
    bits = list(made.bits.values())
    return {f"{width} bits": bits.count(width) for width in sorted(set(bits))}


def main(argv: Sequence[str] | None = None) -> None:
    run_command(run, OnnxSettings, argv, "export.onnx", "Export a model as an ONNX directory that is checked against it.")


def export(ckpt: Path | str, listener: Listener | None = None, **settings: Any) -> ExportResult:
    """Export from Python; `settings` are the command's options with underscores. Raises SettingsError and what `run` raises."""
    return run(build_settings(OnnxSettings, {"ckpt": Path(ckpt), **settings}, "export.onnx"), listener)


if __name__ == "__main__":
    sys.exit(run_cli(main))
make_callable(__name__, export)
