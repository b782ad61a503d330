"""The process with Quantus: its metrics of the nets of metrics.py, one a line of JSON.

Needs torch and quantus, nothing of jaxviz. `build` a net and write its weights, `load` inputs,
`run` a metric: wall and processor seconds.
"""

import contextlib
import io
import json
import sys
import time
import warnings

import numpy as np
import quantus
import torch
from quantus.functions.similarity_func import correlation_pearson
from torch import nn
from torch_side import squeezenet

PLAIN = {"abs": False, "normalise": False, "disable_warnings": True, "display_progressbar": False}
ZERO = PLAIN | {"perturb_baseline": 0.0}


def metric(name, step, patch, places, runs):
    """A metric with the numbers of our side's call."""
    pearson = {"similarity_func": correlation_pearson}
    return {
        "pixel_flipping": lambda: quantus.PixelFlipping(features_in_step=step, **ZERO),
        "region_perturbation": lambda: quantus.RegionPerturbation(
            patch_size=patch, regions_evaluation=places, **ZERO
        ),
        "selectivity": lambda: quantus.Selectivity(patch_size=patch, **ZERO),
        "irof": lambda: quantus.IROF(
            perturb_func=lambda arr, mask, **_: np.where(mask, 0, arr), return_aggregate=False,
            **PLAIN,
        ),
        "faithfulness_correlation": lambda: quantus.FaithfulnessCorrelation(
            nr_runs=runs, subset_size=step, **(ZERO | {"return_aggregate": False})
        ),
        "faithfulness_estimate": lambda: quantus.FaithfulnessEstimate(
            features_in_step=step, **pearson, **ZERO
        ),
        "monotonicity": lambda: quantus.Monotonicity(features_in_step=step, **ZERO),
        "monotonicity_correlation": lambda: quantus.MonotonicityCorrelation(
            features_in_step=step, nr_samples=5, **PLAIN
        ),
        "infidelity": lambda: quantus.Infidelity(
            perturb_patch_sizes=[patch], n_perturb_samples=2, **ZERO
        ),
        "road": lambda: quantus.ROAD(percentages=list(range(10, 100, 10)), **PLAIN),
        "sufficiency": lambda: quantus.Sufficiency(**PLAIN),
    }[name]()  # fmt: skip


def small(channels, widths, padding, dense):
    layers, before = [], channels
    for width in widths:
        layers += [nn.Conv2d(before, width, 3, padding=padding), nn.ReLU(), nn.MaxPool2d(2)]
        before = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(*dense[:2]), nn.ReLU(),
                         nn.Linear(*dense[1:]))  # fmt: skip


def build(name):
    """A net with random weights, and its state by the names of torchvision and of our chains."""
    torch.manual_seed(0)
    if name == "squeezenet1_1":
        net = squeezenet()
        state = {}
        for key, value in net.state_dict().items():
            key = key.replace("0.", "features.", 1) if key.startswith("0.") else f"classifier.{key}"
            key = key.replace("small.0", "expand1x1").replace("large.0", "expand3x3")
            state[key.replace("squeeze.0", "squeeze")] = value
        return net, state
    if name == "mnist_a":
        net = small(1, (24, 48, 64), 1, (576, 128, 10))
    else:
        net = small(3, (32, 64), 0, (2304, 64, 10))
    parts, kinds = {}, {nn.Conv2d: ("conv", 0), nn.Linear: ("dense", 0)}
    for module in net:
        if type(module) in kinds:
            kind, count = kinds[type(module)]
            kinds[type(module)] = kind, count + 1
            for key, value in module.state_dict().items():
                parts[f"{kind}{count + 1}.{key}"] = value
    return net, parts


def main():
    net = x = y = a = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if asked["do"] == "build":
                net, state = build(asked["net"])
                net.eval()
                torch.save(state, asked["weights"])
                reply = {"quantus": quantus.__version__, "torch": torch.__version__}
            elif asked["do"] == "load":
                given = np.load(asked["path"])
                x, y, a = (np.ascontiguousarray(given[k]) for k in "xya")
                with torch.no_grad():
                    reply = {"logits": net(torch.tensor(x)).numpy()[:2].tolist()}
            else:
                torch.set_num_threads(asked["threads"])
                found = metric(*asked["metric"])
                clocks = time.perf_counter(), time.process_time()
                with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found(net, x.copy(), y.copy(), a.copy(), channel_first=True, softmax=False,
                          batch_size=asked["batch"])  # fmt: skip
                wall, cpu = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
                reply = {"wall": wall, "cpu": cpu}
        except Exception as error:  # of whatever kind: the other side prints it
            reply = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(reply), flush=True)


main()
