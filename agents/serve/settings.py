"""What a server may be told, checked when it is made; and the error for what it cannot be told."""

from __future__ import annotations

import ipaddress
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ServeError(Exception):
    """A server cannot be started as wanted: one sentence with the value, the choices and the next step."""


class ServeSettings(BaseModel):
    """How a graph or persona is served. Each field is an option of `python -m agents.serve`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    host: str = "127.0.0.1"
    """address to listen on; beyond loopback an API key is required"""
    port: int = Field(default=8080, ge=0, le=65535)
    """port to listen on; 0 takes a free one"""
    api_key_env: str = "PENKNIFE_API_KEY"
    """environment variable that holds the key callers must send; unset means none, on loopback only"""
    name: str | None = None
    """model name that callers give; default: the graph's or persona's own"""
    input: str | None = None
    """field of the state that receives the question; default: question, input, text, query, prompt, or the only text field"""
    output: str | None = None
    """field of the state that gives the answer; default: answer, output, reply, response, result"""
    history: str | None = None
    """field of the state that receives the earlier turns; default: history or messages, where the state has one"""
    stream_node: str | None = None
    """node whose words are streamed as they are decided; default: the graph's answer is sent when it is there"""
    store: str | None = None
    """SQLite file for threads; without one a graph that asks a person cannot be resumed"""
    max_steps: int = Field(default=50, ge=1)
    """steps of one run of a graph"""
    timeout_s: float = Field(default=120.0, gt=0)
    """seconds one request may take"""
    concurrent: int = Field(default=16, ge=1)
    """requests worked on at once"""
    waiting: int = Field(default=64, ge=0)
    """requests that may wait for their turn; further ones are told to come back later"""
    rate: float = Field(default=0.0, ge=0)
    """requests a minute from one address; 0 is no limit"""
    body_bytes: int = Field(default=1 << 20, ge=1)
    """largest request"""
    shutdown_s: float = Field(default=30.0, ge=0)
    """seconds that requests under way get to end after SIGTERM"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.api_key_env.isidentifier():
            raise ValueError(
                f"api_key_env={self.api_key_env!r} is no name of an environment variable; give the name, not the key"
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
