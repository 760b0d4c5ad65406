"""The ledger: what is stored comes back, once; drops count once; a newer or foreign file is refused; a kill loses nothing."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agents.chat import Message, Reply, Sampling, Timings, TokenLogprob, Usage
from factory.ledger import SCHEMA_VERSION, Answer, Judged, Ledger, LedgerError, answer_key, from_reply

GREEDY = Sampling(temperature=0.0, top_p=1.0, top_logprobs=0)


def answer(key: str, text: str = "a", example_id: str = "e", seed: int | None = None, **more: object) -> Answer:
    return Answer(key, "t", "r", "answer", example_id, seed, text, **more)


def test_an_answer_comes_back_whole(tmp_path: Path) -> None:
    tokens = (TokenLogprob(token="SEL", id=5, logprob=-0.25, top=((5, "SEL", -0.25), (None, "sel", -2.0))),)
    reply = Reply(id="e1", text="SELECT „ü“", logprobs=tokens, stop_reason="length", timings=Timings(total_ms=12.5),
                  usage=Usage(prompt_tokens=10, completion_tokens=3, reused_tokens=4))  # fmt: skip
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert ledger.record(from_reply(reply, "k", "t", "r", "answer", 7, 0.125))
        assert not ledger.record(answer("k", "another"))
    with Ledger(tmp_path / "l.sqlite") as ledger:
        found = ledger.answer("k")
        assert found is not None
        assert (found.text, found.example_id, found.seed, found.stop_reason) == ("SELECT „ü“", "e1", 7, "length")
        assert found.logprobs == tokens
        assert found.usage == Usage(prompt_tokens=10, completion_tokens=3, reused_tokens=4, cost_usd=0.125)
        assert found.timings.total_ms == 12.5
        assert "k" in ledger
        assert "other" not in ledger
        assert ledger.answers() == [found]


def test_the_key_depends_on_everything_asked() -> None:
    ask = (Message(role="user", content="q"),)
    base = answer_key("t", "r", ask, GREEDY)
    assert base == answer_key(
        "t", "r", (Message(role="user", content="q"),), Sampling(temperature=0.0, top_p=1.0, top_logprobs=0)
    )
    others = [
        answer_key("t2", "r", ask, GREEDY),
        answer_key("t", "r2", ask, GREEDY),
        answer_key("t", "r", (Message(role="system", content="q"),), GREEDY),
        answer_key("t", "r", (Message(role="user", content="q "),), GREEDY),
        answer_key("t", "r", ask, GREEDY.model_copy(update={"seed": 0})),
        answer_key("t", "r", ask, GREEDY.model_copy(update={"temperature": 0.5})),
        answer_key("t", "r", ask, GREEDY, "phrase"),
        answer_key("t", "r", ask, GREEDY, "answer", "e1"),
    ]
    assert len({base, *others}) == 1 + len(others)


def test_totals_count_each_answer_once(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        for _ in range(2):
            ledger.record(answer("a", usage=Usage(prompt_tokens=10, completion_tokens=2, cost_usd=0.5)))
            ledger.record(answer("b", usage=Usage(prompt_tokens=1, completion_tokens=1)))
        totals = ledger.totals()
    assert (totals.calls, totals.prompt_tokens, totals.completion_tokens, totals.cost_usd, totals.unpriced) == (2, 11, 3, 0.5, 1)


def test_drops_count_a_row_once_and_a_stage_can_start_over(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        for _ in range(3):
            ledger.drop("rows", "duplicate", "e1")
        ledger.drop("rows", "duplicate", "e2")
        ledger.drop("tokens", "too-long", "e1")
        assert ledger.drops() == {"rows": {"duplicate": 2}, "tokens": {"too-long": 1}}
        ledger.replace_drops("rows", [("held-out-exact", "e1")])
        assert ledger.drops() == {"rows": {"held-out-exact": 1}, "tokens": {"too-long": 1}}


def test_verdicts_belong_to_an_example_and_are_replaced(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.record(answer("k", seed=1))
        ledger.record(answer("j", seed=0))
        ledger.judge(Judged("e1", "k", False, "wrong", "no", "x"))
        ledger.judge(Judged("e1", "k", True, "ok", "", "x", "v"))
        ledger.judge(Judged("e1", "j", False, "wrong"))
        ledger.judge(Judged("e2", "k", False, "wrong"))
        found = ledger.verdicts()
        assert [row.key for row in found["e1"]] == ["j", "k"]
        assert found["e1"][1] == Judged("e1", "k", True, "ok", "", "x", "v")
        assert ledger.reasons() == {"wrong": 2, "ok": 1}
        assert ledger.verdicts("someone else") == {}


def test_answers_of_another_ledger_are_taken_over_once(tmp_path: Path) -> None:
    with Ledger(tmp_path / "a.sqlite") as ledger:
        ledger.record(answer("k1", "old"))
        ledger.record(answer("k2"))
    with Ledger(tmp_path / "b.sqlite") as ledger:
        ledger.record(answer("k1", "own"))
        assert ledger.import_answers(tmp_path / "a.sqlite") == 1
        assert ledger.import_answers(tmp_path / "a.sqlite") == 0
        own = ledger.answer("k1")
        assert own is not None
        assert own.text == "own"
        assert ledger.totals().calls == 2


def test_a_newer_ledger_a_foreign_file_and_a_bad_place_are_refused(tmp_path: Path) -> None:
    newer = tmp_path / "newer.sqlite"
    Ledger(newer).close()
    with sqlite3.connect(newer) as db:
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    with pytest.raises(LedgerError, match=f"version {SCHEMA_VERSION + 1} is newer"):
        Ledger(newer)
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE singer (id)")
    with pytest.raises(LedgerError, match="not a ledger"):
        Ledger(foreign)
    text = tmp_path / "text.sqlite"
    text.write_text("this is no database, whatever its name says " * 40)
    with pytest.raises(LedgerError, match="not a readable ledger"):
        Ledger(text)
    with pytest.raises(LedgerError, match="cannot be created"):
        Ledger(text / "below" / "ledger.sqlite")


def test_threads_share_one_ledger(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:

        def write(part: int) -> None:
            for i in range(100):
                ledger.record(answer(f"{part}-{i}"))
                ledger.drop("s", "r", f"{part}-{i}")

        threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ledger.totals().calls == 400
        assert ledger.drops() == {"s": {"r": 400}}


WRITER = """
import sys
from factory.ledger import Answer, Ledger
ledger = Ledger(sys.argv[1])
start = ledger.totals().calls
for i in range(start, 1_000_000):
    ledger.record(Answer(f"k{i:07}", "t", "r", "answer", f"e{i}", None, "x"))
    print(i, flush=True)
"""


def test_a_killed_writer_loses_nothing_it_reported(tmp_path: Path) -> None:
    """Each number printed after `record` returned must be found after kill -9."""
    path = tmp_path / "l.sqlite"
    last = -1
    for wanted in (1, 40, 333):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline() for _ in range(wanted)]
            os.kill(writer.pid, signal.SIGKILL)
            lines += writer.stdout.readlines()
        last = max(int(line) for line in lines if line.endswith("\n"))
        with Ledger(path) as ledger:
            calls = ledger.totals().calls
            assert last + 1 <= calls <= last + 2
            assert len(ledger.keys()) == calls
