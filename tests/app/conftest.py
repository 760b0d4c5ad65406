"""Pages under Streamlit's own test driver, and the whole app in a browser.

`page("ask")` runs app/pages/ask.py alone, in an empty directory of runs. `app_url`, `browser` and `tab` are the real thing.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

import browser as driving  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for missing in ("streamlit", "playwright"):
        if importlib.util.find_spec(missing) is None:
            for item in items:
                if Path(__file__).parent in item.path.parents and (missing == "streamlit" or "browser" in item.keywords):
                    item.add_marker(pytest.mark.skip(reason=f"needs {missing}: pip install -e '.[app,dev]'"))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory of runs, and a working directory beside it."""
    place = tmp_path / "runs"
    place.mkdir()
    monkeypatch.setenv("PENKNIFE_RUNS", str(place))
    monkeypatch.chdir(tmp_path)
    return place


@pytest.fixture
def page(runs: Path) -> Callable[..., Any]:
    """A page's AppTest that has run once; keywords go into its session state first."""

    def opened(name: str, timeout_s: float = 30.0, **state: Any) -> Any:
        import streamlit as st
        from streamlit.testing.v1 import AppTest

        st.cache_resource.clear()
        test = AppTest.from_file(str(ROOT / "app" / "pages" / f"{name}.py"), default_timeout=timeout_s)
        for key, value in state.items():
            test.session_state[key] = value
        return test.run()

    return opened


@pytest.fixture(scope="session")
def app_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of runs of the app in the browser, with a trained model in it; skips where there is none."""
    import app_models

    place = tmp_path_factory.mktemp("app") / "runs"
    place.mkdir()
    app_models.real_artifact(place)
    return place


@pytest.fixture(scope="session")
def app_url(app_runs: Path) -> Iterator[str]:
    with driving.served(app_runs) as url:
        yield url


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with driving.chromium() as opened:
        yield opened


@pytest.fixture
def tab(browser: Any, app_url: str) -> Iterator[Any]:
    """A fresh session at 1280 x 900 on the app's first page."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=app_url)
    context.set_default_timeout(30_000)
    yield context.new_page()
    context.close()
