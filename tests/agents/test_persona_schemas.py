"""Calls of models with random weights over real tool schemas: every one is whole, valid and conforms to its schema.

The signatures are seal_tools' (Apache-2.0): names, types, required and optional arguments as published.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from agents.calling import call_schema, grammar, read
from agents.chat import Message, Request, Sampling, ToolSpec, answer
from agents.models import open_model
from tests.agents.gguf_models import NEEDS_LLAMA, to_gguf

TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "list": "array", "dict": "object"}


def specs(shared_data: Path, n: int) -> list[ToolSpec]:
    """The n signatures with the most kinds of argument, so that numbers, flags, lists and objects all occur."""
    with lzma.open(shared_data / "seal_tools" / "tool.jsonl.xz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows.sort(
        key=lambda row: (-len({one["type"] for one in row["parameters"].values()}), -len(row["parameters"]), row["api_name"])
    )
    made = {}
    for row in rows:
        properties = {}
        for name, one in row["parameters"].items():
            kind = TYPES.get(one["type"].split("[")[0].lower())
            properties[name] = {"type": kind, "description": one["description"]} if kind else {"type": "string"}
            if kind == "array":
                properties[name]["items"] = {"type": "string"}
        required = [name for name in row["required"] if name in properties]
        schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        if row["api_name"].isidentifier():
            made.setdefault(
                row["api_name"], ToolSpec(name=row["api_name"], description=row["api_description"], parameters=schema)
            )
        if len(made) == n:
            break
    return list(made.values())


def conforms(value: Any, schema: dict[str, Any]) -> bool:
    """A check of the schemas above that shares nothing with the grammar engine."""
    kind = schema.get("type")
    if kind == "object":
        properties = schema.get("properties")
        if not isinstance(value, dict) or not set(schema.get("required", ())) <= value.keys():
            return False
        return properties is None or (
            value.keys() <= properties.keys() and all(conforms(v, properties[k]) for k, v in value.items())
        )
    if kind == "array":
        return isinstance(value, list) and all(conforms(one, schema.get("items", {})) for one in value)
    if kind == "boolean":
        return isinstance(value, bool)
    if kind in ("integer", "number"):
        return isinstance(value, int if kind == "integer" else int | float) and not isinstance(value, bool)
    return isinstance(value, str) if kind == "string" else True


def generate(llama: Any, tools: list[ToolSpec], n: int, per_request: int) -> tuple[int, int]:
    """(valid and conforming calls, of how many). Each request may call one of `per_request` tools; half are greedy."""
    requests, names = [], []
    for i in range(n):
        several = [tools[(i + k * 7) % len(tools)] for k in range(per_request)]
        constraint = grammar(several, answer={"type": "null"}, max_chars=12)
        heat = 0.0 if i % 2 else 1.0
        prompt = (Message(role="user", content=f"{i}: {several[0].description}"[:60]),)
        requests.append(
            Request(messages=prompt, constraint=constraint, sampling=Sampling(temperature=heat, seed=i, max_tokens=460))
        )
        names.append({tool.name: tool for tool in several})
    good = 0
    for reply, known in zip(answer(llama, requests), names):
        assert reply.stop_reason == "stop", (reply.stop_reason, reply.error, reply.text[-80:])
        said = read(reply, frozenset(known))
        assert said is not None
        if not said.calls:
            good += json.loads(reply.text) == {"answer": None}
            continue
        call, schema = said.calls[0], known[said.calls[0].name].parameters
        jsonschema.validate(call.arguments, schema)
        good += conforms(call.arguments, schema)
    return good, n


def test_random_weights_write_only_valid_calls(llama: Any, shared_data: Path) -> None:
    tools = specs(shared_data, 50)
    assert len(tools) == 50 and {one["type"] for tool in tools for one in tool.parameters["properties"].values()} >= {
        "string",
        "integer",
    }
    assert generate(llama, tools, 50, 3) == (50, 50)


@pytest.fixture(scope="module")
def on_onnx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("onnxruntime_genai", reason="pip install 'penknife[onnx]'")
    from export.onnx import export
    from tests.export.onnx_here import build_here
    from tests.export.tiny_families import make_family

    with pytest.MonkeyPatch.context() as patch:
        build_here(patch)
        made = export(make_family("smollm2", tmp_path_factory.mktemp("onnx") / "model", seed=3), precision="fp32", gate=False)
    model = open_model(f"onnx:{made.path}", threads=1)
    yield model
    model.close()


@pytest.fixture(scope="module")
def on_gguf(model_dir: Path) -> Iterator[Any]:
    pytest.importorskip("llama_cpp", reason=NEEDS_LLAMA)
    model = open_model(str(to_gguf(model_dir, "Q8_0")), threads=1)
    yield model
    model.close()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["llama", "on_gguf", "on_onnx"])
def test_a_thousand_random_calls_over_fifty_schemas(backend: str, request: pytest.FixtureRequest, shared_data: Path) -> None:
    good, n = generate(request.getfixturevalue(backend), specs(shared_data, 50), 1000, 3)
    assert (good, n) == (1000, 1000)


def test_every_schema_compiles_and_is_bounded(shared_data: Path) -> None:
    from agents.constrain import accepts, json_schema

    for tool in specs(shared_data, 50):
        schema = call_schema(tool, 20)
        assert not accepts(json_schema(schema), "{}")
        for one in schema["properties"]["arguments"]["properties"].values():
            assert one["type"] != "string" or one["maxLength"] == 20


def test_references_nullables_and_enums_survive_bounding() -> None:
    from enum import Enum

    from pydantic import BaseModel

    from agents.constrain import accepts
    from agents.tools import tool

    class Color(Enum):
        RED = "red"

    class Line(BaseModel):
        sku: str
        price: float | None = None

    @tool
    def order(lines: list[Line], color: Color = Color.RED, note: str | None = None) -> str:
        return ""

    made = grammar([order.spec], max_chars=5)
    assert made is not None
    for arguments, fine in [
        ('{"lines":[{"sku":"a","price":1.5}],"color":"red","note":null}', True),
        ('{"lines":[]}', True),
        ('{"lines":[{"sku":"a","price":null}]}', True),
        ('{"lines":[{"sku":"abcdef"}]}', False),
        ('{"lines":[{"price":1}]}', False),
        ('{"lines":[],"color":"blue"}', False),
        ('{"lines":[],"other":1}', False),
        ('{"lines":[{"sku":"a","price":1.12345678}]}', False),
    ]:
        assert accepts(made, f'{{"name":"order","arguments":{arguments}}}') is fine, arguments
