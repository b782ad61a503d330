"""The methods by name: what each is, costs and needs, and how the command line calls and draws it.

Nothing is imported for the names: a method is, when it is asked for.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jaxviz

_WINDOWS = 8  # along the shorter side of an image, for occlusion, half over one another
_CELLS = 7  # along each axis of an image: what other methods that hide parts take by themselves


class Method(NamedTuple):
    """An explanation and how to call and draw it.

    Attributes:
      name: The public function's.
      title: What stands above its map.
      family: "gradient", "path", "smoothed", "propagation", "CAM", "perturbation" or
        "attention", which the model must have.
      cost: Passes through the net for an example by default; a pass back takes about twice the time
        of one forward.
      wraps: It is made of the gradient.
      random: It takes the keyword `key`.
      layer: It takes the keyword `layer`, which names maps.
      windows: It takes the keywords `window` and `stride`.
      cells: It takes `segments`, and by default each number alone: of images too many passes.
      scores: It returns more than a map, which is the first of it.
      coarse: Its map has no pixel's detail: it is read over the image.
      linear: From its layer to the outputs all must be linear: it takes the very last maps.
      needs: What it cannot do without beside an image, which only Python can give it; "" for none.
    """

    name: str
    title: str
    family: str
    cost: str
    wraps: bool = False
    random: bool = False
    layer: bool = False
    windows: bool = False
    cells: bool = False
    scores: bool = False
    coarse: bool = False
    linear: bool = False
    needs: str = ""

    @property
    def explain(self) -> Callable:
        """`(apply_fn, params, x, target, ...) -> map`."""
        return _function(self.name, self.wraps, self.scores)

    def made(self, options: Mapping[str, Any]) -> tuple[Callable, dict[str, Any]]:
        """The method, made anew with those options that its wrapper takes, and the others."""
        if not self.wraps:
            return self.explain, dict(options)
        make = getattr(jaxviz, self.name)
        own = inspect.signature(make).parameters.keys() & options.keys()
        rest = {k: v for k, v in options.items() if k not in own}
        if not own:
            return self.explain, rest
        return make(jaxviz.gradient, **{k: options[k] for k in own}), rest

    @property
    def moves(self) -> bool:
        """Whether it moves its input by a little, which whole numbers are not for."""
        replaces = self.family in ("perturbation", "attention") and self.name != "learned_mask"
        return not self.layer and not replaces

    def options(self, space: tuple[int, ...]) -> dict[str, Any]:
        """What it needs to know of inputs of so many places along each axis, by keyword."""
        if self.cells and len(space) > 1:  # columns and tokens are parts that somebody named
            return {"segments": jaxviz.grid_segments(space, tuple(min(_CELLS, n) for n in space))}
        if not self.windows:
            return {}
        window = max(1, min(space) // _WINDOWS)
        stride = max(1, window // 2)
        return {"window": (window,) * len(space), "stride": (stride,) * len(space)}


@functools.cache  # a wrapped method is the same object each time, for which nothing compiles twice
def _function(name: str, wraps: bool, scores: bool) -> Callable:
    function = getattr(jaxviz, name)
    if scores:
        return functools.wraps(function)(lambda *args, **kwargs: function(*args, **kwargs)[0])
    return function(jaxviz.gradient) if wraps else function


def _noisy(name: str, title: str) -> Method:
    return Method(name, title, "smoothed", "25 back", wraps=True, random=True)


def _cam(
    name: str,
    title: str,
    cost: str = "1 back to its layer",
    linear: bool = False,
    random: bool = False,
) -> Method:
    return Method(name, title, "CAM", cost, layer=True, coarse=True, linear=linear, random=random)


def _attending(name: str, title: str, cost: str) -> Method:
    return Method(name, title, "attention", cost, coarse=True)


def _hiding(
    name: str,
    title: str,
    cost: str,
    random: bool = False,
    windows: bool = False,
    cells: bool = False,
    scores: bool = False,
) -> Method:
    more = {"random": random, "windows": windows, "cells": cells, "scores": scores, "coarse": True}
    return Method(name, title, "perturbation", cost)._replace(**more)


_EACH = "1 forward from its layer a channel"

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("gradient", "gradient", "gradient", "1 back"),
        Method("saliency", "saliency", "gradient", "1 back"),
        Method("input_x_gradient", "input x gradient", "gradient", "1 back"),
        Method("full_grad", "FullGrad", "gradient", "1 back", coarse=True),
        Method("integrated_gradients", "integrated gradients", "path", "50 back"),
        Method("guided_integrated_gradients", "guided IG", "path", "200 back"),
        Method("blur_integrated_gradients", "blur IG", "path", "100 back"),
        Method("idgi", "IDGI", "path", "50 back, and 50 forward"),
        _noisy("smooth_grad", "SmoothGrad"),
        _noisy("square_grad", "SquareGrad"),
        _noisy("var_grad", "VarGrad"),
        Method("low_passed", "gradient, low-passed", "smoothed", "1 back", wraps=True),
        Method("guided_backprop", "guided backprop", "propagation", "1 back"),
        Method("deconvnet", "deconvnet", "propagation", "1 back"),
        Method("lrp", "LRP", "propagation", "1 back"),
        Method("deep_lift", "DeepLIFT", "propagation", "1 back, for two inputs"),
        _cam("cam", "CAM", "1 forward", linear=True),
        _cam("grad_cam", "Grad-CAM"),
        _cam("grad_cam_pp", "Grad-CAM++"),
        _cam("xgrad_cam", "XGrad-CAM"),
        _cam("hires_cam", "HiResCAM"),
        _cam("layer_cam", "LayerCAM"),
        _cam("shapley_cam", "Shapley-CAM"),
        _cam("eigen_cam", "Eigen-CAM", "1 forward"),
        _cam("eigen_grad_cam", "Eigen-Grad-CAM"),
        _cam("elementwise_cam", "elementwise CAM"),
        _cam("finer_cam", "Finer-CAM"),
        _cam("smooth_grad_cam_pp", "smooth Grad-CAM++", "25 back to its layer", random=True),
        _cam("seg_eigen_cam", "Seg-Eigen-CAM"),
        _cam("kpca_cam", "KPCA-CAM", "1 forward"),
        _cam("fem", "FEM", "1 forward"),
        _cam("random_cam", "random CAM", "1 forward", random=True),
        _cam("refine_cam", "Refine-CAM", "1 back to each layer"),
        _cam("fused_cam", "fused LayerCAM", "1 back to each layer"),
        _cam("score_cam", "Score-CAM", "1 forward a channel"),
        _cam("ss_cam", "SS-CAM", "35 forward a channel", random=True),
        _cam("is_cam", "IS-CAM", "10 forward a channel"),
        _cam("ablation_cam", "Ablation-CAM", _EACH),
        _cam("recipro_cam", "Recipro-CAM", "1 forward from its layer a place"),
        Method("guided_grad_cam", "guided Grad-CAM", "CAM", "2 back", layer=True),
        Method("xrai", "XRAI", "path", "100 back", coarse=True),
        _attending("attention_rollout", "attention rollout", "1 forward"),
        _attending("attention_relevance", "attention relevance", "1 back"),
        _attending("attention_x_gradient", "attention x gradient", "1 back"),
        _attending("token_tm", "TokenTM", "1 back"),
        _attending("value_zeroing", "value zeroing", "1 forward a token"),
        _attending("le_grad", "LeGrad", "1 back, and the head a block"),
        _hiding("occlusion", "occlusion", "1 forward a window, of what changed", windows=True),
        _hiding("feature_ablation", "feature ablation", "49 forward", cells=True),
        _hiding("rise", "RISE", "4,000 forward", random=True),
        _hiding("sobol", "Sobol indices", "2,112 forward", random=True),
        _hiding("hsic", "HSIC", "512 forward", random=True),
        _hiding("lime", "LIME", "1,000 forward", random=True, scores=True),
        _hiding("kernel_shap", "KernelSHAP", "1,024 forward", random=True, scores=True),
        _hiding("shapley_sampling", "Shapley values", "1,225 forward", random=True, scores=True),
        _hiding("owen_values", "Owen values", "512 forward", scores=True),
        _hiding("learned_mask", "learned mask", "200 back", scores=True),
    )
}

# Those that an image alone is not enough for.
_MORE = (
    Method("expected_gradients", "expected gradients", "path", "50 back", random=True,
           needs="baselines"),
    Method("deep_lift_shap", "DeepLIFT-SHAP", "propagation", "1 back a baseline",
           needs="baselines"),
    Method("layer_conductance", "layer conductance", "path", "51 back to its layer",
           needs="layer"),
    Method("internal_influence", "internal influence", "path", "50 back to its layer",
           needs="layer"),
    Method("neuron_conductance", "neuron conductance", "path", "50 back", needs="neuron"),
    Method("feature_permutation", "feature permutation", "perturbation", "5 forward a segment",
           random=True, coarse=True, needs="segments"),
    Method("concept_relevance", "concept relevance", "propagation", "1 back", layer=True,
           needs="channel"),
    Method("information_bottleneck", "information bottleneck", "perturbation",
           "100 back from its layer", random=True, layer=True, scores=True, coarse=True,
           needs="baselines"),
    Method("shapley_values", "exact Shapley values", "perturbation", "2^segments forward",
           scores=True, needs="segments"),
)  # fmt: skip


class Methods(tuple[Method, ...]):
    """Methods that show themselves as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        return methods_table(self)

    def _repr_html_(self) -> str:
        return f"<pre>{methods_table(self)}</pre>"


def methods() -> Methods:
    """The methods that explain an answer: family, cost, and what each needs.

    Returns:
      A tuple of `Method`s, which shows itself as a table. `getattr(jaxviz, name)` is the function;
      of one that `wraps` it makes a method of another (`smooth_grad(gradient)`).

    Example:
      >>> [m.name for m in methods() if m.family == "path"][:2]
      ['integrated_gradients', 'guided_integrated_gradients']
    """
    return Methods((*METHODS.values(), *_MORE))


def methods_table(found: Methods) -> str:
    """A line a method: name, family, cost, what it needs."""
    rows = [("method", "family", "passes through the net", "needs")]
    for m in found:
        attends = m.family == "attention"
        words = (
            (m.random, "key"),
            (m.layer, "layer"),
            (m.windows, "window, stride"),
            (attends, "attention in the model"),
        )
        needs = [word for wanted, word in words if wanted] + ([m.needs] if m.needs else [])
        rows.append((m.name, m.family, m.cost, ", ".join(needs)))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    pad = lambda row: [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
    return "\n".join("  ".join((*pad(row), row[3])).rstrip() for row in rows)
