"""The one exception of export for a user's error."""

from __future__ import annotations


class ExportError(Exception):
    """A source that cannot be exported, or a file that is not what it claims: one sentence with the value and the next step."""
