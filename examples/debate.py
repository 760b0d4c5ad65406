"""Two personas argue, a third judges; all on one loaded model.

Run: `python examples/debate.py` (offline, scripted), `python examples/debate.py --model FILE.gguf --motion "Tabs beat spaces"`.

Shows: three prompts on one set of weights, a cycle that ends by itself, a constrained verdict with its probabilities.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pydantic import BaseModel

from agents import END, AgentGraph, Persona, Sampling, Scripted, open_model
from agents.chat import ChatModel, Request

ROUNDS = 2


class State(BaseModel):
    motion: str
    turns: list[str] = []
    winner: str | None = None
    probabilities: dict[str, float] = {}


def scripted(request: Request) -> str:
    """What a model would say, so that the example runs without one."""
    role, asked = request.messages[0].content, request.messages[-1].content
    if "judge" in role:
        return "pro" if asked.count("Pro:") >= asked.count("Con:") else "con"
    number = asked.count("Pro:") + asked.count("Con:") + 1
    return f"Argument {number} {'for' if 'for the motion' in role else 'against'} it."


def make_graph(model: ChatModel, rounds: int = ROUNDS) -> AgentGraph:
    """The debate on one model."""
    short = Sampling(max_tokens=80, temperature=0.7, seed=1)
    pro = Persona("pro", model, "You argue for the motion. One short point that answers the last one.", sampling=short)
    con = Persona("con", model, "You argue against the motion. One short point that answers the last one.", sampling=short)
    verdict = Sampling(max_tokens=8)
    judge = Persona(
        "judge", model, "You judge a debate by its arguments alone. Name the side that argued better.", sampling=verdict
    )

    def heard(s: State) -> str:
        return "\n".join([f"Motion: {s.motion}", *s.turns])

    g = AgentGraph(State, name="debate")

    @g.node(start=True, name="argue for")
    def argue_for(s: State) -> dict[str, list[str]]:
        return {"turns": [*s.turns, f"Pro: {pro(heard(s))}"]}

    @g.node(name="argue against", goes=["argue for", "decide"])
    def argue_against(s: State) -> object:
        said = f"Con: {con(heard(s))}"
        return g.goto("argue for" if len(s.turns) + 1 < 2 * rounds else "decide", {"turns": [*s.turns, said]})

    @g.node
    def decide(s: State) -> dict[str, object]:
        choice = judge.choose(heard(s), {"pro": "the side for the motion", "con": "the side against it"})
        return {"winner": choice.target, "probabilities": choice.probabilities or {}}

    g.edge("argue for", "argue against")
    g.edge("decide", END)
    return g


def main(argv: Sequence[str] | None = None) -> State:
    """Hold one debate; returns the final state."""
    parser = argparse.ArgumentParser(description="a debate between personas of one model")
    parser.add_argument("--model", help="GGUF file or any other spec; default: scripted")
    parser.add_argument("--motion", default="A small knife is better than a large one.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(argv)
    model = open_model(options.model) if options.model else Scripted([scripted], repeat=True)
    run = make_graph(model, options.rounds).run(State(motion=options.motion))
    state: State = run.state
    sys.stdout.write("\n".join([state.motion, *state.turns, f"The judge: {state.winner} {state.probabilities or ''}"]) + "\n")
    return state


if __name__ == "__main__":
    main()
