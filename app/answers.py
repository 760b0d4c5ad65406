"""Layout of one answer on the page Ask: the words, the SQL, its rows, a chart, thumbs; and the question for a yes or no."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app import feedback, view
from app.charts import chartable
from app.feedback import FeedbackError
from app.talk import Talk
from app.turns import Turn


def show_answer(talk: Talk, turn: Turn, number: int) -> None:
    """A turn that runs or has ended."""
    state = turn.state
    if turn.status == "running":
        st.caption("writing …" if turn.text else "thinking …")
        if turn.text:
            with st.container(key=f"writing-{number}"):
                view.plain(turn.text)  # a code block would wait for a megabyte of script
        return
    if state.get("answer"):
        st.markdown(f"**{view.escaped(str(state['answer']))}**")
    if turn.problem or state.get("problem"):
        view.problem(turn.problem or str(state["problem"]))
    if state.get("sql"):
        st.code(str(state["sql"]), language="sql", wrap_lines=True)
    show_rows(list(state.get("columns") or ()), list(state.get("rows") or ()), number)
    for note in state.get("notes") or ():
        st.caption(view.escaped(note))
    with st.container(horizontal=True, vertical_alignment="center"):
        if state.get("sql") and turn.status == "done":
            _thumbs(talk, turn, number)
        if talk.chosen is not turn and st.button("Why", icon=":material/account_tree:", key=f"why-{number}"):
            talk.shown = number
            st.rerun()
    _correction(talk, turn, number)


def show_rows(columns: list[str], rows: list[list[object]], number: int) -> None:
    """A result as a table, and as a chart where that says more."""
    if not columns or not rows:
        return
    import pandas as pd

    chart = chartable(columns, rows)
    frame = pd.DataFrame([[view.cell(cell) for cell in row] for row in rows], columns=view.distinct(columns))
    if chart is None:
        view.rows_table(frame, key=f"rows-{number}", height=view.height(len(rows)))
        return
    table, picture = st.tabs(["Rows", "Chart"])
    with table:
        view.rows_table(frame, key=f"rows-{number}", height=view.height(len(rows)))
    with picture:
        view.chart(chart)


def show_waiting(turn: Turn) -> None:
    """What a run waits for, and the two answers."""
    waiting = turn.waiting_for
    if waiting is None:
        return
    with st.container(border=True):
        st.markdown(f"**{view.escaped(waiting.prompt)}**")
        if waiting.value is not None:
            st.code(str(waiting.value), language="sql", wrap_lines=True)
        with st.container(horizontal=True):
            if st.button("Approve", type="primary", icon=":material/check:", key="approve-it"):
                turn.answer(True)
                st.rerun()
            if st.button("Deny", icon=":material/block:", key="deny-it"):
                turn.answer(False)
                st.rerun()


def _thumbs(talk: Talk, turn: Turn, number: int) -> None:
    given = st.feedback("thumbs", key=f"thumbs-{number}")
    if given is None:
        return
    rating: feedback.Rating = "up" if given == 1 else "down"
    if talk.rating_of(turn) != rating:
        with view.spoken(FeedbackError, OSError):
            path, rows = talk.rate(turn, rating)
            st.session_state[f"rated-{number}"] = (str(path), rows)


def _correction(talk: Talk, turn: Turn, number: int) -> None:
    """After a thumb: where the row went; after a thumb down: the SQL that would have been right."""
    rated = st.session_state.get(f"rated-{number}")
    if rated is None:
        return
    path, rows = rated
    if talk.rating_of(turn) == "down":
        with st.form(f"correct-{number}", border=False):
            right = st.text_area("The right SQL, if you know it", key=f"right-{number}", max_chars=5000)
            if st.form_submit_button("Keep correction") and right.strip():
                with view.spoken(FeedbackError, OSError):
                    talk.rate(turn, "down", right)
                    st.caption("Kept as a training row.")
    st.caption(f"{rows} rated {'answers' if rows > 1 else 'answer'} for this database. To train on them:")
    st.code(feedback.command(Path(path), Path(str(turn.about["database"]))), language="bash", wrap_lines=True)
