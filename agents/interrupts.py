"""`interrupt("send this?", notes)`: a node stops and waits for a person, for seconds or for weeks.

Does: leave the node so that the run is checkpointed and ends as "interrupted"; when the thread is resumed, the node runs again
from its start and the n-th `interrupt` of that step returns the n-th answer. What must not happen twice goes through
`agents.events.memo` or a tool with side effects.
Does not: wait. A process may end in between.
"""

from __future__ import annotations

from typing import Any

from agents.events import current
from agents.route import GraphError


class Interrupt(BaseException):
    """Raised by `interrupt` and caught by the loop. Not an Exception, so that a node's own `except Exception` lets it pass."""

    def __init__(self, prompt: str, value: Any, number: int) -> None:
        super().__init__(prompt)
        self.prompt, self.value, self.number = prompt, value, number


def interrupt(prompt: str, value: Any = None) -> Any:
    """Ask a person: show `prompt` and `value` (anything JSON can hold), return the answer given to `g.resume(thread, answer)`.

    Raises GraphError outside a graph's node.
    """
    scope = current.get()
    if scope is None:
        raise GraphError(f"interrupt({prompt!r}) outside a graph: only a node of a running graph can wait for a person")
    number = scope.asked
    scope.asked = number + 1
    if number < len(scope.answers):
        return scope.answers[number]
    raise Interrupt(prompt, value, number)


def permission(prompt: str, value: Any) -> bool:
    """`interrupt` for a yes or no that holds for this very prompt and value: an answer that was given to another is not used,
    and the person is asked anew. A node that runs again may come to another question than the one that was answered."""
    from pydantic_core import to_jsonable_python

    scope = current.get()
    if scope is not None and scope.asked < len(scope.answers):
        was = to_jsonable_python(scope.questions[scope.asked], serialize_unknown=True)
        if was != to_jsonable_python([prompt, value], serialize_unknown=True):
            raise Interrupt(prompt, value, scope.asked)
    return bool(interrupt(prompt, value))
