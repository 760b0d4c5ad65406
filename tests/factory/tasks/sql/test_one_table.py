"""One table of a user's file in WikiSQL's form: what is asked, and that the SQL that comes back finds what SQLite finds."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from agents.card import BaseEntry, Card, DataEntry
from agents.models.scripted import Scripted
from factory.tasks import get_task
from factory.tasks.sql import sqlite_file
from factory.tasks.sql.database import Database
from factory.tasks.sql.link import link
from factory.tasks.sql.one_table import in_form, learned_form, one_table
from factory.tasks.task import DataSource, Dialect, Example, TaskError
from tests.factory.tasks.sql.test_grammar import accepts

TABLE = 'Order "book"'
CITIES = ["Ulm", "Graz", "St. Gallen", "Zürich"]
STATES = ["shipped", "waiting for payment", "Cancelled"]
PEOPLE = ["Anna Meyer", "Ben O'Neill", "Clara Huber"]

ASKED = {
    "What is the status of order 1017?": "SELECT status FROM o WHERE orderNo = 1017",
    "Which orders did ben o'neill place?": "SELECT orderNo FROM o WHERE customer_name = 'Ben O''Neill'",
    "How many orders are from GRAZ?": "SELECT count(orderNo) FROM o WHERE City = 'Graz'",
    "What is the highest price in st gallen?": "SELECT max(Price) FROM o WHERE City = 'St. Gallen'",
    "What do the cancelled ones from zürich cost in all?":
        "SELECT sum(Price) FROM o WHERE status = 'Cancelled' AND City = 'Zürich'",
    "Who ordered for more than 80.5?": "SELECT customer_name FROM o WHERE Price > 80.5",
    "Which order weighs most, what is the highest weight?": "SELECT max(CAST(nullif(Weight, '') AS REAL)) FROM o",
    "Which orders weigh under 9?": "SELECT orderNo FROM o WHERE CAST(nullif(Weight, '') AS REAL) < 9",
    "Which orders have the code 007?": "SELECT orderNo FROM o WHERE Code = '007'",
    "Who ordered on 2026-03-04?": "SELECT customer_name FROM o WHERE \"day it was made\" = '2026-03-04'",
    "Which orders were planned for 2027?": "SELECT orderNo FROM o WHERE Planned = 2027",
    "What is the average price of those that are waiting for payment?":
        "SELECT avg(Price) FROM o WHERE status = 'waiting for payment'",
}  # fmt: skip
"""Question -> the query that a person would write, over the view o. Spelling, case and signs differ from what is stored."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shop.sqlite"
    with sqlite3.connect(path) as made:
        made.execute(
            'CREATE TABLE "Order ""book""" (orderNo INTEGER PRIMARY KEY, customer_name TEXT, City TEXT, status TEXT, Price REAL, '
            'Weight TEXT, Code TEXT, "day it was made" DATE, Planned YEAR, Photo BLOB)'
        )
        for i in range(60):
            made.execute(
                'INSERT INTO "Order ""book""" VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)',
                (1000 + i, PEOPLE[i % 3], CITIES[i % 4], STATES[i % 5 % 3], i * 1.75, str(i) if i % 7 else "", f"{i:03}",
                 f"2026-03-{i % 28 + 1:02}", 2026 + i % 3, b"\0"),
            )  # fmt: skip
    made.close()
    return path


def rows_of(path: Path, sql: str) -> list[tuple[object, ...]]:
    """Straight from SQLite, without our reader, in no order."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    try:
        return sorted(connection.execute(sql).fetchall(), key=repr)
    finally:
        connection.close()


def by_hand(path: Path, sql: str) -> list[tuple[object, ...]]:
    return rows_of(path, sql.replace("FROM o", 'FROM "Order ""book"""'))


def example(database: Database, question: str) -> Example:
    return Example("q", question, database, database.id)


@pytest.mark.parametrize("dialect", ["plain", "compact"])
@pytest.mark.parametrize("question", ASKED)
def test_an_answer_finds_what_the_hand_written_query_finds(file: Path, question: str, dialect: Dialect) -> None:
    """The hand-written query as a completion, its values as the question has them, and back to SQL over the file."""
    task, database = get_task("sql"), one_table(Database.from_file(file))
    wanted = by_hand(file, ASKED[question])
    assert wanted and wanted != [(None,)]
    asked = example(database, question)
    completion = task.encode(asked, ASKED[question].replace("FROM o", 'FROM "Order ""book"""'), dialect)
    answer = task.decode(asked, completion, dialect)
    assert rows_of(file, answer) == wanted
    assert sorted(database.execute(answer).rows, key=repr) == wanted
    assert task.decode(asked, task.encode(asked, answer, dialect), dialect) == answer
    assert task.verify(asked, answer).ok


def test_the_grammar_takes_every_gold_and_no_general_query(file: Path) -> None:
    task, database = get_task("sql"), one_table(Database.from_file(file))
    for question, sql in ASKED.items():
        asked = example(database, question)
        completion = task.encode(asked, sql.replace("FROM o", 'FROM "Order ""book"""'), "compact")
        grammar = task.constraint(asked, "compact")
        assert grammar is not None and accepts(grammar, completion), completion
        assert not accepts(grammar, "<select><t0><c0><from><t0>")


def test_the_prompt_is_wikisqls_with_the_columns_as_words(file: Path) -> None:
    """The same table read as WikiSQL's rows are, under headers of words, gives the same prompt but for the types of codes."""
    task, question = get_task("sql"), "What is the status of Anna Meyer in st gallen with order no 1017?"
    shown = task.messages(example(one_table(Database.from_file(file)), question), "compact")[0].content
    header = ["order No", "customer name", "City", "status", "Price", "Weight", "Code", "day it was made", "Planned"]
    table = [tuple("" if v is None else str(v) for v in row[:9]) for row in by_hand(file, "SELECT * FROM o")]
    learned = task.messages(example(Database.from_rows("w", header, table), question), "compact")[0].content
    assert shown.replace(" photo<c9>", "") == learned.replace(" code<num>", " code")
    assert "<v0> anna meyer" in shown and "<t0>" not in shown


def test_a_view_a_named_table_and_the_general_form(file: Path) -> None:
    with sqlite3.connect(file) as made:
        made.execute('CREATE VIEW graz AS SELECT orderNo, Price * 2 AS twice FROM "Order ""book""" WHERE City = \'Graz\'')
    made.close()
    whole = Database.from_file(file)
    view = one_table(whole, "GRAZ")
    assert [(c.name, c.type) for _, c in view.schema.columns] == [("orderNo", "number"), ("twice", "number")]
    answer = get_task("sql").decode(example(view, "order no with twice over 100?"), "<sel><c0><and><gt> 100<c1>", "compact")
    assert rows_of(file, answer) == rows_of(file, "SELECT orderNo FROM graz WHERE twice > 100") != []
    general = in_form(whole, "general", TABLE)
    assert not general.schema.single and [t.name for t in general.schema.tables] == [TABLE]
    assert "Anna Meyer" in general.values(1) and in_form(whole, "general") is whole
    with pytest.raises(TaskError, match=r"shop: has 2 tables \(Order \"book\", graz\).*table=NAME"):
        one_table(whole)
    with pytest.raises(TaskError, match=r"has no table 'nothing'; choose from Order \"book\", graz"):
        one_table(whole, "nothing")


def test_a_table_that_is_too_wide_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "wide.db") as made:
        made.execute(f"CREATE TABLE wide ({', '.join(f'c{i} INTEGER' for i in range(65))})")
    made.close()
    with pytest.raises(TaskError, match=r"table wide has 65 columns.*64"):
        one_table(Database.from_file(tmp_path / "wide.db"))


def test_a_value_beyond_those_linked_is_still_found_as_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large table: few values are read, and the answer asks the file for the rest."""
    monkeypatch.setattr(sqlite_file, "LINKED_VALUES", 50)
    with sqlite3.connect(tmp_path / "people.db") as made:
        made.execute("CREATE TABLE people (name TEXT, age INTEGER)")
        made.executemany("INSERT INTO people VALUES (?, ?)", ((f"Person-{i}", i) for i in range(3000)))
    made.close()
    database, task = one_table(Database.from_file(tmp_path / "people.db")), get_task("sql")
    assert len(database.values(0)) == len(database.values(1)) == 50
    asked = example(database, "How old is PERSON-2900?")
    found = [(m.column, m.span, m.value) for m in link(database, asked.question)]
    assert found == [(0, "PERSON-2900", "Person-2900"), (1, "2900", "2900")]
    assert [(m.column, m.value) for m in link(database, "Who is 2950?")] == [(1, "2950")]
    assert " name<v0><c0> age<num><v1><c1>" in task.messages(asked, "compact")[0].content
    answer = task.decode(asked, "<sel><c1><and><eq> person - 2900<c0>", "compact")
    assert rows_of(tmp_path / "people.db", answer) == [(2900,)]
    nobody = task.decode(example(database, "How old is Nobody?"), "<sel><c1><and><eq> nobody<c0>", "compact")
    assert nobody == 'SELECT "age" FROM "people" WHERE "name" = \'Nobody\''


def test_two_files_of_one_name_do_not_share_links(tmp_path: Path) -> None:
    task, found = get_task("sql"), []
    for city in ("Ulm", "Graz"):
        (tmp_path / city).mkdir()
        with sqlite3.connect(tmp_path / city / "shop.db") as made:
            made.executescript(f"CREATE TABLE orders (city TEXT); INSERT INTO orders VALUES ('{city}');")
        made.close()
        found.append(task.matches(example(Database.from_file(tmp_path / city / "shop.db"), "Which are from Ulm or Graz?")))
    assert [[m.value for m in matches] for matches in found] == [["Ulm"], ["Graz"]]


def card(template: str, *data: tuple[str, str]) -> Card:
    entries = tuple(DataEntry(name=n, split="train", license=licence, sha256="0" * 64, n=1) for n, licence in data)
    return Card(task="sql", task_version=1, dialect="compact", prompt_template=template, constraint="lark", parser="sql/compact",
                base=BaseEntry(id="scratch:tiny"), data=entries, created_by="test")  # fmt: skip


def test_a_card_says_which_form_its_student_learned() -> None:
    wikisql, spider, own = ("wikisql", "BSD-3-Clause"), ("spider", "CC BY-SA 4.0"), ("wikisql", "yours")
    assert learned_form(card("sql/compact/1", wikisql, wikisql)) == "single"
    for other in (card("sql/compact/1"), card("sql/compact/1", wikisql, spider), card("sql/compact/1", own), None):
        assert learned_form(other) == "general"
    assert learned_form(card("sql/single/compact/1", spider)) == "single"
    assert learned_form(card("sql/general/compact/1", wikisql)) == "general"


def test_what_a_student_trained_on_names_its_form(file: Path) -> None:
    task = get_task("sql")
    wikisql, _ = task.load(DataSource(dataset="wikisql", split="xdev", limit=3))
    own = [example(Database.from_file(file), "?")]
    assert (task.form_of(wikisql), task.form_of(own), task.form_of([*wikisql, *own])) == ("single", "general", "general")


def test_a_persona_is_asked_in_the_form_it_learned_and_a_larger_one_in_the_general(file: Path, tmp_path: Path) -> None:
    from agents.persona import Persona
    from factory.tasks.runtime import answerer

    with sqlite3.connect(file) as made:
        made.execute("CREATE TABLE customers (name TEXT)")
    made.close()
    card("sql/compact/1", ("wikisql", "BSD-3-Clause")).save(tmp_path)
    database, question = one_table(Database.from_file(file), TABLE), "How many orders are from GRAZ?"
    task = get_task("sql")
    gold = 'SELECT count(orderNo) FROM "Order ""book""" WHERE City = \'Graz\''
    sorted_one = 'SELECT "orderNo" FROM "Order ""book""" ORDER BY "Price" DESC LIMIT 1'
    small = Scripted([task.encode(example(database, question), gold, "compact"), "<sel><c0><and>"], name="small")
    big = Scripted([sorted_one], name="big")
    persona = Persona.from_artifact(tmp_path, model=small, task=answerer, db=file, table=TABLE)
    assert rows_of(file, persona(question).text) == by_hand(file, ASKED[question])
    assert small.requests[0].messages == task.messages(example(database, question), "compact")
    escalated = (persona | big)("Which order cost most?")
    assert escalated.escalated == "invalid" and rows_of(file, escalated.text) == [(1059,)]
    asked_big = big.requests[0].messages[-1].content
    assert 'CREATE TABLE "Order ""book"""' in asked_big and "customers" not in asked_big
    with pytest.raises(TaskError, match="has 2 tables"):
        Persona.from_artifact(tmp_path, model=small, task=answerer, db=file)
    with pytest.raises(TaskError, match="has 2 tables"):
        Persona.from_artifact(tmp_path, model=small, task=answerer)(question, db=file)
