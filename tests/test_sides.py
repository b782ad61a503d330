"""A mirrored net with a mirrored image has the mirrored map: nothing prefers a side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz import rules

AXES = ("NHWC", "HWIO", "NHWC")
K = jax.random.split(jax.random.key(0), 4)
P = {
    "conv": jax.random.normal(K[0], (3, 3, 2, 4)),
    "bias": jax.random.normal(K[1], (4,)),
    "dense": jax.random.normal(K[2], (4, 3)),
}
# At the baseline, a flat image, all places of a window are equal; so are those of dead units.
X = jax.random.normal(K[3], (2, 9, 9, 2))
TARGET = jnp.array([2, 0])


def pooled(size):
    def net(p, x):
        x = jax.lax.conv_general_dilated(x, p["conv"], (1, 1), "SAME", dimension_numbers=AXES)
        x = jax.nn.relu(x + p["bias"][None, None, None])
        window, strides = (1, size, size, 1), (1, 2, 2, 1)
        x = jax.lax.reduce_window(x, -np.inf, jax.lax.max, window, strides, "VALID")
        return x.mean((1, 2)) @ p["dense"]

    return net


APART, OVERLAPPING = pooled(2), pooled(3)
shared = lambda f: jv.rewrite(f, rules.shared_ties)
METHODS = {
    "deep_lift": lambda *a: jv.deep_lift(*a, baseline=0.0),
    "reveal_cancel": lambda *a: jv.deep_lift(*a, baseline=0.0, rule="reveal_cancel"),
    "guided_integrated_gradients": lambda *a: jv.guided_integrated_gradients(*a, num_steps=8),
    "guided_backprop": jv.guided_backprop,
    "lrp": jv.lrp,
    "deconvnet of shared ties": lambda f, *a: jv.deconvnet(shared(f), *a),
    "gradient of shared ties, flat": lambda f, p, x, t: jv.gradient(shared(f), p, 0 * x, t),
}
# Of a square image: mirrored in each axis, and turned about its diagonal.
MIRRORS = {
    "width": lambda a, h, w: jnp.flip(a, w),
    "height": lambda a, h, w: jnp.flip(a, h),
    "diagonal": lambda a, h, w: jnp.swapaxes(a, h, w),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("net", [APART, OVERLAPPING], ids=["apart", "overlapping"])
def test_no_side_is_preferred(net, method):
    explain, x = METHODS[method], X[:, :8, :8] if net is APART else X
    out = np.asarray(explain(net, P, x, TARGET))
    assert np.abs(out).max() > 0
    for name, mirror in MIRRORS.items():
        params = {**P, "conv": mirror(P["conv"], 0, 1)}
        mirrored = mirror(explain(net, params, mirror(x, 1, 2), TARGET), 1, 2)
        np.testing.assert_allclose(mirrored, out, atol=1e-4 * np.abs(out).max(), err_msg=name)
