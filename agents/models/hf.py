"""Transformers models (and peft adapters on them) as a ChatModel: batched, KV-cached, constrained.

Does: check a directory before loading it, render messages with the model's own chat template, decode batches sorted by length,
requests with the same adapters together, yield each reply as its row ends.
Does not: train, score given texts, quantize, parse tool calls out of text, or run code that comes with a model.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from agents.chat import Adapter, Message, ModelError, Reply, Request, StopReason, Timings, TokenLogprob, ToolSpec, Usage
from agents.constrain import ConstraintError, Engine, Matcher
from agents.models.directory import check_directory

if TYPE_CHECKING:
    from agents.models.decode import Batch, Row
    from agents.models.hf_adapters import Names, PeftAdapters


class HfOptions(BaseModel):
    """How a transformers model is loaded and run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    device: str = "auto"
    """auto (a CUDA device when there is one), cpu, cuda, cuda:1 …"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: float32 on a CPU, bfloat16 on a CUDA device"""
    batch: int = Field(default=64, ge=1)
    """requests decoded together"""
    revision: str | None = None
    """hub commit"""
    thinking: bool = False
    """what a chat template that asks for it is told about enable_thinking"""


@dataclass
class _Live:
    """One request in the batch being decoded."""

    index: int
    request: Request
    row: Row
    truncated: int
    matcher: Matcher | None = None
    stop_window: int = 0
    ended: StopReason | None = None
    text: str | None = field(default=None)
    until: float | None = None
    """time.perf_counter() at which it ends with what there is"""


class TransformersModel:
    """`TransformersModel.open(dir_or_id)`, or around a model and tokenizer already loaded."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str = "", batch: int = 64, thinking: bool = False) -> None:
        """`model`: a causal LM (or a peft model of one); it is put in eval mode only while it answers.

        Raises ModelError for a tokenizer without chat template or end token.
        """
        self.name = name or str(getattr(model, "name_or_path", "")) or "transformers"
        self.model, self.tokenizer, self.batch = model, tokenizer, batch
        if getattr(tokenizer, "chat_template", None) is None:
            raise ModelError(
                f"{self.name}: its tokenizer has no chat template; choose an instruct model, or add chat_template.jinja"
            )
        self._thinking = thinking
        self.eos_ids = _end_ids(model, tokenizer)
        if not self.eos_ids:
            raise ModelError(f"{self.name}: it has no end-of-text token; set eos_token in its tokenizer_config.json")
        config = model.config.get_text_config()
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        """tokens of prompt and answer together; None is unlimited"""
        self.seconds: dict[str, float] = {"forward": 0.0, "choose": 0.0, "masks": 0.0, "total": 0.0}
        """where time went since opening"""
        self._engine: Engine | None = None
        self._texts: dict[int, str] = {}
        self._side: ThreadPoolExecutor | None = None
        self._adapters: PeftAdapters | None = None
        self._running = threading.Lock()
        """held while the weights are run, or adapters put on them: adapters are the model's state, not the request's"""

    @classmethod
    def open(cls, path: str, options: HfOptions | None = None) -> Self:
        """Load an HF directory, an adapter directory or a hub name. Raises ModelError, before weights are read where it can."""
        options = options if options is not None else HfOptions()
        base, adapter = check_directory(path)
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as chatter

        device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError):
            raise ModelError(f"{path}: there is no device {device!r} here; choose device=auto or cpu") from None
        dtype = getattr(torch, options.dtype if options.dtype != "auto" else "float32" if device == "cpu" else "bfloat16")
        place: dict[str, Any] = {"trust_remote_code": False}
        has_tokenizer = adapter is not None and (adapter / "tokenizer_config.json").is_file()
        bars = chatter.is_progress_bar_enabled()
        chatter.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            revision = {"revision": options.revision}
            AutoConfig.from_pretrained(base, **place, **revision)
            tokenizer = AutoTokenizer.from_pretrained(
                str(adapter) if has_tokenizer else base, **place, **({} if has_tokenizer else revision)
            )
            model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, use_safetensors=True, **place, **revision)
        except (OSError, ValueError, ImportError, KeyError) as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise ModelError(
                f"{path}: transformers cannot load it ({reason}); give a causal LM with safetensors weights"
            ) from None
        finally:
            if bars:
                chatter.enable_progress_bar()  # type: ignore[no-untyped-call]
        if adapter is not None:
            from peft import PeftModel

            try:
                model = PeftModel.from_pretrained(model, str(adapter))
            except (RuntimeError, ValueError, OSError) as error:
                why = str(error).strip().split("\n", 1)[0]
                raise ModelError(f"{path}: the adapter does not fit its base ({why}); give the one it was trained on") from None
        return cls(model.to(device), tokenizer, name=path, batch=options.batch, thinking=options.thinking)

    @property
    def engine(self) -> Engine:
        """The grammar engine for this vocabulary, made on first use (up to a second for large vocabularies)."""
        if self._engine is None:
            width = self.model.get_output_embeddings().weight.shape[0]
            self._engine = Engine(self.tokenizer, width, self.eos_ids)
        return self._engine

    def close(self) -> None:
        """Let the weights go."""
        self.model, self._engine, self._adapters = None, None, None
        if self._side is not None:
            self._side.shutdown(wait=False)
            self._side = None

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Replies as rows end, longest prompts first, requests with the same adapters together.

        Log-probabilities are those of the *constrained* distribution at temperature 1, so a token the grammar leaves no choice
        about has 0.0; an end token the model chose comes last, with empty text, and counts as a completion token.
        A prompt longer than context - max_tokens loses its first tokens, counted in `truncated_prompt_tokens`.
        Raises ModelError when the model was closed or memory is out.
        """
        if self.model is None:
            raise ModelError(f"{self.name} was closed; open it again")
        opened = time.perf_counter()
        groups: dict[Names, list[tuple[int, list[int], int]]] = {}
        for index, request in enumerate(requests):
            try:
                ids, cut = self._prompt(request)
                adapters = self._load(tuple(adapter for adapter in request.adapters if adapter.scale != 0))
            except (ModelError, ConstraintError) as error:
                yield index, Reply(id=request.id, model=self.name, stop_reason="error", error=str(error))
                continue
            groups.setdefault(adapters, []).append((index, ids, cut))
        training = self.model.training
        self.model.eval()
        try:
            for adapters, prompts in groups.items():
                prompts.sort(key=lambda item: -len(item[1]))
                for start in range(0, len(prompts), self.batch):
                    live = []
                    for index, ids, cut in prompts[start : start + self.batch]:
                        one = self._live(index, requests[index], ids, cut)
                        if isinstance(one, Reply):
                            yield index, one
                        else:
                            live.append(one)
                    if live:
                        yield from self._decode(live, adapters, opened)
        finally:
            if self.model is not None:
                self.model.train(training)
            self.seconds["total"] += time.perf_counter() - opened

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> list[int]:
        """Tokens of a prompt as the chat template writes it, up to where the answer begins. Raises ModelError if refused."""
        given = [_message(message) for message in messages]
        described = [{"type": "function", "function": tool.model_dump()} for tool in tools] or None
        try:
            text = self.tokenizer.apply_chat_template(
                given, tools=described, tokenize=False, add_generation_prompt=True, enable_thinking=self._thinking
            )
        except Exception as error:  # templates are programs: they raise what they like
            raise ModelError(f"{self.name}: its chat template refuses these messages ({error}); change the prompt") from None
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _prompt(self, request: Request) -> tuple[list[int], int]:
        ids = self.prompt_ids(request.messages, request.tools)
        if self.context is None:
            return ids, 0
        room = self.context - request.sampling.max_tokens
        if room < 1:
            raise ModelError(
                f"max_tokens {request.sampling.max_tokens} leaves no room in {self.name}'s context of {self.context}; lower it"
            )
        cut = max(0, len(ids) - room)
        return ids[cut:], cut

    def _load(self, adapters: tuple[Adapter, ...]) -> Names:
        if not adapters:
            return ()
        from agents.models.hf_adapters import PeftAdapters

        with self._running:
            if self._adapters is None:
                self._adapters = PeftAdapters(self.model, self.name)
            return self._adapters.load(adapters)

    def _live(self, index: int, request: Request, ids: list[int], cut: int) -> _Live | Reply:
        from agents.models.decode import Row

        sampling = request.sampling
        row = Row(ids, sampling.max_tokens, sampling.temperature, sampling.top_p)
        if sampling.seed is not None:
            row.dice = random.Random(sampling.seed)
        if sampling.logprobs or sampling.top_logprobs:
            row.top = sampling.top_logprobs
        live = _Live(index, request, row, cut)
        if request.timeout_s is not None:
            live.until = time.perf_counter() + request.timeout_s
        if sampling.stop:
            # A token may be a single byte, so this many last tokens hold every stop text that just ended.
            live.stop_window = max(len(stop.encode()) for stop in sampling.stop) + 1
        if request.constraint is not None:
            try:
                live.matcher = self.engine.start(request.constraint)
            except ConstraintError as error:
                return Reply(id=request.id, model=self.name, stop_reason="error", error=str(error), truncated_prompt_tokens=cut)
        return live

    def _decode(self, live: list[_Live], adapters: Names, opened: float) -> Iterator[tuple[int, Reply]]:
        from agents.models.decode import Batch

        started = time.perf_counter()
        pad = self.tokenizer.pad_token_id
        batch = Batch(self.model, [one.row for one in live], pad if pad is not None else self.eos_ids[0])
        prefilled: float | None = None
        while live:
            masks = self._masks(live)
            self._forward(batch, adapters)
            prefilled = prefilled if prefilled is not None else time.perf_counter()
            bits, failed = self._collect(live, masks)
            for row, sentence in failed.items():
                live[row].ended, live[row].text = "error", sentence
            tokens = batch.choose(bits)
            self._advance(live, tokens)
            over = {i for i, one in enumerate(live) if one.ended is not None}
            if over:
                done = [live[i] for i in sorted(over)]
                live = [live[i] for i in batch.drop(over)]
                times = (opened, started, prefilled, time.perf_counter())
                for one in done:
                    yield one.index, self._reply(one, times)
        for name in ("forward", "choose"):
            self.seconds[name] += batch.seconds[name]

    def _forward(self, batch: Batch, adapters: Names) -> None:
        import torch

        try:
            with self._running:
                if self._adapters is not None:
                    self._adapters.use(adapters)
                batch.forward()
        except torch.OutOfMemoryError:
            longest = batch.mask.shape[1]
            raise ModelError(
                f"{self.name}: out of memory with {len(batch.rows)} rows of {longest} tokens; open it with a smaller batch"
            ) from None

    def _masks(self, live: list[_Live]) -> Future[Any] | None:
        """Masks are worked out beside the forward pass: neither needs the other."""
        if not any(one.matcher is not None for one in live):
            return None
        if self._side is None:
            self._side = ThreadPoolExecutor(1, thread_name_prefix="masks")
        bits = self.engine.bitmask(len(live))
        matchers = [one.matcher for one in live]
        return self._side.submit(lambda: (bits, self.engine.failures(matchers, bits)))

    def _collect(self, live: list[_Live], masks: Future[Any] | None) -> tuple[Any, Mapping[int, str]]:
        if masks is None:
            return None, {}
        import torch

        start = time.perf_counter()
        bits, failed = masks.result()
        for row in failed:
            bits[row] = -1  # the row ends here; any token will do, an empty row has no arg max
        self.seconds["masks"] += time.perf_counter() - start
        return torch.from_numpy(bits), failed

    def _advance(self, live: list[_Live], tokens: list[int]) -> None:
        """Decide for every row whether its newest token ends it."""
        for one, token in zip(live, tokens):
            if one.ended is not None:
                continue
            if token in self.eos_ids:
                one.ended = "stop"
                continue
            if one.matcher is not None:
                try:
                    one.matcher.consume(token)
                except ConstraintError as error:
                    one.ended, one.text = "error", str(error)
                    continue
                if one.matcher.finished:
                    one.ended = "stop"
            if one.stop_window and self._cut(one, self._text(one.row.tokens[-one.stop_window :])) is not None:
                one.text = self._cut(one, self._text(one.row.tokens))
                one.ended = "stop"
            if one.ended is None and len(one.row.tokens) >= one.row.max_tokens:
                one.ended = "length"
            if one.ended is None and one.until is not None and time.perf_counter() > one.until:
                one.ended = "timeout"

    @staticmethod
    def _cut(one: _Live, text: str) -> str | None:
        """The text before the first stop, None when there is none."""
        places = [text.find(stop) for stop in one.request.sampling.stop]
        found = [at for at in places if at >= 0]
        return text[: min(found)] if found else None

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _reply(self, one: _Live, times: tuple[float, float, float, float]) -> Reply:
        opened, started, prefilled, now = times
        row, request = one.row, one.request
        timings = Timings(
            queue_ms=(started - opened) * 1e3,
            prefill_ms=(prefilled - started) * 1e3,
            decode_ms=(now - prefilled) * 1e3,
            total_ms=(now - opened) * 1e3,
        )
        failed = one.ended == "error"
        kept = row.tokens[:-1] if row.tokens[-1] in self.eos_ids else row.tokens
        text = one.text if one.text is not None else self._text(kept)
        return Reply(
            id=request.id,
            text="" if failed else text,
            logprobs=() if failed else self._logprobs(row),
            usage=Usage(prompt_tokens=len(row.prompt), completion_tokens=len(row.tokens)),
            timings=timings,
            stop_reason=one.ended or "stop",
            model=self.name,
            error=f"{self.name}: the constraint failed: {text}" if failed else None,
            truncated_prompt_tokens=one.truncated,
        )

    def _logprobs(self, row: Row) -> tuple[TokenLogprob, ...]:
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


def _message(message: Message) -> dict[str, Any]:
    """A message as chat templates expect it."""
    out: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        out["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.calls
        ]
    if message.call_id is not None:
        out["tool_call_id"] = message.call_id
    return out


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end an answer: the generation config's and the tokenizer's."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(i for i in [*ids, tokenizer.eos_token_id] if i is not None))
