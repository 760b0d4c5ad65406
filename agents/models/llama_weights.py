"""A GGUF model in memory: its weights, its vocabulary as bytes, its tokenizer, and the adapters loaded onto it.

Does: check a file before llama.cpp sees it, load it once, cut text into tokens as the source's tokenizer did, refuse adapters
made for another base. Does not: decode (`agents.models.llama_engine`), or read weights itself.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import Any

from agents.chat import ModelError
from agents.models.chat_template import ChatTemplate
from agents.models.gguf_file import BASE_KEY, EOS_KEY, SOURCE_KEY, GgufFile, verify
from agents.models.gguf_text import TextRules
from agents.models.gguf_trial import survives
from agents.models.llama_library import library

CONTROL, UNKNOWN, UNUSED = 3, 2, 5
"""Token types of `tokenizer.ggml.token_type` that never spell text."""
_SPECIAL = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad", "seperator": "sep", "cls": "cls", "mask": "mask"}


class Weights:
    """One loaded file. Functions of the vocabulary may be called by any thread; `close` when no context is left."""

    def __init__(self, path: Path, *, mmap: bool = True, gpu_layers: int = 0, trusted: bool = False) -> None:
        """`trusted`: a file of unknown origin is not tried in a process of its own first.

        Raises ModelError for a file that is damaged, no model, or more than llama.cpp takes."""
        self.path = path
        self.file = checked(path)
        metadata = self.file.metadata
        if metadata.get("general.type") == "adapter":
            raise ModelError(f"{path}: an adapter, not a model; open its base and name this file in the request's adapters")
        lib = library()
        self._lib, api = lib, lib.api
        if not self.file.sealed and not trusted:
            survives(path)
        parameters = api.llama_model_default_params()
        parameters.n_gpu_layers = gpu_layers
        if not mmap:
            parameters.load_mode = api.LLAMA_LOAD_MODE_NONE
        self.pointer = api.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.pointer:
            raise ModelError(f"{path}: llama.cpp cannot load it ({lib.why('no reason given')}); export it again")
        self._vocab = api.llama_model_get_vocab(self.pointer)
        self.width: int = api.llama_vocab_n_tokens(self._vocab)
        """logits per token"""
        self.context: int = api.llama_model_n_ctx_train(self.pointer)
        """tokens the model was trained to look back on"""
        self.rewinds = not (
            api.llama_model_is_recurrent(self.pointer) or api.llama_model_is_hybrid(self.pointer)
        )  # a recurrent state holds all tokens at once, so no part of a prompt can be taken over
        self.kv_bytes = self._kv_bytes()
        """bytes of keys and values per token, at 16 bits"""
        self._texts: dict[int, str] = {}
        self._adapters: dict[str, Any] = {}
        self.lock = threading.Lock()
        """held while adapters are loaded, or taken into use: llama.cpp walks the list of them"""
        self._readers, self._idle = 0, threading.Condition()
        self._read_vocabulary()

    def _read_vocabulary(self) -> None:
        metadata, api = self.file.metadata, self._lib.api
        types = metadata.get("tokenizer.ggml.token_type") or [1] * self.width
        self.special_ids = [i for i, kind in enumerate(types) if kind in (CONTROL, UNKNOWN)]
        """control tokens: they never spell text and are left out of answers"""
        hidden = set(self.special_ids) | {i for i, kind in enumerate(types) if kind == UNUSED}
        self.spelled = [self._piece(i) for i in range(self.width)]
        """bytes of every token, control tokens by name"""
        self.pieces = [b"" if i in hidden else piece for i, piece in enumerate(self.spelled)]
        """bytes of every token as they appear in an answer"""
        ours = metadata.get(EOS_KEY)
        ends = [i for i in range(self.width) if api.llama_vocab_is_eog(self._vocab, i)] if not ours else [int(i) for i in ours]
        if not ends or not all(0 <= i < self.width for i in ends):
            raise ModelError(f"{self.path}: it has no usable end-of-text token; export it again from a model with eos_token")
        self.eos_ids = ends
        self._rules = TextRules.of(metadata)
        spaced = metadata.get("tokenizer.ggml.add_space_prefix", True) or self._rules.space_before is not None
        # A tokenizer that puts a space before the first word takes one off when it decodes.
        self.strips_space = bool(metadata.get("tokenizer.ggml.model") == "llama" and spaced)
        self.special_tokens = {}
        for theirs, name in _SPECIAL.items():
            token = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
            if isinstance(token, int) and 0 <= token < self.width:
                self.special_tokens[f"{name}_token"] = str(metadata["tokenizer.ggml.tokens"][token])
        source = metadata.get("tokenizer.chat_template")
        self.template = ChatTemplate(source, self.special_tokens) if source else None
        self.source_sha256: str | None = metadata.get(SOURCE_KEY)

    def _kv_bytes(self) -> int:
        api, metadata = self._lib.api, self.file.metadata
        name = metadata.get("general.architecture", "")
        size = api.llama_model_n_embd(self.pointer) // max(1, api.llama_model_n_head(self.pointer))
        widths = [metadata.get(f"{name}.attention.{side}_length", size) for side in ("key", "value")]
        return int(2 * api.llama_model_n_layer(self.pointer) * api.llama_model_n_head_kv(self.pointer) * sum(widths))

    def text(self, token: int) -> str:
        """A single token as text: empty for control tokens, half characters replaced."""
        text = self._texts.get(token)
        if text is None:
            text = "" if token in self.eos_ids else self.pieces[token].decode("utf-8", "replace")
            if self.strips_space and text[:1] == " ":
                text = text[1:]
            self._texts[token] = text
        return text

    def _piece(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            written = self._lib.api.llama_token_to_piece(self._vocab, token, buffer, size, 0, True)
            if written >= 0:
                return buffer.raw[:written]
            size = -written

    def tokenize(self, text: str) -> list[int]:
        """Ids of `text`, added tokens recognised, nothing put before or after it."""
        raw = self._rules.apply(text).encode("utf-8", errors="replace")
        size = len(raw) + 16
        with self._idle:
            if not self.pointer:
                raise ModelError(f"{self.path.name} was closed; open it again")
            self._readers += 1
        try:
            while True:
                ids = (ctypes.c_int32 * size)()
                count = self._lib.api.llama_tokenize(self._vocab, raw, len(raw), ids, size, False, True)
                if count >= 0:
                    return ids[:count]
                size = -count
        finally:
            with self._idle:
                self._readers -= 1
                self._idle.notify_all()

    def adapter(self, path: Path, trusted: bool = False) -> str:
        """The name of the adapter that is in this file now, loaded once; a file that was replaced is another adapter. The one
        before stays until the model is closed: requests that began with it end with it.

        Raises ModelError when it is absent, damaged, or made for another base.
        """
        path = path.resolve()
        with self.lock:
            if not self.pointer:
                raise ModelError(f"{self.path.name} was closed; open it again")
            name = f"{path}:{_stamp(path)}"
            if name not in self._adapters:
                check_adapter(path, self, trusted)
                found = self._lib.api.llama_adapter_lora_init(self.pointer, str(path).encode())
                if not found:
                    why = self._lib.why("no reason given")
                    raise ModelError(f"{path}: llama.cpp cannot load this adapter ({why}); export it again")
                self._adapters[name] = found
        return name

    def loaded(self, name: str) -> Any:
        """llama.cpp's pointer to an adapter, by the name `adapter` gave."""
        return self._adapters[name]

    def close(self) -> None:
        """Free the model and the adapters on it, which go with it, once no other thread cuts text with it."""
        with self.lock, self._idle:
            pointer, self.pointer = self.pointer, None
            while self._readers:
                self._idle.wait()
            if pointer:
                self._adapters.clear()
                self._lib.api.llama_model_free(pointer)


def _stamp(path: Path) -> str:
    try:
        state = path.stat()
    except OSError:
        raise ModelError(f"{path}: there is no such file; give a GGUF adapter") from None
    return f"{state.st_size}:{state.st_mtime_ns}"


def checked(path: Path) -> GgufFile:
    """What the file says about itself, once it is known to be whole. Raises ModelError."""
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file; give a GGUF file")
    return verify(path)


def check_adapter(path: Path, weights: Weights, trusted: bool = False) -> None:
    """Raises ModelError, one sentence, when the file is no adapter for these weights, or (unless `trusted`) fails its trial."""
    base, adapter = weights.file, checked(path)
    if adapter.metadata.get("general.type") != "adapter" or adapter.metadata.get("adapter.type") != "lora":
        raise ModelError(f"{path}: not a LoRA adapter; give a file that export.gguf --lora adapter wrote")
    wanted, found = adapter.metadata.get(BASE_KEY), weights.source_sha256
    if wanted is not None and found is not None and wanted != found:
        raise ModelError(
            f"{path}: made for another base (sha256 {wanted[:12]}…) than {base.path.name} (of {found[:12]}…); "
            "open its own base, or train it on this one"
        )
    theirs, ours = adapter.metadata.get("general.architecture"), base.metadata.get("general.architecture")
    if theirs != ours:
        raise ModelError(f"{path}: made for a {theirs} model, {base.path.name} is {ours}; open its own base")
    shapes = {tensor.name: tensor.shape for tensor in base.tensors}
    for tensor in adapter.tensors:
        name, _, side = tensor.name.rpartition(".")
        if side not in ("lora_a", "lora_b"):
            continue
        shape = shapes.get(name)
        flat = shape is not None and len(shape) == len(tensor.shape) == 2
        fits = flat and shape is not None and (tensor.shape[0] == shape[0] if side == "lora_a" else tensor.shape[1] == shape[1])
        # The two factors of an embedding are stored the other way round.
        if not fits and not (flat and name == "token_embd.weight"):
            raise ModelError(f"{path}: {tensor.name} {tensor.shape} does not fit {base.path.name} ({shape}); open its own base")
    if not adapter.sealed and not trusted:
        survives(base.path, path)
