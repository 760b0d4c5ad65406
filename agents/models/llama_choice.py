"""Which token comes next: under a grammar or free, the most likely or drawn, its log-probability worked out when asked for.

Does: fill grammar masks, beside the model where they take long; choose. Does not: decode, or decide when a text ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from agents.constrain import Engine, Matcher
from agents.models.llama_batch import Batch, forbid, greedy, score
from agents.models.llama_job import Job

MASKS_WORTH_A_THREAD_S = 100e-6
"""From this long on a batch's masks are filled by a second thread while the model runs."""

Masks = tuple[dict[int, NDArray[np.int32]], dict[int, str]]
"""By id of a job: its row of the mask, or the sentence why there is none."""


class Chooser:
    """Chooses from the logits of one batch."""

    def __init__(self, batch: Batch, grammar: Callable[[], Engine], seconds: dict[str, float]) -> None:
        """`grammar`: the vocabulary's engine, asked for when the first constrained job comes. `seconds`: where time is added."""
        self._batch, self._grammar, self._seconds = batch, grammar, seconds
        self._ends = frozenset(batch.weights.eos_ids)
        self._side: ThreadPoolExecutor | None = None
        self._usual_s = 0.0

    def start(self, chosen: Sequence[Job]) -> Future[Masks] | Masks | None:
        """Masks that are certainly needed, filled now or beside the model. A greedy choice without log-probabilities is tried
        first and asks for its mask only when the grammar refuses it."""
        needy = [job for job in chosen if job.matcher is not None and (job.top is not None or job.sampler is not None)]
        if not needy:
            return None
        if self._usual_s < MASKS_WORTH_A_THREAD_S:
            return self._fill(needy)
        if self._side is None:
            self._side = ThreadPoolExecutor(1, thread_name_prefix="masks")
        return self._side.submit(self._fill, needy)

    def _fill(self, jobs: Sequence[Job]) -> Masks:
        started = time.perf_counter()
        engine = self._grammar()
        bits = engine.bitmask(len(jobs))
        failed = engine.failures([job.matcher for job in jobs], bits)
        spent = time.perf_counter() - started
        self._seconds["masks"] += spent
        self._usual_s = min(spent, 1.1 * self._usual_s + 1e-6)  # a pause the machine made says nothing
        rows = {id(job): bits[row] for row, job in enumerate(jobs)}
        return rows, {id(jobs[row]): sentence for row, sentence in failed.items()}

    def collect(self, masks: Future[Masks] | Masks | None) -> Masks:
        """The masks, waited for if need be."""
        if masks is None:
            return {}, {}
        return masks if isinstance(masks, tuple) else masks.result()

    def choose(self, job: Job, bits: NDArray[np.int32] | None) -> int:
        """The next token, its log-probability stored, the grammar moved past it."""
        logits = self._batch.logits(job.place)
        matcher = job.matcher
        if job.sampler is None:
            if matcher is not None and bits is None:
                return self._try_greedy(matcher, logits)
            token = greedy(logits, bits)
            if job.top is not None:
                logprob, top = score(logits, bits, token, job.top)
        else:
            if job.top is not None:  # before the logits are written over
                before = logits.copy()
            if bits is not None:
                forbid(logits, bits)
            token = self._batch.sample(job.sampler, job.place)
            if job.top is not None:
                logprob, top = score(before, bits, token, job.top)
        if job.top is not None:
            job.logprobs.append(logprob)
            job.tops.append(top)
        if matcher is not None and token not in self._ends:
            matcher.consume(token)
        return token

    def _try_greedy(self, matcher: Matcher, logits: NDArray[np.float32]) -> int:
        token = int(logits.argmax())
        if token in self._ends:
            if matcher.inner.validate_tokens([token]) == 1:
                return token
        elif matcher.inner.try_consume_tokens([token]) == 1:
            return token
        started = time.perf_counter()
        engine = self._grammar()
        bits = engine.bitmask(1)
        engine.fill([matcher], bits)
        self._seconds["masks"] += time.perf_counter() - started
        token = greedy(logits, bits[0])
        if token not in self._ends:
            matcher.consume(token)
        return token

    def close(self) -> None:
        """Wait for masks that are still being filled."""
        if self._side is not None:
            self._side.shutdown(wait=True)
