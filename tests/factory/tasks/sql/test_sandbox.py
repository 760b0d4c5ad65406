"""Model-written SQL cannot change a byte, reach another file, or run for ever."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from agents.sandbox import VALUE_BYTES
from factory.tasks.sql.database import Database, ExecError, Limits

LIMITS = Limits(seconds=0.3, rows=1000, result_bytes=1 << 20)
SLACK_S = 3.0
"""Above the limit: one function call, a merge of sorted runs, or memory filling up while compiling."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sandbox") / "real.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(
        """CREATE TABLE t (a TEXT, b INTEGER); CREATE TABLE u (id INTEGER PRIMARY KEY, t_b INTEGER REFERENCES t(b));
        CREATE VIEW v AS SELECT a, b FROM t WHERE b > 10; CREATE INDEX i ON t(b);
        CREATE TRIGGER g AFTER INSERT ON t BEGIN DELETE FROM u; END;"""
    )
    connection.executemany("INSERT INTO t VALUES (?, ?)", [(f"x{i}", i) for i in range(2000)])
    connection.commit()
    connection.close()
    return path


def writes(out: Path) -> list[str]:
    """Statements that would change something, here or elsewhere."""
    return [
        "INSERT INTO t VALUES ('y', 1)", "insert into t select a, b from t", "INSERT OR REPLACE INTO t VALUES ('y', 1)",
        "REPLACE INTO t VALUES ('y', 1)", "INSERT INTO t DEFAULT VALUES", "INSERT INTO t VALUES ('y', 1) RETURNING a",
        "UPDATE t SET a = 'y'", "UPDATE OR IGNORE t SET a = 'y'", "UPDATE t SET a = 'y' RETURNING *", "UPDATE v SET a = 'z'",
        "DELETE FROM t", "DELETE FROM t RETURNING b", "DELETE FROM sqlite_master", "DELETE FROM t WHERE b IN (SELECT b FROM t)",
        "DROP TABLE t", "DROP TABLE IF EXISTS t", "DROP VIEW v", "DROP INDEX i", "DROP TRIGGER g",
        "CREATE TABLE n (a)", "CREATE TABLE n AS SELECT * FROM t", "CREATE TEMP TABLE n (a)", "CREATE TEMP TABLE n AS SELECT 1",
        "CREATE VIEW n AS SELECT 1", "CREATE TEMP VIEW n AS SELECT 1", "CREATE INDEX n ON t(a)", "CREATE UNIQUE INDEX n ON t(b)",
        "CREATE TRIGGER n AFTER UPDATE ON t BEGIN SELECT 1; END", "CREATE VIRTUAL TABLE n USING fts5(a)",
        "CREATE VIRTUAL TABLE n USING rtree(a, b, c)", "CREATE VIRTUAL TABLE temp.n USING dbstat",
        "ALTER TABLE t RENAME TO n", "ALTER TABLE t ADD COLUMN c", "ALTER TABLE t DROP COLUMN a", "ALTER TABLE t RENAME a TO c",
        "VACUUM", f"VACUUM INTO '{out}'", f"VACUUM main INTO '{out}'", "REINDEX", "REINDEX t", "ANALYZE", "ANALYZE t",
        "BEGIN", "BEGIN EXCLUSIVE", "BEGIN IMMEDIATE", "COMMIT", "END", "ROLLBACK", "SAVEPOINT s", "RELEASE s", "ROLLBACK TO s",
        f"ATTACH '{out}' AS n", "ATTACH ':memory:' AS n", "ATTACH '' AS n", f"ATTACH DATABASE 'file:{out}?mode=rwc' AS n",
        "DETACH main", "DETACH DATABASE temp",
    ]  # fmt: skip


PRAGMAS = [
    "PRAGMA writable_schema = ON", "PRAGMA writable_schema", "PRAGMA journal_mode = WAL", "PRAGMA journal_mode = DELETE",
    "PRAGMA user_version = 7", "PRAGMA application_id = 7", "PRAGMA query_only = OFF", "PRAGMA main.query_only(0)",
    "PRAGMA trusted_schema = ON", "PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA incremental_vacuum", "PRAGMA auto_vacuum = 1",
    "PRAGMA page_size = 512", "PRAGMA encoding = 'UTF-16'", "PRAGMA schema_version = 3", "PRAGMA temp_store_directory = '/'",
    "PRAGMA data_store_directory = '/'", "PRAGMA mmap_size = 99999999999", "PRAGMA cache_size = -99999999", "PRAGMA optimize",
    "PRAGMA hard_heap_limit = 1", "PRAGMA soft_heap_limit = 1", "PRAGMA table_info(t)", "PRAGMA database_list",
    "PRAGMA data_version",
    "PRAGMA locking_mode = EXCLUSIVE", "PRAGMA busy_timeout = 100000", "PRAGMA threads = 8", "PRAGMA shrink_memory",
]  # fmt: skip

FUNCTIONS = [
    "SELECT load_extension('x')", "SELECT load_extension('x', 'y')", "SELECT readfile('/etc/passwd')",
    "SELECT writefile('x', 'y')",
    "SELECT edit('x')", "SELECT fts3_tokenizer('simple')", "SELECT fts3_tokenizer('x', x'0011223344556677')",
    "SELECT zeroblob(2000000000)",
    "SELECT randomblob(2000000000)", "SELECT length(randomblob(1000000000))", "SELECT random()",
    "SELECT printf('%.*c', 2000000000, 'x')",
    "SELECT format('%2000000000d', 1)", "SELECT last_insert_rowid()", "SELECT changes()", "SELECT total_changes()",
    "SELECT sqlite_version()", "SELECT sqlite_compileoption_get(1)", "SELECT sqlite_log(1, 'x')", "SELECT unknown_function(1)",
    "SELECT likelihood(1, 0.5)", "SELECT sqlite_offset(a) FROM t", "SELECT snippet(t) FROM t", "SELECT rtreecheck('t')",
    "SELECT * FROM fsdir('/')", "SELECT * FROM generate_series(1, 1000000000)", "SELECT * FROM pragma_table_info('t')",
    "SELECT * FROM pragma_database_list", "SELECT * FROM pragma_user_version", "SELECT * FROM pragma_writable_schema",
    "SELECT count(*) FROM pragma_function_list", "SELECT * FROM json_each('[1]')", "SELECT count(*) FROM json_tree('[1]')",
    "SELECT * FROM dbstat", "SELECT count(*) FROM dbstat", "SELECT * FROM sqlite_stmt", "SELECT * FROM sqlite_master",
    "SELECT sql FROM sqlite_schema", "SELECT * FROM sqlite_temp_master", "SELECT count(*) FROM sqlite_master",
    "SELECT * FROM sqlite_dbpage",
    "SELECT * FROM temp.t", "SELECT * FROM other.t", "SELECT (SELECT sql FROM sqlite_master LIMIT 1) FROM t",
    "WITH m AS (SELECT sql FROM sqlite_master) SELECT * FROM m", "SELECT 1 UNION SELECT name FROM sqlite_master",
]  # fmt: skip

TRICKS = [
    "SELECT 1; DELETE FROM t", "SELECT 1;DROP TABLE t;", "SELECT 1; SELECT 2", ";;; DELETE FROM t", "DELETE/**/FROM/**/t",
    "/* SELECT */ DELETE FROM t", "-- SELECT\nDELETE FROM t", "/* a */ /* b */ PRAGMA user_version = 1",
    "SELECT 1 /* ; */ ; DELETE FROM t",
    "SELECT 1 -- \n; DELETE FROM t", "\tdElEtE FROM t", "\ufeffDELETE FROM t", "WITH x AS (SELECT 1) DELETE FROM t",
    "WITH x AS (SELECT 1) INSERT INTO t SELECT 'a', 1 FROM x", "WITH x AS (SELECT 1) UPDATE t SET a = 1",
    "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x", "SELECT * FROM (DELETE FROM t RETURNING a)", "EXPLAIN DELETE FROM t",
    "EXPLAIN QUERY PLAN DELETE FROM t", "EXPLAIN SELECT 1", "SELECT 1 INTO t", "SELECT * INTO n FROM t",
    "SELECT 1\0; DELETE FROM t",
    "VALUES (1); DELETE FROM t", "SELECT ?1", "SELECT :name", "SELECT @x, $y", "", ";", "   ", "--", "/*", "SELECT",
    "SELECT FROM", "(SELECT 1)",
    "SELECT \ud800", "SELECT 'unclosed", 'SELECT "unclosed', "SELECT [unclosed", "SELECT 1 WHERE", "x" * 30_000,
    " " * 19_999 + "x",
    "/**/" * 4_900 + "x", "/*" * 9_900, "--" * 9_900, "SELECT " + "(" * 9_000, "SELECT " + "NOT " * 4_500 + "1",
    "SELECT 1" + "+1" * 9_000,
]  # fmt: skip

RANGE = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "
LONG = f"WITH s(v) AS (SELECT '{'a' * 999}'), r(v) AS (SELECT group_concat(v, 'a') FROM s, (SELECT 1 FROM t LIMIT 99)) "
PATTERN = "%" + "a" * 40 + "_" * 30 + "b%"


def chain(first: str, step: str, n: int, last: str) -> str:
    """WITH c0 AS (first), c1 AS (step over c0), … last over the final one."""
    steps = ", ".join(f"c{i} AS ({step.format(p=f'c{i - 1}')})" for i in range(1, n))
    return f"WITH c0 AS ({first}), {steps} {last.format(p=f'c{n - 1}')}"


BOMBS = [
    RANGE + "SELECT count(*) FROM c", RANGE + "SELECT x FROM c", RANGE + "SELECT x FROM c ORDER BY x DESC",
    RANGE + "SELECT max(x) FROM c",
    RANGE + "SELECT DISTINCT x % 7 FROM c", RANGE + "SELECT group_concat(x) FROM c", RANGE + "SELECT count(DISTINCT x) FROM c",
    RANGE + "SELECT x || hex('" + "a" * 2000 + "') y FROM c ORDER BY y", RANGE + "SELECT count(*) FROM c WHERE x < 0",
    RANGE + "SELECT sum(x) OVER (ORDER BY x ROWS UNBOUNDED PRECEDING) FROM c",
    RANGE + "SELECT x FROM c LIMIT 1 OFFSET 1000000000",
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION SELECT x + 1 FROM c) SELECT count(*) FROM c",
    "WITH RECURSIVE c(x) AS (SELECT 'a' UNION ALL SELECT x || x FROM c) SELECT max(length(x)) FROM c",
    "WITH RECURSIVE c(x) AS (SELECT hex(hex(hex('aaaa'))) UNION ALL SELECT x || 'b' FROM c) SELECT count(*) FROM c",
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x FROM c) SELECT count(*) FROM c",
    "WITH RECURSIVE c(x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM c ORDER BY 1) SELECT count(*) FROM c",
    "WITH RECURSIVE a(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM a) SELECT (SELECT count(*) FROM a)",
    "SELECT count(*) FROM t a, t b, t c, t d", "SELECT * FROM t a, t b, t c", "SELECT count(*) FROM v a, v b, v c, v d",
    "SELECT count(*) FROM t a JOIN t b JOIN t c JOIN t d", "SELECT a.a || b.a || c.a k, count(*) FROM t a, t b, t c GROUP BY k",
    "SELECT a.a FROM t a, t b, t c ORDER BY a.a || b.a || c.a", "SELECT DISTINCT a.a || b.a || c.a FROM t a, t b, t c",
    "SELECT group_concat(a.a) FROM t a, t b, t c", "SELECT count(DISTINCT a.a || b.a || c.a) FROM t a, t b, t c",
    "SELECT count(*) FROM t x WHERE (SELECT count(*) FROM t y, t z WHERE y.a <> x.a) > 0",
    "SELECT count(*) FROM t x WHERE EXISTS (SELECT 1 FROM t y, t z WHERE y.b + z.b = -1)",
    "SELECT a FROM t WHERE b IN (SELECT x.b * y.b * z.b FROM t x, t y, t z)", "SELECT lag(a.a, 1000000) OVER () FROM t a, t b",
    "SELECT sum(a.b) OVER (ORDER BY b.b ROWS UNBOUNDED PRECEDING) FROM t a, t b, t c",
    "SELECT count(*) FROM " + ", ".join(f"t t{i}" for i in range(64)),
    "SELECT count(*) FROM " + ", ".join(f"t t{i}" for i in range(65)),
    "SELECT count(*) FROM " + ", ".join(f"t t{i}" for i in range(30)) + " WHERE "
    + " AND ".join(f"(t{i}.a = t{i + 1}.a OR t{i}.b = t{i + 1}.b)" for i in range(29)),
    LONG + "SELECT " + " + ".join([f"(v LIKE '{PATTERN}')"] * 16) + " FROM r, t",
    LONG + "SELECT " + " + ".join([f"(v LIKE '{PATTERN}')"] * 40) + " FROM r, t",
    LONG + "SELECT count(*) FROM t, r WHERE v GLOB '*" + "[a-z]" * 15 + "b*'",
    LONG + f"SELECT count(*) FROM t, r WHERE v LIKE '{PATTERN * 3}'",
    LONG + "SELECT sum(instr(v, substr(v, 1, 50000) || 'b')) FROM r, t",
    LONG + "SELECT sum(length(trim(v, substr(v, 1, 50000)))) FROM r, t",
    LONG + "SELECT replace(v, 'a', 'aaaaaaaaaaaaaaaaaaaa') FROM r",
    LONG + "SELECT sum(length(replace(v, 'aaaa', 'b'))) FROM r, t a, t b",
    LONG + "SELECT hex(hex(v)) FROM r", LONG + "SELECT v || v FROM r", LONG + "SELECT quote(v) FROM r, t",
    LONG + "SELECT " + ", ".join(["v"] * 120) + " FROM r, t", LONG + "SELECT " + ", ".join(["v"] * 2000) + " FROM r",
    LONG + "SELECT " + " || ".join(["v"] * 50) + " FROM r",
    LONG + "SELECT json_extract('[' || replace(v, 'a', '[') , '$') FROM r",
    LONG + "SELECT strftime(replace(substr(v, 1, 20000), 'a', '%J'), 'now') FROM r, t", LONG + "SELECT group_concat(v) FROM r, t",
    LONG + "SELECT max(v || b) FROM r, t a, t b, t c" .replace("|| b", "|| a.b"), "SELECT " + "1," * 9_000 + "1",
    "SELECT 1 WHERE " + " OR ".join(["1=2"] * 2_500), "SELECT " + "CASE WHEN 1 THEN " * 300 + "1" + " END" * 300,
    " UNION ALL ".join(["SELECT 1"] * 500), "SELECT * FROM " + "(SELECT * FROM " * 90 + "t" + ")" * 90,
    chain("SELECT 1 a", "SELECT a FROM {p} UNION ALL SELECT a FROM {p}", 30, "SELECT count(*) FROM {p}"),
    chain("SELECT b a FROM t", "SELECT a + a + a AS a FROM {p}", 60, "SELECT a FROM {p}"),
    chain("SELECT a FROM t", "SELECT x.a FROM {p} x JOIN {p} y ON x.a = y.a", 20, "SELECT count(*) FROM {p}"),
    chain("SELECT * FROM t", "SELECT * FROM {p}, {p}", 40, "SELECT count(*) FROM {p}"),
    chain("SELECT a FROM t", "SELECT a FROM t WHERE a IN {p} OR a IN {p}", 40, "SELECT a FROM {p}"),
    "SELECT " + ", ".join(f"sum(b) OVER (ORDER BY b + {i})" for i in range(100)) + " FROM t",
    "SELECT abs(-9223372036854775808)", "SELECT sum(9223372036854775807) FROM t",
]  # fmt: skip


def snapshot(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_hostile_statements_change_no_byte_and_end(path: Path, tmp_path: Path, journal: str) -> None:
    target = tmp_path / "data.sqlite"
    target.write_bytes(path.read_bytes())
    if journal == "wal":
        connection = sqlite3.connect(target)
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.close()
    database = Database.from_file(target)
    before = snapshot(tmp_path)
    writing = writes(tmp_path / "made.sqlite") + PRAGMAS + FUNCTIONS + TRICKS
    statements = writing + (BOMBS if journal == "delete" else BOMBS[:3])
    assert journal == "wal" or len(statements) >= 200
    slow: list[tuple[float, str]] = []
    returned: list[str] = []
    for sql in statements:
        start = time.monotonic()
        try:
            database.execute(sql, LIMITS)
            returned.append(sql)
        except ExecError as error:
            assert error.detail
        if time.monotonic() - start > LIMITS.seconds + SLACK_S:
            slow.append((time.monotonic() - start, sql[:100]))
    assert not slow
    assert not [sql for sql in returned if sql in writing]
    assert snapshot(tmp_path) == before
    assert database.execute("SELECT count(*) FROM t").rows == ((2000,),)


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("DELETE FROM t", "not-read-only"), ("WITH x AS (SELECT 1) DELETE FROM t", "not-read-only"),
        ("SELECT 1; SELECT 2", "not-read-only"),
        ("PRAGMA user_version", "not-read-only"), ("SELECT nothing FROM t", "does-not-run"),
        ("SELECT load_extension('x')", "does-not-run"),
        ("hello", "does-not-run"), (RANGE + "SELECT count(*) FROM c", "time-out"), (RANGE + "SELECT x FROM c", "too-many-rows"),
        ("SELECT '" + "a" * 30_000 + "'", "too-large"), (LONG + "SELECT v FROM r, t", "too-large"),
        (LONG + "SELECT v || v FROM r", "too-large"),
        (LONG + "SELECT replace(v, 'a', 'bb') FROM r", "too-large"),
    ],
)  # fmt: skip
def test_each_refusal_has_its_kind(path: Path, sql: str, kind: str) -> None:
    with pytest.raises(ExecError) as caught:
        Database.from_file(path).execute(sql, LIMITS)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT a FROM t WHERE b = 3;", (("x3",),)), ("  /* why */ select count(*) from v -- all\n", ((1989,),)),
        ("WITH x AS (SELECT b FROM t WHERE b < 3) SELECT count(*), sum(b) FROM x", ((3, 3),)), ("VALUES (1), (2)", ((1,), (2,))),
        ("SELECT max(b) FROM t GROUP BY b % 2 HAVING count(*) > 1 ORDER BY 1 DESC LIMIT 1", ((1999,),)),
        ("SELECT b FROM t WHERE a LIKE '%99' INTERSECT SELECT b FROM t WHERE b > 1900", ((1999,),)),
        ("SELECT instr('abc', 'c'), replace('aXa', 'X', '-'), trim('xxaxx', 'x'), trim(' a '), ltrim('aab', 'a'),"
         " rtrim('baa', 'a')",
         ((3, "a-a", "a", "a", "b", "b"),)),
        ("SELECT instr(NULL, 'c'), replace('a', '', 'b'), replace(12, 2, 3), rank() OVER (ORDER BY b) FROM t LIMIT 1",
         ((None, "a", "13", 1),)),
        (f"SELECT length(substr('{'a' * 9000}', 1, 5000))", ((5000,),)),
        ("SELECT upper(a), cast(b AS TEXT) FROM t LIMIT 1", (("X0", "0"),)),
        ("SELECT date('2020-02-30', '+1 day'), strftime('%Y', '2020-01-01')", (("2020-03-02", "2020"),)),
    ],
)  # fmt: skip
def test_reading_statements_run(path: Path, sql: str, rows: object) -> None:
    assert Database.from_file(path).execute(sql).rows == rows


def test_limits_are_exact(path: Path) -> None:
    database = Database.from_file(path)
    assert len(database.execute("SELECT a FROM t LIMIT 1000", LIMITS).rows) == 1000
    with pytest.raises(ExecError, match="more than 1,000 rows"):
        database.execute("SELECT a FROM t LIMIT 1001", LIMITS)
    long = f"WITH s(v) AS (SELECT '{'a' * 1000}'), r(v) AS (SELECT group_concat(v, '') FROM s, (SELECT 1 FROM t LIMIT 99)) "
    assert len(str(database.execute(long + "SELECT v FROM r").rows[0][0])) == VALUE_BYTES - 1000
    with pytest.raises(ExecError, match="too big"):
        database.execute(long + "SELECT v || substr(v, 1, 1001) FROM r")


def test_a_connection_serves_many_threads(path: Path) -> None:
    database = Database.from_file(path)
    failures: list[object] = []

    def ask(n: int) -> None:
        for i in range(40):
            value = (n * 40 + i) % 2000
            found = database.execute(f"SELECT a FROM t WHERE b = {value}").rows
            if found != ((f"x{value}",),):
                failures.append((value, found))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_many_databases_share_few_connections() -> None:
    databases = [Database.from_rows(f"d{i}", ["A"], [[f"v{i}"]]) for i in range(200)]
    for _ in range(2):
        for i, database in enumerate(databases):
            assert database.execute('SELECT "A" FROM "t"').rows == ((f"v{i}",),)


def test_out_of_memory_leaves_the_connection_usable(path: Path) -> None:
    database = Database.from_file(path)
    with pytest.raises(ExecError) as caught:
        database.execute(chain("SELECT 1 a", "SELECT a FROM {p} UNION ALL SELECT a FROM {p}", 30, "SELECT count(*) FROM {p}"))
    assert caught.value.kind in ("too-large", "time-out")
    assert database.execute("SELECT count(*) FROM t").rows == ((2000,),)
