"""The app as a person meets it: first paint, first token after Enter, memory of ten sessions against one. Prints JSON.

Run: python -m benchmarks.app --runs runs [--sessions 10] [--json FILE]. Needs Chromium, playwright and a trained sql model in
RUNS (or the embedded one).

Does: start the real app, drive it with a headless Chromium, read the server process's memory from /proc.
Does not: count the browser's own memory; every session is a browser context of its own with its own cookies.

- first_paint_s: from the start of the server process until the page's title is on screen (the browser is open already), and
  page_s, the same from opening the page of a server that is up.
- first_token_s: from Enter until the answer's first piece is on screen, for the first question of a fresh server and for later
  ones. An answer can be done before the page first shows a piece of it; then it is the answer.
- memory: resident set (RSS) and proportional set (PSS) of the server after each session has asked one question.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "app"))
from browser import chromium, free_port  # noqa: E402

QUESTIONS = ("How many visits to Mars were by a rover?", "Who discovered Triton?", "Which mission has agency ESA?")
SHOWN = """n => {
  const messages = document.querySelectorAll('[data-testid=stChatMessage]');
  if (messages.length < n) return false;
  return !!messages[1].querySelector('[class*=st-key-writing], [data-testid=stCode], [data-testid=stAlert], strong');
}"""
DONE = "() => !document.querySelector('.st-key-stop') && document.querySelector('[data-testid=stGraphVizChart] svg')"


def memory_mb(pid: int) -> dict[str, float]:
    """Megabytes of a process and its children."""
    import psutil

    total = {"rss": 0.0, "pss": 0.0}
    process = psutil.Process(pid)
    for one in (process, *process.children(recursive=True)):
        read = Path(f"/proc/{one.pid}/smaps_rollup").read_text()
        for name in total:
            found = re.search(rf"^{name.capitalize()}:\s+(\d+) kB", read, re.MULTILINE)
            total[name] += int(found[1]) / 1e3 if found else 0.0
    return {name: round(value, 1) for name, value in total.items()}


class Server:
    """The app's process; `started` is when it was begun."""

    def __init__(self, runs: Path, scratch: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app" / "main.py"), "--server.port", str(self.port)]
        place = scratch / f"runs-{self.port}"
        place.mkdir()
        for run in runs.iterdir() if runs.is_dir() else ():
            if (run / "model").is_dir():
                (place / run.name).symlink_to(run.absolute())
        settings = {**os.environ, "PENKNIFE_RUNS": str(place), "PYTHONPATH": str(ROOT)}
        self.started = time.monotonic()
        self.process = subprocess.Popen(command, cwd=scratch, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait(self) -> None:
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=2).read()
                return
            except (urllib.error.URLError, OSError):
                if self.process.poll() is not None or time.monotonic() - self.started > 60:
                    raise SystemExit("the app did not start; try it by hand: streamlit run app/main.py") from None
                time.sleep(0.01)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)


def first_paint(browser: Any, runs: Path, scratch: Path, rounds: int) -> dict[str, Any]:
    cold, page = [], []
    for _ in range(rounds):
        server = Server(runs, scratch)
        try:
            server.wait()
            for times, since in ((cold, server.started), (page, None)):
                context = browser.new_context(viewport={"width": 1280, "height": 900})
                tab = context.new_page()
                began = time.monotonic() if since is None else since
                tab.goto(server.url)
                tab.wait_for_selector("h1")
                times.append(time.monotonic() - began)
                context.close()
        finally:
            server.close()
    return {
        "first_paint_s": [round(one, 2) for one in cold],
        "first_paint_median_s": round(statistics.median(cold), 2),
        "page_s": [round(one, 2) for one in page],
    }


def ask(tab: Any, question: str) -> float:
    """Seconds from Enter to the first piece of the answer; waits for its end."""
    before = tab.get_by_test_id("stChatMessage").count()
    box = tab.get_by_test_id("stChatInputTextArea")
    box.fill(question)
    began = time.monotonic()
    tab.keyboard.press("Enter")
    tab.wait_for_function(SHOWN, arg=before + 2, polling=20)
    took = time.monotonic() - began
    tab.wait_for_function(DONE)
    tab.wait_for_timeout(300)
    return took


def sessions(browser: Any, runs: Path, scratch: Path, count: int) -> dict[str, Any]:
    server = Server(runs, scratch)
    memory: list[dict[str, float]] = []
    first: list[float] = []
    later: list[float] = []
    try:
        server.wait()
        for _ in range(count):
            tab = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
            tab.goto(server.url)
            tab.wait_for_selector("h1")
            tab.get_by_test_id("stChatInputTextArea").wait_for()
            tab.wait_for_timeout(2000)  # a person reads before writing; the page finishes, the first model is opened meanwhile
            first.append(ask(tab, QUESTIONS[0]))
            later += [ask(tab, question) for question in QUESTIONS[1:]]
            memory.append(memory_mb(server.process.pid))
    finally:
        server.close()
    return {
        "first_token_s": {"first_question": round(first[0], 3), "median": round(statistics.median(first + later), 3),
                          "slowest": round(max(first + later), 3), "n": len(first + later)},
        "sessions": count,
        "memory_mb": memory,
        "rss_ratio": round(memory[-1]["rss"] / memory[0]["rss"], 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.app", description="First paint, first token, memory of the app.")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="directory of runs with a trained sql model")
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="starts of the server for the first paint")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, chromium() as browser:
        result = {
            **first_paint(browser, given.runs, Path(place), given.rounds),
            **sessions(browser, given.runs, Path(place), given.sessions),
            "cores": os.cpu_count(),
        }
    text = json.dumps(result, indent=1)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
