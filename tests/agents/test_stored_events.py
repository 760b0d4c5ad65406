"""What a store keeps of a step: small, read back as events, with all that is not repeated elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agents import events as ev
from agents.chat import Message, Reply, Sampling, Timings, TokenLogprob, Usage
from agents.checkpoint import Store
from agents.stored_events import pack, unpack
from tests.agents.test_events import EVENTS
from tests.agents.test_graph import State, chain

LOGPROBS = tuple(
    TokenLogprob(token=f"t{i}", id=i, logprob=-i / 7, top=((i, f"t{i}", -i / 7), (i + 1, "x", -3.1))) for i in range(40)
)
TURNS = tuple(Message(role=role, content=f"{role} {n}") for n in range(9) for role in ("user", "assistant"))
CALL = ev.ModelCalled(
    "desk", "m.gguf", (), Usage(prompt_tokens=19, completion_tokens=40), Timings(decode_ms=55.716285, total_ms=58.31933),
    "length", 0.25, "ab" * 32, Sampling(max_tokens=40, logprobs=True), "json_schema", None, "cd" * 32, 0, TURNS,
    Reply(text="the answer", logprobs=LOGPROBS, usage=Usage(prompt_tokens=19, completion_tokens=40), model="m.gguf",
          timings=Timings(decode_ms=55.716285, total_ms=58.31933), stop_reason="length"),
    step=3, node="desk", thread="u1", at_ms=12.3456789,
)  # fmt: skip


@pytest.mark.parametrize("event", [e for e in EVENTS if not isinstance(e, ev.ModelCalled)], ids=lambda event: event.kind)
def test_other_events_come_back_as_they_were(event: ev.Event) -> None:
    assert unpack(pack([event, event])) == [event, event]


def test_a_constrained_call_keeps_its_log_probabilities_exactly_and_only_the_last_turn() -> None:
    (found,) = unpack(pack([CALL]))
    assert isinstance(found, ev.ModelCalled) and CALL.reply is not None
    timings = Timings(decode_ms=55.716, total_ms=58.319)
    assert found.reply == CALL.reply.model_copy(update={"timings": timings})
    assert found == replace(CALL, messages=TURNS[-1:], timings=timings, reply=found.reply, at_ms=12.346)


def test_free_text_keeps_none_of_them() -> None:
    (found,) = unpack(pack([replace(CALL, constraint_kind=None)]))
    assert isinstance(found, ev.ModelCalled) and found.reply is not None
    assert (found.reply.text, found.reply.logprobs, found.confidence) == ("the answer", (), 0.25)


def test_what_a_reply_says_otherwise_than_its_event_is_kept() -> None:
    reply = Reply(text="y", model="other", stop_reason="stop", usage=Usage(prompt_tokens=7))
    (found,) = unpack(pack([replace(CALL, reply=reply)]))
    assert isinstance(found, ev.ModelCalled) and found.reply == reply
    (found,) = unpack(pack([ev.ModelCalled("p", "m", reply=Reply())]))
    assert isinstance(found, ev.ModelCalled) and found.reply == Reply()
    assert unpack(pack([ev.ModelCalled("p", "m")])) == [ev.ModelCalled("p", "m")]


def test_sizes() -> None:
    whole = len(ev.to_json(CALL))
    small, free = (len(pack([event]) or b"") for event in (CALL, replace(CALL, constraint_kind=None)))
    assert free < 330 and small < 1300 < whole / 4, (free, small, whole)
    longer = replace(CALL, messages=TURNS * 50, constraint_kind=None)
    assert len(pack([longer]) or b"") == free, "a step of a long conversation takes no more"


def test_nothing_and_damage() -> None:
    assert pack([]) is None and unpack(None) == []
    packed = pack([CALL]) or b""
    with pytest.raises(ValueError, match="cannot be read"):
        unpack(b"\xff" + packed)


def test_rows_of_schema_1_are_read_and_gone_on_with(tmp_path: Path) -> None:
    """Events were JSON lines then; everything else is the same."""
    path = tmp_path / "runs.db"

    def talk(s: State) -> None:
        ev.emit(ev.Escalated("p", "big", "unsure", 0.2))

    g = chain(talk)
    g.run(State(), thread="u", store=path)
    g.close()
    store = Store(path)
    (packed,) = [row.events for row in store.rows("u") if row.events is not None]
    lines = "\n".join(ev.to_json(event) for event in unpack(packed))
    store._db.execute("UPDATE rows SET events = ? WHERE events IS NOT NULL", (lines,))
    store._db.execute("PRAGMA user_version=1")
    store.close()
    g = chain(talk)
    assert [e.kind for e in g.history("u", store=path)[-1].events] == ["escalated"]
    g.run(State(), thread="u", store=path)
    assert [e.kind for shot in g.history("u") for e in shot.events] == ["escalated"] * 2
    g.close()
    store = Store(path)
    assert store._db.execute("PRAGMA user_version").fetchone() == (2,)
    store.close()
