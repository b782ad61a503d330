"""Many perturbed copies of one batch at bounded memory: their chunks, their sum, their class."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.engine.contract import Target, select
from jaxviz.engine.shares import MOST, cores, shared, width
from jaxviz.graph.indices import unless
from jaxviz.graph.recompute import copied, recomputed
from jaxviz.graph.rewrite import rewrite
from jaxviz.rules.fast import serving, weighed
from jaxviz.rules.unread import read_only

# Numbers of the input that are alive at once unless the caller says otherwise. Caches reward small
# chunks on a CPU (84 digits), but not of one photograph: two take 10 to 20 % less time each. A GPU
# wants to be filled (27 photographs). A core has two photographs, one copy where that is more, if
# one fits; in one program of two cores four, too, take 5 to 12 % less time each than two.
_ALIVE = {"cpu": 2**16}
_ALIVE_ELSEWHERE = 2**22
_FEWEST = 2  # examples
# Numbers that a token id stands for: the vector that is looked up for it, whose length x does not
# tell. 128 ids of MiniLM-L6 take 15 % less time each with 4 or 8 copies at once than with 128.
_OF_AN_ID = 64
# Numbers in all copies together from which on it pays to share their passes among cores.
_SHARED = 2**19
# Copies that a core takes in one turn at least, so that what a turn costs (its start, and what is
# made of the weights anew) stays below 2 % of it; and the numbers of all turns' sums together.
_TURN = 32
_KEPT = 2**25


def outputs_of(apply_fn: Callable, params: Any, x: Any) -> Any:
    """`apply_fn(params, x)`, its slow operations replaced by exact fast ones."""
    return _fast(apply_fn, params, x, None)


def score_of(apply_fn: Callable, params: Any, x: Any, target: Target) -> jax.Array:
    """The explained number of each example, `[N]`: what every method takes."""
    return select(_fast(apply_fn, params, x, target), target)


def _fast(apply_fn, params, x, target):
    return rewrite(read_only(apply_fn, params, x, target), weighed())(params, x)


def fixed_target(apply_fn: Callable, params: Any, x: Any, target: Target) -> Target:
    """`target`, with None made into the top class at `x`: copies of `x` may have other ones."""
    return jnp.argmax(outputs_of(apply_fn, params, x), axis=1) if target is None else target


class WithCopy(NamedTuple):
    """Outputs at a copy, and what was told with the copy.

    Attributes:
      outputs: Of the model.
      of_copy: Any pytree.
    """

    outputs: Any
    of_copy: Any


def outputs_of_copies(
    apply_fn: Callable,
    params: Any,
    x: Any,
    copy: Callable[[jax.Array], Any],
    beside: bool = False,
) -> Callable[[jax.Array], Any]:
    """From k to the outputs at `copy(k)`, or at `x` itself for k < 0; traced once, as `jit` is.

    With `beside`, `copy(k)` is a pair: the copy, and what is handed on beside its outputs, as
    `WithCopy`.
    """

    @jax.jit
    def outputs(k):
        made, said = copy(k) if beside else (copy(k), None)
        seen = jax.tree.map(lambda a, b: jnp.where(k < 0, a, b), x, made)
        found = outputs_of(apply_fn, params, seen)
        return WithCopy(found, said) if beside else found

    return outputs


def rows_of(x: Any) -> int:
    """How many examples there are."""
    return jnp.shape(jax.tree.leaves(x)[0])[0]


def zeros_of(function: Callable, *arguments: Any) -> Any:
    """Zeros of the shapes and dtypes of what a function gives, which is not run."""
    shapes = jax.eval_shape(function, *arguments)
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)


def default_chunk(x: Any) -> int:
    """How many copies of `x` are alive at once where nobody said."""
    batch = max(rows_of(x), 1)
    fit = _ALIVE.get(jax.default_backend(), _ALIVE_ELSEWHERE) // max(_numbers(x), 1)
    here = min(cores(), MOST)
    return max(here if fit else 1, here * _FEWEST // batch, fit)


def _numbers(x: Any) -> int:
    """How many numbers one copy has, whole ones `[N, tokens]` taken for the ids of tokens."""
    return sum(math.prod(jnp.shape(leaf)) * _each_is(leaf) for leaf in jax.tree.leaves(x))


def _each_is(leaf: Any) -> int:
    return _OF_AN_ID if jnp.ndim(leaf) == 2 and not is_floating(leaf) else 1


def chunk_length(name: str, num: int, chunk_size: int) -> int:
    """How many of `num` copies to take at once: at most `chunk_size`, few wasted."""
    if chunk_size < 1:
        raise ValueError(
            f"{name}: chunk_size must be at least 1, the copies alive at once; got {chunk_size}. "
            "Pass None to have it chosen."
        )
    most = min(chunk_size, num)
    # 50 copies in chunks of at most 8 are ten chunks of 5, not seven of 8 with six copies wasted;
    # but 25 in chunks of at most 2 are thirteen of 2, for one at a time is slower. Half as many at
    # once cost 4 % (an encoder) to 12 % (photographs) more each.
    each = lambda c: 1 + 0.08 * math.log2(most / c)
    return min(range(1, most + 1), key=lambda c: ((num + -num % c) * each(c), -c))


class _Lanes(NamedTuple):
    """How copies are divided: `count` times `length` and `more`, of which `chunk` at once.

    As many as there are cores, or, of a long loop, several turns for each core.
    """

    count: int
    length: int
    chunk: int
    more: int

    @property
    def firsts(self) -> jax.Array:
        """The first place of each chunk of a lane."""
        chunks = -(-(self.length + self.more) // self.chunk)
        return self.chunk * jnp.arange(chunks, dtype=jnp.int32)

    @property
    def starts(self) -> list[int]:
        """The first copy of each lane."""
        return [lane * self.length for lane in range(self.count)]


def _lanes(name, num, chunk_size, x, default=None, more=0) -> _Lanes:
    """For `num` copies, and `more` in each lane."""
    lanes = width() if num * _numbers(x) >= _SHARED else 1
    if chunk_size is None:
        chunk_size = default(lanes) if default else default_chunk(x)
    most = max(1, min(lanes, chunk_size, num))
    length = -(-num // most)
    chunk = chunk_length(name, length + more, chunk_size // most)
    if 1 < most == width():  # as many as may be alive at once work at once
        length = _turn(length, chunk, more, most, x)
    return _Lanes(-(-num // length), length, chunk, more)


def _turn(length, chunk, more, lanes, x):
    """How many of its `length` copies a core takes in one turn: whole chunks with `more`."""
    numbers = max(_numbers(x), 1)
    least = max(_TURN * (1 + more), _SHARED // numbers)
    turns = min(length // least, _KEPT // (lanes * numbers))
    if turns < 2:
        return length
    return -(-(-(-length // turns) + more) // chunk) * chunk - more


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

    def one_chunk(_, first, end):
        if chunk == 1 and even:
            return None, term(first)
        k = first + jnp.arange(chunk, dtype=jnp.int32)
        terms = _each(term, jnp.minimum(k, num - 1))
        return None, _total(terms, None if even else k < end)

    if lanes.count == 1 and chunk == num:
        return one_chunk(None, jnp.int32(0), num)[1]
    parts = [(a + lanes.firsts, jnp.int32(min(num, a + lanes.length))) for a in lanes.starts]
    return _sum_of_chunks(one_chunk, None, parts)


def running_gradients(
    name: str,
    outputs: Callable[[Any], Any],
    at: Callable[[jax.Array], tuple[Any, jax.Array]],
    here: Any,
    num: int,
    chunk_size: int | None,
) -> Any:
    """`running_sum` of gradients by the values, of the score of the top class at one of them.

    `here` goes through the model among the others, as the first of each core's: a pass of its own
    would be a second model to trace and to compile.

    Args:
      name: Of the method, for errors.
      outputs: Of values, all of them floating, `[N, K]`.
      at: Of k < num, the values and the weight of the gradient there.
      here: The values at which the top class is chosen; their gradient is not in the sum.
      num, chunk_size: As for `running_sum`; copies are of `here`.

    Returns:
      The sum of weights times gradients, in float32 at least.
    """
    at, outputs = _many(at, num), _many(outputs, num)
    default = lambda lanes: max(lanes, default_chunk(here))
    lanes = _lanes(name, num, chunk_size, here, default, more=1)

    def one_chunk(top, first, part):
        start, end = part
        place = first + jnp.arange(lanes.chunk, dtype=jnp.int32)
        k = start + place - 1
        values, weights = _each(at, jnp.clip(k, 0, num - 1))
        first_of_all = lambda a, b: jnp.where(_column(place == 0, b), a[None], b)
        values = jax.tree.map(first_of_all, jax.lax.stop_gradient(here), values)
        each = recomputed(lambda values: _each(outputs, values), values)
        found, pull = jax.vjp(each, values)
        top = jnp.where(first == 0, jnp.argmax(found[0], axis=1), top)
        scores = lambda found: jax.vmap(lambda outputs: select(outputs, top))(found).sum()
        (gradients,) = pull(jax.grad(scores)(found))
        return top, _total(times_weights(gradients, weights), (place > 0) & (k < end))

    parts = [(jnp.int32(a), jnp.int32(min(num, a + lanes.length))) for a in lanes.starts]
    return _sum_of_chunks(one_chunk, _no_class(here), [(lanes.firsts, part) for part in parts])


def times_weights(gradients: Any, weights: Any) -> Any:
    """Gradients times one weight, or one for each of their first axis; in float32 at least."""

    def scaled(g):
        wide = at_least_float32(g)
        return g.astype(wide) * _column(jnp.asarray(weights, wide), g)

    return jax.tree.map(scaled, gradients)


def _no_class(x: Any) -> jax.Array:
    """`[N]`, of the type of a top class."""
    return jnp.argmax(jnp.zeros((rows_of(x), 1)), axis=1)


def _sum_of_chunks(one_chunk, state, shares):
    """The sum of `one_chunk(state, first, part) -> (state, terms)` over each share's chunks."""
    # Compiled with what is around it, but traced once for its shapes and for all shares.
    traced_once = jax.jit(one_chunk)

    def share(given):
        firsts, part = given

        def add(so_far, first):
            state, total = so_far
            state, one = traced_once(state, first, part)
            return (state, jax.tree.map(lambda t, a: t + a.astype(t.dtype), total, one)), None

        _, shapes = jax.eval_shape(traced_once, state, firsts[0], part)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, at_least_float32(a)), shapes)
        body = jax.checkpoint(add, prevent_cse=False)
        return jax.lax.scan(body, (state, zeros), firsts)[0][1]

    sums = shared(share, shares)
    return jax.tree.map(lambda *a: sum(a[1:], a[0]), *sums)


def _total(terms, which):
    """The sum of terms along their first axis, or of some: `where`, for others may be NaN."""
    if which is not None:
        terms = jax.tree.map(lambda a: jnp.where(_column(which, a), a, 0), terms)
    return jax.tree.map(lambda a: a.sum(0, dtype=at_least_float32(a)), terms)


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
    found = shared(share, [jnp.minimum(a + lanes.firsts, num - 1) for a in lanes.starts])
    rows = lambda a: a.reshape(-1, *a.shape[2:])[: lanes.length]
    return jax.tree.map(lambda *a: jnp.concatenate(list(map(rows, a)))[:num], *found)


def stacked_scores(
    name: str,
    outputs: Callable[[jax.Array], Any],
    read: Callable[[Any, Target], Any],
    num: int,
    chunk_size: int | None,
    x: Any,
    target: Target,
    *,
    clean: bool = False,
) -> tuple[Any, Any]:
    """What is read off the outputs for many copies of `x`, of the top class at `x` if none is told.

    `x` goes through the model among its copies, as the first of each core's: a pass of its own
    would be a second model to trace and to compile.

    Args:
      name: Of the method, for errors.
      outputs: As `outputs_of_copies` makes it.
      read: Of what `outputs` gives and a target other than None, a pytree.
      num: Number of copies.
      chunk_size: Copies alive at once; None chooses by `x`.
      x: Of what there are copies.
      target: As for every method.
      clean: Whether what is read at `x` itself is wanted.

    Returns:
      What `read` gives, stacked along a new first axis, and what it gives at `x`, or None. Cores
      share the copies where the program is traced for that.
    """
    if target is not None and not clean:
        return stacked(name, lambda k: read(outputs(k), target), num, chunk_size, x), None
    outputs = _many(outputs, num)
    lanes = _lanes(name, num, chunk_size, x, more=1)
    firsts = lanes.firsts

    def share(start):
        @jax.checkpoint
        def one_chunk(top, first):
            place = first + jnp.arange(lanes.chunk, dtype=jnp.int32)
            k = jnp.where(place == 0, -1, jnp.minimum(start + place - 1, num - 1))
            found = _each(outputs, k)
            if target is None:
                said = found.outputs if isinstance(found, WithCopy) else found
                top = jnp.where(first == 0, jnp.argmax(said[0], axis=1), top)
            chosen = top if target is None else target
            return top, jax.vmap(lambda outputs: read(outputs, chosen))(found)

        return jax.lax.scan(one_chunk, _no_class(x), firsts)[1]

    starts = list(map(jnp.int32, lanes.starts))
    found = [
        jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), one) for one in shared(share, starts)
    ]
    rows = lambda a: a[1 : lanes.length + 1]
    each = jax.tree.map(lambda *a: jnp.concatenate(list(map(rows, a)))[:num], *found)
    return each, jax.tree.map(lambda a: a[0], found[0])


def _many(term, num):
    """`term`, traced as what runs `num` times."""

    def one(k):
        with serving(num):
            return term(k)

    return one


def _terms(term, first, num, chunk):
    return _each(term, jnp.minimum(first + jnp.arange(chunk, dtype=jnp.int32), num - 1))


def _each(term, several):
    """The function of each of several arguments, stacked along their first axis."""
    if len(jax.tree.leaves(several)[0]) == 1:
        one = term(jax.tree.map(lambda a: a[0], several))
        return jax.tree.map(lambda a: jnp.asarray(a)[None], one)
    # Not rows [chunk * N]: a target function or params may hold one entry for each example.
    with copied(len(jax.tree.leaves(several)[0])):
        return jax.vmap(term)(several)


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
            "Fix all leaves but one inside apply_fn's params, or take a method of segments, which "
            "has one map a leaf: `feature_ablation`, `lime`, `kernel_shap`, `shapley_sampling`."
        )


def is_floating(leaf: Any) -> bool:
    """Whether a leaf of the input can be moved; integer leaves stay as they are."""
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def at_least_float32(a: Any) -> Any:
    """The dtype in which numbers like `a` are added up."""
    narrow = is_floating(a) and jnp.finfo(a.dtype).bits < 32
    return jnp.dtype(jnp.float32) if narrow else a.dtype


def wide(tree: Any) -> Any:
    """Arrays for sums: floating numbers in float32 at least, others as they are.

    A cast by name, since JAX's own promotion may be strict.
    """
    return jax.tree.map(lambda a: a.astype(at_least_float32(a)), tree)


def _column(a, like):
    return a.reshape(a.shape + (1,) * (like.ndim - a.ndim))
