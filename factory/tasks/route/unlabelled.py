"""Utterances without labels, for a teacher to sort: whatever people said and nobody sorted, or what a model made up.

Does: read them into the label sets of the data they are trained with.
Does not: sort them, or look for those that are held out (`factory.rows` drops them).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from factory.tasks.route.labels import LabelSet
from factory.tasks.sql.reading import Fingerprint, read_lines, text_field
from factory.tasks.task import DatasetCard, Example, TaskError

SPLIT = "unlabelled"


def read_unlabelled(path: Path, examples: Sequence[Example]) -> tuple[list[Example], DatasetCard]:
    """Rows of {"question": …}, with "set" (a label set's id) where `examples` have several; see `TakesUnlabelled`."""
    sets = {e.context.id: e.context for e in examples if isinstance(e.context, LabelSet)}
    seen = Fingerprint()
    stem = path.name.split(".")[0]
    out: list[Example] = []
    for n, row in read_lines(path, seen):
        question = text_field(path, n, row, "question", "text", "utterance")
        name = row.get("set")
        if name is None and len(sets) == 1:
            name = next(iter(sets))
        labels = sets.get(name) if isinstance(name, str) else None
        if labels is None:
            raise TaskError(f'{path}, line {n}: "set" is {name!r}; choose from {", ".join(sets)}')
        out.append(Example(f"{SPLIT}/{stem}-{n}", question, labels, labels.id, None, SPLIT))
    if not out:
        raise TaskError(f'{path}: has no rows; write one {{"question": …}} a line')
    card = DatasetCard(name=stem, split=SPLIT, license="yours", source=path.name, sha256=seen.sha256, n=len(out), skipped={})
    return out, card
