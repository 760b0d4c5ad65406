"""Layout of comparisons: what was measured of a run's files, several files' answers next to each other, one file's card.

Does: draw what `app.comparison` and `app.side_by_side` prepared.
Does not: measure, ask or read a file by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from app import view
from app.artifacts import Artifact
from app.comparison import Comparison
from app.jobs import RUNNING, Job, Jobs
from app.side_by_side import Answer


def show_job(jobs: Jobs, job: Job | None, doing: str) -> bool:
    """A command at work, with its last words and a way to stop it, or how it ended badly; whether it runs."""
    if job is None:
        return False
    state = jobs.state(job)
    if state in RUNNING:
        said = [line.strip() for line in jobs.lines(job, 20) if line.strip()]
        st.progress(0.0, view.escaped(f"{doing} … {said[-1][:120] if said else ''}"))
        if state != "stopping" and st.button("Stop", icon=":material/stop_circle:", key=f"stop-{job.kind}"):
            jobs.stop(job)
        return True
    if state != "done":
        view.problem(jobs.sentence(job))
        with st.expander("What it printed"):
            st.code("\n".join(jobs.lines(job)) or "nothing", language=None, wrap_lines=True, height=240)
    return False


def show_measured(found: Comparison) -> None:
    """Table, pictures, errors by kind and CSV of one comparison."""
    st.caption(view.escaped(f"Measured on {found.questions}."))
    if best := found.best():
        st.success(view.escaped(best), icon=":material/check:")
    for remark in found.remarks():
        st.warning(view.escaped(remark), icon=":material/warning:")
    table = found.table()
    view.rows_table(table, height=view.height(len(table)))
    st.download_button("Download as CSV", found.csv(), "comparison.csv", "text/csv", on_click="ignore", key="csv",
                       icon=":material/download:")  # fmt: skip
    left, right = st.columns(2)
    for place, drawn, title, without in (
        (left, found.against_bytes(), "Score against size", "two files with a score"),
        (right, found.against_speed(), "Score against speed", "two files measured with speed"),
    ):
        with place:
            st.markdown(f"**{title}**")
            if drawn is None:
                st.caption(f"Drawn when there are {without}.")
            else:
                st.vega_lite_chart(drawn)
    st.markdown("**Wrong answers by kind**")
    if (drawn := found.errors_chart()) is None:
        st.caption("No wrong answer was counted.")
    else:
        st.vega_lite_chart(drawn)
        with st.expander("The same as a table"):
            view.rows_table(found.errors(), height=view.height(len(found.errors())))


def show_answers(answers: Sequence[Answer], labels: Mapping[str, str], language: str | None) -> None:
    """Answers in columns, the first one's on the left; what differs from it is marked."""
    if not answers:
        return
    for at, (place, one) in enumerate(zip(st.columns(len(answers)), answers)):
        with place, st.container(border=True):
            st.markdown(f"**{view.escaped(labels.get(one.file, one.name))}**")
            if one.error:
                view.problem(one.error)
            elif at == 0:
                st.badge("compared with", color="gray")
            else:
                st.badge(one.verdict, color="green" if one.same_text else "blue" if one.same_rows and one.columns else "orange")
            if one.text:
                st.code(one.text, language=language, wrap_lines=True)
            if one.difference:
                st.caption("Changes against the first answer")
                st.code(one.difference, language="diff", wrap_lines=True)
            if one.columns:
                names = view.distinct(list(one.columns))
                rows = [dict(zip(names, map(view.cell, row))) for row in one.rows]
                if rows:
                    view.rows_table(rows, height=view.height(min(len(rows), 5)))
                else:
                    st.caption("The result has no rows.")
                if one.more:
                    st.caption("There are more rows.")
            sure = f", {one.confidence:.0%} sure" if one.confidence is not None else ""
            if one.ms is not None:
                st.caption(f"{one.ms:,} ms{sure}")


def show_card(artifact: Artifact) -> None:
    """What a model is, and what it scored, in its card's words."""
    card = artifact.card
    view.facts({
        "task": card.task, "prompt": card.prompt_template, "answers are held to": card.constraint or "nothing",
        "begun from": card.base.id, "taught by": card.teacher or "nobody", "licence": card.license or "not said",
        "data": "; ".join(f"{one.name} {one.split}, {one.n:,} rows, {one.license}" for one in card.data),
        "made by": card.created_by,
    })  # fmt: skip
    if card.scores:
        st.markdown("**Scores**")
        view.lines([
            {"of": name, "right": f"{one.score:.1%} ({one.low:.1%} to {one.high:.1%})", "on": f"{one.split}, {one.n:,} questions"}
            for name, one in card.scores.items()
        ])  # fmt: skip
    text = card.model_dump_json(indent=1)
    with st.container(horizontal=True):
        if artifact.path.is_file():
            st.download_button(f"Download {artifact.size_bytes / 1e6:.1f} MB", artifact.path.read_bytes, artifact.path.name,
                               "application/octet-stream", on_click="ignore", key="file", icon=":material/download:")  # fmt: skip
        st.download_button("Download the card", text, "card.json", "application/json", on_click="ignore", key="card",
                           icon=":material/download:")  # fmt: skip
    if artifact.path.is_dir():
        st.caption("A directory; its files are in")
    st.code(str(artifact.path), language=None, wrap_lines=True)
    with st.expander("The whole card"):
        st.json(text, expanded=1)
