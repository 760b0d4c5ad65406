"""A real MCP server on standard input and output, for tests. Run: `python tests/agents/mcp_server.py [mode]`.

Modes: "" a good server; "noise" writes junk first.
"""

from __future__ import annotations

import os
import sys
import time

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import BaseModel

server = MCPServer("orders")
CALLS: list[int] = []


class Order(BaseModel):
    id: int
    items: list[str]


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def lookup(order_id: int, language: str = "en") -> str:
    """Status of one order."""
    return f"order {order_id} is on its way ({language})"


@server.tool()
def book(order: Order) -> dict[str, int]:
    """Book an order."""
    CALLS.append(order.id)
    return {"booked": order.id, "items": len(order.items), "calls": len(CALLS)}


@server.tool(name="orders/fail now")
def fail() -> str:
    """Always fails."""
    raise ToolError("the printer is on fire")


@server.tool()
def slow(seconds: float) -> str:
    """Takes its time."""
    time.sleep(seconds)
    return "done"


@server.tool()
def die() -> str:
    """Ends the server."""
    sys.stderr.write("fatal: the server gives up\n")
    sys.stderr.flush()
    os._exit(3)


@server.tool()
def secret(name: str) -> str:
    """A variable of the server's environment."""
    return os.environ.get(name, "unset")


if __name__ == "__main__":
    mode = sys.argv[1] if len(sys.argv) > 1 else ""
    if mode == "noise":
        sys.stdout.write("Welcome!\n\x00{not json\n")
        sys.stdout.flush()
    server.run()
