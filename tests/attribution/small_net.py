"""The net of tests/reference in plain JAX, its inputs, and what other libraries give for it."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

FOLDER = pathlib.Path(__file__).parent.parent / "reference"


def apply_fn(params, x):
    for i in (1, 2):
        x = _convolve(x, params[f"conv{i}/kernel"], params[f"conv{i}/bias"])
        x = checkpoint_name(x, f"conv{i}")
        x = checkpoint_name(jax.nn.relu(x), f"relu{i}")
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = x.reshape(x.shape[0], -1)
    x = jax.nn.relu(x @ params["fc1/kernel"] + params["fc1/bias"][None, :])
    return x @ params["fc2/kernel"] + params["fc2/bias"][None, :]


def _convolve(x, kernel, bias):
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
    return x + bias[None, None, None, :]


@functools.cache
def _inputs():
    with np.load(FOLDER / "gradient_inputs.npz") as file:
        return dict(file)


@functools.cache
def peers():
    with np.load(FOLDER / "gradient_peers.npz") as file:
        return dict(file)


def inputs(dtype):
    """Params, x, target, baseline and baselines, as arrays of `dtype`."""
    as_array = lambda a: jnp.asarray(a, dtype)
    params = {k: as_array(a) for k, a in _inputs().items() if "/" in k}
    x, baseline, baselines = (as_array(_inputs()[k]) for k in ("x", "baseline", "baselines"))
    return params, x, jnp.asarray(_inputs()["target"]), baseline, baselines


def close(ours, theirs, tolerance):
    """Whether two maps agree relative to their largest number."""
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    off = np.abs(np.asarray(ours, np.float64) - theirs).max() / np.abs(theirs).max()
    assert off <= tolerance, off
