"""Small functions and SGD files for tests of the tools task."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

from factory.tasks.task import Example
from factory.tasks.tools import calls
from factory.tasks.tools.functions import Toolset, read_tools

TODAY = dt.date(2019, 3, 1)
"""A Friday."""
SPECS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "bookTable",
            "description": "Book a table",
            "parameters": {
                "type": "object",
                "properties": {
                    "restaurant_name": {"type": "string"},
                    "party_size": {"type": "integer", "minimum": 1, "maximum": 12},
                    "date": {"type": "string", "format": "date"},
                    "time": {"type": "string", "format": "time"},
                    "outdoor_seating": {"type": "boolean", "default": False},
                },
                "required": ["restaurant_name", "party_size", "date"],
            },
        },
    },
    {
        "name": "send_mail",
        "description": "Send a mail",
        "parameters": {
            "type": "object",
            "properties": {
                "recipient_email": {"type": "string"},
                "subject": {"type": "string"},
                "priority": {"type": "string", "enum": ["low", "normal", "very high"], "default": "normal"},
                "budget": {"type": "number"},
            },
            "required": ["recipient_email", "subject"],
        },
    },
    {
        "name": "listMails",
        "description": "",
        "parameters": {"type": "object", "properties": {"date": {"type": "string", "format": "date"}}},
    },
]
FUNCTIONS = read_tools(SPECS, "specs")
TOOLSET = Toolset("office", FUNCTIONS, TODAY)


def example(question: str, *made: calls.Call, **extra: Any) -> Example:
    return Example("q", question, TOOLSET, "office", calls.write(made), "train", extra)


def call(name: str, **arguments: Any) -> calls.Call:
    return calls.Call(name, arguments)


SERVICES = [
    {
        "service_name": "Trains_1",
        "description": "",
        "slots": [
            {"name": "to_city", "description": "", "is_categorical": False, "possible_values": []},
            {"name": "journey_date", "description": "", "is_categorical": False, "possible_values": []},
            {"name": "seats", "description": "", "is_categorical": True, "possible_values": ["1", "2", "3"]},
            {"name": "refundable", "description": "", "is_categorical": True, "possible_values": ["True", "False"]},
            {"name": "fare_class", "description": "", "is_categorical": True, "possible_values": ["Value", "First Class"]},
        ],
        "intents": [
            {
                "name": "FindTrain",
                "description": "Find a train",
                "is_transactional": False,
                "required_slots": ["to_city", "journey_date"],
                "optional_slots": {"seats": "1", "refundable": "dontcare", "fare_class": "Value"},
                "result_slots": [],
            }
        ],
    },
    {
        "service_name": "Weather_1",
        "description": "",
        "slots": [{"name": "city", "description": "", "is_categorical": False, "possible_values": []}],
        "intents": [
            {"name": "GetWeather", "description": "", "is_transactional": False, "required_slots": ["city"],
             "optional_slots": {}, "result_slots": []}
        ],
    },
]  # fmt: skip


def _state(**slots: list[str]) -> list[dict[str, Any]]:
    return [{"service": "Trains_1", "intent": "FindTrain", "slots": slots, "req": []}]


def dialogue(number: int) -> dict[str, Any]:
    parameters = {"to_city": "San Francisco", "journey_date": "2019-03-04", "seats": "2", "refundable": "True"}
    called = [{"service": "Trains_1", "method": "FindTrain", "parameters": parameters, "n_results": 3}]
    slots = {"to_city": ["SF"], "journey_date": ["next Monday"], "seats": ["2"], "refundable": ["True"]}
    return {
        "id": f"1_{number:05d}",
        "services": ["Trains_1"],
        "turns": [
            {"s": "U", "u": f"I need a train for {number} things.", "state": _state()},
            {"s": "S", "u": "Where to, and when?"},
            {"s": "U", "u": "To SF next Monday, two refundable seats.", "state": _state(**slots)},
            {"s": "S", "u": "I found 3 trains.", "call": called},
            {"s": "U", "u": "Thanks.", "state": _state(**slots)},
            {"s": "S", "u": "Good bye."},
        ],
    }


def write_sgd(directory: Path, split: str, dialogues: int = 30, services: list[dict[str, Any]] | None = None) -> None:
    lines = "".join(json.dumps(dialogue(n)) + "\n" for n in range(dialogues))
    (directory / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    (directory / f"{split}_schema.json").write_text(json.dumps(SERVICES if services is None else services), encoding="utf-8")
