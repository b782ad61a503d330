"""More rows for run.py: layers, orders, further class activation maps, bent paths, coalitions.

The peer's calls are in more_peers.py, under the same names.
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxviz as jv
from benchmarks.methods import Method, averaged
from benchmarks.trees import halves


def _key():
    return jax.random.key(0)


def _layer(method):
    return lambda c: method(*c.main, layer=c.layer, num_steps=c.options.steps)


def _cells(method, *, number="samples", **settings):
    def call(c):
        options = {"segments": c.segments, "num_samples": getattr(c.options, number)}
        return method(*c.main, **options, **settings)

    return call


def _map(method, **settings):
    return lambda c: method(*c.main, layer=c.layer, relu=False, resize=False, **settings)


def _masks(c):
    return {"layer": c.layer, "resize": False}, c.options.masks


def _ss(c):
    where, masks = _masks(c)
    return jv.ss_cam(*c.main, key=_key(), num_samples=masks, **where)


def _is(c):
    where, masks = _masks(c)
    return jv.is_cam(*c.main, num_steps=masks, **where)


def _smooth_pp(c):
    where, masks = _masks(c)
    return jv.smooth_grad_cam_pp(*c.main, key=_key(), num_samples=masks, **where)


def _many_baselines(c, apply_fn=None):
    baselines = jnp.zeros_like(c.x[:4]) + jnp.arange(4.0).reshape(4, 1, 1, 1) / 8
    return jv.deep_lift_shap(apply_fn or c.apply_fn, *c.main[1:], baselines=baselines)


def _owen(c):
    tree = np.array(halves(int(c.segments.max()) + 1))
    return jv.owen_values(
        *c.main, segments=c.segments, tree=tree, num_samples=c.options.budget
    ).values


def _interactions(c):
    call = _cells(jv.shapley_interactions, number="budget", key=_key())
    return call(c).pairs


# Chance, or a formula that differs by intent, has a part where results are not compared: the tests
# against references (tests/reference) say of each where and by how much.
MORE = {
    "conductance": Method(
        "layer conductance, {} steps",
        "Captum LayerConductance",
        _layer(jv.layer_conductance),
        "steps",
        copies=(None, 8, 1),
    ),
    "influence": Method(
        "internal influence, {} steps",
        "Captum InternalInfluence",
        _layer(jv.internal_influence),
        "steps",
        copies=(None, 8, 1),
    ),
    "deepliftshap": Method(
        "DeepLIFT-SHAP, 4 baselines",
        "Captum DeepLiftShap",
        _many_baselines,
        check=lambda c: _many_baselines(c, averaged(c.apply_fn)),
    ),
    "permutation": Method(
        "feature permutation",
        "Captum FeaturePermutation",
        lambda c: jv.feature_permutation(*c.main, segments=c.segments, num_samples=1, key=_key()),
        same=False,
    ),
    "shapley": Method(
        "Shapley sampling, {} pairs of orders",
        "Captum ShapleyValueSampling",
        lambda c: _cells(jv.shapley_sampling, number="orders", key=_key())(c).map,
        "orders",
        copies=(48, 8, 1),
        same=False,
    ),
    "elementwise": Method(
        "elementwise Grad-CAM",
        "pytorch-grad-cam GradCAMElementWise",
        _map(jv.elementwise_cam),
        heavy=False,
    ),
    "fem": Method("FEM", "pytorch-grad-cam FEM", _map(jv.fem), heavy=False, same=False),
    "kpca": Method(
        "KPCA-CAM", "pytorch-grad-cam KPCA_CAM", _map(jv.kpca_cam), heavy=False, same=False
    ),
    "segeigen": Method(
        "SegEigenCAM",
        "pytorch-grad-cam SegEigenCAM",
        _map(jv.seg_eigen_cam),
        heavy=False,
        same=False,
    ),
    "randomcam": Method(
        "RandomCAM",
        "pytorch-grad-cam RandomCAM",
        lambda c: _map(jv.random_cam, key=_key())(c),
        heavy=False,
        same=False,
    ),
    "finer": Method(
        "FinerCAM",
        "torch-cam FinerCAM",
        lambda c: jv.finer_cam(*c.main, layer=c.layer, resize=False),
        heavy=False,
    ),
    "sscam": Method("SS-CAM, {} masks", "torch-cam SSCAM", _ss, "masks", same=False),
    "iscam": Method("IS-CAM, {} steps", "torch-cam ISCAM", _is, "masks", same=False),
    "smoothpp": Method(
        "Smooth Grad-CAM++, {} copies",
        "torch-cam SmoothGradCAMpp",
        _smooth_pp,
        "masks",
        same=False,
    ),
    "guidedig": Method(
        "guided IG, {} steps",
        "saliency GuidedIG",
        lambda c: jv.guided_integrated_gradients(*c.main, num_steps=c.options.steps),
        "steps",
        same=False,
    ),
    "blurig": Method(
        "blur IG, {} steps",
        "saliency BlurIG",
        lambda c: jv.blur_integrated_gradients(*c.main, num_steps=c.options.steps, max_sigma=10.0),
        "steps",
        copies=(50, 8, 1),
        same=False,
    ),
    "owen": Method(
        "Owen values, {} passes",
        "shap PartitionExplainer",
        _owen,
        "budget",
        copies=(100, 10),
        same=False,
    ),
    "interactions": Method(
        "Shapley interactions, {} coalitions", "shapiq SHAPIQ", _interactions, "budget", same=False
    ),
}
