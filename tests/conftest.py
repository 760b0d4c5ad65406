"""Markers that skip with a reason, and one thread per process so that timings of neighbours do not matter."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --slow"))
        if "gpu" in item.keywords and not _has_cuda():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "browser" in item.keywords and shutil.which("chromium") is None:
            item.add_marker(pytest.mark.skip(reason="needs chromium on the PATH"))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Directory of the public sets that are not bundled (Spider, GeoQuery, …); skips where there is none."""
    places = [Path(os.environ["PENKNIFE_DATA"])] if "PENKNIFE_DATA" in os.environ else []
    places.append(Path(__file__).resolve().parents[2] / "shared" / "data")
    for place in places:
        if place.is_dir():
            return place
    pytest.skip("public data sets are not here; set PENKNIFE_DATA to their directory")
