"""Open a model from one line of text, whatever runs it.

Does: tell the kinds of spec apart, refuse what cannot work before anything is loaded, hand the rest to the backend's module.
Does not: load weights or open connections itself; backends are imported when one is opened.

    open_model("runs/sql/model")                        HF directory, or a peft adapter directory (its base is found by itself)
    open_model("hf:Qwen/Qwen2.5-0.5B-Instruct")         hub name (or directory)
    open_model("gguf:runs/sql/model/sql-q8_0.gguf")     GGUF file, run by llama.cpp; opened again, it is shared
    open_model("onnx:runs/sql/model/onnx")              a directory export.onnx wrote
    open_model("http://localhost:8000/v1#qwen")         OpenAI-compatible server; several, comma-separated, share the load
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from agents.chat import ChatModel, ModelError

KINDS = "a model or adapter directory, a .gguf file, an ONNX directory, hf:NAME, http://host/v1#name"

Options = TypeVar("Options", bound=BaseModel)


def open_model(spec: str, **options: Any) -> ChatModel:
    """The model `spec` names. `options` are the fields of the backend's options class (`HfOptions`, `LlamaCppOptions`, …).

    Raises ModelError, one sentence, for an unknown kind or option, a missing file, or weights that are not safetensors.
    """
    kind, _, rest = spec.partition(":")
    if kind in ("http", "https"):
        from agents.models.http import HttpModel, HttpOptions

        return HttpModel(spec, parse_options(HttpOptions, options, spec))
    suffix = Path(spec).suffix.lower().lstrip(".")
    if kind == "gguf" or suffix == "gguf":
        from agents.models.llama_cpp import LlamaCppModel, LlamaCppOptions

        return LlamaCppModel.open(rest if kind == "gguf" else spec, parse_options(LlamaCppOptions, options, spec))
    if kind == "onnx" or suffix == "onnx" or (Path(spec).is_dir() and any(Path(spec).glob("*.onnx"))):
        from agents.models.onnx import OnnxModel, OnnxOptions

        return OnnxModel.open(spec, parse_options(OnnxOptions, options, spec))
    if kind == "hf" or Path(spec).is_dir():
        from agents.models.hf import HfOptions, TransformersModel

        return TransformersModel.open(rest if kind == "hf" else spec, parse_options(HfOptions, options, spec))
    raise ModelError(f"{spec!r} is neither a directory nor a kind of model this program knows; give {KINDS}")


def parse_options(cls: type[Options], values: dict[str, Any], spec: str) -> Options:
    """Options of a backend. Raises ModelError with the known names, or with what is wrong with a value."""
    unknown = [name for name in values if name not in cls.model_fields]
    if unknown:
        near = difflib.get_close_matches(unknown[0], cls.model_fields, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ModelError(f"{spec}: unknown option {unknown[0]!r}; {hint}known ones: {', '.join(sorted(cls.model_fields))}")
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ModelError(f"{spec}: option {name} cannot be {first['input']!r}: {first['msg'].lower()}") from None
