"""A teacher whose answers go through the ledger: what it said once it is not asked again.

Does: answer from the ledger where it can, ask the teacher for the rest, record each answer as it comes.
Does not: judge answers or stop at a budget (`ask.py` does, for the training questions).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from agents.chat import ChatModel, Reply, Request
from factory.ledger import Answer, Ledger, from_reply
from factory.teacher import TeacherPlan


class RememberedTeacher:
    """A ChatModel over another; `purpose` keeps its answers apart in the ledger. Errors are passed on and not recorded."""

    def __init__(self, teacher: ChatModel, plan: TeacherPlan, ledger: Ledger, purpose: str) -> None:
        self.teacher, self.plan, self.ledger, self.purpose = teacher, plan, ledger, purpose
        self.name = teacher.name

    @property
    def unconstrained(self) -> Mapping[str, int]:
        """Requests that the teacher had to send without their grammar, by kind of constraint."""
        counted: Mapping[str, int] = getattr(self.teacher, "unconstrained", {})
        return counted

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """As `ChatModel.generate`; equal requests in one batch are asked once each time they are new."""
        fresh: list[int] = []
        for index, request in enumerate(requests):
            known = self.ledger.answer(self.plan.key(request, self.purpose))
            if known is None:
                fresh.append(index)
            else:
                yield index, as_reply(known, request)
        for place, reply in self.teacher.generate([requests[index] for index in fresh]):
            request = requests[fresh[place]]
            if reply.stop_reason != "error":
                key, cost = self.plan.key(request, self.purpose), self.plan.cost(reply.usage, request)
                seed = request.sampling.seed
                self.ledger.record(from_reply(reply, key, self.plan.name, self.plan.revision, self.purpose, seed, cost))
            yield fresh[place], reply

    def close(self) -> None:
        self.teacher.close()


def as_reply(answer: Answer, request: Request) -> Reply:
    """A stored answer as the reply it was."""
    return Reply(id=request.id, text=answer.text, logprobs=answer.logprobs or (), usage=answer.usage, timings=answer.timings,
                 stop_reason=answer.stop_reason, model=answer.teacher)  # fmt: skip
