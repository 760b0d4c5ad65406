"""One call of a persona: ask, read, run tools, ask again, until there is an answer or a reason why not.

Does: keep to the budget, take recorded answers in a replay, mend malformed calls, stop repeated ones, validate the output, run
the guards, and emit an event for each of these.
Does not: know what a persona is made of (`agents.persona` plans each call) or go on to another model (`agents.cascade`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from agents import guards as guarding
from agents.answer import NoAnswer, Reason, Result
from agents.budget import Meter, Totals
from agents.calling import ANSWER_MARK, Said, read, written
from agents.chat import Message, ModelError, Reply, Request, TokenLogprob, ToolCall
from agents.confidence import probability
from agents.constrain import accepts
from agents.events import ModelCalled, Repaired, Token, Warned, cancelled, current, emit, replayed
from agents.persona_plan import Plan
from agents.tool_runs import ToolRuns
from agents.tools import ToolResult

if TYPE_CHECKING:
    import asyncio

REPEATS = 3
"""The run of one call, unchanged in arguments and result, that is not made any more."""


class PersonaRun:
    """The state of one call; `loop` and `known` are for `ToolRuns`."""

    def __init__(
        self,
        plan: Plan,
        totals: Totals,
        loop: asyncio.AbstractEventLoop | None = None,
        known: Sequence[tuple[ToolCall, ToolResult]] = (),
    ) -> None:
        self.plan, self.totals = plan, totals
        self.meter = Meter(plan.budget)
        self.turns = list(plan.turns)
        self.new_from = len(plan.turns) - 1
        self.tools = ToolRuns(plan.name, plan.tools, plan.approve, self.meter, totals, loop, known)
        self.done = self.tools.done
        self.confidence: float | None = None
        self.logprobs: tuple[TokenLogprob, ...] = ()
        self.names = frozenset(plan.tools)
        self._mended = False
        self._retries = 0

    def answer(self) -> Result:
        """The result. Raises NoAnswer; ModelError when the model failed or its grammar does not compile."""
        try:
            return self._answer()
        finally:
            self.totals.add(self.meter)

    def _answer(self) -> Result:
        plan = self.plan
        for _ in range(plan.max_rounds):
            reply = self._ask()
            if reply.stop_reason == "cancelled" or cancelled():
                raise self._none("was cancelled", "cancelled", reply.text)
            if plan.calls is not None:
                return self._called(reply)
            said = self._understood(reply)
            if said is None:
                continue
            if said.calls:
                self._run_calls(said, reply)
                continue
            result = self._finished(said, reply)
            if result is not None:
                return result
        raise self._none(f"did not come to an answer in {plan.max_rounds} rounds", "rounds")

    def _ask(self) -> Reply:
        plan = self.plan
        over = self.meter.spent()
        if over is not None:
            self._over_budget(over)
        sampling = plan.sampling
        tokens = self.meter.tokens_left(sampling.max_tokens)
        if tokens != sampling.max_tokens:
            sampling = sampling.model_copy(update={"max_tokens": tokens})
        request = Request(
            messages=(*plan.static, *self.turns),
            sampling=sampling,
            constraint=plan.constraint,
            tools=plan.specs if plan.native else (),
            adapters=plan.adapters,
            static_messages=plan.fixed,
            timeout_s=self.meter.seconds_left(),
        )
        scope = current.get()
        digest = prompt_sha256(request) if scope is not None else ""
        again = replayed(plan.name, digest) if scope is not None else None
        reply = again if again is not None else _reply(plan, request, scope is not None)
        self.meter.add(reply)
        sure = plan.confidence(reply.logprobs)
        if sure is not None:
            self.confidence = sure if self.confidence is None else min(sure, self.confidence)
        self.logprobs = reply.logprobs
        if scope is not None:
            emit(
                ModelCalled(
                    plan.name,
                    reply.model or plan.model.name,
                    plan.adapters,
                    reply.usage,
                    reply.timings,
                    reply.stop_reason,
                    sure,
                    digest,
                    sampling,
                    plan.constraint.kind if plan.constraint is not None else None,
                    plan.card_sha256,
                    plan.model_sha256,
                    reply.truncated_prompt_tokens,
                    request.messages,
                    reply,
                )
            )
        if reply.truncated_prompt_tokens:
            self.totals.count("truncated-prompts")
            emit(Warned(f"{plan.name}: {reply.truncated_prompt_tokens} tokens of the prompt were cut to fit the model's context"))
        if reply.stop_reason == "error":
            raise ModelError(f"{plan.name}: {reply.error or 'the model failed without a reason'}")
        return reply

    def _understood(self, reply: Reply) -> Said | None:
        """What the reply says; None when the model has been asked to write it again."""
        plan = self.plan
        said = read(reply, self.names, think=plan.think, routes=bool(plan.routes))
        if plan.think and reply.stop_reason == "stop" and ANSWER_MARK not in reply.text:
            self.totals.count("think-dropped")
            emit(Warned(f"{plan.name}: {plan.model.name} did not keep to the grammar: no thinking stands before its answer"))
        # A backend that masks tokens writes whole calls, and its plain text is meant as text; any other may have slipped.
        trusted = plan.constraint is not None and hasattr(plan.model, "engine")
        formal = said is not None and said.formal and (plan.constraint is not None or not plan.native or not said.calls)
        if said is not None and (trusted or not plan.specs or reply.calls or formal):
            if said.goto is not None and said.goto not in plan.routes:
                self._again(reply, (), f"There is no way to {said.goto!r}; the ways are: {', '.join(plan.routes)}.")
                return None
            if not reply.calls:
                return said
        if not plan.specs:
            return said if said is not None else Said(reply.text)
        from agents.repair import repair, retry_message

        mended = repair(
            reply if said is None or said.calls or not said.thought else reply.model_copy(update={"text": said.text}), plan.specs
        )
        for rung, detail in mended.rungs:
            self._rung(rung, detail)
        if not mended.problems:
            return Said(mended.text, mended.calls, thought=said.thought if said is not None else "")
        over = self.meter.spent() or (reply.stop_reason == "timeout" and "its time")
        if over:
            self._over_budget(str(over), reply.text)
        self._again(reply, tuple(problem.call for problem in mended.problems), retry_message(mended.problems))
        return None

    def _again(self, reply: Reply, calls: tuple[ToolCall, ...], message: str) -> None:
        """Ask once more, saying what was wrong. Raises NoAnswer when that has been done."""
        if self._mended:
            self._rung("escalate", message)
            raise self._none(f"was told what is wrong and wrote it wrong again: {message}", "invalid", reply.text)
        self._mended = True
        self._rung("retry", message)
        if self.plan.native and reply.calls:
            self.turns.append(Message(role="assistant", content=reply.text, calls=reply.calls))
            self.turns += [Message(role="tool", content=message, call_id=call.id) for call in reply.calls]
        else:
            self.turns.append(Message(role="assistant", content=reply.text))
            self.turns.append(Message(role="user", content=message))

    def _rung(self, rung: str, detail: str) -> None:
        self.totals.count(rung)
        emit(Repaired(self.plan.name, rung, detail))

    def _run_calls(self, said: Said, reply: Reply) -> None:
        plan = self.plan
        calls = [
            call if call.id else ToolCall(id=f"call-{number}", name=call.name, arguments=call.arguments)
            for number, call in enumerate(said.calls, len(self.done) + 1)
        ]
        if plan.native:
            self.turns.append(Message(role="assistant", content=said.text if reply.calls else "", calls=tuple(calls)))
        for call in calls:
            if len(self.done) + 1 >= REPEATS:
                self._check_progress(call)
            result = self.tools.run(call)
            if plan.native:
                self.turns.append(Message(role="tool", content=result.text, call_id=call.id))
            else:
                self.turns.append(Message(role="assistant", content=written(call)))
                self.turns.append(Message(role="user", content=f"Result of {call.name}: {result.text}"))
        self._mended = False

    def _called(self, reply: Reply) -> Result:
        """An artifact's calls, run one after another: its model knows requests, not results, so they are the answer themselves.

        One result stands as it is, several in a line each after the function's name; an answer that calls nothing stays."""
        plan = self.plan
        assert plan.decode is not None and plan.calls is not None
        if reply.stop_reason == "timeout" and not reply.text.strip():
            self._over_budget(self.meter.spent() or "its time", reply.text)
        answer, _ = self._decoded(reply.text, reply)
        calls = plan.calls(answer)
        first = len(self.done)
        if calls:
            self._run_calls(Said(answer, calls), reply)
        results = [(call.name, result.text) for call, result in self.done[first:]]
        text = results[0][1] if len(results) == 1 else "\n".join(f"{name}: {said}" for name, said in results) or answer
        finished = self._finished(Said(text), reply.model_copy(update={"text": answer}), decoded=True)
        if finished is None:
            raise self._none("was sent back by a guard after its calls were run", "guard", text)
        return finished

    def _check_progress(self, call: ToolCall) -> None:
        from agents.repair import same_call, without_progress

        if without_progress([(earlier, result.text) for earlier, result in self.done], call, limit=REPEATS):
            self._rung("stop-repeat", same_call(call))
            raise self._none(f"called {same_call(call)} {REPEATS} times without getting further", "repeating")

    def _finished(self, said: Said, reply: Reply, decoded: bool = False) -> Result | None:
        """The result of an answer; None when a guard or a wrong value sends it back to the model. `decoded`: `said` is it."""
        plan = self.plan
        late = reply.stop_reason == "timeout" or (reply.stop_reason == "length" and self.meter.spent() is not None)
        text, output = said.text, None
        if late and said.goto is None and not text.strip():
            self._over_budget(self.meter.spent() or "its time", reply.text)
        if not decoded and said.goto is None and (plan.output is not None or plan.decode is not None):
            try:
                text, output = self._decoded(text, reply)
            except _NotYet as not_yet:
                if late:
                    self._over_budget(self.meter.spent() or "its time", reply.text)
                self._again(reply, (), str(not_yet))
                return None
        if plan.verify is not None and said.goto is None and not accepts(plan.verify, text):
            self._again(reply, (), f"The answer {text[:80]!r} does not have the form that is asked for; write it as asked.")
            return None
        value, verdict = guarding.check(plan.guards, output if output is not None else text, plan.name, self._count_guard)
        if isinstance(verdict, guarding.Stop):
            if verdict.reply is None:
                raise self._none(f"was stopped by a guard: {verdict.reason}", "guard", text)
            value = verdict.reply
        elif isinstance(verdict, guarding.Retry):
            if self._retries >= guarding.RETRIES:
                raise self._none(f"was sent back by a guard {self._retries + 1} times: {verdict.message}", "guard", text)
            self._retries += 1
            self.turns += [Message(role="assistant", content=reply.text), Message(role="user", content=verdict.message)]
            return None
        if isinstance(value, BaseModel):
            output, text = value, value.model_dump_json()
        else:
            text = str(value)
            output = None if isinstance(verdict, guarding.Stop) else output
        stopped: Any = "over-budget" if late else "length" if reply.stop_reason == "length" else None
        if late:
            self.totals.count("over-budget")
        if stopped is not None:
            emit(Warned(f"{plan.name}: the answer was cut off ({'over its budget' if late else 'at max_tokens'})"))
        self.turns.append(Message(role="assistant", content=reply.text if said.goto is not None else text))
        return Result(
            text,
            output,
            plan.name,
            self.confidence,
            self.logprobs,
            self.meter.usage,
            self.meter.ms,
            tuple(self.done),
            tuple(self.turns[self.new_from :]),
            said.goto,
            stopped,
            plan.dropped,
            said.thought,
            probability=self._probability(),
        )

    def _decoded(self, text: str, reply: Reply) -> tuple[str, BaseModel | None]:
        """(canonical text, instance or None) of a structured answer. Raises _NotYet with what to tell the model."""
        plan = self.plan
        if plan.decode is not None:
            try:
                return self._kept(plan.decode(text), reply), None
            except Exception as error:
                if not hasattr(error, "reason") and not isinstance(error, ValueError):
                    raise
                raise self._none(f"answered what its task cannot read: {error}", "invalid", reply.text) from None
        assert plan.output is not None
        try:
            return text, plan.output.model_validate_json(text)
        except ValidationError as first:
            from agents.repair import problems_of, repair_value, retry_message

            mended = repair_value(text, plan.schema or {}, cut_off=reply.stop_reason != "stop")
            for rung, detail in mended.rungs:
                self._rung(rung, detail)
            if mended.problems:
                raise _NotYet(retry_message(mended.problems)) from None
            try:
                output = plan.output.model_validate(mended.value)
            except ValidationError as error:
                problems = problems_of(ToolCall(name="answer", raw=text), error if mended.rungs else first)
                raise _NotYet(retry_message(problems)) from None
            return output.model_dump_json(), output

    def _kept(self, answer: str, reply: Reply) -> str:
        """The answer, or what its task says instead; the reliability curve knows nothing of that."""
        found = self.plan.overrule(answer, reply.logprobs) if self.plan.overrule is not None else None
        if found is not None:
            (answer, self.confidence), self.plan = found, replace(self.plan, reliability=())
        return answer

    def _probability(self) -> float | None:
        known = self.confidence is not None and self.plan.reliability
        return probability(self.plan.reliability, self.confidence or 0.0) if known else None

    def _count_guard(self, what: str) -> None:
        self.totals.count(what)

    def _over_budget(self, over: str, text: str = "") -> None:
        self.totals.count("over-budget")
        raise self._none(f"used up its budget ({over}) before it had an answer", "over-budget", text)

    def _none(self, what: str, reason: Reason, text: str = "") -> NoAnswer:
        return NoAnswer(
            f"{self.plan.name} {what}",
            reason,
            text,
            tuple(self.done),
            messages=(*self.plan.static, *self.turns),
            confidence=self.confidence,
            usage=self.meter.usage,
        )


class _NotYet(Exception):
    """A structured answer that does not fit; its text tells the model why."""


def _reply(plan: Plan, request: Request, watched: bool) -> Reply:
    """One reply; where somebody watches and the model can show its words, as they come."""
    stream = getattr(plan.model, "stream", None) if watched else None
    if stream is None:
        for _, reply in plan.model.generate((request,)):
            return reply
        raise ModelError(f"{plan.model.name} gave no reply")
    pieces = stream(request)
    text, shown = "", None
    for piece in pieces:
        if isinstance(piece, Reply):
            return piece
        text += piece
        if cancelled():
            pieces.close()
            return Reply(text=text, model=plan.model.name, stop_reason="cancelled")
        if shown is None and text.strip():
            # The first character tells a call, which is shown as a tool event instead, from an answer.
            shown = not (plan.specs and text.lstrip()[0] in "{<")
            piece = text
        if shown:
            emit(Token(plan.name, piece))
    raise ModelError(f"{plan.model.name} ended its stream without a reply")


def prompt_sha256(request: Request) -> str:
    """Hash of everything that decides an answer: messages, sampling, grammar, tools, adapters."""
    parts = request.model_dump_json(exclude={"id", "timeout_s", "static_messages"})
    return hashlib.sha256(parts.encode()).hexdigest()
