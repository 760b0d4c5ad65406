"""A transformers tokenizer as a GGUF vocabulary.

Does: find llama.cpp's pre-tokenizer from the regular expressions in the tokenizer itself, write byte-level BPE as model "gpt2"
and BPE over "▁" with byte fallback as model "llama" (no tokenizer.model needed), with token types, merges or scores, begin and
end tokens as transformers really adds them, and what llama.cpp cannot do for itself (`agents.models.gguf_text`).
Does not: prove that the ids agree (`export.prove`), or know models.

Names and regular expressions are llama.cpp's (src/llama-vocab.cpp of 0c1e57098).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from export.errors import ExportError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's token types"""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s|"
    r"\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = "gpt-2's own words"
PRE_TOKENIZERS: dict[tuple[str, ...], str] = {
    (_GPT2,): "gpt-2",
    ("digits one by one", _GPT2): "smollm",
    (_WORDS + r"\p{N}{1,3}" + _REST,): "dbrx",
    (_WORDS + r"\p{N}" + _REST,): "qwen2",
    (_WORDS.replace(r"\p{L}+|", r"[\p{L}\p{M}]+|") + r"\p{N}" + _REST.replace(r"\s\p{L}", r"\s\p{L}\p{M}"),): "qwen35",
    (_CASED % ("", "", ""),): "tekken",
    (_CASED % (_SHORT, _SHORT, "{1,3}"),): "gpt-4o",
    (r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3): "deepseek-v3",
    (r"\p{N}{1,3}", _WORDS + r"\p{N}+" + _REST): "minicpm5",
    (r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST,): "ufakzeka",
}  # fmt: skip
"""What splits text, step by step -> llama.cpp's name of it."""
_WHOLE_WORDS = {"dbrx": "llama-bpe", "minicpm5": "minicpm5", "tekken": "tekken"}
"""Name -> the one for vocabularies that take a whole word as one token when they have it (ignore_merges)."""


@dataclass(frozen=True)
class Vocabulary:
    """What `tokenizer.*` and `penknife.*` keys of a file say."""

    model: str
    """"gpt2" (byte-level BPE) or "llama" (BPE over "▁")"""
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] | None
    scores: list[float] | None
    add_space_prefix: bool | None
    add_bos: bool
    add_eos: bool
    special_ids: dict[str, int]
    """"bos", "eos", "unknown", "padding" -> id"""
    eos_ids: list[int]
    """every id that ends an answer"""
    chat_template: str | list[dict[str, str]] | None
    normalizer: str | None
    strip_after: tuple[str, ...]
    space_before: str | None
    padded: int
    """rows of the embedding that no token has"""

    @property
    def metadata(self) -> dict[str, Any]:
        """Every key the vocabulary puts into a file."""
        from agents.models.gguf_text import NORMALIZER, SPACE_BEFORE, STRIP_AFTER

        keys: dict[str, Any] = {
            "tokenizer.ggml.model": self.model,
            "tokenizer.ggml.pre": self.pre,
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": self.types,
            "tokenizer.ggml.merges": self.merges,
            "tokenizer.ggml.scores": self.scores,
            "tokenizer.ggml.add_space_prefix": self.add_space_prefix,
            "tokenizer.ggml.add_bos_token": self.add_bos,
            "tokenizer.ggml.add_eos_token": self.add_eos,
            "penknife.eos_ids": self.eos_ids or None,
            NORMALIZER: self.normalizer,
            STRIP_AFTER: list(self.strip_after) or None,
            SPACE_BEFORE: self.space_before,
        }
        keys |= {f"tokenizer.ggml.{name}_token_id": number for name, number in self.special_ids.items()}
        if isinstance(self.chat_template, str):
            keys["tokenizer.chat_template"] = self.chat_template
        elif self.chat_template is not None:
            named = {entry["name"]: entry["template"] for entry in self.chat_template}
            keys |= {f"tokenizer.chat_template.{name}": text for name, text in named.items() if name != "default"}
            keys["tokenizer.chat_template"] = named.get("default")
            keys["tokenizer.chat_templates"] = [name for name in named if name != "default"] or None
        return {key: value for key, value in keys.items() if value is not None}


def vocabulary(tokenizer: Any, rows: int, end_ids: list[int], where: str) -> Vocabulary:
    """The vocabulary of a transformers tokenizer for a model whose embedding has `rows` rows.

    `end_ids`: what the generation configuration says ends an answer. Raises ExportError for a tokenizer that llama.cpp cannot
    follow, naming the part.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    if model["type"] != "BPE":
        raise ExportError(f"{where}: its tokenizer is a {model['type']} model; only BPE tokenizers can be exported")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ExportError(f"{where}: its tokenizer marks word parts with a prefix or suffix, which llama.cpp's BPE does not")
    added = {int(token["id"]): token for token in state["added_tokens"]}
    metaspace = bool(model.get("byte_fallback"))
    texts: dict[int, str] = {number: text for text, number in model["vocab"].items()}
    texts |= {number: token["content"] for number, token in added.items()}
    if max(texts) >= rows:
        raise ExportError(
            f"{where}: its tokenizer has ids up to {max(texts)}, its embedding {rows} rows; resize the embedding, or give the "
            "tokenizer it was trained with"
        )
    tokens, types = _tokens(texts, added, rows, tokenizer.unk_token if metaspace else None, metaspace)
    if len(set(tokens)) != rows:
        twice = next(text for place, text in enumerate(tokens) if tokens.index(text) != place)
        raise ExportError(f"{where}: its tokenizer has the token {twice!r} twice, which llama.cpp does not allow")
    if metaspace:
        prefix, space, normalizer = _metaspace(state, added, where)
        merges, scores, pre = None, _scores(model, texts, rows), "default"
    else:
        prefix, space, normalizer = None, None, _normalizer(state, where)
        merges, scores, pre = _merges(model, where), None, pre_tokenizer(state, where)
    begin, end = _adds(tokenizer)
    names = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "padding": tokenizer.pad_token_id}
    names["unknown"] = tokenizer.unk_token_id if metaspace else None
    end_ids = list(dict.fromkeys([*end_ids, *([names["eos"]] if names["eos"] is not None else [])]))
    if names["eos"] is None and end_ids:
        names["eos"] = end_ids[0]
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    return Vocabulary(
        model="llama" if metaspace else "gpt2", pre=pre, tokens=tokens, types=types, merges=merges, scores=scores,
        add_space_prefix=prefix, add_bos=begin, add_eos=end,
        special_ids={name: number for name, number in names.items() if number is not None}, eos_ids=end_ids,
        chat_template=template, normalizer=normalizer,
        strip_after=tuple(token["content"] for token in added.values() if token.get("rstrip")), space_before=space,
        padded=rows - len(texts),
    )  # fmt: skip


def pre_tokenizer(state: dict[str, Any], where: str) -> str:
    """llama.cpp's name for how a byte-level tokenizer (its JSON) splits text. Raises ExportError for one it has none for."""
    steps = _steps(state["pre_tokenizer"], where)
    name = PRE_TOKENIZERS.get(tuple(steps))
    if name is None:
        raise ExportError(
            f"{where}: its tokenizer splits text by {' then '.join(steps) or 'nothing'}, for which llama.cpp has no name; known "
            f"are those of {', '.join(sorted(PRE_TOKENIZERS.values()))}"
        )
    if state["model"].get("ignore_merges"):
        if name not in _WHOLE_WORDS:
            raise ExportError(f"{where}: its tokenizer ignores merges for whole words, which llama.cpp's {name} does not")
        return _WHOLE_WORDS[name]
    if name in ("tekken", "minicpm5"):
        raise ExportError(f"{where}: its tokenizer merges whole words, which llama.cpp's {name} takes as they are")
    return name


def _steps(splitter: dict[str, Any] | None, where: str) -> list[str]:
    if splitter is None:
        return []
    steps: list[str] = []
    for step in splitter["pretokenizers"] if splitter["type"] == "Sequence" else [splitter]:
        kind = step["type"]
        if kind == "ByteLevel" and step.get("add_prefix_space"):
            raise ExportError(f"{where}: its tokenizer puts a space before every text, which llama.cpp's byte-level BPE does not")
        if kind == "ByteLevel":
            steps += [_GPT2] if step.get("use_regex", True) else []
        elif kind == "Digits" and step["individual_digits"]:
            steps.append("digits one by one")
        elif kind == "Split" and (step["behavior"], step["invert"]) in (("Isolated", False), ("Removed", True)):
            steps.append(str(step["pattern"].get("Regex", step["pattern"])))
        else:
            steps.append(json.dumps(step, ensure_ascii=False))
    return steps


def _tokens(
    texts: dict[int, str], added: dict[int, dict[str, Any]], rows: int, unknown: str | None, metaspace: bool
) -> tuple[list[str], list[int]]:
    tokens, types = [], []
    for number in range(rows):
        text, token = texts.get(number), added.get(number)
        if text is None:
            tokens.append(f"[PAD{number}]")
            types.append(UNUSED)
        elif text == unknown:
            tokens.append(text)
            types.append(UNKNOWN)
        elif token is not None:
            # Found in normalized text, where spaces are "▁" already; llama.cpp looks in the text as it is given.
            tokens.append(text.replace("▁", " ") if metaspace and token["normalized"] else text)
            types.append(CONTROL if token["special"] else USER_DEFINED)
        else:
            tokens.append(text)
            types.append(BYTE if metaspace and len(text) == 6 and text.startswith("<0x") and text.endswith(">") else NORMAL)
    return tokens, types


def _merges(model: dict[str, Any], where: str) -> list[str]:
    pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
    spaced = next((pair for pair in pairs if len(pair) != 2 or " " in pair[0] + pair[1]), None)
    if spaced is not None:
        raise ExportError(f"{where}: its tokenizer merges {spaced!r}, and GGUF cannot write a merge with a space in it")
    return [" ".join(pair) for pair in pairs]


def _scores(model: dict[str, Any], texts: dict[int, str], rows: int) -> list[float]:
    """llama.cpp joins the pair whose result scores highest, so a result scores by its earliest merge."""
    earliest: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
        earliest.setdefault(left + right, rank)
    never = float(len(model["merges"]) + rows)
    return [-float(earliest.get(texts.get(number, ""), never)) for number in range(rows)]


def _metaspace(state: dict[str, Any], added: dict[int, dict[str, Any]], where: str) -> tuple[bool, str | None, str | None]:
    """Of a tokenizer that joins words with "▁": whether each stretch of text gets a space, where it gets one unless it begins
    with one ("first", "every" or None), and its Unicode form."""
    prefix, space, replaces, form = False, None, False, None
    for step in _normalizers(state):
        if step["type"] == "Prepend" and step["prepend"] == "▁":
            prefix = True
        elif step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == "▁":
            replaces = True
        elif step["type"] in ("NFC", "NFD", "NFKC", "NFKD"):
            form = step["type"]
        else:
            raise ExportError(f"{where}: its tokenizer normalizes text by {step['type']}, which llama.cpp does not")
    splitter = state["pre_tokenizer"]
    if splitter is not None and splitter["type"] == "Metaspace" and splitter["replacement"] == "▁":
        replaces = True
        space = {"always": "every", "first": "first"}.get(splitter["prepend_scheme"], space)
    elif splitter is not None and (splitter["type"], splitter.get("pattern")) != ("Split", {"String": " "}):
        raise ExportError(f"{where}: its tokenizer splits text by {json.dumps(splitter, ensure_ascii=False)} before “▁”")
    if not replaces:
        raise ExportError(
            f"{where}: its tokenizer has byte fallback but does not write spaces as “▁”; llama.cpp knows no such one"
        )
    lost = next((token["content"] for token in added.values() if token["normalized"] and prefix), None)
    if lost is not None:
        raise ExportError(
            f"{where}: its tokenizer finds the added token {lost!r} after a space only, which llama.cpp does not; "
            'set "normalized" to false for it in tokenizer.json'
        )
    return prefix, space, form


def _normalizer(state: dict[str, Any], where: str) -> str | None:
    form = None
    for step in _normalizers(state):
        if step["type"] not in ("NFC", "NFD", "NFKC", "NFKD"):
            raise ExportError(f"{where}: its tokenizer normalizes text by {step['type']}, which llama.cpp does not")
        form = step["type"]
    return form


def _normalizers(state: dict[str, Any]) -> list[dict[str, Any]]:
    whole = state["normalizer"]
    if whole is None:
        return []
    return list(whole["normalizers"]) if whole["type"] == "Sequence" else [whole]


def _adds(tokenizer: Any) -> tuple[bool, bool]:
    """Whether transformers puts the begin token before a text and the end token after it."""
    plain, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    extra = len(whole) > len(plain)
    return extra and whole[0] == tokenizer.bos_token_id, extra and whole[-1] == tokenizer.eos_token_id
