"""Well-known topologies with random weights, small enough to time: what the benchmarks explain."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1: squeeze 1x1, expand 1x1 and 3x3, three overlapping poolings."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(64, (3, 3), 2, padding="VALID")(x))
        for stage in (((16, 64),) * 2, ((32, 128),) * 2, ((48, 192),) * 2 + ((64, 256),) * 2):
            x = nn.max_pool(x, (3, 3), (2, 2))
            for squeeze, expand in stage:
                x = nn.relu(nn.Conv(squeeze, (1, 1))(x))
                parts = [nn.Conv(expand, (1, 1))(x), nn.Conv(expand, (3, 3))(x)]
                x = nn.relu(jnp.concatenate(parts, -1))
        return nn.relu(nn.Conv(1000, (1, 1))(x)).mean((1, 2))


class MobileNetV2(nn.Module):
    """MobileNetV2: inverted residuals around depthwise 3x3 convolutions."""

    @nn.compact
    def __call__(self, x):
        norm = lambda x: nn.BatchNorm(use_running_average=True)(x)
        conv = lambda x, n, k=1, s=1, groups=1: norm(
            nn.Conv(n, (k, k), s, feature_group_count=groups, use_bias=False)(x)
        )
        x = nn.relu6(conv(x, 32, 3, 2))
        stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2))
        for expansion, width, repeats, stride in (*stages, (6, 96, 3, 1), (6, 160, 3, 2)):
            for repeat in range(repeats):
                short, inner = x, x.shape[-1] * expansion
                if expansion > 1:
                    x = nn.relu6(conv(x, inner))
                x = nn.relu6(conv(x, inner, 3, stride if repeat == 0 else 1, inner))
                x = conv(x, width)
                x = x + short if x.shape == short.shape else x
        return nn.Dense(1000)(nn.relu6(conv(x, 1280)).mean((1, 2)))


class ResNet18(nn.Module):
    """ResNet-18: a 7x7 stem, overlapping pooling, four stages of basic blocks."""

    @nn.compact
    def __call__(self, x):
        norm = lambda x: nn.BatchNorm(use_running_average=True)(x)
        conv = lambda x, n, k=3, s=1: norm(nn.Conv(n, (k, k), s, use_bias=False)(x))
        x = nn.max_pool(nn.relu(conv(x, 64, 7, 2)), (3, 3), (2, 2), "SAME")
        for stage, width in enumerate((64, 128, 256, 512)):
            for block in range(2):
                stride = 2 if stage and not block else 1
                y = conv(nn.relu(conv(x, width, 3, stride)), width)
                x = nn.relu(y + (conv(x, width, 1, stride) if stride > 1 else x))
        return nn.Dense(1000)(x.mean((1, 2)))


class VGG11(nn.Module):
    """VGG-11: 3x3 convolutions, poolings that do not overlap, wide dense layers."""

    @nn.compact
    def __call__(self, x):
        for widths in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
            for width in widths:
                x = nn.relu(nn.Conv(width, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for width in (1024, 1024):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(1000)(x)


def ready(module, shape, seed=0):
    """`(apply_fn, variables, x)` of a module on random images of `shape` [N, H, W, C]."""
    x = jax.random.normal(jax.random.key(seed), shape)
    variables = jax.jit(module.init)(jax.random.key(seed + 1), x[:1])
    return module.apply, variables, x
