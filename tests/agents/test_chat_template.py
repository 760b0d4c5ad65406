"""Chat templates are rendered character for character as transformers renders them."""

from __future__ import annotations

from typing import Any

import pytest

from agents.chat import Message, ModelError, ToolCall, ToolSpec
from agents.models.chat_template import ChatTemplate, plain_message
from tests.export.tiny_families import CHATML, GEMMA_CHAT, INST, LLAMA3_CHAT, PHI3_CHAT

TOOLS = (
    "{%- if tools %}{{- 'TOOLS ' }}{%- for tool in tools %}{{- tool | tojson }}{% endfor %}\n"
    "{{- tools | tojson(indent=2) }}{%- endif %}"
    "{%- for m in messages %}\n"
    "    {%- if m.role == 'tool' and not loop.first %}{{- '<tool ' + (m.tool_call_id | default('none')) + '>' + m.content }}"
    "{%- elif m.tool_calls %}{%- for call in m.tool_calls %}{{- call.function.name + call.function.arguments | tojson }}"
    "{%- endfor %}"
    "{%- else %}{{- m.role + ': ' + m.content + '\\n' }}{%- endif %}\n"
    "{%- endfor %}"
)  # fmt: skip
CONTROL = (
    "{% set ns = namespace(found=false, n=0) %}"
    "{% for m in messages %}\n"
    "    {% if m['role'] == 'system' %}{% continue %}{% endif %}\n"
    "    {% set ns.n = ns.n + 1 %}\n"
    "    {% generation %}{{ bos_token }}{{ m['content'] | trim }}{{ eos_token }}{% endgeneration %}\n"
    "    {% if ns.n > 2 %}{% break %}{% endif %}\n"
    "{% endfor %}\n"
    "{{ dict(a=1) | tojson }}{{ strftime_now('%Y') }}{% if enable_thinking is defined and not enable_thinking %}<no>{% endif %}"
    "{{ nothing_of_that_name }}{{ documents }}\n"
)
TURNS = (
    Message(role="system", content="Be <brief> & \"kind\" — ja, 'größer'"),
    Message(role="user", content="  where is 17?\n"),
    Message(role="assistant", calls=(ToolCall(id="c1", name="lookup", arguments={"order": 17, "note": "é<&>"}),)),
    Message(role="tool", content="shipped", call_id="c1"),
    Message(role="user", content="thanks"),
)
LOOKUP = ToolSpec(name="lookup", description="Status <of> an order", parameters={"type": "object", "properties": {"order": {}}})
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL)


@pytest.mark.parametrize("source", [CHATML, INST, LLAMA3_CHAT, GEMMA_CHAT, PHI3_CHAT, TOOLS, CONTROL],
                         ids=["chatml", "inst", "llama3", "gemma", "phi3", "tools", "control"])  # fmt: skip
@pytest.mark.parametrize("tools", [(), (LOOKUP,)], ids=["", "tools"])
@pytest.mark.parametrize("prompt", [True, False])
def test_the_text_is_transformers(source: str, tools: tuple[ToolSpec, ...], prompt: bool, tokenizer: Any) -> None:
    described = [{"type": "function", "function": tool.model_dump()} for tool in tools] or None
    for turns in (TURNS, TURNS[1:2], TURNS[:2]):
        expected = tokenizer.apply_chat_template(
            [plain_message(turn) for turn in turns],
            tools=described,
            chat_template=source,
            tokenize=False,
            add_generation_prompt=prompt,
            enable_thinking=False,
        )
        assert ChatTemplate(source, SPECIAL).render(turns, tools, prompt, enable_thinking=False) == expected
    assert expected


def test_a_template_may_refuse_and_the_sentence_says_why() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ModelError, match="roles must alternate"):
        template.render(TURNS)


def test_what_is_no_template_is_refused() -> None:
    with pytest.raises(ModelError, match="not valid Jinja"):
        ChatTemplate("{% for m in messages %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(_x=1) }}",
        "{{ dict.__init__.__globals__ }}",
    ],
)
def test_templates_run_in_a_sandbox(source: str) -> None:
    with pytest.raises(ModelError):
        ChatTemplate(source).render(TURNS)
    assert ChatTemplate("{{ 1 }}").render(TURNS) == "1"


def test_no_messages_is_a_sentence() -> None:
    with pytest.raises(ModelError, match="at least one"):
        ChatTemplate("x").render(())
