"""A persona's prompt with variables: `"Answer as {role}. Today is {date}."`.

Does: find the variables when the persona is made, fill them in, refuse unset and unknown ones, say which of them changes between
calls in front of text that does not (all of that text is then read anew by the model each time).
Does not: run code in braces: only plain names; `{{` and `}}` are braces.
"""

from __future__ import annotations

import difflib
import string
import threading
from collections.abc import Mapping
from typing import Any

from agents.tools import PersonaError

WORTH_A_WARNING = 40
"""Characters of unchanging text behind a changing variable from which the layout is worth a warning (about ten tokens)."""


class Template:
    """One prompt text. `names` are its variables in order. Raises PersonaError for braces that hold no plain name."""

    def __init__(self, text: str, owner: str) -> None:
        self.text, self.owner = text, owner
        try:
            self._parts = [(literal, name) for literal, name, spec, conversion in string.Formatter().parse(text)
                           if self._plain(name, spec, conversion)]  # fmt: skip
        except ValueError as error:
            raise PersonaError(
                f"the prompt of {owner!r} has an unpaired brace ({error}); write {{{{ and }}}} for braces"
            ) from None
        self.names = tuple(dict.fromkeys(name for _, name in self._parts if name is not None))
        self._last: dict[str, str] = {}
        self._warned = False
        self._lock = threading.Lock()

    def _plain(self, name: str | None, spec: str | None, conversion: str | None) -> bool:
        if name is not None and (not name.isidentifier() or spec or conversion):
            raise PersonaError(
                f"the prompt of {self.owner!r} has {{{name}{':' + spec if spec else ''}}}, which is no variable; "
                "write {{ and }} for braces"
            )
        return True

    def fill(self, values: Mapping[str, Any]) -> str:
        """The text with every variable filled in. Raises PersonaError for one that is unset (None counts) or not in it."""
        if not self.names and not values:
            return self._parts[0][0] if len(self._parts) == 1 else "".join(literal for literal, _ in self._parts)
        for name in self.names:
            if values.get(name) is None:
                raise PersonaError(f"the prompt of {self.owner!r} needs {name!r}, which is not set; call it with {name}=…")
        for name in values:
            if name not in self.names:
                near = difflib.get_close_matches(name, self.names, n=1)
                choices = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(self.names) or 'none'}"
                raise PersonaError(f"the prompt of {self.owner!r} has no variable {name!r}; {choices}")
        return "".join(literal + (str(values[name]) if name is not None else "") for literal, name in self._parts)

    def changing_before_static(self, values: Mapping[str, Any]) -> str | None:
        """A sentence, once, when a variable that differs from the last call stands before text that is always the same."""
        if not self.names or self._warned:
            return None
        with self._lock:
            changed = {name for name in self.names if name in self._last and self._last[name] != str(values[name])}
            self._last = {name: str(values[name]) for name in self.names}
            for at, (_, name) in enumerate(self._parts):
                behind = sum(len(literal) for literal, _ in self._parts[at + 1 :])
                if name in changed and behind >= WORTH_A_WARNING:
                    self._warned = True
                    return (
                        f"prompt layout of {self.owner!r}: {{{name}}} changes between calls and stands before {behind} "
                        "characters that do not; move it to the end of the prompt, or the model reads them anew every time"
                    )
        return None
