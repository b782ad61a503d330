"""Attribution graphs: how units of layers make one another, and the score, for one input."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.calls.options import choice, described, layer, maybe, real, whole
from jaxviz.calls.shown import else_by, html_picture, html_table, shown, shown_html
from jaxviz.concepts.pruning import prune
from jaxviz.concepts.sites import ARROW
from jaxviz.concepts.wiring import Nodes, Wiring
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.layout import channels_of

_SHARE = real(0, 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttributionGraph:
    """Which units of which layers make one another, and the explained number, for each input.

    V nodes in the order of the computation, the score last. Before a layer's units comes its
    "bias", all constants that enter there; where it has more units than `num_units`, the others are
    one node after them, "rest"; then an "error", what a dictionary leaves of the layer's value.

    Attributes:
      edges: `[N, V, V]`: what of the score goes directly from a node (last axis) to a later one, in
        units of the score. A node's row and its column both sum to its relevance.
      relevance: `[N, V]`: what of the score goes through a node: what it loses without the node,
        while gates stay as they are.
      activation: `[N, V]`: a unit's value, of a whole channel the sum over places; the score's own.
      units: `[N, V]`: which unit: its channel, or its index in the layer's value flattened (batch
        left out); -1 for nodes that are no unit.
      gap: `[N, V]`: a node's relevance less its row: 0 where what is held leaves a linear function.
      influence: `[N, V]`: part of the score's making that passes through a node, by any path, signs
        left out.
      kept: `[N, V]`: whether the node is left after pruning.
      kept_edges: `[N, V, V]`: whether the edge is.
      layers: Names of layers, the input's first, the score's last.
      layer_of: Of each node, which of them.
      kinds: Of each node "unit", "rest", "bias", "error" or "score".
    """

    edges: jax.Array
    relevance: jax.Array
    activation: jax.Array
    units: jax.Array
    gap: jax.Array
    influence: jax.Array
    kept: jax.Array
    kept_edges: jax.Array
    layers: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    layer_of: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    kinds: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    @else_by(shown)
    def __repr__(self) -> str:
        counts = [self.layer_of.count(i) for i in range(len(self.layers))]
        told = ", ".join(f"{n} of {name}" for n, name in zip(counts, self.layers, strict=True))
        return f"AttributionGraph({len(self.relevance)} of {len(self.kinds)} nodes: {told})"

    @else_by(shown_html)
    def _repr_html_(self) -> str:
        from jaxviz.plot.wiring import attribution_graph as draw  # matplotlib takes its time

        counts = [(name, self.layer_of.count(i)) for i, name in enumerate(self.layers)]
        more = "" if len(self.relevance) == 1 else "The first of them:"
        title = f"{type(self).__name__} of {len(self.relevance)} inputs"
        table = html_table(title, ["layer", "nodes"], counts, more=more)
        return table + html_picture(draw(self), "layers as columns, what flows between them")

    @property
    def effects(self) -> jax.Array:
        """`[N, V, V]`: what a node adds to a later one's activation, directly.

        Its edge in units of the later one: edge * activation / relevance. 0 into nodes that the
        score takes nothing of, for which no edge is known.
        """
        into = self.relevance[..., None]
        size = self.activation[..., None] / jnp.where(into == 0, jnp.ones_like(into), into)
        return jnp.where(into == 0, jnp.zeros_like(self.edges), self.edges * size)


def _dictionaries(who: str, option: str, value: Any) -> dict[str, Any]:
    """By the layer that is written, with the one that is read before it where that is another."""
    if not isinstance(value, Mapping) or not value:
        raise TypeError(
            f"{who}: {option} must be a mapping from layers to dictionaries; got "
            f"{described(value)}. Pass {{'layer': dictionary}}."
        )
    found = {}
    for name, one in value.items():
        pair = name if isinstance(name, tuple) and len(name) == 2 else (name, name)
        read, written = (layer(who, f"each layer of {option}", part) for part in pair)
        if not all(hasattr(one, part) for part in ("atoms", "encoder", "threshold")):
            raise TypeError(
                f"{who}: {option} must hold dictionaries; got {described(one)} for {name!r}. Make "
                "one with jaxviz.concepts.Dictionary."
            )
        found[f"{read}{ARROW}{written}"] = jax.tree.map(jnp.asarray, one)
    return found


@explanation(
    "layers", "by", "num_units", "node_threshold", "edge_threshold", "chunk_size",
    by=choice("channel", "place"), num_units=maybe(whole(1)), dictionaries=maybe(_dictionaries),
    node_threshold=_SHARE, edge_threshold=_SHARE,
)  # fmt: skip
def attribution_graph(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layers: Sequence[str],
    by: str = "channel",
    num_units: int | None = 64,
    dictionaries: Mapping[Any, Any] | None = None,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    chunk_size: int | None = None,
) -> AttributionGraph:
    """The wiring of one prediction: what goes from each unit directly to every later one.

    With attention, gates, norms and activations' slopes held (`rules.constants`) a net is linear
    between layers, so a unit's value is the sum of what earlier units and biases add to it. An edge
    is that addend, times how much the score makes of the later unit:

        edge(u -> v) = a_u * (d a_v / d a_u, around all other named layers) * (d score / d a_v).

    So each node hands on what it gets, the score's row sums to the score, and a unit's relevance is
    what the score loses with the unit at 0 as long as no gate changes: `patched(apply_fn, layer,
    0.0, where=...)` says whether one did.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such. Of token ids explain the part of the net after
        their embedding (`jaxviz.split`).
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's own top
        class. Explain logits: a softmax is not linear, and goes into `gap`.
      layers: Names as for `patched`, of floating values; after activations, say. Order is that of
        the computation whatever is given.
      by: What a node is. "channel": a channel at all its places together, `[N, ..., C]` has C.
        "place": each number of the layer's value.
      num_units: So many units of the input and of each layer, those of largest relevance; the
        others are one node. None is all: V is large then, and there are V passes back.
      dictionaries: From a layer of `layers` to a `Dictionary`: its nodes are codes then, and what
        they leave of the value is the node "error", to which nothing comes. From a pair (layer that
        is read, layer of `layers` that is written) to a transcoder.
      node_threshold: Nodes kept have this part of all influence.
      edge_threshold: Edges kept have this part of what is left between those.
      chunk_size: Nodes whose passes back are made at once; None goes by the layers' size.

    Returns:
      An `AttributionGraph`. Costs a pass forward, and one back for each node, from its layer down;
      one example after another. On nets of ReLUs, pools, norms without an epsilon and convolutions
      or dense layers `gap` is rounding. What stays of it elsewhere: products of two signals, a last
      softmax, a score that is no sum of outputs.

    Raises:
      ValueError: No such layer, layers of one and the same value, `x` does not reach one; or
        dictionaries that do not fit.
      TypeError: As for every method, or `dictionaries` holds something else.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x @ w + 1.0).sum(1, keepdims=True)
      >>> w, x = jnp.array([[2.0, -1.0], [0.0, -1.0]]), jnp.array([[3.0, 5.0]])
      >>> graph = attribution_graph(net, w, x, 0, layers=["relu_0"])
      >>> graph.kinds
      ('unit', 'unit', 'bias', 'unit', 'unit', 'bias', 'score')
      >>> graph.edges[0, 3].tolist()  # the first ReLU: 2 x 3 from x0, 1 from the bias
      [6.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
      >>> graph.edges[0, 6].tolist()  # the score: all from that ReLU
      [0.0, 0.0, 0.0, 7.0, 0.0, 0.0, 0.0]

    Reference:
      Ameisen et al. 2025, "Circuit tracing: revealing computational graphs in language models",
      transformer-circuits.pub (edges there are in units of the later activation, `effects`);
      pruning: `prune_graph` of circuit-tracer, whose graphs have no biases and whose tokens are
      kept always, ours where they matter. Channels as nodes: Achtibat et al. 2023,
      arXiv:2206.03208, with LRP's rules in place of held factors.
    """
    who = "attribution_graph"
    leaves, structure = jax.tree.flatten(x)
    length = leaves[0].shape[0]
    labels = jnp.zeros(length, jnp.int32)
    if not callable(target) and target is not None:
        labels = jnp.broadcast_to(jnp.asarray(target), (length,))
    moves = channels_of(apply_fn, params, x)
    told: dict[str, Nodes] = {}

    def one(example):
        arrays, label = example
        given = jax.tree.unflatten(structure, [a[None] for a in arrays])
        wiring = Wiring(who, apply_fn, params, given, layers, by, dictionaries or {}, moves)
        chosen = target if target is None or callable(target) else label
        found, told["nodes"] = wiring.graph(chosen, num_units, chunk_size)
        start = jnp.zeros_like(found["relevance"]).at[-1].set(1)
        sources = jnp.asarray(told["nodes"].are_sources)
        pruned = prune(found["edges"], start, sources, node_threshold, edge_threshold)
        return found | dict(zip(("influence", "kept", "kept_edges"), pruned, strict=True))

    arrays = jax.lax.map(one, (leaves, labels))
    nodes = told["nodes"]
    return AttributionGraph(
        **arrays, layers=nodes.layers, layer_of=tuple(nodes.layer_of), kinds=tuple(nodes.kinds)
    )
