"""A LoRA adapter as an ONNX adapter, swapped on a base graph that takes any rank of it.

Does: give a base graph optional inputs for every projection, empty by default; write lora_A and lora_B of a peft adapter as their
values (scale folded in, rank-stabilized too; q, k and v side by side where the graph has them as one matrix).
Does not: merge (`--lora merge`), or hold DoRA, biases or whole modules.

    python -m export.onnx runs/a/model/adapter --lora adapter --out base-onnx       base directory and a.onnx_adapter in it
    python -m export.onnx runs/b/model/adapter --lora adapter --out base-onnx       same base: only b.onnx_adapter is added
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.card import FileEntry, program
from agents.chat import Adapter
from agents.models.onnx_adapter import DOWN, SUFFIX, UP
from agents.models.onnx_directory import FACTS_FILE
from export.errors import ExportError
from export.gate import GateReport, card_for_file, gate
from export.lora import check_adapter
from export.lora_merge import Delta
from export.onnx_builder import builds
from export.onnx_rewrite import FILE
from export.result import ExportResult, record
from export.source import Source
from factory.events import EventLog

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from export.onnx import OnnxSettings

_PROJECTION = re.compile(r"/model/layers\.(\d+)/(attn|mlp)/(q|k|v|qkv|o|gate|up|down)_proj/MatMul")


def export_adapter(source: Source, settings: OnnxSettings, events: EventLog) -> ExportResult:
    """Write the adapter, and its base's directory where there is none yet. Raises ExportError, OSError."""
    from export.onnx import check_place, make, publish, sentence, workplace

    started = time.monotonic()
    check_adapter(source)
    if source.family.fused or not builds(base_source(source)):
        raise ExportError(
            f"{source.path}: adapters of {source.family.name} models cannot be swapped in ONNX here; use --lora merge"
        )
    out = settings.out if settings.out is not None else source.path / f"onnx-{settings.precision}"
    fresh = not _is_base(out, source)
    if fresh:
        check_place(out)
    notes = []
    with workplace(out) as place:
        base = out
        if fresh:
            made, how = make(base_source(source), place / out.name, settings.precision, events, add_inputs)
            base = place / out.name
            notes.append(f"base built by {how}, {made.bytes / 1e6:.2f} MB in {settings.precision}")
        file = place / f"{_name(source)}{SUFFIX}"
        with events.stage("adapter"):
            ranks = write_adapter(source, base, file)
            _describe(source, file, out.name, None)  # the engine reads it; the gate's scores are added below
        report = (
            gate(source, f"onnx:{base}", settings, adapters=(Adapter(path=str(file)),), events=events) if settings.gate else None
        )
        kept = report is None or report.ok
        _describe(source, file, out.name, report)
        if fresh:
            base = publish(base, out, True)
        path = base / (file.name if kept else file.name + ".rejected")
        for moved in (file.with_name(file.name + ".json"), file):
            moved.replace(path.with_name(path.name + ".json") if moved.suffix == ".json" else path)
        if kept:
            for old in (file.name + ".rejected", file.name + ".rejected.json"):
                (base / old).unlink(missing_ok=True)
        _list(base, path)
    notes.append(f"rank {', '.join(map(str, ranks))}; load it with Adapter(path=…) on onnx:{base}")
    document = {
        "version": program(), "file": path.name, "source": str(source.path), "source_sha256": source.sha256,
        "base_sha256": source.base_sha256, "verdict": report.verdict if report is not None else "unchecked",
        "sentence": sentence(report), "bytes": path.stat().st_size, "ranks": list(ranks), "base": str(base), "notes": notes,
        "seconds": round(time.monotonic() - started, 3),
    }  # fmt: skip
    return record(ExportResult(
        path=path, kept=kept, checked=report is not None and report.verdict in ("kept", "rejected"), sentence=sentence(report),
        bytes=path.stat().st_size, bits_per_weight=32.0, gate=report, report=base, notes=tuple(notes), document=document,
    ), settings.json_file)  # fmt: skip


def base_source(source: Source) -> Source:
    """The base of an adapter as a source of its own, with the adapter's tokenizer."""
    return replace(source, path=source.model_dir, adapter=None, card=None)


def add_inputs(graph: Any, read: Callable[[str], NDArray[Any] | None]) -> None:
    """Beside every projection x W of a built graph: x A B, A (columns, rank) and B (rank, rows) optional inputs, empty."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    for node in [node for node in graph.node if node.op_type == "MatMul" and _PROJECTION.fullmatch(node.name)]:
        weight = read(node.input[1])
        assert weight is not None
        columns, rows = weight.shape
        key = node.name.removesuffix("/MatMul").strip("/").replace("/", ".")
        down, up = key + DOWN, key + UP
        rank = key + ".rank"
        for name, dims, shape in ((down, (columns, rank), (columns, 0)), (up, (rank, rows), (0, rows))):
            graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
            graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), name))
        output = node.output[0]
        node.output[0] = f"{output}/base"
        place = next(i for i, other in enumerate(graph.node) if other.name == node.name)
        for made in reversed([
            helper.make_node("MatMul", [node.input[0], down], [f"{output}/down"], name=f"lora/{key}/down"),
            helper.make_node("MatMul", [f"{output}/down", up], [f"{output}/up"], name=f"lora/{key}/up"),
            helper.make_node("Add", [node.output[0], f"{output}/up"], [output], name=f"lora/{key}/add"),
        ]):  # fmt: skip
            graph.node.insert(place + 1, made)


def write_adapter(source: Source, base: Path, file: Path) -> tuple[int, ...]:
    """Write the adapter's matrices for the graph in `base` to `file`; returns the ranks in it."""
    import onnxruntime as ort

    assert source.adapter is not None
    places = _places(base)
    values: dict[str, NDArray[np.float32]] = {}
    ranks: set[int] = set()
    for layer_part, names in _grouped(source).items():
        whole = f"model.layers.{layer_part}.qkv_proj"
        if whole in places and any(kind in names for kind in "qkv"):
            values |= _side_by_side(
                whole, [(names.pop(kind, None), source.weights[_weight(layer_part, kind)].shape[0]) for kind in "qkv"]
            )
        for kind, delta in names.items():
            key = f"model.layers.{layer_part}.{kind}_proj"
            if key not in places:
                raise ExportError(f"{base}: its graph has no input for {key}; use --lora merge")
            values |= _side_by_side(key, [(delta, delta.b.shape[0])])
    for delta in source.adapter.deltas.values():
        ranks.add(delta.a.shape[0])
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    adapter.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()})
    adapter.export_adapter(str(file))
    return tuple(sorted(ranks))


def _grouped(source: Source) -> dict[str, dict[str, Delta]]:
    """ "3.attn" -> {"q": Delta, …}. Raises ExportError for a matrix the graph has no input for."""
    assert source.adapter is not None
    out: dict[str, dict[str, Delta]] = {}
    for name, delta in source.adapter.deltas.items():
        found = re.fullmatch(r"model\.layers\.(\d+)\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj\.weight", name)
        if found is None:
            raise ExportError(f"{source.path}: changes {name}, which the ONNX graph has no input for; use --lora merge")
        part = "attn" if found[2] == "self_attn" else "mlp"
        out.setdefault(f"{found[1]}.{part}", {})[found[3]] = delta
    return out


def _weight(layer_part: str, kind: str) -> str:
    return f"model.layers.{layer_part.split('.')[0]}.self_attn.{kind}_proj.weight"


def _side_by_side(key: str, parts: list[tuple[Delta | None, int]]) -> dict[str, NDArray[np.float32]]:
    """A (columns, sum of ranks) and B (sum of ranks, rows): each part's B in its own rows of the output."""
    import numpy as np

    from export.weights import read_rows

    given = [(delta, sum(rows for _, rows in parts[:i])) for i, (delta, _) in enumerate(parts) if delta is not None]
    down = np.concatenate([read_rows(delta.a).T for delta, _ in given], axis=1)
    up = np.zeros((down.shape[1], sum(rows for _, rows in parts)), np.float32)
    at = 0
    for delta, start in given:
        rank, rows = delta.a.shape[0], delta.b.shape[0]
        up[at : at + rank, start : start + rows] = read_rows(delta.b).T * np.float32(delta.scale)
        at += rank
    return {key + DOWN: np.ascontiguousarray(down), key + UP: up}


def _places(base: Path) -> set[str]:
    """Projections the graph in `base` has inputs for."""
    import onnx

    graph = onnx.load(str(base / FILE), load_external_data=False).graph
    return {entry.name.removesuffix(DOWN) for entry in graph.input if entry.name.endswith(DOWN)}


def _is_base(out: Path, source: Source) -> bool:
    """Whether `out` already is a directory of this adapter's base that takes adapters."""
    try:
        facts = json.loads((out / FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if facts.get("source_sha256") != source.base_sha256 or not (out / FILE).is_file():
        return False
    return bool(_places(out))


def _name(source: Source) -> str:
    resolved = source.path.resolve()
    plain = resolved.parent.name if resolved.name == "adapter" else resolved.name
    named = (source.card.name or source.card.task) if source.card is not None else plain
    return re.sub(r"[^A-Za-z0-9._]+", "-", named).strip("-.") or "adapter"


def _describe(source: Source, file: Path, base: str, report: GateReport | None) -> None:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    card = None
    if source.card is not None:
        entry = FileEntry(name=file.name, format="onnx", precision="fp32", kind="adapter", bits_per_weight=32.0, sha256=digest,
                          source_sha256=source.sha256, base_sha256=source.base_sha256)  # fmt: skip
        card = card_for_file(source.card, entry, report).model_dump(mode="json")
    about = {"version": program(), "sha256": digest, "base_sha256": source.base_sha256, "source_sha256": source.sha256,
             "base": base, "card": card}  # fmt: skip
    file.with_name(file.name + ".json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _list(base: Path, path: Path) -> None:
    """Put the new files on the list of what exports wrote."""
    facts = json.loads((base / FACTS_FILE).read_text(encoding="utf-8"))
    facts["files"] = sorted({*facts["files"], path.name, path.name + ".json", "export_report.json"})
    temporary = base / (FACTS_FILE + ".tmp")
    temporary.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    temporary.replace(base / FACTS_FILE)
