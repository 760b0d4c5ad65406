"""The real app in a process of its own, and a headless Chromium that drives it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(runs: Path, *options: str, **environment: str) -> Iterator[str]:
    """The app's URL, while it runs; `runs` is its directory of runs."""
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app" / "main.py"), "--server.port", str(port), *options]
    settings = {**os.environ, "PENKNIFE_RUNS": str(runs), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    log = runs.parent / "app.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=runs.parent, env=settings, stdout=out, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            end = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(f"{url}/_stcore/health", timeout=2).read()
                    break
                except urllib.error.HTTPError:  # it asks for the password
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > end:
                        raise RuntimeError(f"the app did not start:\n{log.read_text()}") from None
                    time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser; `browser.new_context(viewport=…, color_scheme=…)` is one person's session."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def settled(page: Any, timeout_s: float = 60.0) -> None:
    """Wait until the page's script has run and nothing on it is being replaced."""
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]', timeout=timeout_s * 1e3)


def fits(page: Any) -> bool:
    """Whether nothing makes the page scroll sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def overlong(page: Any) -> list[str]:
    """What sticks out of the window on the right, for the message of a failed test."""
    return list(
        page.evaluate(
            "[...document.querySelectorAll('section *')].filter(e => e.getBoundingClientRect().right > window.innerWidth + 1)"
            ".map(e => (e.dataset.testid || e.tagName) + ' ' + Math.round(e.getBoundingClientRect().right)).slice(0, 10)"
        )
    )
