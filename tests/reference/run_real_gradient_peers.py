"""Writes real_gradient_peers.npz: what Captum and pytorch-grad-cam give for trained networks.

`python run_real_gradient_peers.py DRAWS`, where torch, captum (0.9.0) and grad-cam (1.5.7) are and
$JAXVIZ_DATA is set; DRAWS is the file that `real_gradients.py draw` writes. In double precision; of
each map a part is kept, and the size of its largest number.
"""

import pathlib
import sys
from unittest import mock

import numpy as np
import run_propagation_peers as small
import run_real_peers as real
import torch
from captum import attr
from pytorch_grad_cam import GradCAM, HiResCAM, LayerCAM, XGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

FOLDER = pathlib.Path(__file__).parent
STEPS, SAMPLES = 6, 3
NETS = {
    "mnist_a": (lambda: real.trained("mnist_a", real.mnist_a)(), lambda net: net.act3),
    "mnist_c": (lambda: real.trained("mnist_c", real.mnist_c)(), lambda net: net.act2),
    "cifar": (lambda: real.trained("cifar", real.cifar)(), lambda net: net.act2),
    "resnet20": (
        lambda: real.published(real.ResNet20(), "resnet20_cifar10.safetensors"),
        lambda net: net.layer3,
    ),
    "squeezenet": (
        lambda: real.published(real.SqueezeNet(), "squeezenet1_1_imagenet.safetensors"),
        lambda net: net.features[12],
    ),
}


def values(net, layer, x, noise, where):
    target = net(x).argmax(1)
    zeros = torch.zeros_like(x)
    out = {"gradient": attr.Saliency(net).attribute(x, target, abs=False)}
    for rule in ("gausslegendre", "left", "right", "middle", "trapezoid"):
        method = rule if rule == "gausslegendre" else f"riemann_{rule}"
        out[f"ig_{rule}"] = attr.IntegratedGradients(net).attribute(
            x, zeros, target, n_steps=STEPS, method=method
        )
    with mock.patch.object(np.random, "uniform", return_value=where):
        out["gradient_shap"] = attr.GradientShap(net).attribute(
            x, zeros[:1], n_samples=SAMPLES, target=target
        )
    for kind in ("smoothgrad", "smoothgrad_sq", "vargrad"):
        with mock.patch.object(torch, "normal", return_value=noise):
            out[kind] = attr.NoiseTunnel(attr.Saliency(net)).attribute(
                x, nt_type=kind, nt_samples=SAMPLES, target=target, abs=False
            )
    out["layer_activation"] = attr.LayerActivation(net, layer).attribute(x)
    out["layer_gradcam"] = attr.LayerGradCam(net, layer).attribute(x, target)[:, 0]
    out["guided_gradcam"] = attr.GuidedGradCam(net, layer).attribute(
        x, target, interpolate_mode="bilinear"
    )
    steps = {"n_steps": STEPS, "method": "gausslegendre"}
    for name, method in (
        ("internal_influence", attr.InternalInfluence),
        ("layer_conductance", attr.LayerConductance),
    ):
        out[name] = method(net, layer).attribute(x, zeros, target, **steps)
    targets = [ClassifierOutputTarget(int(t)) for t in target]
    for name, method in {
        "pgc_gradcam": GradCAM,
        "pgc_xgradcam": XGradCAM,
        "pgc_hirescam": HiResCAM,
        "pgc_layercam": LayerCAM,
    }.items():
        raw, one = [], method(net, [layer])
        get = one.get_cam_image
        one.get_cam_image = lambda *a, get=get, raw=raw, **k: raw.append(get(*a, **k)) or raw[-1]
        one(x.clone(), targets)
        one.activations_and_grads.release()
        out[name] = torch.tensor(raw[-1])
    return target, out


def kept(name, value):
    step = 1 if value.shape[1] <= 14 else real.STEP.get(name, 3)
    value = value[:, ::step, ::step]
    return value[..., ::16] if value.ndim == 4 else value


def main():
    draws, out = np.load(sys.argv[1]), {}
    for name, (build, find) in NETS.items():
        net = build()
        x, noise = (small.first(draws[f"{name}/{part}"]) for part in ("x", "noise"))
        target, found = values(net, find(net), x, noise, draws[f"{name}/where"])
        out[f"{name}/target"] = target.numpy()
        for case, value in found.items():
            value = value.detach().numpy()
            value = np.moveaxis(value, 1, -1) if value.ndim == 4 else value
            out[f"{name}/{case}/size"] = np.abs(value).max()
            out[f"{name}/{case}"] = kept(name, value)
        print(name, flush=True)
    np.savez_compressed(FOLDER / "real_gradient_peers.npz", **out)


if __name__ == "__main__":
    main()
