"""Prompts of the route task in both dialects.

Does: write the messages, and the spaced lower-case form of an utterance.
Does not: read answers (`labels.py`).

The compact dialect lists no labels: they are learned. It writes ` words` in lower case with one space before each, number and
mark apart, as sql's compact prompts do, so that both share a tokenizer's words. It does so here and not in the tokenizer, whose
normalizer a GGUF file does not keep.
"""

from __future__ import annotations

import unicodedata

from agents.chat import Message
from factory.tasks.route.labels import OUT_OF_SCOPE, LabelSet
from factory.tasks.sql.spaced import spaced
from factory.tasks.task import Dialect

PROMPT_TOKENS = ("<route>", "<q>")
_PLAIN_MARKS = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "<": "‹", ">": "›"})
"""Typographic marks as keyboards have them; an utterance must not spell a token of the prompt."""


def normalized(text: str) -> str:
    """` i ' m still waiting` as the compact dialect writes an utterance: compatibility forms resolved, lower case, spaced."""
    plain = unicodedata.normalize("NFKC", text).translate(_PLAIN_MARKS)
    return spaced(plain) or " " + " ".join(plain.split()).lower()


def render_prompt(labels: LabelSet, question: str, dialect: Dialect) -> tuple[Message, ...]:
    """The messages for one utterance."""
    if dialect == "compact":
        return (Message(role="user", content=opening(labels).content + normalized(question)),)
    return (Message(role="system", content=_system(labels)), Message(role="user", content=f"Request: {question.strip()}"))


def opening(labels: LabelSet) -> Message:
    """The compact prompt up to the utterance."""
    return Message(role="user", content=f"<route>{spaced(labels.title)}<q>")


def _system(labels: LabelSet) -> str:
    shown = [f"- {name}: {text}" if text else f"- {name}" for name, text in labels.labels.items()]
    if labels.out_of_scope:
        shown.append(f"- {OUT_OF_SCOPE}: none of the above fits")
    return (
        "You sort requests. Answer with exactly one of these labels, spelt as here, and nothing else: no explanation, no quotes."
        "\n" + "\n".join(shown)
    )
