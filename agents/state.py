"""A graph's state: a pydantic model of the user's, handed to nodes as copies and changed by what they return.

Does: copy a state cheaply, find what a node changed, validate only that, merge what parallel nodes wrote through the reducers
declared with `Annotated[list[str], operator.add]`, and write changes as JSON and read them back.
Does not: see changes deep inside a value (`s.order.lines.append(...)` on a nested model): assign the field, or return it.
A list, dict or set field itself may be changed in place: every node gets its own.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from agents.route import GraphError

Reducer = Callable[[Any, Any], Any]
_set = object.__setattr__
_EXACT = (int, str, bool, type(None))
_GROWING = (list, dict, set)
_GROWERS: dict[type, tuple[Any, ...]] = {list: (None, operator.add), dict: (None, operator.or_), set: (None, operator.or_)}


@dataclass(slots=True)
class Changes:
    """What one node did: fields it set, and what it added to fields (list tails, dict entries, set members, reducer operands)."""

    assigned: dict[str, Any] = field(default_factory=dict)
    added: dict[str, Any] = field(default_factory=dict)


def grow(old: Any, more: Any) -> Any:
    """A list, dict or set with `more` in it; changed in place."""
    if type(old) is list:
        old.extend(more)
    else:
        old.update(more)
    return old


def own(value: Any) -> Any:
    """A list, dict or set of one's own with the same content; other values as they are."""
    return value.copy() if type(value) in _GROWING else value


def said(error: ValidationError) -> str:
    """A pydantic error as one clause: where, what was given, what is wanted."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where + ' = ' if where else ''}{first.get('input')!r:.80}: {first['msg']}{more}"


class Fields:
    """What a graph needs to know about a state class. One per class (`fields_of`)."""

    def __init__(self, cls: type[BaseModel]) -> None:
        self.cls = cls
        self.names = tuple(cls.model_fields)
        self._names = frozenset(self.names)
        self.reducers: dict[str, Reducer] = {}
        self._plain: set[str] = set()
        self._exact: dict[str, tuple[Any, ...]] = {}
        self._adapters: dict[str, TypeAdapter[Any]] = {}
        decorators = cls.__pydantic_decorators__
        watched = {name for one in decorators.field_validators.values() for name in one.info.fields}
        self.frozen = bool(cls.model_config.get("frozen"))
        self.unwritable = {name for name, info in cls.model_fields.items() if info.frozen}
        self._private = bool(cls.__private_attributes__)
        for name, info in cls.model_fields.items():
            functions = [one for one in info.metadata if callable(one) and not isinstance(one, type)]
            if len(functions) > 1:
                raise GraphError(f"{cls.__name__}.{name} declares {len(functions)} reducers in Annotated: keep one")
            if functions:
                self.reducers[name] = functions[0]
            if len(functions) == len(info.metadata) and not decorators.model_validators and not {name, "*"} & watched:
                self._plain.add(name)
                kinds = get_args(info.annotation) if get_origin(info.annotation) in (Union, UnionType) else (info.annotation,)
                if all(kind in _EXACT for kind in kinds) and not any(key.startswith("str_") for key in cls.model_config):
                    self._exact[name] = kinds

    def adapter(self, name: str) -> TypeAdapter[Any]:
        if name not in self._adapters:
            info = self.cls.model_fields[name]
            rest = tuple(one for one in info.metadata if not callable(one) or isinstance(one, type))
            kept: Any = Annotated[(info.annotation, *rest)] if rest else info.annotation
            self._adapters[name] = TypeAdapter(kept)
        return self._adapters[name]

    def verify(self, state: BaseModel) -> None:
        """Raise GraphError when an instance made without validation does not fit; classes with own validators are trusted."""
        if len(self._plain) == len(self.names):
            try:
                self.cls.__pydantic_validator__.validate_python(state.__dict__, by_name=True)
            except ValidationError as error:
                raise GraphError(f"the state does not fit {self.cls.__name__}: {said(error)}") from None

    def copy(self, state: BaseModel) -> BaseModel:
        """A state of the node's own: same values, its lists, dicts and sets copied one level."""
        if self._private:
            new = state.model_copy()
            values = new.__dict__
        else:
            new = self.cls.__new__(self.cls)
            values = state.__dict__.copy()
            _set(new, "__dict__", values)
            _set(new, "__pydantic_fields_set__", state.__pydantic_fields_set__.copy())
            _set(new, "__pydantic_extra__", state.__pydantic_extra__)
            _set(new, "__pydantic_private__", None)
        for name, value in values.items():
            if type(value) in _GROWING:
                values[name] = value.copy()
        return new

    def overlaid(self, state: BaseModel, private: Mapping[str, Any]) -> BaseModel:
        """A copy that shows one node its own inputs."""
        new = self.copy(state)
        for name in private:
            self._known(name)
        self._checked(new, private)
        return new

    def _known(self, name: str) -> None:
        if name not in self._names:
            raise GraphError(f"unknown state field {name!r}; {self.cls.__name__} has {', '.join(self.names)}")

    def difference(self, base: BaseModel, new: BaseModel) -> Changes:
        """What has to be done to `base` to make it `new`."""
        changes = Changes({}, {})
        before, after = base.__dict__, new.__dict__
        for name in self.names:
            a, b = before[name], after[name]
            if a is b:
                continue
            kind = type(b)
            if kind is type(a) and kind in _GROWING:
                if self.reducers.get(name) in _GROWERS[kind]:
                    if kind is list:
                        n = len(a)
                        if len(b) >= n and (b if len(b) == n else b[:n]) == a:
                            if len(b) > n:
                                changes.added[name] = b[n:]
                            continue
                    elif kind is dict:
                        if a.keys() <= b.keys():
                            if more := {k: v for k, v in b.items() if k not in a or (a[k] is not v and a[k] != v)}:
                                changes.added[name] = more
                            continue
                    elif a <= b:
                        if len(b) > len(a):
                            changes.added[name] = b - a
                        continue
                if a == b:
                    continue
            elif kind is type(a) and kind in (int, str, float, bool) and a == b:
                continue
            changes.assigned[name] = b
        return changes

    def returned(self, values: Mapping[str, Any], changes: Changes) -> None:
        """Add what a node returned as a dict: a reducer's operand where the field has a reducer, else the new value."""
        for name, value in values.items():
            self._known(name)
            if name in self.reducers:
                changes.assigned.pop(name, None)
                changes.added[name] = value
            else:
                changes.added.pop(name, None)
                changes.assigned[name] = value

    def validate(self, base: BaseModel, scratch: BaseModel, changes: Changes) -> None:
        """Check and coerce the changes to `base` alone; `scratch` is a copy that may be spoilt. Raises GraphError."""
        if self.unwritable:
            for name in self.unwritable & (changes.assigned.keys() | changes.added.keys()):
                raise GraphError(f"{self.cls.__name__}.{name} is frozen: no node can write it")
        if changes.assigned:
            checked = self._checked(scratch, changes.assigned)
            changes.assigned = {name: own(checked[name]) for name in changes.assigned}
        for name, more in changes.added.items():
            reducer, old = self.reducers.get(name), base.__dict__[name]
            if reducer not in _GROWERS.get(type(old), ()):
                continue
            if name in self._plain:
                try:
                    changes.added[name] = self.adapter(name).validate_python(more)
                except ValidationError as error:
                    raise GraphError(f"{self.cls.__name__} does not take {name} += {said(error)}") from None
            else:
                self._checked(scratch, {name: grow(own(old), more)})

    def _checked(self, scratch: BaseModel, values: Mapping[str, Any]) -> dict[str, Any]:
        try:
            if self.frozen:
                whole = self.cls.model_validate({**scratch.__dict__, **values}, by_name=True)
                scratch.__dict__.update(whole.__dict__)
            else:
                check = self.cls.__pydantic_validator__.validate_assignment
                for name, value in values.items():
                    if type(value) in self._exact.get(name, ()):
                        scratch.__dict__[name] = value
                    else:
                        check(scratch, name, value, by_name=True)
        except ValidationError as error:
            raise GraphError(f"{self.cls.__name__} does not take {said(error)}") from None
        return scratch.__dict__

    def merge(self, state: BaseModel, written: list[tuple[str, Changes]]) -> None:
        """Apply what the nodes of one round wrote, in order, to `state` in place. Raises GraphError when they contradict."""
        if len(written) > 1:
            self._contradictions(written)
        for _node, changes in written:
            values = state.__dict__
            state.__pydantic_fields_set__.update(changes.assigned, changes.added)
            for name, value in changes.assigned.items():
                values[name] = own(value)
            for name, more in changes.added.items():
                old, reducer = values[name], self.reducers.get(name)
                if reducer in _GROWERS.get(type(old), ()):
                    grow(old, more)
                elif reducer is None:
                    raise GraphError(f"{self.cls.__name__}.{name} is {old!r:.40}: nothing can be added to it")
                else:
                    try:
                        combined = reducer(own(old), more)
                    except Exception as error:
                        where = f"{self.cls.__name__}.{name}"
                        raise GraphError(
                            f"the reducer of {where} cannot combine {old!r:.40} and {more!r:.40}: {error}"
                        ) from error
                    self._checked(state, {name: combined})

    def _contradictions(self, written: list[tuple[str, Changes]]) -> None:
        writers: dict[str, str] = {}
        for node, changes in written:
            for name in (*changes.assigned, *changes.added):
                if name in writers and (name not in self.reducers or name in changes.assigned):
                    raise GraphError(
                        f"nodes {writers[name]!r} and {node!r} ran in parallel and both wrote {self.cls.__name__}.{name}: "
                        + (
                            f"return {{{name!r}: ...}} with what the reducer combines, not a whole state"
                            if name in self.reducers
                            else f"declare a reducer, {name}: Annotated[..., operator.add], or let one of them write it"
                        )
                    )
                writers[name] = node
        for node, changes in written:
            for name in changes.assigned:
                if name in self.reducers and writers[name] != node:
                    raise GraphError(
                        f"nodes {node!r} and {writers[name]!r} ran in parallel and both wrote {self.cls.__name__}.{name}, one of "
                        f"them as a whole: return {{{name!r}: ...}} with what the reducer combines"
                    )

    def restore(self, body: Mapping[str, Any]) -> Changes:
        """The Changes of a stored step: {"s": {field: value}, "a": {field: value}}."""
        changes = Changes()
        for name, value in body.get("s", {}).items():
            changes.assigned[name] = self.loaded(name, value)
        for name, value in body.get("a", {}).items():
            try:
                changes.added[name] = self.loaded(name, value)
            except GraphError:
                if name not in self.reducers:
                    raise
                changes.added[name] = value
        return changes

    def loaded(self, name: str, value: Any) -> Any:
        """One field from its JSON value."""
        if name not in self.cls.model_fields:
            raise GraphError(
                f"the stored state has a field {name!r} that {self.cls.__name__} lacks: it was written by another graph"
            )
        try:
            return self.adapter(name).validate_json(json.dumps(value))
        except ValidationError as error:
            raise GraphError(f"the stored {self.cls.__name__}.{name} no longer fits the class: {said(error)}") from None


@lru_cache(maxsize=256)
def fields_of(cls: type[BaseModel]) -> Fields:
    """The Fields of a state class, made once."""
    return Fields(cls)
