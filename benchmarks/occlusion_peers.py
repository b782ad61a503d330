"""The other side of occlusion.py: Captum's Occlusion, timed one call at a time.

Started by that script with the Python that has torch. Reads one JSON command a line, answers in one
line: `{"net": ..., "weights": path, "x": path, "layout": ...}` loads, `{"evals": n}` runs once.
"""

import contextlib
import json
import sys
import time

import numpy as np
import torch
from captum.attr import Occlusion


class Net(torch.nn.Module):
    """The net of a spec, built while it first runs."""

    def __init__(self, spec, arrays):
        super().__init__()
        self.spec, self.arrays, self.layers = spec, arrays, torch.nn.ModuleDict()

    def layer(self, name, make):
        key = name.replace("/", "_")
        if key not in self.layers:
            self.layers[key] = make().eval()
        return self.layers[key]

    def conv(self, x, name, width, size, stride, padding, bias=True):
        def make():
            out = torch.nn.Conv2d(x.shape[1], width, size, stride, padding, bias=bias)
            kernel = torch.tensor(self.arrays[f"{name}/kernel"])
            out.weight.data = kernel.permute(3, 2, 0, 1).contiguous()
            if bias:
                out.bias.data = torch.tensor(self.arrays[f"{name}/bias"])
            return out

        return self.layer(name, make)(x)

    def norm(self, x, name):
        def make():
            out = torch.nn.BatchNorm2d(x.shape[1])
            out.running_mean.data = torch.tensor(self.arrays[f"{name}/mean"])
            out.running_var.data = torch.tensor(self.arrays[f"{name}/var"])
            out.weight.data = torch.tensor(self.arrays[f"{name}/scale"])
            out.bias.data = torch.tensor(self.arrays[f"{name}/bias"])
            return out

        return self.layer(name, make)(x)

    def dense(self, x, name, width):
        def make():
            out = torch.nn.Linear(x.shape[1], width)
            out.weight.data = torch.tensor(self.arrays[f"{name}/kernel"]).T.contiguous()
            out.bias.data = torch.tensor(self.arrays[f"{name}/bias"])
            return out

        return self.layer(name, make)(x)

    def forward(self, x):
        relu = torch.nn.functional.relu
        for kind, *options in self.spec:
            if kind in ("conv", "norm", "dense"):
                x = getattr(self, kind)(x, *options)
            elif kind == "fire":
                name, squeeze, expand = options
                x = relu(self.conv(x, f"{name}/squeeze", squeeze, 1, 1, 0))
                parts = [self.conv(x, f"{name}/expand{k}", expand, k, 1, k // 2) for k in (1, 3)]
                x = torch.cat([relu(part) for part in parts], 1)
            elif kind == "block":
                name, width, stride = options
                y = self.conv(x, f"{name}/conv1", width, 3, stride, 1, False)
                y = self.conv(
                    relu(self.norm(y, f"{name}/n1")), f"{name}/conv2", width, 3, 1, 1, False
                )
                y = self.norm(y, f"{name}/n2")
                if stride > 1:
                    x = self.conv(x, f"{name}/conv3", width, 1, stride, 0, False)
                    x = self.norm(x, f"{name}/n3")
                x = relu(x + y)
            elif kind == "pool":
                x = torch.nn.functional.max_pool2d(x, *options)
            elif kind == "relu":
                x = relu(x)
            elif kind == "flatten":  # in channels-last order, as the weights have it
                x = x.permute(0, 2, 3, 1).flatten(1)
            else:
                x = x.mean((2, 3))
        return x


def main():
    torch.set_num_threads(2)
    out = sys.stdout
    net = x = target = None
    sliding = {}
    for line in sys.stdin:
        command = json.loads(line)
        reply = {}
        with contextlib.redirect_stdout(sys.stderr), torch.no_grad():
            if "net" in command:
                with np.load(command["weights"]) as file:
                    net = Net(command["net"], dict(file))
                with np.load(command["x"]) as file:
                    x, target = np.moveaxis(file["x"], -1, 1), torch.tensor(file["target"])
                x = torch.tensor(np.ascontiguousarray(x))
                net(x)
                if command["layout"] == "channels_last":
                    net = net.to(memory_format=torch.channels_last)
                    x = x.to(memory_format=torch.channels_last)
                window, stride = command["window"], command["stride"]
                sliding = {
                    "sliding_window_shapes": (x.shape[1], window, window),
                    "strides": (x.shape[1], stride, stride),
                    "target": target,
                }
            else:
                start = time.perf_counter()
                result = Occlusion(net).attribute(
                    x, perturbations_per_eval=command["evals"], **sliding
                )
                reply["ms"] = 1e3 * (time.perf_counter() - start)
                if command.get("save"):
                    np.save(command["save"], np.moveaxis(result.numpy(), 1, -1))
        print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    main()
