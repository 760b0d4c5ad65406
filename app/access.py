"""Who may open the app: this machine alone, or whoever knows the password.

Does: refuse to start on an address that others can reach unless a password is set; without one let in connections of this machine
only; with one ask for it before anything else is served (pages, uploads, websockets) and compare it in constant time; give every
browser a key of its own, under which its threads and uploads are kept (`app.places`).
Does not: encrypt (put a proxy with TLS in front of another address) or know users by name.

The password is PENKNIFE_APP_PASSWORD of the environment, or that key in Streamlit's secrets file.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import re
import secrets
import sys
import time
from html import escape
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

PASSWORD = "PENKNIFE_APP_PASSWORD"
OWNER_COOKIE = "penknife_browser"
PASS_COOKIE = "penknife_pass"
LOGIN = "/login"
FORM_BYTES = 4096
SLOW_S = 1.0
"""How long the answer to a wrong password takes; all wrong tries wait in one line."""
_OWNER = re.compile(r"[0-9a-f]{32}")


def password() -> str | None:
    """The password that is set; None where there is none. An empty one counts as none."""
    found = os.environ.get(PASSWORD, "")
    if not found:
        import streamlit as st

        try:
            found = str(st.secrets.get(PASSWORD, ""))
        except FileNotFoundError:
            found = ""
    return found or None


def is_local(address: str | None) -> bool:
    """Whether an address is reached from this machine alone. None and "" mean every address there is."""
    if not address:
        return False
    if address.startswith("unix:") or address.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False


def refusal(address: str | None, known: str | None) -> str | None:
    """Why the app may not start there, in one sentence; None when it may."""
    if is_local(address) or known is not None:
        return None
    shown = f"address {address!r}" if address else "every address"
    return (
        f"the app would be open to others on {shown} without a password; set {PASSWORD} (environment or "
        ".streamlit/secrets.toml), or leave --server.address at 127.0.0.1"
    )


def allow_start() -> None:
    """End the process with one line and status 2 where `refusal` has a reason."""
    from streamlit import config

    why = refusal(config.get_option("server.address"), password())
    if why is not None:
        sys.stderr.write(f"app: error: {why}\n")
        sys.stderr.flush()
        raise SystemExit(2)


def same(given: str, known: str) -> bool:
    """Whether two passwords are equal; the time it takes says nothing about where they differ."""
    return hmac.compare_digest(hashlib.sha256(given.encode()).digest(), hashlib.sha256(known.encode()).digest())


def reported(error: Exception) -> bool:
    """A bug in a page: its traceback goes to the log, one sentence to the page."""
    import streamlit as st

    logging.getLogger("penknife.app").error("a page failed", exc_info=error)
    st.error("This page failed because of a bug; the details are in the terminal the app was started from. Reload to go on.")
    return True


def middleware() -> list[Any]:
    """The gate, as Starlette wants it."""
    from starlette.middleware import Middleware

    return [Middleware(Gate, known=password())]


def cookies_of(scope: dict[str, Any]) -> dict[str, str]:
    """The cookies of a request; a damaged header has none."""
    jar: SimpleCookie = SimpleCookie()
    for name, value in scope.get("headers", ()):
        if name == b"cookie":
            try:
                jar.load(value.decode("latin-1"))
            except CookieError:
                continue
    return {name: morsel.value for name, morsel in jar.items()}


def new_owner() -> str:
    """A key nobody has and nobody can guess."""
    return secrets.token_hex(16)


def owner_in(cookies: Any) -> str | None:
    """The browser's key, None where there is none of the right form: it becomes the name of a directory."""
    found = cookies.get(OWNER_COOKIE)
    return found if isinstance(found, str) and _OWNER.fullmatch(found) else None


class Gate:
    """ASGI middleware before everything else. `known` None: only this machine may connect."""

    def __init__(self, app: Any, known: str | None) -> None:
        import asyncio

        self._app, self._known = app, known
        self._key = secrets.token_bytes(32)
        self._wrong = asyncio.Lock()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if self._known is None:
            client = scope.get("client")
            if client is not None and not is_local(client[0]) and client[0] != "testclient":
                await _refuse(
                    scope, receive, send, 403, f"This app has no password, so it is open to its own machine only. Set {PASSWORD}."
                )
                return
        elif not self._passes(scope):
            if scope["type"] == "http" and scope["path"] == LOGIN and scope["method"] == "POST":
                await self._login(scope, receive, send)
            elif scope["type"] == "http" and scope["method"] == "GET" and not scope["path"].startswith("/_stcore"):
                await _page(send, 401, _form())
            else:
                await _refuse(scope, receive, send, 401, "The password is needed first.")
            return
        elif scope["type"] == "http" and scope["path"] == LOGIN:
            await _redirect(send, [])
            return
        await self._app(scope, receive, self._marking(scope, send))

    def _token(self) -> str:
        """Proof of having given the password; good until the app ends."""
        return hmac.new(self._key, b"admitted", hashlib.sha256).hexdigest()

    def _passes(self, scope: dict[str, Any]) -> bool:
        return hmac.compare_digest(cookies_of(scope).get(PASS_COOKIE, "").encode(), self._token().encode())

    async def _login(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        import asyncio

        body = b""
        while True:
            part = await receive()
            body += part.get("body", b"")
            if len(body) > FORM_BYTES:
                await _refuse(scope, receive, send, 413, "That is no password.")
                return
            if not part.get("more_body"):
                break
        given = parse_qs(body.decode("utf-8", "replace")).get("password", [""])[0]
        assert self._known is not None
        if same(given, self._known):
            await _redirect(send, [_cookie(PASS_COOKIE, self._token())])
            return
        async with self._wrong:
            began = time.monotonic()
            await asyncio.sleep(max(0.0, SLOW_S - (time.monotonic() - began)))
        await _page(send, 401, _form("That is not the password."))

    def _marking(self, scope: dict[str, Any], send: Any) -> Any:
        """`send` that gives a browser without a key one, with the first page."""
        if scope["type"] != "http" or owner_in(cookies_of(scope)) is not None:
            return send

        async def marked(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                if any(name.lower() == b"content-type" and value.startswith(b"text/html") for name, value in headers):
                    message = {**message, "headers": [*headers, _cookie(OWNER_COOKIE, new_owner())]}
            await send(message)

        return marked


def _cookie(name: str, value: str) -> tuple[bytes, bytes]:
    return b"set-cookie", f"{name}={value}; Path=/; HttpOnly; SameSite=Strict".encode()


async def _refuse(scope: dict[str, Any], receive: Any, send: Any, status: int, why: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": why[:120]})
        return
    await _page(send, status, f"<p>{escape(why)}</p>")


async def _redirect(send: Any, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": 303, "headers": [(b"location", b"./"), *headers]})
    await send({"type": "http.response.body", "body": b""})


async def _page(send: Any, status: int, inside: str) -> None:
    body = _FRAME.replace("INSIDE", inside).encode()
    headers = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"cache-control", b"no-store"),
        (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _form(wrong: str = "") -> str:
    said = f'<p role="alert">{escape(wrong)}</p>' if wrong else ""
    return (
        f'<form method="post" action="login"><label for="p">Password</label><input id="p" name="password" type="password" '
        f'autocomplete="current-password" autofocus required>{said}<button>Open</button></form>'
    )


_FRAME = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>Penknife</title><style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; display: grid; place-items: center; min-height: 90vh; margin: 1rem }
main { width: min(22rem, 100%) } form { display: grid; gap: .6rem } input, button { font: inherit; padding: .5rem }
</style><main><h1>Penknife</h1>INSIDE</main></html>"""
