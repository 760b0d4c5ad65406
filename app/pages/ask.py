"""Ask: questions to a graph, and why it answered as it did."""

import streamlit as st

from app import artifacts, places, uploads, view
from app.answers import show_answer, show_waiting
from app.feedback import FeedbackError
from app.talk import NAMES, Talk, TalkError
from app.turns import SAID
from app.why import show_why
from app.wiring import BUNDLED, BUNDLED_QUESTIONS, GraphName, Setup

view.head("Ask", "A question goes through a graph of small models; beside the answer stands how it came about.")
own = view.own_dir()
found, left_out = artifacts.find_artifacts(places.runs_dir())
models = artifacts.for_task(found, "sql")
if not models:
    unusable = [one.problem for one in found if one.problem]
    view.empty(
        "There is no model to ask yet.",
        "Train the small one that comes with the project (minutes on two cores), or use the page Make.",
        "make quickstart",
    )
    for sentence in dict.fromkeys([*unusable, *left_out]):
        view.problem(sentence)
    st.stop()

if "talk" not in st.session_state:
    st.session_state.talk = Talk(view.workshop(), own)
talk: Talk = st.session_state.talk

# --- what is asked, and about what

databases = {BUNDLED: "Solar system (bundled)", **{path: path.name for path in uploads.kept(own / "uploads", "database")}}
if (taken := st.session_state.pop("take", None)) in databases:
    st.session_state.database = taken
about, model, more = st.columns([3, 3, 2], vertical_alignment="bottom")
database = about.selectbox("Database", list(databases), format_func=databases.__getitem__, key="database")
artifact = model.selectbox("Model", models, format_func=lambda one: one.label, key="artifact")
with more.popover("Graph and options", width="stretch"):
    blades = artifacts.three_blades(found)
    graphs: list[GraphName] = ["analyst", "blades"] if blades else ["analyst"]
    graph = st.radio("Graph", graphs, format_func=NAMES.__getitem__, key="graph") or "analyst"
    if not blades:
        st.caption("The three-blade graph (route → SQL or tools) appears here once a route, an sql and a tools model exist.")
    tables = ["", *view.tables_of(database)]
    table = st.selectbox("Table", tables, format_func=lambda name: name or "picked from the question", key="table")
    approve = st.toggle("Ask me before a statement runs", key="approve")
    others = [None, *(one for one in models if one.key != artifact.key)]
    larger = st.selectbox(
        "When unsure, ask", others, format_func=lambda one: "nobody else" if one is None else one.label, key="larger"
    )
    sent = st.file_uploader("Your own database", type=["sqlite", "sqlite3", "db"], key="upload")
    st.caption("It is opened read-only and stays on this machine.")
    if sent is not None:
        with view.spoken(uploads.UploadError):
            view.took_upload(sent, own / "uploads", "database")
if table and not artifact.single_table:
    st.caption("This model reads all tables at once; the chosen table is a hint it is narrowed to.")
route, tools = blades if blades and graph == "blades" else (None, None)
setup = Setup(artifact, database, table, approve, larger, graph, route, tools)
view.warm(setup)

# --- the conversation

with st.container():  # in a container it stands here; at the page's foot it would pull the view down to itself
    question = st.chat_input("Ask about the database", max_chars=2000)
if question:
    with view.spoken(TalkError):
        talk.ask(question, setup)

if not talk.turns:
    with st.container(border=True):
        st.markdown(f"**Nothing asked yet.** Write a question below{', or take one of these:' * (database == BUNDLED)}")
        if database == BUNDLED:
            for example in BUNDLED_QUESTIONS:
                if st.button(example, width="stretch", key=f"example-{example}"):
                    talk.ask(example, setup)
                    st.rerun()
        view.schema(database)
    st.stop()


@st.fragment(run_every=0.1 if talk.running else None)
def conversation() -> None:
    was_running = st.session_state.get("was_running", False)
    st.session_state.was_running = running = talk.running
    if was_running and not running:
        st.rerun()
    with view.spoken(*SAID, TalkError, FeedbackError):
        all_turns(running)


def all_turns(running: bool) -> None:
    chosen = talk.chosen
    left, right = st.columns([3, 2], gap="large")
    with left:
        one_turn(talk.turns.index(chosen))
        if running and st.button("Stop", icon=":material/stop_circle:", key="stop"):
            for turn in talk.turns:
                turn.stop()
    with right:
        show_why(talk, chosen, setup)
    others = [number for number, turn in enumerate(talk.turns) if turn is not chosen]
    if others:
        st.markdown("**The rest of this conversation**")
    for number in reversed(others):
        one_turn(number)


def one_turn(number: int) -> None:
    turn = talk.turns[number]
    with st.chat_message("user", avatar=":material/person:"):
        view.plain(turn.question)
    with st.chat_message("assistant", avatar=":material/home_repair_service:"):
        if turn.status == "waiting":
            show_waiting(turn)
        else:
            show_answer(talk, turn, number)


conversation()
if st.button("New conversation", icon=":material/add_comment:", key="anew"):
    talk.anew()
    st.rerun()
