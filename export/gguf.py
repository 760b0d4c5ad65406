"""A student as one GGUF file for llama.cpp, checked against the student it came from.

Does: check everything that can be checked before a weight is read, then convert, quantize, gate, put the card inside, seal and
name the file; the whole list of stages is `run`.
Does not: the stages themselves: `export.convert`, `export.quants`, `export.imatrix`, `export.auto`, `export.gate`, `export.lora`.

Run: python -m export.gguf CKPT [--quant Q8_0|Q4_K_M|…|auto] [--target phone|pi|laptop|SIZE_MB] [--lora merge|adapter] …

The exit status is 1 for a file that lost more than --max-drop: it is there, with `.rejected` behind its name.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from agents.card import program
from agents.models.llama_library import INSTALL
from export.command import check_json, directory_of, make_callable, run_command
from export.errors import ExportError
from export.gate import GateReport, GateSettings
from export.quant_types import Prediction, Recipe, predict
from export.quants import as_json, check_quant, check_tensor_type, llama_cpp_missing, our_types
from export.result import ExportResult, record
from export.source import Source
from export.target import Target, cache_bytes, parse_target, predict_speed, streamed_bytes
from factory.cli import run_cli
from factory.events import EventLog, Listener, Stage
from factory.settings import build

AUTO = "auto"


class GgufSettings(GateSettings):
    """`python -m export.gguf`: one checkpoint, one file."""

    ckpt: Path
    """model or adapter directory, or the run directory around it"""
    quant: str = "Q8_0"
    """quant type as llama.cpp spells it, or auto: the smallest and fastest that stays within --max-drop"""
    head: str | None = None
    """tensor type of the output head (the embedding, where both are one); default: the quant type's own rule"""
    importance: bool | None = None
    """round with an importance matrix; default: for K and IQ types where calibration rows are found, and with --calibration"""
    fallback: Literal["same", "larger"] = "same"
    """K types where rows are no multiple of 256: Q4_K becomes IQ4_NL, of as many bits, or larger, Q5_0, as llama.cpp has it"""
    mixed: bool = True
    """Q8_0: where the file is further from its source than KLD 1e-4 (or --max-kld) and than the source in bfloat16, leave the
    tensors in F16 whose rounding costs most"""
    calibration: Path | None = None
    """text or JSONL the importance matrix is measured on; default: the run's training rows"""
    lora: Literal["merge", "adapter"] = "merge"
    """what becomes of a LoRA adapter: merged into its base, or a GGUF adapter to load beside the base's file"""
    base: Path | None = None
    """with --lora adapter: the base's GGUF file it is checked on; default: one made for the check, of type --quant"""
    adapter_type: Literal["F32", "F16"] = "F32"
    """with --lora adapter: type of its matrices; F16 halves the file"""
    target: str | None = None
    """where it shall run: phone, pi, laptop, or the largest file in megabytes"""
    gate: bool = True
    """measure the file against its source before it gets its name"""
    out: Path | None = None
    """file to write; default: CKPT/NAME-QUANT.gguf"""
    json_file: Path | None = Field(None, alias="json")
    """write the whole report here as well"""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, use_attribute_docstrings=True)


def run(settings: GgufSettings, listener: Listener | None = None) -> ExportResult:
    """Export. Raises ExportError, CardError, TaskError or OSError before or instead of a half-written file."""
    from export.auto import choose, row
    from export.mixed import nearer
    from export.workshop import Workshop, check_place

    started = time.monotonic()
    events = EventLog(listener=listener)
    auto = settings.quant.lower() == AUTO
    quant = AUTO if auto else check_quant(settings.quant, (AUTO,))
    head = check_tensor_type(settings.head) if settings.head is not None else None
    target = parse_target(settings.target) if settings.target is not None else None
    with events.stage("plan") as plan:
        if settings.lora != "adapter" and settings.adapter_type != "F32":
            raise ExportError(
                f"--adapter-type {settings.adapter_type} is for --lora adapter; give that, or --quant for a whole model"
            )
        source = Source.open(directory_of(settings.ckpt, settings.lora))
        calibration = _calibration(settings, source)
        out = settings.out if settings.out is not None else _default_out(settings, source, quant)
        check_place(out)
        check_json(settings.json_file)
        if settings.lora == "adapter":
            from export.adapter import export_adapter

            return export_adapter(source, settings, out, quant, events)
        recipe = None if auto else _recipe(quant, head, settings, calibration, plan)
        _check_means(settings, recipe, source, target, plan)
    with Workshop.opened(source, out, calibration, settings.threads or _threads(), events) as shop:
        if recipe is None:
            choice = choose(shop, settings, target, lambda made: _decode(made.path, source, events))
            made, why, tried, skipped = choice.picked, choice.why, choice.tried, choice.skipped
        else:
            made, why, tried, skipped = shop.make(recipe), "", (), ()
        _check_size(made.bytes, source, target)
        if settings.gate and settings.mixed and made.recipe.quant == "Q8_0":
            made = nearer(shop, made, settings, lambda found: _fits(found, source, target))
        if settings.gate and made.report is None:
            made = shop.check(made, settings)
        kept = made.report is not None and made.report.verdict == "kept"
        if target is not None and target.device is not None and made.decode is None and kept:
            made = replace(made, decode=_decode(made.path, source, events))
        types = made.types
        path = shop.publish(made)
    if path == out:
        out.with_name(out.name + ".rejected").unlink(missing_ok=True)
    report = made.report
    speeds = _predicted(target, types, source, made.decode)
    rows = [row(one) for one in tried]
    document = {
        "version": program(), "file": path.name, "source": str(source.path), "source_sha256": source.sha256,
        "verdict": report.verdict if report is not None else "unchecked", "sentence": _sentence(report),
        "bytes": path.stat().st_size, "bits_per_weight": round(made.bits_per_weight, 4), "context": source.plan.context,
        "recipe": as_json(made.recipe, made.prediction), "notes": list(made.notes), **made.details, **speeds,
        "why": why, "candidates": rows, "not_tried": [list(pair) for pair in skipped],
        "seconds": round(time.monotonic() - started, 3),
    }  # fmt: skip
    return record(ExportResult(
        path=path, kept=made.kept, checked=report is not None and report.verdict in ("kept", "rejected"),
        sentence=_sentence(report),
        bytes=path.stat().st_size, bits_per_weight=made.bits_per_weight, gate=report, report=out.parent, notes=made.notes,
        why=why, candidates=tuple(document["candidates"]), document=document,
    ), settings.json_file)  # fmt: skip


def _calibration(settings: GgufSettings, source: Source) -> Path | None:
    from export.imatrix import calibration_file

    return None if settings.importance is False else calibration_file(source, settings.calibration)


def _recipe(quant: str, head: str | None, settings: GgufSettings, calibration: Path | None, plan: Stage) -> Recipe:
    kind = Recipe(quant).type
    exact = kind.base in ("F32", "F16", "BF16", "Q8_0")
    if head is not None and exact:
        raise ExportError(f"--head {head} goes with types below 8 bits, not {quant}; leave it away")
    wanted = settings.importance if settings.importance is not None else settings.calibration is not None or not kind.ours
    if exact and (settings.importance or settings.calibration is not None):
        plan.warn(f"{quant} rounds every weight as near as it can: the importance matrix is not used")
    if settings.importance and calibration is None:
        raise ExportError(
            "--importance needs rows to measure on and there is no run around the checkpoint; give --calibration FILE"
        )
    if kind.importance and calibration is None:
        raise ExportError(f"{quant} needs an importance matrix and there are no rows to measure it on; give --calibration FILE")
    return Recipe(quant, head, wanted and calibration is not None and not exact, fallback=settings.fallback)


def _check_means(settings: GgufSettings, recipe: Recipe | None, source: Source, target: Target | None, plan: Stage) -> None:
    """Raises ExportError when the file cannot be made here or will not fit; says what it will be."""
    if recipe is None:
        if llama_cpp_missing():
            raise ExportError(f"--quant auto measures files through llama.cpp; {INSTALL}; or choose --quant Q8_0")
        if not settings.gate:
            raise ExportError("--quant auto chooses by measuring, so it cannot be combined with --no-gate; choose a --quant")
        return
    if recipe.needs_llama_cpp and llama_cpp_missing():
        raise ExportError(
            f"{recipe.label} is written by llama.cpp; {INSTALL}; or choose one of {', '.join(our_types())} without --head"
        )
    prediction = predict(source.plan, recipe)
    if target is not None and (why := target.excess(prediction.tensor_bytes, cache_bytes(source.plan))) is not None:
        raise ExportError(f"--target {target.name}: {recipe.label}: {why}; choose a smaller --quant, or --quant auto")
    said = prediction.say(recipe)
    if said is not None:
        plan.warn(said)
    plan.metric(bytes=prediction.tensor_bytes, bits_per_weight=prediction.bits_per_weight)


def _fits(prediction: Prediction, source: Source, target: Target | None) -> bool:
    return target is None or target.excess(prediction.tensor_bytes, cache_bytes(source.plan)) is None


def _check_size(size: int, source: Source, target: Target | None) -> None:
    if target is not None and (why := target.excess(size, cache_bytes(source.plan))) is not None:
        raise ExportError(f"--target {target.name}: with its vocabulary {why}; choose a smaller --quant, or --quant auto")


def _default_out(settings: GgufSettings, source: Source, quant: str) -> Path:
    """CKPT/NAME-QUANT.gguf; NAME is the card's, else the directory's."""
    resolved = source.path.resolve()
    plain = resolved.parent.name if resolved.name in ("model", "adapter") else resolved.name
    named = (source.card.name or source.card.task) if source.card is not None else plain
    name = re.sub(r"[^A-Za-z0-9._]+", "-", named).strip("-.") or "model"
    return source.path / f"{name}-{'adapter' if settings.lora == 'adapter' else quant.lower()}.gguf"


def _threads() -> int:
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _decode(path: Path, source: Source, events: EventLog) -> float | None:
    """Tokens/s of a file's decoding, one thread of a fresh process; None, with a warning, where it cannot be measured."""
    from export.speed import measure_speed

    prefill = min(128, source.plan.context // 2)
    with events.stage("time its decoding") as stage:
        try:
            return measure_speed(f"gguf:{path}", prefill=prefill, decode=min(64, prefill), rounds=2).decode_tokens_per_s
        except ExportError as error:
            stage.warn(str(error))
            return None


def _sentence(report: GateReport | None) -> str:
    return report.sentence if report is not None else "not checked against its source: --no-gate was given"


def _predicted(target: Target | None, types: dict[str, str], source: Source, measured: float | None) -> dict[str, Any]:
    if target is None:
        return {}
    about: dict[str, Any] = {"target": target.name}
    if target.device is not None:
        streamed = streamed_bytes(types, source.plan)
        speed = predict_speed(target.device, streamed, measured)
        about |= {"streamed_bytes_per_token": streamed, "prediction": {**asdict(speed), "sentence": speed.say()},
                  "prediction_from": [target.device.slow_source, target.device.fast_source]}  # fmt: skip
    return about


def main(argv: Sequence[str] | None = None) -> None:
    run_command(run, GgufSettings, argv, "export.gguf", "Export a model as a GGUF file that is checked against it.")


def export(ckpt: Path | str, listener: Listener | None = None, **settings: Any) -> ExportResult:
    """Export from Python; `settings` are the command's options with underscores. Raises SettingsError and what `run` raises."""
    return run(build(GgufSettings, {"ckpt": Path(ckpt), **settings}, "export.gguf"), listener)


if __name__ == "__main__":
    sys.exit(run_cli(main))
make_callable(__name__, export)
