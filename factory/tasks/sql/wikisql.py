"""Read WikiSQL (Zhong et al. 2017): questions over single tables with their logical forms.

Does: read NAME.jsonl.xz with its tables_NAME.jsonl.xz, build one `Database` a table, write each form as SQL, count what
was skipped.
Does not: execute anything; rows compare as `cells.py` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from factory.tasks.sql.database import Database
from factory.tasks.sql.forms import Form, to_sql
from factory.tasks.sql.reading import SUFFIXES, Fingerprint, field, find_split, read_lines, text_field
from factory.tasks.task import Example, TaskError


def read_tables(path: Path, wanted: set[str], seen: Fingerprint) -> dict[str, Database]:
    """Table id -> Database of the wanted tables; `rows` make results, `values` only links. Raises TaskError."""
    databases: dict[str, Database] = {}
    for n, row in read_lines(path, seen, wanted):
        id = str(field(path, n, row, "id"))
        if id in wanted:
            header = [str(name) for name in field(path, n, row, "header")]
            databases[id] = _database(path, n, id, header, row)
    return databases


def read(data_dir: Path, split: str, seen: Fingerprint) -> tuple[list[Example], Counter[str]]:
    """Examples of a split in file order, and the skipped rows by reason: no-table, bad-logical-form. Raises TaskError.

    `extra` holds "sql", the logical form as in the file. An id is file and line, so it stays when other rows change."""
    path, rows = find_split(data_dir, split, seen)
    name = path.name.removesuffix(".xz").removesuffix(".jsonl")
    tables = next((data_dir / f"tables_{name}{s}" for s in SUFFIXES if (data_dir / f"tables_{name}{s}").exists()), None)
    if tables is None:
        raise TaskError(f"{data_dir}: {path.name} has no tables_{name}.jsonl.xz beside it; copy the tables too")
    ids = [str(field(path, n, row, "table_id")) for n, row in rows]
    databases = read_tables(tables, set(ids), seen)
    examples: list[Example] = []
    skipped: Counter[str] = Counter()
    for (n, row), table_id in zip(rows, ids, strict=True):
        database = databases.get(table_id)
        if database is None:
            skipped["no-table"] += 1
            continue
        sql = field(path, n, row, "sql")
        form = Form.read(sql, len(database.schema.columns))
        if form is None:
            skipped["bad-logical-form"] += 1
            continue
        examples.append(
            Example(
                id=f"{name}-{n}",
                question=text_field(path, n, row, "question"),
                context=database,
                context_id=table_id,
                reference=to_sql(form, database.schema),
                split=split,
                extra={"sql": form.data()},
            )
        )
    return examples, skipped


def _database(path: Path, n: int, id: str, header: Sequence[str], row: dict[str, Any]) -> Database:
    rows, values = row.get("rows"), row.get("values")
    for part, per_row in ((rows, True), (values, False)):
        if part is None:
            continue
        widths = {len(r) for r in part} if per_row else {len(part)}
        if widths - {len(header)}:
            raise TaskError(
                f"{path}, line {n}: table {id!r} has {len(header)} header cells but other widths below; mend the table"
            )
    if rows:
        return Database.from_rows(id, header, [[_cell(c) for c in r] for r in rows])
    return Database.from_values(id, header, [[_cell(c) or "" for c in column] for column in values] if values else None)


def _cell(cell: Any) -> str | None:
    return cell if cell is None or isinstance(cell, str) else str(cell)
