"""Make: a small model from a task and a teacher; planned, started, watched, stopped, taken up again."""

import streamlit as st

from app import form_view, places, run_files, run_jobs, run_view, view
from app.jobs import RUNNING, JobError
from app.make_form import command_line, form_fields, settings_from
from app.run_files import RunEntry, RunError
from factory.settings import SettingsError

view.head(
    "Make", "A teacher answers a task's questions; what can be proved right trains a small model. Runs go on without this page."
)
own, root = view.own_dir(), places.runs_dir()
jobs, plans = view.jobs(run_jobs.jobs_dir(root)), view.jobs(own / "jobs")

# --- which run

found = run_files.find_runs(root)
beginning = dict(run_jobs.not_begun(jobs, root))
names = ["", *beginning, *(run.name for run in found)]
titles = {run.name: f"{run.name}: {run.title()}" for run in found}
if (wanted := st.session_state.pop("take-run", None)) in names:
    st.session_state.run = wanted
name = st.selectbox("Run", names, format_func=lambda one: titles.get(one, one) or "a new one", key="run")


def the_form() -> None:
    if not found:
        view.empty("No model was made here yet.", "Show the plan of the smallest run below, then start it; or in a terminal:",
                   "make quickstart")  # fmt: skip
    fields = form_fields()
    filled = form_view.show_fields([field for field in fields if field.first], columns=3)
    filled |= form_view.show_uploads(own / "uploads", str(filled["task"]))
    with st.expander("All other settings"):
        for group in dict.fromkeys(field.group for field in fields):
            st.markdown(f"**{group}**")
            filled |= form_view.show_fields([field for field in fields if field.group == group and not field.first])
    called = st.text_input("Name of the run", key="make-name", max_chars=80, placeholder="by task, student and teacher")
    with view.spoken(SettingsError, JobError):
        settings = settings_from(filled, called, root)
        job = run_jobs.plan_of(plans, settings)
        going = job is not None and plans.state(job) in RUNNING
        planned = job is not None and plans.state(job) == "done"
        with st.container(horizontal=True):
            if st.button("Show the plan", icon=":material/fact_check:", type="secondary" if planned else "primary",
                         disabled=going, key="plan"):  # fmt: skip
                run_jobs.plan(plans, settings)
                st.rerun()
            if st.button("Start", icon=":material/play_arrow:", type="primary" if planned else "secondary",
                         disabled=not planned, key="start", help=None if planned else "After its plan was shown"):  # fmt: skip
                started = run_jobs.start(jobs, settings)
                st.session_state["take-run"] = started.about.rsplit("/", 1)[-1]
                st.rerun()

        @st.fragment(run_every=0.5 if going else None)
        def plan() -> None:
            if going and job is not None and plans.state(job) not in RUNNING:
                st.rerun()
            form_view.show_plan(plans, job)

        plan()
        with st.expander("The same in a terminal"):
            st.code(command_line(settings), language="bash", wrap_lines=True)


def one_run(run: RunEntry) -> None:
    how = run_jobs.standing(run, jobs)
    watch = run_view.watch_of(run)
    behind = watch.update().behind

    @st.fragment(run_every=1.0 if how.runs or behind else None)
    def now() -> None:
        current = run_jobs.standing(run_files.run_named(root, run.name), jobs)
        if current.runs != how.runs or watch.update().behind != behind:
            st.rerun()
        with st.container(horizontal=True, vertical_alignment="center"), view.spoken(JobError):
            st.badge(current.word, color="green" if current.state == "done" else "orange" if current.can_resume else "blue")
            job = current.job
            if current.can_stop and job and st.button("Stop", icon=":material/stop_circle:", key="stop"):
                jobs.stop(job)
                st.rerun()
            if current.can_end_now and job and st.button("End it at once", icon=":material/dangerous:", key="end-now"):
                jobs.stop(job, now=True)
                st.rerun()
            if current.can_resume and st.button("Resume", icon=":material/resume:", type="primary", key="resume"):
                run_jobs.resume(jobs, run)
                st.rerun()
        if current.sentence:
            st.info(view.escaped(current.sentence), icon=":material/info:")
        if current.state == "done":
            run_view.show_score(run)
            st.caption("Export and measure it on the page Compare; ask it on the page Ask.")
        run_view.show_progress(watch.progress, current)

    with view.spoken(RunError):
        now()
        rows, ledger, log, settings = st.tabs(["Rows", "Ledger", "Log", "Settings"])
        with rows:
            run_view.show_rows(run, watch.progress)
        with ledger:
            run_view.show_ledger(run)
        with log:
            run_view.show_log(jobs, how)
        with settings:
            view.facts(run.config)
        if how.runs:
            st.button("Look again at rows, ledger and log", icon=":material/refresh:", key="refresh")


@st.fragment(run_every=0.5)
def awaited(name: str) -> None:
    job = beginning[name]
    if (root / name / "config.toml").is_file():
        st.session_state["take-run"] = name
        st.rerun()
    if jobs.state(job) in RUNNING:
        st.progress(0.0, "Starting …")
        if st.button("Stop", icon=":material/stop_circle:", key="stop"):
            jobs.stop(job)
        return
    view.problem(jobs.sentence(job))
    if st.button("Start again", icon=":material/replay:", key="again"):
        with view.spoken(JobError):
            jobs.again(job)
            st.rerun()


if not name:
    the_form()
elif name in beginning:
    awaited(name)
else:
    one_run(next(run for run in found if run.name == name))
