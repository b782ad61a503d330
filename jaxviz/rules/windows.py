"""Sliding windows as a few shifted slices: what the pooling and convolution kernels share."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Windows(NamedTuple):
    """How windows lie along each axis of an array; 1, 1, (0, 0), 1 along one they do not slide on.

    Attributes:
      size: Places of a window.
      strides: Step from window to window.
      padding: Pairs (low, high); negative ones crop.
      dilation: Distance between neighbouring places of a window.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    def offsets(self) -> list[tuple[int, ...]]:
        """Of each place of a window, in row-major order, the offset from the window's start."""
        steps = [range(0, k * d, d) for k, d in zip(self.size, self.dilation, strict=True)]
        return list(itertools.product(*steps))

    def count(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Number of windows along each axis of an array of this shape."""
        return tuple(
            (n + low + high - (k - 1) * d - 1) // s + 1
            for n, k, s, (low, high), d in zip(shape, *self, strict=True)
        )


def places(x: jax.Array, windows: Windows, fill: Any = 0) -> list[jax.Array]:
    """For each place of a window, its value in every window: arrays of `windows.count(x.shape)`."""
    count = windows.count(x.shape)
    padded = lax.pad(x, jnp.array(fill, x.dtype), [(*p, 0) for p in windows.padding])
    return [
        lax.slice(
            padded,
            offset,
            [o + (n - 1) * s + 1 for o, n, s in zip(offset, count, windows.strides, strict=True)],
            windows.strides,
        )
        for offset in windows.offsets()
    ]


def add_places(
    parts: Callable[[int, Callable], jax.Array], windows: Windows, shape: tuple[int, ...]
) -> jax.Array:
    """The transpose of `places`: an array of `shape`, each element the sum over its windows.

    XLA's CPU backend is quick at slices of one padded array and slow at sums of padded ones. So the
    windows get a rim, and each of the `strides` phases of the result is a sum of shifted
    slices; the phases are interleaved at the end.

    Args:
      parts: `(number, shift) -> part`: what place `number` adds. `shift(array, fill)` moves an
        array over the windows to where the place falls, `fill` coming in from outside.
      windows: The geometry.
      shape: Of the array the windows lie on.
    """
    axes = range(len(shape))
    size, strides, padding, dilation = windows
    reach = [(size[a] - 1) * dilation[a] // strides[a] for a in axes]
    phases: dict[tuple[int, ...], jax.Array] = {}
    rimmed: dict[tuple[int, Any], jax.Array] = {}
    for number, offset in enumerate(windows.offsets()):
        start = [r - o // s for r, o, s in zip(reach, offset, strides, strict=True)]

        def shift(array, fill=0, start=start):
            key = (id(array), fill)
            if key not in rimmed:
                rim = [(r, r, 0) for r in reach]
                rimmed[key] = lax.pad(array, jnp.array(fill, array.dtype), rim)
            stop = [i + n + r for i, n, r in zip(start, array.shape, reach, strict=True)]
            return lax.slice(rimmed[key], start, stop)

        phase = tuple(o % s for o, s in zip(offset, strides, strict=True))
        part = parts(number, shift)
        phases[phase] = lax.add(phases[phase], part) if phase in phases else part
    whole = _interleave(phases, strides)
    fit = [(-padding[a][0], shape[a] + padding[a][0] - whole.shape[a], 0) for a in axes]
    return lax.pad(whole, jnp.zeros((), whole.dtype), fit)


def _interleave(phases, strides):
    """Element b * stride + p of the result is element b of phase p, along every axis."""
    nothing = jnp.zeros_like(next(iter(phases.values())))
    for axis in reversed(range(len(strides))):
        if strides[axis] == 1:
            continue
        merged = {}
        for phase in itertools.product(*map(range, strides[:axis])):
            rest = (0,) * (len(strides) - axis - 1)
            parts = [phases.get((*phase, p, *rest), nothing) for p in range(strides[axis])]
            stacked = jnp.stack(parts, axis + 1)
            joined = list(nothing.shape)
            joined[axis] *= strides[axis]
            merged[(*phase, 0, *rest)] = stacked.reshape(joined)
        phases = merged
        nothing = jnp.zeros_like(next(iter(phases.values())))
    return next(iter(phases.values()))


def with_pullback(pullback: Callable[[jax.Array], jax.Array], like: Any, dx: jax.Array):
    """The linear map whose transpose is `pullback`, at `dx`; `like` is the shape of its result.

    Where `custom_vjp` would forbid forward mode, this does not: the map is the transpose of
    `pullback`, made of ordinary operations, and JAX transposing it again arrives at `pullback`.
    """
    return jax.linear_transpose(pullback, like)(dx)[0]
