"""Running the calls a persona's model made: with permission, at most once where it matters, recorded, replayed.

Does: ask for approval, keep side effects from happening twice (in one step, or in both halves of a cascade), take recorded
results in a replay, emit what was called and what came of it.
Does not: validate arguments (`agents.tools`), decide when to stop (`agents.persona_loop`) or ask a model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from agents.budget import Meter, Totals
from agents.chat import ToolCall
from agents.events import ToolCalled, ToolReturned, UnknownOutcome, Warned, current, emit, memo, replayed_result
from agents.interrupts import permission
from agents.route import GraphError
from agents.tools import PersonaError, Tool, ToolResult

if TYPE_CHECKING:
    import asyncio

Approve = Callable[[ToolCall], bool]


class ToolRuns:
    """The tools of one call of a persona. `done` are (call, result) so far, in order.

    `loop` is the event loop that async tools run on; `known` are calls whose side effects have happened already.
    """

    def __init__(
        self,
        persona: str,
        tools: Mapping[str, Tool],
        approve: Approve | None,
        meter: Meter,
        totals: Totals,
        loop: asyncio.AbstractEventLoop | None,
        known: Sequence[tuple[ToolCall, ToolResult]],
    ) -> None:
        self.persona, self.tools, self.approve, self.loop = persona, tools, approve, loop
        self.meter, self.totals = meter, totals
        self.done: list[tuple[ToolCall, ToolResult]] = []
        self._known = {key_of(call): result for call, result in known}

    def run(self, call: ToolCall) -> ToolResult:
        """What came of one call; it is added to `done`. A person who must be asked interrupts the node."""
        scope = current.get()
        result = None
        if scope is not None:
            emit(ToolCalled(self.persona, call))
            recorded = replayed_result(self.persona, call)
            result = ToolResult(recorded) if recorded is not None else None
            if result is None and scope.tape is not None and not self.tools[call.name].needs_approval:
                raise GraphError(f"the record of {self.persona!r} ends within {call.name}({call.arguments}): no result to replay")
        if result is None:
            result = self._run(self.tools[call.name], call)
            self.meter.tool_ms += result.ms
        if result.cut:
            self.totals.count("cut-tool-results")
            emit(Warned(f"{self.persona}: {result.cut} characters of what {call.name} said were left out"))
        if result.traceback is not None:
            self.totals.count("tool-bugs")
        if scope is not None:
            emit(ToolReturned(self.persona, call.id, call.name, result.text, result.ms, result.ok, result.traceback))
        self.done.append((call, result))
        return result

    def _run(self, tool: Tool, call: ToolCall) -> ToolResult:
        if tool.needs_approval and not self._approved(call):
            self.totals.count("declined-calls")
            return ToolResult(f"{call.name} was not called: a person said no", False)
        if not tool.side_effects:
            return tool.call(call.arguments, loop=self.loop)
        before = self._known.get(key_of(call))
        return before if before is not None else self._once(tool, call)

    def _once(self, tool: Tool, call: ToolCall) -> ToolResult:
        """The side effect, at most once per step: what it came to is recorded before the step ends."""
        made: list[ToolResult] = []

        def compute() -> str:
            made.append(tool.call(call.arguments, loop=self.loop))
            return json.dumps([made[0].text, made[0].ok], ensure_ascii=False)

        try:
            text, ok = json.loads(memo(key_of(call), compute))
        except UnknownOutcome as doubt:
            return ToolResult(str(doubt), False)
        return made[0] if made else ToolResult(text, ok)

    def _approved(self, call: ToolCall) -> bool:
        if self.approve is not None:
            return bool(self.approve(call))
        return permission(f"may {self.persona} call {call.name}?", {"name": call.name, "arguments": call.arguments})


def key_of(call: ToolCall) -> str:
    """Equal for calls with the same name and arguments."""
    return f"{call.name}:{json.dumps(call.arguments, sort_keys=True, ensure_ascii=False, default=repr)}"


def needs_somebody(persona: str, tools: Mapping[str, Tool], approve: Approve | None) -> None:
    """Raises PersonaError when a tool needs approval and nobody could be asked for it."""
    if approve is None and current.get() is None:
        for tool in tools.values():
            if tool.needs_approval:
                raise PersonaError(
                    f"{persona!r}: {tool.name!r} needs a person's approval, and nobody can be asked outside a graph; "
                    "run the persona in a graph, or give it approve=function"
                )
