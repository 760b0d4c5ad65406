"""Room for the card: what fits, what does not, and that a failed rewrite leaves the file as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.chat import ModelError
from agents.models.gguf_file import card_of, read_gguf
from export.errors import ExportError
from export.seal import ROOM, reserve, seal, write_card
from tests.agents.test_gguf_file import CARD, write


def test_the_card_is_padded_by_its_room() -> None:
    text = reserve(CARD)["penknife.card"]
    assert len(text) - len(text.rstrip()) == ROOM
    assert reserve(None) == {"penknife.sha256": "0" * 64}


def test_a_card_fills_its_room_to_the_last_byte_and_no_further(tmp_path: Path) -> None:
    file = write(tmp_path / "a.gguf")
    seal(file)
    room = read_gguf(file).value_span("penknife.card")[1] - len(CARD.model_dump_json().encode())
    # "é" takes two bytes: the room is counted in bytes, not in characters.
    fits = CARD.model_copy(update={"name": "é" * (room // 2)})
    write_card(file, fits)
    assert card_of(file) == fits
    seal(file)
    whole = file.read_bytes()
    with pytest.raises(ExportError, match="keeps"):
        write_card(file, CARD.model_copy(update={"name": "é" * (room // 2 + 1)}))
    assert file.read_bytes() == whole


def test_a_file_without_room_is_refused(tmp_path: Path) -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_string("penknife.sha256", "0" * 60)
    writer.add_tensor("t", np.zeros((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"no text under 'penknife\.card'"):
        write_card(tmp_path / "a.gguf", CARD)
    with pytest.raises(ExportError, match="60 characters"):
        seal(tmp_path / "a.gguf")
