"""Ready-made targets: what of structured outputs is explained, in the words of the field.

Each gives a function `outputs -> [N]` for any method's `target`. Equal arguments give equal
functions, so that nothing is compiled twice.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.options import described, maybe, real, refused, several, whole
from jaxviz.calls.public import public
from jaxviz.engine.copies import at_least_float32
from jaxviz.parts.picking import Target, contrast, held, inside, overlap, shape_of, taken


def _places(who, option, value):
    must = "a whole number, or one for each example"
    found = held(who, option, value, "iu", must)
    if len(found.shape) > 1:
        raise refused(who, option, must, value, kind=ValueError)
    return found


def _class(who, option, value):
    return _classes(who, option, _places(who, option, value).array)


def _classes(who, option, value):
    found = held(who, option, value, "iu", "a whole number, or whole numbers")
    if found.array.min() < 0:
        raise refused(who, option, "indices from 0", value, kind=ValueError)
    return found


def _mask(who, option, value):
    must = "True and False, [N, *places] or [*places]"
    found = held(who, option, value, "b", must)
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
    count, length, classes = shape_of(who, outputs, 3, "[N, L, K]")
    inside(who, "position", position, -length, length, count)
    inside(who, "index", index, 0, classes, count)
    here = np.broadcast_to(position % length, (count,))[:, None, None]
    rows = jnp.take_along_axis(outputs, jnp.asarray(here, jnp.int32), 1)[:, 0]
    return taken(rows, np.broadcast_to(index, (count,)))


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
    count, length, classes = shape_of(who, outputs, 3, "[N, L, V]")
    if tokens.ndim not in (1, 2) or (tokens.ndim == 2 and len(tokens) not in (1, count)):
        raise ValueError(
            f"{who}: tokens must be [T] or [{count}, T]; got {tokens.shape}. One id is [id]."
        )
    inside(who, "tokens", tokens, 0, classes, None)
    spoken = tokens.shape[-1]
    start = length - spoken if start is None else start
    if not 1 <= start <= length - spoken:
        raise ValueError(
            f"{who}: start must be 1 to {length - spoken}, for {spoken} tokens of {length}; got "
            f"{start}. Something must stand before the first, and x hold the last."
        )
    outputs = outputs[:, start - 1 : start - 1 + spoken]
    told = jax.nn.log_softmax(outputs.astype(at_least_float32(outputs)))
    return taken(told, np.broadcast_to(tokens, (count, spoken))).sum(1)


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
        index = held("masked_mean", "index", index, "iu", "a whole number, or whole numbers")
    return Target(_masked_mean, (mask, index))


def _masked_mean(who, outputs, mask, index):
    total, count = _over_mask(who, outputs, mask, index)
    return total / count


@public(mask=_mask)
def masked_sum(mask: Any, index: Any = None) -> Callable:
    """A class summed over a mask: of outputs `[N, *places, K]` or `[N, *places]`.

    Why a segmentation model sees this class in this region: the pixels where it does, say, or those
    of one object.

    Args:
      mask: True where a place counts: `[N, *places]`, or `[*places]` for all examples.
      index: The class, or one a place, in the shape of the mask; None where the outputs have no
        axis of classes.

    Returns:
      `outputs -> [N]`, in units of the outputs times places. `masked_mean` does not grow with the
      mask.

    Raises:
      ValueError: A mask or index that does not fit the outputs, or an example without a place.

    Example:
      >>> outputs = jnp.arange(8.0).reshape(1, 2, 2, 2)
      >>> masked_sum([[False, True], [False, True]], 1)(outputs).tolist()
      [10.0]

    Reference:
      Vinogradova et al. 2020, Seg-Grad-CAM, arXiv:2002.11434, eq. 2; "SemanticSegmentationTarget"
      of pytorch-grad-cam, whose outputs have classes first.
    """
    if index is not None:
        index = held("masked_sum", "index", index, "iu", "a whole number, or whole numbers")
    return Target(_masked_sum, (mask, index))


def _masked_sum(who, outputs, mask, index):
    return _over_mask(who, outputs, mask, index)[0]


def _over_mask(who, outputs, mask, index):
    """The sum over the mask, and the places in it, `[N]`."""
    places = 1 if index is None else 2
    shape = shape_of(who, outputs, None, "[N, *places]" if index is None else "[N, *places, K]")
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
        inside(who, "index", np.where(mask, index, 0), 0, shape[-1], None)
        index = np.where(np.broadcast_to(mask, shape[:-1]), index, 0)
        outputs = taken(outputs, index)
    wide = outputs.astype(at_least_float32(outputs))
    mask = np.broadcast_to(mask, outputs.shape)
    axes = tuple(range(1, outputs.ndim))
    return jnp.where(mask, wide, 0).sum(axes), jnp.asarray(mask.sum(axes), wide.dtype)


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
        count, classes = shape_of(who, outputs, 2, "[N, K]")
        inside(who, option, value, 0, classes, count)
        return taken(outputs, np.broadcast_to(value, (count,)))

    return one("target", target) - one("other", other)


@public(index=maybe(_class), alpha=real(0), num_references=whole(1))
def finer(index: Any = None, *, alpha: float = 0.6, num_references: int = 3) -> Callable:
    """What tells a class from those that are most like it: f_c - alpha * mean_t f_t.

    t are the classes whose scores are nearest to f_c, for each example its own; they are chosen at
    each input that a method tries.

    Args:
      index: The class of outputs `[N, K]`, or one for each example, `[N]`; None is the top class.
      alpha: How much of the others is taken off, >= 0.
      num_references: How many classes to compare with, or all others where there are fewer.

    Returns:
      `outputs -> [N]`, in units of the outputs.

    Raises:
      ValueError: No such class, or outputs of fewer than two.

    Example:
      >>> finer(0, alpha=1.0, num_references=1)(jnp.array([[5.0, 1.0, 4.0]])).tolist()
      [1.0]

    Reference:
      Zhang et al. 2025, Finer-CAM, arXiv:2501.11309; `jaxviz.finer_cam` is Grad-CAM of it.
    """
    return Target(_finer, (index, alpha, num_references))


def _finer(who, outputs, index, alpha, num_references):
    count, classes = shape_of(who, outputs, 2, "[N, K]")
    if index is None:
        return contrast(who, outputs, jnp.argmax(outputs, axis=1), alpha, num_references)
    inside(who, "index", index, 0, classes, count)
    return contrast(who, outputs, jnp.asarray(index, jnp.int32), alpha, num_references)


def _boxes(who, option, value):
    must = "four numbers, (left, top, right, bottom), or such for each example, [N, 4]"
    found = held(who, option, value, "iuf", must)
    boxes = found.array
    if boxes.ndim not in (1, 2) or boxes.shape[-1] != 4 or not np.isfinite(boxes).all():
        raise refused(who, option, must, value, kind=ValueError)
    if (boxes[..., 2:] <= boxes[..., :2]).any():
        raise refused(
            who, option, "corners in order, left < right, top < bottom", value, kind=ValueError
        )
    return found


@public(box=_boxes, index=_class, threshold=real(0, 1))
def box_score(box: Any, index: Any, *, threshold: float = 0.5) -> Callable:
    """The class score of the detection that a box is: that which overlaps it most.

    Why the detector finds this here. Outputs are a pair `(boxes [N, B, 4], scores [N, B, K])`, or a
    mapping of "boxes" and "scores"; in place of all classes' scores those of "labels" `[N, B]`,
    `scores` then `[N, B]`. Boxes are two corners, (left, top, right, bottom), in any units.

    Args:
      box: The box that is explained, four numbers in the detector's units; or one for each example,
        `[N, 4]`.
      index: Its class, or one for each example.
      threshold: Intersection over union, from 0 to 1, which the detection must exceed.

    Returns:
      `outputs -> [N]`, in units of the scores; 0, without a slope, where no detection overlaps the
      box so far, or the one that does is of another label. Which one it is is chosen at each input
      that a method tries.

    Raises:
      ValueError: Outputs of other axes, or no such class.

    Example:
      >>> boxes = jnp.array([[[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 5.0]]])
      >>> scores = jnp.array([[[0.1, 0.9], [0.3, 0.7]]])
      >>> box_score((0, 0, 4, 6), 1)((boxes, scores)).tolist()
      [0.699999988079071]

    Reference:
      "FasterRCNNBoxScoreTarget" of pytorch-grad-cam, which adds the overlap to the score, and sums
      over several boxes.
    """
    return Target(_box_score, (box, index, threshold))


def _box_score(who, outputs, box, index, threshold):
    labels = None
    if isinstance(outputs, Mapping) and {"boxes", "scores"} <= outputs.keys():
        boxes, scores, labels = outputs["boxes"], outputs["scores"], outputs.get("labels")
    elif isinstance(outputs, (tuple, list)) and len(outputs) == 2:
        boxes, scores = outputs
    else:
        raise ValueError(
            f"{who}: outputs must be (boxes, scores), or a mapping with 'boxes' and 'scores'; got "
            f"{described(outputs)}. Pick them in the model."
        )
    count, found, corners = shape_of(who, boxes, 3, "boxes [N, B, 4]")
    shape = shape_of(
        who, scores, 3 if labels is None else 2, "scores [N, B, K], or [N, B] and labels"
    )
    if corners != 4 or shape[:2] != (count, found) or not found:
        raise ValueError(
            f"{who}: outputs must be boxes [N, B, 4] and scores [N, B, K]; got {boxes.shape} and "
            f"{scores.shape}. Pick them in the model."
        )
    if box.shape not in ((4,), (count, 4)):
        raise ValueError(
            f"{who}: box must be four numbers, or four for each of {count} examples; got shape "
            f"{box.shape}. Targets of other examples are made anew."
        )
    if labels is None:
        inside(who, "index", index, 0, shape[2], count)
        each = np.broadcast_to(index, (count,))[:, None]
        scores = taken(scores, np.broadcast_to(each, (count, found)))
    else:
        inside(who, "index", index, 0, np.inf, count)
        scores = jnp.where(labels == np.broadcast_to(index, (count,))[:, None], scores, 0)
    near = overlap(jax.lax.stop_gradient(boxes), jnp.asarray(np.broadcast_to(box, (count, 4))))
    best = jnp.argmax(near, axis=1)
    score, reached = taken(scores, best), taken(near, best)
    return jnp.where(reached > threshold, score, 0)


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
