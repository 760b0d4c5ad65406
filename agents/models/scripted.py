"""A test double that ships: answers from a list, keeps every request, fails loudly when the list runs out.

Does: reply with texts, whole replies, exceptions or a function of the request, in the order the requests come.
Does not: look at prompts, sampling or constraints unless a function given to it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from agents.chat import ModelError, Reply, Request, Usage

Answer = str | Reply | Exception | Callable[[Request], "str | Reply | Exception"]


class Scripted:
    """`Scripted(["4", Reply(...), ValueError("no route"), lambda request: ...])`: one entry per request, in order.

    An exception becomes a Reply with stop_reason "error" and its text, as a backend's final failure does; the last entry may be
    repeated for ever with `repeat=True`.
    """

    def __init__(self, replies: Iterable[Answer], *, name: str = "scripted", repeat: bool = False) -> None:
        self.name = name
        self.requests: list[Request] = []
        """every request so far, in the order it was answered"""
        self._replies = list(replies)
        self._repeat = repeat

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """One reply per request. Raises ModelError when the list runs out."""
        for index, request in enumerate(requests):
            at = len(self.requests)
            if at >= len(self._replies) and not (self._repeat and self._replies):
                raise ModelError(
                    f"{self.name}: request {at + 1} came, but only {len(self._replies)} replies are scripted; add one"
                )
            self.requests.append(request)
            answer = self._replies[min(at, len(self._replies) - 1)]
            given = answer if isinstance(answer, str | Reply | Exception) else answer(request)
            yield index, self._reply(given, request)

    def close(self) -> None:
        """Nothing to free."""

    def _reply(self, given: str | Reply | Exception, request: Request) -> Reply:
        if isinstance(given, Exception):
            return Reply(id=request.id, model=self.name, stop_reason="error", error=str(given) or repr(given))
        if isinstance(given, Reply):
            return given.model_copy(update={"id": request.id, "model": given.model or self.name})
        words = sum(len(message.content.split()) for message in request.messages)
        return Reply(
            id=request.id, text=given, model=self.name, usage=Usage(prompt_tokens=words, completion_tokens=len(given.split()))
        )
