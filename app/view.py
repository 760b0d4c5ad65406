"""Small pieces of layout that several pages share.

Does: page heads, empty states, errors as one sentence, text that a model or a file wrote shown as text and never as HTML.
Does not: know what a page is about.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st

PAGES = ("ask", "make", "compare", "personas", "runs")
_STYLE = """<style>
  .block-container { padding-top: 3.5rem; padding-bottom: 3rem; max-width: 84rem; }
  h1 { font-size: 1.7rem !important; padding-bottom: 0.2rem !important; }
  [data-testid="stMetricValue"] { font-size: 1.4rem; }
  @media (max-width: 640px) {
    .block-container { padding-left: 0.9rem; padding-right: 0.9rem; }
    [data-testid="stMetricValue"] { font-size: 1.15rem; }
  }
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
