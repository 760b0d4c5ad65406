"""Choosing: the probability of each name against sums worked out from the model's own logits, and names that share tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest

from agents.answer import NoAnswer
from agents.chat import Message, Reply, TokenLogprob
from agents.choose import named, probabilities_of
from agents.models.scripted import Scripted
from agents.persona import Persona
from agents.route import Choice
from agents.tools import PersonaError


def exact(model: Any, messages: Sequence[Message], names: Sequence[str]) -> dict[str, float]:
    """Every way of cutting every name into tokens, followed through the model's own logits: the walk under the constraint,
    worked out without the grammar engine."""
    import torch

    tokenizer = model.tokenizer
    pieces = {i: tokenizer.decode([i]).encode() for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids}
    prompt = model.prompt_ids(messages)
    mass = dict.fromkeys(names, 0.0)

    def walk(ids: list[int], text: bytes, p: float) -> None:
        able = [name for name in names if name.encode().startswith(text)]
        allowed = [i for i, piece in pieces.items() if piece and any(n.encode().startswith(text + piece) for n in able)]
        done = [name for name in able if name.encode() == text]
        if done and not allowed:
            mass[done[0]] += p
            return
        with torch.no_grad():
            logits = model.model(torch.tensor([prompt + ids])).logits[0, -1].double()
        choices = [*allowed, *(model.eos_ids if done else ())]
        probs = torch.softmax(logits[choices], 0).tolist()
        for token, share in zip(choices, probs):
            if done and token in model.eos_ids:
                mass[done[0]] += p * share
            elif p * share > 1e-9:
                walk([*ids, token], text + pieces[token], p * share)

    walk([], b"", 1.0)
    return mass


@pytest.mark.parametrize(
    ("names", "close"),
    [
        (("yes", "no"), 1e-4),
        (("billing", "sales", "desk"), 1e-4),
        (("river", "rivers", "state"), 0.05),
        (("cat", "car", "dog"), 0.05),
    ],
)
def test_probabilities_are_the_models(llama: Any, names: tuple[str, ...], close: float) -> None:
    persona = Persona("router", llama, "Pick.")
    choice = persona.choose("how many rivers", list(names))
    system = Message(role="system", content="Pick.\n\nAnswer with one of:\n" + "\n".join(f"- {name}" for name in names))
    expected = exact(llama, [system, Message(role="user", content="how many rivers")], names)
    assert sum(expected.values()) == pytest.approx(1.0, abs=1e-6)
    assert choice.probabilities == pytest.approx(expected, abs=close)
    assert choice.target == max(expected, key=lambda name: expected[name])
    assert choice.confidence == choice.probabilities[choice.target]


def test_a_shared_branch_is_asked_again_and_divided() -> None:
    walk = [(b"d", math.log(0.2), ((b"ca", math.log(0.8)),)), (b"og", 0.0, ())]
    asked: list[Sequence[str]] = []

    def again(able: Sequence[str]) -> Any:
        asked.append(able)
        return [(b"ca", 0.0, ()), (b"r", math.log(0.25), ((b"t", math.log(0.75)),))]

    found = probabilities_of(["cat", "car", "dog"], walk, "dog", again)
    assert asked == [["cat", "car"]]
    assert found == pytest.approx({"cat": 0.6, "car": 0.2, "dog": 0.2})


def test_thinking_before_the_name_counts_for_nothing() -> None:
    walk = [
        (b"hm", math.log(0.1), ((b"no", math.log(0.9)),)),
        (b"\nAnswer: ", 0.0, ()),
        (b"yes", math.log(0.7), ((b"no", math.log(0.3)),)),
    ]
    assert probabilities_of(["yes", "no"], walk, "yes") == pytest.approx({"yes": 0.7, "no": 0.3})


def test_a_model_may_think_first(llama: Any) -> None:
    persona = Persona("router", llama, "Pick.", think=6)
    choice = persona.choose("how many rivers", ["yes", "no"])
    assert choice.target in ("yes", "no") and sum(choice.probabilities.values()) == pytest.approx(1.0)


def test_choices_are_routes_that_compare_by_name() -> None:
    model = Scripted(
        [Reply(text="desk", logprobs=(TokenLogprob(token="desk", logprob=math.log(0.9), top=((None, "sql", math.log(0.1)),)),))]
    )
    triage = Persona("triage", model, "Pick who should answer.")
    desk = Persona("desk", model, description="Answers order questions.")
    choice = triage.choose("where is 17?", {"desk": desk, "sql": "Answers database questions."})
    assert isinstance(choice, Choice) and choice == "desk"
    assert choice.probabilities == pytest.approx({"desk": 0.9, "sql": 0.1})
    said = model.requests[0].messages[0].content
    assert "- desk: Answers order questions.\n- sql: Answers database questions." in said
    assert json.loads(model.requests[0].constraint.source) == ["desk", "sql"]  # type: ignore[union-attr]


def test_a_server_that_takes_only_schemas_is_asked_by_schema() -> None:
    model = Scripted(['{"choice":"sql"}'])
    model.constrains = frozenset({"json_schema"})  # type: ignore[attr-defined]
    choice = Persona("triage", model).choose("count", ["desk", "sql"])
    assert choice == "sql" and choice.probabilities is None
    assert model.requests[0].constraint.kind == "json_schema"  # type: ignore[union-attr]


def test_a_model_without_constraints_gets_one_more_try() -> None:
    model = Scripted(["Hm, hard to say", "I would say: Desk."])
    model.constrains = frozenset()  # type: ignore[attr-defined]
    persona = Persona("triage", model)
    assert persona.choose("where is 17?", ["desk", "sql"]) == "desk"
    assert persona.totals.counts["retry"] == 1
    silent = Scripted(["no idea"], repeat=True)
    with pytest.raises(NoAnswer, match="'no idea', which is none of desk, sql"):
        Persona("triage", silent).choose("?", ["desk", "sql"])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("desk", "desk"),
        (" Desk.\n", "desk"),
        ('"sql"', "sql"),
        ("use the sql one", "sql"),
        ("desk or sql", None),
        ("desktop", None),
    ],
)
def test_names_in_free_text(text: str, name: str | None) -> None:
    assert named(text, ["desk", "sql"]) == name


def test_bad_options_are_one_sentence() -> None:
    persona = Persona("triage", Scripted([]))
    with pytest.raises(PersonaError, match="at least two"):
        persona.choose("?", ["desk"])
    with pytest.raises(PersonaError, match="'orders' leads to 'desk'; call it 'desk'"):
        persona.choose("?", {"orders": Persona("desk", Scripted([])), "sql": "x"})
