"""Uploads: what is kept, under which name, and what is refused; hostile names, sizes and bytes."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from app import uploads
from app.uploads import UploadError, keep, kept, look_at_database, look_at_questions, safe_name

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "shop.sqlite"
    with sqlite3.connect(path) as db:
        db.execute(f'CREATE TABLE "{HOSTILE}" (id INTEGER, "name; DROP TABLE x" TEXT)')
        db.executemany(f'INSERT INTO "{HOSTILE}" VALUES (?, ?)', [(i, f"n{i}") for i in range(7)])
        db.execute("CREATE TABLE customer (id INTEGER, city TEXT)")
        db.execute("CREATE VIEW endless AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c")
    db.close()
    return path


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("shop.sqlite", "shop.sqlite"),
        ("../../etc/passwd.db", "passwd.db"),
        ("..\\..\\boot.sqlite3", "boot.sqlite3"),
        ("/etc/cron.d/x.DB", "x.db"),
        (f"{HOSTILE}.sqlite", "script.sqlite"),
        ("<img src=x onerror=alert(1)>.sqlite", "img-src-x-onerror-alert-1.sqlite"),
        ("a\0b\n.sqlite", "a-b.sqlite"),
        ("....sqlite", "database.sqlite"),
        ("é" * 300 + ".db", "database.db"),
        ("x" * 300 + ".db", "x" * 60 + ".db"),
    ],
)
def test_names_are_made_plain(given: str, stored: str) -> None:
    assert safe_name(given, "database") == stored


@pytest.mark.parametrize("name", ["shop.exe", "shop", "shop.sqlite.html", "shop.jsonl", ""])
def test_other_kinds_of_files_are_refused_with_the_endings(name: str) -> None:
    with pytest.raises(UploadError, match=r"give one that ends in \.sqlite or \.sqlite3 or \.db"):
        safe_name(name, "database")


def test_an_upload_lands_inside_once_and_cannot_be_written(tmp_path: Path, shop: Path) -> None:
    root = tmp_path / "runs" / "app" / "uploads"
    data = shop.read_bytes()
    path = keep(root, "../../../shop.sqlite", data, "database")
    assert path == root / hashlib.sha256(data).hexdigest()[:16] / "shop.sqlite"
    assert path.stat().st_mode & 0o222 == 0
    assert keep(root, "shop.sqlite", data, "database") == path
    assert kept(root, "database") == [path]
    assert kept(root, "questions") == []
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()].count("shop.sqlite") == 2  # ours and the one given


def test_too_large_empty_or_too_many_uploads_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(uploads.MEGABYTES, "questions", 1)
    with pytest.raises(UploadError, match=r"q\.jsonl has 2 MB, more than the 1 MB"):
        keep(tmp_path, "q.jsonl", b" " * 2_000_000, "questions")
    with pytest.raises(UploadError, match="is empty"):
        keep(tmp_path, "q.jsonl", b"", "questions")
    monkeypatch.setattr(uploads, "ALL_BYTES", 10)
    with pytest.raises(UploadError, match="delete some"):
        keep(tmp_path, "q.jsonl", b"x" * 11, "questions")
    assert list(tmp_path.rglob("*.jsonl")) == []


def test_a_database_is_shown_with_names_as_they_are_and_not_changed(shop: Path) -> None:
    before = shop.read_bytes()
    tables = {table.name: table for table in look_at_database(shop).tables}
    assert tables[HOSTILE].rows == 7
    assert tables[HOSTILE].columns == ("id", "name; DROP TABLE x")
    assert tables["customer"].rows == 0
    assert tables["endless"].rows is None
    assert shop.read_bytes() == before
    assert [path.name for path in shop.parent.iterdir()] == ["shop.sqlite"]


def _garbage(good: bytes) -> bytes:
    return good[:100] + b"\xff" * (len(good) - 100)


def _half(good: bytes) -> bytes:
    return good[: len(good) // 2]


def _flipped(good: bytes) -> bytes:
    """The page of a table's rows overwritten: the schema still reads."""
    return good[:4096] + b"\x00\xff" * 2048 + good[8192:]


@pytest.mark.parametrize("damage", [_garbage, _half, _flipped, lambda _: b"PK\x03\x04 no database", lambda good: good[:16]])
def test_damaged_databases_are_refused_in_one_sentence(tmp_path: Path, shop: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "bad.sqlite"
    path.write_bytes(damage(shop.read_bytes()))
    with pytest.raises(UploadError) as refused:
        look_at_database(path)
    assert str(refused.value).startswith("bad.sqlite ") or str(refused.value).startswith("bad.sqlite:")
    assert str(tmp_path) not in str(refused.value)


def test_a_database_without_tables_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "empty.db") as db:
        db.execute("PRAGMA user_version = 3")
    db.close()
    with pytest.raises(UploadError, match="has no tables"):
        look_at_database(tmp_path / "empty.db")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b'{"question": "a"}\nnonsense\n', r"q\.jsonl, line 2: not valid JSON"),
        (b'{"question": "a"}\n\n{"question": 7}\n', r"q\.jsonl, line 3: 'question' is 7; expected text"),
        (b'{"ask": "a"}\n', r"q\.jsonl, line 1: no 'question'; keys are 'ask'"),
        (b'{"question": "a", "sql": 3}\n', r"q\.jsonl, line 1: 'sql' is 3"),
        (b"\xff\xfe\x00\n", r"q\.jsonl, line 1: not valid JSON"),
        (b"[1, 2]\n", r"q\.jsonl, line 1: .* is not an object"),
        (b"\n \n", r"q\.jsonl has no questions; write one object a line"),
    ],
)
def test_the_first_bad_line_of_a_questions_file_is_named(tmp_path: Path, text: bytes, sentence: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(text)
    with pytest.raises(UploadError, match=sentence) as refused:
        look_at_questions(path)
    assert str(tmp_path) not in str(refused.value)


def test_questions_are_previewed_and_their_queries_tried_without_running_anything(tmp_path: Path, shop: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(
        '{"question": "how many customers?", "sql": "SELECT count(*) FROM customer"}\n'
        f'{{"question": "{HOSTILE}", "sql": "DROP TABLE customer"}}\n'
        '{"question": "no query yet"}\n'
        '{"question": "robert", "sql": "SELECT 1; DELETE FROM customer"}\n',
        encoding="utf-8",
    )
    before = shop.read_bytes()
    found = look_at_questions(path, shop)
    assert (found.n, found.with_sql, found.tried, found.failing) == (4, 3, 3, 2)
    assert found.first_failing == "line 2: only SELECT is run, not DROP"
    assert found.first[1]["question"] == HOSTILE
    assert shop.read_bytes() == before
    assert look_at_questions(path).tried == 0


def test_questions_on_a_damaged_database_say_so(tmp_path: Path, shop: Path) -> None:
    (tmp_path / "bad.db").write_bytes(_garbage(shop.read_bytes()))
    (tmp_path / "q.jsonl").write_text('{"question": "a", "sql": "SELECT 1"}\n')
    with pytest.raises(UploadError, match="cannot be read as SQLite"):
        look_at_questions(tmp_path / "q.jsonl", tmp_path / "bad.db")
