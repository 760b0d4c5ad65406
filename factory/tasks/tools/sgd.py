"""Read Schema-Guided Dialogue (Rastogi et al. 2020): at each system turn, the service calls that its dialogue needs, or none.

Does: read SPLIT.jsonl[.xz] with its SPLIT_schema.json[.xz], type the slots, offer the functions of the dialogue's services and of
others, keep a share of the turns without a call.
Does not: show the annotated dialogue state: a prompt holds what was said, nothing else.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.chat import ToolSpec
from factory.tasks.sql.reading import SUFFIXES, Fingerprint, field, read_json, read_lines
from factory.tasks.task import Example, TaskError
from factory.tasks.tools import calls
from factory.tasks.tools.functions import ANYTHING, Function, Toolset, from_spec, kind_by_name
from factory.tasks.tools.view import Turn, written

TODAY = dt.date(2019, 3, 1)
"""The day all dialogues are held on."""
NONE_SHARE = 0.22
"""Of the system turns without a call: about as many as make up a third of all examples."""
ANOTHER_SHARE = 0.35
"""Of the examples that also offer another service's functions."""


def read_services(data_dir: Path, split: str, seen: Fingerprint) -> dict[str, tuple[Function, ...]]:
    """Service -> its functions. Raises TaskError."""
    path = next((p for s in (".json.xz", ".json") if (p := data_dir / f"{split}_schema{s}").exists()), None)
    if path is None:
        raise TaskError(f"{data_dir}: no {split}_schema.json.xz; copy the split's service schemas beside its dialogues")
    found: dict[str, tuple[Function, ...]] = {}
    for service in read_json(path, seen):
        slots = {slot["name"]: slot for slot in service["slots"]}
        found[service["service_name"]] = tuple(_function(intent, slots) for intent in service["intents"])
    return found


def _function(intent: Mapping[str, Any], slots: Mapping[str, Any]) -> Function:
    required = list(intent["required_slots"])
    optional = {name: value for name, value in intent["optional_slots"].items() if name not in required}
    properties = {name: _schema(slots[name], optional.get(name)) for name in [*required, *optional]}
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return from_spec(ToolSpec(name=intent["name"], description=intent["description"], parameters=schema))


def _schema(slot: Mapping[str, Any], default: str | None) -> dict[str, Any]:
    choices = list(slot["possible_values"]) if slot["is_categorical"] else []
    if choices and set(choices) <= {"True", "False"}:
        own: dict[str, Any] = {"type": "boolean"}
    elif choices and all(choice.isdigit() for choice in choices):
        own = {"type": "integer", "enum": [int(choice) for choice in choices]}
    elif choices:
        own = {"type": "string", "enum": choices}
    elif slot["name"] in ("amount", "transfer_amount", "rating", "stay_length", "number_of_days"):
        own = {"type": "number"}
    else:
        kind = kind_by_name(slot["name"])
        own = {"type": "string", "format": kind} if kind else {"type": "string"}
    described = {"description": slot["description"]} if slot.get("description") else {}
    if default is None:
        return own | described
    value = _value(own, default)
    if value == ANYTHING:
        return {"anyOf": [own, {"const": ANYTHING}], "default": ANYTHING} | described
    return own | {"default": value} | described


def _value(schema: Mapping[str, Any], text: str) -> Any:
    if text == ANYTHING:
        return text
    kind = schema.get("type")
    if kind == "boolean":
        return text == "True"
    if kind in ("integer", "number"):
        try:
            number = float(text)
        except ValueError:
            return text
        return int(number) if number.is_integer() else number
    return text


def read(data_dir: Path, split: str, seen: Fingerprint) -> tuple[list[Example], Counter[str]]:
    """Examples in file order, and skipped turns by reason.

    `extra`: "also", the spellings SGD lists for a value; "service"; "seen", whether training has the service (None where its
    schema is not here); "kind", call or none. Raises TaskError."""
    path = next((p for s in SUFFIXES if (p := data_dir / f"{split}{s}").exists()), None)
    if path is None:
        there = sorted({p.name.split(".")[0] for p in data_dir.glob("*.jsonl*")})
        raise TaskError(f"--split {split}: no {split}.jsonl.xz in {data_dir}; choose from {', '.join(there) or 'nothing there'}")
    services = read_services(data_dir, split, seen)
    known = _known(data_dir)
    examples: list[Example] = []
    skipped: Counter[str] = Counter()
    for n, dialogue in read_lines(path, seen):
        _read_dialogue(path, n, dialogue, split, services, known, examples, skipped)
    return examples, skipped


def _known(data_dir: Path) -> frozenset[str] | None:
    try:
        return frozenset(read_services(data_dir, "train", Fingerprint()))
    except TaskError:
        return None


def _read_dialogue(
    path: Path,
    n: int,
    dialogue: Mapping[str, Any],
    split: str,
    services: Mapping[str, tuple[Function, ...]],
    known: frozenset[str] | None,
    examples: list[Example],
    skipped: Counter[str],
) -> None:
    turns: list[Turn] = []
    states: dict[str, Mapping[str, Sequence[str]]] = {}
    latest = ""
    missing = [name for name in field(path, n, dict(dialogue), "services") if name not in services]
    if missing:
        skipped["no-schema"] += 1
        return
    for number, turn in enumerate(dialogue["turns"]):
        for state in turn.get("state") or ():
            states[state["service"]], latest = state["slots"], state["service"]
        if turn["s"] == "S" and turns:
            id = f"{split}-{dialogue['id']}-{number}"
            chance = random.Random(int(hashlib.sha256(id.encode()).hexdigest()[:12], 16))
            made = turn.get("call") or []
            service = made[0]["service"] if made else latest
            if len({call["service"] for call in made}) > 1:
                skipped["several-services"] += 1
            elif made or (service and chance.random() < NONE_SHARE):
                offered = _offered(service, dialogue["services"], services, chance)
                by_name = {function.name: function for function in services[service]}
                reference = [
                    calls.Call(
                        call["method"],
                        {name: _value(_slot(by_name[call["method"]], name), value) for name, value in call["parameters"].items()},
                    )
                    for call in made
                ]
                also = {f"{c['method']}.{name}": list(v) for c in made for name, v in states.get(service, {}).items()}
                examples.append(
                    Example(
                        id,
                        written(turns),
                        Toolset(service, offered, TODAY),
                        service,
                        calls.write(reference),
                        split,
                        {"also": also, "service": service, "kind": "call" if made else "none",
                         "seen": None if known is None or split == "train" else service in known},
                    )
                )  # fmt: skip
        turns.append(Turn("user" if turn["s"] == "U" else "system", turn["u"]))


def _slot(function: Function, name: str) -> Mapping[str, Any]:
    schema: Mapping[str, Any] = function.parameters["properties"].get(name, {})
    return schema["anyOf"][0] if "anyOf" in schema else schema


def _offered(
    own: str, dialogue: Sequence[str], services: Mapping[str, tuple[Function, ...]], chance: random.Random
) -> tuple[Function, ...]:
    """The functions of the service, often with those of another of the dialogue or of a random one, shuffled."""
    found = list(services[own])
    if chance.random() < ANOTHER_SHARE:
        others = [name for name in dialogue if name != own] or [name for name in services if name != own]
        names = {function.name for function in found}
        found += [function for function in services[chance.choice(others)] if function.name not in names]
    chance.shuffle(found)
    return tuple(found)
