"""Proof that a GGUF vocabulary gives the ids, and its chat template the text, that transformers gives.

Does: write the vocabulary alone into a temporary file, have llama.cpp load it in a process of its own (a wrong one aborts the
process) and tokenize a battery of texts, render conversations with the template; raise on the first difference.
Does not: look at weights.

    python -m export.prove FILE < texts.json > ids.json       # the child: a JSON list of texts -> a list of lists of ids
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from export.apart import run
from export.battery import battery
from export.errors import ExportError

TIMEOUT_S = 300
_NAMED = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_CONVERSATIONS = (
    (("user", "How many singers are there?"),),
    (("system", "Answer in SQL. "), ("user", " Who's «first»?\n\n")),
    (("user", "One?"), ("assistant", "1"), ("user", '<b>Two</b> & "three" é 你')),
    (("user", ""), ("assistant", "```sql\nSELECT 1;\n```")),
)


@dataclass(frozen=True)
class Proof:
    """What was compared, without a difference."""

    texts: int
    """texts tokenized by both; 0 when llama.cpp is not installed"""
    conversations: int
    """conversations rendered by both; 0 without a chat template"""
    skipped: tuple[str, ...]
    """what was not compared and why: one sentence each"""


def prove(tokenizer: Any, architecture: str, metadata: Mapping[str, Any], where: str) -> Proof:
    """Compare a vocabulary (its GGUF `metadata`) and chat template with the transformers `tokenizer` they were made from.

    Raises ExportError that shows the first difference.
    """
    skipped: list[str] = []
    texts = 0
    if find_spec("llama_cpp") is None:
        skipped.append("the token battery: llama-cpp-python is not installed (pip install 'penknife[gguf]')")
    else:
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        texts = _prove_tokens(tokenizer, architecture, metadata, battery(added), where)
    conversations = _prove_template(tokenizer, metadata, where)
    return Proof(texts, conversations, tuple(skipped))


def _prove_tokens(tokenizer: Any, architecture: str, metadata: Mapping[str, Any], texts: Sequence[str], where: str) -> int:
    from agents.models.gguf_text import TextRules
    from export.gguf_writer import write_vocabulary

    rules = TextRules.of(metadata)
    with tempfile.TemporaryDirectory(prefix="penknife-") as directory:
        file = Path(directory) / "vocabulary.gguf"
        write_vocabulary(file, architecture, metadata)
        found = tokenize_apart(file, [rules.apply(text) for text in texts], where)
    wanted = [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    wrong = [(text, ids, right) for text, ids, right in zip(texts, found, wanted) if ids != right]
    if wrong:
        text, ids, right = wrong[0]
        place = next((i for i, (a, b) in enumerate(zip(ids, right)) if a != b), min(len(ids), len(right)))
        raise ExportError(
            f"{where}: llama.cpp tokenizes {len(wrong)} of {len(texts)} texts differently, first {text[:60]!r}: from token "
            f"{place} {_shown(tokenizer, ids[place:])} instead of {_shown(tokenizer, right[place:])}; this tokenizer cannot be "
            "exported"
        )
    return len(texts)


def _shown(tokenizer: Any, ids: list[int]) -> str:
    return str([tokenizer.convert_ids_to_tokens(number) for number in ids[:5]])


def tokenize_apart(file: Path, texts: Sequence[str], where: str) -> list[list[int]]:
    """Ids llama.cpp gives `texts` with the vocabulary of `file`, special tokens parsed and none added, in a process of its own.

    Raises ExportError when that process fails.
    """
    try:
        child = run("export.prove", str(file.resolve()), input=json.dumps(texts), timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ExportError(f"{where}: llama.cpp did not tokenize {len(texts)} texts within {TIMEOUT_S} s") from None
    if child.returncode != 0:
        said = [line for line in child.stderr.splitlines() if line.strip()]
        raise ExportError(
            f"{where}: llama.cpp does not accept its vocabulary (exit code {child.returncode}: "
            f"{said[-1] if said else 'no message'}); this tokenizer cannot be exported"
        )
    return [list(ids) for ids in json.loads(child.stdout)]


def _prove_template(tokenizer: Any, metadata: Mapping[str, Any], where: str) -> int:
    source = metadata.get("tokenizer.chat_template")
    if source is None:
        return 0
    from agents.chat import Message, ModelError, ToolSpec
    from agents.models.chat_template import ChatTemplate, plain_message

    ids = {f"{name}_token": metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _NAMED.items()}
    tokens = {name: metadata["tokenizer.ggml.tokens"][number] for name, number in ids.items() if number is not None}
    template = ChatTemplate(source, tokens)
    schema = {"type": "object", "properties": {"table": {"type": "string"}}}
    tool = ToolSpec(name="count", description="Count rows.", parameters=schema)
    compared = 0
    for turns in _CONVERSATIONS:
        messages = [Message.model_validate({"role": role, "content": content}) for role, content in turns]
        for prompt, tools in ((True, []), (False, []), (True, [tool])):
            try:
                wanted = tokenizer.apply_chat_template(
                    [plain_message(message) for message in messages], tokenize=False, add_generation_prompt=prompt,
                    tools=[{"type": "function", "function": tool.model_dump()} for tool in tools] or None,
                )  # fmt: skip
            except Exception:  # templates raise for orders of roles they do not know; then ours must raise as well
                wanted = None
            try:
                found = template.render(messages, tools, add_generation_prompt=prompt)
            except ModelError:
                found = None
            if found != wanted:
                raise ExportError(
                    f"{where}: its chat template renders {str(found)[:80]!r} where transformers renders {str(wanted)[:80]!r}; "
                    "simplify the template, or report it"
                )
            compared += wanted is not None
    return compared


def main(argv: Sequence[str]) -> None:
    """The child: load a vocabulary, tokenize the texts on stdin, print their ids."""
    import ctypes

    import llama_cpp

    def log(level: int, text: bytes, data: object) -> None:
        if level >= 4:  # errors
            sys.stderr.write(text.decode("utf-8", "replace"))

    callback = llama_cpp.llama_log_callback(log)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    settings = llama_cpp.llama_model_default_params()
    settings.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(argv[0]).encode(), settings)
    if not model:
        raise SystemExit("the file does not load")
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    out = []
    for text in json.load(sys.stdin):
        raw = text.encode("utf-8")
        room = (llama_cpp.llama_token * (len(raw) + 16))()
        n = llama_cpp.llama_tokenize(vocabulary, raw, len(raw), room, len(room), False, True)
        if n < 0:
            raise SystemExit(f"{text[:60]!r} needs room for {-n} tokens")
        out.append(list(room[:n]))
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
