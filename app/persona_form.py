"""A persona as a form: checked, saved as the file that `Persona.from_file` reads, and as Python that does the same.

Does: offer tools from a fixed list, turn the form into a `PersonaFile`, write and read such files in a browser's own directory.
Does not: import what a user names: tools come from `TOOLS` alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from agents.budget import Budget
from agents.chat import ChatModel, Sampling
from agents.constrain import Constraint, ConstraintError, accepts, choice, json_schema, regex
from agents.persona import Persona
from agents.persona_file import PersonaFile, toml
from agents.tools import PersonaError
from app.places import inside

TOOLS = {"calculator": "agents.toolbox.calculator:calculate"}
"""What the form offers -> where it is imported from."""
Held = Literal["none", "one of", "pattern", "JSON schema"]
CONSTRAINTS: tuple[Held, ...] = ("none", "one of", "pattern", "JSON schema")


@dataclass(frozen=True)
class Draft:
    """The form. `held_to` is the constraint's text: lines of choices, a regex, or a JSON schema."""

    name: str = "desk"
    prompt: str = "Answer in one short sentence."
    model: str = ""
    description: str = ""
    tools: tuple[str, ...] = ()
    constraint: Held = "none"
    held_to: str = ""
    adapter: str = ""
    ms: float | None = None
    tokens: int | None = None
    max_tokens: int = 128
    temperature: float = 0.0
    think: int | None = field(default=None)


def to_file(draft: Draft) -> PersonaFile:
    """What is saved. Raises PersonaError, one sentence, for what cannot work."""
    if not draft.name.strip():
        raise PersonaError("a persona needs a name; give it one")
    unknown = [name for name in draft.tools if name not in TOOLS]
    if unknown:
        raise PersonaError(f"there is no tool {unknown[0]!r}; choose from {', '.join(TOOLS)}")
    budget = Budget(ms=draft.ms, tokens=draft.tokens) if draft.ms is not None or draft.tokens is not None else None
    try:
        return PersonaFile(
            name=draft.name.strip(),
            prompt=draft.prompt,
            model=draft.model or None,
            description=draft.description,
            tools=tuple(TOOLS[name] for name in draft.tools),
            adapter=draft.adapter or None,
            constraint=constraint_of(draft.constraint, draft.held_to),
            budget=budget,
            sampling=Sampling(max_tokens=draft.max_tokens, temperature=draft.temperature),
            think=draft.think,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise PersonaError(f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from None


def constraint_of(kind: str, text: str) -> Constraint | None:
    """The constraint a form means, compiled once to see that it can be. Raises PersonaError."""
    try:
        if kind == "none":
            return None
        if kind == "one of":
            made = choice([line.strip() for line in text.splitlines() if line.strip()])
        elif kind == "pattern":
            if not text:
                raise PersonaError("the pattern is empty; write a regular expression, such as [A-Z]{3}-[0-9]+")
            made = regex(text)
        else:
            made = json_schema(_schema(text))
        accepts(made, "")
        return made
    except ConstraintError as error:
        raise PersonaError(f"the constraint cannot be used: {' '.join(str(error).split())}") from None


def _schema(text: str) -> dict[str, Any]:
    try:
        read = json.loads(text)
    except ValueError as error:
        raise PersonaError(f"the JSON schema is not valid JSON: {error}") from None
    if not isinstance(read, dict):
        raise PersonaError(f'the JSON schema is {read!r:.40}; write an object, such as {{"type": "object"}}')
    return read


def to_draft(file: PersonaFile) -> Draft:
    """A saved persona as the form shows it; a tool that is not offered here is refused with a PersonaError."""
    offered = {address: name for name, address in TOOLS.items()}
    strange = [address for address in file.tools if address not in offered]
    if strange:
        raise PersonaError(f"{file.name!r} has the tool {strange[0]!r}, which this form does not offer; edit its file")
    kind, held_to = "none", ""
    if file.constraint is not None:
        kind = {"choice": "one of", "regex": "pattern", "json_schema": "JSON schema"}.get(file.constraint.kind, "none")
        held_to = "\n".join(json.loads(file.constraint.source)) if kind == "one of" else file.constraint.source
    return Draft(
        file.name, file.prompt, file.model or "", file.description, tuple(offered[one] for one in file.tools),
        kind, held_to, file.adapter or "", file.budget.ms if file.budget else None,  # type: ignore[arg-type]
        file.budget.tokens if file.budget else None, file.sampling.max_tokens, file.sampling.temperature, file.think,
    )  # fmt: skip


def to_toml(file: PersonaFile) -> str:
    """The file's text."""
    defaults = PersonaFile(name=file.name)
    values = {"name": file.name, "prompt": file.prompt}
    values |= {
        key: getattr(file, key)
        for key in PersonaFile.model_fields
        if key not in values and getattr(file, key) != getattr(defaults, key)
    }
    return toml(values)


def save(directory: Path, draft: Draft) -> Path:
    """Write the persona into `directory`. Raises PersonaError, PlaceError for a name that is no file's, OSError."""
    file = to_file(draft)
    directory.mkdir(parents=True, exist_ok=True)
    path = inside(directory, f"{file.name}.toml")
    path.write_text(to_toml(file), encoding="utf-8")
    return path


def saved(directory: Path) -> list[Path]:
    """Persona files there are, by name."""
    return sorted(directory.glob("*.toml")) if directory.is_dir() else []


def read(path: Path) -> Draft:
    """A saved persona. Raises PersonaError."""
    import tomllib

    try:
        return to_draft(PersonaFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError) as error:
        raise PersonaError(f"{path.name}: cannot be read as a persona ({str(error).splitlines()[0]})") from None


def made(draft: Draft, model: ChatModel) -> Persona:
    """The persona itself. Raises PersonaError."""
    from agents.persona_file import found

    file = to_file(draft)
    tools = [found(address, Path(f"{file.name}.toml")) for address in file.tools]
    return Persona(
        file.name, model, file.prompt, description=file.description, tools=tools, adapter=file.adapter,
        constraint=file.constraint, budget=file.budget, sampling=file.sampling, think=file.think,
    )  # fmt: skip


def snippet(draft: Draft) -> str:
    """Python that makes the same persona. Raises PersonaError."""
    file = to_file(draft)
    imports = ["Persona", "open_model"]
    more: list[str] = []
    lines = [f"    {file.name!r},", f"    open_model({(file.model or 'gguf:FILE.gguf')!r}),", f"    {file.prompt!r},"]
    if file.description:
        lines.append(f"    description={file.description!r},")
    if file.tools:
        more += [f"from {module} import {name}" for module, name in _addresses(file.tools)]
        lines.append(f"    tools=[{', '.join(name for _, name in _addresses(file.tools))}],")
    if file.adapter:
        lines.append(f"    adapter={file.adapter!r},")
    if file.constraint is not None:
        more.append("from agents.constrain import Constraint")
        lines.append(f"    constraint=Constraint(kind={file.constraint.kind!r}, source={file.constraint.source!r}),")
    if file.budget is not None:
        imports.append("Budget")
        lines.append(f"    budget=Budget({_arguments(file.budget)}),")
    if file.think is not None:
        lines.append(f"    think={file.think},")
    more.append("from agents.chat import Sampling")
    lines.append(f"    sampling=Sampling(max_tokens={file.sampling.max_tokens}, temperature={file.sampling.temperature!r}),")
    head = [f"from agents import {', '.join(sorted(imports))}", *sorted(more)]
    return "\n".join([*head, "", "persona = Persona(", *lines, ")", 'print(persona("…").text)']) + "\n"


def _addresses(addresses: Sequence[str]) -> list[tuple[str, str]]:
    return [(module, name) for module, _, name in (address.partition(":") for address in addresses)]


def _arguments(budget: Budget) -> str:
    given = budget.model_dump(exclude_none=True)
    return ", ".join(f"{key}={value!r}" for key, value in given.items())
