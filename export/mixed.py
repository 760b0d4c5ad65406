"""A Q8_0 file that is further from its source than it should be gets the tensors back in F16 whose rounding costs most.

Does: hold the file's KLD against the limit, choose tensors by what rounding them costs on the task's own rows, write the file
again and have its distributions measured again, until it is near enough; say what was kept, why, and what that cost.
Does not: estimate (`export.sensitivity`), write (`export.workshop`), or judge (`export.gate`, which measures the file once more).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from export.gate import GateSettings, distance
from export.quant_types import Prediction, Recipe, predict
from export.sensitivity import MOST_BYTES, choose, rounding_losses
from export.workshop import Made, Workshop

if TYPE_CHECKING:
    import numpy as np

NEAR_KLD = 1e-4
"""Mean KLD, nats per token, that a Q8_0 file keeps below where bfloat16 does not lose more anyway."""
TRIES = 5
"""Files written at most: each corrects the estimate by what was measured of the last."""
DRAWS = 8
"""Times each of the few paragraphs is read where there are no rows of the task."""


def nearer(shop: Workshop, plain: Made, settings: GateSettings, fits: Callable[[Prediction], bool]) -> Made:
    """`plain`, a Q8_0 file, or one with some tensors in F16 that comes under the limit: --max-kld, else what half the bits cost
    without any export, at least NEAR_KLD.

    `fits`: whether a file may be so large. Where the limit cannot be reached, `plain` with a note that says so.
    """
    before, bfloat16 = distance(shop.source, f"gguf:{plain.path}", settings, shop.events)
    limit = settings.max_kld or max(NEAR_KLD, bfloat16 or 0.0)
    if before is None or before <= limit:
        return plain
    with shop.events.stage("find what rounding costs most", unit="tokens") as stage:
        texts, origin = _texts(shop)
        losses = rounding_losses(shop.source, texts, advance=stage.advance)
    lost = sum(losses.values())
    kept: tuple[str, ...] = ()
    now, aimed = before, limit
    for _ in range(TRIES):
        wider = choose(shop.source.plan, losses, now, aimed)
        while wider == kept:  # the estimate says it is near enough, and it is not
            aimed *= 0.8
            wider = choose(shop.source.plan, losses, now, aimed)
        if wider is None or not fits(predict(shop.source.plan, Recipe("Q8_0", keep=wider))):
            break
        kept = wider
        made = shop.make(Recipe("Q8_0", keep=kept))
        found, _ = distance(shop.source, f"gguf:{made.path}", settings, shop.events)
        if found is None:
            break
        if found <= limit:
            return _told(made, plain, (before, found, limit), losses, origin)
        left = lost - sum(losses[name] for name in kept)
        if left <= 1e-6 * lost:
            break
        now = max(before, found * lost / left)  # this file still has `left` of the estimated loss: what the whole would be
    return replace(plain, notes=(*plain.notes, (
        f"its KLD {before:.2g} is above {limit:.2g}, and keeping tensors in F16 does not bring it under that in {MOST_BYTES:g} "
        "times the bytes (or what --target allows); --quant F16 does"
    )))  # fmt: skip


def _told(made: Made, plain: Made, klds: tuple[float, float, float], losses: dict[str, float], origin: str) -> Made:
    """`made` with what was kept, why, and what it cost, for the report and for a person. `klds`: before, now, limit."""
    before, found, limit = klds
    kept, lost = made.recipe.keep, sum(losses.values())
    share = sum(losses[name] for name in kept) / lost
    stay = "stays" if len(kept) == 1 else "stay"
    note = (
        f"all in Q8_0 its KLD is {before:.2g}, above {limit:.2g}: {', '.join(kept)} {stay} in F16 (about {share:.0%} of what "
        f"rounding costs on {origin}), {made.bytes / plain.bytes - 1:.0%} larger, {made.bits_per_weight:.2f} bits per weight, "
        f"KLD {found:.2g}; --no-mixed rounds them too"
    )
    worst = sorted(losses, key=lambda name: -losses[name])[:20]
    details = {
        "kept_f16": list(kept), "limit_kld": limit, "plain_kld": before, "plain_bytes": plain.bytes, "kld": found,
        "estimated_on": origin, "estimated_share": {name: round(losses[name] / lost, 4) for name in worst},
    }  # fmt: skip
    return replace(made, notes=(*made.notes, note), details={**made.details, "mixed": details})


def _texts(shop: Workshop) -> tuple[Sequence[np.ndarray], str]:
    """(ids of texts the estimate is made on, what they are in words)."""
    import numpy as np

    if shop.calibration is not None:
        from export.imatrix import read_calibration

        found = read_calibration(shop.source, shop.calibration)
        return found.sequences, f"rows of {shop.calibration.name}"
    from export.parity import PARAGRAPHS

    cut = [np.asarray(shop.source.tokenizer(text, add_special_tokens=False)["input_ids"], np.int64) for text in PARAGRAPHS]
    return cut * DRAWS, f"{len(cut)} paragraphs of ordinary text"
