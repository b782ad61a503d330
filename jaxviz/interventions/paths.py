"""What one part of a model does through another one alone: paths replaced one by one."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.calls.models import batch
from jaxviz.calls.options import maybe
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import Target, explanation, select
from jaxviz.engine.copies import at_least_float32, stacked
from jaxviz.graph.changed import after, run_changed
from jaxviz.interventions.patching import AXIS, LAYERS, Cut
from jaxviz.interventions.places import Place


class Paths(NamedTuple):
    """What replacing parts of layers does to the explained number along single paths.

    Attributes:
      effect: `[N, senders, *places, receivers, *places]`: the score less that at x where a sender's
        part is as at the source for a receiver's part alone. 0 where no path leads.
      first_order: The same to first order in the sender's change.
      direct: `[N, senders, *places]`: of the way to the outputs past all senders and receivers.
      direct_first_order: The same to first order.
      gap: `[N]`: the score at the source less that at x.
    """

    effect: jax.Array
    first_order: jax.Array
    direct: jax.Array
    direct_first_order: jax.Array
    gap: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


@explanation(
    "layers", "axis", "receivers", "receiver_axis", "chunk_size",
    sweeps=True, integers=True,
    source=batch, layers=LAYERS, axis=AXIS, receivers=LAYERS, receiver_axis=maybe(AXIS),
)  # fmt: skip
def path_patching(
    apply_fn: Callable,
    params: Any,
    x: Any,
    source: Any,
    target: Target = None,
    *,
    layers: Sequence[str] | None = None,
    axis: int | tuple[int, ...] = 1,
    receivers: Sequence[str] | None = None,
    receiver_axis: int | tuple[int, ...] | None = None,
    chunk_size: int | None = None,
) -> Paths:
    """What each part of a layer does through each part of a later one, and past them all.

    One part of a sender is taken from the source while all other senders and receivers stay as at
    x; what a receiver would then be is put into its one part, at x, and all after it runs:
    effect = f(x, part j of receiver = r_j(x, part k of sender as at the source)) - f(x).

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]` or a pytree of such; token ids too. What is changed.
      source: Of the shape of x, or one example of it. What senders are taken from.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class at
        x. A difference of two logits is the usual one.
      layers: Senders, as the `layers` of `activation_patching`; None is the heads of all
        attentions.
      axis: Of a sender, what is replaced place by place, as in `activation_patching`: 1 are heads,
        `(1, 2)` heads at each position.
      receivers: Names of layers, of one size along `receiver_axis`: a block's queries, keys or
        values say. None is the senders.
      receiver_axis: As `axis`, of the receivers; None is `axis`.
      chunk_size: Parts of a sender at once, for all N examples; receivers' parts go one by one.

    Returns:
      `Paths`. Costs what follows a sender twice for each of its parts, and what follows a receiver
      once for each pair; one backward pass beside.

    Raises:
      ValueError: As for `activation_patching`; a layer of whole numbers.

    Example:
      >>> from jax.ad_checkpoint import checkpoint_name
      >>> def net(w, x):
      ...     a = checkpoint_name(x * w, "a")
      ...     return a + checkpoint_name(a**2, "b")
      >>> x, source = jnp.ones((1, 1)), jnp.full((1, 1), 3.0)
      >>> done = path_patching(net, 1.0, x, source, 0, layers=["a"], receivers=["b"])
      >>> done.effect.ravel().tolist(), done.first_order.ravel().tolist(), done.direct.tolist()
      ([8.0], [4.0], [[[2.0]]])

    Reference:
      Wang et al. 2022, arXiv:2211.00593, section 3.1 and appendix B; Goldowsky-Dill et al. 2023,
      arXiv:2304.05969. There senders and receivers are heads, and what lies between, such as dense
      layers, is computed anew, as here.
    """
    name = "path_patching"
    cut = Cut(name, apply_fn, params, x, target, layers, axis, beside=receivers or ())
    to = cut
    if receivers is not None or receiver_axis is not None:
        along = axis if receiver_axis is None else receiver_axis
        told = (
            "layers" if receivers is None else "receivers",
            "axis" if receiver_axis is None else "receiver_axis",
        )
        ends = receivers or cut.names
        to = Cut(name, apply_fn, params, x, cut.target, ends, along, told, cut.names)
    cut.check_floating()
    to.check_floating()
    at_source, gap = cut.of_source(source)
    _, slopes = to.slopes()
    wide = at_least_float32(cut.score)
    parts, count = math.prod(cut.sizes), math.prod(to.sizes)
    rows = []
    for place in cut.found:
        nodes = after(cut.traced, place.value)
        made = {v for node in nodes for v in node.outputs}
        seen = place.read(cut.env[place.value])

        def term(k, place=place, nodes=nodes, made=made, seen=seen):
            changed = cut.with_part(place, at_source[place.name], k)
            arrived, score = _sent(cut, to, place, nodes, changed)
            _, (steps, along) = jax.jvp(
                lambda a: _sent(cut, to, place, nodes, a), (seen,), (changed - seen,)
            )
            nothing = jnp.zeros((len(cut.score), count), wide)
            exact, linear = [], []
            for there in to.found:
                if there.value not in made:
                    exact.append(nothing)
                    linear.append(nothing)
                    continue
                rest = after(to.traced, there.value)
                new = arrived[there.name]
                one = lambda j, there=there, new=new, rest=rest: to.scored(there, new, rest, j)
                scores = jax.lax.map(one, jnp.arange(count)).T
                exact.append(scores.astype(wide) - cut.score.astype(wide)[:, None])
                by = to.moved(steps[there.name], slopes[there.name])
                linear.append(by.reshape(len(by), count).astype(wide))
            direct = score.astype(wide) - cut.score.astype(wide), along.astype(wide)
            return jnp.stack(exact, 1), jnp.stack(linear, 1), *direct

        rows.append(stacked(name, term, parts, chunk_size, seen))
    effect, first_order, direct, direct_first_order = (
        jnp.stack([jnp.moveaxis(a, 0, 1) for a in each], 1) for each in zip(*rows, strict=True)
    )
    shape = (len(cut.score), len(cut.found), *cut.sizes)
    pairs = (*shape, len(to.found), *to.sizes)
    return Paths(
        effect.reshape(pairs),
        first_order.reshape(pairs),
        direct.reshape(shape),
        direct_first_order.reshape(shape),
        gap,
    )


def _sent(
    cut: Cut, to: Cut, place: Place, nodes: Sequence[Any], value: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """What receivers would be where a sender has a value and all others are as at x, and the score
    where these are as well."""
    env = {**cut.env, place.value: place.written(value, cut.env[place.value])}
    arrived: dict[int, jax.Array] = {}

    def kept(v):
        def keep(a):
            arrived[v] = a
            return cut.env[v] if v in cut.env else to.env[v]

        return keep

    others = {p.value for p in (*cut.found, *to.found)} - {place.value}
    run_changed(nodes, env, {v: kept(v) for v in others})
    there = {p.name: p.read(arrived[p.value]) for p in to.found if p.value in arrived}
    return there, select(cut.outputs(env), cut.target)
