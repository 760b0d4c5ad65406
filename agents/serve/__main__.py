"""Serve a graph or a persona: `python -m agents.serve module:graph --port 8080`; `--help` lists every option.

Does: read the command line, refuse what cannot work before it listens, listen until SIGINT or SIGTERM, let requests end.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from agents.chat import ModelError
from agents.route import GraphError
from agents.serve.settings import ServeError, ServeSettings
from agents.tools import PersonaError


def settings_from(argv: Sequence[str] | None) -> tuple[str, ServeSettings]:
    """("module:name", settings) of a command line. Raises ServeError."""
    parser = argparse.ArgumentParser(
        prog="python -m agents.serve", description="serve a graph or a persona over the OpenAI protocol"
    )
    parser.add_argument("target", help="module:name of an AgentGraph, a Persona or a cascade")
    for name, info in ServeSettings.model_fields.items():
        default = "" if info.default is None else f" (default: {info.default})"
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, default=None, help=f"{info.description}{default}")
    given: dict[str, Any] = vars(parser.parse_args(argv))
    target = given.pop("target")
    try:
        return target, ServeSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "settings"
        raise ServeError(f"{option} {first['input']!r}: {first['msg'].removeprefix('Value error, ')}") from None


def key_for(settings: ServeSettings) -> str | None:
    """The key callers must send. Raises ServeError when one is needed and not set."""
    key = os.environ.get(settings.api_key_env) or None
    if key is None and not settings.is_local:
        raise ServeError(
            f"--host {settings.host} can be reached from elsewhere, and {settings.api_key_env} is not set; set it to "
            "the key that callers must send, or listen on 127.0.0.1"
        )
    if key is not None and len(key) < 16:
        raise ServeError(f"the key in {settings.api_key_env} has {len(key)} characters; take at least 16")
    return key


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until told to stop."""
    target_name, settings = settings_from(argv)
    key = key_for(settings)
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ServeError(f"{error}; install it with: pip install 'penknife[agents]'") from None
    from agents.serve.app import make_app
    from agents.serve.target import open_target

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr)
    target = open_target(target_name, settings)
    config = uvicorn.Config(
        make_app(target, settings, key),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(settings.shutdown_s),
        h11_max_incomplete_event_size=64 << 10,
    )
    uvicorn.Server(config).run()


def run(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0; 2 with one line for what cannot be served."""
    try:
        main(argv)
    except (ServeError, PersonaError, GraphError, ModelError) as error:
        sys.stderr.write(f"agents.serve: error: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run())
