"""Layout of why an answer came about: the graph with its way lit, the events, model and tool calls, forks, the whole trace."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from agents import events as ev
from agents.trace import Trace
from app import picture, timeline, view
from app.talk import Talk
from app.turns import Turn
from app.wiring import Setup


def show_why(talk: Talk, turn: Turn, setup: Setup) -> None:
    """One turn's way, beside its answer."""
    st.markdown("**Why**")
    draw(turn.mermaid, turn.events)
    show_events(turn.events, key="why")
    if turn.status not in ("running", "waiting"):
        _fork(talk, turn, setup)


def draw(mermaid: str, events: Sequence[ev.Event]) -> None:
    """The graph, and the same in words for those who do not see it."""
    if not mermaid and not events:
        st.caption("Opening the model …")
        return
    shape = picture.shape(mermaid) if mermaid else picture.shape_of_trace(events)
    st.graphviz_chart(picture.dot(shape, events, view.colors()), width="content")
    way = " → ".join(picture.path_of(events))
    if way:
        st.caption(f"Way taken: {view.escaped(way)}")


def show_events(events: Sequence[ev.Event], key: str) -> None:
    """What happened, in tabs."""
    if not events:
        return
    calls, tools = timeline.model_calls(events), timeline.tool_calls(events)
    names = ["Timeline", "Models", *(["Tools"] if tools else []), "Trace"]
    tabs = dict(zip(names, st.tabs(names)))
    with tabs["Timeline"]:
        view.lines(timeline.table(events))
    with tabs["Models"]:
        if calls:
            for call in calls:
                view.facts(call)
        else:
            st.caption("No model has answered in this run.")
    if tools:
        with tabs["Tools"]:
            for call in tools:
                st.markdown(f"**{view.escaped(call['tool'])}** by {view.escaped(call['persona'])}")
                st.json(call["arguments"], expanded=True)
                view.plain("waiting …" if call["result"] is None else call["result"])
    with tabs["Trace"]:
        st.caption("Every event as a line of JSON, as `agents.trace.Trace` reads it.")
        st.download_button(
            "Download trace", lambda: Trace(events).to_jsonl(), "trace.jsonl", "application/jsonl", key=f"{key}-download",
            on_click="ignore",
        )  # fmt: skip


def _fork(talk: Talk, turn: Turn, setup: Setup) -> None:
    steps = talk.forkable(turn)
    if not steps:
        return
    with st.expander("Go on from an earlier step"):
        st.caption("A new thread shares the steps up to there and goes on with the settings above.")
        chosen = st.selectbox("After step", list(steps), format_func=lambda step: f"{step}: {steps[step]}", key="fork-step")
        if st.button("Fork", icon=":material/call_split:", key="fork"):
            talk.fork(turn, chosen, setup)
            st.rerun()
