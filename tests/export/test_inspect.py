"""What inspect says of a file, and how it refuses a bad one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents.card import FileEntry, ScoreEntry
from agents.models.gguf_file import read_gguf
from export.errors import ExportError
from export.inspect import inspect_file, main
from export.seal import seal, write_card
from factory.cli import run_cli
from tests.agents.test_gguf_file import CARD, write

ENTRY = FileEntry(name="a.gguf", format="gguf", precision="Q8_0", bits_per_weight=9.0, source_sha256="0" * 64, kld=1e-5,
                  top1=0.995, tokens=1300)  # fmt: skip
SCORE = ScoreEntry(split="xdev", n=1056, score=0.655, low=0.62, high=0.68, metric="execution", decoding="greedy, constrained")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    file = write(tmp_path / "a.gguf")
    write_card(file, CARD.model_copy(update={"file": ENTRY, "scores": {"a.gguf": SCORE, "student": SCORE}}))
    seal(file)
    return file


def test_facts_are_the_files(made: Path) -> None:
    facts, file = inspect_file(made), read_gguf(made)
    assert facts.seal == "not checked" and inspect_file(made, check=True).seal == "intact"
    assert {count.type: (count.tensors, count.bytes) for count in facts.types} == {
        tensor.type_name: (1, tensor.size) for tensor in file.tensors
    }
    assert facts.bits_per_weight == file.bits_per_weight and facts.bytes == made.stat().st_size
    assert facts.card is not None and facts.card.file == ENTRY
    line = facts.first_line()
    assert line.startswith("a.gguf: GGUF Q8_0,") and "65.5 % on xdev" in line and line.endswith("sealed")


def test_a_person_sees_card_scores_types_and_tokenizer(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(main, [str(made), "--check"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].endswith("seal intact")
    for word in ("(this file)", "Q4_0", "KLD 1e-05", "scratch:tiny", "sql (version 1)"):
        assert word in shown, word


def test_json_is_everything(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(main, [str(made), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["card"]["file"]["kld"] == 1e-5 and document["seal"] == "not checked" and len(document["types"]) == 4


@pytest.mark.parametrize("what", ["absent", "text", "directory", "changed", "truncated"])
def test_a_bad_file_is_one_sentence_and_exit_2(what: str, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, whole = made, made.read_bytes()
    if what == "absent":
        target = made.with_name("b.gguf")
    elif what == "text":
        made.write_text("{}", encoding="utf-8")
    elif what == "directory":
        target = made.parent
    elif what == "changed":
        made.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        made.write_bytes(whole[: len(whole) // 2])
    assert run_cli(main, [str(target), "--check"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and str(target) in said.err
    if what == "directory":
        assert "it holds a.gguf: give one of them" in said.err


@pytest.mark.parametrize("named_by", ["facts", "card"])
def test_changed_weights_of_an_onnx_directory_are_found(named_by, tmp_path):
    from agents.card import BaseEntry, Card, FileEntry, sha256_of_weights
    from export.inspect import _onnx_seal

    (tmp_path / "model.onnx").write_bytes(b"graph")
    (tmp_path / "model.onnx.data").write_bytes(b"weights")
    digest = sha256_of_weights(tmp_path)
    entry = FileEntry(name="o", format="onnx", precision="int8", bits_per_weight=8.0, source_sha256="0" * 64, sha256=digest)
    card = Card(task="sql", task_version=1, dialect="plain", prompt_template="sql/plain/1", constraint="lark", parser="sql/plain",
                max_tokens=24, base=BaseEntry(id="scratch:tiny"), created_by="penknife", file=entry)  # fmt: skip
    (tmp_path / "penknife.json").write_text(json.dumps({"weights_sha256": digest} if named_by == "facts" else {}))
    given = card if named_by == "card" else None
    assert (_onnx_seal(tmp_path, given, False), _onnx_seal(tmp_path, given, True)) == ("not checked", "intact")
    (tmp_path / "model.onnx.data").write_bytes(b"weightz")
    with pytest.raises(ExportError, match="are not those that were exported"):
        _onnx_seal(tmp_path, given, True)
