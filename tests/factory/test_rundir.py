"""The claim on a run directory: continue, refuse, move aside, keep others out, write whole files."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from factory.rundir import RunDir, default_path, differences
from factory.settings import DistillSettings, SettingsError, to_toml


def claim(path: Path, **settings: object) -> RunDir:
    force = bool(settings.pop("force", False))
    return RunDir.claim(path, DistillSettings(**settings), force=force)


def test_a_claim_makes_the_directory_and_writes_the_settings(tmp_path):
    run = claim(tmp_path / "a" / "run", rank=8)
    assert tomllib.loads(run.config.read_text())["rank"] == 8
    run.close()
    run.close()


def test_the_same_settings_continue(tmp_path):
    run = claim(tmp_path, rank=8)
    run.remember(one=1)
    run.close()
    again = claim(tmp_path, rank=8)
    again.remember(two=[2])
    assert again.recall() == {"one": 1, "two": [2]}
    again.close()


def test_other_settings_are_refused_and_nothing_changes(tmp_path):
    claim(tmp_path, rank=8).close()
    before = (tmp_path / "config.toml").read_bytes()
    with pytest.raises(SettingsError, match=r"made with rank = 8, now 4; give another --out, or --force"):
        claim(tmp_path, rank=4)
    with pytest.raises(SettingsError, match=r"made with max-length = 1024, now 64 \(and 1 more\)"):
        claim(tmp_path, rank=4, max_length=64)
    assert (tmp_path / "config.toml").read_bytes() == before
    claim(tmp_path, rank=8).close()  # a refusal lets go of the lock


@pytest.mark.parametrize("change", [{"budget_usd": 5.0, "price_in": 1.0, "price_out": 1.0}, {"in_flight": 2}, {"final": 10}])
def test_settings_that_may_change_between_starts(tmp_path, change):
    claim(tmp_path, rank=8).close()
    claim(tmp_path, rank=8, **change).close()
    assert "rank = 8\n" in (tmp_path / "config.toml").read_text()


def test_force_moves_a_run_aside_and_deletes_nothing(tmp_path):
    path = tmp_path / "run"
    claim(path, rank=8).close()
    (path / "train.jsonl").write_text("mine\n")
    claim(path, rank=4, force=True).close()
    assert (tmp_path / "run.1" / "train.jsonl").read_text() == "mine\n"
    assert not (path / "train.jsonl").exists()
    assert "run.1" in (path / "moved-aside.txt").read_text()
    claim(path, rank=2, force=True).close()
    assert tomllib.loads((tmp_path / "run.2" / "config.toml").read_text())["rank"] == 4
    assert tomllib.loads((path / "config.toml").read_text())["rank"] == 2


def test_force_keeps_a_run_with_the_same_settings(tmp_path):
    claim(tmp_path / "run", rank=8).close()
    (tmp_path / "run" / "train.jsonl").write_text("mine\n")
    claim(tmp_path / "run", rank=8, force=True).close()
    assert (tmp_path / "run" / "train.jsonl").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_one_process_at_a_time(tmp_path):
    held = claim(tmp_path / "run", rank=8)
    with pytest.raises(SettingsError, match="another process is working in this run"):
        claim(tmp_path / "run", rank=8)
    with pytest.raises(SettingsError, match="another process is working in this run"):
        claim(tmp_path / "run", rank=4, force=True)
    held.close()
    claim(tmp_path / "run", rank=8).close()


def test_a_killed_process_lets_go(tmp_path):
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom factory.rundir import RunDir\n"
        "from factory.settings import DistillSettings\n"
        "RunDir.claim(Path(sys.argv[1]), DistillSettings())\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")], cwd=Path(__file__).parents[2])
    assert done.returncode == -9
    claim(tmp_path / "run").close()


def test_a_directory_that_is_no_run_is_left_alone(tmp_path):
    """A run replaces its `model`; somebody else's must not be there."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("mine")
    with pytest.raises(SettingsError, match="holds 'model' and is no run; give an --out that is new or empty"):
        claim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_run_killed_at_its_very_start_continues(tmp_path):
    for name in ("lock", "config.toml.tmp"):
        (tmp_path / name).touch()
    claim(tmp_path).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "lock"]


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    claim(tmp_path).close()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".scores.json.17.tmp").touch()
    (tmp_path / "model.tmp").mkdir()
    (tmp_path / "model.tmp" / "weights").touch()
    (tmp_path / "train.jsonl").touch()
    claim(tmp_path).close()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["checkpoints", "config.toml", "lock", "train.jsonl"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    run = claim(tmp_path)
    run.write(run.scores, "old")
    with pytest.raises(UnicodeEncodeError):
        run.write(run.scores, "new \ud800")
    assert run.scores.read_text() == "old"
    run.close()


def test_a_setting_that_an_older_run_did_not_know_had_its_default(tmp_path):
    made = DistillSettings(teacher="recorded")
    older = tmp_path / "config.toml"
    lines = [line for line in to_toml(made).splitlines() if not line.startswith(("copies", "answers"))]
    older.write_text("\n".join(lines))
    assert differences(older, made) == {}
    assert differences(older, DistillSettings(teacher="recorded", copies=3)) == {"copies": (1, 3)}


def test_differences_name_old_and_new(tmp_path):
    (tmp_path / "config.toml").write_text(to_toml(DistillSettings(rank=8, budget_usd=1, price_in=1, price_out=1)))
    assert differences(tmp_path / "config.toml", DistillSettings(rank=8)) == {}
    assert differences(tmp_path / "config.toml", DistillSettings(minutes=5)) == {"minutes": (None, 5.0), "rank": (8, 16)}


def test_the_default_place():
    assert default_path("sql", "scratch:tiny", "recorded") == Path("runs/sql-scratch-tiny-recorded")
    assert default_path("sql", "./my model", "http://host/v1#m") == Path("runs/sql-.-my-model-http-host-v1-m")
    assert ".." not in default_path("sql", "../../x", "y").parts


def test_runs_that_do_not_say_their_version_had_the_last_one_that_did_not(tmp_path):
    run = RunDir(tmp_path)
    run.check_version("tools", 3)  # nothing has been read
    run.remember(data=[])
    run.check_version("sql", 1)
    with pytest.raises(SettingsError, match="begun with version 2 of the task tools"):
        run.check_version("tools", 3)
    run.remember(task_version=3)
    run.check_version("tools", 3)


def test_a_run_of_several_tasks_has_a_version_of_each(tmp_path):
    run = RunDir(tmp_path)
    run.remember(data=[], task_versions={"tools": 3, "sql": 1})
    run.check_version("tools", 3)
    run.check_version("route", 1)
    with pytest.raises(SettingsError, match="begun with version 3 of the task tools, and version 4"):
        run.check_version("tools", 4)
