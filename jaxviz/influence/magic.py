"""MAGIC: the gradient of what a training run ends with, by the weight of each training example."""

import dataclasses
import functools
import itertools
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.models import own_or_told, shapes_of
from jaxviz.calls.options import whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.progress import progress_bar
from jaxviz.graph.rewrite import RuleSet, rewrite
from jaxviz.influence.steps import (
    Span,
    Steps,
    checked,
    divided,
    drawn,
    given_weights,
    one_step,
    spans,
)
from jaxviz.rules.fast import fast

# Bytes of a run's states that are kept where nobody said.
_KEPT = 2**28


class Magic(NamedTuple):
    """What `magic` found.

    Attributes:
      scores: `[..., N]`: the derivative of each test quantity by the weight of each training
        example. Positive: the example raises the quantity; leaving it out changes the quantity by
        about minus its score.
      values: `[...]`: the test quantities at the end of the run, as `test_fn` gives them.
      state: The run's last state.
    """

    scores: jax.Array
    values: jax.Array
    state: Any

    __repr__ = shown
    _repr_html_ = shown_html


@public(max_states=whole(2))
def magic(
    steps: Steps,
    test_fn: Callable[[Any], Any],
    *,
    weights: Any = None,
    max_states: int | None = None,
    chunk_size: int | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Magic:
    """How each test quantity changes with the weight of each training example, exactly.

    The gradient goes through the whole training run: every step's dependence on the one before,
    the optimizer's momentum and moments, batch statistics, dropout and augmentation as they were
    drawn. Nothing is approximated but by float rounding. What leaving examples out does is
    predicted to first order, by minus the sum of their scores.

    Memory: where the run's states are too many to be kept, they are computed again from a few of
    them. Time, in training runs: 1 forwards, about 3 for the pullbacks of its steps, and 1 for each
    level of recomputation: 4.3 together for one test loss of `models.MNISTNetA` on a CPU, whose
    states were kept (benchmarks/magic.py). Further quantities add to the pullbacks alone.

    A network with kinks (ReLU, max pooling) trained with large steps has gradients that are right
    at the point and predict little; smooth activations and smaller steps help (the paper calls
    such training metasmooth). `datamodeling_score` measures it.

    Args:
      steps: The training run, such as `training.fit_steps` or `weighted_steps` makes.
      test_fn: Pure `state -> numbers`, any shape; each is a test quantity. For the scores' usual
        sign (positive is helpful) take minus a loss, or a log probability.
      weights: `[N]`: where the gradient is taken; None is ones, the run itself. Those on
        random halves lie around 0.5 for all: there it predicts them better, most of all where the
        sum of the weights counts (descent without Adam's scales).
      max_states: Most states of the training that are held at once, those of a span's steps
        included; None is all of them where they take at most 256 MB, else about 2 * sqrt(T), one
        level of recomputation.
      chunk_size: Test quantities pulled back at once; None takes all. It changes memory, not the
        recomputation. On a CPU convolutional nets are quickest one by one (1).
      checkpoint: Folder where the way back is saved after each of its parts; called again with the
        same arguments, the way back goes on from there. (A bar on a terminal counts them.)

    Returns:
      Scores `[..., N]`, values `[...]` and the last state. An example that the run never sees has
      the score 0. NaN where the run diverged.

    Raises:
      ValueError: `steps` or `weights` do not fit together, `test_fn` gives no floating numbers,
        `max_states` is too few (about log2(T)), or `checkpoint` holds another run.

    Example:
      >>> import optax
      >>> from jaxviz.influence import weighted_steps
      >>> loss = lambda w, batch: (batch - w) ** 2 / 2
      >>> steps = weighted_steps(loss, jnp.array(0.0), jnp.array([1.0, 3.0]), [[0, 1]],
      ...                        optimizer=optax.sgd(0.5))
      >>> magic(steps, lambda state: state.params).scores.tolist()  # w1 = w0 + 0.5 * mean(v * x)
      [0.25, 0.75]

    Reference:
      Ilyas and Engstrom 2025, arXiv:2504.16430 (MAGIC); Engstrom et al. 2025, arXiv:2503.13751
      (REPLAY, metasmoothness). Theirs is a tree of checkpoints over single steps; here its leaves
      are spans, whose states are held together. Batch statistics see an example of weight 0.
    """
    steps = checked("magic", steps)
    weights = given_weights("magic", steps, weights)
    if weights.ndim != 1:
        raise ValueError(
            f"magic: weights must be [N], the one place where the gradient is taken; got "
            f"{weights.shape}. Call it once for each."
        )
    numbers_of("magic", test_fn, steps.state)
    sizes = [len(rows) for rows in steps.order]
    if max_states is None:
        one = sum(leaf.nbytes for leaf in jax.tree.leaves(steps.state))
        max_states = max(_KEPT // max(one, 1), sum(planned(sizes, None)[:2]) + 1)
    length, slots, depth = planned(sizes, max_states)
    replay = _Replay(steps, weights, spans(steps, length), slots, depth, chunk_size)
    parts = replay.parts(0, len(replay.spans))
    kept, final = replay.starts(steps.state, parts)
    values, cotangents = _tested(final, test_fn=test_fn)
    start = jnp.zeros((values.size, weights.size), weights.dtype), cotangents
    way = _Way(checkpoint, start, (final, cotangents, weights, steps.order), len(replay.spans))
    with progress_bar("spans of steps, back", way.count, way.count - way.done) as way.move:
        scores, _ = replay.backwards(kept, parts, way.carry, way)
    return Magic(scores.reshape(*values.shape, weights.size), values, final)


def planned(sizes: list[int], max_states: int | None) -> tuple[int, int, int]:
    """Steps in a span, states kept at each level, and levels of recomputation.

    Held at once are the states of a span, those kept at each level, and the one where the run
    starts: `length + slots * depth + 1`. Without a level all spans are: `length * (slots + 1) + 1`.
    None asks for the one level that holds least.

    Example:
      >>> planned([8] * 100, None), planned([8] * 100, 12), planned([8] * 100, 101)
      ((10, 9, 1), (2, 3, 3), (10, 9, 0))
    """
    length = math.isqrt(len(sizes) - 1) + 1
    slots = len(divided(sizes, length)) - 1
    if max_states is None:
        return length, slots, 1
    if length * (slots + 1) < max_states:
        return length, slots, 0
    found = _fitting(sizes, max_states)
    if found is None:
        least = next(m for m in range(max_states + 1, len(sizes) + 3) if _fitting(sizes, m))
        raise ValueError(
            f"magic: max_states must be at least {least} for these {len(sizes)} steps; got "
            f"{max_states}. Raise it."
        )
    depth, length, slots = found
    return length, slots, depth


def _fitting(sizes, max_states):
    """The least depth, and with it the shortest spans, for which so many states are enough."""
    for depth in range(1, max_states + 1):
        for length in range(1, max(2, max_states - depth)):
            slots = (max_states - 1 - length) // depth
            if length < max_states and (slots + 1) ** depth >= len(divided(sizes, length)):
                return depth, length, slots
    return None


class _Replay(NamedTuple):
    """Goes through the run's spans, forwards and backwards."""

    steps: Steps
    weights: jax.Array
    spans: list[Span]
    slots: int
    depth: int
    chunk_size: int | None

    def parts(self, first, last):
        """The spans from `first` to before `last`, in at most `slots + 1` parts."""
        count = min(self.slots + 1, last - first)
        bounds = [first + (last - first) * i // count for i in range(count + 1)]
        return list(itertools.pairwise(bounds))

    def forwards(self, state, first, last):
        for span in self.spans[first:last]:
            state = advanced(state, self.weights, self.steps.data, span, step_fn=self.steps.step_fn)
        return state

    def recorded(self, state, number):
        """All states of a span's steps, and the one after it."""
        given = self.weights, self.steps.data, self.spans[number]
        return _recorded(state, *given, step_fn=self.steps.step_fn)

    def starts(self, state, parts):
        """The state where each part begins, or all of it where none is recomputed; and the last."""
        kept = []
        for first, last in parts:
            if self.depth == 0:
                states, state = self.recorded(state, first)
                kept.append(states)
            else:
                kept.append(state)
                state = self.forwards(state, first, last)
        return kept, state

    def backwards(self, kept, parts, carry, way):
        """Pulls `carry`, the scores and cotangents after the parts, back to before them."""
        for first, last in reversed(parts):
            state = kept.pop()
            if first >= way.done:  # an earlier call went back as far as this
                continue
            if last - first == 1:
                carry = _reversed(
                    state if self.depth == 0 else self.recorded(state, first)[0],
                    self.weights,
                    self.steps.data,
                    self.spans[first],
                    carry,
                    step_fn=self.steps.step_fn,
                    chunk_size=self.chunk_size,
                )
            else:
                inner = self.parts(first, min(last, way.done))
                begun, state = self.starts(state, inner[:-1])
                carry = self.backwards([*begun, state], inner, carry, way)
            way.save(first, carry)
        return carry


@functools.partial(jax.jit, static_argnames="step_fn")
def advanced(state: Any, weights: Any, data: Any, span: Span, *, step_fn: Callable) -> Any:
    """The state after a span's steps."""
    return jax.lax.fori_loop(
        0, span.count, lambda t, s: one_step(step_fn, s, data, weights, span, t), state
    )


@functools.partial(jax.jit, static_argnames="step_fn")
def _recorded(state, weights, data, span, *, step_fn):
    """The states before each of the span's steps, `[length, ...]`, and the one after them."""

    def record(t, carried):
        state, kept = carried
        kept = jax.tree.map(lambda k, s: k.at[t].set(s), kept, state)
        return one_step(step_fn, state, data, weights, span, t), kept

    kept = jax.tree.map(lambda s: jnp.broadcast_to(s, (len(span.rows), *s.shape)), state)
    state, kept = jax.lax.fori_loop(0, span.count, record, (state, kept))
    return kept, state


@functools.partial(jax.jit, static_argnames=("step_fn", "chunk_size"))
def _reversed(kept, weights, data, span, carry, *, step_fn, chunk_size):
    """Back through the span's steps, one pullback for each."""
    structure = jax.tree.structure(kept)
    moves = tuple(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(kept))
    # What JAX makes of a gradient's derivative is again what XLA is slow at inside a loop.
    pulled = rewrite(_Pullback(_Step(step_fn, structure, moves), chunk_size), fast)

    def back(number, carried):
        scores, cotangents = carried
        t = span.count - 1 - number
        moving, still = _divided(jax.tree.leaves(jax.tree.map(lambda k: k[t], kept)), moves)
        given, cotangents = pulled(still, (moving, drawn(data, weights, span, t), cotangents))
        return scores.at[:, span.rows[t]].add(given), cotangents

    return jax.lax.fori_loop(0, span.count, back, carry)


@dataclasses.dataclass(frozen=True)
class _Step:
    """`(what does not move, batch, key, the state's floating leaves, weights) -> those leaves`."""

    step_fn: Callable
    structure: Any
    moves: tuple[bool, ...]

    def __call__(self, fixed, moving):
        (still, batch, key), (leaves, weights) = fixed, moving
        state = jax.tree.unflatten(self.structure, _joined(leaves, still, self.moves))
        after = self.step_fn(state, batch, weights, key)
        return _divided(jax.tree.leaves(after), self.moves)[0]


@dataclasses.dataclass(frozen=True)
class _Pullback:
    """From cotangents `[K, ...]` after a step to those by its batch's weights, and before it."""

    step: _Step
    chunk_size: int | None

    def __call__(self, still, given):
        moving, (batch, weights, key), cotangents = given
        step = rewrite(self.step, FLAT_ROOTS)
        fixed = still, batch, key
        _, pull = jax.vjp(lambda *moving: step(fixed, moving), moving, weights)
        count = len(jax.tree.leaves(cotangents)[0])
        if min(count, self.chunk_size or count) == 1:  # no axis of one: kernels would be batched
            before, given = jax.lax.map(pull, cotangents)
        else:
            before, given = jax.lax.map(pull, cotangents, batch_size=self.chunk_size or count)
        return given, before


def _flat_root(op):
    """The square root, whose slope at 0 is 0 and not infinite.

    Where a gradient has always been 0, as of a weight beside a black pixel, so is the second moment
    that Adam takes the root of, whatever the examples' weights: what reaches it is 0, and 0 times
    infinity would be NaN.
    """

    @jax.custom_jvp
    def root(x):
        return op.evaluate(x)

    @root.defjvp
    def slope(primals, tangents):
        y = root(*primals)
        half = jnp.where(y > 0, 0.5 / jnp.where(y > 0, y, jnp.ones_like(y)), jnp.zeros_like(y))
        return y, tangents[0] * half

    return root


FLAT_ROOTS = RuleSet("magic", {"sqrt": _flat_root}, named=False, by_primitive=True)


def _divided(leaves, moves):
    found = list(zip(leaves, moves, strict=True))
    return [leaf for leaf, moving in found if moving], [
        leaf for leaf, moving in found if not moving
    ]


def _joined(moving, still, moves):
    moving, still = iter(moving), iter(still)
    return [next(moving) if m else next(still) for m in moves]


@functools.partial(jax.jit, static_argnames="test_fn")
def _tested(state, *, test_fn):
    """The test quantities and the gradient of each by the state's floating leaves."""
    leaves, structure = jax.tree.flatten(state)
    moves = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    moving, still = _divided(leaves, moves)
    tested = lambda moving: test_fn(jax.tree.unflatten(structure, _joined(moving, still, moves)))
    values, pull = jax.vjp(lambda moving: jnp.asarray(tested(moving)), moving)
    units = jnp.eye(values.size, dtype=values.dtype).reshape(values.size, *values.shape)
    return values, jax.vmap(lambda unit: pull(unit)[0])(units)


def numbers_of(who: str, test_fn: Callable, state: Any) -> jax.ShapeDtypeStruct:
    """The shape of what `test_fn` gives for a state; refused if these are no floating numbers."""
    try:
        found = jax.eval_shape(test_fn, state)
    except Exception as error:  # the function's own, of whatever kind
        raise own_or_told(error, who, "test_fn must be a function of the run's state") from error
    array = isinstance(found, jax.ShapeDtypeStruct)
    if not array or not jnp.issubdtype(found.dtype, jnp.floating):
        raise TypeError(
            f"{who}: test_fn must return an array of floating numbers; it returned "
            f"{shapes_of(found)}. Such as minus the test losses, [K]."
        )
    return found


class _Way:
    """How far back the way is: in a file that is always whole, and in a bar on terminals."""

    def __init__(self, folder, carry, marks, count):
        self.count, self.done, self.carry, self._path = count, count, carry, None
        self.move: Callable[[int], None] | None = None
        if folder is None:
            return
        self._path = Path(folder) / "magic.npz"
        crc = 0
        for leaf in jax.tree.leaves(marks):
            crc = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), crc)
        self._mark = np.asarray([crc, count])
        if self._path.is_file():
            with np.load(self._path) as file:
                if file["mark"].tolist() != self._mark.tolist():
                    raise ValueError(
                        f"magic: checkpoint {folder} must be of the same run, test quantities and "
                        "max_states; it is of others. Name another folder."
                    )
                leaves = [file[f"leaf{i}"] for i in range(len(jax.tree.leaves(carry)))]
                self.done = int(file["done"])
            self.carry = jax.tree.unflatten(jax.tree.structure(carry), map(jnp.asarray, leaves))

    def save(self, first, carry):
        if self.move:
            jax.block_until_ready(carry)
            self.move(self.count - first)
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        leaves = {f"leaf{i}": np.asarray(a) for i, a in enumerate(jax.tree.leaves(carry))}
        with open(partial, "wb") as file:
            np.savez(file, mark=self._mark, done=first, **leaves)  # type: ignore[arg-type]
        os.replace(partial, self._path)
