"""The form of a distillation, made from its settings: every field of `DistillSettings` with its docstring, default and limits.

Does: describe the fields for any screen, turn what was filled in into settings with the same errors as the command line, give
the commands for the plan and the run.
Does not: draw, look at data or hardware (the plan does, in a process of its own), or hold a setting's meaning.

    form_fields()                                        # what to draw
    settings = settings_from({"minutes": 1.0, "examples": 2000}, "tiny", Path("runs"))
"""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from app.run_files import OWN
from factory.rundir import NAME_LENGTH, default_path
from factory.settings import DataSettings, DistillSettings, SettingsError, StudentSettings, build, choices, to_toml

Kind = Literal["choice", "switch", "whole", "number", "text"]

ELSEWHERE = frozenset({"out", "dry_run", "db", "questions"})
"""Fields the screen asks for in its own way: a name below the runs, a button, uploads."""
FIRST = ("task", "teacher", "student", "method", "minutes", "examples")
"""Fields a first run is likely to change, shown before the others."""
GROUPS: dict[type[BaseModel], str] = {
    DataSettings: "Data",
    StudentSettings: "Student and training",
    DistillSettings: "Teacher and method",
}
SETTINGS_FILE = "settings.toml"
COMMAND = "the form"


@dataclass(frozen=True)
class FormField:
    """One setting as a screen needs it."""

    name: str
    label: str
    kind: Kind
    help: str
    default: Any
    optional: bool
    """whether it may be left empty: the command then decides by itself"""
    choices: tuple[Any, ...] = ()
    """of a choice: all there are; of a text: what to suggest"""
    low: float | None = None
    high: float | None = None
    group: str = ""
    first: bool = False


def form_fields(cls: type[BaseModel] = DistillSettings) -> list[FormField]:
    """Every setting but those in ELSEWHERE, in the order they are declared."""
    return [_field(cls, name) for name in cls.model_fields if name not in ELSEWHERE]


def _field(cls: type[BaseModel], name: str) -> FormField:
    field = cls.model_fields[name]
    types_ = [part for part in _parts(field.annotation) if part is not type(None)]
    optional = field.default is None
    allowed = choices(field.annotation)
    kind: Kind = "text"
    if bool in types_:
        kind = "choice" if optional else "switch"
        allowed = (True, False) if optional else ()
    elif allowed:
        kind = "choice"
    elif int in types_:
        kind = "whole"
    elif float in types_:
        kind = "number"
    low = [limit for mark in field.metadata for key in ("ge", "gt") if (limit := getattr(mark, key, None)) is not None]
    high = [limit for mark in field.metadata for key in ("le", "lt") if (limit := getattr(mark, key, None)) is not None]
    return FormField(
        name, name.replace("_", " "), kind, field.description or "", field.default, optional, allowed or suggestions(name),
        float(low[0]) if low else None, float(high[0]) if high else None, _group(cls, name), name in FIRST,
    )  # fmt: skip


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _group(cls: type[BaseModel], name: str) -> str:
    """The heading of the class that declares a field; a class that is not known here is its own heading."""
    owner = next(base for base in cls.__mro__ if name in getattr(base, "__annotations__", {}))
    return GROUPS.get(owner, owner.__name__)


def suggestions(name: str) -> tuple[str, ...]:
    """Values worth offering for a setting that takes any text."""
    if name == "task":
        from factory.tasks import TASKS

        return tuple(sorted(TASKS))
    if name == "student":
        from factory.scratch import SCRATCH
        from factory.student import STUDENTS

        return (*(f"scratch:{size}" for size in SCRATCH), *STUDENTS)
    if name == "teacher":
        from factory.teacher import TEACHERS

        return ("recorded", "templates", *TEACHERS)
    return ()


def settings_from(values: Mapping[str, Any], name: str, root: Path) -> DistillSettings:
    """Settings from what was filled in; None and "" mean left out. The run is called `name` and lies below `root`.

    Raises SettingsError with the command line's own sentence.
    """
    given = {key: value for key, value in values.items() if value is not None and value != ""}
    functions = given.get("functions")
    if functions and not Path(str(functions)).is_file():
        raise SettingsError(f"functions: {functions!r} is no file; give a JSON file (code is not imported for a page)")
    settings = build(DistillSettings, given, COMMAND)
    return settings.model_copy(update={"out": root.resolve() / run_name(name, settings)})


def run_name(name: str, settings: DistillSettings) -> str:
    """A name for a directory below the runs; empty: the one the command line would choose. Raises SettingsError."""
    if not name.strip():
        return default_path(settings.task, settings.student, settings.teacher).name
    name = name.strip()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or len(name) > NAME_LENGTH or name == OWN:
        raise SettingsError(
            f"{COMMAND}: name cannot be {name[:40]!r}: give up to {NAME_LENGTH} letters, digits, dots and dashes, "
            f"beginning with a letter or digit, and not {OWN!r}"
        )
    return name


def changed(settings: DistillSettings) -> dict[str, Any]:
    """Settings that differ from their defaults, in plain JSON values."""
    values = settings.model_dump(mode="json")
    defaults = {name: field.default for name, field in DistillSettings.model_fields.items()}
    return {name: value for name, value in values.items() if value != defaults[name]}


def command_line(settings: DistillSettings) -> str:
    """The command that does the same in a shell."""
    words = ["python", "-m", "factory.distill"]
    for name, value in changed(settings).items():
        flag = name.replace("_", "-")
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return shlex.join(words)


def fingerprint(settings: DistillSettings) -> str:
    """Names these settings: a plan belongs to the settings it was made for."""
    return hashlib.sha256(to_toml(settings).encode()).hexdigest()[:16]


def plan_job(settings: DistillSettings) -> tuple[list[str], dict[str, str]]:
    """(command, files) of the dry run, for `Jobs.start`."""
    argv, files = run_job(settings)
    return [*argv, "--dry-run"], files


def run_job(settings: DistillSettings) -> tuple[list[str], dict[str, str]]:
    """(command, files) of the run itself."""
    argv = [sys.executable, "-m", "factory.distill", "--config", f"{{job}}/{SETTINGS_FILE}"]
    return argv, {SETTINGS_FILE: to_toml(settings)}


def resume_job(module: str, run_dir: Path) -> list[str]:
    """The command that takes up a run where it was: its own settings, its own place."""
    return [sys.executable, "-m", module, "--config", str(run_dir / "config.toml"), "--out", str(run_dir)]
