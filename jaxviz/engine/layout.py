"""Models whose images have channels first, explained as their channels-last twins.

Methods of places (windows, cells, maps brought to the size of the image) see `[N, *space, C]`
alone. Where the convolutions that a leaf of `x` reaches say that another axis holds its channels,
or the model was declared to have them first (`channels_first`), the method explains the model after
that axis was moved, and what has the shape of the leaf is moved back.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.leaves import ONE, per_leaf
from jaxviz.calls.public import public
from jaxviz.graph.axes import axes
from jaxviz.graph.held import hold
from jaxviz.graph.trace import declared_channels, model, trace

# Options that may have the axes of x.
_LIKE_X = ("attribution", "baseline", "baselines", "fill", "segments")

Moves = tuple[int | None, ...]  # for each leaf of x the axis of its channels; None: the last


@dataclasses.dataclass(frozen=True)
class ChannelsLast:
    """A model of images with channels on other axes, as one of images with channels last."""

    apply_fn: Callable
    moves: Moves

    def __call__(self, params: Any, x: Any) -> Any:
        x = _each(lambda a, axis: jnp.moveaxis(a, -1, axis), x, self.moves)
        return model(self.apply_fn, params, x)(params, x)

    channel_axis = -1

    @property
    def is_tail(self) -> bool:
        return getattr(self.apply_fn, "is_tail", False)


@dataclasses.dataclass(frozen=True)
class Declared:
    """A model that says on which axis its inputs have their channels."""

    apply_fn: Callable
    channel_axis: int

    def __call__(self, params: Any, x: Any) -> Any:
        return self.apply_fn(params, x)

    @property
    def inside_axis(self) -> int:
        return self.channel_axis

    @property
    def is_tail(self) -> bool:
        return getattr(self.apply_fn, "is_tail", False)


@public()
def channels_first(apply_fn: Callable) -> Callable:
    """The model, declared to take images `[N, C, *space]`.

    Nets whose first layers are convolutions need no such word, for these say where channels are.
    One that cuts its images into patches by reshaping, or is dense, cannot be read so, and is taken
    to have them last, unless it is declared. Every method, picture and climb that knows places goes
    by it: windows, grids, masks and maps are over `*space`, and what has the shape of `x` keeps it.

    Args:
      apply_fn: Pure `(params, x) -> outputs`; leaves of `x` with fewer than three axes have none.

    Returns:
      `(params, x) -> outputs`, the same numbers; equal (`==`, `hash`) for equal models.

    Example:
      >>> net = channels_first(lambda w, x: x.reshape(len(x), -1) @ w)
      >>> w, x = jnp.ones((12, 1)), jnp.ones((1, 3, 2, 2))
      >>> import jaxviz
      >>> jaxviz.occlusion(net, w, x, 0, window=(1, 1), stride=(1, 1)).tolist()
      [[[3.0, 3.0], [3.0, 3.0]]]
    """
    return Declared(apply_fn, 1)


def hint(x: Any) -> str:
    """What to add to an error about places, where `x` looks as if it had its channels first."""
    shape = np.shape(x)
    if len(shape) > 3 and shape[1] in (1, 3) and shape[-1] not in (1, 3):
        return " If x is [N, C, H, W], say so: `jaxviz.channels_first(apply_fn)`."
    return ""


def of_places(method: Callable) -> Callable:
    """A method that knows axes of space, for models with channels on any axis."""

    @functools.wraps(method)
    def called(apply_fn, params, x, *rest, **options):
        held, arrays = hold(method.__name__, apply_fn, params)
        moves = channels_of(held, arrays, x)
        if moves is None:
            return method(apply_fn, params, x, *rest, **options)
        twin, moved, options = channels_last(method.__name__, held, x, options, moves)
        return as_given(method(twin, arrays, moved, *rest, **options), moved, moves)

    return called


def channels_of(apply_fn: Callable, params: Any, x: Any) -> Moves | None:
    """The axes that hold the channels of the leaves of `x`, where one is not the last.

    As the model declares it, or as convolutions say.
    """
    ranks = [np.ndim(leaf) for leaf in jax.tree.leaves(x)]
    if max(ranks) < 3:
        return None
    said = declared_channels(apply_fn).inputs
    if said is not None:
        found = [said % max(rank, 1) for rank in ranks]
    else:
        try:
            known = axes(trace(apply_fn, params, x, flat=False))
        except Exception:  # the model's own, of any kind: whoever runs it next will say it better
            return None
        found = [known.input_channels(leaf) for leaf in range(len(ranks))]
    places = zip(found, ranks, strict=True)
    moves = tuple(None if rank < 3 or axis == rank - 1 else axis for axis, rank in places)
    return moves if any(axis is not None for axis in moves) else None


def _each(function: Callable, x: Any, moves: Moves) -> Any:
    """A tree of the leaves of `x`: those with an axis to be moved are the function's."""
    leaves, structure = jax.tree.flatten(x)
    pairs = zip(leaves, moves, strict=True)
    return jax.tree.unflatten(structure, [a if m is None else function(a, m) for a, m in pairs])


def channels_last(
    name: str, apply_fn: Callable, x: Any, options: dict[str, Any], moves: Moves
) -> tuple[Callable, Any, dict[str, Any]]:
    """The twin, its input, and the options that have the axes of `x`."""
    structure, leaves = jax.tree.structure(x), list(map(jnp.asarray, jax.tree.leaves(x)))
    laid = {}
    for option in _LIKE_X:
        value = options.get(option)
        if value is None or callable(value):
            continue
        if structure != ONE and np.ndim(value) == 0 and _is_array(value):  # one for all leaves
            continue
        if option in ("baseline", "baselines") and jax.tree.structure(value) not in (
            structure,
            ONE,
        ):
            continue  # which the method refuses
        found = per_leaf(name, option, value, x)
        laid[option] = jax.tree.unflatten(
            structure,
            [
                value if axis is None else _moved(option, value, a, axis)
                for value, a, axis in zip(found, leaves, moves, strict=True)
            ],
        )
    twin = ChannelsLast(apply_fn, moves)
    moved = _each(
        lambda a, axis: jnp.moveaxis(a, axis, -1), jax.tree.unflatten(structure, leaves), moves
    )
    return twin, moved, options | laid


def _is_array(value):
    return jax.tree.structure(value) == ONE


def _moved(option, value, x, axis):
    """A value that has the axes of a leaf, or these less the batch, channels last."""
    rank, shape = np.ndim(value), np.shape(value)
    laid = np if isinstance(value, np.ndarray) else jnp
    if rank == x.ndim:
        return laid.moveaxis(value, axis, -1)
    if option == "baselines" and rank == x.ndim + 1:  # each example's own
        return laid.moveaxis(value, axis + 1, -1)
    # Segments of one number an example have as many axes as those of one number a channel; an
    # attribution has examples always, and one axis less where it has no channels.
    if option != "attribution" and rank == x.ndim - 1:
        if option == "segments" and shape != x.shape[1:]:
            return value
        return laid.moveaxis(value, axis - 1, -1)
    return value


def as_given(result: Any, x: Any, moves: Moves) -> Any:
    """What has the shapes of the twin's input `x`, laid out as the model's own."""
    structure, shapes = jax.tree.structure(x), [np.shape(a) for a in jax.tree.leaves(x)]

    def back(part):
        if jax.tree.structure(part) != structure:
            return part
        pairs = zip(jax.tree.leaves(part), shapes, moves, strict=True)
        turned = [
            a if axis is None or np.shape(a) != shape else jnp.moveaxis(a, -1, axis)
            for a, shape, axis in pairs
        ]
        return jax.tree.unflatten(structure, turned)

    return jax.tree.map(back, result, is_leaf=lambda a: jax.tree.structure(a) == structure)
