"""The two bundled sets against their own files, their splits, a data directory's test files, and files that are wrong."""

from __future__ import annotations

import csv
import io
import json
import lzma
import re
from collections import Counter
from pathlib import Path

import pytest

from factory.events import EventLog
from factory.rows import select_rows
from factory.tasks import get_task
from factory.tasks.route import sources
from factory.tasks.route.labels import OUT_OF_SCOPE
from factory.tasks.task import DataSource, TaskError

TASK = get_task("route")
DATA = Path(sources.__file__).parents[2] / "data"


def load(dataset: str, split: str, **more):
    return TASK.load(DataSource(dataset=dataset, split=split, **more))


def test_clinc_is_read_whole() -> None:
    raw = json.loads(lzma.decompress((DATA / "clinc150" / "data.json.xz").read_bytes()))
    for split, keys in (("train", ("train", "oos_train")), ("validation", ("val", "oos_val"))):
        examples, card = load("clinc150", split)
        expected = [(text, OUT_OF_SCOPE if label == "oos" else label) for key in keys for text, label in raw[key]]
        assert [(e.question, e.reference) for e in examples] == expected
        assert (card.n, card.license, card.split) == (len(expected), "CC BY 3.0", split)
    assert len(examples[0].context.labels) == 150
    assert {e.reference for e in examples} == set(examples[0].context.answers)


def test_banking_holds_out_a_tenth_of_every_label() -> None:
    text = lzma.decompress((DATA / "banking77" / "train.csv.xz").read_bytes()).decode()
    raw = Counter(row["category"] for row in csv.DictReader(io.StringIO(text, newline="")))
    train, held = (load("banking77", split)[0] for split in ("train", "validation"))
    assert Counter(e.reference for e in [*train, *held]) == raw
    for label, n in Counter(e.reference for e in held).items():
        assert abs(n - raw[label] / 10) <= 2
    assert len(Counter(e.reference for e in held)) == 77
    assert not {e.id for e in train} & {e.id for e in held}
    words = [{" ".join(re.findall(r"\w+", e.question.lower())) for e in part} for part in (train, held)]
    assert len(words[0] & words[1]) < 10  # the same words with other marks: left out when rows are chosen


def test_no_training_row_says_what_a_held_out_one_does() -> None:
    source = DataSource(dataset="clinc150+banking77")
    train, held = TASK.load(source)[0], TASK.others(source)
    rows = select_rows(TASK, train, None, held, "compact", EventLog()).rows
    said = {" ".join(re.findall(r"\w+", e.question.lower())) for e in held}
    assert not said & {" ".join(re.findall(r"\w+", row["question"].lower())) for row in rows}
    assert len(rows) > 0.95 * len(train)
    assert {len(row["prompt"]) for row in rows} == {1}


def test_both_sets_keep_their_labels_and_say_which_they_are() -> None:
    examples, card = load("clinc150+banking77", "validation")
    assert card.name == "clinc150+banking77"
    starts = {e.context_id: TASK.messages(e, "compact")[0].content.split("<q>")[0] for e in examples}
    assert starts == {"clinc150": "<route> clinc", "banking77": "<route> banking"}
    assert len({id(e.context) for e in examples}) == 2


def test_official_test_files_in_a_data_directory(tmp_path: Path) -> None:
    (tmp_path / "clinc150").mkdir()
    (tmp_path / "banking77").mkdir()
    data = {"test": [["how do i say hi", "translate"]], "oos_test": [["who won the game", "oos"]]}
    (tmp_path / "clinc150" / "data_full.json").write_text(json.dumps(data))
    with lzma.open(tmp_path / "banking77" / "test.csv.xz", "wt") as file:
        file.write('text,category\n"where is\nmy card",card_arrival\n')
    examples, _ = load("clinc150+banking77", "test", data_dir=tmp_path)
    assert [(e.question, e.reference) for e in examples] == [
        ("how do i say hi", "translate"), ("who won the game", OUT_OF_SCOPE), ("where is my card", "card_arrival"),
    ]  # fmt: skip
    with pytest.raises(TaskError, match=r"--split train: .*data_full\.json has no such part; choose from test, all"):
        load("clinc150", "train", data_dir=tmp_path)
    with pytest.raises(TaskError, match="choose from train, validation, all"):
        load("clinc150", "test")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("data.json", '{"train": [["hi", "tranlate"]]}', r'"train", row 1: \'tranlate\' .*did you mean \'translate\''),
        ("data.json", '{"train": [["hi"]]}', r'"train", row 1: .* is not \[utterance, intent\]'),
        ("data.json", "[1]", "not CLINC150's layout"),
        ("train.csv", "text,label\nhi,x\n", "columns are text, label"),
        ("train.csv", "text,category\nhi,card_arival\n", r"line 2: 'card_arival' .*did you mean 'card_arrival'"),
        ("other.txt", "", "choose from another --data-dir"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    dataset = "clinc150" if name == "data.json" else "banking77"
    with pytest.raises(TaskError, match=said) as caught:
        load(dataset, "train", data_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_asked_for() -> None:
    for source, said in (
        (DataSource(dataset="clink"), "unknown dataset 'clink'; choose from clinc150"),
        (DataSource(db=Path("x.sqlite")), "asks about no database"),
        (DataSource(dataset="clinc150", data_dir=Path("/nowhere")), "no such directory"),
        (DataSource(dataset="clinc150", questions=Path("q.jsonl")), "give one of the two"),
        (DataSource(labels=Path("l.txt")), "needs --questions"),
    ):
        with pytest.raises(TaskError, match=said):
            TASK.load(source)
    with pytest.raises(TaskError, match="nothing to sample"):
        TASK.drafts(DataSource(), 5, 0)
