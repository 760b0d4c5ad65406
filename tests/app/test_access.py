"""Who may open the app: addresses, the password, cookies; through Starlette's own client, and a real process that must refuse."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from app import access
from app.places import PlaceError, inside, own_dir

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.9.1", "unix:///tmp/app.sock"])
def test_this_machine_needs_no_password(address: str) -> None:
    assert access.refusal(address, None) is None


@pytest.mark.parametrize("address", [None, "", "0.0.0.0", "::", "192.168.1.4", "example.org", "127.0.0.1.example.org"])
def test_any_other_address_needs_one(address: str | None) -> None:
    assert access.PASSWORD in (access.refusal(address, None) or "")
    assert access.refusal(address, "secret") is None


@pytest.mark.parametrize("address", ["0.0.0.0", ""])
def test_the_app_refuses_to_start_there(address: str, tmp_path: Path) -> None:
    settings = {key: value for key, value in os.environ.items() if key != access.PASSWORD}
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app" / "main.py"), "--server.port", "0"]
    ended = subprocess.run(
        [*command, f"--server.address={address}"], cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert len([line for line in ended.stderr.splitlines() if line.startswith("app: error: ")]) == 1
    assert "Traceback" not in ended.stderr


def test_the_password_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(access.PASSWORD, raising=False)
    assert access.password() is None
    monkeypatch.setenv(access.PASSWORD, "")
    assert access.password() is None
    monkeypatch.setenv(access.PASSWORD, "pass wörd")
    assert access.password() == "pass wörd"
    assert access.same("pass wörd", "pass wörd") and not access.same("pass word", "pass wörd")


@pytest.fixture
def inner() -> Any:
    from starlette.applications import Starlette
    from starlette.responses import HTMLResponse, PlainTextResponse
    from starlette.routing import Route, WebSocketRoute

    async def home(request: Any) -> Any:
        return HTMLResponse("<html>inside</html>")

    async def upload(request: Any) -> Any:
        return PlainTextResponse("taken")

    async def socket(ws: Any) -> None:
        await ws.accept()
        await ws.send_text("inside")
        await ws.close()

    return Starlette(
        routes=[
            Route("/", home),
            Route("/_stcore/upload_file", upload, methods=["PUT"]),
            WebSocketRoute("/_stcore/stream", socket),
        ]
    )


def client(app: Any, address: str = "127.0.0.1") -> Any:
    from starlette.testclient import TestClient

    return TestClient(app, client=(address, 1), follow_redirects=False)


def test_without_a_password_others_are_turned_away(inner: Any) -> None:
    gate = access.Gate(inner, None)
    assert client(gate).get("/").text == "<html>inside</html>"
    assert client(gate, "10.1.2.3").get("/").status_code == 403
    with pytest.raises(Exception), client(gate, "10.1.2.3").websocket_connect("/_stcore/stream") as socket:  # noqa: B017
        socket.receive_text()


def test_nothing_is_served_before_the_password(inner: Any) -> None:
    gate = access.Gate(inner, "open sesame")
    visitor = client(gate, "10.1.2.3")
    page = visitor.get("/")
    assert page.status_code == 401 and 'type="password"' in page.text and "inside" not in page.text
    assert visitor.put("/_stcore/upload_file", content=b"x").status_code == 401
    assert visitor.get("/_stcore/health").status_code == 401
    with pytest.raises(Exception), visitor.websocket_connect("/_stcore/stream") as socket:  # noqa: B017
        socket.receive_text()
    for cookie in ("", "x", "penknife_pass=1; a", "0" * 64):
        visitor.cookies.set(access.PASS_COOKIE, cookie)
        assert visitor.get("/").status_code == 401


def test_the_right_password_opens_and_a_wrong_one_is_slow(inner: Any) -> None:
    gate = access.Gate(inner, "open sesame")
    visitor = client(gate, "10.1.2.3")
    began = time.monotonic()
    wrong = visitor.post("/login", data={"password": "open sesam"})
    assert wrong.status_code == 401 and "not the password" in wrong.text
    assert time.monotonic() - began >= access.SLOW_S * 0.9
    assert visitor.post("/login", content=b"password=" + b"a" * 10_000).status_code == 413
    right = visitor.post("/login", data={"password": "open sesame"})
    assert right.status_code == 303
    assert "HttpOnly" in right.headers["set-cookie"] and "SameSite=Strict" in right.headers["set-cookie"]
    assert visitor.get("/").text == "<html>inside</html>"
    with visitor.websocket_connect("/_stcore/stream") as socket:
        assert socket.receive_text() == "inside"


def test_every_browser_gets_a_key_once(inner: Any) -> None:
    gate = access.Gate(inner, None)
    keys = set()
    for _ in range(3):
        visitor = client(gate)
        given = re.search(rf"{access.OWNER_COOKIE}=([0-9a-f]{{32}});", visitor.get("/").headers["set-cookie"])
        assert given is not None
        keys.add(given[1])
        assert "set-cookie" not in visitor.get("/").headers
    assert len(keys) == 3


@pytest.mark.parametrize("key", ["../../etc", "", "A" * 32, "0" * 31, "0" * 33, "/" * 32, "0" * 31 + "\n"])
def test_a_made_up_key_names_no_directory(key: str, runs: Path) -> None:
    assert access.owner_in({access.OWNER_COOKIE: key}) is None
    with pytest.raises(PlaceError):
        own_dir(key)
    assert not list(runs.iterdir())


def test_a_link_out_of_a_directory_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "way").symlink_to(tmp_path / "secret")
    assert inside(tmp_path / "in", "fine.toml").name == "fine.toml"
    with pytest.raises(PlaceError):
        inside(tmp_path / "in", "way")
