"""What a user can get wrong: one line that says the value, the choices and the next step, exit 2, nothing written or asked."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from factory import distill, finetune
from factory.cli import run_cli
from factory.machine import Machine
from tests.factory.shop import Shop, make_shop, serve


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("shop"))


Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Refused]:
    """Runs a command in an empty directory; checks exit code, the one line and that nothing was written; returns the line."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def run(*arguments: object, main: Callable[..., object] = distill.main, keep: bool = False) -> str:
        code = run_cli(main, [str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert code == 2, said.err
        assert said.err.count("\n") == 1, said.err
        assert said.out == ""
        if not keep:
            assert list(here.iterdir()) == []
        return said.err.strip()

    yield run


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--task", "sqk"], ["unknown task 'sqk'", "sql"]),
        (["--teacher", "mixtrall"], ["unknown teacher 'mixtrall'", "did you mean 'mixtral'?", "qwen3-32b", "recorded"]),
        (["--teacher", "./nowhere"], ["no directory nowhere"]),
        (["--teacher", "gguf:nowhere.gguf"], ["no file nowhere.gguf"]),
        (["--teacher", "recorded:nowhere.jsonl"], ["nowhere.jsonl", "cannot be read"]),
        (["--teacher", "recorded:"], ["recorded:FILE.jsonl"]),
        (["--teacher", "http://localhost:1/v1"], ["http://HOST/v1#MODEL"]),
        (["--teacher", "http://127.0.0.1:1/v1#m"], ["nothing answers at http://127.0.0.1:1/v1"]),
        (["--teacher", "hub:mixtral"], ["hub:ORG/NAME"]),
        (["--student", "scratch:huge"], ["scratch:tiny, scratch:small, scratch:base"]),
        (["--student", "smolm2-135m"], ["unknown student", "did you mean 'smollm2-135m'?", "hub:ORG/NAME"]),
        (["--student", "./nowhere"], ["no directory nowhere"]),
        (["--method", "dpo"], ["'dpo'", "sft, logits, on-policy"]),
        (["--adapter", "prefix"], ["'prefix'", "lora, qlora, dora, none"]),
        (["--method", "logits"], ["--method logits needs a teacher that gives probabilities", "--teacher 'recorded'"]),
        (["--divergence", "tv"], ["'tv'", "forward, reverse, js"]),
        (["--rank", "zz"], ["rank cannot be 'zz'"]),
        (["--rank", "-4"], ["rank cannot be '-4'", "greater than or equal to 1"]),
        (["--rank", "0"], ["rank cannot be '0'"]),
        (["--rank"], ["--rank", "expected one argument"]),
        (["--examples", "-1"], ["examples cannot be '-1'"]),
        (["--examples", "1.5"], ["examples cannot be '1.5'"]),
        (["--epochs", "0"], ["epochs cannot be '0'"]),
        (["--epochs", "nan"], ["epochs cannot be 'nan'"]),
        (["--epochs", "inf"], ["epochs cannot be 'inf'"]),
        (["--minutes", "-1"], ["minutes cannot be '-1'"]),
        (["--budget-usd", "free"], ["budget-usd cannot be 'free'"]),
        (["--budget-usd", "-1"], ["budget-usd cannot be '-1'"]),
        (["--samples", "0"], ["samples cannot be '0'"]),
        (["--prompt-loss", "2"], ["prompt-loss cannot be '2'"]),
        (["--seed", "x"], ["seed cannot be 'x'"]),
        (["--rnak", "4"], ["--rnak", "did you mean --rank?", "--help"]),
        (["quickstart"], ["unrecognized arguments: quickstart", "--help"]),
        (["--dataset", "wikisqk"], ["unknown dataset 'wikisqk'", "wikisql, spider", "--db"]),
        (["--dataset", "spider"], ["'spider' is not bundled", "--data-dir"]),
        (["--data-dir", "nowhere"], ["--data-dir nowhere", "no such directory"]),
        (["--split", "trian"], ["--split trian", "train", "xdev"]),
        (["--validation-split", "dve"], ["--split dve", "xdev"]),
        (["--db", "shop.sqlite", "--dataset", "wikisql"], ["--dataset or --db, not both"]),
        (["--questions", "q.jsonl"], ["--questions needs --db"]),
        (["--config", "nowhere.toml"], ["--config nowhere.toml", "No such file"]),
        (["--config", "/"], ["--config /", "directory"]),
    ],
)
def test_a_wrong_value(refused, arguments, says):
    line = refused(*arguments)
    for part in says:
        assert part in line


def test_finetune_says_the_same(refused):
    assert "rank cannot be 'zz'" in refused("--rank", "zz", main=finetune.main)
    assert "--teacher" in refused("--teacher", "mixtral", main=finetune.main)
    assert "unknown student" in refused("--student", "tiny", main=finetune.main)


@pytest.mark.parametrize("module", ["distill", "finetune"])
def test_through_a_real_process(module, tmp_path):
    done = subprocess.run([sys.executable, "-m", f"factory.{module}", "--student", "tiny"], capture_output=True, text=True,
                          cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"{module}: error: unknown student 'tiny'")
    assert list(tmp_path.iterdir()) == []


# --- the configuration file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("studnet = 'scratch:tiny'", ["unknown setting 'studnet'", "did you mean 'student'?", "known ones:", "teacher", "rank"]),
        ("zzzz = 1", ["unknown setting 'zzzz'; known ones:", "teacher"]),
        ("rank = 'zz'", ["rank cannot be 'zz'"]),
        ("rank = -1", ["rank cannot be -1"]),
        ("method = 'dpo'", ["sft, logits, on-policy"]),
        ("teacher = mixtral", ["not valid TOML", "teacher = "]),
        ("just words", ["not valid TOML"]),
        ("[student]\nname = 'x'", ["student cannot be {'name': 'x'}"]),
    ],
)
def test_a_wrong_configuration(refused, tmp_path, text, says):
    file = tmp_path / "my.toml"
    file.write_text(text)
    line = refused("--config", file)
    assert str(file) in line
    for part in says:
        assert part in line


def test_a_configuration_that_is_not_text(refused, tmp_path):
    (tmp_path / "my.toml").write_bytes(b"\xff\xfe\x00")
    assert "not valid TOML" in refused("--config", tmp_path / "my.toml")


# --- the data ---------------------------------------------------------------------------------------------------------


def empty(path: Path) -> None:
    path.touch()


def text(path: Path) -> None:
    path.write_text("name,price\nlamp,3\n" * 100)


def no_tables(path: Path) -> None:
    sqlite3.connect(path).execute("VACUUM").connection.close()
    if path.stat().st_size == 0:
        connection = sqlite3.connect(path)
        connection.executescript("CREATE TABLE t (a); DROP TABLE t;")
        connection.close()


def cut(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE t (a TEXT); " + "INSERT INTO t VALUES (hex(randomblob(1000))); " * 50)
    connection.close()
    path.write_bytes(path.read_bytes()[:300])


def directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    "make", [None, empty, text, no_tables, cut, directory], ids=lambda made: getattr(made, "__name__", "missing")
)
def test_a_database_that_is_none(refused, tmp_path, shop, make):
    file = tmp_path / "my.sqlite"
    if make is not None:
        make(file)
    before = file.read_bytes() if file.is_file() else None
    line = refused("--db", file, "--questions", shop.questions)
    assert f"--db {file}" in line
    assert (file.read_bytes() if file.is_file() else None) == before


GOOD = '{"question": "how many shops are there", "sql": "SELECT COUNT(*) FROM shops"}\n'


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (GOOD + '{"question": "half', "line 2: not valid JSON"),
        (GOOD * 2 + "[1, 2]\n", "line 3: '[1, 2]' is not an object"),
        (GOOD + '{"sql": "SELECT 1"}\n', "line 2: no 'question'"),
        (GOOD + '{"question": 5}\n', "line 2: 'question' is 5"),
        (GOOD + '{"question": "x", "sql": ["SELECT 1"]}\n', "line 2: 'sql' is ['SELECT 1']"),
        (GOOD + "\xff\n", "line 2: not valid JSON"),
        ("", "has no questions"),
        ("\n \n", "has no questions"),
        (GOOD.replace("}", ', "split": "train"}'), "to validate on"),
        (GOOD.replace("}", ', "split": "xdev"}'), "to learn from"),
    ],
)
def test_questions_that_are_none(refused, tmp_path, shop, rows, says):
    file = tmp_path / "my.jsonl"
    file.write_bytes(rows.encode("latin-1"))
    line = refused("--db", shop.db, "--questions", file)
    assert says in line
    if "line" in says:
        assert f"{file}, {says}" in line
    assert file.read_bytes() == rows.encode("latin-1")


def test_questions_that_are_not_there(refused, tmp_path, shop):
    assert f"{tmp_path / 'q.jsonl'}: cannot be read" in refused("--db", shop.db, "--questions", tmp_path / "q.jsonl")


def test_a_stored_answers_file_names_file_and_line(refused, tmp_path, shop):
    file = tmp_path / "answers.jsonl"
    file.write_text('{"id": "a", "answer": "SELECT 1"}\n{"id": "b"}\n')
    assert f"{file}, line 2:" in refused(*shop.source, "--teacher", f"recorded:{file}")


def test_a_data_directory_without_its_files(refused, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    assert "NAME.jsonl.xz" in refused("--data-dir", folder)
    row = {"question": "q", "table_id": "1", "sql": {"sel": 0, "agg": 0, "conds": []}}
    (folder / "train.jsonl").write_text(json.dumps(row) + "\n")
    assert "tables_train.jsonl.xz" in refused("--data-dir", folder)
    (folder / "tables_train.jsonl.xz").write_bytes(lzma.compress(b"x" * 1000)[:40])
    assert "not a whole .xz file" in refused("--data-dir", folder)


# --- the machine ------------------------------------------------------------------------------------------------------


@pytest.fixture
def little_memory(monkeypatch):
    """A machine without a GPU and with 0.5 GB of free memory."""

    def look() -> Machine:
        return Machine(0.0, 0.5, 100.0, Path("/nowhere"))

    for module in ("machine", "teacher", "student"):
        monkeypatch.setattr(f"factory.{module}.look_at_machine", look)


def test_mixtral_says_what_it_needs_and_three_ways_on(refused, monkeypatch):
    monkeypatch.setattr("factory.teacher.look_at_machine", lambda: Machine(0.0, 16.0, 100.0, Path("/nowhere")))
    line = refused("--task", "sql", "--teacher", "mixtral")
    assert "needs 27.9 GB in 4 bit or 103.7 GB in 16 bit" in line
    assert "no GPU and 16.0 GB of free RAM" in line
    for way in ("http://HOST/v1#NAME", "gguf:FILE", "--teacher recorded"):
        assert way in line


def test_a_student_too_large_for_this_machine(refused, little_memory):
    line = refused("--student", "scratch:tiny")
    assert "needs about 1.2 GB to train and this machine has 0.5 GB free" in line
    for way in ("smaller student", "--batch", "--max-length"):
        assert way in line
    assert "needs about" in refused("--student", "smollm2-360m")


def test_a_teacher_directory_too_large_for_this_machine(refused, little_memory, tmp_path):
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "config.json").write_text('{"max_position_embeddings": 2048}')
    header = json.dumps({"w": {"dtype": "F32", "shape": [1000, 4_000_000], "data_offsets": [0, 16_000_000_000]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("factory.student.look_at_machine", lambda: Machine(0.0, 8.0, 100.0, Path("/nowhere")))
        line = refused("--teacher", folder)
    assert "in 4 bit or 9.8 GB in 16 bit and this machine has no GPU and 0.5 GB of free RAM" in line


def test_too_little_disk(refused, shop, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1_000_000})()
    with serve(shop.answers()) as server:
        with monkeypatch.context() as full:
            full.setattr(
                shutil, "disk_usage", lambda path: usage if str(tmp_path) in str(path) else type("u", (), {"free": 10**12})()
            )
            line = refused("--teacher", server.spec, *shop.source, "--out", tmp_path / "run")
        assert not server.calls
    assert "needs 0.1 GB of free disk and has 0.0 GB" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("{file}", "this is a file, not a directory"),
        ("{file}/run", "a part of this path is a file"),
        ("/proc/run", "give --out on another disk"),
        ("/dev/null/run", "a part of this path is a file"),
    ],
)
def test_a_place_that_cannot_be_written(refused, shop, tmp_path, out, says):
    file = tmp_path / "file"
    file.write_text("mine")
    assert says in refused(*shop.source, "--out", out.format(file=file))
    assert file.read_text() == "mine"


def test_a_directory_without_permission():
    """As somebody else where this is root, whom modes do not bind."""
    program = (
        "import os, sys\n"
        "from factory.cli import run_cli\nfrom factory import distill\n"
        "run_cli(distill.main, [*sys.argv[1:], '--dry-run'])  # loads what it needs while it may\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "raise SystemExit(run_cli(distill.main, sys.argv[1:]))\n"
    )
    with tempfile.TemporaryDirectory() as name:  # not pytest's own, which nobody else may enter
        place = Path(name)
        place.chmod(0o755)
        locked = place / "locked"
        locked.mkdir(mode=0o555)
        line = [sys.executable, "-c", program, *make_shop(place).source, "--out", str(locked / "run")]
        environment = {**os.environ, "HF_HOME": name}
        done = subprocess.run(line, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=environment)
        assert done.returncode == 2, done.stderr
        assert "no permission to write there; give a writable --out" in done.stderr
        assert done.stderr.count("\n") == 1
        assert list(locked.iterdir()) == []


# --- another run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that has begun."""
    from factory.rundir import RunDir
    from factory.settings import DistillSettings

    settings = DistillSettings(db=shop.db, questions=shop.questions, out=tmp_path / "run", rank=8)
    RunDir.claim(tmp_path / "run", settings).close()
    (tmp_path / "run" / "train.jsonl").write_text('{"mine": 1}\n')
    return tmp_path / "run"


def test_a_run_made_with_other_settings_is_refused(refused, shop, made):
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    line = refused(*shop.source, "--rank", "4", "--out", made)
    assert "made with rank = 8, now 4" in line
    assert "another --out, or --force" in line
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before
    line = refused(*shop.source, "--rank", "4", "--seed", "5", "--out", made)
    assert "(and 1 more)" in line


def test_a_run_in_use_is_refused(refused, shop, made):
    from factory.rundir import RunDir
    from factory.settings import DistillSettings

    held = RunDir.claim(made, DistillSettings(db=shop.db, questions=shop.questions, out=made, rank=8))
    assert "another process is working in this run" in refused(*shop.source, "--rank", "8", "--out", made)
    assert "another process is working in this run" in refused(*shop.source, "--rank", "4", "--force", "--out", made)
    held.close()
    assert (made / "train.jsonl").read_text() == '{"mine": 1}\n'


def test_a_run_whose_config_is_damaged(refused, shop, made):
    (made / "config.toml").write_text("rank = = 8\n")
    assert "config.toml: not valid TOML" in refused(*shop.source, "--rank", "8", "--out", made)


def test_a_ledger_that_is_none(refused, shop, made):
    (made / "train.jsonl").unlink()
    (made / "ledger.sqlite").write_text("not a ledger" * 100)
    line = refused(*shop.source, "--rank", "8", "--out", made)
    assert f"{made / 'ledger.sqlite'}: is not a readable ledger" in line
    assert (made / "ledger.sqlite").read_text() == "not a ledger" * 100
