"""The reader against the gguf package's writer and reader; every way a file can lie about itself; the seal."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from agents.card import BaseEntry, Card, CardError
from agents.chat import ModelError
from agents.models.gguf_file import TENSOR_TYPES, UNSEALED, card_of, read_gguf, verify
from export.seal import reserve, seal, write_card

CARD = Card(task="sql", task_version=1, dialect="compact", prompt_template="sql/compact/1", constraint="lark",
            parser="sql/compact", base=BaseEntry(id="scratch:tiny"), created_by="penknife tëst")  # fmt: skip


def write(path: Path, extra: dict[str, str] | None = None) -> Path:
    """A small file with every kind of value, by the gguf package."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.name", "übung")
    for key, text in {**reserve(CARD), **(extra or {})}.items():
        writer.add_string(key, text)
    writer.add_array("tokens", ["a", "é", "", "漢" * 40])
    writer.add_array("scores", [0.5, -1.25])
    writer.add_array("ids", [1, -2, 3])
    writer.add_array("flags", [True, False])
    writer.add_bool("flag", True)
    for name, value in {"uint8": 255, "int8": -1, "uint16": 65535, "int16": -3, "uint32": 2**32 - 1, "int32": -7,
                        "uint64": 2**63, "int64": -(2**62), "float32": 0.5, "float64": 1e300}.items():  # fmt: skip
        getattr(writer, f"add_{name}")(name, value)
    rng = np.random.default_rng(0)
    for i, kind in enumerate(("F32", "F16", "Q8_0", "Q4_0")):
        quant = gguf.GGMLQuantizationType[kind]
        values = rng.standard_normal((3 + i, 64)).astype(np.float32)
        writer.add_tensor(f"t{i}.weight", gguf.quants.quantize(values, quant), raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return write(tmp_path / "a.gguf")


def test_reads_what_the_gguf_package_reads(made: Path) -> None:
    found, theirs = read_gguf(made), gguf.GGUFReader(made)
    assert found.version == 3 and found.size_bytes == made.stat().st_size and not found.sealed
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert dict(found.metadata) == fields
    assert len(fields) > 15
    table = [(t.name, tuple(int(n) for n in t.shape), int(t.tensor_type), t.data_offset, t.n_bytes) for t in theirs.tensors]
    assert [(t.name, t.shape, t.type, t.offset, t.size) for t in found.tensors] == table
    assert [t.type_name for t in found.tensors] == ["F32", "F16", "Q8_0", "Q4_0"]
    assert found.data_offset == theirs.data_offset
    start, length = found.value_span("general.name")
    assert made.read_bytes()[start : start + length].decode() == "übung"
    with pytest.raises(ModelError, match="no text under 'flag'"):
        found.value_span("flag")


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert dict(TENSOR_TYPES) == theirs


def test_bits_per_weight(made: Path) -> None:
    found = read_gguf(made)
    expected = (3 * 64 * 32 + 4 * 64 * 16 + 5 * 64 * 8.5 + 6 * 64 * 4.5) / (18 * 64)
    assert found.bits_per_weight == pytest.approx(expected)


def test_the_module_needs_no_gguf_package() -> None:
    code = "import sys; sys.modules['gguf'] = sys.modules['numpy'] = None; import agents.models.gguf_file"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _file(pairs: list[bytes], tensors: list[bytes], data: bytes = b"", *, magic: bytes = b"GGUF", version: int = 3,
          counts: tuple[int, int] | None = None) -> bytes:  # fmt: skip
    head = magic + struct.pack("<IQQ", version, *(counts or (len(tensors), len(pairs)))) + b"".join(pairs) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


def _number(key: str, value: int, kind: int = 4) -> bytes:
    return _string(key) + struct.pack("<II", kind, value)


def _tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return (
        _string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, offset)
    )


LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a GGUF file"),
    "another format": (b"PK\x03\x04" + b"\0" * 60, "does not begin with GGUF"),
    "version 1": (_file([], [], version=1), "version 1"),
    "big-endian": (_file([], [], version=3 << 24), "big-endian"),
    "2**63 tensors": (_file([], [], counts=(2**63, 0)), "9223372036854775808 tensors"),
    "2**64-1 pairs": (_file([], [], counts=(0, 2**64 - 1)), "metadata pairs"),
    "key of 2**60 bytes": (_file([struct.pack("<Q", 2**60) + b"a" * 64], []), "ends inside"),
    "key not UTF-8": (_file([struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", 4, 1)], []), "not UTF-8"),
    "value type 99": (_file([_number("a", 1, 99)], []), "unknown value type 99"),
    "array of arrays": (_file([_string("a") + struct.pack("<IIQ", 9, 9, 1) + b"\0" * 64], []), "nested type 9"),
    "array of 2**40 numbers": (_file([_string("a") + struct.pack("<IIQ", 9, 4, 2**40)], []), "elements of 'a'"),
    "array of 2**40 texts": (_file([_string("a") + struct.pack("<IIQ", 9, 8, 2**40)], []), "texts in 'a'"),
    "truth value 2": (_file([_string("a") + struct.pack("<IB", 7, 2) + b"\0" * 32], []), "truth value of 2"),
    "a key twice": (_file([_number("a", 1), _number("a", 2)], []), "twice"),
    "alignment 0": (_file([_number("general.alignment", 0)], []), "general.alignment is 0"),
    "alignment 3": (_file([_number("general.alignment", 3)], []), "not a power of two"),
    "no dimensions": (_file([], [_tensor("t", ())]), "0 dimensions"),
    "9 dimensions": (_file([], [_tensor("t", (1,) * 9)]), "9 dimensions"),
    "a dimension of 0": (_file([], [_tensor("t", (0, 4))]), "impossible shape"),
    "a product beyond 64 bits": (_file([], [_tensor("t", (2**40, 2**40))]), "impossible shape"),
    "tensor type 77": (_file([], [_tensor("t", (32,), 77)], b"\0" * 64), "unknown type 77"),
    "rows no block fits": (_file([], [_tensor("t", (33,), 8)], b"\0" * 64), "rows of 33"),
    "an odd offset": (_file([], [_tensor("t", (4,), 0, 5)], b"\0" * 64), "multiple of 32"),
    "data outside the file": (_file([], [_tensor("t", (64,), 0, 0)], b"\0" * 64), "of a file of"),
    "an offset of 2**63": (_file([], [_tensor("t", (4,), 0, 2**63)], b"\0" * 64), "of a file of"),
    "two tensors in one place": (_file([], [_tensor("t", (8,)), _tensor("u", (8,))], b"\0" * 64), "on top of another"),
    "a name twice": (_file([], [_tensor("t", (8,)), _tensor("t", (8,), 0, 32)], b"\0" * 64), "one name"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_one_sentence(lie: str, tmp_path: Path) -> None:
    content, said = LIES[lie]
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=said) as caught:
        read_gguf(tmp_path / "a.gguf")
    assert "\n" not in str(caught.value) and str(tmp_path / "a.gguf") in str(caught.value)


def test_absent_directory_and_truncated(made: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        read_gguf(made.with_name("b.gguf"))
    with pytest.raises(ModelError, match="directory"):
        read_gguf(made.parent)
    whole = made.read_bytes()
    for length in range(0, len(whole), 97):
        made.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            read_gguf(made)


def test_the_card_inside(made: Path, tmp_path: Path) -> None:
    assert card_of(made) == CARD
    assert card_of(read_gguf(made)) == CARD
    for text, said in (("{", "not a card"), ('{"format_version": 99}', "newer than"), ("[" * 5000, "not a card")):
        with pytest.raises(CardError, match=said):
            card_of(write(tmp_path / "b.gguf", {"penknife.card": text}))


def test_a_seal_is_the_hash_of_the_file_with_zeros_in_its_place(made: Path) -> None:
    import hashlib

    unsealed = made.read_bytes()
    assert unsealed.count(UNSEALED.encode()) == 1 and not verify(made).sealed
    digest = seal(made)
    assert digest == hashlib.sha256(unsealed).hexdigest()
    assert made.read_bytes() == unsealed.replace(UNSEALED.encode(), digest.encode())
    assert verify(made).sealed


def test_every_kind_of_change_breaks_the_seal(made: Path) -> None:
    seal(made)
    whole = made.read_bytes()
    changes: dict[str, Any] = {
        "appended": whole + b"\0",
        "last byte": whole[:-1] + bytes([whole[-1] ^ 1]),
        "padding": whole.replace(b"   ", b"  \t", 1),
        "seal": whole.replace(verify(made).metadata["penknife.sha256"].encode(), b"f" * 64),
        "lost": whole.replace(b"penknife.sha256", b"penknife.sha257"),
    }
    for name, content in changes.items():
        assert content != whole, name
        made.write_bytes(content)
        with pytest.raises(ModelError, match="copy or export it again"):
            verify(made)


def test_a_rewritten_card_opens_the_seal_and_moves_nothing_else(made: Path) -> None:
    seal(made)
    before = read_gguf(made)
    write_card(made, CARD.model_copy(update={"name": "späßchen"}))
    after = verify(made)
    assert not after.sealed and card_of(after) == CARD.model_copy(update={"name": "späßchen"})
    assert after.tensors == before.tensors and after.size_bytes == before.size_bytes
    seal(made)
    assert verify(made).sealed


def test_a_file_without_our_keys_is_not_asked_for_a_seal(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "foreign.gguf", "llama")
    writer.add_tensor("t", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert not verify(tmp_path / "foreign.gguf").sealed and card_of(tmp_path / "foreign.gguf") is None
