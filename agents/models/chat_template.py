"""A model's own chat template, rendered as transformers renders it, without transformers.

Does: compile the Jinja text that travels with a model in a sandbox and write a conversation with it, character for character as
`apply_chat_template(..., tokenize=False)` does. Does not: tokenize, find the template, or repair one.

    template = ChatTemplate(text, {"bos_token": "<s>", "eos_token": "</s>"})
    template.render([Message(role="user", content="hi")])
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from agents.chat import Message, ModelError, ToolSpec

if TYPE_CHECKING:
    from jinja2 import Environment


class ChatTemplate:
    """A compiled template; rendering it changes nothing in it, so threads may share one."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """`source`: the Jinja text. `special_tokens`: what it may name (bos_token, eos_token, …); absent ones are empty.

        Raises ModelError when the text is no template.
        """
        from jinja2.exceptions import TemplateError

        self.source, self.special_tokens = source, dict(special_tokens or {})
        try:
            self._compiled = _environment().from_string(source)
        except TemplateError as error:
            raise ModelError(f"the chat template is not valid Jinja ({error}); correct it in the model's source") from None

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        """The prompt's text, up to where the answer begins. `extra` are the template's own switches (enable_thinking=False).

        Raises ModelError when the template refuses these messages, or fails: templates are programs.
        """
        if not messages:
            raise ModelError("there are no messages to write a prompt from; give at least one")
        try:
            return self._compiled.render(
                messages=[plain_message(message) for message in messages],
                tools=[{"type": "function", "function": tool.model_dump()} for tool in tools] or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{**self.special_tokens, **extra},
            )
        except Exception as error:  # templates are programs: they raise what they like
            raise ModelError(f"the chat template refuses these messages ({error}); change the prompt") from None


def plain_message(message: Message) -> dict[str, Any]:
    """A message as chat templates expect it."""
    out: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        out["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.calls
        ]
    if message.call_id is not None:
        out["tool_call_id"] = message.call_id
    return out


def _environment() -> Environment:
    """The sandbox transformers compiles chat templates in, with its filters and functions."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what a model wrote, for training; a prompt just contains it."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

        def _inside(self, caller: Any) -> str:
            return str(caller())

    class Dict:
        """`dict(...)` without the attributes of the type."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    class Namespace(jinja2.utils.Namespace):
        """`namespace(...)` that stores no name beginning with an underscore."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            own, rest = args[0], args[1:]
            values = dict(*rest, **kwargs)
            for name in values:
                Namespace._check(name)
            jinja2.utils.Namespace.__init__(own, values)

        def __setitem__(self, name: str, value: Any) -> None:
            Namespace._check(name)
            super().__setitem__(name, value)

        @staticmethod
        def _check(name: Any) -> None:
            if isinstance(name, str) and name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a chat template may not store {name!r} in a namespace")

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(format: str) -> str:
        return datetime.now().strftime(format)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "dict": Dict(),
        "namespace": Namespace,
    }
    return environment
