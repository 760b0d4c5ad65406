"""What an answer is shown with, fetched by the browser while its reader still reads the page.

Does: name the scripts of Streamlit that a first answer needs (graph, code, table: 4 MB, loaded only when first shown) in a `Link`
header of every page, so that the browser fetches them when it has nothing else to do (RFC 8288, `rel=prefetch`).
Does not: serve them, or fail where a release of Streamlit names its scripts otherwise: then they load when they are shown.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

SHOWN = ("GraphVizChart", "StreamlitSyntaxHighlighter", "DataFrame")
"""Streamlit's large parts in the order an answer shows them."""
ELSEWHERE = ("/media", "/component", "/_stcore", "/static", "/app/")
"""Paths whose HTML, if any, is no page of the app."""
LEAST_BYTES = 40_000
"""Smaller scripts are left to their moment: each request costs the server some of the first page's time."""
HEAD_BYTES = 1 << 14
"""A script's imports stand at its beginning."""
_IMPORT = re.compile(r"""(?:from|import)\s*["']\./([\w.\-]+\.js)["']""")
_ENTRY = re.compile(r"""src=["']\./static/js/([\w.\-]+\.js)["']""")


def scripts(static: Path | None = None) -> tuple[str, ...]:
    """Names of the large scripts among `SHOWN` and all they import, less those that every page loads; () where none is found."""
    if static is None:
        import streamlit

        static = Path(streamlit.__file__).parent / "static"
    js = static / "static" / "js"
    try:
        entry = _ENTRY.findall((static / "index.html").read_text(encoding="utf-8"))
        known = {path.name.split(".")[0]: path.name for path in sorted(js.glob("*.js"), reverse=True)}
    except OSError:
        return ()
    loaded = set(reached(js, entry))
    needed = (name for name in reached(js, [known[part] for part in SHOWN if part in known]) if name not in loaded)
    return tuple(name for name in needed if (js / name).stat().st_size >= LEAST_BYTES)


def reached(js: Path, names: list[str]) -> list[str]:
    """These scripts and those they import, directly or not, each once; an import of its own follows its importer."""
    found: dict[str, None] = {}
    todo = names[::-1]
    while todo:
        name = todo.pop()
        if name in found or not (js / name).is_file():
            continue
        found[name] = None
        with (js / name).open("rb") as file:
            todo += _IMPORT.findall(file.read(HEAD_BYTES).decode("utf-8", "replace"))[::-1]
    return list(found)


@cache
def link() -> bytes:
    """The header's value; empty where there is nothing to fetch."""
    return ", ".join(f"<./static/js/{name}>; rel=prefetch; as=script" for name in scripts()).encode()


class Prefetch:
    """ASGI middleware that adds `link` to the app's pages, answered well."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope.get("path", "/").startswith(ELSEWHERE):
            await self._app(scope, receive, send)
            return

        async def named(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                headers = list(message.get("headers", ()))
                html = any(name.lower() == b"content-type" and value.startswith(b"text/html") for name, value in headers)
                if html and link():
                    message = {**message, "headers": [*headers, (b"link", link())]}
            await send(message)

        await self._app(scope, receive, named)


def middleware() -> list[Any]:
    """As Starlette wants it."""
    from starlette.middleware import Middleware

    return [Middleware(Prefetch)]
