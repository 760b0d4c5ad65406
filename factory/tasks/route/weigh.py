"""How likely a router thinks each label, from the log-probabilities kept while it wrote one of them under the constraint.

Does: the probability of the answer given, over all its tokens, and how likely the utterance belongs to no label.
Does not: ask the model again or calibrate (`factory.confidence`).

The sum over a label's tokens is exact: decoding under the constraint is a walk, and each step's probability is among what was
allowed there. Mass that left the walk goes to the label that alone begins so; where several begin so, they share it evenly
(`agents.choose`), which matters only for labels that were not the answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from agents.chat import TokenLogprob
from agents.choose import Token, probabilities_of, tokens_of
from factory.tasks.route.labels import OUT_OF_SCOPE, LabelSet
from factory.tasks.task import Dialect

ALTERNATIVES = 64
"""Other tokens asked for at every step of the walk."""
WORTH = math.log(1e-6)
"""Log-probability below which an alternative is left out."""
OUTSIDE = "outside"
"""Name of the measure that grows as an utterance looks out of scope: p(out of scope) / (p(out of scope) + p(the likeliest label
in scope)) where out of scope is an answer, else `DOUBT`."""
DOUBT = "doubt"
"""Name of the measure 1 - p(the likeliest label in scope): high also where two labels in scope are both likely."""


def weigh(labels: LabelSet, dialect: Dialect, answer: str, walk: Sequence[Token]) -> dict[str, float]:
    """{"confidence": probability of `answer`, "outside": 0-1, "doubt": 0-1}, as far as the walk tells; {} for an empty one."""
    if not walk:
        return {}
    confidence = min(1.0, math.exp(sum(logprob for _, logprob, _ in walk)))
    if not any(others for _, _, others in walk):
        return {"confidence": confidence}  # nothing is known of the labels not taken
    found = probabilities(labels, dialect, answer, walk)
    if found is None:
        return {"confidence": confidence}
    best = max(p for label, p in found.items() if label != OUT_OF_SCOPE)
    doubt = min(1.0, max(0.0, 1.0 - best))
    outside = found.get(OUT_OF_SCOPE)
    ratio = doubt if outside is None else outside / (outside + best) if outside + best > 0 else 0.0
    return {"confidence": confidence, OUTSIDE: ratio, DOUBT: doubt}


def outside(
    labels: LabelSet, dialect: Dialect, answer: str, logprobs: Sequence[TokenLogprob], edge: float
) -> tuple[str, float] | None:
    """(answer, how sure) by the rule "out of scope where `OUTSIDE` is above `edge`, else the likeliest label in scope", where
    that is not the answer given; None where it is, or where too little is known."""
    walk = tokens_of(None, logprobs)
    measured = weigh(labels, dialect, answer, walk).get(OUTSIDE)
    if measured is None:
        return None
    if measured > edge:
        return (OUT_OF_SCOPE, measured) if answer != OUT_OF_SCOPE else None
    if answer != OUT_OF_SCOPE:
        return None
    found = probabilities(labels, dialect, answer, walk) or {}
    best = max((label for label in found if label != OUT_OF_SCOPE), key=lambda label: found[label])
    return best, found[best]


def probabilities(labels: LabelSet, dialect: Dialect, answer: str, walk: Sequence[Token]) -> Mapping[str, float] | None:
    """Answer -> probability, adding up to 1; None where the walk does not spell `answer`."""
    if not walk:
        return None
    texts = labels.completions(dialect)
    wrote = labels.encode(answer, dialect)
    kept = [(token, logprob, tuple(o for o in others if o[1] > WORTH)) for token, logprob, others in walk]
    found = probabilities_of(texts, kept, wrote)
    return None if found is None else {name: found[text] for name, text in zip(labels.answers, texts, strict=True)}
