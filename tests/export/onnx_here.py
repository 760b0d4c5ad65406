"""ONNX exports in this process: starting another for every small model would take most of a test's time."""

from pathlib import Path

import pytest


def build_here(patch: pytest.MonkeyPatch) -> None:
    """Run onnxruntime-genai's builder in this process until `patch` is undone."""
    from export import onnx_builder

    def build(model_dir: Path, out: Path, cache: Path) -> None:
        patch.setenv("HF_HUB_OFFLINE", "1")
        onnx_builder.main([str(model_dir), str(out), str(cache)])

    patch.setattr("export.onnx.build", build)
