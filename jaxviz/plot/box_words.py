"""What stands in a box of a layer graph: name, what it does, its output, its parameters."""

import re
from typing import NamedTuple

from jaxviz.graph.layer_graph import Box, LayerGraph


class Words(NamedTuple):
    """The texts of a box; any but the name may be empty."""

    name: str
    does: str
    shape: str
    held: str


def words(box: Box, batch: int | None, path: str = "") -> Words:
    """The texts of a box: `path` is left out of its name, and `batch` out of its shape."""
    name = box.name.strip("<>").removeprefix(path)
    shape = list(box.shape)
    if batch in shape:  # first, mostly; a function mapped over its examples may have it elsewhere
        shape.remove(batch)
    told = " x ".join(map(str, shape)) or "one number"
    kind = [] if box.kind in ("input", "output") or _says(name, box.kind) else [box.kind.strip("_")]
    first = " ".join([*kind, *([box.detail] if box.detail else [])])
    folded = box.layers[1:] if box.layers and box.layers[0].name == box.name else ()
    does = [*([first] if first else []), *(_called(layer.name, layer.kind) for layer in folded)]
    held = f"{box.num_params:,}" if box.num_params else ""
    return Words(name, " + ".join(does), told, held)


def check_graph(who: str, graph: LayerGraph) -> None:
    """Refuses what is no layer graph, or an empty one."""
    if not isinstance(graph, LayerGraph):
        raise TypeError(
            f"{who}: graph must be a LayerGraph; got {type(graph).__name__}. Pass "
            "jaxviz.layer_graph(apply_fn, params, x)."
        )
    if not graph.boxes:
        raise ValueError(f"{who}: graph must have boxes; it has none. Pass a layer_graph.")


def batch_of(graph: LayerGraph) -> int | None:
    """How many examples the graph was traced with: the first axis of its first input."""
    return graph.boxes[0].shape[0] if graph.boxes[0].shape else None


def counted(graph: LayerGraph) -> str:
    """How many layers and parameters there are, as a title."""
    layers = sum(max(len(box.layers), 1) for box in graph.boxes if box.kind not in ENDS)
    held = sum(box.num_params for box in graph.boxes)
    return f"{layers} layer{'s' if layers != 1 else ''}, {held:,} parameters"


ENDS = ("input", "output")


def _says(name: str, kind: str) -> bool:
    """Whether a name is a kind and a number, so that the kind need not stand beside it."""
    return re.fullmatch(rf"{re.escape(kind)}_\d+", name.split("/")[-1]) is not None


def _called(name: str, kind: str) -> str:
    """A folded layer in the line of another: the user's name for it, or its kind.

    A number alone, as a module in a sequence has, is no name that says anything.
    """
    own = name.split("/")[-1]
    return kind if own.isdecimal() or _says(name, kind) else own
