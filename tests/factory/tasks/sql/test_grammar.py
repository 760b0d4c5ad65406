"""Grammars accept every reference query and let a model write nothing but SQL that SQLite prepares."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import sqlglot
from sqlglot import exp
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from agents.constrain import Engine, accepts
from factory.tasks.sql.database import Database
from factory.tasks.sql.dialect import decode, encode, special_tokens
from factory.tasks.sql.grammar import constraint, max_completion_tokens
from factory.tasks.sql.prompt import render_prompt
from factory.tasks.sql.schema import Column, Schema, Table
from factory.tasks.sql.sources import load
from factory.tasks.sql.task import SqlTask
from factory.tasks.task import AnswerError, DataSource, Dialect, Example

from .test_dialect import SAME_ROWS
from .worlds import CONCERTS, fill, walk

DIALECTS: tuple[Dialect, ...] = ("plain", "compact")


def acceptance(examples: list[Example], stored: bool = True) -> tuple[int, list[str]]:
    """(reference queries tried, the refused ones), in both dialects; queries that do not run on the schema are not tried."""
    task, tried, refused = SqlTask(), 0, []
    for example in examples:
        matches = task.matches(example) if stored else ()
        for dialect in DIALECTS:
            try:
                text = encode(example.context, example.question, matches, example.reference or "", dialect)
            except AnswerError as error:
                refused += [f"{error.reason}: {example.reference}"] if error.reason == "not-supported" else []
                tried += error.reason == "not-supported"
                continue
            tried += 1
            if not accepts(constraint(example.context, example.question, matches, dialect), text):
                refused.append(text)
    return tried, refused


def test_wikisql_validation_is_accepted() -> None:
    tried, refused = acceptance(load(DataSource(split="xdev"))[0])
    assert tried >= 2_000 and not refused


@pytest.mark.slow
def test_wikisql_official_validation_is_accepted(shared_data: Path) -> None:
    tried, refused = acceptance(load(DataSource(dataset="wikisql", data_dir=shared_data / "wikisql", split="dev"))[0])
    assert tried == 2 * 8_421 and not refused


@pytest.mark.parametrize("share", [50, pytest.param(1_000, marks=pytest.mark.slow)])
def test_geoquery_is_accepted(shared_data: Path, share: int) -> None:
    tried, refused = 0, []
    for split in ("train", "dev", "test"):
        source = DataSource(dataset="geography", data_dir=shared_data / "geography", split=split, limit=share)
        more, bad = acceptance(load(source)[0])
        tried, refused = tried + more, refused + bad
    # One question's reference says "> ALL (…)", which SQLite does not know.
    assert tried >= min(6 * share, 1_740) - 10 and [text for text in refused if " ALL " not in text] == []


@pytest.mark.parametrize("share", [200, pytest.param(7_000, marks=pytest.mark.slow)])
def test_spider_is_accepted(shared_data: Path, share: int) -> None:
    """Spider has no rows here: only values spelt in the question can be written."""
    source = DataSource(dataset="spider", data_dir=shared_data / "spider", split="train", limit=share)
    examples = load(source)[0]
    tried, refused = acceptance(examples)
    assert tried >= share and len(refused) <= 0.05 * tried, refused[:10]


@pytest.mark.parametrize("sql", SAME_ROWS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_construct_is_accepted(sql: str, dialect: Dialect) -> None:
    question = "France, Spain, Italy or F?"
    assert accepts(constraint(CONCERTS, question, [], dialect), encode(CONCERTS, question, [], sql, dialect))


@pytest.mark.parametrize(
    "sql",
    [
        'SELECT "singer"."wage" FROM "singer"',
        'SELECT "singer"."name" FROM "stadium"',
        'SELECT "singer"."name" FROM "singer" WHERE "stadium"."capacity" > 3',
        'SELECT "singer"."name" FROM "singer" JOIN "stadium"_2',
        'SELECT "singer"."name" FROM "singer" WHERE "singer"."country" = \'Narnia\'',
        'SELECT "singer"."name" FROM "singer" UNION SELECT "singer"."name", "singer"."age" FROM "singer"',
        'SELECT "singer"."name" FROM "singer" WHERE "singer"."age" IN (SELECT "singer"."name", "singer"."age" FROM "singer")',
        'SELECT "d1"."v2" FROM (SELECT "singer"."name" AS "v1" FROM "singer") AS "d1"',
        'SELECT "d2"."v1" FROM (SELECT "singer"."name" AS "v1" FROM "singer") AS "d2"',
        'SELECT "singer"."name" FROM "singer"; DROP TABLE "singer"',
        'SELECT "singer"."name" FROM "singer" HAVING COUNT(*) > 1',
        'SELECT "name" FROM "singer"',
    ],
)
def test_wrong_sql_is_refused(sql: str) -> None:
    assert not accepts(constraint(CONCERTS, "who is it in 3?", [], "plain"), sql)


def test_single_form_copies_only_from_the_question() -> None:
    schema = Schema("1", (Table("t", (Column('Na"me'), Column("No.", "number"))),), single=True)
    grammar = constraint(schema, "It's Bob's 1,234 and 5?", [], "plain")
    for value, fine in (
        ("'Bob''s'", True),
        ("'Bob'", True),
        ("'Alice'", False),
        ("'ob'", False),
        ("''", False),
        ("' Bob'", False),
    ):
        assert accepts(grammar, f'SELECT "No." FROM "t" WHERE "Na""me" = {value}') is fine, value
    for value, fine in (("1234", True), ("5", True), ("7", False), ("'5'", True)):
        assert accepts(grammar, f'SELECT COUNT("Na""me") FROM "t" WHERE "No." > {value}') is fine, value
    empty = constraint(schema, "  ", [], "compact")
    assert accepts(empty, "<max><c1>") and not accepts(empty, "<max><c2>")


def trained_tokenizer(texts: list[str], dialect: Dialect) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2_000, initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in special_tokens(dialect)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def worlds(shared_data: Path | None) -> list[Example]:
    """Examples over 50 schemas, or over WikiSQL's and one more when the other sets are not here."""
    examples = {example.context_id: example for example in load(DataSource(split="xdev"))[0]}
    chosen = list(examples.values())[: 24 if shared_data else 49]
    if shared_data is not None:
        spider = load(DataSource(dataset="spider", data_dir=shared_data / "spider", split="train"))[0]
        small = {e.context_id: e for e in spider if len(e.context.schema.tables) <= 20}
        chosen += list(small.values())[::5][:25]
        chosen += load(DataSource(dataset="geography", data_dir=shared_data / "geography", split="train", limit=1))[0]
    else:
        chosen.append(Example("concerts", "which singers are older than 30", Database.from_schema(CONCERTS), "concerts"))
    return chosen


def check(sql: str, schema: Schema) -> None:
    """Parses; names existing tables and columns; SQLite prepares it on empty tables."""
    parsed = sqlglot.parse(sql, read="sqlite")
    assert len(parsed) == 1 and isinstance(parsed[0], exp.Query)
    tables = {table.name: {column.name for column in table.columns} for table in schema.tables}
    everything = {name for columns in tables.values() for name in columns}
    assert {table.name for table in parsed[0].find_all(exp.Table)} <= set(tables)
    derived = {f"v{i}" for i in range(1, 5)}
    for column in parsed[0].find_all(exp.Column):
        assert column.name in everything or (column.table.startswith("d") and column.name in derived), column.sql()
    kept = dataclasses.replace(schema, tables=tuple(t for t in schema.tables if not t.name.startswith("sqlite_")))
    if len(kept.tables) == len(schema.tables):
        fill(kept, rows=0).execute("EXPLAIN " + sql)


@pytest.mark.parametrize("walks", [150, pytest.param(1_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_random_weights_write_nothing_but_sql_over_the_schema(
    walks: int, dialect: Dialect, request: pytest.FixtureRequest
) -> None:
    try:
        shared: Path | None = request.getfixturevalue("shared_data")
    except pytest.skip.Exception:
        shared = None
    examples = worlds(shared)
    assert len({example.context_id for example in examples}) == 50
    texts = ["\n".join(m.content for m in render_prompt(e.context, e.question, (), dialect)) for e in examples]
    tokenizer = trained_tokenizer(texts, dialect)
    engine, eos = Engine(tokenizer), tokenizer.eos_token_id
    rng, task = np.random.default_rng(0), SqlTask()
    for i in range(walks):
        example = examples[i % len(examples)]
        matches = task.matches(example)
        limit = max_completion_tokens(example.context, example.question, matches, dialect)
        grammar = constraint(example.context, example.question, matches, dialect)
        text = walk(engine, grammar, eos, rng, scale=(0.2, 1.0, 3.0)[i % 3], limit=limit)
        check(decode(example.context, example.question, matches, text, dialect), example.context.schema)
        if dialect == "plain":
            check(text, example.context.schema)


def test_a_schema_of_many_tables_still_names_only_what_exists() -> None:
    big = Schema("big", tuple(Table(f"t{i}", (Column("a"), Column(f"b{i}", "number"))) for i in range(30)))
    grammar = constraint(big, "which a?", [], "plain")
    assert accepts(grammar, 'SELECT "t29"."b29" FROM "t29" JOIN "t3" ON "t29"."a" = "t3"."a"')
    assert not accepts(grammar, 'SELECT "t29"."b28" FROM "t29"')


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_real_random_model_writes_only_sql(dialect: Dialect) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from agents.chat import Request, Sampling, answer
    from agents.models.hf import TransformersModel
    from factory.tasks.sql.database import Database

    examples = list({example.context_id: example for example in load(DataSource(split="xdev"))[0]}.values())[:12]
    concerts = Database.from_schema(CONCERTS)
    examples += [Example(f"c{i}", f"Which singer from France is over {i}?", concerts, "concerts") for i in range(12)]
    task = SqlTask()
    prompts = [render_prompt(example.context, example.question, task.matches(example), dialect) for example in examples]
    tokenizer = trained_tokenizer(["\n".join(message.content for message in prompt) for prompt in prompts], dialect)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    model = TransformersModel(LlamaForCausalLM(config), tokenizer)
    requests = [
        Request(
            messages=prompt,
            sampling=Sampling(temperature=1.0, max_tokens=1_500, seed=i),
            constraint=constraint(example.context, example.question, task.matches(example), dialect),
        )
        for i, (example, prompt) in enumerate(zip(examples, prompts, strict=True))
    ]
    replies = answer(model, requests)
    finished = [(e, reply.text) for e, reply in zip(examples, replies, strict=True) if reply.stop_reason != "length"]
    assert not [reply.error for reply in replies if reply.error] and len(finished) >= 20
    for example, text in finished:
        check(decode(example.context, example.question, task.matches(example), text, dialect), example.context.schema)
