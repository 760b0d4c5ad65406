"""The thread that owns a llama.cpp context and answers everybody's requests in it, many at once.

Does: admit jobs as room allows, take over beginnings that are in memory already, decode all live ones of one adapter set
together, let adapter sets take turns, fill grammar masks beside the model, end jobs at a stop, limit, time limit or cancellation.
Does not: know messages, templates or text beyond stop strings; `agents.models.llama_cpp` prepares jobs and reads them.
"""

from __future__ import annotations

import codecs
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.chat import ModelError, StopReason
from agents.constrain import ConstraintError, Engine
from agents.models.llama_batch import Batch, DecodeError
from agents.models.llama_choice import Chooser, Masks
from agents.models.llama_job import Adapters, Job
from agents.models.llama_prefix import Memory
from agents.models.llama_weights import Weights
from agents.models.llama_width import Widths

TURN = 16
"""Batches one adapter set may decode while another waits: setting adapters makes llama.cpp plan its graph anew."""
WORTH_WAITING = 16
"""Tokens another prompt must be about to provide for a request to wait for it."""


class LlamaEngine:
    """Made by `LlamaCppModel`; `submit` from any thread."""

    def __init__(
        self, weights: Weights, grammar: Callable[[], Engine], *, slots: int, kept: int, cells: int, threads: int, tokens: int,
        flash: bool | None = None,
        full_kv: bool = False,
    ) -> None:  # fmt: skip
        """`grammar`: the vocabulary's engine, asked for when the first constrained job comes."""
        self.weights, self.slots = weights, slots
        kept = kept if weights.rewinds else 0
        # One number more: whole texts are scored in a sequence of their own.
        sequences = slots + kept + 1
        self.batch = Batch(
            weights,
            cells=cells,
            sequences=sequences,
            tokens=tokens,
            threads=threads,
            outputs=max(64, sequences),
            flash=flash,
            full_kv=full_kv,
        )
        self.memory = Memory(cells, sequences, kept, self.batch.remove)
        self.widths = Widths()
        self.seconds = {"decode": 0.0, "choose": 0.0, "masks": 0.0}
        """where the engine's time went since it was opened"""
        self._waiting: deque[Job] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._live: list[Job] = []
        self._owed: set[Job] = set()  # submitted, `done` not called yet
        self._turn: Adapters | None = None
        self._turns_left = 0
        self._in_use: Adapters = ()
        self._look_again = True
        self._next_deadline = math.inf
        self._change = threading.Condition()
        self._closing = False
        self._chooser = Chooser(self.batch, grammar, self.seconds)
        self._thread = threading.Thread(target=self._run, name=f"llama:{weights.path.name}", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Answer a job; `job.done(job)` is called by the engine's thread. Raises ModelError when the engine was closed."""
        job.prompt = len(job.ids)
        job.times = [time.perf_counter()]
        with self._change:
            if self._closing:
                raise ModelError(f"{self.weights.path.name} was closed; open it again")
            self._waiting.append(job)
            self._owed.add(job)
            self._look_again = True
            if job.deadline is not None:
                self._next_deadline = min(self._next_deadline, job.deadline)
            self._change.notify()

    def cancel(self, job: Job) -> None:
        """End a job after the token now being decided; its slot is then free."""
        with self._change:
            job.cancelled = True
            self._next_deadline = 0.0
            self._change.notify()

    def call(self, function: Callable[[], Any]) -> Any:
        """Run `function` in the engine's thread between two batches and return what it does."""
        future: Future[Any] = Future()
        with self._change:
            if self._closing:
                raise ModelError(f"{self.weights.path.name} was closed; open it again")
            self._calls.append((function, future))
            self._change.notify()
        return future.result()

    def logits(self, ids: list[int], adapters: Adapters = ()) -> NDArray[np.float32]:
        """What the model expects after every token of a text, (T, V) float32. Waits while others hold the memory."""
        while True:
            rows: NDArray[np.float32] | None = self.call(lambda: self._logits(ids, adapters))
            if rows is not None:
                return rows
            time.sleep(0.002)

    def close(self) -> None:
        """End everything that runs (as cancelled) and free the context; harmless when repeated."""
        with self._change:
            self._closing = True
            self._change.notify()
        if not self.inside:
            self._thread.join()

    @property
    def inside(self) -> bool:
        """Whether the caller is the engine's own thread."""
        return threading.current_thread() is self._thread

    @property
    def load(self) -> tuple[int, int]:
        """Jobs being answered, jobs waiting."""
        return len(self._live), len(self._waiting)

    # Everything below runs in the engine's thread.

    def _run(self) -> None:
        try:
            while True:
                with self._change:
                    while not (self._waiting or self._live or self._calls or self._closing):
                        self._change.wait()
                    if self._closing:
                        break
                    calls = list(self._calls)
                    self._calls.clear()
                for function, future in calls:
                    try:
                        future.set_result(function())
                    except BaseException as error:
                        future.set_exception(error)
                if time.perf_counter() >= self._next_deadline:
                    self._sweep()
                if self._waiting and self._look_again:
                    self._look_again = False
                    self._admit()
                if self._live:
                    self._step()
        except BaseException as bug:  # a mistake in here must reach those who wait, not end in a silent thread
            with self._change:
                for job in self._owed:
                    job.bug = bug
        finally:
            self._end_all()

    def _end_all(self) -> None:
        with self._change:
            self._closing = True
            owed, calls = list(self._owed), list(self._calls)
            self._waiting.clear()
            self._calls.clear()
        for job in owed:
            try:
                self._finish(job, "cancelled")
            except Exception as bug:  # whatever cannot be freed, nobody is left waiting
                job.bug = job.bug or bug
                job.done(job)
        self._live.clear()
        for _, future in calls:
            future.set_exception(ModelError(f"{self.weights.path.name} was closed; open it again"))
        self._chooser.close()
        self.batch.close()

    def _logits(self, ids: list[int], adapters: Adapters) -> NDArray[np.float32] | None:
        batch = self.batch
        held = self.memory.begin(adapters, list(ids), 0, None, 0)
        if held is None:
            return None
        rows = np.empty((len(ids), self.weights.width), np.float32)
        try:
            size = min(batch.outputs, batch.capacity)
            for start in range(0, len(ids), size):
                part = ids[start : start + size]
                batch.clear()
                batch.add(held.number, part, start, True)
                batch.want_all()
                self._decode_with(adapters)
                for place in range(len(part)):
                    rows[start + place] = batch.logits(place)
        except DecodeError as error:
            raise ModelError(str(error)) from None
        finally:
            self.memory.drop(held)
        return rows

    def _sweep(self) -> None:
        """End what was cancelled or is out of time, waiting or live."""
        now = time.perf_counter()
        with self._change:
            everyone = [*self._waiting, *self._live]
            over = [job for job in everyone if job.cancelled or (job.deadline is not None and now >= job.deadline)]
            times = [job.deadline for job in everyone if job.deadline is not None and job not in over]
            self._next_deadline = min(times, default=math.inf)
            for job in over:
                (self._live if job in self._live else self._waiting).remove(job)
        for job in over:
            self._finish(job, "cancelled" if job.cancelled else "timeout")

    def _admit(self) -> None:
        """Give slots to waiting jobs, first come first served; one that could copy what another is about to work out waits."""
        for job in list(self._waiting):
            if len(self._live) >= self.slots:
                return
            source, count = self.memory.best(job.adapters, job.ids) if self.weights.rewinds else (None, 0)
            if self.weights.rewinds and self.memory.soon(job.adapters, job.ids) >= count + WORTH_WAITING:
                continue
            held = self.memory.begin(job.adapters, job.ids, job.max_tokens, source, count)
            while held is None and source is not None and not self._live:  # what it begins with takes the room it needs
                self.memory.drop(source)
                source, count = self.memory.best(job.adapters, job.ids)
                held = self.memory.begin(job.adapters, job.ids, job.max_tokens, source, count)
            if held is None:
                if self._live:
                    return  # those behind it would never let it have its turn
                self._waiting.remove(job)
                self._fail(job, f"needs {len(job.ids) + job.max_tokens} tokens of KV memory, there are {self.memory.cells}")
                continue
            self._waiting.remove(job)
            if source is not None:
                self.batch.copy(source.number, held.number, count)
            job.held, job.reused = held, count
            job.times.append(time.perf_counter())
            if job.temperature > 0:
                seed = job.seed if job.seed is not None else random.getrandbits(32)
                job.sampler = self.batch.sampler(job.temperature, job.top_p, seed & 0xFFFFFFFF)
            if job.on_text is not None or job.stop:
                job.decoder = codecs.getincrementaldecoder("utf-8")("replace")
            self._live.append(job)

    def _choose_turn(self) -> list[Job]:
        """The live jobs of the adapter set whose turn it is; sets take turns, oldest job first."""
        first = self._live[0].adapters
        if all(job.adapters == first for job in self._live):
            self._turn = first
            return self._live
        ours = [job for job in self._live if job.adapters == self._turn]
        if not ours or self._turns_left <= 0:
            sets = list(dict.fromkeys(job.adapters for job in self._live))
            at = sets.index(self._turn) + 1 if self._turn in sets else 0
            self._turn, self._turns_left = sets[at % len(sets)], TURN
            ours = [job for job in self._live if job.adapters == self._turn]
        self._turns_left -= 1
        return ours

    def _step(self) -> None:
        """Decode one batch and decide the next token of everyone in it."""
        jobs = self._choose_turn()
        chosen = self._lay_out(jobs)
        masks = self._chooser.start(chosen)
        started = time.perf_counter()
        try:
            if jobs[0].adapters == self._in_use:
                self.batch.decode()
            else:
                self._decode_with(jobs[0].adapters)
        except (DecodeError, ModelError) as error:
            self._chooser.collect(masks)  # a matcher must not be freed while its mask is filled
            self._recover(jobs, error)
            return
        spent = time.perf_counter() - started
        self.seconds["decode"] += spent
        if len(chosen) == self.batch.size and jobs[0].adapters == ():
            self.widths.learn(self.batch.size, spent)
        started = time.perf_counter()
        self._advance(chosen, self._chooser.collect(masks))
        self.seconds["choose"] += time.perf_counter() - started

    def _lay_out(self, jobs: Sequence[Job]) -> list[Job]:
        """Fill the batch: the newest token of those that write, then as much of prompts as fits. Returns who gets logits."""
        batch = self.batch
        batch.clear()
        chosen = []
        writing = [job for job in jobs if job.left == 1]
        reading = [job for job in jobs if job.left > 1]
        if not reading:
            width = self.widths.best(len(writing))
            if width < len(writing):
                writing = writing[:width]
                for job in writing:  # to the end of the queue
                    self._live.remove(job)
                    self._live.append(job)
        for job in writing:
            held = job.held
            assert held is not None
            job.place = batch.add(held.number, held.ids[held.ready :], held.ready, True)
            held.ready += 1
            chosen.append(job)
        for job in reading:
            held = job.held
            room = batch.capacity - batch.size
            if room <= 0:
                break
            assert held is not None
            part = held.ids[held.ready : held.ready + room]
            last = held.ready + len(part) == len(held.ids)
            job.place = batch.add(held.number, part, held.ready, last)
            held.ready += len(part)
            if last:
                chosen.append(job)
        return chosen

    def _decode_with(self, adapters: Adapters) -> None:
        """Decode the batch under other adapters than the last. Nobody may load one meanwhile: llama.cpp counts them all anew."""
        loaded = [(self.weights.loaded(name), scale) for name, scale in adapters]
        with self.weights.lock:
            if adapters != self._in_use:
                self.batch.use(loaded)
                self._in_use = adapters
            self.batch.decode()

    def _recover(self, jobs: Sequence[Job], error: Exception) -> None:
        """A batch was not decoded: its jobs end with an error, and nothing half-done stays in the memory."""
        for job in list(jobs):
            self._live.remove(job)
            if job.held is not None:
                self.memory.drop(job.held)
                job.held = None
            self._fail(job, str(error))

    def _advance(self, chosen: Sequence[Job], masks: Masks) -> None:
        rows, failed = masks
        over = []
        for job in chosen:
            if len(job.times) == 2:
                job.times.append(time.perf_counter())
                self._look_again = True  # someone may wait for this prompt
                self._keep_start(job)
            try:
                if id(job) in failed:
                    raise ConstraintError(failed[id(job)])
                token = self._chooser.choose(job, rows.get(id(job)))
            except (ConstraintError, DecodeError) as error:
                job.ended, job.failure = "error", f"the constraint failed: {error}"
                over.append(job)
                continue
            job.take(token, self.weights)
            if job.ended is not None:
                over.append(job)
        for job in over:
            self._live.remove(job)
            self._finish(job, job.ended or "stop")

    def _keep_start(self, job: Job) -> None:
        """The prompt is in memory: keep its static part for those who begin alike."""
        if job.static and self.weights.rewinds and job.held is not None:
            start = self.memory.keep_start(job.held, job.static)
            if start is not None:
                self.batch.copy(job.held.number, start.number, job.static)

    def _fail(self, job: Job, sentence: str) -> None:
        job.failure = sentence
        self._finish(job, "error")

    def _finish(self, job: Job, reason: StopReason) -> None:
        """Free what the job holds, complete its text, and hand it back."""
        job.ended = reason
        now = time.perf_counter()
        while len(job.times) < 3:
            job.times.append(now)
        job.times.append(now)
        if job.held is not None:
            self.memory.end(job.held)
            job.held = None
        self._look_again = True
        if job.sampler is not None:
            job.sampler.close()
            job.sampler = None
        if reason != "error":
            job.complete(self.weights)
        self._owed.discard(job)
        job.done(job)
