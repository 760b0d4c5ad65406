"""Where examples of the tools task come from: SGD's layout, the bundled Seal-Tools, SNIPS, a user's functions and questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agents.constrain import accepts
from factory.tasks import get_task
from factory.tasks.task import AnswerError, DataSource, TaskError
from factory.tasks.tools import calls
from tests.factory.tasks.tools.worlds import FUNCTIONS, SERVICES, SPECS, write_sgd

TASK: Any = get_task("tools")


def sgd(directory: Path, split: str) -> list[Any]:
    return list(TASK.load(DataSource(dataset="sgd", data_dir=directory, split=split))[0])


def test_sgd_asks_at_each_call_with_what_was_said_and_nothing_else(tmp_path: Path) -> None:
    write_sgd(tmp_path, "train")
    found = [e for e in sgd(tmp_path, "train") if e.extra["kind"] == "call"]
    assert len(found) == 30
    first = found[0]
    assert first.question == (
        "User: I need a train for 0 things.\nSystem: Where to, and when?\nUser: To SF next Monday, two refundable seats."
    )
    assert calls.read(first.reference)[0].arguments == {
        "to_city": "San Francisco", "journey_date": "2019-03-04", "seats": 2, "refundable": True,
    }  # fmt: skip
    function = first.context.by_name["FindTrain"]
    kinds = {a.name: (a.kind, a.required, a.default) for a in function.arguments}
    assert kinds == {
        "to_city": ("text", True, None), "journey_date": ("date", True, None), "seats": ("integer", False, 1),
        "refundable": ("boolean", False, "dontcare"), "fare_class": ("choice", False, "Value"),
    }  # fmt: skip


def test_sgd_answers_point_at_the_request_and_count_as_right(tmp_path: Path) -> None:
    write_sgd(tmp_path, "train", 5)
    for example in sgd(tmp_path, "train"):
        completion = TASK.encode(example, example.reference, "compact")
        decoded = TASK.decode(example, completion, "compact")
        assert TASK.score(example, decoded).correct and accepts(TASK.constraint(example, "compact"), completion)
        if example.extra["kind"] == "call":
            assert calls.read(decoded)[0].arguments["to_city"] == "SF"
            wrong = [calls.Call("FindTrain", {**calls.read(decoded)[0].arguments, "to_city": "Paris"})]
            assert TASK.score(example, calls.write(wrong)).error == "wrong-value"


def test_sgd_offers_other_services_too_and_keeps_a_share_of_turns_without_calls(tmp_path: Path) -> None:
    write_sgd(tmp_path, "train", 200)
    found = sgd(tmp_path, "train")
    none = sum(e.extra["kind"] == "none" for e in found)
    assert 50 < none < 130 and all(e.reference == "[]" for e in found if e.extra["kind"] == "none")
    assert 0.2 < sum("GetWeather" in e.context.by_name for e in found) / len(found) < 0.5
    assert [(e.id, list(e.context.by_name)) for e in found] == [(e.id, list(e.context.by_name)) for e in sgd(tmp_path, "train")]


def test_an_official_test_split_loads_and_says_whether_training_knows_a_service(tmp_path: Path) -> None:
    write_sgd(tmp_path, "test", 3)
    assert {e.extra["seen"] for e in sgd(tmp_path, "test")} == {None}
    write_sgd(tmp_path, "train", 3, [SERVICES[1], {**SERVICES[0], "service_name": "Trains_2"}])
    made = next(e for e in sgd(tmp_path, "test") if e.extra["kind"] == "call")
    assert made.extra["seen"] is False and "exact_call_unseen" in TASK.score(made, made.reference).metrics
    with pytest.raises(TaskError, match=r"--split dev: no dev.jsonl.xz"):
        sgd(tmp_path, "dev")


def test_the_bundled_set_divides_without_overlap_and_mostly_fits_the_compact_dialect() -> None:
    train, card = TASK.load(DataSource())
    held, _ = TASK.load(DataSource(split="xdev"))
    assert card.name == "seal-tools" and card.license == "Apache-2.0"
    assert len(train) + len(held) == 700 and not {e.id for e in train} & {e.id for e in held}
    assert TASK.validation_split(DataSource()) == "xdev" and len(TASK.others(DataSource())) == len(held)
    said = lost = 0
    for example in held:
        try:
            completion = TASK.encode(example, example.reference, "compact")
        except AnswerError as error:
            lost += error.reason in ("value-not-in-request", "not-a-number", "not-a-date", "not-a-time")
            continue
        said += TASK.score(example, TASK.decode(example, completion, "compact")).correct
    assert said > 0.7 * len(held) and said + lost >= len(held) - 2


def test_snips_makes_calls_of_tags(tmp_path: Path) -> None:
    rows = [
        {"text": "play a tune by brian epstein", "tags": "O O B-music_item O B-artist I-artist", "intent": "PlayMusic"},
        {"text": "add this", "tags": "O", "intent": "AddToPlaylist"},
        {"text": "play x and y", "tags": "O B-track O B-track", "intent": "PlayMusic"},
        {"text": "play x", "tags": "O B-colour", "intent": "PlayMusic"},
    ]
    (tmp_path / "valid.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found, card = TASK.load(DataSource(dataset="snips", data_dir=tmp_path, split="valid"))
    assert card.skipped == {"bad-tags": 1, "repeated-slot": 1, "unknown-slot": 1}
    wanted = [calls.Call("PlayMusic", {"music_item": "tune", "artist": "brian epstein"})]
    assert found[0].reference in (calls.write(wanted), "[]")


def own(tmp_path: Path, rows: list[Any], **more: Any) -> DataSource:
    (tmp_path / "functions.json").write_text(json.dumps(SPECS))
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSource(functions=str(tmp_path / "functions.json"), questions=tmp_path / "asked.jsonl", **more)


def test_a_users_questions_with_his_functions(tmp_path: Path) -> None:
    rows = [
        {"question": "mails of today", "calls": [{"name": "listMails", "arguments": {"date": "today"}}], "today": "2020-02-02",
         "split": "train"},
        {"question": "hello", "calls": [], "functions": ["listMails"], "split": "train"},
        {"question": "how?", "split": "xdev"},
        {"question": "sum", "functions": [{"name": "add", "parameters": {"type": "object", "properties": {}}}], "split": "xdev",
         "calls": [{"name": "add", "arguments": {}}]},
    ]  # fmt: skip
    found, card = TASK.load(own(tmp_path, rows))
    assert card.source == "functions.json asked.jsonl", "a card leaves the machine, the machine's directories stay"
    assert card.skipped == {"split-xdev": 2} and card.license == "yours"
    assert calls.read(found[0].reference)[0].arguments == {"date": "2020-02-02"}
    assert list(found[1].context.by_name) == ["listMails"] and found[1].reference == "[]"
    held = TASK.load(own(tmp_path, rows, split="xdev"))[0]
    assert held[0].reference is None and list(held[1].context.by_name) == ["add"]
    assert {e.question for e in TASK.others(own(tmp_path, rows))} == {"how?", "sum"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "x", "calls": [{"name": "fly"}]}, "line 1: 'fly' is not offered; there are bookTable"),
        ({"question": "x", "calls": "fly()"}, "line 1: calls cannot be read"),
        ({"question": "x", "functions": ["fly"]}, "line 1: function 'fly' is not among those given"),
        ({"question": "x", "calls": [{"name": "bookTable", "arguments": {}}]}, "line 1: bookTable needs 'date'"),
        ({"question": "x", "today": "soon"}, "line 1: today is 'soon'; write YYYY-MM-DD"),
        ({"calls": []}, "line 1: no 'question'"),
    ],
)
def test_a_bad_row_is_one_sentence_with_its_line(tmp_path: Path, row: Any, words: str) -> None:
    with pytest.raises(TaskError) as error:
        TASK.load(own(tmp_path, [row], split="all"))
    assert words in str(error.value)


def test_functions_come_from_python_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_office.py").write_text(
        "from agents.tools import tool\n\n@tool\ndef ring(bell: str, times: int = 1) -> str:\n    return bell * times\n\n"
        "all_of_them = [ring]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for place in ("my_office:ring", "my_office:all_of_them"):
        made = TASK.drafts(DataSource(functions=place), 5, 0)
        assert list(made[0].context.by_name) == ["ring"]
        assert [a.kind for a in made[0].context.functions[0].arguments] == ["text", "integer"]


@pytest.mark.parametrize("place", ["nowhere.json", "nowhere", "json:nothing", "no_module_of_this_name:x"])
def test_functions_that_are_not_there_are_one_sentence(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskError, match=f"--functions {place}: .*give"):
        TASK.drafts(DataSource(functions=place), 5, 0)


def test_drafts_are_said_and_answered_alike(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(json.dumps(SPECS))
    made = TASK.drafts(DataSource(functions=str(tmp_path / "f.json")), 150, 3)
    assert len({e.question.lower() for e in made}) == 150
    assert made[7].question == TASK.drafts(DataSource(functions=str(tmp_path / "f.json")), 150, 3)[7].question
    counts = [len(calls.read(e.reference)) for e in made]
    assert {0, 1, 2} == set(counts) and counts.count(0) < 60
    for example in made:
        assert all(value.lower() in example.question.lower() for value in example.extra["values"])
        completion = TASK.encode(example, example.reference, "compact")
        assert TASK.verify(example, TASK.decode(example, completion, "compact")).ok
        assert accepts(TASK.constraint(example, "plain"), TASK.encode(example, example.reference, "plain"))


def test_drafts_read_back_as_questions(tmp_path: Path) -> None:
    from factory.questions import _row

    (tmp_path / "f.json").write_text(json.dumps(SPECS))
    made = TASK.drafts(DataSource(functions=str(tmp_path / "f.json")), 20, 1)
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(_row(e)) + "\n" for e in made))
    back = TASK.load(DataSource(functions=str(tmp_path / "f.json"), questions=tmp_path / "q.jsonl", split="all"))[0]
    assert [(e.question, e.reference, list(e.context.by_name)) for e in back] == [
        (e.question, e.reference, list(e.context.by_name)) for e in made
    ]
    assert FUNCTIONS[0].name in back[0].context.by_name


def test_requests_by_templates_are_the_same_every_time_and_divided_by_their_functions() -> None:
    parts = {split: TASK.load(DataSource(dataset="stiff", split=split))[0] for split in ("train", "xdev")}
    assert [len(part) for part in parts.values()] == [12_000, 600]
    again = TASK.load(DataSource(dataset="stiff", split="xdev"))[0]
    assert [(e.id, e.question, e.reference) for e in again] == [(e.id, e.question, e.reference) for e in parts["xdev"]]
    named = [{name for e in part for name in e.context.by_name} for part in parts.values()]
    assert not named[0] & named[1] and len(named[0]) > 3000 and len(named[1]) > 200
    share = sum(e.extra["kind"] == "none" for e in parts["train"]) / 12_000
    assert 0.1 < share < 0.3 and len({e.context.today for e in parts["xdev"]}) > 10
    encoded = 0
    for example in parts["xdev"][:100]:
        try:
            completion = TASK.encode(example, example.reference, "compact")
        except AnswerError:
            continue
        encoded += 1
        assert TASK.score(example, TASK.decode(example, completion, "compact")).correct
    assert encoded > 95


def test_several_sets_are_one(tmp_path: Path) -> None:
    (tmp_path / "sgd").mkdir()
    for split in ("train", "dev"):
        write_sgd(tmp_path / "sgd", split, 10)
    snips = tmp_path / "slots_snips"
    snips.mkdir()
    row = {"text": "rate this book four", "tags": "O B-object_select B-object_type B-rating_value", "intent": "RateBook"}
    for split in ("train", "valid"):
        (snips / f"{split}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    source = DataSource(dataset="sgd+snips+seal-tools", data_dir=tmp_path, split="train")
    found, card = TASK.load(source)
    assert card.name == "sgd+snips+seal-tools" and card.n == len(found)
    assert card.license == "CC BY-SA 4.0; none stated; Apache-2.0" and "Rastogi" in card.source and "Coucke" in card.source
    assert {e.id.split("-")[0] for e in found} == {"train", "snips", "seal"}
    assert TASK.validation_split(source) == "validation"
    held, _ = TASK.load(source.model_copy(update={"split": "validation"}))
    parts = (("sgd", tmp_path / "sgd", "dev"), ("snips", snips, "valid"), ("seal-tools", None, "xdev"))
    alone = [TASK.load(DataSource(dataset=name, data_dir=place, split=split))[0] for name, place, split in parts]
    assert [e.id for e in held] == [e.id for part in alone for e in part]
    assert {e.id for e in TASK.others(source)} == {e.id for e in held}
    assert {e.id for e in TASK.others(source.model_copy(update={"split": "validation"}))} == {e.id for e in found}


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("sgd+nothing", "unknown dataset 'nothing'"),
        ("seal-tools+snips", "has no folder snips or slots_snips for snips"),
        ("", "unknown dataset ''"),
    ],
)
def test_a_set_that_is_not_there_is_one_sentence(dataset: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=words) as caught:
        TASK.load(DataSource(dataset=dataset, data_dir=tmp_path))
    assert "\n" not in str(caught.value)


def test_few_functions_are_asked_for_all_the_same_and_other_splits_are_refused(tmp_path: Path) -> None:
    tools = [{"api_name": f"get{i}Thing", "parameters": {"thing name": {"type": "str"}}, "required": []} for i in range(60)]
    (tmp_path / "tool.jsonl").write_text("".join(json.dumps(tool) + "\n" for tool in tools), encoding="utf-8")
    found = TASK.load(DataSource(dataset="stiff", data_dir=tmp_path, split="xdev"))[0]
    assert len(found) == 600 and 1 <= len({name for e in found for name in e.context.by_name}) < 24
    with pytest.raises(TaskError, match="has the splits train and validation"):
        TASK.load(DataSource(dataset="seal-tools+stiff", split="xdev"))
    with pytest.raises(TaskError, match="no such directory"):
        TASK.load(DataSource(dataset="seal-tools+stiff", data_dir=tmp_path / "typo"))
