"""Pictures of the app for docs/img and the README, from the real app with a trained model.

Run: python tests/app/screenshots.py [--runs runs] [--out docs/img] [--page NAME …]
Look at each before it is committed: aligned, readable, nothing cut off.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
from browser import chromium, fits, served, settled  # noqa: E402

QUESTIONS = ("What is the largest diameter of a moon of Jupiter?", "Which mission has agency ESA?")
SIZES = {"wide": (1280, 1000), "narrow": (400, 1000)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Pictures of the app.")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "img")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        runs = Path(scratch) / "runs"
        runs.mkdir()
        for run in given.runs.iterdir() if given.runs.is_dir() else ():
            if (run / "model").is_dir():
                (runs / run.name).symlink_to(run.absolute())
        with served(runs) as url:
            for scheme in ("light", "dark"):
                for size, (width, height) in SIZES.items():
                    person = browser.new_context(
                        base_url=url, viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=1
                    )
                    shoot(person.new_page(), given.out, f"{size}-{scheme}")
                    person.close()


def shoot(tab: Any, out: Path, name: str) -> None:
    """Ask and Personas and Runs as they look after two questions."""
    tab.goto("/")
    tab.wait_for_selector("h1")
    for at, question in enumerate(QUESTIONS, 1):
        tab.get_by_test_id("stChatInputTextArea").fill(question)
        tab.keyboard.press("Enter")
        tab.wait_for_function("n => document.querySelectorAll('[data-testid=stChatMessage]').length >= n", arg=2 * at)
        tab.wait_for_function("() => !document.querySelector('.st-key-stop')")
        tab.wait_for_timeout(1500)
    for page in ("ask", "personas", "runs"):
        if page != "ask":
            tab.goto(f"/{page}")
            tab.wait_for_selector("h1")
        settled(tab)
        tab.wait_for_timeout(1500)
        if not fits(tab):
            print(f"{page} {name}: scrolls sideways")
        tab.screenshot(path=out / f"app-{page}-{name}.png")
        print(out / f"app-{page}-{name}.png")


if __name__ == "__main__":
    main()
