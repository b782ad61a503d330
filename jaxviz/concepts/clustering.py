"""Activations as clusters, and as mixtures of archetypes, over many seeds."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.arrays import rows
from jaxviz.calls.options import whole
from jaxviz.calls.public import public
from jaxviz.concepts.dictionary import Dictionary
from jaxviz.concepts.factorization import Factorization
from jaxviz.concepts.matching import steadiness
from jaxviz.concepts.pooled import wide
from jaxviz.engine.contract import same_when_batched

_A = rows(2, "activations [n, C]")
_ROUNDS = 10  # of projected gradient, for the codes and for the mixtures, a step


@public(a=_A, num_concepts=whole(1), num_seeds=whole(1), num_steps=whole(1))
def k_means(
    a: Any, num_concepts: int, *, key: jax.Array, num_seeds: int = 5, num_steps: int = 100
) -> Factorization:
    """Clusters of activations by Lloyd's steps, from several starts in one program.

    Args:
      a: `[n, C]`, values of a layer at n places or of n crops.
      num_concepts: K, how many clusters, 1 to n.
      key: Key of the starts, which k-means++ draws: rows far from those that are drawn already.
      num_seeds: S, how many starts, whose agreement is `stability`.
      num_steps: Steps at most; a start is done when no row changes its cluster.

    Returns:
      A `Factorization`: atoms are the centres, of their own length; a row's code is 1 for its
      cluster and 0 for the others. Its dictionary writes other values in the centres by
      non-negative least squares, as mixtures. A step costs 4 n C K operations a seed.

    Raises:
      ValueError: More clusters than rows.

    Example:
      >>> a = jnp.array([[0.0, 1.0], [0.0, 3.0], [9.0, 9.0]])
      >>> found = k_means(a, 2, key=jax.random.key(0))
      >>> sorted(found.dictionary.atoms.tolist()), found.codes.sum(0).sum().item()
      ([[0.0, 2.0], [9.0, 9.0]], 3.0)

    Reference:
      Lloyd 1982, doi:10.1109/TIT.1982.1056489; Arthur and Vassilvitskii 2007 (k-means++).
    """
    return _found("k_means", _clustered, a, num_concepts, key, num_seeds, num_steps)


@public(a=_A, num_concepts=whole(1), num_seeds=whole(1), num_steps=whole(1))
def archetypes(
    a: Any, num_concepts: int, *, key: jax.Array, num_seeds: int = 5, num_steps: int = 200
) -> Factorization:
    """Archetypal analysis: rows as mixtures of K extreme ones, which are mixtures of rows.

    Minimises |a - u b a|^2 where each row of u and of b is not negative and sums to 1, by projected
    gradients of u and b in turn, with momentum.

    Args:
      a: `[n, C]`, values of a layer, of any sign.
      num_concepts: K, how many archetypes, 1 to n.
      key: Key of the starts: rows far from one another, as `k_means` begins.
      num_seeds: S, how many starts, whose agreement is `stability`.
      num_steps: Of which each moves the codes, then the archetypes, ten times.

    Returns:
      A `Factorization`: atoms are archetypes, of their own length, in the convex hull of the rows;
      codes sum to 1. Its dictionary writes other values by non-negative least squares, which need
      not sum to 1. A step costs 80 n C K operations a seed.

    Raises:
      ValueError: More archetypes than rows.

    Example:
      >>> a = jnp.array([[0.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
      >>> found = archetypes(a, 2, key=jax.random.key(0), num_steps=20)
      >>> sorted(found.dictionary.atoms.round(2).tolist())
      [[0.0, 1.0], [2.0, 1.0]]

    Reference:
      Cutler and Breiman 1994; Morup and Hansen 2012, doi:10.1016/j.neucom.2011.06.033 (projected
      gradients); Duchi et al. 2008 (projection onto a simplex).
    """
    return _found("archetypes", _mixed, a, num_concepts, key, num_seeds, num_steps)


def _found(who, method, a, count, key, num_seeds, num_steps) -> Factorization:
    a = wide(a)
    if a.ndim != 2 or count > len(a):
        raise ValueError(
            f"{who}: a must be [n, C] of at least num_concepts, {count}, rows; got {a.shape}."
        )
    keys = jax.random.split(same_when_batched(key), num_seeds)
    codes, atoms, errors = method(a, keys, count, num_steps)
    best = int(np.asarray(errors).argmin())
    every = np.asarray(atoms)
    stability = steadiness(every[best], np.delete(every, best, 0))
    return Factorization(Dictionary(atoms[best]), codes[best], errors, stability, atoms)


def _apart(a, key, count):
    """Rows `[K, C]` that lie far from one another, by chance (k-means++)."""

    def pick(k, state):
        picked, away = state
        here = jax.random.categorical(jax.random.fold_in(key, k), jnp.log(away))
        off = jnp.square(a - a[here][None]).sum(1)
        return picked.at[k].set(here), jnp.where(k == 0, off, jnp.minimum(away, off))

    start = jnp.zeros(count, int), jnp.ones(len(a), a.dtype)
    return a[jax.lax.fori_loop(0, count, pick, start)[0]]


def _left(a, codes, atoms):
    whole = jnp.square(a).sum()
    left = jnp.square(a - codes @ atoms).sum()
    return jnp.sqrt(left / jnp.where(whole > 0, whole, 1))


@functools.partial(jax.jit, static_argnums=2)
def _clustered(a, keys, count, num_steps):
    mean = a.mean(0, keepdims=True)
    centred = a - mean

    def nearest(centres):
        return (jnp.square(centres).sum(1)[None] - 2 * centred @ centres.T).argmin(1)

    def step(state):
        centres, labels, _, turn = state
        members = jax.nn.one_hot(labels, count, dtype=a.dtype)
        sizes = members.sum(0)[:, None]
        moved = members.T @ centred / jnp.maximum(sizes, 1)
        centres = jnp.where(sizes > 0, moved, centres)
        again = nearest(centres)
        return centres, again, (again != labels).any(), turn + 1

    def one(key):
        centres = _apart(centred, key, count)
        state = centres, nearest(centres), jnp.asarray(True), 0
        goes_on = lambda state: state[2] & (state[3] < num_steps)
        centres, labels, *_ = jax.lax.while_loop(goes_on, step, state)
        codes = jax.nn.one_hot(labels, count, dtype=a.dtype)
        return codes, centres + mean, _left(a, codes, centres + mean)

    return jax.lax.map(one, keys)


@functools.partial(jax.jit, static_argnums=2)
def _mixed(a, keys, count, num_steps):
    mean = a.mean(0, keepdims=True)
    centred = a - mean  # rows that sum to 1 move with it
    among = centred.T @ centred
    steep = _steepest(among)

    def step(_, state):
        codes, mixture = state
        atoms = mixture @ centred
        gram, wanted = atoms @ atoms.T, centred @ atoms.T
        codes = _descended(codes, lambda u: u @ gram - wanted, _steepest(gram))
        gram, wanted = codes.T @ codes, codes.T @ centred
        slope = lambda b: (gram @ (b @ centred) - wanted) @ centred.T
        return codes, _descended(mixture, slope, _steepest(gram) * steep)

    def one(key):
        first = _apart(centred, key, count)
        off = jnp.square(first[:, None] - centred[None]).sum(2)
        mixture = jax.nn.one_hot(off.argmin(1), len(a), dtype=a.dtype)
        codes = jnp.full((len(a), count), 1 / count, a.dtype)
        codes, mixture = jax.lax.fori_loop(0, num_steps, step, (codes, mixture))
        atoms = mixture @ centred + mean
        return codes, atoms, _left(a, codes, atoms)

    return jax.lax.map(one, keys)


def _descended(rows, slope, steep):
    """Some steps down a quadratic, within the simplex, with Nesterov's momentum."""
    rate = 1 / jnp.maximum(steep, 1e-30)

    def step(n, state):
        rows, before = state
        ahead = rows + n / (n + 3) * (rows - before)
        return _on_simplex(ahead - rate * slope(ahead)), rows

    return jax.lax.fori_loop(0, _ROUNDS, step, (rows, rows))[0]


def _steepest(gram):
    """No less than the largest eigenvalue, and little more where few are large."""
    return jnp.sqrt(jnp.square(gram).sum())


def _on_simplex(rows):
    """The nearest rows that are not negative and sum to 1."""
    size = rows.shape[1]
    ordered = -jnp.sort(-rows, axis=1)
    above = (jnp.cumsum(ordered, axis=1) - 1) / jnp.arange(1, size + 1, dtype=rows.dtype)[None]
    used = (ordered > above).sum(1, keepdims=True)
    level = jnp.take_along_axis(above, jnp.maximum(used, 1) - 1, axis=1)
    return jnp.maximum(rows - level, 0)
