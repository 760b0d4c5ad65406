"""Read data sets of many-table questions: Spider (Yu et al. 2018), its synonym paraphrases, and GeoQuery.

Does: build schemas from tables.json (no rows), read questions, open GeoQuery's real database, turn "text" into 'text'.
Does not: split Spider's official files anew except for `xdev`, which holds out whole databases of a directory without dev file.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

from factory.tasks.sql.database import Database
from factory.tasks.sql.reading import SUFFIXES, Fingerprint, find_split, question_files, read_json, read_lines, text_field
from factory.tasks.sql.schema import Column, ColumnType, ForeignKey, Schema, Table
from factory.tasks.task import Example, TaskError

_TYPES: dict[str, ColumnType] = {"text": "text", "number": "number", "time": "time", "boolean": "number"}
_DOUBLE = re.compile(r"'(?:[^']|'')*'|\"((?:[^\"]|\"\")*)\"")
HELD_OUT_PER_CENT = 10


def single_quoted(sql: str) -> str:
    """SQL whose texts are written "so" (Spider and GeoQuery do, and quote no names) with 'so'; white space is collapsed."""

    def mend(found: re.Match[str]) -> str:
        text = found[1]
        return found[0] if text is None else "'" + text.replace('""', '"').replace("'", "''") + "'"

    parts = re.split(r"('(?:[^']|'')*')", _DOUBLE.sub(mend, sql.strip().rstrip(";")))
    return "".join(part if i % 2 else re.sub(r"\s+", " ", part) for i, part in enumerate(parts)).strip()


def spider_schema(row: dict[str, Any]) -> Schema:
    """The schema of one entry of tables.json; raises KeyError, IndexError or TypeError when it is malformed."""
    names = row["column_names_original"]
    primary = {p for part in row["primary_keys"] for p in (part if isinstance(part, list) else [part])}
    tables = tuple(
        Table(
            name,
            tuple(
                Column(column, _TYPES.get(row["column_types"][i], "other"), row["column_types"][i], i in primary)
                for i, (owner, column) in enumerate(names)
                if owner == t
            ),
        )
        for t, name in enumerate(row["table_names_original"])
        if not name.startswith("sqlite_")
    )
    owners = row["table_names_original"]
    keys = tuple(ForeignKey(owners[names[a][0]], names[a][1], owners[names[b][0]], names[b][1]) for a, b in row["foreign_keys"])
    return Schema(row["db_id"], tables, keys)


def read_spider(data_dir: Path, split: str, seen: Fingerprint, *, paraphrase: bool) -> tuple[list[Example], Counter[str]]:
    """Examples of a split; `paraphrase` asks Spider-Syn's question where there is one, counting rows without it.

    Without a dev file, `xdev` is about a tenth of the databases, `train` the others, `all` both; the other part is counted."""
    tables = next((data_dir / f"tables{s}" for s in (".json.xz", ".json") if (data_dir / f"tables{s}").exists()), None)
    if tables is None:
        raise TaskError(f"{data_dir}: has no tables.json.xz; give Spider's directory as --data-dir")
    try:
        databases = {row["db_id"]: Database.from_schema(spider_schema(row)) for row in read_json(tables, seen)}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise TaskError(f"{tables}: not Spider's schema file ({error!r}); copy it again") from None
    holds_out = "dev" not in question_files(data_dir) and split in ("train", "xdev", "all")
    path, rows = find_split(data_dir, "train" if holds_out else split, seen)
    examples: list[Example] = []
    skipped: Counter[str] = Counter()
    for n, row in rows:
        db_id = text_field(path, n, row, "db_id")
        if db_id not in databases:
            skipped["no-database"] += 1
            continue
        if holds_out and split != "all" and _held_out(db_id) is not (split == "xdev"):
            skipped["held-out-database" if split == "train" else "training-database"] += 1
            continue
        if paraphrase and not row.get("question_syn"):
            skipped["no-paraphrase"] += 1
            continue
        question = text_field(path, n, row, "question_syn" if paraphrase else "question")
        sql = single_quoted(text_field(path, n, row, "query", "sql"))
        extra = {"question_syn": row["question_syn"]} if row.get("question_syn") else {}
        examples.append(Example(f"{path.name.split('.')[0]}-{n}", question, databases[db_id], db_id, sql, split, extra))
    return examples, skipped


def read_geography(data_dir: Path, split: str, seen: Fingerprint) -> tuple[list[Example], Counter[str]]:
    """GeoQuery's questions of a question-split (train, dev, test) with values put in, over its real database.

    A NAME.jsonl[.xz] of {"question", "sql"} in the directory is read instead when it is there."""
    path = data_dir / "geography-real.sqlite"
    database = Database.from_file(path)
    seen.add(path.read_bytes())
    if any((data_dir / f"{split}{s}").exists() for s in SUFFIXES):
        return read_questions(data_dir, split, database, "geography", seen), Counter()
    source = next((data_dir / f"geography{s}" for s in (".json.xz", ".json") if (data_dir / f"geography{s}").exists()), None)
    if source is None:
        raise TaskError(f"{data_dir}: has no geography.json.xz; give GeoQuery's directory as --data-dir")
    examples: list[Example] = []
    splits: set[str] = set()
    try:
        for q, query in enumerate(read_json(source, seen)):
            for s, sentence in enumerate(query["sentences"]):
                splits.add(sentence["question-split"])
                if sentence["question-split"] != split:
                    continue
                text, sql = sentence["text"], query["sql"][0]
                for name, value in sorted(sentence["variables"].items(), key=lambda item: -len(item[0])):
                    text, sql = text.replace(name, value), sql.replace(name, value)
                question = " ".join(text.split())
                examples.append(Example(f"geography-{q}-{s}", question, database, "geography", single_quoted(sql), split))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise TaskError(f"{source}: not GeoQuery's file ({error!r}); copy it again") from None
    if split not in splits:
        raise TaskError(f"--split {split}: not in {data_dir}; choose from {', '.join(sorted(splits))}")
    return examples, Counter()


def read_questions(data_dir: Path, split: str, database: Database, context_id: str, seen: Fingerprint) -> list[Example]:
    """Rows of {"question", "sql" or "query" (optional)} about one database."""
    path, rows = find_split(data_dir, split, seen)
    return [question_example(path, n, row, database, context_id, split) for n, row in rows]


def question_example(path: Path, n: int, row: dict[str, Any], database: Database, context_id: str, split: str) -> Example:
    """One row of a questions file; raises TaskError naming file and line."""
    question = text_field(path, n, row, "question")
    given = row.get("sql", row.get("query"))
    if given is not None and not isinstance(given, str):
        raise TaskError(f"{path}, line {n}: 'sql' is {given!r}; expected the text of a query, or leave it out")
    reference = single_spaced(given) if given and given.strip() else None
    return Example(f"{path.name.split('.')[0]}-{n}", question, database, context_id, reference, split)


def single_spaced(sql: str) -> str:
    """A user's own query without its final semicolon; quotes stay as they are."""
    return sql.strip().rstrip(";").rstrip()


def _held_out(db_id: str) -> bool:
    return int(hashlib.sha256(db_id.encode()).hexdigest(), 16) % 100 < HELD_OUT_PER_CENT


def read_db_questions(
    path: Path, database: Database, context_id: str, split: str, seen: Fingerprint
) -> tuple[list[Example], Counter[str]]:
    """Questions of a user's JSONL. `train` and `xdev` follow the rows' "split" when any row has one, else a fixed tenth by the
    question's text is `xdev`; `all` reads everything. Rows of the other part are counted."""
    rows = list(read_lines(path, seen))
    marked = any("split" in row for _, row in rows)
    examples: list[Example] = []
    skipped: Counter[str] = Counter()
    for n, row in rows:
        example = question_example(path, n, row, database, context_id, split)
        here = str(row.get("split", "train")) if marked else ("xdev" if _held_out(example.question.lower()) else "train")
        if split in ("all", here):
            examples.append(example)
        else:
            skipped[f"split-{here}"] += 1
    return examples, skipped
