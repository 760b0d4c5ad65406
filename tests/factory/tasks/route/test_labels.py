"""Label sets: both dialects said and read back, what a chatty model may write, labels files good and bad."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.constrain import accepts
from factory.tasks import get_task
from factory.tasks.route.labels import OUT_OF_SCOPE, from_data, make_set, read_labels
from factory.tasks.route.prompt import normalized
from factory.tasks.route.sources import label_set
from factory.tasks.sql.reading import Fingerprint
from factory.tasks.task import AnswerError, Example, TaskError

TASK = get_task("route")


@pytest.mark.parametrize("name", ["clinc150", "banking77"])
@pytest.mark.parametrize("dialect", ["plain", "compact"])
def test_every_label_is_said_allowed_and_read(name: str, dialect) -> None:
    labels = label_set(name)
    example = Example("1", "hello", labels, labels.id)
    constraint = TASK.constraint(example, dialect)
    assert constraint is TASK.constraint(example, dialect)  # one object for all questions of a set
    said = [TASK.encode(example, answer, dialect) for answer in labels.answers]
    assert len(set(said)) == len(labels.answers) == len(labels.labels) + 1
    for answer, text in zip(labels.answers, said):
        assert TASK.decode(example, text, dialect) == answer
        assert accepts(constraint, text)
    assert not accepts(constraint, said[0] + " x")
    if dialect == "compact":
        assert all(text == text.lower() for text in said)
        assert said[-1] == "<oos>"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("card_arrival", "card_arrival"),
        ("Card Arrival.", "card_arrival"),
        ('Label: "card_arrival"', "card_arrival"),
        ("**Answer:** card-arrival", "card_arrival"),
        ("The label is card_arrival\nbecause the card is late", "card_arrival"),
        ("cancel_transfer is what fits", "cancel_transfer"),
        ("OUT OF SCOPE", OUT_OF_SCOPE),
        ("reverted_card_payment", "reverted_card_payment?"),
        ("either card_arrival or card_linking", None),
        ("I cannot say", None),
    ],
)
def test_what_a_teacher_may_write(text: str, answer: str | None) -> None:
    labels = label_set("banking77")
    if answer is None:
        with pytest.raises(AnswerError) as caught:
            labels.decode(text, "plain")
        assert caught.value.reason == "unknown-label"
    else:
        assert labels.decode(text, "plain") == answer


def test_answers_that_are_none() -> None:
    labels = label_set("clinc150")
    for dialect in ("plain", "compact"):
        with pytest.raises(AnswerError) as caught:
            labels.decode("  ", dialect)
        assert caught.value.reason == "empty"
    with pytest.raises(AnswerError, match="did you mean 'translate'"):
        labels.encode("tranlate", "compact")


def test_an_utterance_is_written_one_way() -> None:
    assert normalized("I’m  WAITING, №5?") == " i'm waiting , no 5 ?"
    assert "<" not in normalized("<oos> <q> hi")
    assert normalized("日本") == " 日本"
    assert normalized("🙂").strip() == "🙂"


def test_the_plain_prompt_lists_the_labels_and_the_compact_one_does_not() -> None:
    labels = make_set("desk", "desk", {"billing": "money", "sales": ""}, True, "x")
    example = Example("1", "Where is my invoice?", labels, "desk")
    system, user = TASK.messages(example, "plain")
    assert "- billing: money\n- sales\n- out_of_scope: none" in system.content
    assert user.content == "Request: Where is my invoice?"
    (only,) = TASK.messages(example, "compact")
    assert only.content == "<route> desk<q> where is my invoice ?"
    assert TASK.special_tokens("compact") == ("<route>", "<q>", "<oos>")
    corpus = TASK.corpus([example], "compact")
    assert {" billing", " sales", "<oos>", only.content} == set(corpus)


@pytest.mark.parametrize(
    ("name", "content", "labels", "outside"),
    [
        ("l.txt", "billing: money matters\n# note\n\nsales\n", {"billing": "money matters", "sales": ""}, None),
        ("l.txt", "billing\tmoney: matters\n", {"billing": "money: matters"}, None),
        ("l.json", '["a", "b"]', {"a": "", "b": ""}, None),
        ("l.json", '{"a": "x", "b": ""}', {"a": "x", "b": ""}, None),
        ("l.json", '{"labels": ["a", "b"], "out_of_scope": true}', {"a": "", "b": ""}, True),
        ("l.json", '{"labels": {"a": "x"}, "out_of_scope": "other", "name": "help desk"}', {"a": "x"}, "other"),
    ],
)
def test_labels_files(tmp_path: Path, name: str, content: str, labels, outside) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    found = read_labels(tmp_path / name, Fingerprint())
    assert (dict(found.labels), found.outside) == (labels, outside)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("l.json", "{", r"l\.json, line 1: not valid JSON"),
        ("l.json", "[1, 2]", "holds no labels"),
        ("l.json", '["a", "a"]', "'a' stands there twice"),
        ("l.json", '{"labels": ["a"], "oos": true}', "unknown key 'oos'"),
        ("l.json", '{"labels": ["a"], "out_of_scope": 3}', '"out_of_scope" is true, false or a label'),
        ("l.txt", "a\nb\na\n", "line 3: the label 'a' stands there twice"),
        ("l.txt", ": about\n", "line 1: .* has no label"),
    ],
)
def test_bad_labels_files_name_the_line(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(TaskError, match=said) as caught:
        read_labels(tmp_path / name, Fingerprint())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a"], "at least two"),
        (["a", ""], "is empty"),
        (["pin_change", "Pin Change"], "read the same"),
        (["a", "<q> b"], "a <mark>"),
        ([str(i) for i in range(1001)], "1,001 labels"),
        ({"a": "x" * 401, "b": ""}, "401 characters"),
    ],
)
def test_sets_that_cannot_be_told_apart(labels, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        make_set("x", "x", labels, False, "here")


def test_a_set_survives_its_card() -> None:
    labels = make_set("desk", "help desk", {"billing": "money", "sales": ""}, True, "x")
    (again,) = from_data({"sets": [labels.data()]}, "card")
    assert (again.data(), again.words) == (labels.data(), labels.words)
    for damaged in ({}, {"sets": []}, {"sets": [{"id": "x"}]}, {"sets": 3}):
        with pytest.raises(TaskError, match="holds no label set"):
            from_data(damaged, "router")
