"""Personas as files: TOML with a prompt and settings, read and written.

Does: read `[persona]` tables, refuse unknown keys with the list of known ones, import tools named as "module:function", open the
model or artifact the file names.
Does not: say what only code can (guards, approve, a task bound to an object).

    name = "desk"
    prompt = "Answer order questions."
    model = "gguf:runs/sql/model/sql-q8_0.gguf"       # or given: Persona.from_file(path, model=small)
    tools = ["shop.orders:lookup"]
    output = "shop.orders:Invoice"
    think = 32
    [budget]
    ms = 1500
    [sampling]
    max_tokens = 128
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from agents.budget import Budget
from agents.chat import ChatModel, Sampling
from agents.constrain import Constraint
from agents.history import Overflow
from agents.tools import PersonaError, Tool


class PersonaFile(BaseModel):
    """What a persona file may say; the names are Persona's own arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    prompt: str = ""
    model: str | None = None
    description: str = ""
    tools: tuple[str, ...] = ()
    output: str | None = None
    routes: tuple[str, ...] = ()
    adapter: str | None = None
    constraint: Constraint | None = None
    budget: Budget | None = None
    sampling: Sampling = Sampling()
    think: int | None = None
    overflow: Overflow = "refuse"
    max_rounds: int = 8
    max_chars: int = 512
    read_only: bool = False


def load(path: Path, model: ChatModel | None, tools: Sequence[Any]) -> tuple[str, ChatModel, str, dict[str, Any]]:
    """(name, model, prompt, further arguments) of the file. Raises PersonaError, or ModelError from opening its model."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PersonaError(f"{path}: cannot be read ({error.strerror}); give a persona file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PersonaError(f"{path}: not valid TOML ({error})") from None
    for key in raw:
        if key not in PersonaFile.model_fields:
            near = difflib.get_close_matches(key, PersonaFile.model_fields, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise PersonaError(f"{path}: unknown setting {key!r}; {hint}known ones: {', '.join(PersonaFile.model_fields)}")
    try:
        read = PersonaFile.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PersonaError(f"{path}: {where}: {first['msg'].lower()}") from None
    if model is None:
        if read.model is None:
            raise PersonaError(f"{path}: names no model; add model = …, or give one: Persona.from_file(path, model=…)")
        from agents.models import open_model

        model = open_model(read.model)
    given = {name: getattr(read, name) for name in PersonaFile.model_fields if name not in ("name", "prompt", "model")}
    given["tools"] = [*(found(one, path) for one in read.tools), *tools]
    given["output"] = found(read.output, path) if read.output is not None else None
    return read.name, model, read.prompt, given


def save(name: str, model: ChatModel, prompt: str, given: Mapping[str, Any], path: Path) -> Path:
    """Write a persona whole or not at all. Raises PersonaError for what a file cannot say."""
    for key in ("guards", "approve", "task"):
        if given.get(key):
            raise PersonaError(f"{name!r} has {key}, which a file cannot say; leave it out, or keep this persona in code")
    adapter = given.get("adapter")
    if adapter is not None and not isinstance(adapter, str | Path):
        raise PersonaError(f"{name!r} has adapters with scales, which a file cannot say; keep this persona in code")
    values: dict[str, Any] = {"name": name, "prompt": prompt, "model": getattr(model, "spec", None) or model.name}
    defaults = PersonaFile(name=name)
    for key in PersonaFile.model_fields:
        if key in values or key not in given:
            continue
        value = given[key]
        if key == "tools":
            value = tuple(address(one) for one in value)
        elif key == "output" and value is not None:
            value = address(value)
        elif key == "adapter" and value is not None:
            value = str(value)
        if value != getattr(defaults, key) and not (key in ("tools", "routes") and not value):
            values[key] = value
    handle, temporary = tempfile.mkstemp(prefix=".persona-", suffix=".tmp", dir=path.parent)
    place = Path(temporary)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(toml(values))
        place.chmod(0o644)
        place.replace(path)
    except BaseException:
        place.unlink(missing_ok=True)
        raise
    return path


def toml(values: Mapping[str, Any]) -> str:
    """Flat values, then one table for each pydantic object. Strings are TOML basic strings, which JSON strings are too."""
    plain = {key: value for key, value in values.items() if not isinstance(value, BaseModel)}
    lines = [f"{key} = {_value(value)}" for key, value in plain.items()]
    for key, value in values.items():
        if isinstance(value, BaseModel):
            lines += ["", f"[{key}]"]
            lines += [f"{k} = {_value(v)}" for k, v in value.model_dump(exclude_defaults=True).items()]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def address(thing: Any) -> str:
    """ "module:name" of a tool, function or class. Raises PersonaError for one that cannot be imported by it."""
    inner = thing.fn if isinstance(thing, Tool) else thing
    module, name = getattr(inner, "__module__", None), getattr(inner, "__qualname__", "")
    if not module or module == "__main__" or not name.replace(".", "").isidentifier():
        raise PersonaError(f"{thing!r:.80} cannot be named in a file; define it at the top of a module that can be imported")
    return f"{module}:{name}"


def found(where: str, path: Path) -> Any:
    """What "module:name" names. Raises PersonaError."""
    module, mark, name = where.partition(":")
    if not mark:
        raise PersonaError(f"{path}: {where!r} names nothing; write it like package.module:function")
    try:
        thing: Any = importlib.import_module(module)
        for part in name.split("."):
            thing = getattr(thing, part)
    except (ImportError, AttributeError) as error:
        raise PersonaError(f"{path}: {where!r} cannot be found ({error})") from None
    return thing
