"""Gradient, path and CAM methods on trained networks, beside those of real_gradient_peers.npz.

`python tests/attribution/real_gradients.py draw FILE` writes the random draws of our own methods,
which run_real_gradient_peers.py hands to the peers. Without arguments it prints, for every network
and method, how far ours is from the peer's, relative to the largest number of the map, in single
and double precision.
"""

import functools
import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

sys.path.append(str(pathlib.Path(__file__).parent.parent / "rules"))
import real_nets

import jaxviz as jv
from jaxviz.attribution.path import quadrature
from jaxviz.parts.gradients import input_gradient

NETS = ("mnist_a", "mnist_c", "cifar", "resnet20", "squeezenet")
LAYERS = {
    "mnist_a": "relu_2",
    "mnist_c": "relu_1",
    "cifar": "relu_1",
    "resnet20": "layer3",
    "squeezenet": "features",
}
STEPS, SAMPLES, NOISE = 6, 3, 0.15
KEY = 11


@functools.cache
def peers():
    with np.load(real_nets.FOLDER / "real_gradient_peers.npz") as file:
        return dict(file)


def net(name, dtype):
    """`apply_fn, params, x`: images with a little noise, or equal pixels would leave it to rounding
    which place of a pooling window wins (of the first pooling on CIFAR, one window in a hundred).
    """
    f, params, x = real_nets.net(name, dtype)
    noise = np.random.RandomState(0).normal(size=x.shape)
    return f, params, x + jnp.asarray(1e-3 * noise, x.dtype)


def path(rule):
    def method(f, params, x, target, _):
        out = jv.integrated_gradients(f, params, x, target, num_steps=STEPS, rule=rule)
        # Captum's weights of this rule sum to 1 - 1 / steps.
        return out * (STEPS - 1) / STEPS if rule == "trapezoid" else out

    return method


def noisy(wrapper):
    def method(f, params, x, target, _):
        wrapped = wrapper(jv.gradient, num_samples=SAMPLES, noise_scale=NOISE)
        return wrapped(f, params, x, target, key=jax.random.key(KEY))

    return method


def expected(f, params, x, target, _):
    draw = {"baselines": jnp.zeros_like(x[:1]), "key": jax.random.key(KEY)}
    return jv.expected_gradients(f, params, x, target, num_samples=SAMPLES, **draw)


def influence(f, params, x, target, layer):
    """The mean gradient at the layer along the path from zeros."""
    head, tail = jv.split(f, params, x, layer)
    out = 0
    for t, weight in zip(*quadrature("recipe", "gausslegendre", STEPS), strict=True):
        a, carry = head(params, t * x)
        out += weight * input_gradient(tail, (params, carry), a, target)
    return out


def conductance(f, params, x, target, layer):
    """With Captum's differences of the layer between the points in place of its speed."""
    head, tail = jv.split(f, params, x, layer)
    points, _ = quadrature("recipe", "gausslegendre", STEPS + 1)
    values = [head(params, t * x) for t in points]
    out = 0
    for (a, carry), (after, _) in itertools.pairwise(values):
        out += (after - a) * input_gradient(tail, (params, carry), a, target)
    return out


def cam(method):
    return lambda f, params, x, target, layer: method(
        f, params, x, target, layer=layer, relu=False, resize=False
    )


RULES = ("gausslegendre", "left", "right", "middle", "trapezoid")
CASES = {
    "gradient": lambda f, params, x, target, _: jv.gradient(f, params, x, target),
    **{f"ig_{rule}": path(rule) for rule in RULES},
    "gradient_shap": expected,
    "smoothgrad": noisy(jv.smooth_grad),
    "smoothgrad_sq": noisy(jv.square_grad),
    "vargrad": noisy(jv.var_grad),
    "layer_activation": lambda f, params, x, _, layer: jv.activations(f, params, x, [layer])[layer],
    "layer_gradcam": cam(jv.grad_cam),
    "guided_gradcam": lambda f, params, x, target, layer: jv.guided_grad_cam(
        f, params, x, target, layer=layer
    ),
    "internal_influence": influence,
    "layer_conductance": conductance,
    "pgc_gradcam": cam(jv.grad_cam),
    "pgc_xgradcam": cam(jv.xgrad_cam),
    "pgc_hirescam": cam(jv.hires_cam),
    "pgc_layercam": cam(jv.layer_cam),
}


def kept(name, value):
    """Of a map, the numbers at every few rows and columns; small maps whole, of few channels."""
    step = 1 if value.shape[1] <= 14 else real_nets.STEP.get(name, 3)
    value = value[:, ::step, ::step]
    return value[..., ::16] if value.ndim == 4 else value


def difference(name, case, dtype):
    """The largest difference, relative to the peer's largest number."""
    with jax.enable_x64(dtype == "float64"):
        f, params, x = net(name, dtype)
        target = jnp.asarray(peers()[f"{name}/target"], jnp.int32)
        out = jax.jit(functools.partial(CASES[case], f), static_argnums=3)(
            params, x, target, LAYERS[name]
        )
        out = np.asarray(out, np.float64)
    theirs = peers()[f"{name}/{case}"]
    return float(np.abs(kept(name, out) - theirs).max() / peers()[f"{name}/{case}/size"])


def draw(file):
    """What the methods draw for each net, in double precision, one example after another."""
    out = {}
    rows = lambda a: np.swapaxes(np.asarray(a), 0, 1).reshape(-1, *a.shape[2:])
    for name in NETS:
        with jax.enable_x64(True):
            x, key = net(name, "float64")[2], jax.random.key(KEY)
            spread = x.max((1, 2, 3), keepdims=True) - x.min((1, 2, 3), keepdims=True)
            keys = [jax.random.fold_in(jax.random.fold_in(key, k), 0) for k in range(SAMPLES)]
            noise = [NOISE * spread * jax.random.normal(k, x.shape, x.dtype) for k in keys]
            where = jax.random.uniform(jax.random.split(key, 3)[1], (SAMPLES, len(x)))
            out |= {f"{name}/noise": rows(jnp.stack(noise)), f"{name}/where": rows(where)}
            out[f"{name}/x"] = np.asarray(x)
    np.savez(file, **out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["draw"]:
        draw(sys.argv[2])
    for name in NETS if len(sys.argv) == 1 else ():
        for case in CASES:
            row = [f"{difference(name, case, dtype):.1e}" for dtype in ("float32", "float64")]
            print(f"{name:12s}{case:20s}", *row, flush=True)
