"""Spans of real runs, as OpenTelemetry's own in-memory exporter receives them; joules from counters that go round."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

pytest.importorskip("opentelemetry.sdk", reason="pip install 'penknife[agents]'")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as names

from agents import END, AgentGraph, Persona, Sampling, Scripted, interrupt, tool
from agents.telemetry import Energy, Telemetry, export
from agents.trace import Trace


class State(BaseModel):
    question: str
    notes: list[str] = []


@tool
def lookup(order_id: int) -> str:
    """Status of one order."""
    if order_id == 13:
        raise ValueError("no luck")
    return f"order {order_id} is on its way"


def shop(order: int = 17, ask: bool = False) -> AgentGraph:
    replies = [f'<tool_call>{{"name": "lookup", "arguments": {{"order_id": {order}}}}}</tool_call>', "It is on its way."]
    sampling = Sampling(temperature=0.5, seed=7, max_tokens=99)
    desk = Persona("desk", Scripted(replies, name="small"), "Answer.", tools=[lookup], sampling=sampling)
    g = AgentGraph(State, name="shop")

    @g.node(start=True)
    def begin(s: State) -> None:
        return None

    g.add(desk, reads="question", writes="notes")

    @g.node
    def close(s: State) -> None:
        if s.question == "fail":
            raise RuntimeError("secret reason")
        if ask:
            interrupt("send?")

    g.edge("begin", desk)
    g.edge(desk, "close")
    g.edge("close", END)
    return g


@pytest.fixture
def tracer() -> tuple[Any, InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("test"), exporter


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_run_is_a_tree_of_spans_with_the_conventions_names(tracer: Any, tmp_path: Path) -> None:
    take, exporter = tracer
    run = shop().run(State(question="where is 17?"))
    run.trace.save(tmp_path / "run.jsonl")
    export(Trace.load(tmp_path / "run.jsonl"), take, ended_ns=10**18)
    spans = exporter.get_finished_spans()
    assert sorted(span.name for span in spans) == sorted(
        ["invoke_workflow shop", "node begin", "node desk", "node close", "chat small", "chat small", "execute_tool lookup"]
    )
    found = by_name(exporter)
    root, node, chat, used = (found[name] for name in ("invoke_workflow shop", "node desk", "chat small", "execute_tool lookup"))
    assert root.parent is None and root.end_time == 10**18
    assert node.parent.span_id == root.context.span_id
    assert chat.parent.span_id == used.parent.span_id == node.context.span_id
    for span in spans:
        assert root.start_time <= span.start_time <= span.end_time <= root.end_time
        known = {value for key, value in vars(names).items() if key.startswith("GEN_AI")}
        assert {key for key in span.attributes if key.startswith("gen_ai.")} <= known
    assert chat.attributes[names.GEN_AI_OPERATION_NAME] == "chat" and chat.attributes[names.GEN_AI_REQUEST_MODEL] == "small"
    assert chat.attributes[names.GEN_AI_REQUEST_TEMPERATURE] == 0.5 and chat.attributes[names.GEN_AI_REQUEST_SEED] == 7
    assert chat.attributes[names.GEN_AI_AGENT_NAME] == "desk" and chat.attributes[names.GEN_AI_RESPONSE_FINISH_REASONS] == (
        "stop",
    )
    sums = [
        sum(span.attributes[key] for span in spans if span.name == "chat small")
        for key in (names.GEN_AI_USAGE_INPUT_TOKENS, names.GEN_AI_USAGE_OUTPUT_TOKENS)
    ]
    assert sums == [run.usage["desk"].prompt_tokens, run.usage["desk"].completion_tokens]
    assert used.attributes[names.GEN_AI_TOOL_NAME] == "lookup" and used.attributes[names.GEN_AI_OPERATION_NAME] == "execute_tool"
    assert {event.name for event in root.events} == {"penknife.edge_taken"}


def test_what_was_said_is_left_out_unless_asked_for(tracer: Any) -> None:
    take, exporter = tracer
    run = shop().run(State(question="where is my classified order?"))
    export(run.trace, take)
    assert "classified" not in "".join(span.to_json() for span in exporter.get_finished_spans())
    exporter.clear()
    export(run.trace, take, contents=True)
    found = by_name(exporter)
    asked = json.loads(found["chat small"].attributes[names.GEN_AI_INPUT_MESSAGES])
    assert any("classified" in message["parts"][0]["content"] for message in asked)
    assert found["execute_tool lookup"].attributes[names.GEN_AI_TOOL_CALL_RESULT] == "order 17 is on its way"


def test_live_failures_and_early_leaving(tracer: Any) -> None:
    take, exporter = tracer
    events = list(Telemetry(take).watch(shop(order=13).stream(State(question="fail"))))
    assert events[-1].kind == "run_ended"
    found = by_name(exporter)
    assert found["execute_tool lookup"].attributes["error.type"] == "tool_error"
    assert found["node close"].attributes["error.type"] == "node_error" and not found["node close"].status.is_ok
    assert found["invoke_workflow shop"].attributes["penknife.end_reason"] == "error"
    assert "secret reason" not in "".join(span.to_json() for span in exporter.get_finished_spans())
    exporter.clear()
    for _ in (watched := Telemetry(take).watch(shop().stream(State(question="x")))):
        break
    watched.close()  # type: ignore[attr-defined]
    assert by_name(exporter)["invoke_workflow shop"].attributes["error.type"] == "abandoned"


def test_a_run_that_waits_for_a_person_ends_its_spans(tracer: Any) -> None:
    take, exporter = tracer
    g = shop(ask=True)
    export(g.run(State(question="x"), thread="t1").trace, take)
    found = by_name(exporter)
    assert found["invoke_workflow shop"].attributes["penknife.end_reason"] == "interrupted"
    assert found["invoke_workflow shop"].attributes[names.GEN_AI_CONVERSATION_ID] == "t1"
    assert "node close" in found
    g.close()


def counter(root: Path, name: str, kind: str, used: int, limit: int = 1000) -> Path:
    domain = root / name
    domain.mkdir(exist_ok=True)
    for file, value in (("name", kind), ("energy_uj", used), ("max_energy_range_uj", limit)):
        (domain / file).write_text(f"{value}\n")
    return domain


def test_joules(tmp_path: Path) -> None:
    with Energy(tmp_path / "none") as nothing:
        pass
    assert nothing.joules is None
    counter(tmp_path, "intel-rapl:0", "package-0", 900)
    counter(tmp_path, "intel-rapl:0:0", "core", 5)
    counter(tmp_path, "intel-rapl:0:1", "dram", 10)
    with Energy(tmp_path) as used:
        counter(tmp_path, "intel-rapl:0", "package-0", 100)  # went round at 1000
        counter(tmp_path, "intel-rapl:0:0", "core", 70)
        counter(tmp_path, "intel-rapl:0:1", "dram", 40)
    assert used.joules == pytest.approx((200 + 30) / 1e6)
    with Energy() as real:
        sum(range(100_000))
    assert real.joules is None or real.joules >= 0


def test_without_opentelemetry_it_says_what_to_install() -> None:
    script = "import sys; sys.modules['opentelemetry'] = None; from agents.telemetry import Telemetry; Telemetry()"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
    assert "pip install 'penknife[agents]'" in out.stderr.splitlines()[-1]
