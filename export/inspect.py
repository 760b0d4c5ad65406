"""What an exported file is: its card, what it scored, its quant types, its tokenizer, and whether it is still what was written.

Does: read a GGUF file or an ONNX directory without loading weights into an engine; `--check` reads every byte.
Does not: measure anything (`export.compare`).

    python -m export.inspect FILE.gguf|DIR [--check] [--json]
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agents.card import FILE_NAME, Card
from export.errors import ExportError
from factory.settings import parse

Seal = Literal["intact", "not checked", "open", "none"]
"""intact: every byte is as written; open: still being made; none: not written by this program."""
WIDTH = 110
"""Least width in characters where the output does not go to a terminal."""


class InspectSettings(BaseModel):
    """`python -m export.inspect FILE`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, use_attribute_docstrings=True)

    file: Path
    """.gguf file or ONNX directory"""
    check: bool = False
    """read the whole file and compare it with its seal"""
    as_json: bool = Field(False, alias="json")
    """print everything as JSON"""


class TypeCount(BaseModel):
    """Tensors of one type."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    type: str
    tensors: int
    bytes: int
    weights: int


class FileFacts(BaseModel):
    """Everything known of one exported file."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    path: str
    format: Literal["gguf", "onnx"]
    kind: Literal["model", "adapter"] = "model"
    bytes: int
    architecture: str = ""
    precision: str = ""
    """the card's word, else the type most bytes are in"""
    bits_per_weight: float | None = None
    parameters: int | None = None
    context: int | None = None
    types: tuple[TypeCount, ...] = ()
    """most bytes first"""
    tokenizer: dict[str, Any] = {}
    source_sha256: str | None = None
    base_sha256: str | None = None
    seal: Seal = "none"
    card: Card | None = None

    def first_line(self) -> str:
        """The file in one line."""
        bits = f", {self.bits_per_weight:.2f} bits per weight" if self.bits_per_weight else ""
        weights = f", {self.parameters / 1e6:.1f} M weights" if self.parameters else ""
        seal = {"intact": "seal intact", "not checked": "sealed", "open": "not sealed yet", "none": "no seal"}[self.seal]
        what = f"{self.format.upper()} {'adapter ' if self.kind == 'adapter' else ''}{self.precision}"
        score = self.card.scores.get(self.card.file.name) if self.card is not None and self.card.file is not None else None
        scored = f", {100 * score.score:.1f} % on {score.split}" if score is not None else ""
        return f"{Path(self.path).name}: {what}, {self.bytes / 1e6:.1f} MB{bits}{weights}{scored}, {seal}"


def inspect_file(path: Path, check: bool = False) -> FileFacts:
    """What `path` is. Raises ExportError, ModelError or CardError for a file that is damaged, or none of ours."""
    if path.is_dir() and any(path.glob("*.onnx")):
        return _onnx(path, check)
    if path.is_dir():
        inside = sorted(file.name for file in path.glob("*.gguf"))
        hint = f"; it holds {', '.join(inside[:4])}: give one of them" if inside else "; give a .gguf file or an ONNX directory"
        raise ExportError(f"{path}: is no ONNX directory{hint}")
    return _gguf(path, check)


def _gguf(path: Path, check: bool) -> FileFacts:
    from agents.models.gguf_file import (
        BASE_KEY,
        EOS_KEY,
        NORMALIZER_KEY,
        SEAL_KEY,
        SOURCE_KEY,
        UNSEALED,
        card_of,
        read_gguf,
        verify,
    )

    file = verify(path) if check else read_gguf(path)
    data = file.metadata
    seal = data.get(SEAL_KEY)
    state: Seal = "none" if seal is None else "open" if seal == UNSEALED else "intact" if file.sealed else "not checked"
    card = card_of(file)
    counts: dict[str, TypeCount] = {}
    for tensor in file.tensors:
        old = counts.get(tensor.type_name, TypeCount(type=tensor.type_name, tensors=0, bytes=0, weights=0))
        counts[tensor.type_name] = TypeCount(type=old.type, tensors=old.tensors + 1, bytes=old.bytes + tensor.size,
                                             weights=old.weights + tensor.elements)  # fmt: skip
    types = tuple(sorted(counts.values(), key=lambda count: -count.bytes))
    architecture = str(data.get("general.architecture", ""))
    tokens = data.get("tokenizer.ggml.tokens")
    kinds = Counter(data.get("tokenizer.ggml.token_type", ()))
    tokenizer = {
        "model": data.get("tokenizer.ggml.model"),
        "pre": data.get("tokenizer.ggml.pre"),
        "tokens": len(tokens) if tokens is not None else None,
        "added": kinds.get(3, 0) + kinds.get(4, 0),
        "normalizer": data.get(NORMALIZER_KEY),
        "begin": _token(tokens, data.get("tokenizer.ggml.bos_token_id")) if data.get("tokenizer.ggml.add_bos_token") else None,
        "end": [_token(tokens, i) for i in data.get(EOS_KEY, [data.get("tokenizer.ggml.eos_token_id")])],
        "chat_template": "tokenizer.chat_template" in data,
    }
    return FileFacts(
        path=str(path),
        format="gguf",
        kind="adapter" if data.get("general.type") == "adapter" else "model",
        bytes=file.size_bytes,
        architecture=architecture,
        precision=card.file.precision if card is not None and card.file is not None else types[0].type if types else "",
        bits_per_weight=file.bits_per_weight or None,
        parameters=sum(tensor.elements for tensor in file.tensors),
        context=data.get(f"{architecture}.context_length"),
        types=types,
        tokenizer=tokenizer if tokens is not None else {},
        source_sha256=data.get(SOURCE_KEY),
        base_sha256=data.get(BASE_KEY),
        seal=state,
        card=card,
    )


def _onnx(path: Path, check: bool) -> FileFacts:
    from agents.models.onnx_directory import OnnxDirectory

    directory = OnnxDirectory.read(path)
    # The card is a file of its own there: read again without hashing the weights unless that is wanted.
    card = Card.load(path, check_weights=False) if (path / FILE_NAME).is_file() else None
    entry = card.file if card is not None else None
    types, weights = _initializers(directory.file)
    ends = [directory.tokenizer.convert_ids_to_tokens(number) for number in directory.eos_ids]
    return FileFacts(
        path=str(path),
        format="onnx",
        bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        precision=entry.precision if entry is not None else types[0].type if types else "",
        bits_per_weight=entry.bits_per_weight if entry is not None else None,
        parameters=weights,
        context=directory.context,
        types=types,
        tokenizer={"tokens": len(directory.tokenizer), "end": ends, "chat_template": directory.template is not None},
        source_sha256=directory.source_sha256,
        seal=_onnx_seal(path, card, check),
        card=card,
    )


def _onnx_seal(path: Path, card: Card | None, check: bool) -> Seal:
    """Whether the directory's files are those that penknife.json or the card names by hash."""
    from agents.card import sha256_of_weights
    from agents.models.onnx_directory import FACTS_FILE

    try:
        facts = json.loads((path / FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "none"
    wanted = facts.get("weights_sha256") if isinstance(facts, dict) else None
    if wanted is None and card is not None and card.file is not None:
        wanted = card.file.sha256
    if not isinstance(wanted, str):
        return "none"
    if not check:
        return "not checked"
    found = sha256_of_weights(path)
    if found != wanted:
        raise ExportError(f"{path}: its weights (sha256 {found[:12]}…) are not those that were exported ({wanted[:12]}…); "
                          "copy or export it again")  # fmt: skip
    return "intact"


def _initializers(file: Path) -> tuple[tuple[TypeCount, ...], int | None]:
    """The graph's constants by type; nothing where the onnx package is missing."""
    try:
        import onnx
    except ImportError:
        return (), None
    try:
        graph = onnx.load(str(file), load_external_data=False).graph
    except Exception as error:  # protobuf has its own
        raise ExportError(f"{file}: is no ONNX graph ({' '.join(str(error).split())[:120]}); export it again") from None
    counts: dict[str, list[int]] = {}
    for tensor in graph.initializer:
        name = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        elements = 1
        for size in tensor.dims:
            elements *= size
        width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        entry = counts.setdefault(name, [0, 0, 0])
        entry[0], entry[1], entry[2] = entry[0] + 1, entry[1] + elements * width, entry[2] + elements
    types = (TypeCount(type=name, tensors=n, bytes=size, weights=w) for name, (n, size, w) in counts.items())
    return tuple(sorted(types, key=lambda count: -count.bytes)), None


def _token(tokens: Any, number: Any) -> str | None:
    return str(tokens[number]) if tokens is not None and isinstance(number, int) and 0 <= number < len(tokens) else None


def show(facts: FileFacts) -> None:
    """Print for a person: one line, then the rest as tables."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, WIDTH))
    console.print(facts.first_line(), soft_wrap=True, markup=False, highlight=False)
    rows: dict[str, str] = {
        "architecture": facts.architecture,
        "context": f"{facts.context:,} tokens" if facts.context else "",
        "tokenizer": ", ".join(f"{name} {value}" for name, value in facts.tokenizer.items() if value not in (None, False, [])),
        "made from": (facts.source_sha256 or "")[:16],
        "for the base": (facts.base_sha256 or "")[:16],
    }
    card = facts.card
    if card is not None:
        rows["task"] = f"{card.task} (version {card.task_version}), {card.dialect} dialect, grammar {card.constraint or 'none'}"
        rows["base model"] = card.base.id
        rows["teacher"] = card.teacher or ""
        rows["license"] = card.license or ""
        rows["data"] = "; ".join(f"{d.name} {d.split}: {d.n:,} ({d.license})" for d in card.data)
        if card.file is not None and card.file.kld is not None:
            rows["distance"] = f"KLD {card.file.kld:.3g}, top-1 {card.file.top1:.2%} over {card.file.tokens:,} tokens"
        rows["written by"] = card.created_by
    table = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        if text:
            table.add_row(name, escape(text if len(text) < 400 else text[:400] + "…"))
    console.print(table)
    if facts.types:
        types = Table("type", "tensors", "bytes", title="Tensors", title_justify="left")
        for count in facts.types:
            types.add_row(count.type, str(count.tensors), f"{count.bytes:,}")
        console.print(types)
    if card is not None and card.scores:
        scores = Table("model", "score", "95 % interval", "questions", "decoding", title="Scores", title_justify="left")
        for name, entry in card.scores.items():
            this = " (this file)" if card.file is not None and name == card.file.name else ""
            interval = f"{100 * entry.low:.1f} to {100 * entry.high:.1f}"
            asked = f"{entry.n:,} ({entry.split})"
            scores.add_row(escape(name) + this, f"{100 * entry.score:.2f} %", interval, asked, entry.decoding)
        console.print(scores)


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m export.inspect`: print what a file is."""
    settings = parse(InspectSettings, argv, "python -m export.inspect", "Show what an exported file is.")
    facts = inspect_file(settings.file, settings.check)
    if settings.as_json:
        sys.stdout.write(facts.model_dump_json(indent=1) + "\n")
    else:
        show(facts)


if __name__ == "__main__":
    from factory.cli import run_cli

    raise SystemExit(run_cli(main))
