"""Chat templates that refuse system messages, made to take them: tasks write one.

Does: try, and if need be put the system message in front of the user's. Does not: load or save tokenizers.
"""

from __future__ import annotations

from typing import Any

SYSTEM_INTO_USER = (
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set first = {'role': 'user', 'content': messages[0]['content'] + '\n\n' + messages[1]['content']} -%}"
    "{%- set messages = [first] + messages[2:] -%}"
    "{%- endif -%}"
)


def accept_system_turns(tokenizer: Any) -> bool:
    """Whether the tokenizer's template had to be changed. One without any template is left alone."""
    from jinja2.exceptions import TemplateError

    if tokenizer.chat_template is None:
        return False
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    try:
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return False
    except TemplateError:
        tokenizer.chat_template = SYSTEM_INTO_USER + tokenizer.chat_template
        return True
