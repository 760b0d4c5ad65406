"""A user's own router: rows of {"question", "label"} and a list of the labels there are.

Does: read both, check every label, divide the rows where the file does not, read them against a trained student's labels.
Does not: guess labels for rows without one; a teacher answers those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from factory.tasks.route.labels import OUT_OF_SCOPE, LabelSet, LabelsFile, from_data, make_set, read_labels
from factory.tasks.sql.reading import Fingerprint, read_lines, text_field
from factory.tasks.sql.spaced import spaced_name
from factory.tasks.task import DataSource, Example, TaskError

SPLITS = ("train", "validation", "test")
_QUESTION = ("question", "text", "utterance")
_LABEL = ("label", "intent", "category")


def read_own(source: DataSource, seen: Fingerprint, skipped: Counter[str]) -> list[Example]:
    """The rows of one split ("all": of every one), with the label set they share; rows of other splits are counted as
    "split-NAME". Raises TaskError naming file and line."""
    path = source.questions
    assert path is not None
    rows = [
        (n, text_field(path, n, row, *_QUESTION), _label(path, n, row), _split(path, n, row)) for n, row in read_lines(path, seen)
    ]
    if not rows:
        raise TaskError(f'{path}: has no rows; write one {{"question": …, "label": …}} a line')
    labels, outside = _labels(source, path, {label: n for n, _, label, _ in reversed(rows) if label is not None}, seen)
    names = [OUT_OF_SCOPE if label is not None and label == outside else label for _, _, label, _ in rows]
    splits = _divided([text for _, text, _, _ in rows], names, [split for *_, split in rows])
    stem = path.name.split(".")[0]
    examples = []
    for (n, text, _, _), label, split in zip(rows, names, splits, strict=True):
        if source.split not in (split, "all"):
            skipped[f"split-{split}"] += 1
            continue
        examples.append(Example(f"{stem}-{n}", text, labels, labels.id, label, split))
    if not examples and source.split not in SPLITS:
        raise TaskError(f"--split {source.split}: {path} has {', '.join(sorted(set(splits)))}; choose one of those, or all")
    return examples


def joined(
    file: LabelsFile | None, used: Mapping[str, int], id: str, where: str, path: Path | None = None
) -> tuple[LabelSet, str]:
    """(label set, which label means out of scope). `used`: label -> line of the questions file `path` where it first stands."""
    outside = file.outside if file is not None and isinstance(file.outside, str) else OUT_OF_SCOPE
    if file is None:
        described: dict[str, str] = dict.fromkeys(sorted(used), "")
    else:
        described = dict(file.labels)
        for label, n in sorted(used.items(), key=lambda item: item[1]):
            if label not in described and label != outside:
                known = make_set(id, id, described, False, where)
                raise TaskError(f"{path}, line {n}: the label {label!r} is not in {where}{known.near(label)}")
    has_outside = outside in described or outside in used or (file is not None and bool(file.outside))
    if file is not None and file.outside is False and outside in used:
        raise TaskError(f'{path}, line {used[outside]}: {outside!r}, but {where} says "out_of_scope": false; change one of them')
    described.pop(outside, None)
    title = (file.title if file is not None and file.title else None) or spaced_name(id).strip()
    return make_set(id, title, described, has_outside, where), outside


def _labels(source: DataSource, path: Path, used: Mapping[str, int], seen: Fingerprint) -> tuple[LabelSet, str]:
    """The labels file's, else a trained student's, else those that the rows use."""
    id = path.name.split(".")[0]
    file = read_labels(source.labels, seen) if source.labels is not None else None
    where = str(source.labels) if source.labels is not None else str(path)
    if not source.card_data:
        return joined(file, used, id, where, path)
    learned = from_data(source.card_data, "the student")
    outside = file.outside if file is not None and isinstance(file.outside, str) else OUT_OF_SCOPE
    wanted = ({*file.labels} if file is not None else {*used}) - {outside}
    fitting = [one for one in learned if wanted <= set(one.labels)]
    if not fitting:
        best = max(learned, key=lambda one: len(wanted & set(one.labels)))
        strange = min(wanted - set(best.labels), key=lambda label: used.get(label, 0))
        line = f", line {used[strange]}" if strange in used else ""
        raise TaskError(f"{path}{line}: the student never learned the label {strange!r}{best.near(strange)}")
    named = next((one for one in fitting if one.id == id), None)
    if named is None and len(fitting) > 1:
        raise TaskError(f"{path}: the labels fit several of the student's sets ({', '.join(one.id for one in fitting)}); name "
                        "the file as the set it belongs to")  # fmt: skip
    return named if named is not None else fitting[0], outside


def _label(path: Path, n: int, row: dict[str, Any]) -> str | None:
    found = next((row[name] for name in _LABEL if name in row), None)
    if found is None:
        return None
    if not isinstance(found, str) or not found.strip():
        raise TaskError(f'{path}, line {n}: the label is {found!r}; expected text, or leave "label" out')
    return found.strip()


def _split(path: Path, n: int, row: dict[str, Any]) -> str | None:
    found = row.get("split")
    if found is not None and found not in SPLITS:
        raise TaskError(f"{path}, line {n}: split {found!r}; choose from {', '.join(SPLITS)}, or leave it out")
    return found


def _divided(texts: list[str], labels: list[str | None], given: list[str | None]) -> list[str]:
    """A split for every row: the one it names; rows without one are for training, a tenth of each label for validation where no
    row is named so. Rows without a label always train."""
    from factory.tasks.route.sources import held_out

    held: set[int] = set()
    if "validation" not in given:
        free = [i for i, split in enumerate(given) if split is None and labels[i] is not None]
        held = {free[i] for i in held_out([texts[i] for i in free], [labels[i] or "" for i in free])}
    return [split if split is not None else "validation" if i in held else "train" for i, split in enumerate(given)]
