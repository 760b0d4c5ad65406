"""Rows: every example is a row or a counted drop; overlap and repetition go, shared phrases stay; always the same bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest

from factory.events import EventLog
from factory.ledger import Answer, Judged, Ledger
from factory.rows import GramIndex, HeldOut, ngrams, pick, select_rows, write_jsonl
from factory.tasks.route.labels import LabelSet
from factory.tasks.route.task import RouteTask
from factory.tasks.task import Example
from tests.factory.toy import SumTask, sums

TASK = SumTask()


def select(examples: Sequence[Example], held_out: Sequence[Example] = (), ledger: Ledger | None = None, **more):
    found = select_rows(TASK, examples, ledger, held_out, more.pop("dialect", "plain"), EventLog(), **more)
    assert len(found.rows) + sum(found.drops.values()) == len(examples)
    return found


def ask(question: str, reference: str | None = "1", context: str = "c", example_id: str | None = None) -> Example:
    return Example(example_id or question, question, None, context, reference, "train")


def test_a_row_holds_what_a_student_trains_on(tmp_path: Path) -> None:
    found = select(sums(3), dialect="compact", path=tmp_path / "train.jsonl")
    assert found.rows[2] == {
        "id": "s2", "context_id": "c2", "question": "2 + 14", "answer": "16",
        "prompt": [{"role": "user", "content": "<q>2 + 14"}], "completion": "1 6", "source": "labels",
    }  # fmt: skip
    assert [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()] == found.rows


def test_drops_are_counted_in_ledger_events_and_result_alike(tmp_path: Path) -> None:
    examples = [ask("a b c d e", "1"), ask("a b c d e", "1", example_id="twin"), ask("x y z", "2000"), ask("no answer", None)]
    events = EventLog()
    with Ledger(tmp_path / "l.sqlite") as ledger:
        for example in examples[:3]:
            ledger.record(Answer(example.id, "teach", "", "answer", example.id, None, "text"))
            ledger.judge(Judged(example.id, example.id, True, canonical=example.reference))
        for _ in range(2):
            found = select_rows(TASK, examples, ledger, [], "compact", events, path=tmp_path / "t.jsonl")
            assert found.drops == {"duplicate": 1, "not-in-dialect-too-large": 1, "no-answer": 1}
            assert ledger.drops() == {"rows": dict(found.drops)}
        assert found.rows[0]["source"] == "teach"
    emitted = [(e["reason"], e["n"]) for e in events.events if e["kind"] == "drop"]
    assert sorted(emitted) == sorted(2 * list(found.drops.items()))


def test_labels_stand_in_for_refuted_answers_only_when_asked(tmp_path: Path) -> None:
    examples = [ask("a b c d e", "1"), ask("x y z", "2"), ask("p q r", None)]
    with Ledger(tmp_path / "l.sqlite") as ledger:
        for example, ok in zip(examples, (True, False, False)):
            ledger.record(Answer(example.id, "teach", "", "answer", example.id, None, "text"))
            ledger.judge(Judged(example.id, example.id, ok, "ok" if ok else "wrong", canonical="1" if ok else "7"))
        assert [row["answer"] for row in select(examples, ledger=ledger).rows] == ["1"]
        found = select(examples, ledger=ledger, fill=True)
    assert [(row["answer"], row["source"]) for row in found.rows] == [("1", "teach"), ("2", "labels")]
    assert found.drops == {"wrong": 1}


def test_copies_are_variants_where_the_task_has_them(tmp_path: Path) -> None:
    plain = select(sums(3), copies=3, path=tmp_path / "sums.jsonl")
    assert [row["id"] for row in plain.variants] == ["s0/1", "s1/1", "s2/1", "s0/2", "s1/2", "s2/2"]
    assert plain.variants[4] == {**plain.rows[1], "id": "s1/2"}
    written = [json.loads(line) for line in (tmp_path / "sums.jsonl").read_text().splitlines()]
    assert written == [*plain.rows, *plain.variants]

    labels = LabelSet("toy", "toy", {"greeting": "", "farewell": ""})
    said = "good morning to all of you on this fine and very long day of rest and play"
    asked = [Example("u", said, labels, labels.id, "greeting", "train")]
    first, again, other = (
        select_rows(RouteTask(), asked, None, [], "compact", EventLog(), copies=4, seed=seed) for seed in (0, 0, 1)
    )
    assert first.variants == again.variants != other.variants
    whole = set(said.split())
    for row in first.variants:
        assert row["completion"] == first.rows[0]["completion"] and row["question"] == said
        kept = row["prompt"][0]["content"].split("<q>")[1].split()
        assert set(kept) <= whole
    assert any(len(row["prompt"][0]["content"]) < len(first.rows[0]["prompt"][0]["content"]) for row in first.variants)


def test_a_refused_answer_gives_its_commonest_reason() -> None:
    refused = [Judged("e", str(i), False, reason) for i, reason in enumerate(["wrong", "does-not-run", "wrong"])]
    assert pick(refused) == (None, "wrong")
    assert pick([]) == (None, "no-answer")


def test_the_answer_most_samples_gave_is_picked_then_the_shortest() -> None:
    def proven(*texts: str) -> list[Judged]:
        return [Judged("e", str(i), True, canonical=text) for i, text in enumerate(texts)]

    chosen, _ = pick([*proven("aaa", "bb", "aaa", "c"), Judged("e", "9", False, "wrong", canonical="c")])
    assert chosen is not None
    assert chosen.canonical == "aaa"
    chosen, _ = pick(proven("long one", "short", "other one"))
    assert chosen is not None
    assert chosen.canonical == "short"


def test_what_is_held_out_does_not_train() -> None:
    base = "which player scored the most points for the home team in the final match of the national cup of"
    held = [ask("how many are there", "7", "c"), ask(f"{base} 1998", "3", "other")]
    examples = [
        ask("How many are there", "1", "c"),
        ask("quite another thing", "7", "c"),
        ask("quite another thing here", "7", "d"),
        ask(f"{base} 1999", "4", "e"),
        ask("how many are here", "1", "c"),
    ]
    found = select(examples, held)
    assert found.drops == {"held-out-exact": 1, "held-out-answer": 1, "held-out-ngram": 1}
    assert [row["question"] for row in found.rows] == ["quite another thing here", "how many are here"]


def test_the_answer_that_is_kept_is_compared_not_the_reference(tmp_path: Path) -> None:
    """A teacher's answer that equals a held-out one on the same context overlaps although the example had no reference."""
    example = ask("something", None)
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.record(Answer("k", "t", "", "answer", example.id, None, "7"))
        ledger.judge(Judged(example.id, "k", True, canonical="7"))
        assert select([example], [ask("else", "7")], ledger).drops == {"held-out-answer": 1}
        assert select([example], [ask("else", "8")], ledger).rows[0]["answer"] == "7"


def test_repetition_goes_and_questions_that_differ_by_a_value_stay() -> None:
    base = "which player scored the most points for the home team in the final match of the national cup of"
    examples = [
        ask(f"{base} 1992", "1"),
        ask(f"{base}, 1992?", "1", example_id="punctuation"),
        ask(f"{base} 1992", "2", example_id="contradiction"),
        ask(f"{base} 1992 please", "1"),
        ask(f"{base} 1993", "3"),
        ask(f"{base} 1992", "1", "another table", "elsewhere"),
    ]
    found = select(examples)
    assert found.drops == {"duplicate": 1, "duplicate-contradicts": 1, "near-duplicate": 1}
    assert [row["id"] for row in found.rows] == [examples[0].id, f"{base} 1993", "elsewhere"]


def test_shared_phrases_do_not_make_questions_similar() -> None:
    """Templates that half of a set shares: nothing may go for "what is the name of the" alone."""
    held = [ask(f"what is the name of the {word} ?", "1", f"h{word}") for word in ("singer", "stadium", "river")]
    examples = [ask(f"what is the name of the {word} ?", "1", f"t{word}") for word in ("mountain", "state", "concert", "city")]
    assert not select(examples, held).drops


def test_the_index_finds_exactly_what_comparing_all_pairs_finds() -> None:
    dice = random.Random(3)
    vocabulary = [f"w{i}" for i in range(12)]
    questions = [" ".join(dice.choice(vocabulary) for _ in range(dice.randint(1, 14))) for _ in range(150)]
    for question in questions[:150]:
        parts = question.split()
        parts[dice.randrange(len(parts))] = dice.choice(vocabulary)
        questions.append(" ".join(parts) if dice.random() < 0.5 else f"{question} {dice.choice(vocabulary)}")
    sets = [ngrams(question) for question in questions]
    expected = {i for i, j in combinations(range(len(sets)), 2) if 10 * len(sets[i] & sets[j]) >= 8 * len(sets[i] | sets[j])}
    index = GramIndex()
    index.learn(sets)
    found = set()
    for i in reversed(range(len(sets))):
        if index.similar(sets[i]):
            found.add(i)
        index.add(sets[i])
    assert found == expected
    assert 10 < len(expected) < len(sets)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    examples = [ask(f"how many {i % 40} in {i}", str(i % 7), f"c{i % 3}") for i in range(300)]
    for name in ("a", "b"):
        select(examples, examples[:5], path=tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    write_jsonl(path, [{"id": "old"}])
    with pytest.raises(TypeError):
        write_jsonl(path, [{"id": "new"}, {"id": object()}])
    assert json.loads(path.read_text()) == {"id": "old"}


def test_work_grows_with_the_rows_and_not_with_their_square() -> None:
    """Counted in comparisons, not in seconds: 4 times the rows may cost about 4 times as many."""

    def comparisons(n: int) -> int:
        dice = random.Random(1)
        held = [ask(f"what is the {dice.randrange(10**6)} of the {dice.randrange(10**6)} in {i}", None) for i in range(n)]
        index = HeldOut(TASK, held)
        counted = 0

        class Counting(frozenset):
            def __and__(self, other):
                nonlocal counted
                counted += 1
                return frozenset.__and__(self, other)

        for i in range(n):
            index.overlap({}, Counting(ngrams(f"what is the {dice.randrange(10**6)} of the {dice.randrange(10**6)} by {i}")))
        return counted

    assert comparisons(2000) <= 6 * comparisons(500) + 2000
