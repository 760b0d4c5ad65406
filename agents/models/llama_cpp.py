"""GGUF models through llama.cpp as a ChatModel: one set of weights for every persona and thread, many requests decoded together.

Does: render messages with the file's own template, cut prompts by a stated policy before decoding, hand requests of all threads
to one engine per file, read its answers, score whole texts.
Does not: convert or quantize (`export`), parse calls out of text, or summarise.

    model = open_model("gguf:runs/sql/model/sql-q8_0.gguf")
    answer(model, [Request(messages=(Message(role="user", content="hi"),))])
Opening a file again while it is open shares its weights, memory and batches; each opening is closed by itself.
Greedy answers of requests decoded together may differ from those decoded alone where two tokens are about equally likely, for
llama.cpp adds up in another order. Log-probabilities then move by up to 1e-4 in an F32 file with kv="f32" and by 3e-3 with 16-bit
keys and values. Quantized files round what they multiply to 8 bits, where the last bit may tip a rounding: by up to 0.2 on random
weights. `batch=1, kept=0` decodes every request by itself.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from agents.card import Card
from agents.chat import Message, ModelError, Reply, Request, Timings, TokenLogprob, ToolSpec, Usage
from agents.constrain import ConstraintError, Engine
from agents.models.gguf_file import card_of
from agents.models.llama_library import library

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from agents.models.llama_job import Job
    from agents.models.llama_shared import Shared

Overflow = Literal["truncate", "drop_oldest", "refuse"]


class LlamaCppOptions(BaseModel):
    """How a GGUF file is loaded and run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    context: int | None = Field(default=None, ge=16)
    """most tokens of prompt and answer together; default: what the model was trained for, or what kv_tokens hold"""
    kv_tokens: int | None = Field(default=None, ge=32)
    """tokens kept in memory for all requests and kept beginnings together; default: 32 MiB worth, at least one context"""
    batch: int = Field(default=16, ge=1, le=192)
    """requests decoded together"""
    kept: int = Field(default=16, ge=0, le=48)
    """texts and personas' prompts kept in memory when nobody is using them; 0 works every prompt out anew"""
    threads: int | None = Field(default=None, ge=1)
    """default: the cores this process may use, or OMP_NUM_THREADS"""
    overflow: Overflow = "truncate"
    """a prompt that is too long loses its first tokens (truncate) or its oldest turns (drop_oldest), or is refused"""
    thinking: bool = False
    """what a chat template that asks for it is told about enable_thinking"""
    mmap: bool = True
    """map the file instead of reading it: quicker, and shared between processes"""
    gpu_layers: int = Field(default=0, ge=-1)
    """layers put on a GPU by a build of llama.cpp that has one; -1 puts all there"""
    batch_tokens: int = Field(default=512, ge=16)
    """most tokens worked out in one step"""
    flash: bool | None = None
    """flash attention; default: llama.cpp decides, not with kv=f32"""
    kv: Literal["f16", "f32"] = "f16"
    """what keys and values are kept in; f32 takes twice the memory, and answers depend less on what else was decoded along"""


_open: dict[tuple[Any, ...], Shared] = {}
_opening = threading.RLock()  # a model that is collected while another is opened closes in the same thread
_models: weakref.WeakSet[LlamaCppModel] = weakref.WeakSet()


class LlamaCppModel:
    """`LlamaCppModel.open("model.gguf")`. Every method may be called by any thread."""

    def __init__(self, shared: Shared, key: tuple[Any, ...], name: str, options: LlamaCppOptions) -> None:
        """Use `open`."""
        self._shared: Shared | None = shared
        self._key, self.name, self._options = key, name, options
        weights = shared.weights
        if weights.template is None:
            raise ModelError(f"{name}: the file has no chat template; export it again from a model that has one")
        self.eos_ids = list(weights.eos_ids)
        self.context: int = min(options.context or weights.context, weights.context, shared.cells)
        """tokens of prompt and answer together"""
        self.card: Card | None = card_of(weights.file)
        """the card inside the file"""
        self.source_sha256 = weights.source_sha256
        """`sha256_of_weights` of the directory the file was converted from; None for a foreign file"""
        self._static: dict[tuple[Any, ...], int] = {}
        _models.add(self)

    @classmethod
    def open(cls, path: str, options: LlamaCppOptions | None = None) -> Self:
        """Load a GGUF file, or share it when it is open already with options that need the same memory.

        Raises ModelError: llama-cpp-python is missing, the file is absent, damaged, no model, or has no chat template.
        """
        options = options if options is not None else LlamaCppOptions()
        file = Path(path)
        if not file.is_file():
            raise ModelError(f"{path}: there is no such file; give a GGUF file that export.gguf wrote, or another one")
        library()
        from agents.models.llama_shared import Shared

        state = file.stat()
        same = options.model_dump(exclude={"context", "overflow", "thinking"})
        if options.kv_tokens is None:
            same["context"] = options.context
        key = (str(file.resolve()), state.st_mtime_ns, state.st_size, tuple(sorted(same.items())))
        with _opening:
            shared = _open.get(key)
            if shared is None or shared.engine._closing:  # one that broke answers nobody any more
                shared = _open[key] = Shared(file, options)
            shared.users += 1
            try:
                return cls(shared, key, path, options)
            except BaseException:
                _leave(shared, key)
                raise

    def close(self) -> None:
        """Let the model go; the last one to use a file frees it. What it still has to answer ends as cancelled then."""
        with _opening:
            shared, self._shared = self._shared, None
        if shared is not None:
            _leave(shared, self._key)

    def __del__(self) -> None:
        if getattr(self, "_shared", None) is not None:
            self.close()

    @property
    def engine(self) -> Engine:
        """The grammar engine for this vocabulary, made on first use (up to a second for large vocabularies)."""
        return self._use().grammar

    @property
    def seconds(self) -> dict[str, float]:
        """Where the file's engine spent its time since it was opened: decode, choose (masks among it when they are short)."""
        return dict(self._use().engine.seconds)

    def tokenize(self, text: str) -> list[int]:
        """Ids of ordinary text, added tokens recognised, as transformers gives with add_special_tokens=False."""
        return self._use().weights.tokenize(text)

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> list[int]:
        """Tokens of a prompt as the file's chat template writes it, up to where the answer begins. Raises ModelError."""
        return self.tokenize(self._render(messages, tools))

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Replies as they end; requests of other threads are decoded along with these.

        Log-probabilities are those of the *constrained* distribution at temperature 1, so a token the grammar leaves no choice
        about has 0.0; an end token the model chose comes last, with empty text, and counts as a completion token.
        Giving the iterator up cancels what is left. Raises ModelError when the model was closed.
        """
        shared = self._use()
        ended: queue.SimpleQueue[tuple[int, Job]] = queue.SimpleQueue()
        running: dict[int, Job] = {}
        cuts: dict[int, int] = {}
        coming = iter(range(len(requests)))
        window = 2 * self._options.batch
        more = True
        try:
            while more or running:
                while more and len(running) < window:
                    index = next(coming, None)
                    if index is None:
                        more = False
                        break
                    try:
                        job, cuts[index] = self._job(requests[index], shared)
                    except (ModelError, ConstraintError) as error:
                        yield index, self._refused(requests[index], error)
                        continue
                    job.done = lambda job, index=index: ended.put((index, job))  # type: ignore[misc]
                    shared.engine.submit(job)
                    running[index] = job
                if running:
                    index, job = ended.get()
                    del running[index]
                    yield index, self._reply(requests[index], job, cuts.pop(index))
        finally:
            for job in running.values():
                shared.engine.cancel(job)

    def stream(self, request: Request) -> Iterator[str | Reply]:
        """Pieces of text as they are decided, then the Reply. Closing the iterator cancels the request."""
        shared = self._use()
        try:
            job, cut = self._job(request, shared)
        except (ModelError, ConstraintError) as error:
            yield self._refused(request, error)
            return
        pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        job.on_text, job.done = pieces.put, lambda _: pieces.put(None)
        shared.engine.submit(job)
        try:
            while (piece := pieces.get()) is not None:
                yield piece
        finally:
            if job.ended is None:
                shared.engine.cancel(job)
        yield self._reply(request, job, cut)

    def logits(self, ids: Sequence[int], adapters: Sequence[tuple[str, float]] = ()) -> NDArray[np.float32]:
        """Teacher-forced logits (T, V) float32 of a text: row t is what the model expects after `ids[: t + 1]`.

        Raises ModelError when it is empty or longer than the context.
        """
        if not 0 < len(ids) <= self.context:
            raise ModelError(f"{self.name}: {len(ids)} tokens cannot be scored; give 1 to {self.context}")
        shared = self._use()
        return shared.engine.logits(list(ids), tuple((shared.weights.adapter(Path(path)), scale) for path, scale in adapters))

    def _use(self) -> Shared:
        if self._shared is None:
            raise ModelError(f"{self.name} was closed; open it again")
        return self._shared

    def _render(self, messages: Sequence[Message], tools: Sequence[ToolSpec], answer: bool = True) -> str:
        template = self._use().weights.template
        assert template is not None
        try:
            return template.render(messages, tools, answer, enable_thinking=self._options.thinking)
        except ModelError as error:
            raise ModelError(f"{self.name}: {error}") from None

    def _job(self, request: Request, shared: Shared) -> tuple[Job, int]:
        """What the engine is to do, and how many tokens of the prompt were cut. Raises ModelError, ConstraintError."""
        from agents.models.llama_job import Job

        sampling = request.sampling
        ids, cut = self._prompt(request)
        adapters = tuple((shared.weights.adapter(Path(a.path)), a.scale) for a in request.adapters if a.scale != 0.0)
        job = Job(ids, sampling.max_tokens, adapters, sampling.temperature, sampling.top_p, sampling.seed, stop=sampling.stop)
        if sampling.logprobs or sampling.top_logprobs:
            job.top = sampling.top_logprobs
        if request.constraint is not None:
            job.matcher = shared.matcher(request.constraint)
        if request.static_messages and not cut:
            job.static = self._static_tokens(request, ids)
        if request.timeout_s is not None:
            job.deadline = time.perf_counter() + request.timeout_s
        return job, cut

    def _prompt(self, request: Request) -> tuple[list[int], int]:
        ids = self.prompt_ids(request.messages, request.tools)
        room = self.context - request.sampling.max_tokens
        if room < 1:
            raise ModelError(
                f"max_tokens {request.sampling.max_tokens} leaves no room in {self.name}'s context of {self.context}; lower it"
            )
        over = len(ids) - room
        if over <= 0:
            return ids, 0
        if self._options.overflow == "refuse":
            raise ModelError(
                f"the prompt has {len(ids)} tokens, {over} more than {self.name}'s context of {self.context} leaves beside "
                f"{request.sampling.max_tokens} of answer; shorten it, or open the model with overflow=drop_oldest"
            )
        before = len(ids)
        if self._options.overflow == "drop_oldest":
            ids = self._without_oldest(request, room) or ids
        ids = ids[max(0, len(ids) - room) :]
        return ids, before - len(ids)

    def _without_oldest(self, request: Request, room: int) -> list[int] | None:
        """The prompt without its oldest turns: static and system messages and the last turn stay. None: too long still."""
        messages = list(request.messages)
        first = max(request.static_messages, 1 if messages and messages[0].role == "system" else 0)
        while len(messages) > first + 1:
            del messages[first]
            # What answered the dropped turn makes no sense without it.
            while len(messages) > first + 1 and messages[first].role in ("assistant", "tool"):
                del messages[first]
            ids = self.prompt_ids(messages, request.tools)
            if len(ids) <= room:
                return ids
        return None

    def _static_tokens(self, request: Request, ids: Sequence[int]) -> int:
        """Tokens at the beginning of a prompt that its static messages alone decide."""
        static = request.messages[: request.static_messages]
        key = (static, request.tools) if not request.tools else (static, tuple(tool.model_dump_json() for tool in request.tools))
        known = self._static.get(key)
        if known is None:
            from agents.models.llama_prefix import shared

            try:
                alone = self.tokenize(self._render(static, request.tools, False))
            except ModelError:  # a template may refuse a conversation without a user's turn
                alone = []
            if len(self._static) > 256:
                self._static.clear()
            known = self._static[key] = shared(alone, ids, min(len(alone), len(ids) - 1))
        return min(known, len(ids) - 1)

    def _refused(self, request: Request, error: Exception) -> Reply:
        return Reply(id=request.id, model=self.name, stop_reason="error", error=str(error))

    def _reply(self, request: Request, job: Job, cut: int) -> Reply:
        if job.bug is not None:
            raise job.bug
        submitted, admitted, first, end = job.times
        failed = job.ended == "error"
        assert job.ended is not None
        return Reply(
            id=request.id,
            text="" if failed else job.text,
            logprobs=() if failed else self._logprobs(job),
            usage=Usage(prompt_tokens=job.prompt, completion_tokens=len(job.tokens), reused_tokens=job.reused),
            timings=Timings(
                queue_ms=(admitted - submitted) * 1e3,
                prefill_ms=(first - admitted) * 1e3,
                decode_ms=(end - first) * 1e3,
                total_ms=(end - submitted) * 1e3,
            ),
            stop_reason=job.ended,
            model=self.name,
            error=f"{self.name}: {job.failure}" if failed else None,
            truncated_prompt_tokens=cut,
        )

    def _logprobs(self, job: Job) -> tuple[TokenLogprob, ...]:
        if job.top is None:
            return ()
        piece = self._use().weights.text
        return tuple(
            TokenLogprob(
                token=piece(token), id=token, logprob=logprob, top=tuple((other, piece(other), value) for other, value in top)
            )
            for token, logprob, top in zip(job.tokens, job.logprobs, job.tops)
        )


def _leave(shared: Shared, key: tuple[Any, ...]) -> None:
    with _opening:
        shared.users -= 1
        if shared.users:
            return
        if _open.get(key) is shared:
            _open.pop(key)
    shared.close()


@atexit.register
def _close_all() -> None:
    """Free every file before Python lets go of what llama.cpp calls back."""
    for model in list(_models):
        model.close()
