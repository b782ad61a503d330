"""How a box of a layer graph looks: its size, its colours, its text."""

import functools

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch
from matplotlib.textpath import text_to_path

from jaxviz.graph.layer_graph import Box
from jaxviz.plot.box_words import ENDS, Words
from jaxviz.plot.colour import INK, QUIET

TALL, LOW = 0.42, 0.25  # inches: of a box of two lines and of one
PAD, SPACE = 0.1, 0.2  # inside it
NAME, TEXT = FontProperties(size=8.5, weight="bold"), FontProperties(size=7.5)

# Fill and edge of each family of layers, pale enough for dark text.
_FAMILIES = {
    "conv": ("#dbe8f6", "#5b8fc7"),
    "dense": ("#d8eedd", "#58a06a"),
    "merge": ("#fdecc8", "#d59b2d"),
    "norm": ("#e9e1f4", "#8f72bd"),
    "shape": ("#ececee", "#9a9fa8"),
    "end": ("#ffffff", "#444b57"),
    "module": ("#f7f3ea", "#8c7b55"),
    "function": ("#fbe3e3", "#cf7373"),
}
_KINDS = {
    "conv": ("conv", "conv_product"),
    "dense": ("dense", "matmul", "embed"),
    "merge": ("add", "mul", "sub", "concatenate"),
    "norm": ("batch_norm", "affine", "layer_norm", "rms_norm"),
    "shape": ("max_pool", "avg_pool", "sum_pool", "mean", "flatten", "select_and_gather_add"),
    "end": ENDS,
}
_FAMILY = {kind: family for family, kinds in _KINDS.items() for kind in kinds}


def colours(box: Box) -> tuple[str, str]:
    """Fill and edge of a box: by kind; modules made of several layers apart from functions."""
    module = bool(box.layers) and box.layers[0].name != box.name
    return _FAMILIES["module" if module else _FAMILY.get(box.kind, "function")]


def height(told: Words) -> float:
    """Of a box: two lines where it holds parameters, else one."""
    return TALL if told.held else LOW


def wanted_width(told: Words) -> float:
    """Inches that a box needs for its text."""
    name, does, shape, held = map(_length, told, (NAME, TEXT, TEXT, TEXT))
    if told.held:
        return 2 * PAD + SPACE + max(name + shape, does + held)
    return 2 * PAD + name + (SPACE / 2 + does if does else 0) + SPACE + shape


def draw_box(ax: Axes, told: Words, fill: str, edge: str, place, faint: bool = False) -> None:
    """Draws a box at `(left, top, width, height)`; a faint one stands for one drawn elsewhere."""
    left, top, width, tall = place
    round_ends = f"round,pad=0,rounding_size={min(0.06, tall / 2)}"
    patch = FancyBboxPatch(
        (left, top), width, tall, boxstyle=round_ends, facecolor=fill, edgecolor=edge,
        linewidth=0.9, zorder=3, linestyle=(0, (2, 1.5)) if faint else "-",
    )  # fmt: skip
    ax.add_patch(patch)
    room = width - 2 * PAD
    first, second = (top + 0.3 * tall, top + 0.72 * tall) if told.held else (top + tall / 2,) * 2
    style = {"va": "center", "zorder": 4}
    right = left + width - PAD
    ax.text(right, first, told.shape, ha="right", color=INK, font=TEXT, **style)
    room_first = room - _length(told.shape, TEXT) - SPACE / 2
    name = fitting(told.name, NAME, room_first)
    ax.text(left + PAD, first, name, color=QUIET if faint else INK, font=NAME, **style)
    if told.held:
        ax.text(right, second, told.held, ha="right", color=INK, font=TEXT, **style)
        does = fitting(told.does, TEXT, room - _length(told.held, TEXT) - SPACE / 2)
        ax.text(left + PAD, second, does, color="#4b5563", font=TEXT, **style)
    elif told.does:
        used = _length(name, NAME) + SPACE / 2
        does = fitting(told.does, TEXT, room_first - used)
        ax.text(left + PAD + used, first, does, color="#4b5563", font=TEXT, **style)


def fitting(text: str, font: FontProperties, room: float) -> str:
    """The text, cut to the inches there are."""
    if _length(text, font) <= room:
        return text
    while text and _length(f"{text}…", font) > room:
        text = text[:-1]
    return f"{text.rstrip()}…" if text else ""


@functools.lru_cache(4096)
def _length(text: str, font: FontProperties) -> float:
    """Inches that a text takes."""
    return text_to_path.get_text_width_height_descent(text, font, False)[0] / 72
