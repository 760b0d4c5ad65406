"""The label set that a persona chooses from: its card's, or one that somebody gives.

Does: find it and check that it is one the student learned. Does not: read questions (`own.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.tasks.route.labels import LabelSet, from_data, make_set, read_labels
from factory.tasks.sql.reading import Fingerprint
from factory.tasks.task import TaskError

if TYPE_CHECKING:
    from agents.card import Card


def opened(card: Card | None, given: Mapping[str, Any]) -> LabelSet | None:
    """`given`: labels= the name of a set in the card, a labels file, names (with descriptions) or a `LabelSet`; nothing where the
    card holds one set. None when there is neither. A compact student knows its own sets alone. Raises TaskError."""
    unknown = set(given) - {"labels", "false_alarms"}
    if unknown:
        raise TaskError(f"the route task knows no {sorted(unknown)[0]!r}; give labels=, a file or the name of a set in the card, "
                        "and false_alarms=")  # fmt: skip
    found = _chosen(card, given.get("labels"))
    if found is not None:
        edge_of(found, card, given)
    return found


def _chosen(card: Card | None, wanted: Any) -> LabelSet | None:
    sets = from_data(card.task_data, card.name or "the router") if card is not None and card.task_data else ()
    names = ", ".join(one.id for one in sets)
    if wanted is None:
        if len(sets) > 1:
            raise TaskError(f"the router knows several label sets ({names}); say which with labels=NAME")
        return sets[0] if sets else None
    named = next((one for one in sets if isinstance(wanted, str) and one.id == wanted), None)
    if named is not None:
        return named
    found = _read(wanted, names)
    if card is not None and card.dialect == "compact":
        same = next((one for one in sets if one.words == found.words), None)
        if same is None:
            raise TaskError(f"the router learned its labels ({names or 'unknown'}) and can give no others; train it on "
                            f"those of {found.id!r}")  # fmt: skip
        return same
    return found


def edge_of(labels: LabelSet, card: Card | None, given: Mapping[str, Any]) -> float | None:
    """What the measure "outside" must exceed; None where no `false_alarms` is given. Raises TaskError for one the card does not
    know."""
    share = given.get("false_alarms")
    if share is None:
        return None
    known = labels.outside_above if card is not None else {}
    edge = next((value for name, value in known.items() if isinstance(share, int | float) and float(name) == share), None)
    if edge is None:
        there = f"choose from {', '.join(known)}" if known else "its card has no thresholds (no out-of-scope validation rows)"
        raise TaskError(f"false_alarms={share!r}: {there}, or leave it out")
    return edge


def _read(wanted: Any, names: str) -> LabelSet:
    if isinstance(wanted, LabelSet):
        return wanted
    if isinstance(wanted, str | Path):
        path = Path(wanted)
        if not path.is_file():
            raise TaskError(f"labels={str(wanted)!r}: no such file, and no set of the card ({names or 'it holds none'})")
        return from_file(path, Fingerprint())
    try:
        return make_set("labels", "labels", wanted, False, "labels=")
    except (TypeError, AttributeError):
        raise TaskError(f"labels={wanted!r}: give a labels file, names, or names with descriptions") from None


def from_file(path: Path, seen: Fingerprint) -> LabelSet:
    """The label set of a labels file alone."""
    from factory.tasks.route.own import joined

    id = path.name.split(".")[0]
    return joined(read_labels(path, seen), {}, id, str(path))[0]
