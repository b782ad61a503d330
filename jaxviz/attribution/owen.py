"""Owen values: Shapley values over a tree of segments, descended where shares are large."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.calls.arrays import numbers_list
from jaxviz.calls.leaves import ONE
from jaxviz.calls.options import whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import fixed_target, rows_of
from jaxviz.engine.layout import of_places
from jaxviz.parts.coalitions import coalition_scores, segmented
from jaxviz.parts.regions import Segmented, laid_out, like_input

_AT_ONCE = 8  # nodes that are split in a round, of each example


class OwenValues(NamedTuple):
    """Each segment's part in the score.

    Attributes:
      map: `[N, *space]`, or the shape of `x` where segments have its channel axis: each segment's
        value at every place of it, 0 where no segment is; for a pytree `x` a pytree of such.
      values: `[N, G]`, the values of the G segments, in units of the explained output.
      unresolved: `[N]`, the sum of the magnitudes of those shares that the segments of a node
        divided evenly, for it was not split: 0 where values are exact.
      base: `[N]`, the score of the fill.
    """

    map: Any
    values: jax.Array
    unresolved: jax.Array
    base: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


@public(num_samples=whole(2), tree=numbers_list)
@of_places
def owen_values(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    segments: Any = None,
    num_segments: int | None = None,
    tree: Any = None,
    num_samples: int = 512,
    tolerance: float = 0.0,
    fill: Any = 0.0,
    chunk_size: int | None = None,
) -> OwenValues:
    """Each segment's fair share of the score gained over the fill, where segments stand by a tree.

    A node's two halves share what it gains as two players do, with all beside it hidden and with
    all beside it left: half of f(S, A) - f(S) and half of f(S, A, B) - f(S, B) go to A, for each
    coalition S of whole nodes beside. The node that has the largest share is split first, eight at
    a time, until `num_samples` forward passes are spent; what is not split its segments divide
    evenly. No chance is in it.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating or whole numbers (token ids), or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      segments: Integers `[*space]` or `[N, *space]`, or either with the channel axis at its end;
        numbers below 0 are never hidden; for a pytree `x` a pytree of such in one numbering, or one
        array for all leaves. None is a grid of 7 cells along each axis of space, or
        each number of a row `[N, F]`, or token, on its own.
      num_segments: Their number G; None reads it off `segments`.
      tree: `[G - 1, 2]`, the two parts of each node: segments have their numbers, node i is G + i,
        the last is the root (rows of a linkage matrix of SciPy, whose other columns are not read).
        None halves the segments along the axis in which they are spread most, again and again.
      num_samples: Forward passes at most, >= 2; of G segments G ** 2, about, are exact.
      tolerance: Nodes with a smaller share are not split, >= 0, in units of the explained output.
        Where none is left it stops.
      fill: What stands in place of a hidden segment: anything that broadcasts to `x`, whole numbers
        for whole numbers (0, or the id of padding); for a pytree a pytree of such, or one for all.
        Or a function `(x, hidden) -> x` of the batch and booleans, such as `inpainted`: channels
        last, wherever the model has them; compiled once per function, so keep it.
      chunk_size: Coalitions at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `OwenValues`; values sum to the score less that of the filled input, however few the samples.

    Raises:
      ValueError: Segments that are no integers of the shape of `x`; traced ones without
        `num_segments` and `tree`; a tree that is none; a fill that does not broadcast; an option
        out of its range.

    Example:
      >>> net = lambda w, x: w * x[:, :1] * x[:, 1:2] + x[:, 2:]
      >>> owen_values(net, 3.0, jnp.array([[2.0, 5.0, 1.0]]), 0).values.tolist()
      [[15.0, 15.0, 1.0]]

    Reference:
      Owen 1977; shap's PartitionExplainer, whose images are halved down to pixels and whose queue
      takes ten nodes at a time.
    """
    name = "owen_values"
    found = segmented(name, x, segments, num_segments, num_samples=2 * num_samples)
    if tree is None:
        if any(isinstance(n, Tracer) for n in jax.tree.leaves(found.numbers)):
            raise ValueError(
                f"{name}: tree must be given where segments are traced (under jit or vmap), for it "
                "is made of where they lie; got None. Pass [G - 1, 2] nodes, or call outside."
            )
        tree = _halves(_middles(found, x))
    children, members = _checked(name, tree, found.count)
    return _owen_values(
        apply_fn,
        params,
        x,
        target,
        numbers=found.numbers,
        count=found.count,
        shapes=found.shapes,
        children=jnp.asarray(children, jnp.int32),
        members=jnp.asarray(members),
        num_samples=num_samples,
        tolerance=tolerance,
        fill=fill,
        chunk_size=chunk_size,
    )


def _middles(found: Segmented, x: Any) -> np.ndarray:
    """`[G, axes]`, where segments lie; their numbers, where `x` is no one array of places."""
    numbers, count = found.numbers, found.count
    if jax.tree.structure(x) != ONE:
        return np.arange(count)[:, None]
    places = np.asarray(numbers)
    inside = (places >= 0) & (places < count)
    own, sizes = places[inside], np.bincount(places[inside], minlength=count)
    where = [np.bincount(own, at, minlength=count) for at in np.nonzero(inside)[1:]]
    return np.stack(where, 1) / np.maximum(sizes, 1)[:, None]


def _halves(middles: np.ndarray) -> np.ndarray:
    """The tree of halves, cut where coordinates change, as near to the middle as can be."""
    nodes: list[tuple[int, int]] = []
    count = len(middles)

    def node(own):
        if len(own) == 1:
            return int(own[0])
        axis = np.ptp(middles[own], axis=0).round(6).argmax()
        own = own[np.argsort(middles[own, axis], kind="stable")]
        cuts = 1 + np.flatnonzero(np.diff(middles[own, axis]) > 1e-6)
        cut = min(cuts, key=lambda c: abs(2 * c - len(own))) if len(cuts) else len(own) // 2
        pair = node(own[:cut]), node(own[cut:])
        nodes.append(pair)
        return count + len(nodes) - 1

    node(np.arange(count))
    return np.array(nodes, np.int32).reshape(-1, 2)


def _checked(name: str, tree: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The parts of all nodes `[2 G - 1, 2]`, of segments themselves, and their members."""
    tree = np.asarray(tree)
    fits = tree.ndim == 2 and len(tree) == count - 1 and tree.shape[1] >= 2
    parts = np.nan_to_num(tree[:, :2] if fits else np.zeros((0, 2)), nan=-1).astype(np.int64)
    used = np.sort(parts.reshape(-1))
    later = (parts >= count + np.arange(len(parts))[:, None]).any()
    if not fits or later or not np.array_equal(used, np.arange(2 * count - 2)):
        raise ValueError(
            f"{name}: tree must be [{count - 1}, 2] for {count} segments, each of them and each "
            f"node but the last a part of one later node; got {tree.shape}. Pass "
            "scipy.cluster.hierarchy.linkage(...), or None."
        )
    members = np.zeros((2 * count - 1, count), bool)
    members[:count] = np.eye(count, dtype=bool)
    for i, (a, b) in enumerate(parts):
        members[count + i] = members[a] | members[b]
    return np.concatenate([np.repeat(np.arange(count)[:, None], 2, 1), parts]), members


def _owen(
    apply_fn,
    params,
    x,
    target=None,
    *,
    numbers,
    count,
    shapes,
    children,
    members,
    num_samples,
    tolerance,
    fill,
    chunk_size,
):
    name, rows = "owen_values", rows_of(x)
    target = fixed_target(apply_fn, params, x, target)
    scored = lambda coalition, num: coalition_scores(
        name, apply_fn, params, x, target, numbers, fill, coalition, num, chunk_size
    )
    ends = scored(lambda k: jnp.broadcast_to(k == 1, (1, count)), 2)
    wide = ends.dtype
    at_once = min(_AT_ONCE, num_samples // 2)
    rounds = num_samples // (2 * at_once) if count > 1 else 0
    room = 1 + 4 * at_once * rounds
    each = jnp.arange(rows)[:, None]

    # A queue of nodes: what is left beside each, the scores without and with it, its weight.
    queue = (
        jnp.full((rows, room), len(members) - 1),
        jnp.zeros((rows, room, count), bool),
        *(jnp.zeros((rows, room), wide).at[:, 0].set(end) for end in ends),
        jnp.zeros((rows, room), wide).at[:, 0].set(1),
    )

    def shares(queue):
        *_, low, high, weight = queue
        return jnp.where(weight > 0, (high - low) * weight, 0)

    def open_(queue):
        """How large the shares of those nodes are that can be split; -1 for others."""
        node, *_, weight = queue
        size = jnp.abs(shares(queue))
        return jnp.where((node >= count) & (weight > 0) & (size >= tolerance), size, -1)

    def split(queue, turn):
        size, which = jax.lax.top_k(open_(queue), at_once)
        node, beside, low, high, weight = (a[each, which] for a in queue)
        parts = children[node]  # [N, R, 2]
        own = members[parts]  # [N, R, 2, G]
        grown = beside[:, :, None] | own
        asked = jnp.moveaxis(grown, 0, 2).reshape(2 * at_once, rows, count)  # by node, by part
        found = scored(lambda k: asked[k], 2 * at_once)
        one, other = (part.T for part in found.reshape(at_once, 2, rows).swapaxes(0, 1))
        half = jnp.where(size >= 0, weight / 2, 0)
        first, second = parts[..., 0], parts[..., 1]
        with_first, with_second = grown[:, :, 0], grown[:, :, 1]
        new = (
            (first, beside, low, one, half),
            (first, with_second, other, high, half),
            (second, beside, low, other, half),
            (second, with_first, one, high, half),
        )
        new = [jnp.concatenate(a, 1) for a in zip(*new, strict=True)]
        kept = [*queue[:4], queue[4].at[each, which].multiply(jnp.where(size >= 0, 0, 1))]
        place = 1 + 4 * at_once * turn
        put = lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b.astype(a.dtype), place, 1)
        return tuple(map(put, kept, new))

    def turn(queue, k):
        going = (open_(queue) >= 0).any()
        return jax.lax.cond(going, lambda q: split(q, k), lambda q: q, queue), None

    queue, _ = jax.lax.scan(turn, queue, jnp.arange(rounds))
    share, node = shares(queue), queue[0]
    sizes = members.sum(1).astype(wide)
    by_node = jnp.zeros((rows, len(members)), wide).at[each, node].add(share / sizes[node])
    values = jnp.dot(by_node, members.astype(wide), precision=jax.lax.Precision.HIGHEST)
    unresolved = jnp.where(node >= count, jnp.abs(share), 0).sum(1)
    maps = laid_out(values, Segmented(numbers, count, shapes), x)
    return OwenValues(maps, *(like_input(a, x) for a in (values, unresolved, ends[0])))


_owen.__name__ = "owen_values"  # the name that its errors begin with
_owen_values = explanation("count", "shapes", "num_samples", "chunk_size", integers=True)(_owen)
