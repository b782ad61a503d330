"""The methods that transformers.py times: our call of each, by the names that the peers' calls in
transformers_peers.py have."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxviz as jv
from benchmarks.transformer_nets import Size, transformer

# The same numbers as in transformers_peers.py and transformers_cams.py.
STEPS, NOISY, SAMPLES, CHANNELS, ORDERS, CELLS = 10, 8, 64, 16, 4, 2


class Case(NamedTuple):
    """A net, its weights, its input and another one."""

    size: Size
    net: Callable
    w: Any
    x: jax.Array
    source: jax.Array

    @property
    def main(self):
        return self.net, self.w, self.x, 0

    @property
    def cam(self):
        """The layer of class activation maps: the last block's first norm."""
        return {"layer": f"affine_{2 * self.size.blocks - 2}"}

    @property
    def middle(self):
        """What half of the blocks hand on."""
        half = self.size.blocks // 2
        return f"add_{2 * half - 1}" if self.size.patch else f"affine_{2 * half}"

    @property
    def cell(self):
        return CELLS * self.size.patch

    def at_input(self, method):
        """A method of the image, or of what ids are embedded as."""
        return method if self.size.patch else jv.at_layer(method, "embed_0")

    def parts(self, groups):
        """Cells of an image, tokens, or `groups` of four tokens."""
        if not self.size.patch:
            return np.arange(self.size.tokens) // (4 if groups else 1)
        line = np.arange(self.size.image) // self.cell
        return line[:, None] * (self.size.image // self.cell) + line


class Method(NamedTuple):
    """One row.

    Attributes:
      title: As the table names it.
      peer: What it is compared with.
      ours: `case -> explanation`.
      check: What makes ours comparable, `(case, ours) -> list of arrays`, one of which is the
        peer's result; None where the two differ by intent or are drawn anew.
      only: The net that has it, `"vit"`, or None.
      frozen: Whether the peer's code computes the weights' gradients, too, and is timed without.
    """

    title: str
    peer: str
    ours: Callable[[Case], Any]
    check: Callable | None = lambda case, a: [a]
    only: str | None = None
    frozen: bool = False


def _image(case, a):
    """`[N, H, W, 3]` as the peer has it."""
    return [a.transpose(0, 3, 1, 2) if case.size.patch else a]


def _places(case, a):
    """One number a place, which the peer repeats for each colour."""
    return [a[:, None] if case.size.patch else a]


def _scaled(case, a):
    """Maps between 0 and 1, as the peer gives them."""
    a = a - a.min((1, 2), keepdims=True)
    return [a / a.max((1, 2), keepdims=True)]


def _signless(method):
    """Of a map without a sign of its own both, rectified ahead of being resized."""

    def both(case, a):
        signed = method(*case.main, relu=False, resize=False, **case.cam)
        grown = lambda map: jax.image.resize(map, a.shape, "linear", antialias=False)
        maps = [grown(jax.nn.relu(sign * signed)) for sign in (1, -1)]
        return [_scaled(case, np.asarray(map))[0] for map in maps]

    return both


def _cam(title, method, check=_scaled, frozen=True, channels=None):
    def ours(c):
        some = {"reshape": _some(c.size.grid)} if channels else {}
        return method(*c.main, **c.cam, **some)

    return Method(title, "pytorch-grad-cam", ours, check, "vit", frozen)


@functools.cache
def _some(side):
    """From tokens to the grid of patches, of the channels that both sides try."""
    return lambda a: a[:, 1:, :CHANNELS].reshape(len(a), side, side, -1)


def _on_path(c, method, **options):
    return c.at_input(method)(*c.main, num_steps=STEPS, rule="middle", **options)


def _conductance(c):
    options = {"layer": c.middle, "num_steps": STEPS, "rule": "middle"}
    return jv.layer_conductance(*c.main, **options)


def _smooth(c):
    method = jv.smooth_grad(jv.gradient, num_samples=NOISY, noise_scale=0.15)
    return c.at_input(method)(*c.main, key=jax.random.key(0))


def _shap(c):
    blank = jnp.zeros_like(c.x[:1])
    method = c.at_input(jv.expected_gradients)
    return method(*c.main, baselines=blank, key=jax.random.key(0), num_samples=NOISY)


def _sampled(method, c, count=SAMPLES):
    options = {"segments": c.parts(True), "num_samples": count, "key": jax.random.key(0)}
    return method(*c.main, **options)


def _attended(title, method, read=True, frozen=False):
    """A method of attentions; those that `read` a token are told which where no image tells."""

    def ours(c):
        query = {"query": 0} if read and not c.size.patch else {}
        return method(c.net, c.w, c.x, 0, resize=False, **query)

    return Method(title, "by hooks", ours, frozen=frozen)


@functools.cache
def _bare(size):
    return transformer(size, bare=True)


METHODS = {
    "products": Method(
        "products of a gradient",
        "the same",
        lambda c: c.at_input(jv.gradient)(_bare(c.size), *c.main[1:]),
        _image,
    ),
    "gradient": Method(
        "gradient", "Captum Saliency", lambda c: c.at_input(jv.gradient)(*c.main), _image
    ),
    "input_x_gradient": Method(
        "input x gradient", "Captum", lambda c: c.at_input(jv.input_x_gradient)(*c.main), _image
    ),
    "integrated": Method(
        f"integrated gradients, {STEPS} steps",
        "Captum",
        lambda c: _on_path(c, jv.integrated_gradients),
        _image,
    ),
    "conductance": Method(f"layer conductance, {STEPS} steps", "Captum", _conductance, only="vit"),
    "gradient_shap": Method(f"GradientSHAP, {NOISY} samples", "Captum", _shap, None),
    "smooth_grad": Method(f"SmoothGrad, {NOISY} samples", "Captum NoiseTunnel", _smooth, None),
    "ablation": Method(
        "feature ablation, tokens or 49 cells",
        "Captum",
        lambda c: jv.feature_ablation(*c.main, segments=c.parts(False)),
        _places,
    ),
    "occlusion": Method(
        "occlusion, 49 windows",
        "Captum",
        lambda c: jv.occlusion(*c.main, window=(c.cell, c.cell), stride=(c.cell, c.cell)),
        _places,
        only="vit",
    ),
    "kernel_shap": Method(
        f"KernelSHAP, {SAMPLES} samples", "Captum", lambda c: _sampled(jv.kernel_shap, c), None
    ),
    "lime": Method(f"LIME, {SAMPLES} samples", "Captum", lambda c: _sampled(jv.lime, c), None),
    "shapley": Method(
        f"Shapley sampling, {ORDERS} orders",
        "Captum",
        lambda c: _sampled(jv.shapley_sampling, c, ORDERS // 2),
        None,
        only="minilm",
    ),
    "grad_cam": _cam("Grad-CAM", jv.grad_cam),
    "grad_cam_pp": _cam("Grad-CAM++", jv.grad_cam_pp, None),
    "xgrad_cam": _cam("XGrad-CAM", jv.xgrad_cam),
    "layer_cam": _cam("LayerCAM", jv.layer_cam),
    "hires_cam": _cam("HiResCAM", jv.hires_cam),
    "elementwise_cam": _cam("elementwise Grad-CAM", jv.elementwise_cam),
    "eigen_cam": _cam("EigenCAM", jv.eigen_cam, _signless(jv.eigen_cam), False),
    "eigen_grad_cam": _cam("EigenGradCAM", jv.eigen_grad_cam, _signless(jv.eigen_grad_cam)),
    "seg_eigen_cam": _cam("SegEigenCAM", jv.seg_eigen_cam),
    "kpca_cam": _cam("KPCA-CAM", jv.kpca_cam, _signless(jv.kpca_cam), False),
    "fem_cam": _cam("FEM", jv.fem, None, False),
    "finer_cam": _cam("FinerCAM", jv.finer_cam, None),
    "score_cam": _cam(f"Score-CAM, {CHANNELS} channels", jv.score_cam, None, False, CHANNELS),
    "ablation_cam": _cam(
        f"Ablation-CAM, {CHANNELS} channels", jv.ablation_cam, _scaled, False, CHANNELS
    ),
    "recipro_cam": Method(
        "ViT-ReciproCAM",
        "by hand",
        lambda c: jv.recipro_cam(*c.main, **c.cam, resize=False),
        only="vit",
    ),
    "rollout": _attended("rollout", jv.attention_rollout),
    "relevance": _attended("Chefer's relevance", jv.attention_relevance, frozen=True),
    "attention_x_gradient": _attended("attention x gradient", jv.attention_x_gradient, False),
    "le_grad": _attended("LeGrad", jv.le_grad, False),
    "token_tm": _attended("TokenTM", jv.token_tm),
    "value_zeroing": _attended("value zeroing", jv.value_zeroing),
    "attn_lrp": Method(
        "AttnLRP",
        "LXT",
        lambda c: c.at_input(jv.lrp)(*c.main, rules="attn_lrp"),
        _image,
    ),
    "patching": Method(
        "all heads patched",
        "a loop of passes with hooks",
        lambda c: jv.activation_patching(c.net, c.w, c.x, c.source, 0).effect,
    ),
}
