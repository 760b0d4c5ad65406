"""Read SNIPS (Coucke et al. 2018): short requests with an intent and tagged slots, as calls of seven functions.

Does: make a function of each intent and an argument of each slot it has in training; offer the one wanted among others.
Does not: normalise slot values: they are words of the request.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from pathlib import Path

from agents.chat import ToolSpec
from factory.tasks.sql.reading import SUFFIXES, Fingerprint, read_lines, text_field
from factory.tasks.task import Example, TaskError
from factory.tasks.tools import calls
from factory.tasks.tools.functions import Function, Toolset, from_spec

SLOTS: dict[str, str] = {
    "PlayMusic": "artist music_item service year sort track album playlist genre",
    "AddToPlaylist": "playlist playlist_owner music_item artist entity_name",
    "RateBook": "rating_value rating_unit best_rating object_select object_name object_type object_part_of_series_type",
    "SearchScreeningEvent": "movie_name object_type movie_type spatial_relation location_name object_location_type timeRange",
    "BookRestaurant": "restaurant_type party_size_number timeRange state city country restaurant_name party_size_description "
    "spatial_relation served_dish cuisine sort facility poi",
    "GetWeather": "timeRange city country state condition_temperature condition_description geographic_poi current_location "
    "spatial_relation",
    "SearchCreativeWork": "object_name object_type",
}
"""Intent -> its slots, all of them optional texts."""
OTHERS = 1
WITHOUT_SHARE = 0.1
"""Share of examples that do not offer the function wanted."""


def functions() -> dict[str, Function]:
    found = {}
    for name, slots in SLOTS.items():
        properties = {slot: {"type": "string"} for slot in slots.split()}
        schema = {"type": "object", "properties": properties, "required": [], "additionalProperties": False}
        found[name] = from_spec(ToolSpec(name=name, description="", parameters=schema))
    return found


def read(data_dir: Path, split: str, seen: Fingerprint) -> tuple[list[Example], Counter[str]]:
    """Examples in file order, and rows skipped: bad-tags, repeated-slot, unknown-slot. Splits: train, valid. Raises TaskError."""
    path = next((p for s in SUFFIXES if (p := data_dir / f"{split}{s}").exists()), None)
    if path is None:
        there = sorted({p.name.split(".")[0] for p in data_dir.glob("*.jsonl*")})
        raise TaskError(f"--split {split}: no {split}.jsonl.xz in {data_dir}; choose from {', '.join(there) or 'nothing there'}")
    known = functions()
    examples: list[Example] = []
    skipped: Counter[str] = Counter()
    for n, row in read_lines(path, seen):
        words = str(row.get("text", "")).split()
        tags = str(row.get("tags", "")).split()
        intent = known.get(str(row.get("intent")))
        if len(words) != len(tags) or intent is None:
            skipped["bad-tags"] += 1
            continue
        slots = _slots(words, tags)
        if len({name for name, _ in slots}) < len(slots):
            skipped["repeated-slot"] += 1
            continue
        if any(name not in intent.by_name for name, _ in slots):
            skipped["unknown-slot"] += 1
            continue
        id = f"snips-{split}-{n}"
        chance = random.Random(int(hashlib.sha256(id.encode()).hexdigest()[:12], 16))
        without = chance.random() < WITHOUT_SHARE
        others = chance.sample([f for f in known.values() if f is not intent], OTHERS + without)
        offered = others if without else [intent, *others]
        chance.shuffle(offered)
        reference = [] if without else [calls.Call(intent.name, dict(slots))]
        examples.append(
            Example(
                id,
                text_field(path, n, row, "text"),
                Toolset(id, tuple(offered)),
                "snips",
                calls.write(reference),
                split,
                {"kind": "none" if without else "call"},
            )
        )
    return examples, skipped


def _slots(words: list[str], tags: list[str]) -> list[tuple[str, str]]:
    out: list[tuple[str, list[str]]] = []
    for word, tag in zip(words, tags, strict=True):
        if tag.startswith("B-"):
            out.append((tag[2:], [word]))
        elif tag.startswith("I-") and out and out[-1][0] == tag[2:]:
            out[-1][1].append(word)
    return [(name, " ".join(own)) for name, own in out]
