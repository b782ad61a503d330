"""Ready-made targets: what of structured outputs is explained, in the words of the field.

Each gives a function `outputs -> [N]` for any method's `target`. Equal arguments give equal
functions, so that nothing is compiled twice.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.calls.naming import calling
from jaxviz.calls.options import described, numbers_list, refused, several, whole
from jaxviz.calls.public import public
from jaxviz.engine.copies import at_least_float32


@dataclasses.dataclass(frozen=True)
class _Held:
    """An array that is compared by what is in it."""

    shape: tuple[int, ...]
    dtype: str
    bytes: bytes

    @property
    def array(self) -> np.ndarray:
        return np.frombuffer(self.bytes, self.dtype).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Target:
    """`outputs -> [N]`; equal for equal arguments."""

    function: Callable
    arguments: tuple

    def __call__(self, outputs: Any) -> jax.Array:
        name = self.function.__name__.strip("_")
        with calling(name):
            given = [a.array if isinstance(a, _Held) else a for a in self.arguments]
            return self.function(name, outputs, *given)


def _held(who, option, value, kinds, must):
    """An array of these kinds, known before anything is traced."""
    found = value if isinstance(value, Tracer) else numbers_list(who, option, value)
    if isinstance(found, Tracer):
        raise refused(who, option, f"{must}, known when it is compiled", value, "Pass NumPy's.")
    found = np.asarray(found)
    if found.dtype.kind not in kinds or not found.size:
        kind = ValueError if found.dtype.kind in kinds else TypeError
        raise refused(who, option, must, value, kind=kind)
    found = found.astype(np.int64) if found.dtype.kind in "iu" else found
    return _Held(found.shape, found.dtype.str, found.tobytes())


def _places(who, option, value):
    must = "a whole number, or one for each example"
    found = _held(who, option, value, "iu", must)
    if len(found.shape) > 1:
        raise refused(who, option, must, value, kind=ValueError)
    return found


def _class(who, option, value):
    return _classes(who, option, _places(who, option, value).array)


def _classes(who, option, value):
    found = _held(who, option, value, "iu", "a whole number, or whole numbers")
    if found.array.min() < 0:
        raise refused(who, option, "indices from 0", value, kind=ValueError)
    return found


def _mask(who, option, value):
    must = "True and False, [N, *places] or [*places]"
    found = _held(who, option, value, "b", must)
    if not found.shape:
        raise refused(who, option, must, value, kind=ValueError)
    return found


@public(position=_places, index=_class)
def position_and_class(position: Any, index: Any) -> Callable:
    """One class at one position: of outputs `[N, L, K]`, `outputs[n, position, index]`.

    The logit of a word that follows (position -1), the tag of a token, the class of a residue.

    Args:
      position: A whole number, or one for each example, `[N]` (where padding is at the end, the
        last token's differ). Below 0 it counts from the end.
      index: The class, or one for each example, `[N]`.

    Returns:
      `outputs -> [N]`, in units of the outputs: for log-probabilities take
      `jaxviz.log_softmax(apply_fn)`.

    Raises:
      ValueError: Outputs of other axes, or no such position or class.

    Example:
      >>> outputs = jnp.arange(12.0).reshape(1, 3, 4)
      >>> position_and_class(-1, 2)(outputs).tolist()
      [10.0]
    """
    return Target(_position_and_class, (position, index))


def _position_and_class(who, outputs, position, index):
    count, length, classes = _shape(who, outputs, 3, "[N, L, K]")
    _inside(who, "position", position, -length, length, count)
    _inside(who, "index", index, 0, classes, count)
    here = np.broadcast_to(position % length, (count,))[:, None, None]
    rows = jnp.take_along_axis(outputs, jnp.asarray(here, jnp.int32), 1)[:, 0]
    return _taken(rows, np.broadcast_to(index, (count,)))


@public(tokens=_classes)
def log_probability(tokens: Any, *, start: int | None = None) -> Callable:
    """The log-probability of a continuation, which stands in `x`: sum_t log p(token t | before).

    Outputs `[N, L, V]` are a causal language model's logits: those at place p - 1 say what stands
    at place p. `x` holds the prompt and then the tokens, so one run scores all of them. To explain
    the prompt alone, or to compare continuations, take `jaxviz.continuations`.

    Args:
      tokens: Ids `[T]`, or `[N, T]` for each example.
      start: The place of the first of them, >= 1; None is L - T: they end the sequence.

    Returns:
      `outputs -> [N]`, in nats, at least in float32.

    Raises:
      ValueError: Outputs of other axes, places before 1 or past the end, or ids beyond V.

    Example:
      >>> outputs = jnp.zeros((1, 3, 4))
      >>> bool(jnp.allclose(log_probability([2, 1])(outputs), -2 * jnp.log(4.0)))
      True

    Reference:
      Captum's `LLMAttribution` explains the same number by perturbation.
    """
    if start is not None:
        start = whole(1)("log_probability", "start", start)
    return Target(_log_probability, (tokens, start))


def _log_probability(who, outputs, tokens, start):
    count, length, classes = _shape(who, outputs, 3, "[N, L, V]")
    if tokens.ndim not in (1, 2) or (tokens.ndim == 2 and len(tokens) not in (1, count)):
        raise ValueError(
            f"{who}: tokens must be [T] or [{count}, T]; got {tokens.shape}. One id is [id]."
        )
    _inside(who, "tokens", tokens, 0, classes, None)
    spoken = tokens.shape[-1]
    start = length - spoken if start is None else start
    if not 1 <= start <= length - spoken:
        raise ValueError(
            f"{who}: start must be 1 to {length - spoken}, for {spoken} tokens of {length}; got "
            f"{start}. Something must stand before the first, and x hold the last."
        )
    outputs = outputs[:, start - 1 : start - 1 + spoken]
    told = jax.nn.log_softmax(outputs.astype(at_least_float32(outputs)))
    return _taken(told, np.broadcast_to(tokens, (count, spoken))).sum(1)


@public(mask=_mask)
def masked_mean(mask: Any, index: Any = None) -> Callable:
    """The mean of a class over masked positions: of outputs `[N, *places, K]` or `[N, *places]`.

    The words that a masked language model must guess, the tokens of one entity, the pixels of one
    segment.

    Args:
      mask: True where a position counts: `[N, *places]`, or `[*places]` for all examples.
      index: The class, or one a position, in the shape of the mask (the words that were masked);
        None where the outputs have no axis of classes.

    Returns:
      `outputs -> [N]`, in units of the outputs: for log-probabilities take
      `jaxviz.log_softmax(apply_fn)`.

    Raises:
      ValueError: A mask or index that does not fit the outputs, or an example without a position.

    Example:
      >>> outputs = jnp.arange(8.0).reshape(1, 4, 2)
      >>> masked_mean([False, True, False, True], 1)(outputs).tolist()
      [5.0]
    """
    if index is not None:
        index = _held("masked_mean", "index", index, "iu", "a whole number, or whole numbers")
    return Target(_masked_mean, (mask, index))


def _masked_mean(who, outputs, mask, index):
    places = 1 if index is None else 2
    shape = _shape(who, outputs, None, "[N, *places]" if index is None else "[N, *places, K]")
    space = shape[1:] if index is None else shape[1:-1]
    if len(shape) <= places or mask.shape not in (space, (shape[0], *space)):
        raise ValueError(
            f"{who}: mask must be {space} or {(shape[0], *space)} for outputs {shape}; got "
            f"{mask.shape}. Pass index where the last axis is one of classes."
        )
    if not mask.any(tuple(range(mask.ndim - len(space), mask.ndim))).all():
        raise ValueError(f"{who}: mask must have a position for each example; got one without.")
    if index is not None:
        if index.shape not in ((), mask.shape, space, (shape[0], *space)):
            raise ValueError(
                f"{who}: index must be one class, or one a position, {mask.shape}; got "
                f"{index.shape}. Give the index the shape of the mask."
            )
        # What stands where nothing counts need be no class: -100, by custom.
        _inside(who, "index", np.where(mask, index, 0), 0, shape[-1], None)
        index = np.where(np.broadcast_to(mask, shape[:-1]), index, 0)
        outputs = _taken(outputs, index)
    wide = outputs.astype(at_least_float32(outputs))
    mask = np.broadcast_to(mask, outputs.shape)
    axes = tuple(range(1, outputs.ndim))
    return jnp.where(mask, wide, 0).sum(axes) / jnp.asarray(mask.sum(axes), wide.dtype)


def _of(who, option, value):
    if callable(value):
        try:
            hash(value)
        except TypeError:
            raise refused(who, option, "a hashable function", value) from None
        return value
    return _class(who, option, value)


@public(target=_of, other=_of)
def difference(target: Any, other: Any) -> Callable:
    """Why this and not that: one target less another (a contrastive explanation).

    Of two classes the logits' difference is that of their log-probabilities too. What speaks for
    both alike gets nothing.

    Args:
      target: Index of a class of outputs `[N, K]`, indices `[N]`, or a function `outputs -> [N]`,
        such as another of these targets.
      other: Likewise.

    Returns:
      `outputs -> [N]`, in units of the outputs.

    Raises:
      ValueError: No such class.

    Example:
      >>> difference(2, 0)(jnp.array([[1.0, 2.0, 4.0]])).tolist()
      [3.0]
      >>> word = lambda index: position_and_class(-1, index)
      >>> difference(word(1), word(0))(jnp.array([[[1.0, 5.0]]])).tolist()
      [4.0]

    Reference:
      "Logit difference" of Wang et al. 2022, arXiv:2211.00593; contrastive explanations of Yin and
      Neubig 2022, arXiv:2202.10419.
    """
    return Target(_difference, (target, other))


def _difference(who, outputs, target, other):
    def one(option: str, value: Any) -> Any:
        if callable(value):
            return value(outputs)
        count, classes = _shape(who, outputs, 2, "[N, K]")
        _inside(who, option, value, 0, classes, count)
        return _taken(outputs, np.broadcast_to(value, (count,)))

    return one("target", target) - one("other", other)


@dataclasses.dataclass(frozen=True)
class _Continuations:
    """`(params, prompt) -> [N, C]`; equal for equal arguments."""

    apply_fn: Callable
    candidates: tuple[tuple[int, ...], ...]

    def __call__(self, params: Any, x: Any) -> jax.Array:
        ids = jnp.issubdtype(getattr(x, "dtype", float), jnp.integer) and x.ndim == 2
        if not ids or not x.shape[1]:
            raise ValueError(
                f"continuations: x must be ids of prompts [N, L], L >= 1; got {described(x)}. "
                "Other inputs can be fixed in params."
            )
        scores = []
        for tokens in self.candidates:
            rows = jnp.broadcast_to(jnp.asarray(tokens, x.dtype), (len(x), len(tokens)))
            outputs = self.apply_fn(params, jnp.concatenate([x, rows], 1))
            scores.append(log_probability(tokens)(outputs))
        return jnp.stack(scores, 1)


_CANDIDATES = several(
    several(whole(0), "a list of ids, one or more"), "lists of ids, one a continuation"
)


@public(candidates=_CANDIDATES)
def continuations(apply_fn: Callable, candidates: Sequence[Sequence[int]]) -> Callable:
    """A causal language model as a classifier of prompts: a class for each way to go on.

    Every method then explains the prompt: index 0 is the first continuation's log-probability, and
    `targets.difference(0, 1)` why that one and not the other. With gradients at an embedding
    (`at_layer`), pass one candidate at a time: there each has a run, and a layer, of its own. Such
    an explanation has places for the candidate too; leave them out: `values[:, :L]`.

    Args:
      apply_fn: `(params, ids [N, L]) -> logits [N, L, V]`, where those at place p say what stands
        at p + 1. Shorter prompts are padded at their beginning, if the model takes that.
      candidates: C lists of ids, of any lengths.

    Returns:
      `(params, prompts [N, L]) -> [N, C]`, log-probabilities in nats, summed over each
      continuation's tokens. Costs a run of the model for each. Equal (`==`, `hash`) for equal
      arguments.

    Example:
      >>> bigrams = lambda table, ids: table[ids]
      >>> table = jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]]))
      >>> scores = continuations(bigrams, [[1], [0, 1]])(table, jnp.array([[1, 0]]))
      >>> jnp.exp(scores).round(4).tolist()
      [[0.75, 0.1875]]
    """
    return _Continuations(apply_fn, candidates)  # type: ignore[arg-type]


def _shape(who, outputs, axes, must):
    shape = getattr(outputs, "shape", None)
    if shape is None or (axes is not None and len(shape) != axes) or len(shape) < 2:
        told = described(outputs) if shape is None else shape
        raise ValueError(f"{who}: outputs must be {must}; got {told}. Pick them in the model.")
    return shape


def _inside(who, option, value, low, high, count):
    """Refuses numbers outside of [low, high), and arrays that are neither one nor `[count]`."""
    if count is not None and value.shape not in ((), (count,)):
        raise ValueError(
            f"{who}: {option} must be one number, or one for each of {count} examples; got shape "
            f"{value.shape}. Targets of other examples are made anew."
        )
    if value.min() < low or value.max() >= high:
        wrong = value[(value < low) | (value >= high)].ravel()[0]
        raise ValueError(
            f"{who}: {option} must be in [{low}, {high}), of the outputs; got {wrong}. Start at 0."
        )


def _taken(outputs, index):
    """`outputs[..., index]`, an index for each place."""
    return jnp.take_along_axis(outputs, jnp.asarray(index, jnp.int32)[..., None], -1)[..., 0]
