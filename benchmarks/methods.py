"""The methods that run.py times: our call of each, the peer's name, and the draws that both share.

Every method that makes copies of an input is heavy: it gets fewer examples and the numbers of
copies in `Options`. The peer's calls are in peers.py, under the same names.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxviz as jv
from jaxviz.attribution import surrogate
from jaxviz.graph.rewrite import RuleSet, rewrite
from jaxviz.rules.lrp_composites import epsilon


def _key():
    return jax.random.key(0)  # not at import: run.py limits the threads first


class Options(NamedTuple):
    """How many copies, and where: the same numbers for both sides."""

    segments: list  # [H, W], the cells of a 7x7 grid
    window: tuple[int, int] = (4, 4)
    stride: tuple[int, int] = (2, 2)
    steps: int = 50  # integrated gradients
    noisy: int = 25  # SmoothGrad and GradientSHAP
    samples: int = 200  # KernelSHAP and LIME
    strength: float = 0.01  # of LIME's penalty
    channels: int = 64  # Score-CAM
    images: int = 16  # activation maximization
    climb_steps: int = 8
    orders: int = 5  # Shapley sampling, walked forwards and backwards
    masks: int = 8  # a channel of SS-CAM and IS-CAM
    budget: int = 500  # forward passes of Owen values and interactions


class Case(NamedTuple):
    """A net with its inputs, as our methods take them."""

    apply_fn: Callable
    params: Any
    x: jax.Array
    target: jax.Array
    layer: str
    options: Options

    @property
    def main(self):
        return self.apply_fn, self.params, self.x, self.target

    @property
    def segments(self):
        return np.asarray(self.options.segments, np.int32)


class Method(NamedTuple):
    """One row of the table for each net.

    Attributes:
      title: As the table names it; `{}` stands for its number in `Options`.
      peer: What it is compared with.
      ours: `case -> explanation`.
      number: The field of `Options` in the title.
      heavy: Whether it makes many copies of each example.
      copies: How many copies the peer may evaluate at once; None is its default.
      check: What of our result is compared, `(case) -> array`; None is the result itself.
      turns: The field of `Options` that says how often a `while` loop of ours turns, which its
        program does not tell.
      tolerance: How far the two may be apart, |ours - theirs| / |theirs| in the Euclidean norm.
      same: Whether they are to give the same numbers; else they are not compared.
    """

    title: str
    peer: str
    ours: Callable[[Case], Any]
    number: str | None = None
    heavy: bool = True
    copies: tuple[int | None, ...] = (None,)
    check: Callable[[Case], Any] | None = None
    turns: str | None = None
    tolerance: float = 1e-2
    same: bool = True


def _raw(case):
    return {"layer": case.layer, "relu": False, "resize": False}


def _smooth(case):
    method = jv.smooth_grad(jv.gradient, num_samples=case.options.noisy, noise_scale=0.15)
    return method(*case.main, key=_key())


def _climb(case, **changed):
    options = case.options
    shape = (options.images, *case.x.shape[1:])
    units = jv.objectives.channel(case.layer, np.arange(options.images))
    settings = {"key": _key(), "num_steps": options.climb_steps, "redirected_steps": 0} | changed
    return jv.maximize_activation(case.apply_fn, case.params, shape, units, **settings)


def _surrogate(method, case, **settings):
    options = {"segments": case.segments, "num_samples": case.options.samples, "key": _key()}
    return method(*case.main, **options, **settings).map


def _mean_pool(op):
    """Each window's mean over what lies inside the image."""
    names = "window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation"
    options = [op.options[name] for name in names]
    total = lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, *options)
    return lambda x: total(x) / total(jnp.ones_like(x[:1, ..., :1]))


def averaged(apply_fn):
    """The net with average pooling for max pooling."""
    return rewrite(apply_fn, RuleSet("averaged", {"reduce_window_max": _mean_pool}))


METHODS = {
    "saliency": Method("saliency", "Captum Saliency", lambda c: jv.saliency(*c.main), heavy=False),
    "ig": Method(
        "IG-{}",
        "Captum IntegratedGradients",
        lambda c: jv.integrated_gradients(*c.main, num_steps=c.options.steps),
        "steps",
        copies=(None, 8, 1),
    ),
    "smoothgrad": Method(
        "SmoothGrad-{}", "Captum NoiseTunnel", _smooth, "noisy", copies=(None, 8, 1)
    ),
    "gradientshap": Method(
        "GradientSHAP-{}",
        "Captum GradientShap",
        lambda c: jv.expected_gradients(
            *c.main, baselines=jnp.zeros_like(c.x[:1]), key=_key(), num_samples=c.options.noisy
        ),
        "noisy",
    ),
    "guided": Method(
        "guided backprop",
        "Captum GuidedBackprop",
        lambda c: jv.guided_backprop(*c.main),
        heavy=False,
    ),
    "deconvnet": Method(
        "deconvnet", "Captum Deconvolution", lambda c: jv.deconvnet(*c.main), heavy=False
    ),
    "deeplift": Method(
        "DeepLIFT",
        "Captum DeepLift",
        lambda c: jv.deep_lift(*c.main),
        heavy=False,
        # Captum's rule for max pooling is not complete, so the two are compared on the net with
        # average pooling in its place.
        check=lambda c: jv.deep_lift(averaged(c.apply_fn), *c.main[1:]),
    ),
    "lrp": Method(
        "LRP epsilon", "Captum LRP", lambda c: jv.lrp(*c.main, rules=epsilon(1e-9)), heavy=False
    ),
    "gradcam": Method(
        "Grad-CAM", "Captum LayerGradCam", lambda c: jv.grad_cam(*c.main, **_raw(c)), heavy=False
    ),
    "scorecam": Method(
        "Score-CAM-{}",
        "pytorch-grad-cam ScoreCAM",
        lambda c: jv.score_cam(*c.main, num_channels=c.options.channels, **_raw(c)),
        "channels",
    ),
    "ablationcam": Method(
        "Ablation-CAM",
        "pytorch-grad-cam AblationCAM",
        lambda c: jv.ablation_cam(*c.main, **_raw(c)),
    ),
    "occlusion": Method(
        "occlusion",
        "Captum Occlusion",
        lambda c: jv.occlusion(*c.main, window=c.options.window, stride=c.options.stride),
        copies=(64, 16, 4, 1),
    ),
    "ablation": Method(
        "feature ablation",
        "Captum FeatureAblation",
        lambda c: jv.feature_ablation(*c.main, segments=c.segments),
        copies=(49, 8, 1),
    ),
    "kernelshap": Method(
        "KernelSHAP-{}",
        "Captum KernelShap",
        lambda c: _surrogate(jv.kernel_shap, c),
        "samples",
        copies=(200, 32),
    ),
    "lime": Method(
        "LIME-{}",
        "Captum Lime",
        lambda c: _surrogate(
            jv.lime, c, penalty="lasso", strength=c.options.strength, kernel_width=1.0
        ),
        "samples",
        copies=(200, 32),
    ),
    "maximize": Method(
        "maximization, {} steps",
        "the same loop in PyTorch",
        lambda c: _climb(c).images,
        "climb_steps",
        # Transforms are random on each side, so the climbs are compared without them.
        check=lambda c: _climb(c, transforms=(), init="blank").history[-1],
        # Adam's first steps go by the gradient's sign, even of next to nothing: scores of
        # MobileNetV2 after eight, in 32 and in 64 bits, both ours, are 4 % apart.
        tolerance=5e-2,
        turns="climb_steps",
    ),
}


def draws(name: str, case: Case) -> dict[str, np.ndarray]:
    """What our random methods draw for `case`, for the peer's check.

    Returns:
      `noise` and `where`, one example after another, as Captum repeats them; for a surrogate
      `kept`, its coalitions `[samples, N, G]`.
    """
    x, options = case.x, case.options
    count, cells = len(x), int(case.segments.max()) + 1
    spread = x.max((1, 2, 3), keepdims=True) - x.min((1, 2, 3), keepdims=True)

    def noise(k):
        key = jax.random.fold_in(jax.random.fold_in(_key(), k), 0)
        return 0.15 * spread * jax.random.normal(key, x.shape, x.dtype)

    rows = lambda a: np.swapaxes(np.asarray(a), 0, 1).reshape(-1, *a.shape[2:])
    where = jax.random.uniform(jax.random.split(_key(), 3)[1], (options.noisy, count))
    drawn = rows(jax.vmap(noise)(jnp.arange(options.noisy)))
    # Captum's GradientShap asks for noise too, of deviation zero.
    found = {"noise": drawn if name == "smoothgrad" else np.zeros_like(drawn)}
    found["where"] = rows(where).astype(float)
    if name == "kernelshap":
        kept = surrogate._pairs(_key(), cells, count, options.samples)[0]
        ends = np.broadcast_to(np.array([True, False])[:, None, None], (2, count, cells))
        found["kept"] = np.concatenate([ends, kept])
    if name == "lime":
        kept = jax.random.bernoulli(_key(), 0.5, (options.samples, count, cells))
        found["kept"] = np.asarray(kept.at[0].set(True))
    return found
