"""The models that ship inside the package, by name.

Does: say where they are. Does not: open or make them (`pretrain.py`, `docs/embedded.md`).
"""

from __future__ import annotations

from pathlib import Path

NAME = "embedded"
"""As `--student embedded` and `--teacher embedded`."""
HOME = Path(__file__).with_name("data") / "embedded"


def embedded_dir(kind: str) -> Path | None:
    """The model directory of the embedded "base" or "teacher"; None where this installation has none."""
    path = HOME / kind
    return path if (path / "config.json").is_file() else None


def embedded_files() -> list[Path]:
    """Ready GGUF files of the embedded students, by name; each has its card inside."""
    return sorted(HOME.glob("*.gguf"))
