"""The methods by name, as the command line offers them: those that need an image and no more."""

from collections.abc import Callable
from typing import NamedTuple

from jaxviz.attribution import cam, cam_eigen, cam_perturb, path, path_bent, propagation
from jaxviz.attribution.difference import deep_lift
from jaxviz.attribution.full_grad import full_grad
from jaxviz.attribution.gradient import gradient, input_x_gradient, saliency
from jaxviz.attribution.smooth import smooth_grad, square_grad, var_grad
from jaxviz.attribution.xrai import xrai


class Method(NamedTuple):
    """An explanation and how to call and draw it.

    Attributes:
      title: What stands above its map.
      explain: `(apply_fn, params, x, target, ...) -> map`.
      random: It takes the keyword `key`.
      layer: It takes the keyword `layer`, which names maps.
      coarse: Its map has no pixel's detail: it is read over the image.
      linear: From its layer to the outputs all must be linear: it takes the very last maps.
    """

    title: str
    explain: Callable
    random: bool = False
    layer: bool = False
    coarse: bool = False
    linear: bool = False


def _cam(title: str, explain: Callable, linear: bool = False) -> Method:
    return Method(title, explain, layer=True, coarse=True, linear=linear)


METHODS: dict[str, Method] = {
    "gradient": Method("gradient", gradient),
    "saliency": Method("saliency", saliency),
    "input_x_gradient": Method("input x gradient", input_x_gradient),
    "full_grad": Method("FullGrad", full_grad, coarse=True),
    "integrated_gradients": Method("integrated gradients", path.integrated_gradients),
    "guided_integrated_gradients": Method("guided IG", path_bent.guided_integrated_gradients),
    "blur_integrated_gradients": Method("blur IG", path_bent.blur_integrated_gradients),
    "smooth_grad": Method("SmoothGrad", smooth_grad(gradient), random=True),
    "square_grad": Method("SquareGrad", square_grad(gradient), random=True),
    "var_grad": Method("VarGrad", var_grad(gradient), random=True),
    "guided_backprop": Method("guided backprop", propagation.guided_backprop),
    "deconvnet": Method("deconvnet", propagation.deconvnet),
    "lrp": Method("LRP", propagation.lrp),
    "deep_lift": Method("DeepLIFT", deep_lift),
    "cam": _cam("CAM", cam.cam, linear=True),
    "grad_cam": _cam("Grad-CAM", cam.grad_cam),
    "grad_cam_pp": _cam("Grad-CAM++", cam.grad_cam_pp),
    "xgrad_cam": _cam("XGrad-CAM", cam.xgrad_cam),
    "hires_cam": _cam("HiResCAM", cam.hires_cam),
    "layer_cam": _cam("LayerCAM", cam.layer_cam),
    "shapley_cam": _cam("Shapley-CAM", cam.shapley_cam),
    "eigen_cam": _cam("Eigen-CAM", cam_eigen.eigen_cam),
    "eigen_grad_cam": _cam("Eigen-Grad-CAM", cam_eigen.eigen_grad_cam),
    "score_cam": _cam("Score-CAM", cam_perturb.score_cam),
    "ablation_cam": _cam("Ablation-CAM", cam_perturb.ablation_cam),
    "guided_grad_cam": Method("guided Grad-CAM", cam.guided_grad_cam, layer=True),
    "xrai": Method("XRAI", xrai, coarse=True),
}
