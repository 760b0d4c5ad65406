"""Pictures of the app for docs/img and the README, from the real app with a trained model.

Run: python tests/app/screenshots.py [--runs runs] [--out docs/img] [--sizes wide] [--schemes light]
Look at each before it is committed: aligned, readable, nothing cut off.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
from browser import chromium, fits, served, settled  # noqa: E402

QUESTIONS = ("What is the largest diameter of a moon of Jupiter?", "Which mission has agency ESA?")
DIFFERENT = "What is the average diameter of the moons of Saturn discovered after 1900?"
"""What files are asked beside each other."""
SIZES = {"wide": (1280, 1000), "narrow": (400, 1000)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Pictures of the app.")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--schemes", nargs="*", default=["light", "dark"], choices=["light", "dark"])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "img")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        runs = Path(scratch) / "runs"
        runs.mkdir()
        for run in given.runs.iterdir() if given.runs.is_dir() else ():
            if (run / "model").is_dir():
                shutil.copytree(run, runs / run.name, ignore=shutil.ignore_patterns("checkpoints", "student", "topk", "lock"))
        with served(runs) as url:
            for scheme in given.schemes:
                for size in given.sizes:
                    width, height = SIZES[size]
                    person = browser.new_context(
                        base_url=url, viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=1
                    )
                    shoot(person.new_page(), given.out, f"{size}-{scheme}")
                    person.close()


def shoot(tab: Any, out: Path, name: str) -> None:
    """Every page as it looks after two questions: a finished run on Make, its measured files and two answers on Compare."""
    tab.goto("/")
    tab.wait_for_selector("h1")
    for at, question in enumerate(QUESTIONS, 1):
        tab.get_by_test_id("stChatInputTextArea").fill(question)
        tab.keyboard.press("Enter")
        tab.wait_for_function("n => document.querySelectorAll('[data-testid=stChatMessage]').length >= n", arg=2 * at)
        tab.wait_for_function("() => !document.querySelector('.st-key-stop')")
        tab.wait_for_timeout(1500)
    shot(tab, out, "ask", name)
    width = tab.viewport_size["width"]
    for page in ("personas", "runs", "make", "compare"):
        tab.goto(f"/{page}")
        tab.wait_for_selector("h1")
        if page == "make" and tab.locator(".st-key-run").count():
            tab.locator(".st-key-plan button").click()
            tab.locator(".st-key-start button:not([disabled])").wait_for(timeout=120_000)
            shot(tab, out, "make-form", name)
            tab.locator(".st-key-run input").click()
            tab.get_by_role("option").last.click()
            tab.wait_for_selector("[data-testid=stVegaLiteChart] :is(canvas, svg)")
        if page == "compare":
            for part in ("Side by side", "Measured"):
                tab.get_by_role("tab", name=part).click()
                if part == "Side by side":
                    tab.get_by_label("Question", exact=True).fill(DIFFERENT)
                    tab.keyboard.press("Enter")
                    settled(tab)
                    tab.get_by_role("button", name="Ask them").click()
                    tab.get_by_text("compared with", exact=True).first.wait_for(timeout=120_000)
                    tab.locator(".st-key-ask button:not([disabled])").wait_for(timeout=120_000)
                else:  # tall enough for the pictures below the table
                    tab.set_viewport_size({"width": width, "height": 1900})
                shot(tab, out, f"compare-{part.split()[0].lower()}", name)
            continue
        shot(tab, out, page, name)


def shot(tab: Any, out: Path, page: str, name: str) -> None:
    """One picture, of a page that has come to rest."""
    settled(tab)
    tab.wait_for_timeout(1500)
    if not fits(tab):
        print(f"{page} {name}: scrolls sideways")
    tab.screenshot(path=out / f"app-{page}-{name}.png")
    print(out / f"app-{page}-{name}.png")


if __name__ == "__main__":
    main()
