"""Small pieces of layout that several pages share.

Does: page heads, empty states, errors as one sentence, text that a model or a file wrote shown as text and never as HTML.
Does not: know what a page is about.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import streamlit as st

from app import access, places, uploads
from app.charts import Chart
from app.jobs import Jobs
from app.picture import DARK, LIGHT, Colors
from app.wiring import Setup, Workshop

PAGES = ("ask", "make", "compare", "personas", "runs")
_STYLE = """<style>
  .block-container { padding-top: 3.5rem; padding-bottom: 3rem; max-width: 84rem; }
  h1 { font-size: 1.7rem !important; padding-bottom: 0.2rem !important; }
  [data-testid="stMetricValue"] { font-size: 1.4rem; }
  @media (max-width: 640px) {
    .block-container { padding-left: 0.9rem; padding-right: 0.9rem; }
    [data-testid="stMetricValue"] { font-size: 1.15rem; }
  }
  [data-testid="stMarkdownContainer"] table { width: 100%; font-size: 0.85rem; }
  [data-testid="stMarkdownContainer"] td { overflow-wrap: anywhere; padding: 0.25rem 0.5rem; }
  [data-testid="stMarkdownContainer"] th { padding: 0.25rem 0.5rem; }
  [data-testid="stMarkdownContainer"] :is(td, th):first-child { white-space: nowrap; }
  pre, code, [data-testid="stText"] { overflow-wrap: anywhere; }
</style>"""


def style() -> None:
    """Spacing and sizes for wide and narrow screens; the text above, nothing from outside."""
    st.html(_STYLE)


def head(title: str, about: str) -> None:
    """A page's title and one line under it."""
    st.title(title, anchor=False)
    st.caption(about)


def empty(what: str, next_step: str, command: str | None = None) -> None:
    """Nothing to show yet: what is missing, what to do, and the command that does it."""
    with st.container(border=True):
        st.markdown(f"**{what}**")
        st.markdown(next_step)
        if command is not None:
            st.code(command, language="bash")


def plain(text: str) -> None:
    """Text from a model, a file or a user, as it is: no Markdown, no HTML."""
    st.text(text)


def escaped(text: str) -> str:
    """The same inside Markdown: every character that Markdown, LaTeX or Streamlit's icons would read is taken as itself."""
    return "".join(f"\\{mark}" if mark in "\\`*_{}[]()#+-.!|~$:<>&^=" else mark for mark in text).replace("\n", " ")


def sentence(error: BaseException) -> str:
    """An error as one line."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def spoken(*kinds: type[BaseException]) -> Iterator[None]:
    """Errors of these kinds become one sentence on the page; anything else is a bug and goes on."""
    try:
        yield
    except kinds as error:
        problem(sentence(error))


def problem(text: str) -> None:
    """One sentence about what went wrong, as text."""
    st.error(escaped(text), icon=":material/error:")


@st.cache_resource(show_spinner=False)
def workshop() -> Workshop:
    """The one set of open models, graphs and stores that all sessions share."""
    return Workshop()


@st.cache_resource(show_spinner=False, max_entries=256)
def jobs(root: Path) -> Jobs:
    """The jobs below a directory, for all sessions that look at it."""
    return Jobs(root)


def own_dir() -> Path:
    """This browser's own directory."""
    owner = access.owner_in(st.context.cookies)
    if owner is None:  # no cookies: the key lasts as long as the session
        owner = st.session_state.setdefault("owner", access.new_owner())
    return places.own_dir(owner)


def colors() -> Colors:
    """Colours of pictures in the theme that is on."""
    return DARK if st.context.theme.type == "dark" else LIGHT


def height(rows: int) -> int:
    """Pixels of a data frame of so many rows; long ones scroll."""
    return min(35 * (rows + 1) + 2, 320)


def rows_table(rows: Any, **options: Any) -> Any:
    """A data frame as wide as its place; its cells are text."""
    return st.dataframe(rows, hide_index=True, width="stretch", **options)


def cell(value: Any) -> Any:
    """A cell of a result for a data frame: columns of one type, long and odd things as text."""
    return value if value is None or (isinstance(value, int | float) and abs(value) < 2**53) else str(value)


def distinct(names: list[str]) -> list[str]:
    """Column names that differ."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return out


def chart(drawn: Chart) -> None:
    """Bars or a line. Columns get plain names, because the chart language reads dots and brackets in them."""
    import pandas as pd

    plain_names = {name: "".join(mark if mark.isalnum() or mark in " _" else " " for mark in name).strip() or "value"
                   for name in drawn.data}  # fmt: skip
    frame = pd.DataFrame({plain_names[name]: [cell(one) for one in values] for name, values in drawn.data.items()})
    x, *y = (plain_names[drawn.names[at]] for at in (drawn.x, *drawn.y))
    if drawn.kind == "line":
        frame[x] = frame[x].astype(str)
        st.line_chart(frame, x=x, y=y)
    else:
        st.bar_chart(frame, x=x, y=y, horizontal=len(frame) > 6)


def lines(rows: list[dict[str, str]]) -> None:
    """A few rows as a table whose cells wrap; their text is text."""
    if not rows:
        return
    names = list(rows[0])
    table = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    table += ["| " + " | ".join(escaped(str(row[name])) or " " for name in names) + " |" for row in rows]
    st.markdown("\n".join(table))


def facts(values: dict[str, Any]) -> None:
    """Named values, one line each."""
    lines([{"what": name, "value": "" if value is None else str(value)} for name, value in values.items()])


def tables_of(database: Path) -> list[str]:
    """Names of a database's tables and views; none where it cannot be read."""
    return list(_schema(database, database.stat().st_mtime_ns))


def schema(database: Path) -> None:
    """The tables with their columns, folded."""
    with st.expander("What is in this database"):
        for name, columns in _schema(database, database.stat().st_mtime_ns).items():
            st.markdown(f"**{escaped(name)}**")
            plain(", ".join(columns))


@st.cache_data(show_spinner=False, max_entries=64)
def _schema(database: Path, mtime_ns: int) -> dict[str, tuple[str, ...]]:
    from agents.toolbox.sqlite import SqliteTools
    from agents.tools import PersonaError

    try:
        return SqliteTools(database).schema
    except PersonaError:
        return {}


def took_upload(sent: Any, root: Path, kind: uploads.Kind) -> None:
    """Keep an uploaded file once, look into it, and say so. Raises UploadError."""
    if st.session_state.get("upload-kept") == sent.file_id:
        return
    path = uploads.keep(root, sent.name, sent.getvalue(), kind)
    try:
        if kind == "database":
            uploads.look_at_database(path)
    except uploads.UploadError:
        path.unlink(missing_ok=True)
        raise
    st.session_state["upload-kept"] = sent.file_id
    st.session_state["take"] = path
    st.rerun()


def warm(setup: Setup) -> None:
    """Open what a first question will need, once for each setup and session, beside the page."""
    if setup.artifact.kind != "hf" and st.session_state.get("warmed") != setup:  # torch is opened when it is asked, not before
        st.session_state.warmed = setup
        workshop().warm(setup)
