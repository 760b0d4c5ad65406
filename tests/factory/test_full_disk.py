"""A disk that fills up while a run works: one line, exit 2, and the run continues once there is space."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factory import distill
from factory.cli import run_cli
from tests.factory.shop import TINY, Shop, make_shop, serve


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 MB; skips where nobody may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=256m", "none", str(place)]
    if os.getuid() != 0 or shutil.which("mount") is None or subprocess.run(line, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, leave: int) -> Path:
    """A file that leaves so many bytes free."""
    file = place / "filler"
    with file.open("wb") as opened:
        opened.write(b"\0" * max(0, shutil.disk_usage(place).free - leave))
    return file


SLOW = [pytest.param(leave, marks=pytest.mark.slow) for leave in (0, 16_000, 3_000_000, 14_000_000)]


@pytest.mark.parametrize("leave", [200_000, 40_000_000, *SLOW])
def test_a_disk_that_fills_up_stops_every_stage_in_one_line_and_the_run_continues(small_disk, shop, capsys, monkeypatch, leave):
    """Bytes left: for nothing, the config, the ledger, half a student, half a checkpoint, half the model."""
    monkeypatch.setattr("factory.rundir.FREE_BYTES", 0)
    monkeypatch.setattr("factory.rundir.RunDir.claim", without_check())
    out = small_disk / "run"
    with serve(shop.answers()) as server:
        line = ["--teacher", server.spec, *shop.source, *TINY, "--out", str(out)]
        filler = fill(small_disk, leave)
        assert run_cli(distill.main, line) == 2
        said = capsys.readouterr().err
        assert "disk" in said.splitlines()[-1]
        assert "Traceback" not in said
        filler.unlink()
        assert run_cli(distill.main, line) == 0
        assert set(server.answered.values()) == {1}


def without_check() -> Any:
    """Claiming without the check for free space: the disk fills up after it."""
    from factory.rundir import RunDir

    claim = RunDir.claim.__func__
    return classmethod(lambda cls, path, settings, force=False: claim(cls, path, settings, force=force, need_bytes=0))
