"""A GGUF file with flipped bytes, cut short or with absurd counts never brings down the process that opens it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.chat import Message, ModelError, Request, Sampling, answer
from agents.models import open_model
from agents.models.gguf_file import read_gguf, verify
from export.convert import convert
from export.source import Source
from tests.export.tiny_families import make_family

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; pip install 'penknife[gguf]'")
POSITIONS = 1000
TRIED, TRIED_SLOW = 6, 300
"""Files whose damage our reader cannot see, which a process of their own tries to load: each starts one."""


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fuzz")
    source = make_family("llama3-rope", directory / "model", num_hidden_layers=1)
    convert(Source.open(source), directory / "model.gguf", "Q8_0")
    assert verify(directory / "model.gguf").sealed
    return directory / "model.gguf"


def flipped(whole: bytes, n: int, seed: int, end: int | None = None) -> Iterator[bytes]:
    """`n` copies with one byte changed; half of the places in the first 4096 bytes, where counts and lengths are."""
    rng = random.Random(seed)
    end = end if end is not None else len(whole)
    for number in range(n):
        at = rng.randrange(min(end, 4096) if number % 2 else end)
        yield whole[:at] + bytes([whole[at] ^ rng.randrange(1, 256)]) + whole[at + 1 :]


def absurd(whole: bytes, n: int, seed: int, end: int) -> Iterator[bytes]:
    """`n` copies with eight bytes of the description replaced by an enormous or negative number."""
    rng = random.Random(seed)
    for _ in range(n):
        at, number = rng.randrange(4, end - 8), rng.choice([2**64 - 1, 2**63, 2**62, 2**40, 2**32, 2**31, 0])
        yield whole[:at] + number.to_bytes(8, "little") + whole[at + 8 :]


def test_a_sealed_file_is_refused_before_llama_cpp_sees_it(sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import agents.models.llama_weights as weights

    def seen(*_: object) -> None:
        raise AssertionError("llama.cpp was called for a damaged file")

    monkeypatch.setattr(weights, "library", seen)
    monkeypatch.setattr(weights, "survives", seen)
    whole = sealed.read_bytes()
    end = read_gguf(sealed).data_offset
    file = tmp_path / "damaged.gguf"
    damaged = [
        *flipped(whole, POSITIONS, 0),
        *absurd(whole, 200, 1, end),
        *(whole[:n] for n in range(0, len(whole), len(whole) // 50)),
    ]
    for content in damaged:
        if content == whole:
            continue
        file.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            open_model(str(file))
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def unsealed(whole: bytes, seal: str) -> bytes:
    """The file as a foreign program would have written it: no key of ours has its name any more."""
    return whole.replace(b"penknife.", b"stranger.").replace(seal.encode(), b"0" * 64)


def readable(file: Path) -> bool:
    try:
        return not verify(file).sealed
    except ModelError:
        return False


def try_all(sealed: Path, tmp_path: Path, n: int) -> dict[str, int]:
    whole = unsealed(sealed.read_bytes(), verify(sealed).metadata["penknife.sha256"])
    end = read_gguf(sealed).data_offset
    file = tmp_path / "foreign.gguf"
    outcomes = {"refused": 0, "opened": 0}
    for content in [*flipped(whole, 20 * n, 2, end), *absurd(whole, 10 * n, 3, end)]:
        file.write_bytes(content)
        if sum(outcomes.values()) == n or not readable(file):
            continue
        try:
            model = open_model(str(file), threads=1)
        except ModelError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
            continue
        try:
            request = Request(messages=(Message(role="user", content="hi"),), sampling=Sampling(max_tokens=2))
            assert len(answer(model, [request])) == 1
            outcomes["opened"] += 1
        finally:
            model.close()
    return outcomes


def test_an_unsealed_file_is_tried_in_a_process_of_its_own(sealed: Path, tmp_path: Path) -> None:
    assert sum(try_all(sealed, tmp_path, TRIED).values()) == TRIED


@pytest.mark.slow
def test_many_unsealed_files(sealed: Path, tmp_path: Path) -> None:
    outcomes = try_all(sealed, tmp_path, TRIED_SLOW)
    assert sum(outcomes.values()) == TRIED_SLOW
    assert outcomes["refused"] > 0 and outcomes["opened"] > 0
