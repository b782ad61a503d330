"""Writes gradient_peers.npz: what Captum and pytorch-grad-cam give for gradient_inputs.npz.

Run where torch, captum (0.9.0) and grad-cam (1.5.7) are; everything in double precision. Where the
peer takes draws of its own, ours are handed to it. Arrays are channels-last.
"""

import pathlib
from unittest import mock

import numpy as np
import torch
from captum import attr
from pytorch_grad_cam import (
    AblationCAM,
    EigenCAM,
    EigenGradCAM,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    ScoreCAM,
    ShapleyCAM,
    XGradCAM,
)
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

FOLDER = pathlib.Path(__file__).parent
INPUTS = np.load(FOLDER / "gradient_inputs.npz")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(2, 6, 3, padding=1)
        self.relu1 = torch.nn.ReLU()
        self.pool1 = torch.nn.MaxPool2d(2)
        self.conv2 = torch.nn.Conv2d(6, 8, 3, padding=1)
        self.relu2 = torch.nn.ReLU()
        self.pool2 = torch.nn.MaxPool2d(2)
        self.fc1 = torch.nn.Linear(72, 10)
        self.relu3 = torch.nn.ReLU()
        self.fc2 = torch.nn.Linear(10, 4)

    def forward(self, x):
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = x.permute(0, 2, 3, 1).flatten(1)
        return self.fc2(self.relu3(self.fc1(x)))


def load():
    net = Net().double().eval()
    for name in ("conv1", "conv2", "fc1", "fc2"):
        kernel = torch.tensor(INPUTS[f"{name}/kernel"].astype(float))
        order = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
        getattr(net, name).weight.data = kernel.permute(order).contiguous()
        getattr(net, name).bias.data = torch.tensor(INPUTS[f"{name}/bias"].astype(float))
    return net


def first(a):
    """Channels first, in double precision."""
    return torch.tensor(np.moveaxis(np.asarray(a, float), -1, 1))


def last(a):
    return np.moveaxis(a.detach().numpy(), 1, -1)


def rows_of(draws):
    """Ours are [sample, example, ...]; Captum repeats each example in place."""
    return np.swapaxes(np.asarray(draws, float), 0, 1).reshape(-1, *draws.shape[2:])


def captum_values(net, x, target):
    baseline, baselines = first(INPUTS["baseline"][None]), first(INPUTS["baselines"])
    out = {}
    for rule in ("riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"):
        out[f"ig_{rule.removeprefix('riemann_')}"] = attr.IntegratedGradients(net).attribute(
            x, baseline, target, n_steps=11, method=rule
        )
    steps = {"n_steps": 11, "method": "gausslegendre"}
    out["ig_gausslegendre"] = attr.IntegratedGradients(net).attribute(x, baseline, target, **steps)

    spread = x.amax((1, 2, 3)) - x.amin((1, 2, 3))
    samples = len(INPUTS["which"])
    scale = 0.15 * spread.repeat_interleave(samples)[:, None, None, None]
    noise = first(rows_of(INPUTS["smooth_noise"])) * scale
    for kind in ("smoothgrad", "smoothgrad_sq", "vargrad"):
        with mock.patch.object(torch, "normal", return_value=noise):
            out[kind] = attr.NoiseTunnel(attr.Saliency(net)).attribute(
                x, nt_type=kind, nt_samples=samples, target=target, abs=False
            )
    noise = first(rows_of(INPUTS["noise"])) * scale
    which, where = rows_of(INPUTS["which"]).astype(int), rows_of(INPUTS["where"])
    with (
        mock.patch.object(torch, "normal", return_value=noise),
        mock.patch.object(np.random, "choice", return_value=which),
        mock.patch.object(np.random, "uniform", return_value=where),
    ):
        out["gradient_shap"] = attr.GradientShap(net).attribute(
            x, baselines, n_samples=samples, stdevs=1.0, target=target
        )

    layer = net.conv2
    out["layer_activation"] = attr.LayerActivation(net, layer).attribute(x)
    out["layer_gradcam"] = attr.LayerGradCam(net, layer).attribute(x, target)
    out["layer_gradcam_resized"] = attr.LayerAttribution.interpolate(
        out["layer_gradcam"], (12, 12), "bilinear"
    )
    out["guided_gradcam"] = attr.GuidedGradCam(net, layer).attribute(
        x, target, interpolate_mode="bilinear"
    )
    out["layer_conductance"] = attr.LayerConductance(net, layer).attribute(
        x, baseline, target, **steps
    )
    out["internal_influence"] = attr.InternalInfluence(net, layer).attribute(
        x, baseline, target, **steps
    )
    out["layer_ig"] = attr.LayerIntegratedGradients(net, layer).attribute(
        x, baseline, target, **steps
    )
    neuron = (5, 0, 0)  # channel, row, column
    out["neuron_gradient"] = attr.NeuronGradient(net, layer).attribute(x, neuron)
    out["neuron_ig"] = attr.NeuronIntegratedGradients(net, layer).attribute(
        x, neuron, baseline, **steps
    )
    out["neuron_conductance"] = attr.NeuronConductance(net, layer).attribute(
        x, neuron, baseline, target, **steps
    )
    return {name: last(value) for name, value in out.items()}


def grad_cam_values(net, x, target):
    targets = [ClassifierOutputTarget(int(t)) for t in target]
    methods = {
        "gradcam": GradCAM,
        "gradcam_pp": GradCAMPlusPlus,
        "xgradcam": XGradCAM,
        "hirescam": HiResCAM,
        "layercam": LayerCAM,
        "eigencam": EigenCAM,
        "eigengradcam": EigenGradCAM,
        "scorecam": ScoreCAM,
        "ablationcam": AblationCAM,
        "shapleycam": ShapleyCAM,
    }
    out = {}
    # This library resizes Score-CAM's masks with aligned corners; here they are as elsewhere.
    resize = lambda size: torch.nn.Upsample(size=size, mode="bilinear", align_corners=False)
    for name, method in methods.items():
        raw = []
        cam = method(net, [net.relu2])
        get = cam.get_cam_image
        cam.get_cam_image = lambda *a, get=get, raw=raw, **k: raw.append(get(*a, **k)) or raw[-1]
        with mock.patch.object(torch.nn, "UpsamplingBilinear2d", resize):
            cam(x.clone(), targets)
        out[f"pgc_{name}"] = raw[-1]
    return out


def main():
    net, x = load(), first(INPUTS["x"])
    target = torch.tensor(INPUTS["target"])
    out = {"logits": net(x).detach().numpy()}
    out |= captum_values(net, x, target)
    out |= grad_cam_values(net, x, target)
    np.savez_compressed(FOLDER / "gradient_peers.npz", **out)


if __name__ == "__main__":
    main()
