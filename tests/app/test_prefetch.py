"""Scripts fetched ahead: which, and in what header; against the installed Streamlit and a made-up one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import streamlit

from app import prefetch


def static(place: Path) -> Path:
    js = place / "static" / "js"
    js.mkdir(parents=True)
    (place / "index.html").write_text('<script type="module" crossorigin src="./static/js/index.aa.js"></script>')
    for name, text in {
        "index.aa.js": 'import{a}from"./react.bb.js";import("./DataFrame.cc.js")',
        "react.bb.js": "",
        "DataFrame.cc.js": 'import{a as b}from"./react.bb.js";import"./grid.dd.js";',
        "grid.dd.js": 'import{x}from"./DataFrame.cc.js";import{y}from"./gone.ee.js"',
        "Unrelated.ff.js": "",
    }.items():
        (js / name).write_text(text)
    return place


def test_a_part_comes_with_what_it_imports_and_without_what_every_page_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prefetch.scripts(static(tmp_path)) == (), "small ones are left to their moment"
    with (tmp_path / "static" / "js" / "grid.dd.js").open("a") as file:
        file.write(" " * prefetch.LEAST_BYTES)
    assert prefetch.scripts(tmp_path) == ("grid.dd.js",)
    monkeypatch.setattr(prefetch, "LEAST_BYTES", 0)
    assert prefetch.scripts(tmp_path) == ("DataFrame.cc.js", "grid.dd.js")
    assert prefetch.scripts(tmp_path / "nothing") == ()


def test_the_installed_streamlit_has_the_parts_that_an_answer_needs() -> None:
    js = Path(streamlit.__file__).parent / "static" / "static" / "js"
    names = prefetch.scripts()
    assert {name.split(".")[0] for name in names} >= {"GraphVizChart", "StreamlitSyntaxHighlighter", "DataFrame"}
    assert len(set(names)) == len(names) and all((js / name).is_file() for name in names)
    assert len(prefetch.link()) < 3500, "a proxy's buffer for all headers is 4 KB"


def test_pages_carry_the_header_and_nothing_else_does() -> None:
    def headers(kind: bytes, status: int = 200, path: str = "/make") -> dict[bytes, bytes]:
        async def inner(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})

        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        asyncio.run(prefetch.Prefetch(inner)({"type": "http", "path": path}, None, send))
        return dict(sent[0]["headers"])

    page = headers(b"text/html; charset=utf-8")
    assert b"GraphVizChart" in page[b"link"] and page[b"link"].count(b"rel=prefetch") == len(prefetch.scripts())
    assert b"link" not in headers(b"text/html", path="/media/uploaded.html")
    assert b"link" not in headers(b"text/javascript") and b"link" not in headers(b"text/html", 401)
