"""Inputs of any layout as images `[M, H, W, C]`, which is what climbs: channels first, signals."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.engine.layout import channels_of
from jaxviz.graph.trace import model


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a model has one input, and how that is an image.

    Attributes:
      size: Of an input, without the batch: `(H, W, C)`, `(C, H, W)`, `(L,)`, `(L, C)` or `(C, L)`.
      axis: Of its channels, counted with the batch, where that is not the last; else None.
    """

    size: tuple[int, ...]
    axis: int | None

    @property
    def is_image(self) -> bool:
        """Whether an input is an image as it is."""
        return len(self.size) == 3 and self.axis is None

    @property
    def image(self) -> tuple[int, int, int]:
        """`(H, W, C)`; a signal is an image of one column, of one channel where it has none."""
        height, *rest = self._last
        if len(rest) < 2:
            return height, 1, rest[0] if rest else 1
        return height, rest[0], rest[1]

    @property
    def _last(self):
        if self.axis is None:
            return self.size
        at = self.axis - 1
        return (*self.size[:at], *self.size[at + 1 :], self.size[at])

    def given(self, images: jax.Array) -> jax.Array:
        """`[..., H, W, C]` as the model has it."""
        lead = images.shape[:-3]
        found = images.reshape(*lead, *self._last)
        return found if self.axis is None else jnp.moveaxis(found, -1, len(lead) + self.axis - 1)

    def images(self, given: Any) -> jax.Array:
        """`[M, ...]` of the model's as images."""
        given = jnp.asarray(given)
        found = given if self.axis is None else jnp.moveaxis(given, self.axis, -1)
        return found.reshape(len(given), *self.image)

    def places(self, found: jax.Array) -> jax.Array:
        """`[M, H, W]` as `[M, *space]` of the model's input."""
        return found.reshape(len(found), *(self._last[:-1] or self._last))


@dataclasses.dataclass(frozen=True)
class OfImages:
    """A model of inputs of some layout as one of images; equal for equal models."""

    apply_fn: Callable
    layout: Layout
    channel_axis = -1

    def __call__(self, params: Any, x: jax.Array) -> Any:
        x = self.layout.given(x)
        return model(self.apply_fn, params, x)(params, x)


def as_images(apply_fn: Callable, params: Any, size: tuple[int, ...]) -> tuple[Callable, Layout]:
    """The model of images `[M, H, W, C]`, and how these are what it takes.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree.
      size: Of one input, as the model takes it.
    """
    moves = channels_of(apply_fn, params, jax.ShapeDtypeStruct((1, *size), jnp.float32))
    layout = Layout(tuple(size), moves[0] if moves else None)
    return apply_fn if layout.is_image else OfImages(apply_fn, layout), layout
