"""Many perturbed copies of one batch at bounded memory: their chunks, their sum, their class."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.attribution.contract import Target, select
from jaxviz.graph.indices import unless
from jaxviz.graph.rewrite import rewrite
from jaxviz.graph.shares import MOST, cores, shared, width
from jaxviz.rules.fast import serving, weighed

# Numbers of the input that are alive at once unless the caller says otherwise. Caches reward small
# chunks on a CPU (84 digits), but not of one photograph: two take 10 to 20 % less time each. A GPU
# wants to be filled (27 photographs). A core has two photographs, one copy where that is more, if
# one fits; in one program of two cores four, too, take 5 to 12 % less time each than two.
_ALIVE = {"cpu": 2**16}
_ALIVE_ELSEWHERE = 2**22
_FEWEST = 2  # examples
# Numbers in all copies together from which on it pays to share their passes among cores.
_SHARED = 2**19


def outputs_of(apply_fn: Callable, params: Any, x: Any) -> Any:
    """`apply_fn(params, x)`, its slow operations replaced by exact fast ones."""
    return rewrite(apply_fn, weighed())(params, x)


def score_of(apply_fn: Callable, params: Any, x: Any, target: Target) -> jax.Array:
    """The explained number of each example, `[N]`: what every method takes."""
    return select(outputs_of(apply_fn, params, x), target)


def fixed_target(apply_fn: Callable, params: Any, x: Any, target: Target) -> Target:
    """`target`, with None made into the top class at `x`: copies of `x` may have other ones."""
    return jnp.argmax(outputs_of(apply_fn, params, x), axis=1) if target is None else target


def default_chunk(x: Any) -> int:
    """How many copies of `x` are alive at once where nobody said."""
    batch = max(jnp.shape(jax.tree.leaves(x)[0])[0], 1)
    fit = _ALIVE.get(jax.default_backend(), _ALIVE_ELSEWHERE) // max(_numbers(x), 1)
    here = min(cores(), MOST)
    return max(here if fit else 1, here * _FEWEST // batch, fit)


def _numbers(x):
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(x))


def chunk_length(name: str, num: int, chunk_size: int) -> int:
    """How many of `num` copies to take at once: at most `chunk_size`, none wasted if so."""
    if chunk_size < 1:
        raise ValueError(
            f"{name}: chunk_size must be at least 1, the copies alive at once; got {chunk_size}. "
            "Pass None to have it chosen."
        )
    most = min(chunk_size, num)
    # 50 copies in chunks of at most 8 are ten chunks of 5, not seven of 8 with six copies wasted;
    # but 25 in chunks of at most 2 are thirteen of 2, for one at a time is slower.
    return min(range(most // 2 + 1, most + 1), key=lambda c: (-num % c, -c))


class _Lanes(NamedTuple):
    """How copies are divided: each of `count` cores takes `length`, `chunk` of them at once."""

    count: int
    length: int
    chunk: int

    @property
    def starts(self) -> list[jax.Array]:
        """Of each lane, the first copy of each chunk."""
        firsts = self.chunk * jnp.arange(-(-self.length // self.chunk), dtype=jnp.int32)
        return [lane * self.length + firsts for lane in range(self.count)]


def _lanes(name, num, chunk_size, x, default=None) -> _Lanes:
    lanes = width() if num * _numbers(x) >= _SHARED else 1
    if chunk_size is None:
        chunk_size = default(lanes) if default else default_chunk(x)
    most = max(1, min(lanes, chunk_size, num))
    length = -(-num // most)
    chunk = chunk_length(name, length, chunk_size // most)
    return _Lanes(-(-num // length), length, chunk)


def running_sum(
    name: str, term: Callable[[jax.Array], Any], num: int, chunk_size: int | None, x: Any
) -> Any:
    """`sum_k term(k)`, k < `num`; at least in float32.

    Gradients through it recompute the terms, so its memory stays bounded there too.

    Args:
      name: Of the method, for errors.
      term: Of an integer, a pytree.
      num: Number of terms.
      chunk_size: Terms alive at once; None chooses by `x`.
      x: Of what each term has a copy.

    Returns:
      `term`'s pytree. Cores share the terms where the program is traced for that.
    """
    term = _many(term, num)
    # Each core has a term of its own, however large: what is not kept for each term repays that.
    lanes = _lanes(name, num, chunk_size, x, lambda lanes: max(lanes, default_chunk(x)))
    chunk = lanes.chunk
    even = num % lanes.count == 0 and lanes.length % chunk == 0

    def one_chunk(first, end):
        if chunk == 1 and even:
            return term(first)
        terms = _terms(term, first, num, chunk)
        if not even:  # a repeated last copy fills the last chunk; `where`, for it may be NaN
            here = first + jnp.arange(chunk, dtype=jnp.int32) < end
            terms = jax.tree.map(lambda a: jnp.where(_column(here, a), a, 0), terms)
        return jax.tree.map(lambda a: a.sum(0, dtype=at_least_float32(a)), terms)

    if lanes.count == 1 and chunk == num:
        return one_chunk(jnp.int32(0), num)

    # Compiled with what is around it, but traced once for its shapes and for all shares.
    traced_once = jax.jit(one_chunk)

    def share(part):
        firsts, end = part

        def add(total, first):
            one = traced_once(first, end)
            return jax.tree.map(lambda t, a: t + a.astype(t.dtype), total, one), None

        shapes = jax.eval_shape(traced_once, firsts[0], end)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, at_least_float32(a)), shapes)
        return jax.lax.scan(jax.checkpoint(add, prevent_cse=False), zeros, firsts)[0]

    ends = [min(num, (lane + 1) * lanes.length) for lane in range(lanes.count)]
    sums = shared(share, list(zip(lanes.starts, map(jnp.int32, ends), strict=True)))
    return jax.tree.map(lambda *a: sum(a[1:], a[0]), *sums)


def stacked(
    name: str,
    term: Callable[[jax.Array], Any],
    num: int,
    chunk_size: int | None,
    x: Any,
    default: Callable[[int], int] | None = None,
) -> Any:
    """`[term(0), ..., term(num - 1)]` along a new first axis.

    Args:
      name: Of the method, for errors.
      term: Of an integer: what is read off the model's outputs for one copy of `x`.
      num: Number of copies.
      chunk_size: Copies alive at once; None chooses by `x`.
      x: Of what `term` makes copies.
      default: Of the cores that work side by side, what None chooses; None goes by `x`.

    Returns:
      `term`'s pytree. Cores share the copies where the program is traced for that.
    """
    term = _many(term, num)
    lanes = _lanes(name, num, chunk_size, x, default)

    def one_chunk(_, first):
        return None, jax.checkpoint(_terms, static_argnums=(0, 2, 3))(term, first, num, lanes.chunk)

    def share(firsts):
        return jax.lax.scan(one_chunk, None, firsts)[1]

    if lanes.count == 1 and lanes.chunk == num:
        return _terms(term, jnp.int32(0), num, num)
    found = shared(share, [jnp.minimum(first, num - 1) for first in lanes.starts])
    rows = lambda a: a.reshape(-1, *a.shape[2:])[: lanes.length]
    return jax.tree.map(lambda *a: jnp.concatenate(list(map(rows, a)))[:num], *found)


def _many(term, num):
    """`term`, traced as what runs `num` times."""

    def one(k):
        with serving(num):
            return term(k)

    return one


def _terms(term, first, num, chunk):
    if chunk == 1:
        return jax.tree.map(lambda a: a[None], term(first))
    k = first + jnp.arange(chunk, dtype=jnp.int32)
    # Not rows [chunk * N]: a target function or params may hold one entry for each example.
    return jax.vmap(term)(jnp.minimum(k, num - 1))


def with_noise(key: jax.Array, x: Any, noise_scale: Any) -> Any:
    """`x` plus Gaussian noise of `noise_scale` times each example's range; integer leaves stay."""

    def noisy(index, a):
        if not is_floating(a):
            return a
        wide = at_least_float32(a)
        noise = jax.random.normal(jax.random.fold_in(key, index), a.shape, wide)
        moved = a.astype(wide) + jnp.asarray(noise_scale, wide) * _range(a) * noise
        return moved.astype(a.dtype)

    leaves, structure = jax.tree.flatten(x)
    return jax.tree.unflatten(structure, [noisy(i, jnp.asarray(a)) for i, a in enumerate(leaves)])


def _range(a):
    """Largest less smallest number of each example; in float32 at least."""
    a, axes = a.astype(at_least_float32(a)), tuple(range(1, a.ndim))
    return a.max(axes, keepdims=True) - a.min(axes, keepdims=True)


def noisy_where_finite(x: Any) -> jax.Array:
    """`[N]`: 1, and NaN where an example has no finite range, so that `with_noise` makes NaN of all
    of it; a ReLU's gradient there is 0, which would look like an explanation."""
    leaves = [a for a in map(jnp.asarray, jax.tree.leaves(x)) if is_floating(a)]
    finite = jnp.stack([jnp.isfinite(_range(a)).reshape(-1) for a in leaves]).all(0)
    return unless(~finite, jnp.float32)


def at_least(name: str, option: str, value: int, least: int) -> None:
    """Refuses a count that is too small to mean anything."""
    if value < least:
        raise ValueError(
            f"{name}: {option} must be at least {least}; got {value}. More of them cost time alone."
        )


def check_one_array(name: str, x: Any) -> None:
    """Refuses a pytree where a method needs a single array."""
    if jax.tree.structure(x) != jax.tree.structure(0):
        raise ValueError(
            f"{name}: x must be one array [N, ...]; got a pytree of {len(jax.tree.leaves(x))}. "
            "Explain one leaf: fix the others inside apply_fn's params."
        )


def is_floating(leaf: Any) -> bool:
    """Whether a leaf of the input can be moved; integer leaves stay as they are."""
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def at_least_float32(a: Any) -> Any:
    """The dtype in which numbers like `a` are added up."""
    narrow = is_floating(a) and jnp.finfo(a.dtype).bits < 32
    return jnp.dtype(jnp.float32) if narrow else a.dtype


def _column(a, like):
    return a.reshape(a.shape + (1,) * (like.ndim - a.ndim))
