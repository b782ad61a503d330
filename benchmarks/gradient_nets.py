"""Four nets as data, so that JAX and PyTorch build the same ones: weights, layers, JAX function.

A net is a tuple of (kind, options): `conv` has a name, a stride and a padding; `norm`, `dense`,
`fire` and `block` a name (a block also its stride); `pool` a size, a stride and a padding. The
arrays of all layers are drawn by `weights`; `run` evaluates, naming the value after operation i
`at_i`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

MNIST_A = (
    *(("conv", "conv1", 1, 1), ("relu",), ("pool", 2, 2, 0)),
    *(("conv", "conv2", 1, 1), ("relu",), ("pool", 2, 2, 0)),
    *(("conv", "conv3", 1, 1), ("relu",), ("pool", 2, 2, 0), ("flatten",)),
    *(("dense", "fc1"), ("relu",), ("dense", "fc2")),
)
CIFAR = (
    *(("conv", "cifar1", 1, 0), ("relu",), ("pool", 2, 2, 0)),
    *(("conv", "cifar2", 1, 0), ("relu",), ("pool", 2, 2, 0), ("flatten",)),
    *(("dense", "cifar3"), ("relu",), ("dense", "cifar4")),
)
SQUEEZENET = (
    *(("conv", "features.0", 2, 0), ("relu",), ("pool", 3, 2, 0)),
    *(("fire", "features.3"), ("fire", "features.4"), ("pool", 3, 2, 0)),
    *(("fire", "features.6"), ("fire", "features.7"), ("pool", 3, 2, 0)),
    *(("fire", f"features.{i}") for i in (9, 10, 11, 12)),
    *(("conv", "classifier.1", 1, 0), ("relu",), ("mean",)),
)
BLOCKS = tuple((stage, block) for stage in range(4) for block in range(2))
RESNET18 = (
    *(("conv", "stem", 2, 3), ("norm", "stem"), ("relu",), ("pool", 3, 2, 1)),
    *(("block", f"layer{s}.{b}", 2 if s and not b else 1) for s, b in BLOCKS),
    *(("mean",), ("dense", "fc")),
)

# Shapes of kernels; layers named in NORMED have batch norm and no bias of their own.
SHAPES = {
    "conv1": (3, 3, 1, 24),
    "conv2": (3, 3, 24, 48),
    "conv3": (3, 3, 48, 64),
    "fc1": (576, 128),
    "fc2": (128, 10),
    "cifar1": (3, 3, 3, 32),
    "cifar2": (3, 3, 32, 64),
    "cifar3": (2304, 64),
    "cifar4": (64, 10),
    "features.0": (3, 3, 3, 64),
    "classifier.1": (1, 1, 512, 1000),
    "stem": (7, 7, 3, 64),
    "fc": (512, 1000),
}
FIRES = ((3, 64, 16), (4, 128, 16), (6, 128, 32), (7, 256, 32))
FIRES += ((9, 256, 48), (10, 384, 48), (11, 384, 64), (12, 512, 64))
for number, width, squeeze in FIRES:
    SHAPES[f"features.{number}/squeeze"] = (1, 1, width, squeeze)
    SHAPES[f"features.{number}/expand1"] = (1, 1, squeeze, 4 * squeeze)
    SHAPES[f"features.{number}/expand3"] = (3, 3, squeeze, 4 * squeeze)
NORMED = {"stem"}
for stage, block in BLOCKS:
    name, width = f"layer{stage}.{block}", 64 * 2**stage
    before = width if block or not stage else width // 2
    SHAPES[f"{name}/conv1"] = (3, 3, before, width)
    SHAPES[f"{name}/conv2"] = (3, 3, width, width)
    if before != width:
        SHAPES[f"{name}/short"] = (1, 1, before, width)
    NORMED |= {f"{name}/{part}" for part in ("conv1", "conv2", "short")}

# Spec, shape of a batch, how many examples of it go to methods that take many passes, and the
# operation after which class activation maps are taken: the last ReLU or block with places.
NETS = {
    "mnist_a": (MNIST_A, (32, 28, 28, 1), 32, 7),
    "cifar": (CIFAR, (32, 32, 32, 3), 32, 4),
    "squeezenet": (SQUEEZENET, (4, 224, 224, 3), 1, 12),
    "resnet18": (RESNET18, (2, 224, 224, 3), 1, 11),
}


def weights(spec, seed=0):
    """Arrays of every layer: He-initialised kernels, small biases, norms that are not the identity.

    Returns:
      Dict `layer/kernel`, `layer/bias`, and for normed layers `layer/scale`, `/mean`, `/var`.
    """
    rng = np.random.default_rng(seed)
    names = {options[0] for _, *options in spec if options and isinstance(options[0], str)}
    out = {}
    for name, shape in SHAPES.items():
        if name.split("/")[0] not in names:
            continue
        out[f"{name}/kernel"] = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
        out[f"{name}/bias"] = 0.1 * rng.normal(size=shape[-1])
        if name in NORMED:
            out[f"{name}/scale"] = rng.uniform(0.5, 1, shape[-1])
            out[f"{name}/mean"] = 0.1 * rng.normal(size=shape[-1])
            out[f"{name}/var"] = rng.uniform(0.5, 2, shape[-1])
    return {name: np.float32(value) for name, value in out.items()}


def run(spec, params, x):
    """The net that `spec` describes; the value after operation i is named `at_i`."""
    for i, (kind, *options) in enumerate(spec):
        x = checkpoint_name(_KINDS[kind](params, x, *options), f"at_{i}")
    return x


def _conv(params, x, name, stride, pad):
    kernel, pads = params[f"{name}/kernel"], ((pad, pad), (pad, pad))
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=numbers)
    return x if name in NORMED else x + params[f"{name}/bias"][None, None, None, :]


def _norm(params, x, name):
    mean, var, scale, bias = (
        params[f"{name}/{part}"][None, None, None, :] for part in ("mean", "var", "scale", "bias")
    )
    return (x - mean) * (jax.lax.rsqrt(var + 1e-5) * scale) + bias


def _fire(params, x, name):
    x = jax.nn.relu(_conv(params, x, f"{name}/squeeze", 1, 0))
    parts = [_conv(params, x, f"{name}/expand{k}", 1, k // 2) for k in (1, 3)]
    return jnp.concatenate([jax.nn.relu(part) for part in parts], -1)


def _block(params, x, name, stride):
    normed = lambda x, part, s, p: _norm(
        params, _conv(params, x, f"{name}/{part}", s, p), f"{name}/{part}"
    )
    y = normed(jax.nn.relu(normed(x, "conv1", stride, 1)), "conv2", 1, 1)
    return jax.nn.relu(y + (x if x.shape == y.shape else normed(x, "short", stride, 0)))


def _pool(params, x, size, stride, pad):
    window, step, pads = (1, size, size, 1), (1, stride, stride, 1), ((pad, pad),) * 2
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, step, ((0, 0), *pads, (0, 0)))


_KINDS = {
    "conv": _conv,
    "norm": _norm,
    "fire": _fire,
    "block": _block,
    "pool": _pool,
    "dense": lambda params, x, name: x @ params[f"{name}/kernel"] + params[f"{name}/bias"][None, :],
    "relu": lambda params, x: jax.nn.relu(x),
    "flatten": lambda params, x: x.reshape(x.shape[0], -1),
    "mean": lambda params, x: x.mean((1, 2)),
}
