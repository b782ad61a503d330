"""TCAV: whether a class's score rises with a concept, and whether that could be chance."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.arrays import numbers_list, rows
from jaxviz.calls.models import some
from jaxviz.calls.options import real, refused
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.concepts.cav import Cav, Probe, probes
from jaxviz.concepts.pooled import layer_values, places_summed, wide
from jaxviz.engine.contract import Target, explanation, same_when_batched
from jaxviz.graph.split import split_where_read
from jaxviz.parts.channels import channel_axis
from jaxviz.parts.gradients import input_gradient


@explanation("layer", integers=True, vectors=rows(2, "directions [V, C], or [V, ...] as the layer"))
def concept_sensitivity(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layer: str,
    vectors: Any,
) -> jax.Array:
    """How fast the score rises as a layer's value moves along directions: `<grad, v>`.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]` or a pytree of such; token ids too.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`.
      vectors: `[V, C]`, directions of its channels that are followed at every place (or token) at
        once; or `[V, ...]` of the shape of one example's value.

    Returns:
      `[N, V]`, signed, in units of the explained output for a step of a vector's length. Costs one
      forward pass and one pullback to the layer, whatever V is.

    Raises:
      ValueError: No such layer, or vectors that do not fit it.

    Example:
      >>> net = lambda w, x: jnp.tanh(x) @ w
      >>> w, x = jnp.array([[3.0], [-1.0]]), jnp.zeros((1, 2))
      >>> concept_sensitivity(net, w, x, 0, layer="tanh_0", vectors=jnp.eye(2)).tolist()
      [[3.0, -1.0]]

    Reference:
      Kim et al. 2018, arXiv:1711.11279, eq. 1.
    """
    head, tail = split_where_read(apply_fn, params, x, layer)
    a, carry = head(params, x)
    slope = wide(input_gradient(tail, (params, carry), a, target))
    vectors = jnp.asarray(vectors, slope.dtype)
    if vectors.shape[1:] != a.shape[1:]:
        slope = places_summed(
            slope, channel_axis("concept_sensitivity", apply_fn, params, x, layer)
        )
    if vectors.shape[1:] != slope.shape[1:]:
        raise ValueError(
            f"concept_sensitivity: vectors must be [V, {slope.shape[-1]}], or [V, ...] as layer "
            f"{layer!r} has {a.shape}; got {vectors.shape}. One direction is vector[None]."
        )
    return slope.reshape(len(slope), -1) @ vectors.reshape(len(vectors), -1).T


class Tcav(NamedTuple):
    """TCAV scores of K concepts in L layers, each against R random sets.

    Attributes:
      concepts: K names.
      layers: L names.
      scores: `[K, L, R]`, the share of examples whose score rises along the concept's vector. NaN
        where the concept is not told from random: `accuracy` is no better than chance.
      effects: `[K, L]`, how much the mean score changes, to first order, on the way from the mean
        of random examples to that of the concept's: what is tested.
      null_scores: `[L, R]`, scores of each random set in the place of a concept, mean over the
        other random sets.
      null_effects: `[L, R]`, their effects.
      p_values: `[K, L]`, of the two-sided t-test. 1 where scores are NaN.
      significant: `[K, L]`, whether p < alpha / (K * L).
      accuracy: `[K, L, R]`, of the probes on examples held out; 0.5 is chance.
      vectors: By layer `[K, R, ...]`, of length 1.
    """

    concepts: tuple[str, ...]
    layers: tuple[str, ...]
    scores: np.ndarray
    effects: np.ndarray
    null_scores: np.ndarray
    null_effects: np.ndarray
    p_values: np.ndarray
    significant: np.ndarray
    accuracy: np.ndarray
    vectors: dict[str, np.ndarray]

    __repr__ = shown
    _repr_html_ = shown_html


def _concepts(who: str, option: str, value: Any) -> dict[str, Any]:
    named = isinstance(value, Mapping) and value and all(isinstance(k, str) for k in value)
    if not named:
        raise refused(who, option, "examples by the concept's name, {'stripes': [M, ...]}", value)
    return {name: rows(1, "examples [M, ...]")(who, option, one) for name, one in value.items()}


@public(
    x=some,
    concepts=_concepts,
    random=numbers_list,
    penalty=real(0, above=True),
    held_out=real(0, 1, above=True, below=True),
    alpha=real(0, 1, above=True, below=True),
)
def tcav(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    concepts: Mapping[str, Any],
    random: Any,
    layers: Sequence[str],
    key: jax.Array,
    probe: Probe = "logistic",
    penalty: float = 1.0,
    held_out: float = 0.3,
    pooled: bool = True,
    alpha: float = 0.05,
    batch_size: int = 64,
) -> Tcav:
    """For which share of a class's examples the score rises with a concept; tested against chance.

    In each layer probes (`cav`) tell each concept from each of R random sets, and each random set
    from each other one. A score is the share of `x` with `<grad, v> > 0` (`concept_sensitivity`).

    The test asks whether the concept lies outside of what random sets do. The effect of a set is
    the mean over `x` of `<grad, d>`, where d leads from the mean of the random examples to the mean
    of the set: how much the score changes on that way, to first order. With e of the concept and
    e_1 ... e_R of each random set against the others, t = (e - mean e_i) / (s sqrt(1 + 1 / R)), s
    their standard deviation, two-sided with R - 1 degrees of freedom. Many concepts and layers are
    many tests: `significant` divides `alpha` by their number.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, examples of the class; token ids too.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      concepts: By name, `[M, ...]`, inputs that show the concept. Sizes may differ.
      random: `[R, L, ...]`, R >= 3 sets of inputs that have nothing in common. The test is fair
        where they are as large as the concepts, or larger: then they are cut to their size.
      layers: Names of `jaxviz.layers(apply_fn, params, x)`.
      key: Key of which examples are held out.
      probe: `"logistic"`, `"ridge"` or `"pattern"`, as for `cav`.
      penalty: As for `cav`.
      held_out: As for `cav`.
      pooled: Whether probes see the mean over places (or tokens), and their vectors are directions
        of channels; else all numbers of the layer, as in the paper.
      alpha: The level of all tests together.
      batch_size: Examples at once.

    Returns:
      A `Tcav` of NumPy arrays. For each layer it costs a forward pass over all sets, one pullback
      over `x`, and R (K + R - 1) probes.

    Raises:
      ValueError: Sets of other shapes than `x`, fewer than 3 random sets, or no such layer.

    Example:
      >>> net = lambda w, x: jnp.tanh(x) @ w
      >>> draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
      >>> w, x, random = jnp.array([[2.0], [0.0]]), draw(0, 8, 2), draw(1, 6, 20, 2)
      >>> near = draw(2, 20, 2) + jnp.array([[3.0, 0.0]])
      >>> found = tcav(
      ...     net, w, x, 0, concepts={"right": near}, random=random, layers=["tanh_0"],
      ...     key=jax.random.key(3), probe="pattern",
      ... )
      >>> found.scores.mean().item(), found.significant.tolist()
      (1.0, [[True]])

    Reference:
      Kim et al. 2018, arXiv:1711.11279, sections 3.3 and 3.5. There the t-test compares a concept's
      R scores with those of random sets. These share the concept's examples, and agree with one
      another whether they mean something or not: at level 0.05 that test finds a fifth to a third
      of random concepts significant in a linear model. Here a concept counts as one observation.
    """
    who = "tcav"
    random = _sets(who, x, concepts, random)
    count = len(random)
    runs = [Batches(a, batch_size) for a in concepts.values()]
    others = Batches(random.reshape(-1, *random.shape[2:]), batch_size)
    values = [run.values(who, apply_fn, params, layers, pooled) for run in (*runs, others)]
    own = {layer: [value[layer] for value in values[:-1]] for layer in layers}
    sets = {k: a.reshape(count, -1, *a.shape[1:]) for k, a in values[-1].items()}
    fit = Fit(same_when_batched(key), probe, penalty, held_out)
    model = apply_fn, params, x, target
    return against_chance(model, tuple(concepts), own, sets, fit, alpha, batch_size)


class Fit(NamedTuple):
    """How probes are fitted, as `cav` takes it."""

    key: jax.Array
    probe: Probe
    penalty: float
    held_out: float

    def __call__(self, positive, negative, first, second) -> Cav:
        return probes(positive, negative, first, second, *self)


def against_chance(model, names, values, others, fit, alpha, batch_size) -> Tcav:
    """`tcav` of values that are there already.

    Args:
      model: `apply_fn`, `params`, `x` and `target`.
      names: Of K concepts.
      values: By layer, those of each concept, `[M, ...]`.
      others: By layer, those of the random sets, `[R, L, ...]`.
      fit: How probes are fitted.
      alpha: The level of all tests together.
      batch_size: Examples at once.
    """
    apply_fn, params, x, target = model
    layers, count = tuple(values), len(next(iter(others.values())))
    others_of = lambda a: a[~np.eye(count, dtype=bool)].reshape(count, count - 1, *a.shape[2:])
    found, vectors = [], {}
    for layer in layers:
        own, sets = values[layer], others[layer]
        smallest = min(*map(len, own), sets.shape[1])
        cut = sets[:, :smallest]  # in the place of a concept
        fitted = _against_all(fit, [*own, *cut], sets)
        middles, part = sets.mean(1), cut.mean(1)
        ways = [a.mean(0) - middles.mean(0) for a in own]
        ways += [part[i] - (middles.sum(0) - middles[i]) / (count - 1) for i in range(count)]
        each = np.stack([one.vectors for one in fitted])
        every = np.concatenate([each.reshape(-1, *each.shape[2:]), np.stack(ways)])
        slopes = Batches(x, batch_size).slopes(apply_fn, params, target, layer, every)
        scores = (slopes > 0).mean(0)[: -len(ways)].reshape(each.shape[:2])
        effects, at = slopes.mean(0)[-len(ways) :], len(own)
        accuracy = np.stack([one.accuracy for one in fitted[:at]])
        null = others_of(scores[at:]).mean(1), effects[at:]
        found.append((scores[:at], accuracy, effects[:at], *null))
        vectors[layer] = each[:at]
    scores, accuracy, effects = (np.stack(a, 1) for a in list(zip(*found, strict=True))[:3])
    null_scores, null_effects = (np.stack(a) for a in list(zip(*found, strict=True))[3:])
    better = accuracy.mean(2) > 0.5
    p_values = np.where(better, _p_values(effects, null_effects), 1.0)
    return Tcav(
        names,
        layers,
        np.where(better[..., None], scores, np.nan),
        effects,
        null_scores,
        null_effects,
        p_values,
        p_values < alpha / p_values.size,
        accuracy,
        vectors,
    )


def _against_all(fit: Callable, concepts: Sequence[np.ndarray], sets: np.ndarray) -> list[Cav]:
    """The probes of each concept; those of one size are fitted in one program."""
    found: dict[int, Cav] = {}
    for size in {len(a): None for a in concepts}:
        at = [k for k, a in enumerate(concepts) if len(a) == size]
        pairs = np.repeat(np.arange(len(at)), len(sets)), np.tile(np.arange(len(sets)), len(at))
        fitted = fit(np.stack([concepts[k] for k in at]), sets, *pairs)
        split = [np.asarray(a).reshape(len(at), len(sets), *a.shape[1:]) for a in fitted]
        found |= {k: Cav(*(a[i] for a in split)) for i, k in enumerate(at)}
    return [found[k] for k in range(len(concepts))]


def _sets(who, x, concepts, random):
    shape = np.shape(jax.tree.leaves(x)[0])[1:]
    if len(jax.tree.leaves(x)) != 1:
        raise ValueError(
            f"{who}: x must be one array [N, ...]; got a pytree. Fix the others inside."
        )
    if np.ndim(random) != len(shape) + 2 or np.shape(random)[2:] != shape:
        raise ValueError(
            f"{who}: random must be [R, L, ...] with examples like those of x, {shape}; got "
            f"{np.shape(random)}."
        )
    if len(random) < 3 or np.shape(random)[1] < 2:
        raise ValueError(
            f"{who}: random must have 3 sets of 2 examples at least, for a test against them; got "
            f"{np.shape(random)[:2]}. Twenty sets are usual."
        )
    for name, one in concepts.items():
        if np.shape(one)[1:] != shape or len(one) < 2:
            raise ValueError(
                f"{who}: concepts must have two examples like those of x, {shape}, at least; got "
                f"{np.shape(one)} for {name!r}."
            )
    return random if hasattr(random, "reshape") else np.asarray(random)


class Batches:
    """Some inputs, taken so many at a time; the last batch is filled up: one program."""

    def __init__(self, x: Any, size: int):
        self.x, self.size = x, min(size, len(x))

    def each(self, function: Callable, *rows: Any):
        for start in range(0, len(self.x), self.size):
            at = np.minimum(np.arange(start, start + self.size), len(self.x) - 1)
            kept = min(self.size, len(self.x) - start)
            taken = [np.asarray(a)[at] if np.ndim(a) else a for a in (self.x, *rows)]
            yield jax.tree.map(lambda a, kept=kept: np.asarray(a)[:kept], function(*taken))

    def values(self, who, apply_fn, params, layers, pooled):
        run = lambda x: layer_values(who, apply_fn, params, x, layers, pooled)
        parts = list(self.each(run))
        join = lambda name: np.concatenate([part[name] for part in parts])
        return {name: np.asarray(wide(join(name))) for name in layers}

    def slopes(self, apply_fn, params, target, layer, vectors):
        listed = hasattr(target, "__len__") and np.shape(target) == (len(self.x),)

        def run(x, *labels):
            chosen = labels[0] if labels else target
            return concept_sensitivity(apply_fn, params, x, chosen, layer=layer, vectors=vectors)

        return np.concatenate(list(self.each(run, *((target,) if listed else ()))))


def _p_values(effects, null):
    """Of `[K, L]` against `[L, R]`: whether one more would lie so far out."""
    from scipy import stats

    count = null.shape[1]
    spread = null.std(1, ddof=1) * np.sqrt(1 + 1 / count)
    off = np.abs(effects - null.mean(1))
    # Random sets without any effect, as where no gradient arrives: what differs differs for sure.
    t = np.where(spread > 0, off / np.where(spread > 0, spread, 1), np.where(off > 0, np.inf, 0))
    return 2 * stats.t.sf(t, count - 1)
