"""Concept activation vectors: directions in a layer that tell a concept's examples from others."""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.calls.arrays import rows
from jaxviz.calls.options import real
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.concepts.pooled import wide
from jaxviz.engine.contract import same_when_batched
from jaxviz.engine.one_way import one_way

Probe = Literal["logistic", "ridge", "pattern"]
TOGETHER = 32  # probes that are fitted at once
_MOST_STEPS = 100


class Cav(NamedTuple):
    """Concept activation vectors, one against each of R random sets.

    A value `a` of the layer is taken for the concept where `<a, vector> + bias > 0`.

    Attributes:
      vectors: `[R, ...]`, of length 1, from the others towards the concept.
      biases: `[R]`.
      accuracy: `[R]`, on examples held out: the mean of the shares that are right among the
        concept's and among the others. 0.5 is chance, whatever the sizes of the sets.
    """

    vectors: jax.Array
    biases: jax.Array
    accuracy: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


@public(
    concept=rows(2, "activations [M, ...]"),
    random=rows(3, "activations of R sets, [R, L, ...]"),
    penalty=real(0, above=True),
    held_out=real(0, 1, above=True, below=True),
)
def cav(
    concept: Any,
    random: Any,
    *,
    key: jax.Array,
    probe: Probe = "logistic",
    penalty: float = 1.0,
    held_out: float = 0.3,
) -> Cav:
    """Directions in a layer from random examples towards those of a concept.

    One probe for each random set, all fitted in one program:

    - `"logistic"`: minimises the sum of log(1 + exp(-y f)) + penalty |w|^2 / 2 by Newton's method,
      to convergence, both sides weighing the same;
    - `"ridge"`: least squares of y = 1 and -1 with the same penalty, in closed form;
    - `"pattern"`: Cov(a, y) / Var(y), the difference of the two means. It is what of the layer
      moves with the concept, where a probe is what tells it best, and leans on what only cancels
      noise.

    Activations are centred and divided by one number, their root mean square, so that the penalty
    means the same in every layer.

    Args:
      concept: `[M, ...]`, the layer's values for the concept's examples. Pooled over places,
        `[M, C]`, the vectors are directions of channels.
      random: `[R, L, ...]`, for R sets of other examples; one set is `random[None]`.
      key: Key of which examples are held out.
      probe: How a vector is found.
      penalty: Of the squared length of `w`, above 0; without a use for `"pattern"`.
      held_out: The share of each set that accuracy is measured on, and at least one example.

    Returns:
      A `Cav`. Costs R fits of M + L examples: of size min(M + L, numbers of an example) each.

    Raises:
      ValueError: Sets of fewer than two examples or of other shapes, or a concept that is not told
        from random on examples held out: a mean accuracy that is not above chance, 0.5. Under a
        trace nothing can be refused, and the vectors are NaN instead.

    Example:
      >>> near = jax.random.normal(jax.random.key(0), (20, 3))
      >>> concept, random = near + jnp.array([[4.0, 0.0, 0.0]]), near[None, ::-1]
      >>> found = cav(concept, random, key=jax.random.key(1), probe="pattern")
      >>> found.vectors.shape, bool(found.vectors[0, 0] > 0.9), float(found.accuracy[0])
      ((1, 3), True, 1.0)

    Reference:
      Kim et al. 2018, arXiv:1711.11279, section 3.2 (a linear classifier); Pahde et al. 2022,
      arXiv:2202.03482, eq. 5 (pattern). scikit-learn's `LogisticRegression(class_weight="balanced",
      C=1/penalty)` minimises the same.
    """
    concept, random = _checked("cav", concept, random)
    found = probes(
        concept[None],
        random,
        jnp.zeros(len(random), int),
        jnp.arange(len(random)),
        same_when_batched(key),
        probe,
        penalty,
        held_out,
    )
    accuracy = found.accuracy.mean()
    if isinstance(accuracy, Tracer):
        return found._replace(vectors=jnp.where(accuracy > 0.5, found.vectors, jnp.nan))
    if accuracy <= 0.5:
        raise ValueError(
            f"cav: concept must be told from random with an accuracy above chance, 0.5, on "
            f"examples held out; got {float(accuracy):.2f} ({probe}). Take another layer, or more "
            "examples."
        )
    return found


def _checked(who: str, concept: Any, random: Any) -> tuple[jax.Array, jax.Array]:
    concept, random = (wide(a) for a in (concept, random))
    if concept.shape[1:] != random.shape[2:]:
        raise ValueError(
            f"{who}: random must be [R, L, ...] with examples of the concept's shape, "
            f"{concept.shape[1:]}; got {random.shape}. One set is random[None]."
        )
    if min(len(concept), random.shape[1]) < 2:
        raise ValueError(
            f"{who}: concept and random must have two examples a set at least, one of them held "
            f"out; got {len(concept)} and {random.shape[1]}. Pass more."
        )
    return concept, random.astype(concept.dtype)


def probes(
    positive: jax.Array,
    negative: jax.Array,
    first: Any,
    second: Any,
    key: jax.Array,
    probe: Probe,
    penalty: Any,
    held_out: float,
) -> Cav:
    """Probes of sets `[P, M, ...]` against sets `[Q, L, ...]`: `first[i]` against `second[i]`."""
    sizes = positive.shape[1], negative.shape[1]
    held = tuple(max(1, min(n - 1, round(n * held_out))) for n in sizes)
    return _probes(positive, negative, first, second, key, jnp.asarray(penalty), probe, held)


@functools.partial(jax.jit, static_argnums=(6, 7))
def _probes(positive, negative, first, second, key, penalty, probe, held):
    shape, dtype = positive.shape[2:], positive.dtype
    positive, negative = (a.reshape(*a.shape[:2], -1) for a in (positive, negative))

    pairs = [jnp.asarray(a) for a in (first, second)]
    count = len(pairs[0])
    # Filled up to whole chunks, so that there is one program for all of them.
    chunk = min(TOGETHER, count)
    pairs = [jnp.pad(a, (0, -count % chunk)) for a in pairs]
    mixed = [_mixed(k, a) for k, a in zip(jax.random.split(key), (positive, negative), strict=True)]

    def one(pair):
        (i, j), (p, n), (p_held, n_held) = pair, mixed, held
        train, test = (p[i, p_held:], n[j, n_held:]), (p[i, :p_held], n[j, :n_held])
        return _probe(train, test, penalty, probe)

    found = jax.lax.map(one, pairs, batch_size=chunk)
    vectors, biases, accuracy = (a[:count] for a in found)
    return Cav(vectors.reshape(-1, *shape).astype(dtype), biases, accuracy)


def _mixed(key, sets):
    """Each set's examples in an order of its own."""
    order = jnp.argsort(jax.random.uniform(key, sets.shape[:2], jnp.float32), axis=1)
    return jnp.take_along_axis(sets, order[..., None], 1)


def _probe(train, test, penalty, probe):
    """A vector `[F]`, its bias and accuracy, of the concept's `[m, F]` and others' `[n, F]`."""
    (p, n), (p_test, n_test) = train, test
    middle = (p.mean(0, keepdims=True) + n.mean(0, keepdims=True)) / 2
    if probe == "pattern":
        vector, offset = p.mean(0) - n.mean(0), jnp.zeros((), p.dtype)
    else:
        vector, offset = _fitted(p - middle, n - middle, penalty.astype(p.dtype), probe)
    size = jnp.sqrt((vector * vector).sum())
    size = jnp.where(size > 0, size, 1)
    vector = vector / size
    bias = offset / size - middle[0] @ vector
    right = (p_test @ vector + bias > 0).mean(), (n_test @ vector + bias <= 0).mean()
    return vector, bias, (right[0] + right[1]) / 2


def _fitted(p, n, penalty, probe):
    """Weights and offset of a probe of centred examples."""
    x = jnp.concatenate([p, n])
    y = jnp.concatenate([jnp.ones(len(p), x.dtype), -jnp.ones(len(n), x.dtype)])
    weight = jnp.concatenate([jnp.full(len(a), len(x) / (2 * len(a)), x.dtype) for a in (p, n)])
    spread = jnp.sqrt((weight[:, None] * x * x).mean())
    spread = jnp.where(spread > 0, spread, 1)
    x = x / spread
    # The best weights lie among what the examples span: no more unknowns than examples.
    basis = None
    if x.shape[1] > len(x):
        basis, r = jnp.linalg.qr(x.T)
        x = r.T
    found, offset = (_ridge if probe == "ridge" else _logistic)(x, y, weight, penalty)
    found = found if basis is None else basis @ found
    return found / spread, offset


def _ridge(x, y, weight, penalty):
    # Sides weigh the same and are centred between their means: the best offset is 0.
    gram = x.T @ (weight[:, None] * x) + penalty * jnp.eye(x.shape[1], dtype=x.dtype)
    return jnp.linalg.solve(gram, x.T @ (weight * y)), jnp.zeros((), x.dtype)


def _logistic(x, y, weight, penalty):
    """Newton's method, each step halved as often as it must be to go down."""
    z = jnp.concatenate([x, jnp.ones((len(x), 1), x.dtype)], 1)
    ridge = jnp.full(z.shape[1], penalty, x.dtype).at[-1].set(0)
    halves = jnp.asarray(np.append(0.5 ** np.arange(12), 0.0), x.dtype)

    def loss(theta):
        return (weight * jax.nn.softplus(-y * (z @ theta))).sum() + (ridge * theta**2).sum() / 2

    def step(state):
        theta, last, turn, _ = state
        share = jax.nn.sigmoid(-y * (z @ theta))
        slope = ridge * theta - z.T @ (weight * y * share)
        curved = z.T @ ((weight * share * (1 - share))[:, None] * z) + jnp.diag(ridge)
        # Where all are sure, nothing holds the offset.
        floor = 1e-6 * jnp.trace(curved) / len(theta)
        way = jnp.linalg.solve(curved + floor * jnp.eye(len(theta), dtype=x.dtype), slope)
        tried = theta[None] - halves[:, None] * way[None]
        losses = jax.vmap(loss)(tried)
        best = jnp.argmin(losses)
        # Near its end Newton's method squares its error: a small gain leaves nothing.
        return tried[best], losses[best], turn + 1, last - losses[best] > 1e-6 * last

    start = jnp.zeros(z.shape[1], x.dtype)
    state = (start, loss(start), jnp.asarray(0), jnp.asarray(True))
    theta = jax.lax.while_loop(lambda s: s[3] & (s[2] < _MOST_STEPS), step, state)[0]
    theta = one_way(theta, "concept", 'Pass probe="pattern" or "ridge".')
    return theta[:-1], theta[-1]
