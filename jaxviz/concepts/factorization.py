"""Activations as products of codes and a few atoms: NMF, semi-NMF and PCA, over many seeds."""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.arrays import rows
from jaxviz.calls.options import maybe, whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.concepts.alternating import alternated
from jaxviz.concepts.dictionary import Dictionary
from jaxviz.concepts.matching import steadiness
from jaxviz.concepts.pooled import wide
from jaxviz.engine.contract import same_when_batched, shared_program
from jaxviz.engine.shares import shared_rows

_A = rows(2, "activations [n, C] or [B, n, C]")
_CODES, _ATOMS = rows(2, "codes [n, K] and atoms [K, C]"), rows(2, "codes [n, K] and atoms [K, C]")


class Factorization(NamedTuple):
    """Activations `[n, C]` as `codes @ atoms`; with a first axis B where there were B such sets.

    Attributes:
      dictionary: The K atoms, each of length 1, of the seed with the smallest error.
      codes: `[n, K]`, its codes.
      errors: `[S]`, of each seed the length of what is left out over that of the activations.
      stability: `[K]`, of each atom the mean cosine to what is matched with it in the other seeds
        (`matched_atoms`); NaN of one seed. What is not near 1 is an accident of the start.
      every: `[S, K, C]`, the atoms of all seeds.
    """

    dictionary: Dictionary
    codes: jax.Array
    errors: jax.Array
    stability: np.ndarray
    every: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


def _start(who: str, option: str, value: Any) -> tuple[Any, Any]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{who}: {option} must be (codes [n, K], atoms [K, C]); got {type(value)}.")
    return _CODES(who, option, value[0]), _ATOMS(who, option, value[1])


@public(
    a=_A,
    num_concepts=whole(1),
    num_seeds=whole(1),
    num_steps=whole(1),
    init=maybe(_start),
)
def nmf(
    a: Any,
    num_concepts: int,
    *,
    key: jax.Array,
    num_seeds: int = 5,
    solver: Literal["hals", "multiplicative"] = "hals",
    num_steps: int = 200,
    tolerance: float = 1e-4,
    init: tuple[Any, Any] | None = None,
) -> Factorization:
    """Non-negative matrix factorisation, `a ~ codes @ atoms`, from several starts in one program.

    Minimises |a - u w|^2 / 2 with u, w >= 0. `"hals"` takes each column of u, then each row of w,
    to its best value while all else stands still, twice for each product with `a`; between steps
    it goes on likewise on a model of `a` of 2 K directions, whose rounds cost little, and takes
    back what made the objective larger. `"multiplicative"` is Lee and Seung's update.

    Args:
      a: `[n, C]`, values of a layer at n places or of n crops, not negative; or `[B, n, C]`, B such
        sets, of as many classes, which are factorised at once.
      num_concepts: K, how many atoms, >= 1.
      key: Key of the starts: normal numbers without their signs, as large as fit `a`.
      num_seeds: S, how many starts, whose agreement is `stability`.
      solver: How a step is made.
      num_steps: At most so many, each of two products with `a`. The objective never rises from one
        to the next.
      tolerance: A start is done when a step's products move codes and atoms by so small parts
        together: moves times curvature, over the gradient where all codes, or atoms, are 0. Of
        "multiplicative", when the gradients are so small a part of what they were at first.
      init: `(codes [n, K], atoms [K, C])` to start from, in place of drawn ones; then S is 1.

    Returns:
      A `Factorization`; its dictionary's codes are non-negative least squares. A step costs
      8 n C K operations a seed, and at most 20 rounds of 16 (n + C) K^2; the model of a set 16 n C
      K once. What is kept is `a` and its model once, and six times the factors of all seeds.

    Raises:
      ValueError: `a` has negative numbers, or is no `[n, C]`.

    Example:
      >>> codes, atoms = jnp.eye(4)[:, :2] + 0.1, jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])
      >>> found = nmf(codes @ atoms, 2, key=jax.random.key(0), num_seeds=2)
      >>> bool(found.errors.max() < 0.01), found.codes.shape, found.dictionary.atoms.shape
      (True, (4, 2), (2, 3))

    Reference:
      Cichocki and Phan 2009, doi:10.1587/transfun.E92.A.708 (HALS); several sweeps a product:
      Gillis and Glineur 2012, doi:10.1162/NECO_a_00256; going on by a part of the last move (0.25,
      on the model alone): Ang and Gillis 2019, doi:10.1162/neco_a_01157; the directions: Halko et
      al. 2011, doi:10.1137/090771806, one power step. scikit-learn's `NMF(solver="cd")` makes one
      sweep a product and has no model: from the same start it comes to the same objective, or a
      little above, in more steps; at a set number of them ours is elsewhere. Lee and Seung 2001:
      step by step that of `solver="mu"`. There atoms are not scaled to length 1, and there is one
      seed.
    """
    if (least := np.min(np.asarray(a))) < 0:
        raise ValueError(
            f"nmf: a must have no negative numbers; its least is {float(least):.3g}. Take a layer "
            "after a ReLU, or semi_nmf."
        )
    return _factorised(
        *("nmf", a, num_concepts, key, num_seeds, solver, num_steps, init, tolerance)
    )


@public(a=_A, num_concepts=whole(1), num_seeds=whole(1), num_steps=whole(1))
def semi_nmf(
    a: Any,
    num_concepts: int,
    *,
    key: jax.Array,
    num_seeds: int = 5,
    num_steps: int = 200,
    tolerance: float = 1e-4,
) -> Factorization:
    """`nmf` whose atoms may be negative: for layers without a ReLU. Codes are not negative.

    Args:
      a: `[n, C]`, or `[B, n, C]`.
      num_concepts: K, how many atoms, >= 1.
      key: Key of the starts.
      num_seeds: S, how many starts.
      num_steps: As for `nmf`: at most so many.
      tolerance: As for `nmf`; 0 takes every step.

    Returns:
      A `Factorization`, at the cost of `nmf`.

    Example:
      >>> a = jnp.array([[-1.0, 2.0], [-2.0, 4.0], [1.0, 1.0]])
      >>> found = semi_nmf(a, 2, key=jax.random.key(0), num_seeds=1)
      >>> bool(found.errors[0] < 0.01), bool(found.codes.min() >= 0)
      (True, True)

    Reference:
      Ding et al. 2010, doi:10.1109/TPAMI.2008.277, section 3; here by the steps of `nmf`, without
      the bound on atoms, which move first.
    """
    return _factorised(
        *("semi_nmf", a, num_concepts, key, num_seeds, "semi", num_steps, None, tolerance)
    )


@public(a=_A, num_concepts=whole(1))
def pca(a: Any, num_concepts: int) -> Factorization:
    """The K directions along which activations vary most, and their means.

    Args:
      a: `[n, C]`, or `[B, n, C]`.
      num_concepts: K, at most min(n, C).

    Returns:
      A `Factorization` of one seed: codes are signed, and its dictionary has an encoder, so that
      relevance and gradients go through it. `errors` is of what varies. Nothing is drawn:
      `stability` is 1. Of each atom the largest number is positive.

    Raises:
      ValueError: More atoms than examples or channels.

    Example:
      >>> found = pca(jnp.array([[1.0, 1.0], [3.0, 3.0], [5.0, 5.0]]), 1)
      >>> found.dictionary.bias.tolist(), found.dictionary.atoms.round(3).tolist()
      ([3.0, 3.0], [[0.7070000171661377, 0.7070000171661377]])
    """
    a = wide(a)
    if num_concepts > min(a.shape[-2:]):
        raise ValueError(
            f"pca: num_concepts must be at most {min(a.shape[-2:])} for a {a.shape}; got "
            f"{num_concepts}. There are no more directions."
        )
    mean = a.mean(-2, keepdims=True)
    u, s, v = jnp.linalg.svd(a - mean, full_matrices=False)
    atoms = v[..., :num_concepts, :]
    largest = jnp.take_along_axis(atoms, jnp.abs(atoms).argmax(-1, keepdims=True), -1)
    sign = jnp.where(largest < 0, -1, 1).astype(a.dtype)
    atoms = atoms * sign
    codes = u[..., :num_concepts] * (s[..., :num_concepts] * sign[..., 0])[..., None, :]
    total = jnp.square(s).sum(-1, keepdims=True)
    left = jnp.square(s[..., num_concepts:]).sum(-1, keepdims=True)
    dictionary = Dictionary(atoms, encoder=jnp.swapaxes(atoms, -1, -2), bias=mean[..., 0, :])
    errors = jnp.sqrt(left / jnp.where(total > 0, total, 1))
    every = atoms[..., None, :, :]
    return Factorization(dictionary, codes, errors, np.ones(atoms.shape[:-1]), every)


def _factorised(
    who, a, num_concepts, key, num_seeds, solver, num_steps, init, tolerance
) -> Factorization:
    a = wide(a)
    if a.ndim not in (2, 3):
        raise ValueError(f"{who}: a must be [n, C] or [B, n, C]; got {a.shape}.")
    sets = a if a.ndim == 3 else a[None]
    if init is not None:
        codes, atoms = (jnp.asarray(part, a.dtype)[None] for part in init)
        wanted = (len(sets), *sets.shape[1:2], num_concepts), (num_concepts, sets.shape[2])
        if len(sets) > 1 or (codes.shape[1:], atoms.shape[1:]) != (wanted[0][1:], wanted[1]):
            raise ValueError(
                f"{who}: init must be codes {wanted[0][1:]} and atoms {wanted[1]} of one set; got "
                f"{codes.shape[1:]} and {atoms.shape[1:]}."
            )
        init = jnp.swapaxes(codes, 1, 2), atoms
    sizes, numbers = (num_concepts, num_seeds), (num_steps, tolerance)
    key = same_when_batched(key)
    run = shared_program(_run, (3, 4))
    codes, best, errors, every = run(sets, key, init, solver, sizes, *numbers)
    at = np.asarray(errors).argmin(1)
    pairs = zip(np.asarray(every), at, strict=True)
    stability = np.stack([steadiness(w[b], np.delete(w, b, 0)) for w, b in pairs])
    found = Factorization(Dictionary(best), codes, errors, stability, every)
    return found if a.ndim == 3 else jax.tree.map(lambda part: part[0], found)


def _drawn(a, key, count, num_seeds):
    """Starts `[S, K, n]` and `[S, K, C]`, of size 1: the same for all sets."""
    shapes = [(num_seeds, count, len(a)), (num_seeds, count, a.shape[1])]
    return tuple(
        jnp.abs(jax.random.normal(k, shape, a.dtype))
        for k, shape in zip(jax.random.split(key), shapes, strict=True)
    )


def _run(sets, key, init, solver, sizes, num_steps, tolerance):
    """Of each set the best codes and atoms, the errors of all starts, and their atoms."""
    starts, directions = jax.random.split(key)
    first = _drawn(sets[0], starts, *sizes) if init is None else init
    how = init is None, num_steps, tolerance

    def one(a):
        scale = jnp.sqrt(jnp.abs(a).mean() / sizes[0]) if init is None else 1
        u, w = (part * scale for part in first)
        if solver == "multiplicative":
            u, w = _multiplied(a, u, w, num_steps, tolerance)
        elif solver == "hals":
            u, w = alternated(a, u, w, directions, (True, True), *how)
        else:
            # Atoms first: codes of atoms on the wrong side would all be 0, and stay so.
            given = (a.T, w, u, directions, (False, True), *how)
            w, u = alternated(*given)
        size = jnp.sqrt(jnp.square(w).sum(2, keepdims=True))
        size = jnp.where(size > 0, size, 1)
        u, w = u * size, w / size
        whole = jnp.sqrt(jnp.square(a).sum())
        left = jax.lax.map(lambda uw: jnp.sqrt(jnp.square(a - uw[0].T @ uw[1]).sum()), (u, w))
        errors = left / jnp.where(whole > 0, whole, 1)
        best = errors.argmin()
        return u[best].T, w[best], errors, w

    # A core has one set in its caches at a time; each stops on its own.
    in_turn = functools.partial(jax.lax.map, one)
    return shared_rows(in_turn, sets) if jax.default_backend() == "cpu" else jax.vmap(one)(sets)


def _multiplied(a, u, w, num_steps, tolerance):
    """Lee and Seung's steps, of all starts together."""
    swap = lambda rows: jnp.swapaxes(rows, 1, 2)

    def scaled(rows, wanted, gram):
        below = gram @ rows
        ratio = wanted / jnp.where(below == 0, jnp.finfo(rows.dtype).eps, below)
        return rows * ratio, (rows * jnp.abs(wanted - below)).sum((1, 2))

    def turn(state):
        u, w, _, first, number = state
        u, off = scaled(u, w @ a.T, w @ swap(w))
        w, more = scaled(w, u @ a, u @ swap(u))
        off = off + more
        return u, w, off, jnp.where(number == 0, off, first), number + 1

    goes_on = lambda state: (state[4] < num_steps) & (state[2] > tolerance * state[3]).any()
    none = jnp.zeros(len(u), a.dtype)
    return jax.lax.while_loop(goes_on, turn, (u, w, none + 1, none, 0))[:2]
