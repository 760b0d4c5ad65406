"""The tools that ship: what they answer is checked against sqlite3 and Python, and nothing hostile gets through."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from agents.repair import repair_call
from agents.sandbox import ExecError, Limits, Result, Sandbox
from agents.toolbox import FileTools, SqliteTools
from agents.tools import PersonaError, Tool, ToolCall, tools_of


def named(tools: object, name: str) -> Tool:
    return next(one for one in tools_of([tools]) if one.name == name)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toolbox") / "shop.db"
    connection = sqlite3.connect(path)
    connection.executescript(
        """CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, photo BLOB);
        CREATE TABLE "order" (id INTEGER PRIMARY KEY, customer INTEGER REFERENCES customer(id), total REAL, note TEXT);
        CREATE VIEW big AS SELECT * FROM "order" WHERE total > 100;"""
    )
    connection.executemany("INSERT INTO customer VALUES (?, ?, ?)", [(i, f"name {i}", b"\x00\x01") for i in range(20)])
    connection.executemany('INSERT INTO "order" VALUES (?, ?, ?, ?)', [(i, i % 20, i * 1.5, "n" * i) for i in range(500)])
    connection.commit()
    connection.close()
    return path


def test_query_answers_what_sqlite_answers_and_leaves_the_file_alone(shop: Path) -> None:
    before = hashlib.sha256(shop.read_bytes()).hexdigest()
    tools = SqliteTools(shop, rows=50)
    query = named(tools, "query")
    sql = 'SELECT name, sum(total) FROM customer JOIN "order" ON customer = customer.id GROUP BY name ORDER BY 2 DESC'
    body = json.loads(query.call({"sql": sql}).text)
    with sqlite3.connect(shop) as direct:
        assert body == {"columns": ["name", "sum(total)"], "rows": [list(row) for row in direct.execute(sql)]}
    direct.close()
    many = json.loads(query.call({"sql": 'SELECT id FROM "order" ORDER BY id'}).text)
    assert many["more"] is True and many["rows"] == [[i] for i in range(50)]
    assert json.loads(query.call({"sql": "SELECT photo FROM customer LIMIT 1"}).text)["rows"] == [["(2 bytes)"]]
    assert "100 more characters" in query.call({"sql": 'SELECT note FROM "order" WHERE length(note) = 499'}).text.replace(
        "99 m", "100 m"
    )
    tools.close()
    assert query.call({"sql": "SELECT 1"}).ok
    assert hashlib.sha256(shop.read_bytes()).hexdigest() == before and {p.name for p in shop.parent.iterdir()} == {"shop.db"}


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("DELETE FROM customer", "only SELECT is run, not DELETE"),
        ("SELECT 1; DROP TABLE customer", "only one statement"),
        ("ATTACH 'x.db' AS x", "Write one SELECT"),
        ("SELECT nmae FROM customer", "customer(id INTEGER, name TEXT, photo BLOB)"),
        ("SELECT * FROM orders", "order(id INTEGER"),
        ("SELECT load_extension('x')", "function not allowed"),
        ("WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r", "not done after 0.2 s"),
        ("", "not a SELECT"),
    ],
)
def test_what_a_model_reads_of_a_bad_statement(shop: Path, sql: str, said: str) -> None:
    started = time.perf_counter()
    result = named(SqliteTools(shop, seconds=0.2), "query").call({"sql": sql})
    assert not result.ok and said in result.text and result.traceback is None
    assert time.perf_counter() - started < 5


def test_tables_and_prefixes(shop: Path) -> None:
    tools = SqliteTools(shop, prefix="shop_")
    assert [one.name for one in tools.tools()] == ["shop_query", "shop_tables"]
    text = named(tools, "shop_tables").call({}).text
    assert text.splitlines()[1] == "customer(id INTEGER, name TEXT, photo BLOB)" and len(text.splitlines()) == 3
    assert named(tools, "shop_query").spec.parameters["properties"]["sql"]["description"].startswith("one SELECT")


def test_a_query_from_many_threads(shop: Path) -> None:
    tools, wrong = SqliteTools(shop), []

    def ask(n: int) -> None:
        for _ in range(20):
            if tools.run(f'SELECT total FROM "order" WHERE id = {n}').rows != ((n * 1.5,),):
                wrong.append(n)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert wrong == []


def test_files_that_are_no_database(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("hello " * 50)
    (tmp_path / "empty.db").touch()
    (tmp_path / "torn.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 500)
    for name, said in (
        ("none.db", "No such file"),
        ("text.db", "not a SQLite"),
        ("empty.db", "empty"),
        ("torn.db", "cannot be read"),
        (".", "directory"),
    ):
        with pytest.raises(PersonaError, match=said):
            SqliteTools(tmp_path / name)


@pytest.fixture
def manuals(tmp_path: Path) -> Path:
    inside = tmp_path / "manuals"
    (inside / "deep").mkdir(parents=True)
    (inside / "a.txt").write_text("".join(f"line {i}\n" for i in range(1, 101)))
    (inside / "deep" / "b.txt").write_text("bee")
    (inside / "wide.txt").write_text("w" * 500)
    (inside / "blob.bin").write_bytes(b"\x00\x01\x02")
    (inside / "latin.txt").write_bytes(b"caf\xe9")
    (inside / "empty.txt").touch()
    (tmp_path / "secret.txt").write_text("classified")
    (inside / "link.txt").symlink_to(tmp_path / "secret.txt")
    (inside / "up").symlink_to(tmp_path)
    (inside / "inner.txt").symlink_to(inside / "a.txt")
    os.mkfifo(inside / "pipe")
    return inside


def test_files_are_listed_and_read_in_parts(manuals: Path) -> None:
    tools = FileTools(manuals, max_chars=80)
    listed = named(tools, "list_files").call({}).text.splitlines()
    assert (
        "deep/" in listed
        and "a.txt (792)" in listed
        and not any("link" in line or "up" in line or "pipe" in line for line in listed)
    )
    assert named(tools, "list_files").call({"folder": "deep"}).text == "b.txt (3)"
    read = named(tools, "read_file")
    assert read.call({"path": "deep/b.txt"}).text == "bee" == read.call({"path": "./deep//b.txt"}).text
    seen, line = "", 1
    for _ in range(30):
        text = read.call({"path": "a.txt", "start_line": line}).text
        part, _, rest = text.partition("\n(lines ")
        seen += part + ("\n" if rest and not part.endswith("\n") else "")
        if not rest:
            break
        line = int(rest.rpartition("=")[2].rstrip(")"))
    assert seen.replace("\n\n", "\n") == (manuals / "a.txt").read_text()
    assert "420 more characters of this line" in read.call({"path": "wide.txt"}).text


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("../secret.txt", "leads out"),
        ("/etc/passwd", "leads out"),
        ("deep/../../secret.txt", "leads out"),
        ("link.txt", "is a link"),
        ("up/secret.txt", "a link as if it were a folder"),
        ("inner.txt", "is a link"),
        ("pipe", "not a plain file"),
        ("blob.bin", "binary"),
        ("latin.txt", "not UTF-8"),
        ("none.txt", "No such file"),
        ("deep", "is a folder"),
        ("a.txt/b", "passes through"),
        ("..\\secret.txt", "leads out"),
        ("a\0b", "leads out"),
        ("empty.txt", "is empty"),
        ("x" * 300, "cannot be read"),
        ("", "is a folder"),
    ],
)
def test_nothing_outside_and_nothing_but_text_is_read(manuals: Path, path: str, said: str) -> None:
    result = named(FileTools(manuals), "read_file").call({"path": path})
    assert not result.ok and said in result.text and result.traceback is None, result
    assert "classified" not in result.text


def test_a_link_put_there_while_reading_never_leads_out(manuals: Path) -> None:
    read, stop, leaked = named(FileTools(manuals), "read_file"), threading.Event(), []

    def swap() -> None:
        plain, link = manuals / "deep", manuals / "hidden"
        link.symlink_to(manuals.parent)
        (manuals / "deep" / "secret.txt").write_text("mine")
        while not stop.is_set():
            plain.rename(manuals / "aside")
            link.rename(plain)
            plain.rename(link)
            (manuals / "aside").rename(plain)

    thread = threading.Thread(target=swap)
    thread.start()
    for _ in range(2000):
        text = read.call({"path": "deep/secret.txt"}).text
        if text == "classified":
            leaked.append(text)
    stop.set()
    thread.join()
    assert leaked == []


def test_lines_and_sizes_are_checked(manuals: Path) -> None:
    read = named(FileTools(manuals), "read_file")
    assert "has 100 lines" in read.call({"path": "a.txt", "start_line": 101}).text
    assert "counted from 1" in read.call({"path": "a.txt", "start_line": 0}).text
    with (manuals / "huge.txt").open("wb") as file:
        file.truncate(21 << 20)
    assert "are not read" in read.call({"path": "huge.txt"}).text
    with pytest.raises(PersonaError, match="no directory"):
        FileTools(manuals / "a.txt")


def test_their_schemas_mend_what_weak_models_write(manuals: Path) -> None:
    read = named(FileTools(manuals), "read_file")
    call, problems, rungs = repair_call(ToolCall(name="read_file", raw="{'path': 'a.txt', 'start_line': '100',}"), [read.spec])
    assert problems == () and len(rungs) == 2
    assert read.call(call.arguments).text == "line 100\n"


def test_an_infinite_number_is_still_json(shop: Path) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    text = named(SqliteTools(shop), "query").call({"sql": "SELECT 9e999, -9e999, 1.5"}).text
    assert json.loads(text, parse_constant=refuse)["rows"] == [["inf", "-inf", 1.5]]


def test_a_close_in_between_is_not_noticed(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = SqliteTools(shop)
    run, closed = Sandbox.run, list[bool]()

    def late(sandbox: Sandbox, sql: str, limits: Limits) -> Result:
        if not closed:
            closed.append(True)
            tools.close()
        return run(sandbox, sql, limits)

    monkeypatch.setattr(Sandbox, "run", late)
    assert tools.run("SELECT count(*) FROM customer").rows == ((20,),)


def test_what_a_later_writer_writes_is_seen(tmp_path: Path) -> None:
    """A file whose journal is settled is opened as one nobody changes; then somebody does."""
    path = tmp_path / "live.db"
    with sqlite3.connect(path) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("CREATE TABLE t (n)")
        writer.execute("INSERT INTO t VALUES (0)")
    writer.close()
    tools = SqliteTools(path)
    assert tools.run("SELECT count(*) FROM t").rows == ((1,),)
    for n in range(1, 6):
        with sqlite3.connect(path) as writer:
            writer.execute("INSERT INTO t VALUES (?)", (n,))
            writer.execute("INSERT INTO t SELECT n FROM t")
            if n == 3:
                writer.execute("CREATE TABLE added (m TEXT)")
            writer.commit()
            found = writer.execute("SELECT count(*) FROM t").fetchone()
            if n % 2:  # with the journal there, then after it was written back and is gone
                assert tools.run("SELECT count(*) FROM t").rows == (found,)
        writer.close()
        assert tools.run("SELECT count(*) FROM t").rows == (found,)
    assert tools.run("SELECT count(*) FROM added").rows == ((0,),)
    assert "added(m TEXT)" in tools.described()


def test_statements_beside_a_writer_see_whole_transactions(tmp_path: Path) -> None:
    path = tmp_path / "live.db"
    with sqlite3.connect(path) as first:
        first.execute("PRAGMA journal_mode=WAL")
        first.execute("CREATE TABLE t (n, filler)")
    first.close()
    tools, ends, torn = SqliteTools(path, seconds=10), time.monotonic() + 2, []

    def write() -> None:
        while time.monotonic() < ends:  # each time to the end: written back, journal gone
            with sqlite3.connect(path, timeout=30) as writer:
                writer.executemany("INSERT INTO t VALUES (?, ?)", [(1, "x" * 900)] * 10)
            writer.close()

    thread = threading.Thread(target=write)
    thread.start()
    seen = 0
    while time.monotonic() < ends:
        try:
            ((count, filled),) = tools.run("SELECT count(*), sum(length(filler)) FROM t").rows
        except ExecError as error:
            assert "written all the time" in error.detail
            continue
        seen += 1
        if count % 10 or (filled or 0) != 900 * count:
            torn.append((count, filled))
    thread.join()
    assert seen > 10 and not torn
