"""What a text goes through before llama.cpp tokenizes it, so that it gets the ids transformers gives it.

Does: what a tokenizer.json does to text and a GGUF vocabulary cannot say: Unicode normalization between added tokens, whitespace
swallowed after an added token (Phi-3), a space in front where there is none yet (Mistral's and Llama's newer tokenizers).
Does not: tokenize.

    rules = TextRules.of(metadata)                  # of a GGUF file that export wrote; any other file gives no rules
    ids = tokenize(rules.apply(text))
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]

NORMALIZER = "penknife.tokenizer.normalizer"
"""GGUF key: a Unicode normalization form"""
STRIP_AFTER = "penknife.tokenizer.strip_after"
"""GGUF key: the added tokens after which whitespace is dropped"""
SPACE_BEFORE = "penknife.tokenizer.space_before"
"""GGUF key: "first" when a text gets a space in front unless it begins with one or with an added token, "every" when each stretch
between added tokens does"""
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4


@dataclass(frozen=True)
class TextRules:
    """What to do to a text before llama.cpp tokenizes it with special tokens parsed."""

    form: Form | None = None
    strip_after: frozenset[str] = frozenset()
    space_before: Literal["first", "every"] | None = None
    added: tuple[str, ...] = ()
    """texts of the tokens that llama.cpp looks for first: they end a stretch of ordinary text"""

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> TextRules:
        """The rules in a GGUF file's metadata."""
        form, strip, space = metadata.get(NORMALIZER), metadata.get(STRIP_AFTER), metadata.get(SPACE_BEFORE)
        tokens: Sequence[str] = metadata.get("tokenizer.ggml.tokens", ())
        types: Sequence[int] = metadata.get("tokenizer.ggml.token_type", ())
        return cls(
            form=cast(Form, form) if form in ("NFC", "NFD", "NFKC", "NFKD") else None,
            strip_after=frozenset(strip) if strip is not None else frozenset(),
            space_before=cast(Any, space) if space in ("first", "every") else None,
            added=tuple(text for text, kind in zip(tokens, types) if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)),
        )

    @cached_property
    def _split(self) -> re.Pattern[str] | None:
        if not self.added:
            return None
        return re.compile("(" + "|".join(re.escape(text) for text in sorted(self.added, key=len, reverse=True)) + ")")

    def apply(self, text: str) -> str:
        """`text` as llama.cpp must be given it."""
        if self.form is None and not self.strip_after and self.space_before is None:
            return text
        parts = self._split.split(text) if self._split is not None else [text]
        # Odd places hold added tokens, even ones what lies between them.
        for place in range(0, len(parts), 2):
            if place > 0 and parts[place - 1] in self.strip_after:
                parts[place] = parts[place].lstrip()
            if self.form is not None:
                parts[place] = unicodedata.normalize(self.form, parts[place])
            spaced = self.space_before == "every" or (self.space_before == "first" and place == 0)
            if spaced and parts[place] and not parts[place].startswith((" ", "▁")):
                parts[place] = " " + parts[place]
        return "".join(parts)
