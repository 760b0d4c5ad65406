"""Layout of the form of a distillation: its fields, uploads with what is in them, and the plan.

Does: draw what `app.make_form` and `app.uploads` describe, give back what was filled in.
Does not: know what a setting means, or start a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from app import uploads, view
from app.jobs import RUNNING, Job, Jobs
from app.make_form import FormField

AUTO = "by itself"


def show_fields(fields: Sequence[FormField], columns: int = 2) -> dict[str, Any]:
    """Fields in columns; what was filled in by name."""
    filled = {}
    for at in range(0, len(fields), columns):
        for place, field in zip(st.columns(columns), fields[at : at + columns]):
            with place:
                filled[field.name] = _field(field)
    return filled


def _field(field: FormField) -> Any:
    label, key, about = field.label.capitalize(), f"make-{field.name}", field.help or None
    match field.kind:
        case "switch":
            return st.toggle(label, bool(field.default), key=key, help=about)
        case "choice":
            offered = [None, *field.choices] if field.optional else list(field.choices)
            return st.selectbox(label, offered, offered.index(field.default), format_func=_shown, key=key, help=about)
        case "whole":
            low = None if field.low is None else int(field.low)
            high = None if field.high is None else int(field.high)
            return st.number_input(label, low, high, field.default, 1, key=key, help=about, placeholder=AUTO)
        case "number":
            return st.number_input(
                label, field.low, field.high, field.default, format="%g", key=key, help=about, placeholder=AUTO
            )
        case _ if field.choices:
            offered = list(field.choices)
            at = offered.index(field.default) if field.default in offered else None
            return st.selectbox(label, offered, at, key=key, help=about, accept_new_options=True)
        case _:
            return st.text_input(label, field.default or "", key=key, help=about, max_chars=500, placeholder=AUTO)


def _shown(value: Any) -> str:
    if value is None:
        return AUTO
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def show_uploads(root: Path, task: str) -> dict[str, Any]:
    """One's own database and questions, kept, looked into and chosen; "db" and "questions" of the settings."""
    chosen: dict[str, Any] = {}
    with st.expander("Your own data"):
        st.caption("Without it the questions that come with the task are used. Files stay on this machine.")
        if task == "sql":
            chosen["db"] = _choose(root, "database", "Database (SQLite)", task)
        if task == "tools":
            st.caption("Questions about your own functions: give the functions' file below, under Data.")
        about = {"sql": "they ask about that database", "route": "each with its label"}.get(task, "one object a line")
        chosen["questions"] = _choose(root, "questions", f"Questions (JSONL), {about}", task)
        database, questions = chosen.get("db"), chosen["questions"]
        if database is not None:
            _show_database(database)
        if questions is not None:
            _show_questions(questions, database, task)
    return chosen


def _choose(root: Path, kind: uploads.Kind, label: str, task: str) -> Path | None:
    sent = st.file_uploader(label, type=[suffix[1:] for suffix in uploads.SUFFIXES[kind]],
                            max_upload_size=uploads.MEGABYTES[kind], key=f"make-upload-{kind}")  # fmt: skip
    taken = None
    if sent is not None:
        with view.spoken(uploads.UploadError):
            taken = _kept(sent, root, kind, task)
    there = [path for path in uploads.kept(root, kind) if path != taken]
    offered = ([taken] if taken is not None else []) + there
    if not offered:
        return None
    return st.selectbox(f"Which {kind}", [None, *offered], 0 if taken is None else 1, key=f"make-{kind}-{taken}",
                        format_func=lambda path: "none" if path is None else path.name)  # fmt: skip


def _kept(sent: Any, root: Path, kind: uploads.Kind, task: str) -> Path:
    """Where an upload is kept; one that is not what it should be is not kept. Raises UploadError."""
    before = set(uploads.kept(root, kind))
    path = uploads.keep(root, sent.name, sent.getvalue(), kind)
    try:
        if kind == "database":
            uploads.look_at_database(path)
        elif task == "sql":
            uploads.look_at_questions(path)
        else:
            uploads.look_at_rows(path)
    except uploads.UploadError:
        if path not in before:
            path.unlink(missing_ok=True)
        raise
    return path


def _show_database(database: Path) -> None:
    with view.spoken(uploads.UploadError):
        found = uploads.look_at_database(database)
        view.lines([
            {"table": one.name, "columns": ", ".join(one.columns), "rows": "" if one.rows is None else f"{one.rows:,}"}
            for one in found.tables
        ])  # fmt: skip


def _show_questions(questions: Path, database: Path | None, task: str) -> None:
    with view.spoken(uploads.UploadError):
        if task != "sql":
            n, first = uploads.look_at_rows(questions)
            st.caption(f"{n:,} rows. The first ones:")
            view.lines(list(first))
            return
        found = uploads.look_at_questions(questions, database)
        st.caption(f"{found.n:,} questions, {found.with_sql:,} with SQL. The first ones:")
        view.lines(list(found.first))
        if found.failing:
            view.problem(f"{found.failing} of {found.tried} queries do not run on the database; {found.first_failing}")


def show_plan(jobs: Jobs, job: Job | None) -> bool:
    """The plan as far as it is there; whether it is whole."""
    if job is None:
        st.caption(
            "The plan says what will be asked, trained and written, how long it takes and what it costs. Nothing starts yet."
        )
        return False
    state = jobs.state(job)
    if state in RUNNING:
        st.caption("Looking at the data and the machine …")
        return False
    if state != "done":
        view.problem(jobs.sentence(job))
        return False
    st.code("\n".join(jobs.lines(job)).strip() or "nothing", language=None, wrap_lines=True)
    return True
