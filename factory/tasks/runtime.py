"""A task as a persona sees it: the prompt, constraint and parser of one question, exactly those an evaluation uses.

Does: bind a task to a card's dialect and to what is asked about (sql: a database), for `Persona.from_artifact`; judge answers
that a larger model gave, for `python -m agents.harvest`. Announced as the entry points `penknife.tasks`.
Does not: ask a model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from agents.artifact import Asked, card_hash
from agents.card import CalibrationEntry, Card, CardError
from agents.chat import ToolCall, ToolSpec
from factory.tasks import get_task
from factory.tasks.task import CanOverrule, Dialect, Example, HasCardData, HasForms, HasSummary, Task, TaskError

DATABASES_KEPT = 64
NEEDS = {"sql": ("a database", "db=FILE.sqlite"), "route": ("a set of labels", "labels=FILE"),
         "tools": ("functions", "functions=[…], or tools=[…] to have its calls run,")}  # fmt: skip
"""What each task answers about, and how that is given."""


def answerer(name: str, card: Card | None = None, **context: Any) -> TaskAnswerer:
    """The face of the task `name` for an artifact with this card; without one it speaks plainly.

    `context`, for sql: db=FILE.sqlite, or database= an open `Database`, and table=NAME, the one table or view of it that is asked
    about; all may also come with each question. A student that learned questions about single tables (its card says so) is asked
    in that form, about the file's only table or the one named. For route: labels=, a labels file, names, or the name of a set in
    the card, which alone is enough where it holds one; and false_alarms=0.05, the share of utterances in scope that may be called
    out of scope (default: whatever is likelier). Raises TaskError for an unknown task or context, CardError for a
    card of a newer version of the task.
    """
    task = get_task(name)
    if card is not None and card.task_version > task.version:
        raise CardError(
            f"{card.name}: made for version {card.task_version} of the task {name!r}, newer than the {task.version} of this "
            "program; update penknife"
        )
    form = task.learned_form(card) if isinstance(task, HasForms) else "general"
    bound = TaskAnswerer(name, task, card.dialect if card is not None else "plain", card, form, context)
    bound.opened({})
    return bound


@dataclass(frozen=True)
class TaskAnswerer:
    """See `agents.artifact.Answerer`."""

    name: str
    task: Task
    dialect: Dialect
    card: Card | None
    form: Literal["single", "general"] = "general"
    """How a database is shown; see `factory.tasks.sql.one_table`."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """What it was bound to when it was made."""
    _opened: OrderedDict[Any, Any] = field(default_factory=OrderedDict, compare=False, repr=False)

    @property
    def card_sha256(self) -> str | None:
        return card_hash(self.card) if self.card is not None else None

    @property
    def calibration(self) -> tuple[CalibrationEntry, ...]:
        return self.card.calibration if self.card is not None and self.dialect == self.card.dialect else ()

    def ask(self, text: str, **variables: Any) -> Asked:
        example = self._example(text, variables)
        judge = self.task.overrule(example, self.dialect, self.card, {**self.given, **variables}) if isinstance(
            self.task, CanOverrule) else None  # fmt: skip
        return Asked(
            self.task.messages(example, self.dialect),
            self.task.constraint(example, self.dialect),
            lambda completion: self.task.decode(example, completion, self.dialect),
            _tool_calls if self.name == "tools" else None,
            confidence=self.task.sure if isinstance(self.task, HasSummary) else None,
            reliability=self.card.reliability if self.card is not None and self.dialect == self.card.dialect else (),
            overrule=judge,
            alternatives=self.task.alternatives if judge is not None and isinstance(self.task, CanOverrule) else 0,
        )

    def with_tools(self, specs: Sequence[ToolSpec]) -> TaskAnswerer:
        """The same about a persona's own tools, where the task calls functions and was given no others."""
        if self.name != "tools" or self.given.get("functions") is not None:
            return self
        return replace(self, given={**self.given, "functions": tuple(specs)}, _opened=OrderedDict())

    def plain(self) -> TaskAnswerer:
        """A larger model that learned no form is asked in the general one: it may join, group and sort."""
        return replace(self, dialect="plain", form="general")

    def verify(self, question: str, answer: str) -> str:
        verdict = self.task.verify(self._example(question, {}), answer)
        return "ok" if verdict.ok else verdict.reason

    def opened(self, variables: dict[str, Any]) -> Any:
        """What a question is asked about, None when nothing was given; `variables` go before what was bound. Raises TaskError."""
        if isinstance(self.task, HasCardData):
            given = {**self.given, **variables}
            known = (self.dialect, *(sorted((name, repr(value)) for name, value in given.items())))
            return self._opened[known] if known in self._opened else self._keep(known, self.task.opened(self.card, given))
        replaced = {"db", "database"} if {"db", "database"} & set(variables) else set()
        variables = {**{k: v for k, v in self.given.items() if k not in replaced}, **variables}
        if self.name == "tools":
            return self._toolset(variables)
        if self.name != "sql":
            if set(variables) - {"context"}:
                raise TaskError(f"the task {self.name!r} knows no {', '.join(variables)}; give context=…")
            return variables.get("context")
        unknown = set(variables) - {"db", "database", "table"}
        if unknown:
            raise TaskError(
                f"the sql task knows no {sorted(unknown)[0]!r}; give db=FILE.sqlite, or database= one that is open, and "
                "table=NAME where one of its tables is meant"
            )
        place = variables.get("database") if variables.get("database") is not None else variables.get("db")
        if place is None:
            return None
        key = (place if variables.get("database") is not None else str(place), variables.get("table"), self.form)
        found = self._opened.get(key)
        if found is None:
            from factory.tasks.sql.database import Database
            from factory.tasks.sql.one_table import in_form

            whole = place if isinstance(place, Database) else Database.from_file(Path(str(place)))
            found = self._keep(key, in_form(whole, self.form, variables.get("table")))
        return found

    def _keep(self, key: Any, found: Any) -> Any:
        self._opened[key] = found
        if len(self._opened) > DATABASES_KEPT:
            self._opened.popitem(last=False)
        return found

    def _toolset(self, variables: dict[str, Any]) -> Any:
        from factory.tasks.tools.runtime import KNOWN, toolset

        key = tuple(str(variables.get(name)) if name == "today" else id(variables.get(name)) for name in KNOWN)
        if not variables.keys() <= set(KNOWN) or "today" not in variables or key not in self._opened:
            self._opened[key] = (variables.get("functions"), toolset(variables))
            if len(self._opened) > DATABASES_KEPT:
                self._opened.popitem(last=False)
        return self._opened[key][1]

    def _example(self, text: str, variables: dict[str, Any]) -> Example:
        context = self.opened(variables)
        if context is None:
            what, how = NEEDS.get(self.name, ("something", "context=…"))
            raise TaskError(
                f"the {self.name} persona answers about {what}, and none is given; give {how} when making or asking it"
            )
        return Example("question", text, context, str(getattr(context, "id", "")))


def _tool_calls(answer: str) -> tuple[ToolCall, ...]:
    from factory.tasks.tools.runtime import tool_calls

    return tool_calls(answer)
