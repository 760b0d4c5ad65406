"""Export: files for CPUs and phones that score what the model scored.

Does: turn a student's directory into GGUF and ONNX files, prove each against its source, carry the card along; the Python calls
of the two commands are `export.gguf("runs/sql/model", quant="Q8_0")` and `export.onnx("runs/sql/model", precision="int8")`.
Does not: train, or run personas; `import export` loads nothing heavy.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("gguf", "onnx"):
        import importlib

        return importlib.import_module(f"export.{name}")
    raise AttributeError(f"module 'export' has no attribute {name!r}")
