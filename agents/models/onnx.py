"""ONNX directories through onnxruntime as a ChatModel: rows of any length decoded together, constrained, with adapters swapped.

Does: open what `export.onnx` (or onnxruntime-genai's model builder) wrote, tokenize and render as the source does, decode with
the program's own grammar engine, add LoRA adapters per request, keep static prompt beginnings, score whole texts.
Does not: export (`export.onnx`), parse calls out of text, or use a GPU.

    model = open_model("onnx:runs/sql/model/onnx", threads=1)
    answer(model, [Request(messages=(Message(role="user", content="hi"),))])
Threads may share one model. A row decoded beside others may differ from itself alone in the last bits of its logits: products of
several rows add up in another order; `batch=1` decodes every request by itself.
"""

from __future__ import annotations

import random
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from agents.chat import Adapter, Message, ModelError, Reply, Request, StopReason, Timings, TokenLogprob, ToolSpec, Usage
from agents.constrain import ConstraintError, Engine, Matcher
from agents.models.onnx_directory import OnnxDirectory
from agents.models.onnx_graph import INSTALL as INSTALL
from agents.models.onnx_graph import ROUND, Cache, OnnxGraph

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from agents.models.onnx_adapter import Key, LoadedAdapters

WORTH_KEEPING = 16
"""Tokens a static beginning must have before it is kept."""


class OnnxOptions(BaseModel):
    """How an ONNX directory is loaded and run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    threads: int | None = Field(default=None, ge=1)
    """default: onnxruntime's choice, the physical cores"""
    batch: int = Field(default=16, ge=1, le=1024)
    """requests decoded together"""
    cache_mb: int = Field(default=1024, ge=1)
    """megabytes of keys and values; fewer requests are decoded together where more would need more"""
    kept: int = Field(default=8, ge=0)
    """static prompt beginnings whose keys and values are kept"""
    thinking: bool = False
    """what a chat template that asks for it is told about enable_thinking"""


@dataclass
class _Row:
    """One request on its way."""

    index: int
    request: Request
    ids: list[int]
    truncated: int
    dice: random.Random
    started: float
    static: int = 0
    """leading tokens that other requests share"""
    matcher: Matcher | None = None
    top: int | None = None
    stop_window: int = 0
    reused: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[list[tuple[int, float]]] = field(default_factory=list)
    prefill_at: float = 0.0
    prefilled_at: float = 0.0
    ended: StopReason | None = None
    text: str | None = None

    @property
    def length(self) -> int:
        """Positions of its cache that are filled: the newest token is not yet."""
        return len(self.ids) + len(self.tokens) - 1


class OnnxModel:
    """`OnnxModel.open(directory)`."""

    def __init__(self, directory: OnnxDirectory, graph: OnnxGraph, options: OnnxOptions, name: str) -> None:
        self.name, self.directory, self.options = name, directory, options
        self.graph: OnnxGraph | None = graph
        self.card, self.source_sha256 = directory.card, directory.source_sha256
        self.eos_ids = list(directory.eos_ids)
        self.context: int | None = directory.context
        """tokens of prompt and answer together; None is unlimited"""
        self._engine: Engine | None = None
        self._adapters: LoadedAdapters | None = None
        self._texts: dict[int, str] = {}
        self._kept: OrderedDict[tuple[Any, ...], list[NDArray[np.float32]]] = OrderedDict()

    @classmethod
    def open(cls, path: str, options: OnnxOptions | None = None) -> Self:
        """Load a directory. Raises ModelError, or CardError for a card of other weights, before the session is made."""
        options = options if options is not None else OnnxOptions()
        directory = OnnxDirectory.read(Path(path.removeprefix("onnx:")))
        return cls(directory, OnnxGraph(directory.file, directory.heads, options.threads), options, path)

    @property
    def engine(self) -> Engine:
        """The grammar engine for this vocabulary, made on first use."""
        if self._engine is None:
            self._engine = Engine(self.directory.tokenizer, self._open.vocab_size, self.eos_ids)
        return self._engine

    @property
    def _open(self) -> OnnxGraph:
        if self.graph is None:
            raise ModelError(f"{self.name} was closed; open it again")
        return self.graph

    def close(self) -> None:
        """Let the weights and everything kept go."""
        self.graph, self._engine, self._adapters = None, None, None
        self._kept.clear()

    def tokenize(self, text: str) -> list[int]:
        """Ids as transformers gives them with add_special_tokens=False."""
        return self.directory.tokenizer.ids(text)

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> list[int]:
        """Tokens of a prompt as the chat template writes it, up to where the answer begins. Raises ModelError if refused."""
        return self.tokenize(self._rendered(messages, tools, True))

    def logits(self, ids: Sequence[int], adapters: Sequence[Adapter] = ()) -> NDArray[np.float32]:
        """Logits (T, V) float32 of a text; row i is about the token after ids[i]."""
        graph = self._open
        return graph.prefill(list(ids), Cache(graph, 1, len(ids)), 0, every=True, extra=self._matrices(tuple(adapters))[1])

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Replies as rows end, longest prompts first, requests with the same adapters together.

        Log-probabilities are those of the *constrained* distribution at temperature 1; an end token the model chose comes last,
        with empty text. A prompt longer than context - max_tokens loses its first tokens, counted in `truncated_prompt_tokens`.
        """
        opened = time.perf_counter()
        groups: dict[tuple[Adapter, ...], list[_Row]] = {}
        for index, request in enumerate(requests):
            row = self._row(index, request, opened)
            if isinstance(row, Reply):
                yield index, row
            else:
                groups.setdefault(request.adapters, []).append(row)
        for adapters, rows in groups.items():
            try:
                key, matrices = self._matrices(adapters)
            except ModelError as error:
                for row in rows:
                    yield row.index, Reply(id=row.request.id, model=self.name, stop_reason="error", error=str(error))
                continue
            for row in self._decode(sorted(rows, key=lambda row: -len(row.ids)), matrices, key):
                if row.ended is not None:
                    yield row.index, self._reply(row)

    def stream(self, request: Request) -> Iterator[str | Reply]:
        """Pieces of text as they are decided (never half a character or part of a stop text), then the whole Reply."""
        row = self._row(0, request, time.perf_counter())
        if isinstance(row, Reply):
            yield row
            return
        try:
            key, matrices = self._matrices(request.adapters)
        except ModelError as error:
            yield Reply(id=request.id, model=self.name, stop_reason="error", error=str(error))
            return
        shown = ""
        held = max((len(stop) for stop in request.sampling.stop), default=1) - 1
        for _ in self._decode([row], matrices, key):
            if row.ended is not None:
                break
            text = self._text(row.tokens).rstrip("\ufffd")
            text = text[: len(text) - held] if held else text
            if len(text) > len(shown) and text.startswith(shown):
                yield text[len(shown) :]
                shown = text
        reply = self._reply(row)
        if len(reply.text) > len(shown) and reply.text.startswith(shown):
            yield reply.text[len(shown) :]
        yield reply

    def _rendered(self, messages: Sequence[Message], tools: Sequence[ToolSpec], prompt: bool) -> str:
        template = self.directory.template
        if template is None:
            raise ModelError(f"{self.name}: it has no chat template; add chat_template.jinja beside its tokenizer.json")
        try:
            return template.render(messages, tools, add_generation_prompt=prompt, enable_thinking=self.options.thinking)
        except ModelError as error:
            raise ModelError(f"{self.name}: {error}") from None

    def _row(self, index: int, request: Request, started: float) -> _Row | Reply:
        sampling, context = request.sampling, self.context
        cut = 0
        try:
            self._open  # noqa: B018
            ids = self.prompt_ids(request.messages, request.tools)
            if context is not None:
                room = context - sampling.max_tokens
                if room < 1:
                    raise ModelError(
                        f"max_tokens {sampling.max_tokens} leaves no room in {self.name}'s context of {context}; lower it"
                    )
                cut = max(0, len(ids) - room)
            matcher = self.engine.start(request.constraint) if request.constraint is not None else None
        except (ModelError, ConstraintError) as error:
            if self.graph is None:
                raise
            return Reply(id=request.id, model=self.name, stop_reason="error", error=str(error), truncated_prompt_tokens=cut)
        row = _Row(index, request, ids[cut:], cut, random.Random(sampling.seed), started, matcher=matcher)
        if sampling.logprobs or sampling.top_logprobs:
            row.top = sampling.top_logprobs
        if sampling.stop:
            # A token may be a single byte, so this many last tokens hold every stop text that just ended.
            row.stop_window = max(len(stop.encode()) for stop in sampling.stop) + 1
        if request.static_messages and not cut and self.options.kept:
            row.static = self._static(request, row.ids)
        return row

    def _static(self, request: Request, ids: list[int]) -> int:
        """How many leading tokens the prompt shares with its static messages alone; at least one is left to run."""
        try:
            alone = self.tokenize(self._rendered(request.messages[: request.static_messages], request.tools, False))
        except ModelError:  # a template may refuse a system message without a question
            return 0
        same = next((i for i, (a, b) in enumerate(zip(alone, ids)) if a != b), min(len(alone), len(ids)))
        same = min(same, len(ids) - 1)
        return same if same >= WORTH_KEEPING else 0

    def _matrices(self, adapters: tuple[Adapter, ...]) -> tuple[Key, Any]:
        graph = self._open
        wanted = tuple(adapter for adapter in adapters if adapter.scale != 0)
        if not wanted:
            return (), None
        if self._adapters is None:
            from agents.models.onnx_adapter import LoadedAdapters

            self._adapters = LoadedAdapters(graph, self.source_sha256, self.name)
        return self._adapters.inputs(wanted)

    def _decode(self, rows: list[_Row], matrices: Any, adapters: Key) -> Iterator[_Row]:
        """Every row after each of its tokens, the last time with `ended` set. A row that ends makes room for one that waits."""
        graph = self._open
        waiting = deque(rows)
        capacity = max(len(row.ids) + row.request.sampling.max_tokens for row in rows)
        capacity = -(-capacity // ROUND) * ROUND
        slots = max(1, min(self.options.batch, len(rows), self.options.cache_mb * 10**6 // (capacity * graph.bytes_per_token)))
        cache = Cache(graph, slots, capacity)
        live: list[_Row] = []
        mask = self.engine.bitmask(slots) if any(row.matcher is not None for row in rows) else None
        while waiting or live:
            while waiting and len(live) < slots:
                row = waiting.popleft()
                row.prefill_at = time.perf_counter()
                logits = self._prefill(row, cache, len(live), matrices, adapters)
                row.prefilled_at = time.perf_counter()
                self._choose([row], logits, mask)
                if row.ended is None:
                    live.append(row)
                yield row
            if live:
                logits = graph.step([row.tokens[-1] for row in live], [row.length for row in live], cache, matrices)
                self._choose(live, logits, mask)
                yield from list(live)
                for place in reversed([i for i, row in enumerate(live) if row.ended is not None]):
                    last = live.pop()
                    if place < len(live):
                        cache.copy_row(len(live), place, last.length)
                        live[place] = last

    def _prefill(self, row: _Row, cache: Cache, place: int, matrices: Any, adapters: Key) -> NDArray[np.float32]:
        """Run the prompt into a row of the cache, its static beginning from what is kept. Logits (1, V)."""
        graph = self._open
        if not row.static:
            return graph.prefill(row.ids, cache, place, extra=matrices)
        key = (adapters, tuple(row.ids[: row.static]))
        kept = self._kept.pop(key, None)
        if kept is None:
            graph.prefill(row.ids[: row.static], cache, place, extra=matrices)
            kept = cache.take(place, row.static)
        else:
            cache.put(place, kept)
            row.reused = row.static
        self._kept[key] = kept
        while len(self._kept) > self.options.kept:
            self._kept.popitem(last=False)
        return graph.prefill(row.ids[row.static :], cache, place, row.static, extra=matrices)

    def _choose(self, rows: list[_Row], logits: NDArray[np.float32], mask: NDArray[np.int32] | None) -> None:
        from agents.models.onnx_choice import choose

        failed = self.engine.failures([row.matcher for row in rows], mask) if mask is not None else {}
        now = time.perf_counter()
        for i, row in enumerate(rows):
            if i in failed:
                row.ended, row.text = "error", failed[i]
                continue
            sampling = row.request.sampling
            bits = mask[i] if mask is not None and row.matcher is not None else None
            token, logprob, top = choose(logits[i], bits, sampling.temperature, sampling.top_p, row.dice, row.top)
            row.tokens.append(token)
            if row.top is not None:
                row.logprobs.append(logprob)
                row.tops.append(top)
            self._advance(row, token, now)

    def _advance(self, row: _Row, token: int, now: float) -> None:
        """Decide whether the newest token ends the row."""
        request = row.request
        if token in self.eos_ids:
            row.ended = "stop"
            return
        if row.matcher is not None:
            try:
                row.matcher.consume(token)
            except ConstraintError as error:
                row.ended, row.text = "error", str(error)
                return
            if row.matcher.finished:
                row.ended = "stop"
        if row.stop_window and _cut(self._text(row.tokens[-row.stop_window :]), request.sampling.stop) is not None:
            row.text = _cut(self._text(row.tokens), request.sampling.stop)
            row.ended = "stop"
        if row.ended is None and len(row.tokens) >= request.sampling.max_tokens:
            row.ended = "length"
        if row.ended is None and request.timeout_s is not None and now - row.started > request.timeout_s:
            row.ended = "timeout"

    def _text(self, tokens: Sequence[int]) -> str:
        return self.directory.tokenizer.text(tokens)

    def _reply(self, row: _Row) -> Reply:
        now = time.perf_counter()
        failed = row.ended == "error"
        kept = row.tokens[:-1] if row.tokens and row.tokens[-1] in self.eos_ids else row.tokens
        text = row.text if row.text is not None else self._text(kept)
        return Reply(
            id=row.request.id,
            text="" if failed else text,
            logprobs=() if failed else self._logprobs(row),
            usage=Usage(prompt_tokens=len(row.ids), completion_tokens=len(row.tokens), reused_tokens=row.reused),
            timings=Timings(
                queue_ms=(row.prefill_at - row.started) * 1e3,
                prefill_ms=(row.prefilled_at - row.prefill_at) * 1e3,
                decode_ms=(now - row.prefilled_at) * 1e3,
                total_ms=(now - row.started) * 1e3,
            ),
            stop_reason=row.ended or "cancelled",
            model=self.name,
            error=f"{self.name}: the constraint failed: {text}" if failed else None,
            truncated_prompt_tokens=row.truncated,
        )

    def _logprobs(self, row: _Row) -> tuple[TokenLogprob, ...]:
        out = []
        for token, logprob, top in zip(row.tokens, row.logprobs, row.tops):
            alternatives = tuple((other, self._piece(other), value) for other, value in top)
            out.append(TokenLogprob(token=self._piece(token), id=token, logprob=logprob, top=alternatives))
        return tuple(out)

    def _piece(self, token: int) -> str:
        piece = self._texts.get(token)
        if piece is None:
            piece = self._texts[token] = "" if token in self.eos_ids else self._text([token])
        return piece


def _cut(text: str, stops: Sequence[str]) -> str | None:
    """The text before the first stop, None when there is none."""
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return text[: min(found)] if found else None
