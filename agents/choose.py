"""Choosing among names: the model may write nothing else, and says by its probabilities how sure it is.

Does: constrain to the names, turn one reply's log-probabilities into a probability for every name, pick the likeliest.
Does not: route a graph; the Choice it gives is what a node returns.

How names that begin alike are told apart. Decoding under the constraint is a walk over tokens, and at every token the reply names
what else was allowed and how likely it was. A branch that only one name can follow gives that name its whole mass, however the
rest of the name would be cut into tokens: with names that differ in their first character the result is exact, where the model
names all allowed tokens (`TOP`; few are allowed at any point of a name). A branch that several names share (to "car" and "cat"
instead of "dog") is asked again with only those names allowed and its mass divided in that proportion: the sum is exact, the
division as good as the second walk's way of cutting the shared part. Branches below `WORTH_ASKING` are divided evenly. A model
that gives no log-probabilities gives no probabilities either.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agents import calling
from agents.answer import NoAnswer, Result
from agents.chat import TokenLogprob
from agents.constrain import choice
from agents.events import Repaired, emit
from agents.persona_loop import PersonaRun
from agents.route import Choice, name_of
from agents.tools import PersonaError

if TYPE_CHECKING:
    from agents.persona import Persona

TOP = 64
"""Alternatives asked for at every token."""
WORTH_ASKING = 0.001
"""Mass from which a branch that several names share is worth another request."""
Token = tuple[bytes, float, tuple[tuple[bytes, float], ...]]
"""Bytes of the token taken, its log-probability, and (bytes, log-probability) of every other allowed one; b"" is the end."""


def options_of(given: Mapping[str, Any] | Iterable[Any], owner: str) -> dict[str, str]:
    """Name -> description. Raises PersonaError for fewer than two, or a name that is not what it leads to."""
    described: dict[str, str] = {}
    pairs = given.items() if isinstance(given, Mapping) else [(name_of(one), one) for one in given]
    for key, target in pairs:
        described[key] = target if isinstance(target, str) else str(getattr(target, "description", "") or "")
        if target is None or isinstance(target, str) or not isinstance(given, Mapping):
            described[key] = "" if described[key] == key or target is None else described[key]
            continue
        if name_of(target) != key:
            raise PersonaError(f"{owner!r}: the option {key!r} leads to {name_of(target)!r}; call it {name_of(target)!r}")
    if len(described) < 2:
        raise PersonaError(f"{owner!r} has {len(described)} option to choose from ({', '.join(described)}); give at least two")
    return described


def choose(
    persona: Persona, text: str, given: Mapping[str, Any] | Iterable[Any], history: Any, variables: Mapping[str, Any]
) -> Choice:
    """The likeliest option. Raises PersonaError for bad options, NoAnswer when a model without constraints names none of them."""
    if persona.task is not None:
        raise PersonaError(f"{persona.name!r} answers the questions of its task and cannot choose; give the choice to another")
    described = options_of(given, persona.name)
    names = list(described)

    def ask(allowed: Sequence[str], note: str = "") -> Result:
        constraint = calling.grammar(answer=choice(allowed), think=persona._think)
        in_json = not calling.honours(persona.model, "choice")
        if in_json:
            schema = {"type": "object", "properties": {"choice": {"enum": list(allowed)}}, "required": ["choice"]}
            constraint = calling.grammar(answer={**schema, "additionalProperties": False})
        sampling = persona.sampling.model_copy(
            update={"temperature": 0.0, "logprobs": True, "top_logprobs": TOP if not in_json else 0}
        )
        plan = persona.plan(
            text + note, history, variables, constraint=constraint, schema=None, sampling=sampling, extra=_extra(described)
        )
        return PersonaRun(plan, persona.totals).answer()

    result = ask(names)
    target = named(result.text, names)
    if target is None:
        persona.totals.count("retry")
        emit(Repaired(persona.name, "retry", f"{result.text[:80]!r} is none of {', '.join(names)}"))
        result = ask(names, f"\n\nAnswer with nothing but one of: {', '.join(names)}")
        target = named(result.text, names)
    if target is None:
        raise NoAnswer(f"{persona.name} chose {result.text[:80]!r}, which is none of {', '.join(names)}", "invalid", result.text)
    spelt = result.text in names
    probabilities = None
    if spelt and result.logprobs and calling.honours(persona.model, "choice"):

        def again(allowed: Sequence[str]) -> list[Token]:
            return tokens_of(persona.model, ask(allowed).logprobs)

        probabilities = probabilities_of(names, tokens_of(persona.model, result.logprobs), result.text, again)
    if probabilities is None:
        return Choice(target)
    return Choice(max(names, key=lambda name: probabilities[name]), probabilities)


def named(text: str, names: Sequence[str]) -> str | None:
    """The one name a text means: spelt out, in JSON, in other case, or as the only one that occurs in it as a word."""
    said = text.strip()
    if said.startswith("{"):
        with contextlib.suppress(ValueError, AttributeError, StopIteration):
            said = str(next(iter(json.loads(said).values())))
    if said in names:
        return said
    plain = said.strip("\"'`.!* \n").casefold()
    same = [name for name in names if name.casefold() == plain]
    if len(same) == 1:
        return same[0]
    within = [name for name in names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said, re.IGNORECASE)]
    return within[0] if len(within) == 1 else None


def tokens_of(model: Any, logprobs: Sequence[TokenLogprob]) -> list[Token]:
    """Log-probabilities with the tokens as bytes: exact through the model's grammar engine, else as their text says."""
    engine = getattr(model, "engine", None)
    ends = set(getattr(model, "eos_ids", ()) or ())

    def spelt(id: int | None, text: str) -> bytes:
        if id is None or engine is None:
            return text.encode()
        return b"" if id in ends else bytes(engine.inner.decode_bytes([id]))

    return [
        (
            spelt(token.id, token.token),
            token.logprob,
            tuple((spelt(id, text), value) for id, text, value in token.top if (id, text) != (token.id, token.token)),
        )
        for token in logprobs
    ]


def probabilities_of(
    names: Sequence[str], walk: Sequence[Token], text: str, again: Callable[[Sequence[str]], list[Token]] | None = None
) -> dict[str, float] | None:
    """Probability of each name from one walk that ended in `text`; they add up to 1. None when the walk does not spell it.

    `again(names)` walks once more with only these allowed, to divide a branch they share. Text before the name (thinking) counts
    for nothing.
    """
    spelt = b"".join(token for token, _, _ in walk)
    if not spelt.endswith(text.encode()):
        return None
    before = spelt[: len(spelt) - len(text.encode())]
    whole = {name: before + name.encode() for name in names}
    mass, at = dict.fromkeys(names, 0.0), b""
    left = 1.0
    for token, logprob, others in walk:
        if len(at) + len(token) > len(before) or not token:
            for other, value in others:
                share = left * math.exp(value)
                end = at + other
                able = [name for name in names if (whole[name] == at if not other else whole[name].startswith(end))]
                if len(end) <= len(before) or not able or len(able) == len(names):
                    continue  # nothing is decided there: this mass goes the way of the rest
                if len(able) > 1 and again is not None and share >= WORTH_ASKING:
                    inner = _divided(able, again)
                    for name in able:
                        mass[name] += share * inner[name]
                else:
                    for name in able:
                        mass[name] += share / len(able)
            left *= math.exp(logprob)
        at += token
    mass[text] += left
    total = sum(mass.values())
    return {name: value / total for name, value in mass.items()} if total > 0 else None


def _divided(able: Sequence[str], again: Callable[[Sequence[str]], list[Token]]) -> dict[str, float]:
    """How several names share a branch."""
    walk = again(able)
    spelt = b"".join(token for token, _, _ in walk)
    text = next((name for name in sorted(able, key=len, reverse=True) if spelt.endswith(name.encode())), None)
    found = probabilities_of(able, walk, text, again) if text is not None else None
    return found if found is not None else dict.fromkeys(able, 1 / len(able))


def _extra(described: Mapping[str, str]) -> str:
    lines = [f"- {name}: {text}" if text else f"- {name}" for name, text in described.items()]
    return "Answer with one of:\n" + "\n".join(lines)
