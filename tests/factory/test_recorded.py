"""Stored answers are found by id, question or prompt; bad files name file and line; what is missing is counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.chat import Message, ModelError, Request, answer
from factory.recorded import RecordedModel, check_answers, prompt_hash, read_answers, references
from factory.tasks.task import Example

EXAMPLES = [
    Example("a", "How many?", None, "t1", "1"),
    Example("b", "How  many?", None, "t2", None),
    Example("c", "Who?", None, "t1", "3"),
]


def request(example_id: str, text: str = "") -> Request:
    return Request(messages=(Message(role="user", content=text),), id=example_id)


def write(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_answers_come_by_id_or_by_prompt_and_missing_ones_are_errors() -> None:
    by_prompt = prompt_hash((Message(role="user", content="hello"),))
    model = RecordedModel({"a": "1", by_prompt: "world"})
    replies = answer(model, [request("a"), request("x", "hello"), request("x", "other")])
    assert [(r.text, r.stop_reason, r.id) for r in replies] == [("1", "stop", "a"), ("world", "stop", "x"), ("", "error", "x")]
    assert "'x'" in (replies[2].error or "")
    assert model.missing == 1


def test_references_are_the_answers_that_came_with_the_data() -> None:
    assert references(EXAMPLES) == {"a": "1", "c": "3"}


def test_rows_name_an_id_or_a_question(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"id": "c", "answer": "by id", "note": "ignored"}',
        "",
        '{"question": "how many?", "context_id": "t2", "answer": "narrowed"}',
        '{"question": "Nobody asked", "answer": "x"}',
        '{"id": "nobody", "answer": "x"}',
    )
    assert read_answers(path, EXAMPLES) == ({"c": "by id", "b": "narrowed"}, 2)
    assert check_answers(path) == 4
    assert read_answers(write(tmp_path, '{"question": "How many?", "answer": "7"}'), EXAMPLES)[0] == {"a": "7", "b": "7"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "no stored answer"),
        ('{"answer": "x"}', "no stored answer"),
        ('{"id": "a"}', 'no "answer"'),
        ('{"id": 3, "answer": "x"}', "no stored answer"),
        ('{"id": "a", "answer": null}', "no stored answer"),
    ],
)
def test_a_malformed_row_names_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    path = write(tmp_path, '{"id": "a", "answer": "1"}', line)
    for read in (check_answers, lambda p: read_answers(p, EXAMPLES)):
        with pytest.raises(ModelError, match="line 2") as caught:
            read(path)
        assert said in str(caught.value)
        assert str(path) in str(caught.value)


def test_two_different_answers_an_empty_file_and_a_binary_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="line 2: a second"):
        read_answers(write(tmp_path, '{"id": "a", "answer": "1"}', '{"id": "a", "answer": "2"}'), EXAMPLES)
    with pytest.raises(ModelError, match="no answers"):
        check_answers(write(tmp_path))
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="UTF-8"):
        check_answers(path)
