"""Reference sheets: of each unit the patches that use it most, and where in them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxviz.calls.options import maybe, refused, whole
from jaxviz.calls.public import public
from jaxviz.plot.colour import INK, QUIET, draw_heat, interpolation, to_heat
from jaxviz.plot.inputs import check_count, has_channels_first
from jaxviz.plot.page import EDGE, cell_height, fit, frame, put_title, write

_CELL, _GAP, _LEFT, _BETWEEN = 0.8, 0.05, 1.15, 0.12  # inches


def _found(who: str, option: str, value: Any) -> Any:
    if not all(hasattr(value, name) for name in ("relevance", "activation", "heat")):
        raise refused(who, option, "what jaxviz.concepts.relevant_examples returns", value)
    return value


@public(found=_found, num_units=whole(1), num_images=maybe(whole(1)))
def relevant_examples(
    found: Any,
    *,
    units: Sequence[int] | None = None,
    num_units: int = 8,
    num_images: int | None = None,
    names: Sequence[str] | None = None,
    title: str | None = "Units by relevance, the patches that use each most, and where",
) -> Figure:
    """Draws units, two lines each: patches by relevance, and over them what of it each pixel has.

    Args:
      found: What `jaxviz.concepts.relevant_examples` returns; images in [0, 1], else each patch is
        scaled to its own least and largest number.
      units: Which units; None takes those of the largest mean relevance, the largest first.
      num_units: How many of them.
      num_images: How many patches of each; None is all.
      names: One name for each unit of the layer; None shows numbers.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`. Over each patch stands its image's relevance of the unit.

    Raises:
      ValueError: A unit that the layer does not have.

    Example:
      >>> from jaxviz.concepts import RelevantExamples
      >>> from jaxviz.features.examples import TopExamples
      >>> one, patches = np.ones((1, 2)), np.ones((1, 2, 4, 4, 3))
      >>> top = TopExamples(one, one.astype(int), np.zeros((1, 2, 4), int), patches, one[0, :1], 2)
      >>> len(relevant_examples(RelevantExamples(top, top, np.ones((1, 2, 4, 4)))).axes)
      4
    """
    who = "relevant_examples"
    top, heat = found.relevance, np.asarray(found.heat)
    patches = np.asarray(top.patches)
    if has_channels_first(patches.shape[1:]):
        patches = np.moveaxis(patches, 2, -1)
    count, rank = patches.shape[:2]
    if units is None:
        units = np.argsort(-np.asarray(top.means), kind="stable")[:num_units].tolist()
    chosen = [int(unit) for unit in units or ()]
    if not chosen or not all(0 <= unit < count for unit in chosen):
        raise ValueError(f"{who}: units must be some of 0 to {count - 1}; got {chosen}.")
    if names is not None and len(names) != count:
        raise ValueError(f"{who}: names must be {count}, one a unit; got {len(names)}.")
    rank = min(rank, check_count(who, "num_images", num_images or rank, 9))
    high = cell_height(_CELL, patches.shape[2:])
    block = 2 * high + _GAP + _BETWEEN + 0.16
    width = _LEFT + rank * (_CELL + _GAP) + EDGE
    height = (0.5 if title else EDGE) + len(chosen) * block + EDGE
    figure = Figure(figsize=(max(width, 4.2), height), facecolor="white")
    put_title(figure, title)
    for line, unit in enumerate(chosen):
        above = height - (0.5 if title else EDGE) - line * block - 0.16
        name = f"unit {unit}" if names is None else str(names[unit])
        room = _LEFT - EDGE - 0.1
        low = above - high
        style = {"ha": "left", "color": INK}
        write(
            figure, EDGE, above - high / 2, fit(name, room, 8, "bold"),
            fontsize=8, weight="bold", **style,
        )  # fmt: skip
        style["color"] = QUIET
        mean = f"mean {np.asarray(top.means)[unit]:.3g}"
        write(figure, EDGE, above - high / 2 - 0.16, mean, fontsize=6.5, **style)
        write(figure, EDGE, low - _GAP - high / 2, "relevance", fontsize=6.5, **style)
        there = [k for k in range(rank) if top.indices[unit][k] >= 0]
        if not there:
            continue
        scaled = to_heat(who, "heat", heat[unit][there], len(there), 99.0)
        for at, k in enumerate(there):
            left = _LEFT + k * (_CELL + _GAP)
            image = _seen(patches[unit, k])
            crop = frame(figure, left, low, _CELL, high)
            crop.imshow(image, interpolation=interpolation(len(image)), aspect="auto")
            told = f"{top.scores[unit][k]:.3g}"
            write(
                figure, left + _CELL / 2, above + 0.08, told, fontsize=6, ha="center", color=QUIET
            )
            over = frame(figure, left, low - _GAP - high, _CELL, high)
            draw_heat(over, scaled, at, image, True)
            over.set_aspect("auto")
    return figure


def _seen(patch):
    """`[h, w, 3]` in 0 to 1."""
    low, high = min(patch.min(), 0), max(patch.max(), 1)
    seen = np.clip((np.asarray(patch, np.float32) - low) / (high - low), 0, 1)
    return np.broadcast_to(seen, (*seen.shape[:2], 3)) if seen.shape[-1] == 1 else seen
