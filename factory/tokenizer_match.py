"""Whether two tokenizers mean the same by a token id: logits may be learned from a teacher only when they do.

Does: encode probe texts with both and compare the ids. Does not: trust an equal vocabulary size (Mixtral's and Llama-2's are both
32,000 and differ), or load tokenizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "Which team won in 1998–99, and by how much?",
    'SELECT MAX("Attendance") FROM "t" WHERE "Opponent" = \'FC Köln\' AND "Week" > 12',
    "SELECT count(*) FROM singer AS T1 JOIN concert AS T2 ON T1.id = T2.singer_id GROUP BY T1.name HAVING count(*) >= 2;",
    "def f(x):\n    return {'a': x ** 2, \"b\": [i for i in range(10)]}\n\n\nif __name__ == '__main__':\n\tprint(f(3))",
    "0123456789 3.14159 1,000,000 -42 1e-9 2024-02-29T12:34:56Z 007 99999999999",
    "   leading, trailing and   inner   spaces   ",
    "\ttabs\tand\n\nnewlines\r\nof several\n kinds\n",
    "数据库中有多少名歌手？東京の人口は、約1400万人です。서울의 인구",
    "Größe, naïveté, Ærøskøbing, Đặng, żółć, ﬁne, Ωμέγα, Привет, שלום, مرحبا",
    "🙂👩‍👩‍👧‍👦🇩🇪 ☃ €100 ½ x² → ∑ \u200b\u00a0end",
    "https://example.org/a_b-c?d=%20e&f=g#h user@example.com C:\\path\\to\\file.txt",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "camelCase snake_case SCREAMING_CASE kebab-case <c0> <t1> [INST] </s> <|im_end|>",
    "",
)


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Mismatch:
    """One probe that the two encode differently."""

    text: str
    first: tuple[int, ...]
    second: tuple[int, ...]


@dataclass(frozen=True)
class TokenizerReport:
    """The outcome of a comparison. `agree` is about the probes alone; the sizes are for the reader."""

    probes: int
    mismatches: tuple[Mismatch, ...]
    sizes: tuple[int, int]

    @property
    def agree(self) -> bool:
        return not self.mismatches

    def __str__(self) -> str:
        if self.agree:
            return f"tokenizers agree on {self.probes} probes (vocabularies of {self.sizes[0]} and {self.sizes[1]})"
        first = self.mismatches[0]
        return (
            f"tokenizers differ on {len(self.mismatches)} of {self.probes} probes (vocabularies of {self.sizes[0]} and "
            f"{self.sizes[1]}), for example {first.text[:40]!r}: {len(first.first)} against {len(first.second)} tokens, "
            f"ids {list(first.first[:6])} against {list(first.second[:6])}"
        )


def compare_tokenizers(a: Tokenizer, b: Tokenizer, probes: Sequence[str] = PROBES) -> TokenizerReport:
    """Encode every probe with both, without special tokens, and compare ids exactly."""
    mismatches = []
    for text in probes:
        first = tuple(a.encode(text, add_special_tokens=False))
        second = tuple(b.encode(text, add_special_tokens=False))
        if first != second:
            mismatches.append(Mismatch(text, first, second))
    return TokenizerReport(len(probes), tuple(mismatches), (len(a), len(b)))
