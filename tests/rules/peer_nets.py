"""The tiny nets of propagation_peers.npz, hand-written, and their peers' values."""

import contextlib
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

FILE = pathlib.Path(__file__).parent.parent / "reference" / "propagation_peers.npz"


@functools.cache
def stored():
    with np.load(FILE) as file:
        return dict(file)


def double():
    """Double precision inside, on every JAX version."""
    return jax.enable_x64(True)


@contextlib.contextmanager
def net(name):
    """`apply_fn, params, x, target` of a net, in double precision."""
    data = stored()
    with double():
        params = {}
        for key, value in data.items():
            parts = key.split("/")
            if parts[0] == name and len(parts) == 3:
                params.setdefault(parts[1], {})[parts[2]] = jnp.asarray(value, jnp.float64)
        x, target = jnp.asarray(data["x"], jnp.float64), jnp.asarray(data["target"])
        yield NETS[name], params, x, target


def close(out, key, tolerance=1e-10):
    """Whether all numbers agree with a stored value, relative to its largest."""
    expected = stored()[key]
    np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def conv(p, x, stride=1, padding=1):
    x = jax.lax.conv_general_dilated(
        x, p["kernel"], (stride, stride), [(padding, padding)] * 2, dimension_numbers=_AXES
    )
    return x + p["bias"][None, None, None] if "bias" in p else x


_AXES = ("NHWC", "HWIO", "NHWC")


def dense(p, x):
    return x @ p["kernel"] + p["bias"][None]


def batch_norm(p, x):
    row = lambda name: p[name][None, None, None]
    return (x - row("mean")) * (jax.lax.rsqrt(row("var") + 1e-5) * row("scale")) + row("bias")


def max_pool(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def avg_pool(x):
    sums = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return sums / 4


def plain(p, x, pool=max_pool, act=jax.nn.relu):
    x = pool(act(conv(p["conv1"], x)))
    x = pool(act(conv(p["conv2"], x)))
    x = act(dense(p["fc1"], x.reshape(x.shape[0], -1)))
    return dense(p["fc2"], x)


def residual(p, x):
    relu = jax.nn.relu
    x = relu(batch_norm(p["bn1"], conv(p["conv1"], x)))
    y = relu(batch_norm(p["bn2"], conv(p["conv2"], x)))
    x = relu(batch_norm(p["bn3"], conv(p["conv3"], y)) + x)
    y = batch_norm(p["bn4"], conv(p["conv4"], x, 2))
    x = relu(y + batch_norm(p["bn5"], conv(p["conv5"], x, 2, 0)))
    return dense(p["fc"], x.mean((1, 2)))


def late_norm(p, x):
    x = batch_norm(p["bn1"], max_pool(jax.nn.relu(conv(p["conv1"], x, 1, 0))))
    return dense(p["fc"], x.reshape(x.shape[0], -1))


NETS = {"plain": plain, "residual": residual, "late_norm": late_norm}
