"""The other side of gradient_methods.py: Captum and pytorch-grad-cam, timed one call at a time.

Started by that script with the Python that has torch. Reads one JSON command a line, answers in one
line: `{"net": ..., "weights": path, "x": path}` loads, `{"method": ...}` runs it once.
"""

import contextlib
import json
import sys
import time

import numpy as np
import torch
from captum import attr
from pytorch_grad_cam import AblationCAM, GradCAM, ScoreCAM
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


class Flatten(torch.nn.Module):
    """In channels-last order, as the weights have it."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


class Mean(torch.nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def convolution(arrays, name, stride, pad):
    kernel = torch.tensor(arrays[f"{name}/kernel"]).permute(3, 2, 0, 1).contiguous()
    out = torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2], stride, pad)
    out.weight.data, out.bias.data = kernel, torch.tensor(arrays[f"{name}/bias"])
    return out


def build(spec, arrays):
    layers = []
    for kind, *options in spec:
        if kind == "conv":
            layers.append(convolution(arrays, *options))
        elif kind == "fire":
            layers.append(Fire(arrays, *options))
        elif kind == "dense":
            kernel = torch.tensor(arrays[f"{options[0]}/kernel"]).T.contiguous()
            layers.append(torch.nn.Linear(kernel.shape[1], kernel.shape[0]))
            layers[-1].weight.data = kernel
            layers[-1].bias.data = torch.tensor(arrays[f"{options[0]}/bias"])
        elif kind == "pool":
            layers.append(torch.nn.MaxPool2d(*options))
        else:
            layers.append({"relu": torch.nn.ReLU, "flatten": Flatten, "mean": Mean}[kind]())
    return torch.nn.Sequential(*layers).eval()


def methods(net, layer, x, target):
    module = net[layer]
    targets = [ClassifierOutputTarget(int(t)) for t in target]
    zeros = torch.zeros_like(x)

    def raw(method):
        cam = method(net, [module])
        get, found = cam.get_cam_image, []
        cam.get_cam_image = lambda *a, **k: found.append(get(*a, **k)) or found[-1]
        cam(x, targets)
        return found[-1]

    smooth = attr.NoiseTunnel(attr.Saliency(net))
    return {
        "integrated_gradients": lambda: attr.IntegratedGradients(net).attribute(
            x, zeros, target, n_steps=50
        ),
        "smooth_grad": lambda: smooth.attribute(
            x, nt_samples=25, stdevs=0.15, target=target, abs=False
        ),
        "expected_gradients": lambda: attr.GradientShap(net).attribute(
            x, zeros[:1], n_samples=25, target=target
        ),
        "grad_cam": lambda: attr.LayerGradCam(net, module).attribute(x, target),
        "score_cam": lambda: raw(ScoreCAM),
        "ablation_cam": lambda: raw(AblationCAM),
        "grad_cam_pgc": lambda: raw(GradCAM),
    }


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
                runs = methods(net, command["layer"], x, target)
            else:
                start = time.perf_counter()
                result = runs[command["method"]]()
                reply["ms"] = 1e3 * (time.perf_counter() - start)
                if command.get("save"):
                    result = result.detach().numpy() if torch.is_tensor(result) else result
                    result = np.moveaxis(result, 1, -1) if result.ndim == 4 else result
                    np.save(command["save"], result)
        print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    main()
