"""Trained networks and what peers say of them: those of real_peers.npz.

`python tests/rules/real_nets.py` prints, for every network and rule, how far ours is from the
peer's, relative to the largest number of the map, in single and double precision; and where single
precision falls short, how far ours moves in double precision when weights and images are rounded.
"""

import dataclasses
import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import jaxviz as jv
from jaxviz import models, rules
from jaxviz.rules.lrp_composites import composite, epsilon

FOLDER = pathlib.Path(__file__).parent.parent / "reference"
WEIGHTS = pathlib.Path(os.environ.get("JAXVIZ_DATA", "")) / "weights"
TRAINED = ("mnist_a", "mnist_b", "mnist_c", "cifar")
PUBLISHED = ("resnet20", "squeezenet")
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
STEP = {"squeezenet": 24, "cifar": 5, "resnet20": 5}  # of the rows and columns that are kept


def every(rule, **options):
    return composite("every", {"conv": rule, "dense": rule}, **options)


def box(name):
    low, high = (-3.0, 3.0) if name in PUBLISHED else (0.0, 1.0)
    return rules.epsilon_gamma_box(low, high, epsilon=1e-6, **_ZENNITS)


def averaged(f):
    """The function with average pooling in place of max pooling."""

    def pooled(op):
        window = op.options["window_dimensions"]
        strides, padding = op.options["window_strides"], op.options["padding"]

        def mean(x):
            zero = np.zeros((), x.dtype)  # known, so that the sum is seen as one
            sums = jax.lax.reduce_window(x, zero, jax.lax.add, window, strides, padding)
            return sums / int(np.prod(window))

        return mean

    return jv.rewrite(f, jv.RuleSet("averaged", {"max_pool": pooled}))


_TINY = {"stabilizer": 1e-30}
_ZENNITS = {"stabilizer": 1e-6}  # what zennit adds to every denominator unless told otherwise
_PLUS = rules.epsilon_plus(1e-6, **_ZENNITS)
_ALPHA_BETA = rules.epsilon_alpha2_beta1(1e-6, **_ZENNITS)
_lrp = lambda table: functools.partial(jv.lrp, rules=table)
_NORMS = dict.fromkeys(("batch_norm", "affine"), rules.lrp.epsilon(1e-30))
# Captum shares with the shift of a batch norm that stands alone; zennit passes it.
_DAMPED = dict.fromkeys(("conv", "dense"), rules.lrp.epsilon(0.25)) | _NORMS
CASES = {
    "captum_guided_backprop": jv.guided_backprop,
    "captum_deconvnet": jv.deconvnet,
    "captum_epsilon": _lrp(epsilon(1e-30)),
    "captum_epsilon_025": _lrp(composite("every", _DAMPED, **_TINY)),
    "captum_epsilon_025_folded": _lrp(composite("every", _DAMPED, **_TINY)),
    "captum_gamma_no_bias": _lrp(
        every(rules.lrp.gamma(0.25, bias=False, stabilizer=1e-9), **_TINY)
    ),
    "captum_zplus_no_bias": _lrp(every(rules.lrp.z_plus(bias=False, stabilizer=1e-9), **_TINY)),
    "captum_deep_lift": lambda f, params, x, target: jv.deep_lift(
        averaged(f), params, x, target, baseline=jnp.asarray(0.1, x.dtype)
    ),
    "zennit_epsilon": _lrp(every(rules.lrp.epsilon(0.1), **_ZENNITS)),
    "zennit_gamma": _lrp(every(rules.lrp.gamma(0.3, **_ZENNITS), **_ZENNITS)),
    "zennit_zplus": _lrp(every(rules.lrp.z_plus(**_ZENNITS), **_ZENNITS)),
    "zennit_zplus_no_bias": _lrp(every(rules.lrp.z_plus(bias=False, **_ZENNITS), **_ZENNITS)),
    "zennit_alpha2_beta1": _lrp(every(rules.lrp.alpha_beta(2, 1, **_ZENNITS), **_ZENNITS)),
    "zennit_wsquare_no_bias": _lrp(every(rules.lrp.w_square(**_ZENNITS), **_ZENNITS)),
    "zennit_flat": _lrp(every(rules.lrp.flat(**_ZENNITS), **_ZENNITS)),
    "zennit_epsilon_plus": _lrp(_PLUS),
    "zennit_epsilon_plus_flat": _lrp(rules.with_flat(_PLUS, **_ZENNITS)),
    "zennit_epsilon_alpha2_beta1": _lrp(_ALPHA_BETA),
    "zennit_epsilon_alpha2_beta1_flat": _lrp(rules.with_flat(_ALPHA_BETA, **_ZENNITS)),
    "zennit_epsilon_gamma_box": None,  # by the net's range of inputs
}


# Captum leaves batch norm where it is, so it damps a convolution before it. The same of ours: each
# operation alone, the dense layer's z + b damped where its bias comes in.
_ALONE = {"conv": rules.lrp.epsilon(0.25), "bias": rules.lrp.epsilon(0.25)} | _NORMS
_ALONE["dense"] = rules.lrp.epsilon(1e-30)
OF_NET = {
    ("resnet20", "captum_epsilon_025"): _lrp(
        dataclasses.replace(composite("alone", _ALONE, **_TINY), folded=False)
    ),
}


@functools.cache
def peers():
    with np.load(FOLDER / "real_peers.npz") as file:
        return dict(file)


@functools.cache
def trained():
    with np.load(FOLDER / "real_weights.npz") as file:
        return dict(file)


def net(name, dtype):
    """`apply_fn, params, x` of a net, in a precision."""
    module = models.nets["squeezenet1_1" if name == "squeezenet" else name]()
    if name in TRAINED:
        variables = {"params": {}}
        images = trained()[f"{name}/images"].astype(np.float32) / np.float32(255)
        for key, value in trained().items():
            start, *path = key.split("/")
            if start != name or len(path) != 2 or key.endswith("_step"):
                continue
            kind = "batch_stats" if path[1] in ("mean", "var") else "params"
            if path[1] == "kernel":
                value = np.float32(value) * trained()[f"{key}_step"]
            variables.setdefault(kind, {}).setdefault(path[0], {})[path[1]] = value
    else:
        file = {"resnet20": "resnet20", "squeezenet": "squeezenet1_1"}[name]
        with np.load(WEIGHTS / f"{file}_reference.npz") as reference:
            images = reference["inputs_uint8"][: 2 if name == "resnet20" else 1]
        images = np.float32((images / 255 - MEAN) / STD)
        (weights,) = WEIGHTS.glob(f"{file}_*.safetensors")
        variables = models.load_torchvision(module, weights)
    cast = lambda a: jnp.asarray(np.asarray(a), dtype)
    return models.apply_fn(module), jax.tree.map(cast, variables), cast(images)


def differences(name, case, dtype):
    """How far ours is from the peer's: of the numbers kept, and of the sum; relative to the
    largest number and to the largest sum."""
    with jax.enable_x64(dtype == "float64"):
        f, params, x = net(name, dtype)
        method = OF_NET.get((name, case)) or CASES[case] or _lrp(box(name))
        out = method(f, params, x, jnp.asarray(peers()[f"{name}/target"], jnp.int32))
        out = np.asarray(out, np.float64)
    key, step = f"{name}/{case}", STEP.get(name, 3)
    expected, total = peers()[key], peers()[f"{key}/sum"]
    apart = np.abs(out[:, ::step, ::step] - expected).max() / peers()[f"{key}/size"]
    return float(apart), float(np.abs(out.sum((1, 2, 3)) - total).max() / np.abs(total).max())


def sensitivity(name, case, size):
    """How far rounding weights and images (by `size`, relative) moves the map, in float64.

    The most of six drawings, relative to the largest number: below it no arithmetic of that
    precision can be expected to agree with another.
    """
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        f, params, x = net(name, "float64")
        target = jnp.asarray(peers()[f"{name}/target"], jnp.int32)
        method = OF_NET.get((name, case)) or CASES[case] or _lrp(box(name))
        explained = jax.jit(lambda params, x: method(f, params, x, target))
        rounded = lambda a: a * (1 + size * jnp.asarray(rng.uniform(-1, 1, a.shape)))
        clean, *maps = (
            np.asarray(explained(*given))
            for given in ((params, x), *(jax.tree.map(rounded, (params, x)) for _ in range(6)))
        )
    return max(float(np.abs(m - clean).max() / np.abs(clean).max()) for m in maps)


def main():
    for name in (*TRAINED, *PUBLISHED):
        for case in CASES:
            if f"{name}/{case}" in peers():
                single, double = (differences(name, case, t) for t in ("float32", "float64"))
                row = [f"{d:.1e}" for d in (*single, *double)]
                if single[0] > 1e-5:
                    row.append(f"rounding: {sensitivity(name, case, 6e-8):.1e}")
                print(f"{name:12s}{case:36s}", *row, flush=True)


if __name__ == "__main__":
    main()
