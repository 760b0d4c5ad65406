"""Answers there and back: the same logical form, the same rows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from factory.tasks.sql.dialect import canonicalise, decode, encode, extract_sql, special_tokens
from factory.tasks.sql.forms import from_sql, same_form
from factory.tasks.sql.link import Match
from factory.tasks.sql.prompt import render_prompt
from factory.tasks.sql.schema import Column, Schema, Table
from factory.tasks.sql.sources import load
from factory.tasks.sql.spaced import chunks, find, find_inside, number_literal, spaced
from factory.tasks.task import AnswerError, DataSource, Example

from .worlds import CONCERTS, fill

PLAYERS = Schema("1", (Table("t", (Column("Player"), Column("No.", "number"), Column("School/Club Team"))),), single=True)


def shuffled(example: Example | str, n: int) -> list[int]:
    order = list(range(n))
    random.Random(str(example)).shuffle(order)
    return order


def test_words_are_written_the_same_wherever_they_stand() -> None:
    assert spaced('Who plays for "Butler CC (KS)"?') == ' who plays for " butler cc ( ks ) " ?'
    assert spaced("what's  the 3,000m") == " what's the 3 , 000 m"
    question = "Is it Butler CC  (KS)?"
    assert find(chunks(question), " butler cc ( ks )") == (6, 21)
    assert find(chunks(question), "utler") is None
    assert find_inside(chunks("Indianapolis, Indiana"), " indianapolis , in") == (0, 16)


@pytest.mark.parametrize(
    ("text", "literal"),
    [("1,234.50", "1234.50"), ("−6", "-6"), ("- 5", "-5"), ("+3", "3"), ("twelve", None), ("2004-05", None), ("", None)],
)
def test_numbers_as_people_write_them(text: str, literal: str | None) -> None:
    assert number_literal(text) == literal


def check_single(examples: list[Example]) -> None:
    wrong = []
    for example in examples:
        schema, question = example.context.schema, example.question
        form = from_sql(example.reference or "", schema)
        assert form is not None
        for dialect in ("plain", "compact"):
            order = shuffled(example.id, len(schema.columns))
            text = encode(schema, question, [], example.reference or "", dialect, order)
            back = from_sql(decode(schema, question, [], text, dialect, order), schema)
            if back is None or not same_form(back, form, schema):
                wrong.append((example.reference, text, back))
    # "( QAT )" in the header and "(QAT)" in the question are the same words: two train questions differ in such white space.
    assert len(wrong) <= len(examples) // 10_000, wrong[:5]


def test_wikisql_validation_comes_back() -> None:
    examples = load(DataSource(split="xdev"))[0]
    assert len(examples) == 1056
    check_single(examples)


@pytest.mark.slow
def test_all_of_wikisql_comes_back(shared_data: Path) -> None:
    for split, least in (("train", 52_000), ("dev", 8_421)):
        examples = load(DataSource(dataset="wikisql", data_dir=shared_data / "wikisql", split=split))[0]
        assert len(examples) >= least
        check_single(examples)


SAME_ROWS = [
    "select count(*) from singer",
    "SELECT T2.name, count(*) FROM concert AS T1 JOIN stadium AS T2 ON T1.stadium_id = T2.id GROUP BY T1.stadium_id",
    "SELECT a.name, b.name FROM singer a, singer b WHERE a.country = b.country AND a.age < b.age",
    "SELECT name FROM singer WHERE age > (SELECT avg(age) FROM singer) ORDER BY age DESC, name LIMIT 3",
    "SELECT name FROM stadium WHERE id NOT IN (SELECT stadium_id FROM concert WHERE stadium_id IS NOT NULL)",
    "SELECT name FROM stadium s WHERE EXISTS (SELECT 1 FROM concert c WHERE c.stadium_id = s.id AND c.year >= 2)",
    "SELECT name FROM stadium s WHERE NOT EXISTS (SELECT * FROM stadium t WHERE t.capacity > s.capacity)",
    "SELECT max(n) FROM (SELECT country, count(*) AS n FROM singer GROUP BY country) x",
    "SELECT country FROM (SELECT country, count(*) AS n FROM singer GROUP BY country) x WHERE n > 1",
    "SELECT count(*) FROM (SELECT DISTINCT country FROM singer)",
    "WITH old AS (SELECT name, age FROM singer WHERE age > 1) SELECT name FROM old WHERE age < 4",
    "SELECT country FROM singer WHERE age > 3 INTERSECT SELECT country FROM singer WHERE age < 3",
    "SELECT name FROM singer WHERE (country = 'France' OR country = \"Spain\") AND NOT age BETWEEN 2 AND 3",
    "SELECT name FROM singer WHERE name NOT LIKE '%F%' OR name IS NULL",
    "SELECT name FROM singer WHERE 2 < age AND country IN ('France', 'Italy')",
    "SELECT sum(capacity * 2) / count(*) FROM stadium",
    "SELECT max(age) - min(age), count(DISTINCT country) FROM singer",
    "SELECT name, age AS years FROM singer ORDER BY years LIMIT 2 OFFSET 1",
    "SELECT country, avg(age) FROM singer GROUP BY 1 HAVING avg(age) > 2 ORDER BY 2",
    "SELECT s.name FROM stadium s LEFT JOIN concert c ON s.id = c.stadium_id WHERE c.id IS NULL",
    "SELECT * FROM singer JOIN concert ON singer.id = concert.singer_id WHERE year = 2",
    "SELECT name FROM singer JOIN concert USING (id)",
]


@pytest.mark.parametrize("sql", SAME_ROWS)
def test_the_canonical_spelling_gives_the_same_rows(sql: str) -> None:
    canonical = canonicalise(CONCERTS, sql)
    assert canonicalise(CONCERTS, canonical) == canonical
    order = shuffled(sql, len(CONCERTS.columns))
    compact = encode(CONCERTS, "France or Spain or Italy, F", [], sql, "compact", order)
    assert compact == compact.lower()
    back = decode(CONCERTS, "France or Spain or Italy, F", [], compact, "compact", order)
    full = 0
    for seed in range(5):
        rows = fill(CONCERTS, rows=8, seed=seed)
        expected = sorted(map(repr, rows.execute(sql)))
        assert sorted(map(repr, rows.execute(canonical))) == expected
        assert sorted(map(repr, rows.execute(back))) == expected
        full += bool(expected)
    assert full >= 2, "rows that never match prove nothing"


def test_spellings_are_one() -> None:
    same = [
        "select NAME from Singer where AGE>3",
        "SELECT s.name FROM singer AS s WHERE 3 < s.age;",
        'SELECT "name" FROM singer WHERE (age > 3)',
    ]
    assert {canonicalise(CONCERTS, sql) for sql in same} == {'SELECT "singer"."name" FROM "singer" WHERE "singer"."age" > 3'}


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SELECT nome FROM singer", "unknown-column"),
        ("SELECT name FROM singers", "unknown-table"),
        ("SELECT name FROM singer; SELECT 1", "not-single-select"),
        ("DROP TABLE singer", "not-single-select"),
        ("SELECT FROM WHERE", "not-parsed"),
        ("SELECT upper(name) FROM singer", "not-supported"),
    ],
)
def test_what_cannot_be_said_is_refused_with_a_reason(sql: str, reason: str) -> None:
    with pytest.raises(AnswerError) as caught:
        canonicalise(CONCERTS, sql)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1 FROM t",
        "```sql\nSELECT 1 FROM t;\n```",
        "Sure! Here is the query:\n\nSELECT 1 FROM t;\n\nIt counts things; select carefully.".replace(
            "select carefully", "enjoy"
        ),
        "SQL: SELECT 1 FROM t",
        "**Answer:** SELECT 1 FROM t;",
        "SELECT 1 FROM t\n\nThis returns one.",
    ],
)
def test_the_statement_is_found_in_a_reply(text: str) -> None:
    assert extract_sql(text) == "SELECT 1 FROM t"


def test_replies_without_one_statement_are_refused() -> None:
    for text, reason in (("", "empty"), ("I cannot.", "not-single-select"), ("SELECT 1; SELECT 2", "not-single-select")):
        with pytest.raises(AnswerError) as caught:
            extract_sql(text)
        assert caught.value.reason == reason
    assert extract_sql("SELECT ';' FROM t; ") == "SELECT ';' FROM t"


def test_values_come_back_as_stored_when_linked_and_as_asked_otherwise() -> None:
    match = Match(column=5, span="FRANCE", value="France")
    compact = encode(CONCERTS, "singers of FRANCE?", [match], "SELECT name FROM singer WHERE country = 'France'", "compact")
    assert compact == "<select><t1><c1><from><t1><where><t1><c2><eq> france"
    back = decode(CONCERTS, "singers of FRANCE?", [match], compact, "compact")
    assert back == """SELECT "singer"."name" FROM "singer" WHERE "singer"."country" = 'France'"""
    other = decode(CONCERTS, "who is called O'Hara?", [], "<select><t1><c0><from><t1><where><t1><c1><eq> o ' hara", "compact")
    assert other.endswith("""= 'O''Hara'""")


@pytest.mark.parametrize("text", ["", "<c0>", "<sel>", "<sel><c9>", "nonsense"])
def test_broken_compact_text_is_an_answer_error(text: str) -> None:
    for schema in (PLAYERS, CONCERTS):
        with pytest.raises(AnswerError):
            decode(schema, "who?", [], text or " ", "compact")


@pytest.mark.parametrize(
    "text", ["<select><t7><c0><from><t0>", "<select><t0><c9><from><t0>", "<select><)>", "<select><max><from>", "<what>"]
)
def test_broken_general_text_says_why(text: str) -> None:
    with pytest.raises(AnswerError) as caught:
        decode(CONCERTS, "who?", [], text, "compact")
    assert caught.value.reason in ("not-parsed", "unknown-table", "unknown-column")


def test_prompt_and_answer_share_the_order() -> None:
    question, sql = (
        "Who of butler cc (ks) has a number over 3?",
        """SELECT "Player" FROM "t" WHERE "School/Club Team" = 'butler cc (ks)' AND "No." > 3""",
    )
    for order in ([0, 1, 2], [2, 0, 1]):
        prompt = render_prompt(PLAYERS, question, [], "compact", order)
        assert len(prompt) == 1 and prompt[0].content == prompt[0].content.lower()
        text = encode(PLAYERS, question, [], sql, "compact", order)
        assert f"<c{order.index(0)}>" in text and " butler cc ( ks )" in text and " butler cc ( ks )" in prompt[0].content
        assert decode(PLAYERS, question, [], text, "compact", order) == sql
    with pytest.raises(ValueError, match="not a permutation"):
        render_prompt(PLAYERS, question, [], "compact", [0, 0, 1])


def test_plain_prompt_holds_schema_values_and_question() -> None:
    system, user = render_prompt(CONCERTS, "How many?", [Match(5, "france", "France")], "plain")
    assert "one SELECT" in system.content
    for part in ('CREATE TABLE "concert"', 'REFERENCES "stadium"("id")', "'Glasgow Green'", "'France'", "Question: How many?"):
        assert part in user.content


def test_special_tokens_cover_what_is_written() -> None:
    tokens = special_tokens("compact")
    assert len(set(tokens)) == len(tokens) and not special_tokens("plain")
    for sql in SAME_ROWS:
        text = encode(CONCERTS, "France Spain", [], sql, "compact")
        for token in tokens:
            text = text.replace(token, "")
        assert "<" not in text


def test_too_wide_a_schema_is_refused() -> None:
    wide = Schema("w", (Table("t", tuple(Column(f"c{i}") for i in range(70))),), single=True)
    with pytest.raises(AnswerError) as caught:
        encode(wide, "q", [], 'SELECT "c1" FROM "t"', "compact")
    assert caught.value.reason == "schema-too-large"
