"""`--quant auto`: make the files worth trying, measure each, take the smallest and fastest that is still as good as its source.

Does: list the recipes that make different files of this model, measure them from large to small, stop when smaller ones only get
worse, choose, and say why.
Does not: write or measure a file itself (`export.workshop`), or publish one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from export.errors import ExportError
from export.families import Plan
from export.gate import GateSettings
from export.quant_types import Prediction, Recipe, predict
from export.target import Target, cache_bytes
from export.workshop import Made, Workshop

RECIPES: tuple[Recipe, ...] = (
    Recipe("Q8_0"),
    Recipe("Q6_K", importance=True),
    Recipe("Q5_K_M", importance=True),
    Recipe("Q5_0"),
    Recipe("IQ4_NL", head="Q8_0", importance=True),
    Recipe("Q4_K_M", importance=True),
    Recipe("Q4_K_M", importance=True, fallback="larger"),
    Recipe("Q4_0"),
    Recipe("IQ4_XS", importance=True),
    Recipe("Q3_K_M", importance=True),
    Recipe("IQ3_S", importance=True),
    Recipe("IQ3_XXS", importance=True),
)
"""What is tried. Measured on the quickstart's student (LOG.md): a head in Q8_0 halves the loss of a 4-bit file, a head in 4 bits
costs most of it, importance helps K and IQ types and hurts Q4_0."""

PATIENCE = 2
"""Candidates in a row that lose too much before smaller ones are not tried."""
FEW = 500
"""Questions below which the interval of a loss is told with the choice when it ends beyond twice --max-drop."""
ABOUT_AS_SMALL = 1.1
"""Files up to so many times the smallest one's bytes compete by speed."""


@dataclass(frozen=True)
class Choice:
    """What was taken, and everything that was tried."""

    picked: Made
    tried: tuple[Made, ...]
    """from large to small"""
    skipped: tuple[tuple[str, str], ...]
    """(recipe, why it was not tried)"""
    why: str


def candidates(
    plan: Plan, importance: bool, target: Target | None
) -> tuple[list[tuple[Recipe, Prediction]], list[tuple[str, str]]]:
    """(recipes to try from large to small with what they become, recipes left out with the reason).

    Without calibration rows none uses importance. Two recipes that give every tensor the same type are one.
    """
    found: list[tuple[Recipe, Prediction]] = []
    left_out: list[tuple[str, str]] = []
    for wanted in RECIPES:
        recipe = replace(wanted, importance=wanted.importance and importance)
        if recipe.type.importance and not recipe.importance:
            left_out.append((recipe.label, "needs an importance matrix, and there are no calibration rows"))
            continue
        try:
            prediction = predict(plan, recipe)
        except ExportError as error:
            left_out.append((recipe.label, str(error)))
            continue
        same = next((other.label for other, known in found if known.types == prediction.types), None)
        over = target.excess(prediction.tensor_bytes, cache_bytes(plan)) if target is not None else None
        if same is not None and recipe.fallback == "larger":
            continue  # nothing falls back
        if same is not None:
            left_out.append((recipe.label, f"every tensor becomes what it is in {same}"))
        elif over is not None:
            left_out.append((recipe.label, over))
        else:
            found.append((recipe, prediction))
    # A type whose fall-backs make it no smaller than a finer one is only slower and worse.
    found.sort(key=lambda pair: -pair[1].tensor_bytes)
    return found, left_out


def choose(
    shop: Workshop,
    settings: GateSettings,
    target: Target | None,
    speed: Callable[[Made], float | None],
) -> Choice:
    """Try the candidates, from large to small. `speed` measures a file's decoding.

    Raises ExportError when none fits the target, or none is good enough.
    """
    trials, left_out = candidates(shop.source.plan, shop.calibration is not None, target)
    if not trials:
        smallest = left_out[-1][1] if left_out else "there are none"
        raise ExportError(
            f"no quant type makes a file that fits --target: the smallest would be {smallest}; give a larger target"
        )
    tried: list[Made] = []
    bad = 0
    for number, (recipe, _) in enumerate(trials):
        if bad >= PATIENCE:
            rest = [other.label for other, _ in trials[number:]]
            left_out += [(label, f"{PATIENCE} larger files in a row lost too much") for label in rest]
            break
        made = shop.check(shop.make(recipe), settings)
        made = replace(made, decode=speed(made)) if made.kept else made
        tried.append(made)
        bad = 0 if made.kept else bad + 1
        shop.events.emit("metric", stage="auto", said=line(made), **row(made))
    over = (
        {made.recipe.label: target.excess(made.bytes, cache_bytes(shop.source.plan)) for made in tried}
        if target is not None
        else {}
    )
    left_out += [(label, reason) for label, reason in over.items() if reason is not None]
    picked, why = pick([made for made in tried if over.get(made.recipe.label) is None], settings.max_drop)
    return Choice(picked, tuple(tried), tuple(left_out), why)


def pick(tried: Sequence[Made], max_drop: float) -> tuple[Made, str]:
    """The smallest file that is good enough; of those about as small, the fastest. Raises ExportError when none is."""
    good = [made for made in tried if made.kept]
    if not good:
        if not tried:
            raise ExportError("not one file fits --target with its vocabulary; give a larger target")
        best = min(tried, key=_lost)
        said = best.report.sentence if best.report is not None else ""
        raise ExportError(
            f"not one of {len(tried)} files stays within --max-drop {max_drop:g}; the best, {best.recipe.label}: {said}; "
            "give a larger --max-drop, or --quant F16"
        )
    smallest = min(good, key=lambda made: made.bytes)
    near = [made for made in good if made.bytes <= ABOUT_AS_SMALL * smallest.bytes]
    picked = max(near, key=lambda made: (made.decode or 0.0, -made.bytes))
    why = f"{picked.recipe.label} is the smallest of {len(good)} files that lose no more than {max_drop:g} points"
    if len(near) > 1 and picked.decode is not None:
        others = ", ".join(f"{made.recipe.label} {made.decode or 0:.0f}" for made in near if made is not picked)
        small = "" if picked is smallest else f"{picked.bytes / smallest.bytes - 1:.0%} larger than {smallest.recipe.label}, "
        why = (
            f"{picked.recipe.label} is the fastest ({picked.decode:.0f} tokens/s; {others}) of the {len(near)} smallest files "
            f"that lose no more than {max_drop:g} points ({small}{picked.bytes / 1e6:.2f} MB)"
        )
    why += unsure(picked, max_drop)
    worse = [made for made in tried if not made.kept and made.bytes < picked.bytes]
    if worse:
        why += f"; smaller ones are worse ({', '.join(map(_shortly, worse))})"
    return picked, why


def unsure(made: Made, max_drop: float) -> str:
    """A clause about a loss that few questions leave open; empty where they are enough or the interval ends near `max_drop`."""
    paired = made.report.paired if made.report is not None else None
    if paired is None or paired.n >= FEW or paired.high <= 2 * max_drop:
        return ""
    return (
        f"; only {paired.n} questions were asked, so that it may lose up to {paired.high:.2f} points (95 % interval): "
        "ask more for a choice to rely on (a larger --limit or split)"
    )


def line(made: Made) -> str:
    """One file in one line."""
    said = made.report.sentence if made.report is not None else "not checked"
    speed = f", {made.decode:.0f} tokens/s" if made.decode is not None else ""
    return f"{made.recipe.label}: {made.bytes / 1e6:.2f} MB, {made.bits_per_weight:.2f} bits per weight{speed}: {said}"


def row(made: Made) -> dict[str, Any]:
    """One file as the report and the events keep it."""
    report = made.report
    parity, score, paired = (report.parity, report.score, report.paired) if report is not None else (None, None, None)
    return {
        "recipe": made.recipe.label,
        "options": made.recipe.options,
        "bytes": made.bytes,
        "bits_per_weight": round(made.bits_per_weight, 4),
        "kld": parity.kld if parity is not None else None,
        "top1": parity.top1 if parity is not None else None,
        "score": score.score if score is not None else None,
        "interval": [score.low, score.high] if score is not None else None,
        "drop": paired.drop if paired is not None else None,
        "drop_interval": [paired.low, paired.high] if paired is not None else None,
        "decode_tokens_per_s": made.decode,
        "verdict": report.verdict if report is not None else "unchecked",
        "sentence": report.sentence if report is not None else "",
    }


def _shortly(made: Made) -> str:
    """A rejected file in a few words; one without a loss has its reason instead."""
    lost = _lost(made)
    if lost != float("inf"):
        return f"{made.recipe.label} {lost:.2f}"
    return f"{made.recipe.label}: {made.report.sentence}" if made.report is not None else made.recipe.label


def _lost(made: Made) -> float:
    return made.report.paired.drop if made.report is not None and made.report.paired is not None else float("inf")
