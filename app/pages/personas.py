"""Personas: a prompt, tools, a constraint and limits on a model; tried, saved, and as Python."""

import streamlit as st

from agents.tools import PersonaError
from app import artifacts, persona_form, places, view
from app.persona_form import CONSTRAINTS, TOOLS, Draft, Held
from app.places import PlaceError
from app.tryout import Tryout
from app.turns import SAID
from app.why import show_events

view.head("Personas", "A persona is a prompt, tools, a constraint and limits on a shared model. Try it, save it, take it along.")
own = view.own_dir() / "personas"
found, _ = artifacts.find_artifacts(places.runs_dir())
models = [one for one in found if one.problem is None]
if not models:
    view.empty(
        "There is no model to give a persona to.",
        "Train the small one that comes with the project (minutes on two cores), or use the page Make.",
        "make quickstart",
    )
    st.stop()

# --- which one

kept = {path.name: path for path in persona_form.saved(own)}
chosen = st.selectbox("Persona", ["", *kept], format_func=lambda name: name.removesuffix(".toml") or "a new one", key="which")
begin = Draft()
if chosen:
    with view.spoken(PersonaError):
        begin = persona_form.read(kept[chosen])
specs = {one.spec: one.label for one in models}
if begin.model and begin.model not in specs:
    view.problem(f"Its model {begin.model} is not there any more; choose another.")

# --- the form

form, beside = st.columns([3, 2], gap="large")
with form:
    name = st.text_input("Name", begin.name, max_chars=60, key=f"{chosen}-name")
    prompt = st.text_area("Prompt", begin.prompt, height=120, max_chars=8000, key=f"{chosen}-prompt")
    at = list(specs).index(begin.model) if begin.model in specs else 0
    model = st.selectbox("Model", list(specs), at, format_func=specs.__getitem__, key=f"{chosen}-model")
    tools = st.multiselect("Tools", list(TOOLS), list(begin.tools), key=f"{chosen}-tools")
    constraint: Held = st.segmented_control(
        "Its answers are held to", CONSTRAINTS, default=begin.constraint, required=True, key=f"{chosen}-constraint"
    )
    held_to = ""
    if constraint != "none":
        hints = {"one of": "one answer a line", "pattern": "a regular expression", "JSON schema": "a JSON schema"}
        held_to = st.text_area(
            f"What exactly: {hints[constraint]}", begin.held_to if constraint == begin.constraint else "", max_chars=8000,
            key=f"{chosen}-{constraint}-held",
        )  # fmt: skip
    adapters = ["", *artifacts.adapters(places.runs_dir())]
    adapter = st.selectbox(
        "Adapter", adapters, adapters.index(begin.adapter) if begin.adapter in adapters else 0,
        format_func=lambda path: path or "none", key=f"{chosen}-adapter",
    )  # fmt: skip
    left, right = st.columns(2)
    ms = left.number_input("Budget, ms", 1, 600_000, None if begin.ms is None else int(begin.ms), key=f"{chosen}-ms")
    tokens = right.number_input("Budget, tokens", 1, 100_000, begin.tokens, key=f"{chosen}-tokens")
    max_tokens = left.number_input("Longest answer, tokens", 1, 4096, begin.max_tokens, key=f"{chosen}-max")
    temperature = right.number_input("Temperature", 0.0, 2.0, begin.temperature, 0.1, key=f"{chosen}-temperature")
draft = Draft(
    name, prompt, model, begin.description, tuple(tools), constraint, held_to, adapter, ms, tokens, max_tokens, temperature
)

# --- try, save, take along

shop = view.workshop()
with beside:
    st.markdown("**Try it**")
    asked = st.text_area("Say something to it", key="said", max_chars=4000, height=80)
    tryout: Tryout | None = st.session_state.get("tryout")
    busy = tryout is not None and tryout.running
    with st.container(horizontal=True):
        if st.button("Ask", type="primary", icon=":material/send:", disabled=busy, key="try"):
            with view.spoken(PersonaError):
                persona_form.to_file(draft)
                artifact = next(one for one in models if one.spec == model)
                st.session_state.tryout = Tryout(lambda: shop.model(artifact), draft, asked).start()
                busy = True
        if busy and st.button("Stop", icon=":material/stop_circle:", key="stop"):
            st.session_state.tryout.stop()

    @st.fragment(run_every=0.15 if busy else None)
    def answer() -> None:
        tryout = st.session_state.get("tryout")
        was, now = st.session_state.get("tryout-ran", False), tryout is not None and tryout.running
        st.session_state["tryout-ran"] = now
        if was and not now:
            st.rerun()
        if tryout is None:
            st.caption("Nothing tried yet. A model trained for one task answers anything else poorly; a constraint helps.")
        elif tryout.problem:
            view.problem(tryout.problem)
        elif tryout.text:
            st.code(tryout.text, language=None, wrap_lines=True)
        elif tryout.running:
            st.caption("thinking …")
        if tryout is not None and not tryout.running:
            show_events(tryout.events, "tryout")

    with view.spoken(*SAID):
        answer()

    st.markdown("**Keep it**")
    if st.button("Save", icon=":material/save:", key="save"):
        with view.spoken(PersonaError, PlaceError, OSError):
            st.session_state["just-saved"] = persona_form.save(own, draft).name
            st.rerun()
    if (saved := st.session_state.pop("just-saved", None)) is not None:
        st.success(view.escaped(f"Saved as {saved}; Persona.from_file reads it."), icon=":material/check:")
    with view.spoken(PersonaError):
        text = persona_form.to_toml(persona_form.to_file(draft))
        file, code = st.tabs(["File", "Python"])
        with file:
            st.code(text, language="toml", wrap_lines=True)
            st.download_button("Download", text, "persona.toml", "application/toml", on_click="ignore", key="download")
        with code:
            st.code(persona_form.snippet(draft), language="python", wrap_lines=True)
