"""The comparison of a real file with its source, the speed of one process, and the plots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents.card import ScoreEntry
from export.compare import CompareSettings, Row, compare, exported_files, main, table
from export.errors import ExportError
from export.plots import draw
from export.source import Source
from export.speed import Speed, measure_speed
from factory.cli import run_cli
from factory.settings import parse
from tests.export.tiny_families import make_family


def speed(rate: float) -> Speed:
    return Speed(model="m", engine="e", threads=1, prefill_tokens_per_s=rate, decode_tokens_per_s=rate, first_token_ms=1,
                 prefill=1, decode=1, load_s=1, weight_bytes=10, rss_load_bytes=1, rss_bytes=1, peak_bytes=1)  # fmt: skip


def row(name: str, score: float, size: int, rate: float) -> Row:
    entry = ScoreEntry(split="xdev", n=9, score=score, low=score - 0.1, high=score + 0.1, metric="execution", decoding="greedy")
    return Row(name=name, path=name, bytes=size, score=entry, speed=speed(rate), kld=1e-4, top1=0.99, drop=0.5, verdict="kept")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; pip install 'penknife[gguf]'")
    from export.convert import convert

    model = make_family("smollm2", tmp_path_factory.mktemp("compare") / "model")
    convert(Source.open(model), model / "model-Q8_0.gguf", "Q8_0")
    return model


def test_files_may_stand_anywhere_on_the_command_line() -> None:
    settings = parse(CompareSettings, ["ckpt", "--limit", "9", "a.gguf", "b.gguf", "--no-speed"], "compare")
    assert (settings.model, settings.files, settings.limit) == (Path("ckpt"), (Path("a.gguf"), Path("b.gguf")), 9)
    assert not settings.speed and parse(CompareSettings, ["ckpt"], "compare").files == ()


def test_a_file_beside_its_source(exported: Path, tmp_path: Path) -> None:
    assert exported_files(exported) == [exported / "model-Q8_0.gguf"]
    rows, about = compare(CompareSettings(model=exported, threads=1, speed=False))
    assert [r.name for r in rows] == ["source, float32", "source, bfloat16", "model-Q8_0.gguf"] and "no card" in about
    source, half, file = rows
    assert source.kld == 0 and half.kld is not None and file.kld is not None and 0 < half.kld < 0.05 and 0 < file.kld < 0.05
    assert file.verdict == "kept" and file.bits_per_weight == pytest.approx(8.5, abs=0.2)
    assert file.bytes == (exported / "model-Q8_0.gguf").stat().st_size
    assert table(rows, about).row_count == 3


@pytest.mark.slow
def test_the_speed_of_a_file_beside_its_source(exported: Path) -> None:
    rows, _ = compare(CompareSettings(model=exported, threads=1, rounds=1, decode=8, prefill=16))
    source, _, file = rows
    for one in rows:
        assert one.speed is not None and one.speed.decode_tokens_per_s > 0 and one.speed.rss_bytes > 0
    assert file.speed is not None and source.speed is not None and file.speed.rss_bytes < source.speed.rss_bytes


def test_one_model_is_timed_in_a_process_of_its_own(exported: Path) -> None:
    found = measure_speed(f"gguf:{exported / 'model-Q8_0.gguf'}", prefill=16, decode=8, rounds=1)
    assert found.decode_tokens_per_s > 0 and found.prefill_tokens_per_s > 0 and found.rss_bytes > 0 and found.threads == 1


def test_no_file_and_an_absent_one(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lone = make_family("smollm2", tmp_path / "lone", num_hidden_layers=1)
    with pytest.raises(ExportError, match="holds no"):
        compare(CompareSettings(model=lone))
    assert run_cli(main, [str(exported), str(tmp_path / "x.gguf")]) == 2
    assert "is not there" in capsys.readouterr().err


def test_a_model_that_cannot_be_timed_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + b"\xff" * 60)
    with pytest.raises(ExportError, match="cannot be measured") as caught:
        measure_speed(str(tmp_path / "a.gguf"))
    assert "\n" not in str(caught.value)


def test_plots_need_two_points(tmp_path: Path) -> None:
    assert draw([row("a", 0.5, 10, 1)], tmp_path) == []
    drawn = draw([row("a", 0.5, 10**6, 10), row("b", 0.6, 10**7, 20), row("c", 0.6, 10**8, 5)], tmp_path)
    assert [path.name for path in drawn] == ["score-bytes.png", "score-speed.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_rows_are_json_and_back() -> None:
    one = row("a", 0.5, 10, 1)
    assert Row.model_validate(json.loads(one.model_dump_json())) == one
