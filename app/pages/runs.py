"""Runs: the questions that were asked, what happened then, replayed and exported."""

import streamlit as st

from agents.route import GraphError
from app import artifacts, places, records, view
from app.answers import show_rows
from app.turns import SAID, state_of
from app.why import draw, show_events

view.head(
    "Runs", "Every question this browser asked, with its trace. A replay runs the graph again from the record, without a model."
)
own = view.own_dir()
found, damaged = records.records(own / "turns")
if damaged:
    view.problem(f"{damaged} records could not be read and are left out.")
if not found:
    view.empty("No runs yet.", "Ask something on the page Ask; every finished question appears here.")
    st.stop()

# --- filter

words, state, talk = st.columns([3, 2, 2])
text = words.text_input("Filter", placeholder="words of the question, model or database", key="filter", max_chars=200)
status = state.selectbox("Status", ["", *sorted({one.status for one in found})], format_func=lambda s: s or "any", key="status")
threads = list(dict.fromkeys(one.thread for one in found))
thread = talk.selectbox("Thread", ["", *threads], format_func=lambda s: s or "any", key="thread")
kept = records.filtered(found, text, status, thread)
if not kept:
    st.info("No run fits the filter; take something out of it.")
    st.stop()
picked = view.rows_table(
    records.table(kept), key="runs", on_select="rerun", selection_mode="single-row", height=view.height(len(kept))
)
with st.container(horizontal=True, vertical_alignment="center"):
    st.download_button(
        f"Export {len(kept)} as JSONL", lambda: records.jsonl(kept), "runs.jsonl", "application/jsonl", key="export",
        on_click="ignore", icon=":material/download:",
    )  # fmt: skip
    st.caption(f"{len(kept)} of {len(found)} runs. Choose a row to look into it.")
rows = picked.selection.rows
record = kept[rows[0]] if rows and rows[0] < len(kept) else kept[0]

# --- one run

st.divider()
left, right = st.columns([3, 2], gap="large")
with left:
    st.markdown(f"**{view.escaped(record.question)}**")
    st.caption(view.escaped(f"{record.when}, {record.status}, thread {record.thread}"))
    with view.spoken(GraphError):
        events = records.events_of(record)
        reached = state_of(events)
        if reached.get("answer"):
            view.plain(str(reached["answer"]))
        if record.about.get("problem") or reached.get("problem"):
            view.problem(str(record.about.get("problem") or reached["problem"]))
        if reached.get("sql"):
            st.code(str(reached["sql"]), language="sql", wrap_lines=True)
        show_rows(list(reached.get("columns") or ()), list(reached.get("rows") or ()), number=0)
        if st.button("Replay", icon=":material/replay:", key="replay"):
            with view.spoken(*SAID):
                setup = records.setup_of(record.about, artifacts.find_artifacts(places.runs_dir())[0])
                st.success(view.escaped(records.replay(record, lambda: view.workshop().graph(setup))))
        with st.expander("The thread, step by step"), view.spoken(*SAID):
            setup = records.setup_of(record.about, artifacts.find_artifacts(places.runs_dir())[0])
            shop = view.workshop()
            for shot in records.states(shop.graph(setup), record.thread, shop.store(own / "threads.db"))[-40:]:
                after = f"step {shot['step']}: {shot['kind']} {shot['node']}"
                st.caption(view.escaped(f"{after}, next {shot['next'] or 'nothing'}"))
                st.json(shot["state"], expanded=False)
with right, view.spoken(GraphError):
    draw(str(record.about.get("mermaid", "")), records.events_of(record))
    show_events(records.events_of(record), "run")
