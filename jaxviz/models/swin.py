"""Swin transformers: attention within windows, which every second block shifts by half of one."""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.models.parts import (
    Mode,
    Step,
    attend,
    check_size,
    conv,
    dense,
    drop_path,
    layer_norm,
    mlp,
    same,
    sequence,
)

_norm = layer_norm(1e-5)
_OUTSIDE = -100.0  # what is added for tokens that the shift brought together from far apart


class SwinTransformer(nn.Module):
    """Swin: patches of 4x4, four stages of windowed attention, each but the first after merging.

    Layers: `features/0/0` cuts the patches, `features/1` `3` `5` `7` are the stages, whose blocks
    `0`, `1`, ... have `norm1` `attn` (`qkv` `proj`) `norm2` `mlp` (`0` `3`); `features/2` `4` `6`
    merge four neighbours into one (`norm` `reduction`); last `norm`, the mean, and `head`. Between
    blocks all is `[N, H, W, C]`. 28.3 M parameters (tiny). Images `[N, H, W, 3]` from 4x4.

    Attributes:
      num_classes: Length of the logits.
      dtype: Floating type of the computation; None follows inputs and parameters.
      depths: Blocks of each stage; tiny has (2, 2, 6, 2), small (2, 2, 18, 2).
      num_heads: Heads of attention of each stage.
      width: Channels of the first stage; each other one has twice those before.
      window: Sides of a window, in tokens.
      drop_path: In training, the chance that the last block is left out; earlier ones less.

    Example:
      >>> image = jnp.zeros((1, 224, 224, 3))
      >>> variables = jax.eval_shape(SwinTransformer().init, jax.random.key(0), image)
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables))
      28288354

    Reference:
      Liu et al. 2021, arXiv:2103.14030, section 3, Swin-T. Where windows do not fill the image it
      is padded with zeros, which are attended to, as in torchvision.
    """

    num_classes: int = 1000
    dtype: Any = None
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    width: int = 96
    window: int = 7
    drop_path: float = 0.2

    input_shape: ClassVar = (224, 224, 3)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[N, num_classes]` of images `[N, H, W, 3]`; `train` leaves blocks out."""
        check_size(x, 4, "SwinTransformer")
        mode = Mode(train, self.dtype)
        steps = [sequence(conv(self.width, 4, 4), same, _norm)]
        done, last = 0, max(1, sum(self.depths) - 1)
        for stage, (depth, heads) in enumerate(zip(self.depths, self.num_heads, strict=True)):
            if stage > 0:
                steps += [lambda x, name, mode: Merging(mode, name=name)(x)]
            shifts = [self.window // 2 * (i % 2) for i in range(depth)]
            rates = [self.drop_path * (done + i) / last for i in range(depth)]
            blocks = zip(shifts, rates, strict=True)
            steps += [sequence(*(_block(heads, self.window, s, rate) for s, rate in blocks))]
            done += depth
        x = _norm(sequence(*steps)(x, "features", mode), "norm", mode)
        return dense(self.num_classes)(x.mean((1, 2)), "head", mode)


class Merging(nn.Module):
    mode: Mode

    @nn.compact
    def __call__(self, x):
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        x = jnp.concatenate([x[:, i::2, j::2] for j in range(2) for i in range(2)], -1)
        return dense(x.shape[-1] // 2, bias=False)(
            _norm(x, "norm", self.mode), "reduction", self.mode
        )


def _block(num_heads: int, window: int, shift: int, rate: float) -> Step:
    return lambda x, name, mode: Block(num_heads, window, shift, rate, mode, name=name)(x)


class Block(nn.Module):
    num_heads: int
    window: int
    shift: int
    rate: float
    mode: Mode

    @nn.compact
    def __call__(self, x):
        mode, drop = self.mode, drop_path(self.rate)
        attention = WindowAttention(self.num_heads, self.window, self.shift, mode, name="attn")
        x = x + drop(attention(_norm(x, "norm1", mode)), "drop1", mode)
        y = mlp(4 * x.shape[-1])(_norm(x, "norm2", mode), "mlp", mode)
        return x + drop(y, "drop2", mode)


class WindowAttention(nn.Module):
    num_heads: int
    window: int
    shift: int
    mode: Mode

    @nn.compact
    def __call__(self, x):
        window, (n, height, width, channels) = self.window, x.shape
        counts = tuple(-(-side // window) for side in (height, width))
        rows, columns = (count * window for count in counts)
        x = jnp.pad(x, ((0, 0), (0, rows - height), (0, columns - width), (0, 0)))
        # A side of one window has nothing to be shifted to.
        shifts = tuple(self.shift if count > 1 else 0 for count in counts)
        if any(shifts):
            x = jnp.roll(x, [-shift for shift in shifts], (1, 2))
        x = x.reshape(n, counts[0], window, counts[1], window, channels).swapaxes(2, 3)
        x = x.reshape(n, counts[0] * counts[1], window * window, channels)

        around = ((2 * window - 1) ** 2, self.num_heads)
        table = self.param("relative_position_bias_table", nn.initializers.normal(0.02), around)
        bias = jnp.moveaxis(table[_offsets(window)], -1, 0)[None, None]
        if any(shifts):
            bias = bias + _apart(counts, window, shifts)[None, :, None]
        x = dense(3 * channels)(x, "qkv", self.mode)
        x = attend(x, self.num_heads, bias.astype(x.dtype))
        x = dense(channels)(x, "proj", self.mode)

        x = x.reshape(n, *counts, window, window, channels).swapaxes(2, 3)
        x = x.reshape(n, rows, columns, channels)
        if any(shifts):
            x = jnp.roll(x, shifts, (1, 2))
        return x[:, :height, :width]


@functools.cache
def _offsets(window: int) -> np.ndarray:
    """`[T, T]`: for two tokens of a window, which number of all places relative to each other."""
    places = np.stack(np.meshgrid(*2 * [np.arange(window)], indexing="ij")).reshape(2, -1)
    rows, columns = places[:, :, None] - places[:, None, :] + window - 1
    return rows * (2 * window - 1) + columns


@functools.cache
def _apart(counts: tuple[int, int], window: int, shifts: tuple[int, int]) -> np.ndarray:
    """`[windows, T, T]`: nothing for tokens that were neighbours before the shift, else a lot."""
    sides = []
    for count, shift in zip(counts, shifts, strict=True):
        side = np.zeros(count * window, int)
        if shift:
            side[-window:-shift], side[-shift:] = 1, 2
        sides.append(side)
    parts = sides[0][:, None] * 3 + sides[1]
    parts = parts.reshape(counts[0], window, counts[1], window).swapaxes(1, 2)
    parts = parts.reshape(-1, window * window)
    return np.where(parts[:, :, None] == parts[:, None, :], 0, _OUTSIDE).astype(np.float32)
