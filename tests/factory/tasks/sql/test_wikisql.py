"""WikiSQL: layout and splits, forms and SQL, and execution against a second, plain implementation."""

from __future__ import annotations

import json
import lzma
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from factory.tasks.sql import forms, wikisql
from factory.tasks.sql.database import Database
from factory.tasks.sql.forms import AGGREGATES, OPERATORS, Form
from factory.tasks.sql.reading import Fingerprint
from factory.tasks.sql.sources import BUNDLED
from factory.tasks.task import Example, TaskError

Cell = str | None


def read(directory: Path, split: str) -> list[Example]:
    return wikisql.read(directory, split, Fingerprint())[0]


@pytest.fixture(scope="module")
def train() -> list[Example]:
    return read(BUNDLED, "train")


@pytest.fixture(scope="module")
def xdev() -> list[Example]:
    return read(BUNDLED, "xdev")


def test_the_bundle_has_its_counts_and_parts_share_no_table(train: list[Example], xdev: list[Example]) -> None:
    assert (len(train), len(xdev)) == (41_459, 1_056)
    assert not {e.context_id for e in train} & {e.context_id for e in xdev}
    assert len({e.id for e in train} | {e.id for e in xdev}) == 42_515
    assert all(e.context.has_rows for e in train)
    assert sum(file.stat().st_size for file in BUNDLED.rglob("*") if file.is_file()) < 7.5e6
    assert sum(file.stat().st_size for file in (BUNDLED.parent / "embedded").rglob("*") if file.is_file()) < 60e6


def test_gold_queries_select_rows(train: list[Example], xdev: list[Example]) -> None:
    chosen = random.Random(0).sample(train, 2000) + xdev
    found = 0
    for example in chosen:
        form = Form(**{**example.extra["sql"], "agg": 0})
        found += bool(example.context.execute(forms.to_sql(form, example.context.schema)).rows)
    assert found / len(chosen) > 0.96  # 102 of the 1,056 of xdev are known to select nothing


# --- the second implementation -------------------------------------------------------------------------------------


def plain_number(text: str) -> float | None:
    text = text.replace("–", "-").replace("−", "-").strip()
    sign = 1.0

    def is_part(ch: str) -> bool:
        return ch.isalnum() or ch in "_."

    while text and not is_part(text[0]) and text[0] not in "+-":
        text = text[1:]
    if text[:1] in ("+", "-"):
        sign = -1.0 if text[0] == "-" else 1.0
        text = text[1:]
        while text and not is_part(text[0]) and text[0] not in "+-":
            text = text[1:]
    while text and not (text[-1].isalnum() or text[-1] == "_"):
        text = text[:-1]
    whole, dot, fraction = text.partition(".")
    groups = whole.split(",")
    if len(groups) > 1:
        shape = [len(g.strip()) for g in groups]
        if not (1 <= shape[0] <= 3 and all(n == 3 for n in shape[1:])):
            return None
        whole = "".join(g.strip() for g in groups)
    digits = whole + fraction
    if not digits or any(ch not in "0123456789" for ch in digits) or (dot and not fraction):
        return None
    return sign * float(f"{whole or '0'}.{fraction or '0'}")


def plain_key(text: str) -> tuple[int, Any]:
    value = plain_number(text)
    if value is not None:
        return (0, value)
    kept = "".join(ch for ch in text.lower() if ch in "abcdefghijklmnopqrstuvwxyz0123456789")
    wide = "".join(ch for ch in text.lower() if ch.isalnum())
    return (1, kept or wide or text.strip().replace("–", "-").replace("—", "-").replace("−", "-"))


def leading_number(text: str) -> float:
    found = re.match(r"\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE | re.ASCII)
    return float(found[0]) if found else 0.0


def plain_execute(columns: list[list[Cell]], form: Form) -> list[tuple[int, Any] | None]:
    """Column lists in, result cells out, as comparable keys."""
    numeric = []
    for column in columns:
        filled = [cell for cell in column if cell and cell.strip()]
        numeric.append(bool(filled) and all(plain_number(cell) is not None for cell in filled))

    def key(c: int, cell: Cell) -> tuple[int, Any] | None:
        if cell is None or (numeric[c] and plain_number(cell) is None):
            return None
        return plain_key(cell)

    def holds(c: int, operator: int, value: str, cell: Cell) -> bool:
        left, right = key(c, cell), plain_key(value)
        if left is None:
            return False
        return [left == right, left > right, left < right][operator]

    n = len(columns[0])
    chosen = [i for i in range(n) if all(holds(c, o, v, columns[c][i]) for c, o, v in form.conds)]
    values = [columns[form.sel][i] for i in chosen]
    keys = [k for k in (key(form.sel, value) for value in values) if k is not None]
    name = AGGREGATES[form.agg]
    if not name:
        return [key(form.sel, value) for value in values]
    if name == "COUNT":
        return [(0, float(len(keys)))]
    if name in ("MAX", "MIN"):
        return [(max if name == "MAX" else min)(keys)] if keys else [None]
    numbers = [
        plain_number(v) if numeric[form.sel] else leading_number(v)
        for v in values
        if key(form.sel, v) is not None and v is not None
    ]
    kept = [number for number in numbers if number is not None]
    if not kept:
        return [None]
    return [(0, sum(kept) / (len(kept) if name == "AVG" else 1))]


def comparable(cells: list[Any]) -> Counter[Any]:
    def one(cell: Any) -> Any:
        if cell is None:
            return None
        kind, value = plain_key(cell) if isinstance(cell, str) else cell if isinstance(cell, tuple) else (0, float(cell))
        return (kind, f"{value:.6g}" if kind == 0 else value)

    return Counter(map(one, cells))


def perturbed(form: Form, columns: list[list[Cell]], rng: random.Random) -> Form:
    """Another form over the same table: one or more parts drawn anew."""
    sel = rng.randrange(len(columns)) if rng.random() < 0.3 else form.sel
    agg = rng.randrange(len(AGGREGATES)) if rng.random() < 0.4 else form.agg
    conds = []
    for c, o, v in form.conds:
        if rng.random() < 0.2:
            continue
        column = rng.randrange(len(columns)) if rng.random() < 0.2 else c
        operator = rng.randrange(3) if rng.random() < 0.4 else o
        stored = [cell for cell in columns[column] if cell]
        draw = rng.random()
        value = rng.choice(stored) if stored and draw < 0.4 else str(rng.randrange(100)) if draw < 0.5 else v
        conds.append((column, operator, value))
    return Form(sel, agg, tuple(conds))


def test_sqlite_agrees_with_a_plain_implementation(train: list[Example], xdev: list[Example]) -> None:
    rng = random.Random(1)
    tables = {}
    with lzma.open(BUNDLED / "tables_train.jsonl.xz", "rt", encoding="utf-8") as file:
        wanted = {e.context_id: e for e in rng.sample(train, 900) + rng.sample(xdev, 100)}
        for line in file:
            row = json.loads(line)
            if row["id"] in wanted:
                tables[row["id"]] = [list(column) for column in zip(*row["rows"])]
    tried = 0
    sizes: Counter[str] = Counter()
    for id, example in wanted.items():
        gold = Form.read(example.extra["sql"], len(tables[id]))
        assert gold is not None
        for form in (gold, *(perturbed(gold, tables[id], rng) for _ in range(3))):
            sql = forms.to_sql(form, example.context.schema)
            got = [row[0] for row in example.context.execute(sql).rows]
            assert comparable(got) == comparable(plain_execute(tables[id], form)), (id, sql)
            tried += 1
            sizes["none" if not got else "some"] += 1
    assert tried >= 3000 and sizes["none"] > 300 and sizes["some"] > 1000


# --- forms ------------------------------------------------------------------------------------------------------


def test_sql_of_a_form_reads_back_by_both_ways(train: list[Example]) -> None:
    for example in random.Random(2).sample(train, 1500):
        schema = example.context.schema
        form = Form.read(example.extra["sql"], len(schema.columns))
        assert form is not None and example.reference is not None
        for found in (forms._from_canonical(example.reference, schema), forms._from_tree(example.reference, schema)):
            assert found is not None and forms.same_form(found, form, schema), example.reference


@pytest.fixture(scope="module")
def small() -> Database:
    return Database.from_rows("s", ["Name", 'Big "Size"', "No."], [["o'hara", "1,200", "x1"], ["b", "3", "2"]])


def test_literals_are_numbers_where_the_comparison_is(small: Database) -> None:
    form = Form(0, 3, ((1, 0, "$1,200"), (0, 0, "O'Hara"), (2, 1, "1"), (2, 0, "2")))
    sql = forms.to_sql(form, small.schema)
    assert sql == (
        'SELECT COUNT("Name") FROM "t" WHERE "Big ""Size""" = 1200 AND "Name" = \'O\'\'Hara\' AND "No." > 1 AND "No." = \'2\''
    )
    assert forms.from_sql(sql, small.schema) == Form(0, 3, ((1, 0, "1200"), (0, 0, "O'Hara"), (2, 1, "1"), (2, 0, "2")))
    assert forms.same_form(form, Form(0, 3, ((2, 0, "2"), (2, 1, "1.0"), (0, 0, "o'hara"), (1, 0, "1200"))), small.schema)


@pytest.mark.parametrize(
    "sql",
    [
        "select max(name) from t where 3 < \"big \"\"size\"\"\" and NAME = 'b'",
        "SELECT MAX(t.Name) FROM t WHERE (t.\"Big \"\"Size\"\"\" > 3) AND Name = 'B';",
        'SELECT MAX("Name") AS m FROM "t" AS t WHERE "Big ""Size""" > 3.0 AND "Name" = "b"',
        "SELECT MAX([Name]) FROM `t` WHERE `Big \"Size\"` > 3 AND 'b' = Name",
    ],
)  # fmt: skip
def test_other_spellings_are_the_same_form(small: Database, sql: str) -> None:
    found = forms.from_sql(sql, small.schema)
    assert found is not None and forms.same_form(found, Form(0, 1, ((0, 0, "b"), (1, 1, "3"))), small.schema)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM t", "SELECT COUNT(*) FROM t", "SELECT Name, Name FROM t", "SELECT DISTINCT Name FROM t",
        "SELECT Name FROM t LIMIT 1",
        "SELECT Name FROM t WHERE Name = 'a' OR Name = 'b'", "SELECT Name FROM t WHERE Name >= 'a'",
        "SELECT Name FROM t WHERE NOT Name = 'a'",
        "SELECT Name FROM t ORDER BY Name", "SELECT Name FROM t GROUP BY Name", "SELECT Name FROM u", "SELECT Other FROM t",
        "SELECT Name FROM t, t",
        "SELECT Name FROM t WHERE Name = (SELECT 'a')", "SELECT LOWER(Name) FROM t",
        "SELECT Name FROM t UNION SELECT Name FROM t", "nonsense", "",
        "SELECT COUNT(DISTINCT Name) FROM t", "WITH x AS (SELECT 1) SELECT Name FROM t", "SELECT Name FROM t WHERE Name = Name",
        'SELECT "Name" FROM "t" AND "Name" = \'b\'', 'SELECT "Name" FROM "t" WHERE "Name" = \'b\' WHERE "Name" = \'b\'',
    ],
)  # fmt: skip
def test_what_a_form_cannot_say_is_none(small: Database, sql: str) -> None:
    assert forms.from_sql(sql, small.schema) is None


# --- files ------------------------------------------------------------------------------------------------------

QUESTION = {"phase": 1, "table_id": "a", "question": "  Who\n is b?", "sql": {"sel": 0, "agg": 0, "conds": [[1, 0, 3.5]]}}


def put(directory: Path, name: str, questions: list[Any], tables: list[Any]) -> None:
    lines = "\n".join(q if isinstance(q, str) else json.dumps(q) for q in questions)
    (directory / f"{name}.jsonl").write_text(lines)
    with lzma.open(directory / f"tables_{name}.jsonl.xz", "wt", encoding="utf-8") as file:
        file.writelines((t if isinstance(t, str) else json.dumps(t)) + "\n" for t in tables)


TABLES = [
    {"id": "a", "header": ["A", "B"], "rows": [["x", 3.5], ["y", None]]},
    {"id": "b", "header": ["A", "B"], "rows": None},
    {"id": "c", "header": ["A", "B"], "values": [["x"], ["1", "2"]]},
]


def test_rows_values_and_bare_headers(tmp_path: Path) -> None:
    put(tmp_path, "dev", [{**QUESTION, "table_id": t} for t in "abc"], TABLES)
    one, two, three = read(tmp_path, "dev")
    assert (one.id, one.question, one.reference) == ("dev-1", "Who is b?", 'SELECT "A" FROM "t" WHERE "B" = 3.5')
    assert one.context.execute(one.reference).rows == (("x",),)
    assert [e.context.has_rows for e in (one, two, three)] == [True, False, False]
    assert two.context.values(1) == () and three.context.values(1) == ("1", "2")
    assert three.reference == 'SELECT "A" FROM "t" WHERE "B" = 3.5' and two.reference == 'SELECT "A" FROM "t" WHERE "B" = \'3.5\''


def test_the_split_rule(tmp_path: Path) -> None:
    put(tmp_path, "train", [{**QUESTION, "split": s} for s in ("train", "xdev", "train")], TABLES)
    put(tmp_path, "test", [QUESTION], TABLES)
    assert [e.id for e in read(tmp_path, "train")] == ["train-1", "train-3"]
    assert [e.id for e in read(tmp_path, "xdev")] == ["train-2"]
    assert [e.id for e in read(tmp_path, "test")] == ["test-1"]
    with pytest.raises(TaskError, match=r"--split gone: .* choose from test, train, xdev"):
        read(tmp_path, "gone")


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    bad = [
        {**QUESTION, "sql": s}
        for s in ({"sel": 2, "agg": 0, "conds": []}, {"sel": 0, "agg": 9, "conds": []}, {"sel": 0, "conds": []})
    ]
    put(tmp_path, "dev", [QUESTION, {**QUESTION, "table_id": "gone"}, *bad], TABLES)
    examples, skipped = wikisql.read(tmp_path, "dev", Fingerprint())
    assert len(examples) == 1 and skipped == {"no-table": 1, "bad-logical-form": 3}


@pytest.mark.parametrize(
    ("questions", "tables", "words"),
    [
        ([QUESTION, '{"question": "x'], TABLES, r"dev\.jsonl, line 2: not valid JSON"),
        (["[1]"], TABLES, r"line 1: '\[1\]' is not an object"),
        ([{"question": "x"}], TABLES, "line 1: no 'table_id'"),
        ([{**QUESTION, "question": " "}], TABLES, "line 1: 'question' is ' '"),
        ([QUESTION], ['{"id":"a"'], r"tables_dev\.jsonl\.xz, line 1: not valid JSON"),
        ([QUESTION], [{"id": "a", "rows": []}], "no 'header'"),
        ([QUESTION], [{"id": "a", "header": ["A"], "rows": [["x", "y"]]}], "other widths"),
        ([QUESTION], [{"id": "a", "header": ["A"], "values": [["x"], ["y"]]}], "other widths"),
    ],
)  # fmt: skip
def test_malformed_files_name_file_and_line(tmp_path: Path, questions: list[Any], tables: list[Any], words: str) -> None:
    put(tmp_path, "dev", questions, tables)
    with pytest.raises(TaskError, match=words) as caught:
        read(tmp_path, "dev")
    assert "\n" not in str(caught.value)


def test_missing_and_torn_files(tmp_path: Path) -> None:
    (tmp_path / "dev.jsonl").write_text(json.dumps(QUESTION))
    with pytest.raises(TaskError, match=r"no tables_dev\.jsonl\.xz beside it"):
        read(tmp_path, "dev")
    (tmp_path / "test.jsonl.xz").write_bytes(lzma.compress(b"x" * 1000)[:40])
    with pytest.raises(TaskError, match=r"not a whole \.xz file"):
        read(tmp_path, "test")
    with pytest.raises(TaskError, match="no such directory"):
        read(tmp_path / "gone", "dev")


def test_operators_and_aggregates_are_wikisqls_own() -> None:
    assert AGGREGATES == ("", "MAX", "MIN", "COUNT", "SUM", "AVG") and OPERATORS == ("=", ">", "<")
