"""The layers of a model as a graph: which reads which, traced through its dataflow."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax

from jaxviz.calls.models import batch_or_shapes
from jaxviz.calls.options import maybe, whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import else_by, html_table, shown, shown_html
from jaxviz.graph.held import hold
from jaxviz.graph.interpreter import Node, Program, Value, equation_of
from jaxviz.graph.kinds import ACTIVATION_KINDS
from jaxviz.graph.rows import LISTED, Layer, Row, rows
from jaxviz.graph.trace import trace


class Box(NamedTuple):
    """One node of a layer graph: a layer with what is folded into it, or a whole module.

    Attributes:
      name: Of the layer or module; `<input>` and `<output>`, with the key where there are several.
      kind: "conv", "add", ...; the class name of a module; "scope"; "input" or "output".
      detail: Window and stride of a convolution or pooling, turns of a loop; else empty.
      shape: Of its output, batch first.
      num_params: Numbers trained, of all its layers.
      layers: What it stands for, in order of execution; empty for inputs and outputs.
    """

    name: str
    kind: str
    detail: str
    shape: tuple[int, ...]
    num_params: int
    layers: tuple[Layer, ...]


class LayerGraph(NamedTuple):
    """Layers and the values that flow between them.

    Attributes:
      boxes: In order of execution, the inputs first and the outputs last; their names differ.
      edges: `(from, to)` by name, each once: the second reads what the first made. No cycles.
    """

    boxes: tuple[Box, ...]
    edges: tuple[tuple[str, str], ...]

    __repr__ = shown

    @else_by(shown_html)
    def _repr_html_(self) -> str:
        rows = [
            (b.name, b.kind, b.detail, " x ".join(map(str, b.shape)), f"{b.num_params:,}", reads)
            for b in self.boxes
            for reads in [", ".join(a for a, other in self.edges if other == b.name)]
        ]
        heads = ["box", "kind", "detail", "output", "parameters", "reads"]
        return html_table(f"LayerGraph of {len(self.boxes)} boxes", heads, rows)


class _Step(NamedTuple):
    """A box in the making, and the values that it makes."""

    box: Box
    values: tuple[Value, ...]


@public(x=batch_or_shapes, depth=maybe(whole(1)))
def layer_graph(
    apply_fn: Callable, params: Any, x: Any, *, depth: int | None = None, fold: bool = True
) -> LayerGraph:
    """The layers of a model as a graph, with its skips, branches and concatenations.

    An edge stands where a value made by one layer reaches another through operations that are no
    layers themselves (a transposition, a cut, a padded shortcut). A loop or branch is one box.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree; arrays or shapes.
      x: `[N, ...]` or a pytree of such; arrays or shapes. Nothing is computed.
      depth: How much of a layer's path is kept: layers deeper than that are one box for each call
        of their module, so 1 gives the outermost modules. None keeps every layer.
      fold: Whether an activation joins the box of the layer that it alone follows, and a batch
        norm that of its convolution or product: `conv1`, `bn1` and `relu_0` are one box, `conv1`.

    Returns:
      A `LayerGraph`. The cost is one trace of the model.

    Raises:
      ValueError: `depth < 1`.

    Example:
      >>> import jax.numpy as jnp
      >>> net = lambda w, x: x @ w + jax.nn.relu(x @ w @ w)
      >>> graph = layer_graph(net, jnp.eye(2), jnp.ones((1, 2)))
      >>> [box.name for box in graph.boxes]
      ['<input>', 'dense_0', 'dense_1', 'dense_2', 'add_0', '<output>']
      >>> ("dense_2", "add_0") in graph.edges, ("<input>", "dense_1") in graph.edges
      (True, True)
    """
    apply_fn, params = hold("layer_graph", apply_fn, params)
    traced = trace(apply_fn, params, x)
    found = rows(traced)
    steps = [
        *_ends("input", traced.x, traced.program),
        *(_step(row, found, traced.program) for row in found if _stands_alone(row)),
        *_ends("output", traced.outputs, traced.program),
    ]
    boxes, edges = [step.box for step in steps], _flow(traced.program, steps)
    if depth is not None:
        boxes, edges = _merged(boxes, edges, _calls(boxes, found, depth))
    if fold:
        boxes, edges = _merged(boxes, edges, _chains(boxes, edges))
    names = [box.name for box in boxes]
    return LayerGraph(tuple(boxes), tuple((names[a], names[b]) for a, b in edges))


def _ends(kind: str, tree: Any, program: Program) -> list[_Step]:
    """The boxes of the inputs or outputs."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    several = len(leaves) > 1
    found = []
    for path, value in leaves:
        key = f" {jax.tree_util.keystr(path, simple=True, separator='.')}" if several else ""
        box = Box(f"<{kind}{key}>", kind, "", tuple(program.avals[value].shape), 0, ())
        found.append(_Step(box, (value,)))
    return found


def _stands_alone(row: Row) -> bool:
    """Whether a row is a box: a layer, not a module made of others; a loop, not what it repeats."""
    return row.layer.can_cut and (not row.layer.submodules or _is_loop(row))


def _is_loop(row: Row) -> bool:
    return len(row.position) == 2 and len(row.nodes) == 1 and bool(row.nodes[0].bodies)


def _step(row: Row, found: Sequence[Row], program: Program) -> _Step:
    layer = row.layer
    if _is_loop(row):
        inside = [r.layer for r in found if r.position[:2] == (row.position[0], 0) and r != row]
        inside = [inner for inner in inside if not inner.submodules]
        turns = max((inner.turns for inner in inside), default=1)
        box = Box(
            layer.name,
            layer.kind,
            f"{turns} turns" if turns > 1 else "",
            layer.shape,
            layer.num_params,
            tuple(inside),
        )
        return _Step(box, row.nodes[0].outputs)
    detail = _window(row.nodes, program)
    box = Box(layer.name, layer.kind, detail, layer.shape, layer.num_params, (layer,))
    return _Step(box, (row.value,))


def _window(nodes: Sequence[Node], program: Program) -> str:
    """Size and stride of the window that slides in a layer, if one does."""
    for node in nodes:
        if node.members:
            if found := _window(node.members, program):
                return found
        elif node.equation is not None:
            p = equation_of(node).params
            if "window_dimensions" in p:
                axes = [i for i, size in enumerate(p["window_dimensions"]) if size > 1]
                sizes = [p["window_dimensions"][i] for i in axes]
                return _written(sizes, [p["window_strides"][i] for i in axes], "")
            if "window_strides" in p and node.kind == "conv":
                kernel = node.equation.invars[1].aval.shape
                spec = p["dimension_numbers"].rhs_spec
                groups = p["feature_group_count"]
                kind = "" if groups == 1 else ", depthwise" if kernel[spec[1]] == 1 else ", grouped"
                return _written([kernel[i] for i in spec[2:]], p["window_strides"], kind)
    return ""


def _written(sizes: Sequence[int], strides: Sequence[int], kind: str) -> str:
    steps = (
        "" if set(strides) <= {1} else f", stride {' x '.join(map(str, dict.fromkeys(strides)))}"
    )
    return " x ".join(map(str, sizes)) + steps + kind


def _flow(program: Program, steps: Sequence[_Step]) -> dict[tuple[int, int], None]:
    """The edges between steps by number: each value knows which steps it was last made by."""
    makes: dict[Value, list[int]] = {}
    for number, step in enumerate(steps):
        if step.box.kind != "output":
            for value in step.values:
                makes.setdefault(value, []).append(number)
    sources: dict[Value, tuple[int, ...]] = {}
    edges: dict[tuple[int, int], None] = {}

    def reach(value: Value, made_by: tuple[int, ...]) -> None:
        # Several steps make one value where a module passes on what it got: they follow each other.
        for number in makes.get(value, ()):
            edges.update(((before, number), None) for before in made_by if before != number)
            made_by = (number,)
        sources[value] = made_by

    def walk(nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node.members:
                walk(node.members)
                continue
            made_by = dict.fromkeys(s for v in node.inputs for s in sources.get(v, ()))
            for value in node.outputs:
                reach(value, tuple(made_by))

    for value in program.inputs:
        reach(value, ())
    walk(program.nodes)
    for number, step in enumerate(steps):
        if step.box.kind == "output":
            edges.update(((s, number), None) for s in sources.get(step.values[0], ()))
    return edges


def _merged(boxes: list[Box], edges: Iterable[tuple[int, int]], groups: list) -> tuple[list, dict]:
    """The graph with each group `(box, members)` as one box."""
    place = {n: k for k, (_, members) in enumerate(groups) for n in members}
    moved = dict.fromkeys((place[a], place[b]) for a, b in edges if place[a] != place[b])
    return [box for box, _ in groups], moved


def _calls(boxes: list[Box], found: Sequence[Row], depth: int) -> list[tuple[Box, list[int]]]:
    """Groups of the boxes that one call of a module at this depth runs.

    They follow each other in order of execution, so that no group reads what it makes.
    """
    number = {box.name: n for n, box in enumerate(boxes)}
    groups: list[tuple[Box, list[int]]] = []
    path, inside = "", []  # of the call that is being collected
    taken = {box.name for box in boxes}

    def close(head: Layer | None = None) -> None:
        nonlocal inside
        if inside:
            parts = tuple(layer for n in inside for layer in boxes[n].layers)
            name, last = path, boxes[inside[-1]]
            while head is None and name in taken:
                name = f"{name}_again"
            box = Box(name, "scope", "", last.shape, sum(p.num_params for p in parts), parts)
            if head is not None:
                box = box._replace(
                    name=head.name, kind=head.kind, shape=head.shape, num_params=head.num_params
                )
            taken.add(box.name)
            groups.append((box, inside))
        inside = []

    for row in found:
        if row.layer.name in number and _stands_alone(row):
            parts = row.layer.name.split("/")
            mine = "/".join(parts[:depth]) if len(parts) > depth else ""
            if mine != path:
                close()
            path = mine
            n = number[row.layer.name]
            if mine:
                inside.append(n)
            else:
                groups.append((boxes[n], [n]))
        elif row.layer.submodules and row.path.split("#")[0] == path:
            close(row.layer)
    close()
    ends = {kind: [(b, [n]) for n, b in enumerate(boxes) if b.kind == kind] for kind in _ENDS}
    return [*ends["input"], *groups, *ends["output"]]


_ENDS = ("input", "output")
_PRODUCTS = ("conv", "conv_product", "dense", "matmul")


def _chains(boxes: list[Box], edges: Iterable[tuple[int, int]]) -> list[tuple[Box, list[int]]]:
    """Groups of a box and the elementwise layers that follow it, and it alone."""
    before: dict[int, list[int]] = {}
    after: dict[int, list[int]] = {}
    for a, b in edges:
        before.setdefault(b, []).append(a)
        after.setdefault(a, []).append(b)
    group_of: dict[int, int] = {}
    groups: list[tuple[Box, list[int]]] = []
    for n, box in enumerate(boxes):
        sources = before.get(n, [])
        if len(sources) == 1 and len(after[sources[0]]) == 1:
            k = group_of[sources[0]]
            head, members = groups[k]
            if _joins(box, head):
                layers = (*head.layers, *box.layers)
                num_params = head.num_params + box.num_params
                joined = head._replace(shape=box.shape, num_params=num_params, layers=layers)
                groups[k] = (joined, [*members, n])
                group_of[n] = k
                continue
        group_of[n] = len(groups)
        groups.append((box, [n]))
    return groups


def _joins(box: Box, head: Box) -> bool:
    """Whether a box is drawn in the line of the one it follows."""
    if {box.kind, head.kind} & set(_ENDS) or len(box.layers) != 1:
        return False
    (layer,) = box.layers
    if layer.kind in ("batch_norm", "affine"):
        return head.kind in _PRODUCTS
    idle = not layer.flops and not layer.num_params and layer.shape == head.shape
    return layer.kind in ACTIVATION_KINDS or (idle and layer.kind not in LISTED)
