"""Layout of one run: what goes on, loss and score, rows kept and dropped, the ledger, the command's own words.

Does: draw what `app.progress_view`, `app.rows_view` and `app.run_jobs` found.
Does not: start or stop anything, or read a file by itself.
"""

from __future__ import annotations

import time

import streamlit as st

from app import rows_view, view
from app.jobs import Jobs
from app.progress_view import Progress, RunWatch, line_chart
from app.run_files import RunEntry, RunError
from app.run_jobs import Standing
from factory.progress import duration, percent


def watch_of(run: RunEntry) -> RunWatch:
    """This session's reader of the run's log: it reads on where it was."""
    watches: dict[str, RunWatch] = st.session_state.setdefault("watches", {})
    return watches.setdefault(str(run.files.events), RunWatch(run.files.events))


def show_progress(progress: Progress, how: Standing) -> None:
    """The stage that runs with its time left, the stages so far, warnings."""
    stage = progress.current if how.runs else None
    if how.runs and stage is None:
        st.progress(0.0, "Between two stages …" if progress.begun else "Starting …")
    elif stage is not None:
        st.progress(stage.share or 0.0, view.escaped(progress.headline()))
        if progress.updated is not None and (quiet := time.time() - progress.updated) > 60:
            st.caption(f"Nothing new for {duration(quiet)}; some stages say little.")
    for warning in progress.warnings:
        st.warning(view.escaped(warning), icon=":material/warning:")
    broken = next((one for one in progress.stages.values() if one.error and not how.runs), None)
    if broken is not None and how.state != "done":
        st.caption(view.escaped(f"{broken.name} ended with: {broken.error[:300]}"))
    left, right = st.columns(2)
    with left:
        st.markdown("**Training loss**")
        if len(progress.losses) > 1:
            st.vega_lite_chart(line_chart(progress.losses, "loss"), key="loss")
        else:
            st.caption("Drawn when training has taken a few steps.")
    with right:
        st.markdown("**Score on validation questions**")
        if progress.scores:
            st.vega_lite_chart(line_chart(progress.scores, "right answers", share=True, dots=True), key="score")
        else:
            st.caption("Drawn when the first checkpoint was scored.")
    if progress.begun:
        with st.expander("Stages", expanded=not how.runs):
            view.lines(progress.table())


def show_score(run: RunEntry) -> None:
    """The final score with its interval."""
    if run.score is not None:
        low, high = (percent(float(run.score[name])) for name in ("low", "high"))
        st.metric(
            "Right answers of the finished model", percent(float(run.score["score"])),
            f"{low} to {high} with 95 % confidence, {int(run.score['n']):,} questions", delta_color="off", delta_arrow="off",
        )  # fmt: skip


def show_rows(run: RunEntry, progress: Progress) -> None:
    """Rows kept, and those dropped by reason with examples."""
    kept = rows_view.kept_rows(run.files.rows)
    n = f"{progress.rows_kept:,} rows kept" if progress.rows_kept is not None else "Rows kept"
    if kept:
        st.markdown(f"**{n}.** The first ones:")
        view.rows_table(kept, height=view.height(len(kept)))
    else:
        st.caption("No rows are kept yet; they appear when the teacher's answers have been checked.")
    if not run.files.ledger.is_file():
        return
    with view.spoken(RunError):
        dropped = rows_view.dropped_rows(run.files.ledger)
        if not dropped:
            st.caption("No row was dropped.")
            return
        st.markdown(f"**{sum(one.n for one in dropped):,} rows dropped**")
        view.lines([{"stage": one.stage, "reason": one.reason, "rows": f"{one.n:,}"} for one in dropped])
        at = st.selectbox("Examples of", range(len(dropped)), key="dropped",
                          format_func=lambda i: f"{dropped[i].stage}: {dropped[i].reason} ({dropped[i].n:,})")  # fmt: skip
        view.rows_table(list(dropped[at].examples), height=view.height(len(dropped[at].examples)))


def show_ledger(run: RunEntry) -> None:
    """Every answer of the teacher with its verdict, searched and paged."""
    if not run.files.ledger.is_file():
        st.caption("The ledger of the teacher's answers is written when the teacher is first asked.")
        return
    with view.spoken(RunError):
        reasons = rows_view.verdict_reasons(run.files.ledger)
        left, middle, right = st.columns([2, 3, 1], vertical_alignment="bottom")
        reason = left.selectbox("Verdict", [None, *reasons], key="ledger-reason",
                                format_func=lambda one: "any" if one is None else f"{one} ({reasons[one]:,})")  # fmt: skip
        text = middle.text_input("Search", key="ledger-text", max_chars=200, placeholder="words of an answer, or an example's id")
        found = rows_view.ledger_page(run.files.ledger, reason=reason, text=text, size=rows_view.PAGE)
        pages = max(1, -(-found.total // rows_view.PAGE))
        page = int(right.number_input("Page", 1, pages, 1, key=f"ledger-page-{run.name}-{reason}-{text}"))
        if page > 1:
            found = rows_view.ledger_page(run.files.ledger, reason=reason, text=text, page=page - 1)
        if not found.rows:
            st.caption("No answer fits; choose any verdict, or search for something else.")
            return
        st.caption(f"{found.total:,} answers, page {page} of {pages}.")
        view.rows_table(found.rows, height=view.height(len(found.rows)))


def show_log(jobs: Jobs, how: Standing) -> None:
    """The last lines of the command."""
    lines = jobs.lines(how.job) if how.job is not None else []
    if lines:
        st.code("\n".join(lines), language=None, wrap_lines=True, height=320)
    else:
        st.caption(
            "Nothing printed yet." if how.job is not None else "This run was started outside the app; its words are there."
        )
