"""Q8_0 files come under the limit by keeping few tensors in F16, through the command's own stages and llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agents.models.gguf_file import read_gguf
from tests.export.test_convert import some
from tests.export.tiny_families import FAMILIES, make_family


def exported(place: Path, kind: str, **options: Any) -> Any:
    pytest.importorskip("llama_cpp", reason="needs llama.cpp: pip install 'penknife[gguf]' (compiles for minutes)")
    import export.gguf

    return export.gguf.export(place / kind, quant="Q8_0", **options)


@pytest.mark.parametrize("steps", [0, 30], ids=["random", "trained"])
@pytest.mark.parametrize("kind", some(FAMILIES, "llama"))
def test_q8_0_is_as_near_as_bfloat16_or_1e_4(kind: str, steps: int, tmp_path: Path) -> None:
    make_family(kind, tmp_path / kind, steps=steps, initializer_range=0.05 if steps else 0.1)
    made = exported(tmp_path, kind)
    parity, narrow = made.gate.parity, made.gate.bfloat16
    print(
        f"{kind}, {steps} steps: {made.bits_per_weight:.2f} bits, KLD {parity.kld:.2g}, bfloat16 {narrow.kld:.2g}",
        made.notes[-1:],
    )
    assert parity.tokens >= 512 or parity.beyond_context
    assert parity.kld <= max(1e-4, narrow.kld)


def test_what_was_kept_is_said_and_in_the_file(tmp_path: Path) -> None:
    make_family("qwen3", tmp_path / "qwen3")
    plain = exported(tmp_path, "qwen3", mixed=False, max_kld=1.0)
    limit = 0.6 * plain.gate.parity.kld
    made = exported(tmp_path, "qwen3", max_kld=limit)
    assert made.kept and made.gate.parity.kld <= limit < plain.gate.parity.kld
    kept = made.document["mixed"]["kept_f16"]
    types = {tensor.name: tensor.type_name for tensor in read_gguf(made.path).tensors}
    matrices = {name for name, type in types.items() if type != "F32"}
    assert kept and {name for name in matrices if types[name] == "F16"} == set(kept)
    assert all(types[name] == "Q8_0" for name in matrices - set(kept))
    assert made.document["recipe"]["keep"] == kept
    assert plain.bits_per_weight < made.bits_per_weight < 1.5 * plain.bits_per_weight
    assert any(kept[0] in note and "stay" in note and "--no-mixed" in note for note in made.notes)
    refused = exported(tmp_path, "qwen3", max_kld=1e-9)
    assert not refused.kept and any("--quant F16 does" in note for note in refused.notes)


def test_a_target_bounds_what_is_kept(tmp_path: Path) -> None:
    make_family("qwen3", tmp_path / "qwen3")
    plain = exported(tmp_path, "qwen3", mixed=False, max_kld=1.0)
    made = exported(tmp_path, "qwen3", max_kld=0.6 * plain.gate.parity.kld, target=str(plain.bytes / 1e6 + 0.001))
    assert "mixed" not in made.document and made.bytes == plain.bytes
