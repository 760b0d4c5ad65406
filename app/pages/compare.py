"""Compare: every model there is, what was measured of a run's files, one question to several of them, cards and downloads."""

import streamlit as st

from agents.card import ANY_TASK
from app import artifacts, compare_view, comparison, places, run_files, run_jobs, side_by_side, uploads, view
from app.comparison import ComparisonError
from app.jobs import RUNNING, JobError
from app.wiring import BUNDLED, BUNDLED_QUESTIONS
from factory.tasks.task import TaskError

view.head("Compare", "How large, how fast and how often right each file is, and where their answers differ.")
own, root = view.own_dir(), places.runs_dir()
jobs, asks = view.jobs(run_jobs.jobs_dir(root)), view.jobs(own / "jobs")
found, left_out = artifacts.find_artifacts(root)
if not found:
    view.empty("There is no model to compare yet.", "Make one on the page Make, or in a terminal:", "make quickstart")
for sentence in dict.fromkeys(left_out):
    view.problem(sentence)
if not found:
    st.stop()


def all_models() -> None:
    table = comparison.card_table(found)
    view.rows_table(table, height=view.height(len(table)))
    for task in sorted({one.card.task for one in found}):
        drawn = comparison.card_scores([one for one in found if one.card.task == task]).against_bytes()
        if drawn is not None:
            st.markdown(f"**{view.escaped(task)}: score of each card against size**")
            st.caption("Cards are scored on different numbers of questions; files of one run are measured on the same ones.")
            st.vega_lite_chart(drawn)


def measured() -> None:
    runs = [run for run in run_files.find_runs(root) if (run.files.model / "config.json").is_file()]
    if not runs:
        view.empty("No run here has a finished model.", "Make one on the page Make; its files are exported and measured here.")
        return
    run = st.selectbox("Run", runs, format_func=lambda one: f"{one.name}: {one.title()}", key="run")
    files = [one for one in found if one.path.is_relative_to(run.files.model) and one.kind != "hf"]
    at_work = {kind: jobs.last_about(str(run.path), kind) for kind in ("export", "compare")}
    busy = any(job is not None and jobs.state(job) in RUNNING for job in at_work.values())
    json_file = run.path / comparison.FILE
    first, second = st.columns(2)
    with first.container(border=True), view.spoken(JobError):
        quant = st.selectbox("Write a GGUF file of type", comparison.QUANTS, key="quant")
        if st.button("Export", icon=":material/output:", disabled=busy, key="export", type="secondary" if files else "primary"):
            jobs.start("export", comparison.export_job(run.files.model, quant), str(run.path))
            st.rerun()
    with second.container(border=True), view.spoken(JobError):
        limit = st.number_input("Questions to measure on", 1, 100_000, 200, key="limit")
        speed = st.toggle("Measure speed too", True, key="speed")
        if st.button("Measure", icon=":material/speed:", disabled=busy or not files, key="measure",
                     type="primary" if files and not json_file.is_file() else "secondary"):  # fmt: skip
            jobs.start("compare", comparison.compare_job(run.files.model, json_file, speed=speed, limit=limit), str(run.path))
            st.rerun()

    @st.fragment(run_every=1.0 if busy else None)
    def work() -> None:
        working = [compare_view.show_job(jobs, job, doing)
                   for job, doing in ((at_work["export"], "Exporting"), (at_work["compare"], "Measuring"))]  # fmt: skip
        if busy and not any(working):
            st.rerun()

    work()
    if not json_file.is_file():
        st.caption("Not measured yet." if files else "No file was exported of this run yet; export one, then measure.")
        return
    with view.spoken(ComparisonError):
        compare_view.show_measured(comparison.read_comparison(json_file))


def answers_beside() -> None:
    usable = [one for one in found if one.problem is None and one.card.task != ANY_TASK]
    tasks = sorted({one.card.task for one in usable}, key=lambda task: (task != "sql", task))
    if not usable:
        view.empty("No file can be asked on this machine.", view.escaped(found[0].problem or "Install what its kind needs."))
        return
    task = st.selectbox("Task", tasks, key="ask-task") if len(tasks) > 1 else tasks[0]
    offered = [one for one in usable if one.card.task == task]
    by_path = {str(one.path): one for one in offered}
    chosen = st.multiselect("Files", list(by_path), list(by_path)[:2], max_selections=4, key=f"ask-files-{task}",
                            format_func=lambda path: by_path[path].label)  # fmt: skip
    database = table = None
    if task == "sql":
        databases = {BUNDLED: "Solar system (bundled)", **{path: path.name for path in uploads.kept(own / "uploads", "database")}}
        left, right = st.columns(2)
        database = left.selectbox("Database", list(databases), format_func=databases.__getitem__, key="ask-database")
        table = right.selectbox(
            "Table", ["", *view.tables_of(database)], format_func=lambda name: name or "picked from the question",
            key=f"ask-table-{database}", help="what models are told that learned questions about one table at a time",
        )  # fmt: skip
    example = BUNDLED_QUESTIONS[1] if database == BUNDLED else ""
    question = st.text_input("Question", example, max_chars=side_by_side.QUESTION_LENGTH, key=f"ask-question-{database}")
    last = next(iter(asks.recent("ask")), None)
    busy = last is not None and asks.state(last) in RUNNING
    if st.button(
        "Ask them", type="primary", icon=":material/send:", key="ask", disabled=busy or not chosen or not question.strip()
    ):
        with view.spoken(JobError, TaskError):
            if database is not None:
                table = side_by_side.table_for(database, question, table or "")
            files = [by_path[path] for path in chosen]
            asks.start("ask", side_by_side.ask_job(files, question, database, table), question)
            st.rerun()
    if len(offered) < 2:
        st.caption("There is one file for this task; export another under Measured to see two side by side.")

    @st.fragment(run_every=0.5 if busy else None)
    def answers() -> None:
        if last is None:
            return
        view.plain(f"“{last.about}”")
        running = compare_view.show_job(asks, last, "Asking one file after another")
        shown = side_by_side.side_by_side(last.directory / side_by_side.ANSWERS)
        compare_view.show_answers(shown, {str(one.path): one.label for one in found}, "sql" if database is not None else None)
        if busy and not running:
            st.rerun()

    answers()


def card() -> None:
    one = st.selectbox("File", found, format_func=lambda one: one.label, key="card-of")
    if one.problem:
        view.problem(one.problem)
    compare_view.show_card(one)


for tab, part in zip(st.tabs(["All models", "Measured", "Side by side", "Card"]), (all_models, measured, answers_beside, card)):
    with tab:
        part()
