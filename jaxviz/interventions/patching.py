"""What each part of a layer does to the outputs: replaced one by one, or to first order."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.attention.late import attended
from jaxviz.calls.models import batch
from jaxviz.calls.options import either, layer_list, maybe, several, whole
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import Target, explanation, select
from jaxviz.engine.copies import at_least_float32, stacked
from jaxviz.graph.changed import after, run, run_changed
from jaxviz.graph.recompute import explaining, kept, recomputed
from jaxviz.graph.trace import Traced
from jaxviz.interventions.patched import check_source, like_x, read
from jaxviz.interventions.places import Place, heads_of_all, places, program

AXIS = either("an axis or a tuple of axes", whole(), several(whole(), "a tuple of axes"))
LAYERS = maybe(layer_list)


class Patching(NamedTuple):
    """What replacing parts of layers does to the explained number.

    Attributes:
      effect: `[N, layers, ...]`: the score with a part replaced less that without, in units of the
        explained output.
      gap: `[N]`: the score at the source less that at x, what replacing everything does.
    """

    effect: jax.Array
    gap: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html

    @property
    def share(self) -> jax.Array:
        """`effect / gap`: 0 where nothing happened, 1 where the score became that of the source."""
        rest = [1] * (self.effect.ndim - 1)
        return self.effect / self.gap.reshape(-1, *rest).astype(self.effect.dtype)


@explanation(
    "layers", "axis", "chunk_size",
    sweeps=True, integers=True, source=batch, layers=LAYERS, axis=AXIS,
)  # fmt: skip
def activation_patching(
    apply_fn: Callable,
    params: Any,
    x: Any,
    source: Any,
    target: Target = None,
    *,
    layers: Sequence[str] | None = None,
    axis: int | tuple[int, ...] = 1,
    chunk_size: int | None = None,
) -> Patching:
    """What the score becomes when one part of a layer is taken from another input, for every part.

    effect_k = f(x, part k of the layer's value as at the source) - f(x).

    With x corrupted and a clean source this is denoising: which parts suffice to bring the answer
    back. With x clean and a corrupted source it is noising: which parts the answer needs.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]` or a pytree of such; token ids too. What is changed.
      source: Of the shape of x, or one example of it. What parts are taken from, example by
        example.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class at
        x. A difference of two logits is the usual one.
      layers: Names as for `patched`, of values of one size along `axis`; a layer in a scan without
        its turn is all turns in order. None is the heads of all attentions.
      axis: Of a layer's value (0 is the batch), what is replaced place by place; along the others
        all of it is. 1 are the positions of `[N, positions, channels]` and the heads of
        `NAME:heads`; `(1, 2)` are its heads at each position.
      chunk_size: Parts at once, for all N examples. None goes by the layer's size and the cores.

    Returns:
      `Patching` of `effect` `[N, layers, *places]` and `gap` `[N]`; its `share` is normalised, as
      TransformerLens' denoising metric (patched - corrupted) / (clean - corrupted) is: the same
      formula whichever of the two x is. In noising, peers also show (patched - clean) /
      (clean - corrupted), its negative. NaN or infinite where x and source score alike. Costs what
      comes before a layer once, and what follows it once a part.

    Raises:
      ValueError: No such layer, or of other sizes; an axis that a value does not have; a source
        that is not like x; no attention where `layers` is None.

    Example:
      >>> net = lambda w, x: (jnp.tanh(x) * w).sum((1, 2))[:, None]
      >>> x, source = jnp.zeros((1, 3, 2)), jnp.full((1, 3, 2), 9.0)
      >>> w = jnp.array([[[1.0], [2.0], [5.0]]])
      >>> done = activation_patching(net, w, x, source, 0, layers=["tanh_0"])
      >>> done.effect.round(2).tolist(), done.share.round(3).tolist()
      ([[[2.0, 4.0, 10.0]]], [[[0.125, 0.25, 0.625]]])

    Reference:
      Vig et al. 2020, arXiv:2004.12265; Meng et al. 2022, arXiv:2202.05262, section 2 (causal
      tracing); `get_act_patch_*` of TransformerLens' `patching.py`, one forward pass with hooks a
      part, whole batches averaged; here examples are apart.
    """
    name = "activation_patching"
    cut = Cut(name, apply_fn, params, x, target, layers, axis)
    at_source, gap = cut.of_source(source)
    effect = cut.effects([at_source[place.name] for place in cut.found], chunk_size)
    return Patching(effect, gap)


@explanation("layers", "axis", integers=True, source=batch, layers=LAYERS, axis=AXIS)
def attribution_patching(
    apply_fn: Callable,
    params: Any,
    x: Any,
    source: Any,
    target: Target = None,
    *,
    layers: Sequence[str] | None = None,
    axis: int | tuple[int, ...] = 1,
) -> Patching:
    """`activation_patching` to first order: all parts of all layers from one backward pass.

    effect_k = sum over part k of (a_source - a_x) * d f / d a at x.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]` or a pytree of such; token ids too. What is changed, and where the slope is
        taken.
      source: Of the shape of x, or one example of it.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class at
        x.
      layers: As for `activation_patching`, of floating values.
      axis: As for `activation_patching`.

    Returns:
      As `activation_patching` does: what differs between the two is the model's curvature (a
      saturated softmax, a normalisation). Costs one forward pass of each input and one backward
      pass, however many parts there are.

    Raises:
      ValueError: As for `activation_patching`.

    Example:
      >>> net = lambda w, x: (jnp.tanh(x) * w).sum((1, 2))[:, None]
      >>> x, source = jnp.zeros((1, 3, 2)), jnp.full((1, 3, 2), 9.0)
      >>> w = jnp.array([[[1.0], [2.0], [5.0]]])
      >>> attribution_patching(net, w, x, source, 0, layers=["tanh_0"]).effect.round(2).tolist()
      [[[2.0, 4.0, 10.0]]]

    Reference:
      Nanda 2023, "Attribution patching"; Syed, Rager and Conmy 2023, arXiv:2310.10348, equation 1.
    """
    name = "attribution_patching"
    cut = Cut(name, apply_fn, params, x, target, layers, axis)
    cut.check_floating()
    at_source, gap = cut.of_source(source)
    at_x, slopes = cut.slopes()
    effect = []
    for place in cut.found:
        new, a, slope = (values[place.name] for values in (at_source, at_x, slopes))
        wide = at_least_float32(a)
        effect.append(cut.moved(new.astype(wide) - a.astype(wide), slope))
    return Patching(jnp.stack(effect, axis=1), gap)


@explanation(
    "layers", "axis", "chunk_size",
    sweeps=True, integers=True, reference=maybe(batch), layers=LAYERS, axis=AXIS,
)  # fmt: skip
def layer_ablation(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layers: Sequence[str] | None = None,
    axis: int | tuple[int, ...] = 1,
    reference: Any = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """How much of the score is lost without one part of a layer, for every part: heads, neurons.

    f(x) - f(x, part k of the layer's value set to zero, or to its mean).

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]` or a pytree of such; token ids too.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at x.
      layers: As for `activation_patching`; None is the heads of all attentions.
      axis: As for `activation_patching`: 1 are heads of `NAME:heads` and positions of a layer
        `[N, positions, channels]`; -1 its channels, the neurons.
      reference: Inputs `[M, ...]` whose mean over M stands in place of a part (mean ablation); None
        is zero. To put there what another input has (resample ablation), call
        `activation_patching` with that one, a shuffled batch say.
      chunk_size: As for `activation_patching`.

    Returns:
      `[N, layers, *places]`, in units of the explained output; above zero where the score fell.
      Costs what comes before a layer once, and what follows it once a part.

    Raises:
      ValueError: As for `activation_patching`.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x) @ w
      >>> w, x = jnp.array([[1.0], [2.0], [5.0]]), jnp.array([[1.0, 1.0, -1.0]])
      >>> layer_ablation(net, w, x, 0, layers=["relu_0"]).tolist()
      [[[1.0, 2.0, 0.0]]]
      >>> layer_ablation(net, w, x, 0, layers=["relu_0"], reference=jnp.ones((2, 3))).tolist()
      [[[0.0, 0.0, -5.0]]]

    Reference:
      Michel, Levy and Neubig 2019, arXiv:1905.10650, section 3 (heads, zero); Wang et al. 2022,
      arXiv:2211.00593, section 2.1 (mean). "LayerFeatureAblation" of Captum, one part a pass.
    """
    name = "layer_ablation"
    cut = Cut(name, apply_fn, params, x, target, layers, axis)
    if reference is None:
        new = [jnp.zeros((1, *place.shape[1:]), place.dtype) for place in cut.found]
    else:
        like_x(name, "reference", x, reference, "inputs like x")
        known = program(apply_fn, params, reference, cut.beside)
        found = places(name, known, cut.names)
        env = run(known, jax.tree.leaves((params, reference)), {}, [p.value for p in found])
        seen = list(read(found, env).values())
        new = [a.mean(0, keepdims=True, dtype=at_least_float32(a)) for a in seen]
    return 0 - cut.effects(new, chunk_size)  # no part without effect is -0


class Cut:
    """A model at x with the layers whose parts are replaced."""

    def __init__(
        self, name, apply_fn, params, x, target, layers, axis, said=("layers", "axis"), beside=()
    ):
        """`said` are the names of the options of layers and axis; `beside` are other layers that
        the same program must have."""
        self.name, self.apply_fn, self.params, self.x = name, apply_fn, params, x
        self.names = layers or heads_of_all(name, attended(apply_fn, params, x))
        self.said, self.beside = said, (*self.names, *beside)
        self.traced: Traced = program(apply_fn, params, x, self.beside)
        try:
            self.found = places(name, self.traced, self.names)
        except ValueError as error:
            told = f"{error} It is one of `{said[0]}`."
            raise (error if said[0] == "layers" else ValueError(told)) from None
        axes = {_axes(name, place, axis, said[1]) for place in self.found}
        sizes = {tuple(p.shape[a] for a in own) for p in self.found for own in axes}
        if len(axes) > 1 or len(sizes) > 1:
            told = ", ".join(f"{place.name!r} {place.shape}" for place in self.found)
            raise ValueError(
                f"{name}: {said[0]} must be of one size along {said[1]} {axis}; got {told}. "
                "Take those of one kind at a time."
            )
        (self.axes,), (self.sizes,) = axes, sizes
        self.order = tuple(range(1, len(self.axes) + 1))
        self.arguments = jax.tree.leaves((params, x))
        wanted = [*self.traced.program.outputs, *(place.value for place in self.found)]
        self.env = run(self.traced, self.arguments, {}, wanted)
        outputs = self.outputs(self.env)
        self.target = jnp.argmax(outputs, axis=1) if target is None else target
        self.score = select(outputs, self.target)

    def outputs(self, env):
        return jax.tree.map(lambda value: env[value], self.traced.outputs)

    def of_source(self, source) -> tuple[dict[str, jax.Array], jax.Array]:
        """The layers' values at the source, and what the score there is above that at x."""
        check_source(self.name, self.x, source)
        like = lambda a, b: jnp.broadcast_to(jnp.asarray(b), jnp.shape(a))
        source = jax.tree.map(like, self.x, source)
        known = program(self.apply_fn, self.params, source, self.beside)
        found = places(self.name, known, self.names)
        wanted = [*known.program.outputs, *(place.value for place in found)]
        env = run(known, jax.tree.leaves((self.params, source)), {}, wanted)
        outputs = jax.tree.map(lambda value: env[value], known.outputs)
        wide = at_least_float32(self.score)
        gap = select(outputs, self.target).astype(wide) - self.score.astype(wide)
        return read(found, env), gap

    def effects(self, new: Sequence[jax.Array], chunk_size: int | None) -> jax.Array:
        """`[N, layers, *sizes]`: the score with each part replaced, less that without."""
        parts = math.prod(self.sizes)
        effect = []
        for place, value in zip(self.found, new, strict=True):
            term = functools.partial(self.scored, place, value, after(self.traced, place.value))
            seen = place.read(self.env[place.value])
            scores = stacked(self.name, term, parts, chunk_size, seen)
            wide = at_least_float32(scores)
            moved = scores.T.astype(wide) - self.score.astype(wide)[:, None]
            effect.append(moved.reshape(-1, *self.sizes))
        return jnp.stack(effect, axis=1)

    def scored(self, place: Place, new: jax.Array, nodes: Sequence[Any], k: jax.Array):
        """The score with the k-th part of a layer replaced; only what follows it is computed."""
        old = self.env[place.value]
        changed = self.with_part(place, new, k)
        env = {**self.env, place.value: place.written(changed, old)}
        run_changed(nodes, env, {})
        return select(self.outputs(env), self.target)

    def with_part(self, place: Place, new: jax.Array, k: jax.Array) -> jax.Array:
        """A layer's value with its k-th part taken from another one."""
        seen = place.read(self.env[place.value])
        here: Any = True
        for axis, at in zip(self.axes, jnp.unravel_index(k, self.sizes), strict=True):
            shape = [-1 if a == axis else 1 for a in range(seen.ndim)]
            places = jnp.arange(seen.shape[axis], dtype=at.dtype)
            here = here & (places == at).reshape(shape)
        new = jnp.broadcast_to(new.astype(seen.dtype), seen.shape)
        return jnp.where(jnp.broadcast_to(here, seen.shape), new, seen)

    def moved(self, step: jax.Array, slope: jax.Array) -> jax.Array:
        """`[N, *sizes]`: what a step of a layer's value is worth, part by part, to first order."""
        wide = at_least_float32(slope)
        product = step.astype(wide) * slope.astype(wide)
        rest = tuple(i for i in range(1, product.ndim) if i not in self.axes)
        found = jnp.moveaxis(product.sum(rest, keepdims=True), self.axes, self.order)
        return found.reshape(len(product), *self.sizes)

    def check_floating(self) -> None:
        for place in self.found:
            if not jnp.issubdtype(place.dtype, jnp.inexact):
                raise ValueError(
                    f"{self.name}: {self.said[0]} must be floating to have a slope; "
                    f"{place.name!r} is {place.dtype}. Take a layer after it."
                )

    def slopes(self) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """The layers' values at x, and the derivatives of the score by them."""

        def explained(added):
            change: dict[int, Callable] = {}
            for place, extra in zip(self.found, added, strict=True):
                before = change.get(place.value, lambda a: a)
                change[place.value] = functools.partial(_shifted, place, extra, before)
            env = run(self.traced, self.arguments, change, self.traced.program.outputs)
            return select(self.outputs(env), self.target).sum()

        nothing = [jnp.zeros(place.shape, place.dtype) for place in self.found]
        with explaining(kept(self.traced.program)):
            slopes = jax.grad(recomputed(explained, nothing))(nothing)
        names = [place.name for place in self.found]
        return read(self.found, self.env), dict(zip(names, slopes, strict=True))


def _shifted(place: Place, extra: jax.Array, before: Callable, a: Any) -> jax.Array:
    a = before(a)
    return a + place.written(extra, a)


def _axes(
    name: str, place: Place, axis: int | tuple[int, ...], said: str = "axis"
) -> tuple[int, ...]:
    given = (axis,) if isinstance(axis, int) else tuple(axis)
    ndim = len(place.shape)
    found = tuple(a + ndim if a < 0 else a for a in given)
    if not all(0 < a < ndim for a in found) or len(set(found)) < len(found):
        raise ValueError(
            f"{name}: {said} must be of the value of layer {place.name!r}, {place.shape}, none "
            f"twice and not the batch's 0; got {axis}. 1 is the first after the batch."
        )
    return found
