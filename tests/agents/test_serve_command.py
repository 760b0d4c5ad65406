"""`python -m agents.serve`: what it refuses, and that answers end before it does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="pip install 'penknife[agents]'")
pytest.importorskip("uvicorn", reason="pip install 'penknife[agents]'")

from agents.serve.__main__ import key_for, run, settings_from
from agents.serve.settings import ServeError, ServeSettings
from agents.serve.target import open_target
from tests.agents.serving import KEY, client, say, wait_for

ROOT = Path(__file__).resolve().parents[2]


def test_what_cannot_be_served_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, said in (
        (["nothing"], "must be module:name"),
        (["no.such.module:graph"], "no module"),
        (["tests.agents.serve_graph:nothing"], "it has echo, desk, shop"),
        (["tests.agents.serve_graph:lookup"], "cannot be served"),
        (["tests.agents.serve_graph:echo", "--input", "question"], "is for graphs"),
        (["tests.agents.serve_graph:shop", "--input", "qestion"], "choose from question, history"),
        (["tests.agents.serve_graph:shop", "--stream-node", "x"], "no node"),
        (["tests.agents.serve_graph:echo", "--port", "99999"], "--port '99999'"),
        (["tests.agents.serve_graph:echo", "--host", "0.0.0.0"], "PENKNIFE_API_KEY is not set"),
        (["tests.agents.serve_graph:echo", "--host", "example.org"], "PENKNIFE_API_KEY is not set"),
    ):
        assert run(argv) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1, err
    monkeypatch.setenv("PENKNIFE_API_KEY", "short")
    with pytest.raises(ServeError, match="at least 16"):
        key_for(ServeSettings())
    monkeypatch.setenv("MY_KEY", KEY)
    _, settings = settings_from(["x:y", "--host", "::", "--api-key-env", "MY_KEY", "--timeout-s", "5"])
    assert key_for(settings) == KEY and settings.timeout_s == 5.0 and not settings.is_local and ServeSettings(host="::1").is_local
    assert open_target("tests.agents.serve_graph:shop", ServeSettings(name="mine")).name == "mine"


def test_the_command_serves_and_lets_answers_end_on_sigterm() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PENKNIFE_API_KEY": KEY}
    command = [sys.executable, "-m", "agents.serve", "tests.agents.serve_graph:echo", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, 30)
        stream = client(f"http://127.0.0.1:{port}/v1").chat.completions.create(
            model="echo", messages=say("wait 2 a b c d e"), stream=True
        )
        words = []
        for chunk in stream:
            if not words:
                process.send_signal(signal.SIGTERM)
            words.append(chunk.choices[0].delta.content or "")
        assert "".join(words) == "wait 2 a b c d e"
        assert process.wait(10) in (0, -signal.SIGTERM)
        assert process.stderr is not None and "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
