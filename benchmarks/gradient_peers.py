"""The other side of gradient_methods.py: Captum and pytorch-grad-cam, timed one call at a time.

Started by that script with the Python that has torch. Reads one JSON command a line, answers in one
line: `{"net": ..., "weights": path, "x": path}` loads, `{"method": ...}` runs it once.
"""

import contextlib
import json
import sys
import time
from unittest import mock

import numpy as np
import torch
from captum import attr
from memory import Peak
from pytorch_grad_cam import AblationCAM, ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget


class Fire(torch.nn.Module):
    """A squeeze and two expansions, side by side."""

    def __init__(self, arrays, name):
        super().__init__()
        self.parts = torch.nn.ModuleList(
            convolution(arrays, f"{name}/{part}", 1, pad)
            for part, pad in (("squeeze", 0), ("expand1", 0), ("expand3", 1))
        )
        self.relus = torch.nn.ModuleList(torch.nn.ReLU() for _ in range(3))

    def forward(self, x):
        x = self.relus[0](self.parts[0](x))
        return torch.cat([self.relus[i](self.parts[i](x)) for i in (1, 2)], 1)


class Block(torch.nn.Module):
    """A basic residual block."""

    def __init__(self, arrays, name, stride):
        super().__init__()
        normed = lambda part, s, p: torch.nn.Sequential(
            convolution(arrays, f"{name}/{part}", s, p), norm(arrays, f"{name}/{part}")
        )
        self.first, self.second = normed("conv1", stride, 1), normed("conv2", 1, 1)
        shortened = f"{name}/short/kernel" in arrays
        self.short = normed("short", stride, 0) if shortened else torch.nn.Identity()
        self.relu1, self.relu2 = torch.nn.ReLU(), torch.nn.ReLU()

    def forward(self, x):
        return self.relu2(self.second(self.relu1(self.first(x))) + self.short(x))


class Flatten(torch.nn.Module):
    """In channels-last order, as the weights have it."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


class Mean(torch.nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def convolution(arrays, name, stride, pad):
    kernel = torch.tensor(arrays[f"{name}/kernel"]).permute(3, 2, 0, 1).contiguous()
    biased = f"{name}/scale" not in arrays
    out = torch.nn.Conv2d(
        kernel.shape[1], kernel.shape[0], kernel.shape[2], stride, pad, bias=biased
    )
    out.weight.data = kernel
    if biased:
        out.bias.data = torch.tensor(arrays[f"{name}/bias"])
    return out


def norm(arrays, name):
    scale, bias, mean, var = (
        torch.tensor(arrays[f"{name}/{part}"]) for part in ("scale", "bias", "mean", "var")
    )
    out = torch.nn.BatchNorm2d(len(scale))
    out.weight.data, out.bias.data, out.running_mean, out.running_var = scale, bias, mean, var
    return out


def dense(arrays, name):
    kernel = torch.tensor(arrays[f"{name}/kernel"]).T.contiguous()
    out = torch.nn.Linear(kernel.shape[1], kernel.shape[0])
    out.weight.data, out.bias.data = kernel, torch.tensor(arrays[f"{name}/bias"])
    return out


def build(spec, arrays):
    made = {"conv": convolution, "norm": norm, "dense": dense, "fire": Fire, "block": Block}
    plain = {"pool": torch.nn.MaxPool2d, "relu": torch.nn.ReLU, "flatten": Flatten, "mean": Mean}
    layers = [
        made[kind](arrays, *options) if kind in made else plain[kind](*options)
        for kind, *options in spec
    ]
    return torch.nn.Sequential(*layers).eval()


class SomeScoreCAM(ScoreCAM):
    """Score-CAM on the `some` channels of each example whose maps vary most."""

    some: int

    def get_cam_image(self, x, layer, targets, activations, grads, smooth=False):
        most = np.argsort(-activations.std((2, 3)), axis=1)[:, : self.some]
        chosen = np.take_along_axis(activations, most[:, :, None, None], axis=1)
        return super().get_cam_image(x, layer, targets, chosen, grads, smooth)


def methods(net, layer, x, target, few, settings):
    module = net[layer]
    zeros = torch.zeros_like(x)
    batch = settings["batch"]  # of the copies that a method makes; None is all of them at once

    def raw(method, **options):
        cam = method(net, [module])
        for name, value in options.items():
            setattr(cam, name, value)
        get, found = cam.get_cam_image, []
        cam.get_cam_image = lambda *a, **k: found.append(get(*a, **k)) or found[-1]
        with torch.no_grad():
            cam(x[:few], [ClassifierOutputTarget(int(t)) for t in target[:few]])
        return found[-1]

    noisy = attr.NoiseTunnel(attr.Saliency(net))
    samples = settings["samples"]
    return {
        "gradient": lambda: attr.Saliency(net).attribute(x, target, abs=False),
        "integrated_gradients": lambda: attr.IntegratedGradients(net).attribute(
            x[:few],
            zeros[:few],
            target[:few],
            n_steps=settings["steps"],
            internal_batch_size=batch and batch * few,
        ),
        "smooth_grad": lambda: noisy.attribute(
            x[:few],
            nt_samples=samples,
            nt_samples_batch_size=batch,
            stdevs=0.15,
            target=target[:few],
            abs=False,
        ),
        "expected_gradients": lambda: attr.GradientShap(net).attribute(
            x[:few], zeros[:1], n_samples=samples, target=target[:few]
        ),
        "grad_cam": lambda: attr.LayerGradCam(net, module).attribute(x, target),
        "guided_grad_cam": lambda: attr.GuidedGradCam(net, module).attribute(
            x, target, interpolate_mode="bilinear"
        ),
        "score_cam": lambda: raw(SomeScoreCAM, some=settings["channels"]),
        "ablation_cam": lambda: raw(AblationCAM),
    }


def with_draws(path, method, run):
    """`run()` with the other side's draws in place of torch's and NumPy's, and its resizing."""
    draws = dict(np.load(path))
    noise = torch.tensor(np.moveaxis(draws["noise"], -1, 1))
    if method != "smooth_grad":  # Captum asks for noise of deviation zero, too
        noise = torch.zeros_like(noise)
    resize = lambda size: torch.nn.Upsample(size=size, mode="bilinear", align_corners=False)
    with (
        mock.patch.object(torch, "normal", return_value=noise),
        mock.patch.object(np.random, "choice", return_value=draws["which"]),
        mock.patch.object(np.random, "uniform", return_value=draws["where"]),
        mock.patch.object(torch.nn, "UpsamplingBilinear2d", resize),
    ):
        return run()


def main():
    torch.set_num_threads(2)
    runs = {}
    out = sys.stdout
    for line in sys.stdin:
        command = json.loads(line)
        reply = {}
        with contextlib.redirect_stdout(sys.stderr):
            if "net" in command:
                with np.load(command["weights"]) as file:
                    net = build(command["net"], dict(file))
                with np.load(command["x"]) as file:
                    x, target = np.moveaxis(file["x"], -1, 1), torch.tensor(file["target"])
                x = torch.tensor(np.ascontiguousarray(x))
                if command["channels_last"]:
                    net = net.to(memory_format=torch.channels_last)
                    x = x.to(memory_format=torch.channels_last)
                runs = methods(net, command["layer"], x, target, command["few"], command)
            elif "save" in command:
                result = with_draws(command["draws"], command["method"], runs[command["method"]])
                result = result.detach().numpy() if torch.is_tensor(result) else result
                result = np.moveaxis(result, 1, -1) if result.ndim == 4 else result
                np.save(command["save"], result)
            else:
                with Peak() if command.get("memory") else contextlib.nullcontext() as peak:
                    start = time.perf_counter()
                    runs[command["method"]]()
                    reply["ms"] = 1e3 * (time.perf_counter() - start)
                reply["mb"] = peak.mb if peak else None
        print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    main()
