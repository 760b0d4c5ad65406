"""What an ONNX directory on disk is, found out before a session is made of it.

Does: find graph, tokenizer, chat template, end tokens, context and card; refuse a card of other weights.
Does not: load a graph.

`penknife.json`, which `export.onnx` writes, says: source_sha256, eos_ids, context, kv_heads, head_size. A directory of
onnxruntime-genai's builder without it is read by its genai_config.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.card import FILE_NAME, Card
from agents.chat import ModelError
from agents.models.chat_template import ChatTemplate

FACTS_FILE = "penknife.json"
GENAI_FILE = "genai_config.json"


class FastTokenizer:
    """tokenizer.json by the `tokenizers` package, with the attributes of a transformers tokenizer that `Engine` asks for."""

    def __init__(self, file: Path) -> None:
        """Raises ModelError when the file is absent or damaged."""
        from tokenizers import Tokenizer

        try:
            self.backend_tokenizer: Any = Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelError(f"{file}: is not there; copy the whole directory again") from None
        except Exception as error:  # the package raises plain Exceptions
            raise ModelError(f"{file}: cannot be read ({str(error)[:120]}); copy the directory again") from None
        self.backend_tokenizer.no_padding()
        self.backend_tokenizer.no_truncation()
        self.added_tokens_decoder: dict[int, Any] = dict(self.backend_tokenizer.get_added_tokens_decoder())
        self.eos_token_id: int | None = None

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    def convert_ids_to_tokens(self, token: int) -> str | None:
        found: str | None = self.backend_tokenizer.id_to_token(token)
        return found

    def ids(self, text: str) -> list[int]:
        """As transformers gives them with add_special_tokens=False."""
        found: list[int] = self.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def text(self, ids: Sequence[int]) -> str:
        """Without special tokens."""
        return str(self.backend_tokenizer.decode(list(ids), skip_special_tokens=True))


@dataclass(frozen=True)
class OnnxDirectory:
    """A directory that can be opened."""

    path: Path
    file: Path
    """the graph"""
    heads: tuple[int, int] | None
    """(key/value heads, head size), where the directory says so"""
    eos_ids: tuple[int, ...]
    context: int | None
    tokenizer: FastTokenizer
    template: ChatTemplate | None
    card: Card | None
    source_sha256: str | None
    """`sha256_of_weights` of what it was exported from"""

    @classmethod
    def read(cls, path: Path) -> OnnxDirectory:
        """Raises ModelError, one sentence, for a directory that cannot be run; CardError for a card of other weights."""
        given = path.name if path.is_file() and path.suffix == ".onnx" else None
        if given is not None:
            path = path.parent
        if not path.is_dir():
            raise ModelError(f"{path}: is no directory; give one that export.onnx wrote")
        facts, genai = _json(path / FACTS_FILE), _json(path / GENAI_FILE)
        model = genai.get("model", {})
        decoder: Any = model.get("decoder", {}) if isinstance(model, dict) else None
        if not isinstance(decoder, dict):
            raise ModelError(f"{path / GENAI_FILE}: its model is no JSON object with a decoder in it; export the model again")
        file = path / str(decoder.get("filename", "model.onnx"))
        if given is not None and given != file.name:
            raise ModelError(f"{path / given}: is not the graph this directory runs; give {path}, which runs {file.name}")
        if file.parent != path or not file.is_file():
            raise ModelError(f"{path}: no {file.name} there; give a directory that export.onnx wrote")
        card = Card.load(path) if (path / FILE_NAME).is_file() else None
        ends = facts.get("eos_ids", model.get("eos_token_id"))
        eos_ids = tuple(ends) if isinstance(ends, list) else (ends,)
        if not all(isinstance(end, int) for end in eos_ids) or not eos_ids:
            raise ModelError(f"{path}: says no end-of-text token; set eos_token_id in {GENAI_FILE}")
        heads: Any = (facts.get("kv_heads", decoder.get("num_key_value_heads")), facts.get("head_size", decoder.get("head_size")))
        settings = _json(path / "tokenizer_config.json")
        tokenizer = FastTokenizer(path / "tokenizer.json")
        return cls(
            path=path,
            file=file,
            heads=heads if all(isinstance(number, int) and number > 0 for number in heads) else None,
            eos_ids=eos_ids,
            context=facts.get("context", model.get("context_length")),
            tokenizer=tokenizer,
            template=_template(path, settings),
            card=card,
            source_sha256=facts.get("source_sha256") or (card.file.source_sha256 if card is not None and card.file else None),
        )


def _template(path: Path, settings: dict[str, Any]) -> ChatTemplate | None:
    file = path / "chat_template.jinja"
    try:
        source = file.read_text(encoding="utf-8") if file.is_file() else settings.get("chat_template")
    except ValueError as error:
        raise ModelError(f"{file}: is not UTF-8 ({error}); export the model again") from None
    if isinstance(source, list):  # several named ones
        source = next((entry["template"] for entry in source if entry.get("name") == "default"), None)
    if source is None:
        return None
    special = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"):
        token = settings.get(name)
        if token is not None:
            special[name] = str(token["content"] if isinstance(token, dict) else token)
    return ChatTemplate(source, special)


def _json(file: Path) -> dict[str, Any]:
    """An object, empty when the file is absent. Raises ModelError for a damaged one."""
    if not file.is_file():
        return {}
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read ({error}); export the model again") from None
    if not isinstance(read, dict):
        raise ModelError(f"{file}: holds no JSON object; export the model again")
    return read
