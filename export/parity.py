"""How far a file's next-token distributions are from its source's.

Does: choose texts (the task's own prompts and answers, and one that runs past any sliding window), write down what the source
says about them in float32 torch (every logit, the ids of a battery of strings and of its chat prompts), compare a file with it.
Does not: start processes (`export.gate`) or judge (`export.gate`): it measures.

A reference is a directory: logits.npy (N, V) float32, one row per compared position, and reference.json. Nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from agents.chat import Message
from export.errors import ExportError

if TYPE_CHECKING:
    import numpy as np

    from agents.models.hf import TransformersModel

REFERENCE_VERSION = 2
LONG_TOKENS = 512
"""Most positions compared in the long text (its last ones) beside conversations."""
PAST_WINDOW, LONGEST = 256, 8192
"""Tokens the long text goes on after a sliding window, and its greatest length."""
LOGITS_BYTES = 128 * 1024**2
"""Room for the logits of a reference: a mean over few positions hangs on the worst of them, so as many are compared as fit."""
LEAST, MOST = 576, 8192
"""Positions compared whatever the room is, and at most."""
PROMPTS = 24
"""Conversations whose prompt ids are compared."""
ROWS = 64
"""Positions turned into probabilities at once."""
LONG, CONVERSATION = "long text", "conversation"

PARAGRAPHS = (
    "The harbor town had two lighthouses, one of which had been dark since 1931. Ships still carried "
    "both on their charts, because the man who drew them had never been told, and because the pilots "
    "liked to count: seven rocks, two lights, one bell.",
    "def median(values: list[float]) -> float:\n    ordered = sorted(values)\n    middle = len(ordered) // "
    "2\n    if len(ordered) % 2:\n        return ordered[middle]\n    return (ordered[middle - 1] + "
    "ordered[middle]) / 2\n",
    "SELECT team, COUNT(*) AS games, SUM(points) FROM results WHERE season = '1998' AND points > 12 "
    "GROUP BY team ORDER BY games DESC;",
    "{\"station\": \"Basel SBB\", \"departures\": [{\"to\": \"Zürich HB\", \"at\": \"07:33\", \"platform\": 6}, {\"to\": "
    "\"Bern\", \"at\": \"07:59\"}]}",
    "To make the dough, mix 500 g of flour with 320 ml of water, 10 g of salt and 3 g of yeast. Let it "
    "rest for eight hours at 18 °C, fold it twice, and bake it at 240 °C for 35 minutes; the crust "
    "should sound hollow.",
    "Die Brücke über den Fluss wurde im Jahr 1874 gebaut und nach dem Hochwasser von 1910 um zwei Meter "
    "erhöht. Le pont fut fermé pendant trois étés, et l'on passait l'eau en barque pour dix centimes.",
    "Dear Ms. Okafor, thank you for your order no. 20-4471. Two of the three items left our warehouse on "
    "Monday; the lamp follows next week. You will not be charged for the second parcel. Kind regards, "
    "the shipping desk.",
    "In a market with many sellers of one good, none of them sets the price. If one asks more, buyers "
    "walk to the next stall; if it asks less, it sells out before noon and has earned less than its "
    "neighbors.",
    "| player | club | goals |\n|---|---|---|\n| A. Meyer | FC Thun | 14 |\n| B. Rossi | AC Bellinzona | 11 "
    "|\n| C. Dubois | Yverdon | 9 |\n",
    "Light takes eight minutes and twenty seconds from the Sun to the Earth, and about four years from "
    "the nearest other star. What we see at night is therefore a map of many different pasts laid over "
    "one another.",
    "你好，世界。今天的天气很好。データベースには何行ありますか。Сколько строк в таблице? 한국어 문"
    "장입니다. مرحبا بالعالم",
)  # fmt: skip
"""What the long text is made of beside the task's own words, and what is compared where there is no task."""

Conversation = tuple[tuple[Message, ...], str]
"""Messages of a prompt and the completion that follows."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Text(_Record):
    """One text as the source tokenizes it."""

    name: str
    ids: tuple[int, ...]
    first: int
    """position from which distributions are compared"""

    @property
    def compared(self) -> int:
        return len(self.ids) - self.first


class Prompt(_Record):
    """One conversation and the ids of the source's prompt for it."""

    messages: tuple[Message, ...]
    ids: tuple[int, ...]


class Reference(_Record):
    """What the source says; its logits lie beside it."""

    version: int = REFERENCE_VERSION
    vocabulary: int
    """width of a row of logits"""
    context: int | None
    window: int | None
    """tokens a sliding-window layer sees; None without one, or when it is no shorter than the context"""
    texts: tuple[Text, ...]
    strings: tuple[str, ...]
    string_ids: tuple[tuple[int, ...], ...]
    prompts: tuple[Prompt, ...]

    @classmethod
    def read(cls, directory: Path) -> Reference:
        """The reference in a directory. Raises ExportError when it is not whole."""
        try:
            return cls.model_validate_json((directory / "reference.json").read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            raise ExportError(f"{directory}: is no whole reference; delete it and give the command again") from None


class Distance(_Record):
    """Divergence of a file's distributions from the source's over some positions."""

    tokens: int
    kld: float
    """mean KL(source || file), nats per token"""
    kld_error: float = 0.0
    """standard error of that mean, positions taken as independent of each other"""
    max_kld: float
    top1: float
    """share of positions where both have the same most likely token"""


class Parity(Distance):
    """`Distance` over everything compared."""

    conversations: Distance | None = None
    """over the conversations alone, all of them inside any sliding window"""
    past_window: Distance | None = None
    """over positions further on than a sliding window reaches; None for a model without one, or a file that ends before it"""
    beyond_context: int = 0
    """positions that were not compared because the file takes no text so long"""


def long_length(window: int | None, context: int | None) -> int:
    """Tokens of the long text: past the window when there is one, within the context and LONGEST."""
    wanted = max(1024, window + PAST_WINDOW if window is not None else 0)
    return min(wanted, LONGEST, context if context is not None else LONGEST)


def choose_texts(model: TransformersModel, conversations: Iterable[Conversation], window: int | None, width: int) -> list[Text]:
    """Conversations with their end token while there is room, then one long text made of PARAGRAPHS and what they say.

    `width`: of a row of logits, which bounds how many positions fit. Conversations are cut to the context, and to the window.
    """
    room = min(MOST, max(LEAST, LOGITS_BYTES // (4 * width)))
    context = model.context
    texts: list[Text] = []
    words: list[str] = []
    count = 0
    for messages, completion in conversations:
        ids = [*model.prompt_ids(messages), *text_ids(model, completion), model.eos_ids[0]]
        words.append("\n".join(message.content for message in messages) + completion)
        ids = ids[: min(n for n in (len(ids), context, window, room - 64 - count) if n is not None)]
        texts.append(Text(name=CONVERSATION, ids=tuple(ids), first=0))
        count += len(ids)
        if count >= max(LEAST - 64, room - LONG_TOKENS):
            break
    wanted = long_length(window, context)
    source, ids = list(PARAGRAPHS), []
    for i in range(max(len(words), wanted)):
        source.append(words[i] if i < len(words) else f"{i + 1}. {PARAGRAPHS[(7 * i) % len(PARAGRAPHS)]}")
    for paragraph in source:
        if len(ids) >= wanted:
            break
        ids += text_ids(model, paragraph + "\n\n")
    ids = ids[:wanted]
    compared = min(len(ids), LONG_TOKENS if count >= LEAST else LONGEST, room - count)
    first = len(ids) - compared
    if window is not None and len(ids) > window:
        first = max(first, window)
    texts.append(Text(name=LONG, ids=tuple(ids), first=first))
    return texts


def write_reference(
    model: TransformersModel, directory: Path, conversations: Sequence[Conversation], window: int | None
) -> Reference:
    """Ask the source (float32, on the CPU) and write what it says into `directory`, which exists."""
    import numpy as np

    from export.battery import battery

    width = int(model.model.get_output_embeddings().weight.shape[0])
    context = model.context
    if window is not None and context is not None and window >= context:
        window = None
    if not conversations:
        conversations = [((Message(role="user", content=PARAGRAPHS[i]),), PARAGRAPHS[i + 1]) for i in range(0, 8, 2)]
    texts = choose_texts(model, conversations, window, width)
    rows = np.lib.format.open_memmap(
        directory / "logits.npy", mode="w+", dtype=np.float32, shape=(sum(text.compared for text in texts), width)
    )
    at = 0
    for text in texts:
        said = torch_logits(model, text.ids, text.compared)
        if not np.isfinite(said).all():
            raise ExportError(
                f"{model.name}: the source's own logits are not finite; its weights are damaged, train or copy it again"
            )
        rows[at : at + text.compared] = said
        at += text.compared
    rows.flush()
    del rows
    strings = battery([token.content for token in model.tokenizer.added_tokens_decoder.values()])
    reference = Reference(
        vocabulary=width,
        context=context,
        window=window,
        texts=tuple(texts),
        strings=tuple(strings),
        string_ids=tuple(tuple(text_ids(model, text)) for text in strings),
        prompts=tuple(Prompt(messages=m, ids=tuple(model.prompt_ids(m))) for m, _ in conversations[:PROMPTS]),
    )
    (directory / "reference.json").write_text(reference.model_dump_json(), encoding="utf-8")
    return reference


def measure(
    reference: Reference, directory: Path, logits: Callable[[list[int]], np.ndarray], context: int | None = None
) -> Parity:
    """Compare what `logits` (ids -> (T, V) float32, row i about the token after i) says with the reference in `directory`.

    `context`: tokens the file takes; what lies beyond is not compared, and `beyond_context` says how much that is.
    Raises ExportError when the file's logits have another width or are not finite.
    """
    import numpy as np

    rows = np.load(directory / "logits.npy", mmap_mode="r", allow_pickle=False)
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {CONVERSATION: [], LONG: []}
    at = 0
    beyond = 0
    for text in reference.texts:
        ids = list(text.ids[:context])
        n = max(len(ids) - text.first, 0)
        beyond += text.compared - n
        if n:
            found = logits(ids)
            if found.shape != (len(ids), reference.vocabulary):
                raise ExportError(f"its logits are {found.shape} for {len(ids)} tokens, the source's "
                                  f"({len(ids)}, {reference.vocabulary}): its vocabulary is another")  # fmt: skip
            parts[text.name].append(divergence(rows[at : at + n], found[text.first :]))
        at += text.compared
    conversations = _distance(parts[CONVERSATION])
    long = _distance(parts[LONG])
    whole = _distance([*parts[CONVERSATION], *parts[LONG]])
    if whole is None:
        raise ExportError(f"{directory}: the reference has no texts; delete it and give the same command again")
    past = long if reference.window is not None else None
    return Parity(**whole.model_dump(), conversations=conversations, past_window=past, beyond_context=beyond)


def divergence(source: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(KL(source || found) in nats, whether both have the same most likely token), each (N,), of logits (N, V).

    In float64: a KLD of 1e-12 is still told from 0. Raises ExportError for logits that are not finite.
    """
    import numpy as np

    klds, same = [], []
    for start in range(0, len(source), ROWS):
        if not np.isfinite(found[start : start + ROWS]).all():
            raise ExportError("its logits are not finite: numbers overflowed in this precision; choose another")
        p, q = (_log_softmax(np.asarray(part[start : start + ROWS], dtype=np.float64)) for part in (source, found))
        klds.append((np.exp(p) * (p - q)).sum(axis=-1))
        same.append(p.argmax(axis=-1) == q.argmax(axis=-1))
    return np.concatenate(klds), np.concatenate(same)


def sliding_window(config: dict[str, Any]) -> int | None:
    """Tokens the sliding-window layers of a configuration see; None without any."""
    if config.get("use_sliding_window") is False or not config.get("sliding_window"):
        return None
    layers = config.get("layer_types")
    return None if layers and "sliding_attention" not in layers else int(config["sliding_window"])


def differences(found: Iterable[Sequence[int]], wanted: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """(index, first place that differs) of every sequence of ids that is not the wanted one."""
    for index, (ids, right) in enumerate(zip(found, wanted, strict=True)):
        if list(ids) != list(right):
            yield index, next((i for i, (a, b) in enumerate(zip(ids, right)) if a != b), min(len(ids), len(right)))


def _distance(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Distance | None:
    import numpy as np

    if not parts:
        return None
    klds, same = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    # Two equal distributions may come out as -1e-17.
    mean, most = (max(float(value), 0.0) for value in (klds.mean(), klds.max()))
    error = float(klds.std(ddof=1) / len(klds) ** 0.5) if len(klds) > 1 else 0.0
    return Distance(tokens=len(klds), kld=mean, kld_error=error, max_kld=most, top1=float(same.mean()))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    import numpy as np

    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def torch_logits(model: TransformersModel, ids: Sequence[int], last: int = 0) -> np.ndarray:
    """Teacher-forced logits (T, V) float32 of a transformers model, of the `last` positions only when that is not 0."""
    import numpy as np
    import torch

    model.model.eval()
    with torch.inference_mode():
        given = torch.tensor([list(ids)], device=model.model.device)
        out = model.model(input_ids=given, use_cache=False, logits_to_keep=last).logits[0]
    return np.asarray(out[-last:].float().cpu().numpy())


def text_ids(model: TransformersModel, text: str) -> list[int]:
    """Token ids of ordinary text."""
    return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])
