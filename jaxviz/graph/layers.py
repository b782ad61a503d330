"""The layers of any model: names, kinds, shapes, parameters and FLOPs, in order of execution."""

import difflib
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.models import batch_or_shapes
from jaxviz.calls.options import whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import Text, html_table
from jaxviz.graph.flops import node_flops
from jaxviz.graph.held import hold
from jaxviz.graph.rows import Layer, Row, leaf_sizes, rows
from jaxviz.graph.towers import MOST_TURNS, without_turns
from jaxviz.graph.trace import trace


@public(x=batch_or_shapes)
def layers(apply_fn: Callable, params: Any, x: Any) -> tuple[Layer, ...]:
    """All layers of a model in the order in which they run, whatever it is written in.

    A Linen or NNX module's output has the module's path, and a value named by
    `jax.ad_checkpoint.checkpoint_name` that name; a layer run twice gets a number the second time.
    Operations that nobody named have kind and number inside their scope: `relu_0`, `max_pool_1`.
    The turns of a scan over layers (one whose turns read slices of params, or the same params and
    nothing of `x` but what they hand on; at most 128) are layers of their own, by number:
    `blocks[2]/mlp`, `scan_0[2]/dense_0` where nobody named them. A loop over time is one row.

    Args:
      apply_fn: Pure `(params, x) -> outputs`; for an NNX module, the first of `from_nnx(module)`.
      params: Any pytree; arrays or `jax.ShapeDtypeStruct`s.
      x: `[N, ...]` or a pytree of such; arrays or shapes. Nothing is computed.

    Returns:
      A tuple of `Layer`. The cost is one trace of the model, which is remembered for the function,
      shapes and settings of JAX: as with `jax.jit`, what the function closes over is read once.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"]
      >>> w = {"a": jnp.ones((4, 3)), "b": jnp.ones((3, 2))}
      >>> [(l.name, l.shape, l.num_params) for l in layers(net, w, jnp.ones((1, 4)))]
      [('dense_0', (1, 3), 12), ('relu_0', (1, 3), 0), ('dense_1', (1, 2), 6)]
    """
    apply_fn, params = hold("layers", apply_fn, params)
    return Layers(known_layers(apply_fn, params, x))


class Layers(tuple[Layer, ...]):
    """Layers, which a notebook shows as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        cells = [
            (n.name, n.kind, " x ".join(map(str, n.shape)), f"{n.num_params:,}", f"{n.flops:,}")
            for n in self
        ]
        return html_table(f"{len(self)} layers", _HEADS, cells)


_HEADS = ("Layer", "Kind", "Output", "Params", "FLOPs")


@public(x=batch_or_shapes, width=whole(40))
def summary(apply_fn: Callable, params: Any, x: Any, *, width: int = 100) -> str:
    """A model's layers as a table, with totals: name, kind, output shape, parameters, FLOPs.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree; arrays or shapes.
      x: `[N, ...]` or a pytree of such. FLOPs are for all N examples; pass one for those of one.
      width: Columns of text, >= 40.

    Returns:
      The text, a `str` that a notebook shows as it is printed. A layer inside a loop shows its
      turns; a module made of others sums them up, and its rows stand above it. Totals count each
      parameter once.
    """
    from rich.console import Console  # takes its time to import, for this alone
    from rich.table import Table

    apply_fn, params = hold("summary", apply_fn, params)
    traced = trace(apply_fn, params, x)
    found = rows(traced)
    table = Table(show_footer=False, width=width, title_justify="left")
    cells: list[tuple[str, ...]] = []
    for column in _HEADS:
        justify = "right" if column in ("Params", "FLOPs") else "left"
        table.add_column(column, justify=justify, overflow="fold")
    for row in found:
        layer = row.layer
        times = f"{layer.turns} x " if layer.turns > 1 else ""
        style = "dim" if layer.submodules else None
        shape = times + " x ".join(map(str, layer.shape))
        held = f"{layer.num_params:,}" + (f" + {layer.num_state:,}" if layer.num_state else "")
        cells.append((layer.name, layer.kind, shape, held, _engineering(layer.flops)))
        table.add_row(*cells[-1], style=style)
    sizes = leaf_sizes(params)
    trained = sum(n for n, is_state in sizes if not is_state)
    state = sum(n for n, is_state in sizes if is_state)
    flops = sum(node_flops(traced.program, n) for n in traced.program.nodes)
    nbytes = sum(
        math.prod(np.shape(leaf)) * jnp.result_type(leaf).itemsize for leaf in _floats(params)
    )
    batch = np.shape(jax.tree.leaves(x)[0])[0]
    # In a notebook rich would show the table by itself, ahead of what is returned.
    console = Console(file=io.StringIO(), width=width, record=True, force_jupyter=False)
    console.print(table)
    lines = [f"Parameters: {trained:,} trained" + (f", {state:,} of state" if state else "")]
    lines.append(f"Size: {nbytes / 2**20:.2f} MiB")
    lines.append(f"FLOPs: {_engineering(flops)} for {batch} example{'s' if batch != 1 else ''}")
    told = Text(console.export_text() + "\n".join(lines))
    told.html = html_table("Layers", _HEADS, cells, more=". ".join(lines))
    return told


def find(found: Sequence[Row], name: str, who: str) -> Row:
    """The row of a layer by its name; errors name the nearest ones."""
    return found[_place([row.layer for row in found], name, who)]


def layer_named(who: str, apply_fn: Callable, params: Any, x: Any, name: str) -> Layer:
    """A layer by its name; `params` as `hold` gives them."""
    known = known_layers(apply_fn, params, x)
    return known[_place(known, name, who)]


def known_layers(apply_fn: Callable, params: Any, x: Any) -> tuple[Layer, ...]:
    """`layers`; `params` as `hold` gives them."""
    return tuple(row.layer for row in rows(trace(apply_fn, params, x)))


def _place(found: Sequence[Layer], name: str, who: str) -> int:
    names = [layer.name for layer in found]
    if name in names:
        return names.index(name)
    plain = without_turns(str(name))
    if plain != name and plain in names:
        raise ValueError(
            f"{who}: no layer {name!r}, for {plain!r} is in a loop over time, or of more than "
            f"{MOST_TURNS} turns, whose turns are no layers of their own. Take one before or after."
        )
    if not names:
        raise ValueError(
            f"{who}: no layer {name!r}, for the model has none: nothing in it is computed from x "
            "that JAX can see."
        )
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.4) or names[:6]
    raise ValueError(
        f"{who}: no layer {name!r}; the nearest are {', '.join(map(repr, near))}. "
        "`jaxviz.layers(apply_fn, params, x)` lists all."
    )


def _floats(params: Any) -> list:
    leaves = jax.tree.leaves(params)
    return [a for a in leaves if jnp.issubdtype(jnp.result_type(a), jnp.inexact)]


def _engineering(number: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f}"
