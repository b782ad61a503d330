"""Draws in rounds, until what they estimate is known well enough: sampled methods stop early."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxviz.engine.copies import (
    chunk_length,
    default_chunk,
    is_floating,
    wide,
    zeros_of,
)
from jaxviz.engine.one_way import one_way
from jaxviz.engine.shares import traced_with
from jaxviz.graph.recompute import copied
from jaxviz.rules.fast import serving

# Draws in a round: what an error is told from at the least, whatever `chunk_size` is.
ROUND = 32
FEW = 8  # where a draw is many passes


class Moments(NamedTuple):
    """What draws say so far.

    Attributes:
      count: How many there were.
      mean: A pytree, its leaves with examples first.
      squares: The sums of squared differences from the mean.
    """

    count: jax.Array
    mean: Any
    squares: Any

    @property
    def errors(self) -> Any:
        """Standard errors of the mean; infinite for fewer than two draws."""
        few, n = self.count < 2, jnp.maximum(self.count, 2)

        def error(squares):
            m = n.astype(squares.dtype)  # n * (n - 1) has no place in int32 from 46,342 on
            return jnp.where(few, jnp.inf, jnp.sqrt(squares / m / (m - 1)))

        return jax.tree.map(error, self.squares)


def stops_early(tolerance: Any) -> bool:
    """Whether draws are to be taken in rounds: 0 is told before the program, others are traced."""
    return isinstance(tolerance, Tracer) or bool(tolerance > 0)


def in_rounds(
    state: Any,
    draw: Callable[[Any, jax.Array], Any],
    shares: Callable[[Any], jax.Array],
    rounds: int,
    tolerance: Any,
) -> Any:
    """The state after so many rounds that no error is a larger share of its example than allowed.

    All examples go on until the last of them is known: one program, the same for each of them. The
    loop is one: how many rounds there are is known only within it, so cores share none of it.

    Args:
      state: Before the first round, a pytree.
      draw: Of a state and a round's number, the state after it.
      shares: Of a state `[N]`, as `error_shares` gives them: what each example's error is of it.
      rounds: How many there may be.
      tolerance: > 0, a number or traced.
    """

    def open_(carry):
        turn, state = carry
        known = small_enough(shares(state), tolerance)
        return (turn < rounds) & ((turn == 0) | ~known)

    step = lambda carry: (carry[0] + 1, draw(carry[1], carry[0]))
    state = traced_with(1, jax.lax.while_loop, open_, step, (jnp.int32(0), state))[1]
    return one_way(state, "tolerance", "Pass tolerance=0.0: then all draws are taken.")


def solved_in_rounds(
    draw: Callable[[jax.Array], jax.Array],
    solve: Callable[[jax.Array, jax.Array], Any],
    num: int,
    size: int,
    tolerance: Any,
) -> Any:
    """What `solve` makes of scores drawn in rounds, once it is known well enough.

    For what no running mean gives (a fit, a ratio): all scores are kept, and solved for anew after
    each round.

    Args:
      draw: Of the number of a round's first score, `size` scores, `[size, ...]`; those beyond
        `num` are never looked at.
      solve: Of all scores and a boolean each, whether it is drawn, a tuple: values and their
        standard errors first, pytrees with examples first.
      num: Number of scores at most.
      size: Of a round.
      tolerance: As for `in_rounds`.
    """
    rounds = -(-num // size)
    like = jax.eval_shape(draw, jnp.int32(0))
    place = jnp.arange(rounds * size, dtype=jnp.int32)
    nothing = jnp.zeros((rounds * size, *like.shape[1:]), like.dtype)

    def turn(state, number):
        first = number * size
        scores = jax.lax.dynamic_update_slice_in_dim(state[0], draw(first), first, 0)
        return scores, solve(scores[:num], place[:num] < first + size)

    start = nothing, zeros_of(lambda: turn((nothing, None), jnp.int32(0))[1])
    return in_rounds(start, turn, lambda state: error_shares(*state[1][:2]), rounds, tolerance)[1]


def error_shares(values: Any, errors: Any, gained: Any = None) -> jax.Array:
    """`[N]`: each example's largest error, as a share of the range of its values.

    Both are taken over all leaves: one of a single number an example has no range of its own. Where
    that is all there is, it is its size that counts.

    Args:
      values, errors: Pytrees with examples first.
      gained: `[N]`, what the values should add up to, if that is told: the larger of this share
        and of what they miss of it is given, the latter of a hundredth of the values' range where
        that is more, for an example may gain next to nothing.
    """
    value, error = map(_in_rows, (values, errors))
    if not value.shape[1]:
        return jnp.full(len(value), jnp.nan, value.dtype)
    extent = value.max(1) - value.min(1) if value.shape[1] > 1 else jnp.abs(value[:, 0])
    share = _share(error.max(1), extent)
    if gained is None:
        return share
    gained = gained.astype(value.dtype)
    missed = jnp.abs(value.sum(1) - gained)
    return jnp.maximum(share, _share(missed, jnp.maximum(jnp.abs(gained), extent / 100)))


def _share(part, whole):  # nothing of nothing is 0
    return jnp.where(part == 0, 0, part / whole)


def small_enough(shares: jax.Array, tolerance: Any) -> jax.Array:
    """Whether no share of an example is above `tolerance`.

    More draws make no number of a NaN, so an example with one keeps nobody waiting. Where all
    errors are 0 the draws were alike, which says nothing of those to come: of a saturated score few
    differ.
    """
    return ~((shares > jnp.asarray(tolerance).astype(shares.dtype)) | (shares == 0)).any()


def _in_rows(tree):
    """All numbers of each example, `[N, ...]` in the widest of the leaves' dtypes."""
    leaves = jax.tree.leaves(tree)
    widest = max((a.dtype for a in leaves if is_floating(a)), key=lambda dtype: dtype.itemsize)
    return jnp.concatenate([a.astype(widest).reshape(len(a), -1) for a in leaves], 1)


def told_by_errors(so_far: Moments, gained: Any = None) -> jax.Array:
    """`error_shares` of the mean."""
    return error_shares(so_far.mean, so_far.errors, gained)


def mean_until(
    name: str,
    term: Callable[[jax.Array], Any],
    num: int,
    chunk_size: int | None,
    x: Any,
    tolerance: Any,
    told: Callable[[Moments], jax.Array] = told_by_errors,
    size: int = ROUND,
) -> Moments:
    """The moments of `term(k)`, k < `num`, drawn in rounds until their mean is known well enough.

    Args:
      name: Of the method, for errors.
      term: Of an integer, a pytree with examples first.
      num: Number of terms at most.
      chunk_size: Terms alive at once; None chooses by `x`.
      x: Of what each term has a copy.
      tolerance: As for `in_rounds`.
      told: Of the moments, the shares that `in_rounds` goes by.
      size: Of a round.
    """

    def one(k):
        with serving(num):
            found = term(k)
        return wide(found)

    size = min(size, num)
    chunk = chunk_length(name, size, default_chunk(x) if chunk_size is None else chunk_size)

    def draw(so_far, turn):
        # Rounds are the same whatever the chunks: what a last one has too many is not counted.
        start, end = turn * size, jnp.minimum((turn + 1) * size, num)

        def chunked(so_far, first):
            k = first + jnp.arange(chunk, dtype=jnp.int32)
            with copied(chunk):
                terms = jax.vmap(one)(jnp.minimum(k, num - 1))
            found = moments(terms, k < end)
            return merged(so_far, found), None

        firsts = start + chunk * jnp.arange(-(-size // chunk), dtype=jnp.int32)
        return jax.lax.scan(chunked, so_far, firsts)[0]

    nothing = zeros_of(one, jnp.int32(0))
    start = Moments(jnp.int32(0), nothing, nothing)
    return in_rounds(start, draw, told, -(-num // size), tolerance)


def moments(terms: Any, live: jax.Array) -> Moments:
    """Of those terms along the first axis that are `live`."""
    count = live.sum(dtype=jnp.int32)
    column = lambda a: live.reshape(-1, *[1] * (a.ndim - 1))
    whole = lambda a: jnp.where(column(a), a, 0).sum(0) / jnp.maximum(count, 1).astype(a.dtype)
    mean = jax.tree.map(whole, terms)
    around = lambda a, m: jnp.where(column(a), jnp.square(a - m[None]), 0).sum(0)
    return Moments(count, mean, jax.tree.map(around, terms, mean))


def merged(one: Moments, other: Moments) -> Moments:
    """Of the draws of both (Chan, Golub and LeVeque 1983): no difference of large sums is taken."""
    count = one.count + other.count
    share = lambda a: (other.count / jnp.maximum(count, 1)).astype(a.dtype)
    apart = jax.tree.map(lambda a, b: b - a, one.mean, other.mean)
    mean = jax.tree.map(lambda a, d: a + d * share(a), one.mean, apart)

    def squares(a, b, d):
        return a + b + jnp.square(d) * share(a) * one.count.astype(a.dtype)

    return Moments(count, mean, jax.tree.map(squares, one.squares, other.squares, apart))
