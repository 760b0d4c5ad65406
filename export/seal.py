"""The card inside a GGUF file and the seal over the whole of it.

Does: reserve room for both while a file is being written, rewrite the card in place once the gate has measured the file, seal it
with the hash that `agents.models.gguf_file.verify` checks before llama.cpp sees a byte.
Does not: write tensors (`export.convert`), rename files, or sign anything: whoever can write the file can seal it again.

    for key, text in reserve(card).items(): writer.add_string(key, text)      # while writing
    write_card(temporary, card_with_scores); seal(temporary)                   # before the rename
"""

from __future__ import annotations

import os
from pathlib import Path

from agents.card import Card
from agents.models.gguf_file import CARD_KEY, SEAL_KEY, UNSEALED, GgufFile, read_gguf, sealed_hash
from export.errors import ExportError

ROOM = 8192
"""Bytes kept free beyond the card as it is first written, for what the gate adds: file entry, scores, calibration."""


def reserve(card: Card | None, room: int = ROOM) -> dict[str, str]:
    """Metadata strings to write: the card padded with spaces by `room` bytes (none without a card), and an open seal.

    Replace the values of these keys where the metadata is a copy of another file's.
    """
    out = {SEAL_KEY: UNSEALED}
    if card is not None:
        text = card.model_dump_json()
        out[CARD_KEY] = text + " " * room
    return out


def write_card(path: Path | str, card: Card) -> None:
    """Put `card` where the file at `path` keeps its own, and open its seal; call `seal` after it.

    Writes in place: give a temporary file, not a published one. Raises ExportError when the card does not fit its room,
    ModelError for a file without a card, OSError.
    """
    file = read_gguf(path)
    start, length = file.value_span(CARD_KEY)
    text = card.model_dump_json().encode()
    if len(text) > length:
        raise ExportError(f"{path}: the card takes {len(text)} bytes and the file keeps {length} for it; convert the model again")
    _overwrite(file, {start: text.ljust(length), file.value_span(SEAL_KEY)[0]: UNSEALED.encode()})


def seal(path: Path | str) -> str:
    """Write the hash of the whole file into it, and return it. Nothing in the file may change afterwards.

    Writes in place, to the disk itself. Raises ModelError for a file without room for a seal, OSError.
    """
    file = read_gguf(path)
    start, length = file.value_span(SEAL_KEY)
    if length != len(UNSEALED):
        raise ExportError(f"{path}: {SEAL_KEY} has {length} characters, not {len(UNSEALED)}; convert the model again")
    digest = sealed_hash(file)
    _overwrite(file, {start: digest.encode()})
    return digest


def _overwrite(file: GgufFile, places: dict[int, bytes]) -> None:
    with file.path.open("r+b") as opened:
        for start, content in places.items():
            opened.seek(start)
            opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
