"""The ladder that a weak model's tool call climbs before it is run or sent back: every rung that was needed is named.

Does: take the calls of a reply (or those written into its text), parse their arguments, mend broken JSON, coerce values by the
tool's schema, and say of what cannot be mended which field, which value and what was expected, in a sentence for the model.
Does not: call a model or a tool, run anything, or invent a value: what is missing is asked for again (`agents.persona` does that).

    mended = repair(reply, [tool.spec for tool in tools])
    mended.calls        # valid by their schemas, in the order they came
    mended.rungs        # (("json-repair", "lookup: …"), ("coerce", "lookup.order_id: '17' → 17"))
    mended.problems     # for each: retry_message(problem) goes back to the model, once; then escalate
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agents.chat import Reply, ToolCall, ToolSpec

Rung = Literal["json-repair", "coerce", "text-call", "retry", "stop-repeat", "escalate"]
"""In the order they are climbed. `repair` reports the first three; the tool loop counts the others under these names."""
ProblemKind = Literal["unknown-tool", "not-json", "missing", "wrong-value", "extra-field", "cut-off", "empty"]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one call. `field` is a path ("items[2].price"; "" is the arguments as a whole), `value` what was written
    there, `expected` what the schema wants; `call` is the call as it came, so that the answer can name its id."""

    kind: ProblemKind
    call: ToolCall
    field: str = ""
    value: Any = None
    expected: str = ""


@dataclass(frozen=True, slots=True)
class Repaired:
    """What became of a reply's calls. A call with problems is not in `calls`; `text` is the reply's text without the calls found in it."""

    calls: tuple[ToolCall, ...] = ()
    rungs: tuple[tuple[Rung, str], ...] = ()
    problems: tuple[Problem, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class RepairedValue:
    """A JSON answer (`output=`) after the same ladder: `value` is meaningful when there are no problems."""

    value: Any = None
    rungs: tuple[tuple[Rung, str], ...] = ()
    problems: tuple[Problem, ...] = ()


def repair(reply: Reply | str, tools: Sequence[ToolSpec]) -> Repaired:
    """The calls in a reply, each valid by its tool's schema, or a problem for each that is not."""
    raise NotImplementedError


def repair_value(text: str, schema: dict[str, Any], *, name: str = "answer", cut_off: bool = False) -> RepairedValue:
    """The JSON value in a text (fenced, with prose around it, broken as calls are), coerced by `schema`.

    `cut_off`: the text ended at a limit, so that its last word is in doubt."""
    raise NotImplementedError


def retry_message(problem: Problem | Sequence[Problem]) -> str:
    """What the model is told, once: tool, field, value, expected type; of an unknown tool, which there are."""
    raise NotImplementedError


def same_call(call: ToolCall) -> str:
    """Equal texts for calls with the same name and arguments, whatever the order of their keys."""
    raise NotImplementedError


def without_progress(done: Sequence[tuple[ToolCall, str]], call: ToolCall, *, limit: int = 3) -> bool:
    """Whether `call` would be run for the `limit`-th time although its last `limit` - 1 runs said the same.

    `done`: (call, result) in the order they were run."""
    raise NotImplementedError
