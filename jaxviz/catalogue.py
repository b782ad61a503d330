"""The methods by name, as the command line offers them: those that need an image and no more.

Nothing is imported for the names: a method is, when it is asked for.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jaxviz


class Method(NamedTuple):
    """An explanation and how to call and draw it.

    Attributes:
      name: The public function's.
      title: What stands above its map.
      wraps: It is made of the gradient.
      random: It takes the keyword `key`.
      layer: It takes the keyword `layer`, which names maps.
      coarse: Its map has no pixel's detail: it is read over the image.
      linear: From its layer to the outputs all must be linear: it takes the very last maps.
    """

    name: str
    title: str
    wraps: bool = False
    random: bool = False
    layer: bool = False
    coarse: bool = False
    linear: bool = False

    @property
    def explain(self) -> Callable:
        """`(apply_fn, params, x, target, ...) -> map`."""
        return _function(self.name, self.wraps)


@functools.cache  # a wrapped method is the same object each time, for which nothing compiles twice
def _function(name: str, wraps: bool) -> Callable:
    function = getattr(jaxviz, name)
    return function(jaxviz.gradient) if wraps else function


def _noisy(name: str, title: str) -> Method:
    return Method(name, title, wraps=True, random=True)


def _cam(name: str, title: str, linear: bool = False) -> Method:
    return Method(name, title, layer=True, coarse=True, linear=linear)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("gradient", "gradient"),
        Method("saliency", "saliency"),
        Method("input_x_gradient", "input x gradient"),
        Method("full_grad", "FullGrad", coarse=True),
        Method("integrated_gradients", "integrated gradients"),
        Method("guided_integrated_gradients", "guided IG"),
        Method("blur_integrated_gradients", "blur IG"),
        _noisy("smooth_grad", "SmoothGrad"),
        _noisy("square_grad", "SquareGrad"),
        _noisy("var_grad", "VarGrad"),
        Method("guided_backprop", "guided backprop"),
        Method("deconvnet", "deconvnet"),
        Method("lrp", "LRP"),
        Method("deep_lift", "DeepLIFT"),
        _cam("cam", "CAM", linear=True),
        _cam("grad_cam", "Grad-CAM"),
        _cam("grad_cam_pp", "Grad-CAM++"),
        _cam("xgrad_cam", "XGrad-CAM"),
        _cam("hires_cam", "HiResCAM"),
        _cam("layer_cam", "LayerCAM"),
        _cam("shapley_cam", "Shapley-CAM"),
        _cam("eigen_cam", "Eigen-CAM"),
        _cam("eigen_grad_cam", "Eigen-Grad-CAM"),
        _cam("score_cam", "Score-CAM"),
        _cam("ablation_cam", "Ablation-CAM"),
        Method("guided_grad_cam", "guided Grad-CAM", layer=True),
        Method("xrai", "XRAI", coarse=True),
    )
}
