"""Metrics of faithfulness by Quantus 0.6.0 and Captum 0.8.0.

Needs torch, quantus, captum; not JAX. `python run_faithfulness_peers.py faithfulness_inputs.npz`
writes faithfulness_peers.npz beside itself, for tests/metrics/test_faithfulness_peers.py.
"""

import pathlib
import sys

import numpy as np
import quantus
import torch
from captum.metrics import infidelity
from quantus.functions.perturb_func import noisy_linear_imputation
from quantus.functions.similarity_func import correlation_pearson
from quantus.helpers import utils

given = dict(np.load(sys.argv[1]))
first = lambda a: np.ascontiguousarray(np.moveaxis(a, -1, -3))
x, a = first(given["x"]), first(given["a"])
COUNT, CHANNELS, SIZE = x.shape[:3]


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = torch.tensor(given["kernel"].transpose(3, 2, 0, 1).copy())
        self.dense, self.bias = torch.tensor(given["dense"]), torch.tensor(given["bias"])

    def forward(self, x):
        x = torch.nn.functional.conv2d(x, self.kernel, padding=1)
        return torch.relu(x).mean((2, 3)) @ self.dense * 4 + self.bias


net = Net().eval()
with torch.no_grad():
    logits = net(torch.tensor(x)).numpy()
top = logits.argmax(1)
PLAIN = {"abs": False, "normalise": False, "disable_warnings": True, "display_progressbar": False}
ZERO = PLAIN | {"perturb_baseline": 0.0}


def run(metric, a=a, y=top, **options):
    # Logits, unless asked for: some metrics take probabilities by default, and others do not.
    options = {"softmax": False, "channel_first": True} | options
    return np.asarray(metric(net, x.copy(), y.copy(), a.copy(), **options))


out = {"logits": logits}
out["pixel_flipping"] = run(quantus.PixelFlipping(features_in_step=8, **ZERO))
for order in ("morf", "lerf"):
    out[f"region_{order}"] = run(
        quantus.RegionPerturbation(patch_size=2, regions_evaluation=10, order=order, **ZERO)
    )
out["selectivity"] = run(quantus.Selectivity(patch_size=2, **ZERO))
out["faithfulness_estimate"] = run(
    quantus.FaithfulnessEstimate(features_in_step=8, similarity_func=correlation_pearson, **ZERO)
)
out["monotonicity"] = run(quantus.Monotonicity(features_in_step=8, **ZERO))
out["monotonicity_correlation"] = run(
    quantus.MonotonicityCorrelation(features_in_step=8, nr_samples=1, **ZERO), a=np.abs(a)
)
out["sensitivity_n"] = run(
    quantus.SensitivityN(
        features_in_step=8,
        n_max_percentage=1.0,
        similarity_func=correlation_pearson,
        **ZERO | {"return_aggregate": False},
    )
)

# The same random sets: numbers are counted as NumPy lays [H, W, C] here, [C, H, W] there.
held = first(given["held"].reshape(-1, SIZE, SIZE, CHANNELS)).reshape(len(given["held"]), -1)
chosen = iter(np.nonzero(row)[0] for row in held for _ in range(COUNT))
choice, np.random.choice = np.random.choice, lambda *args, **options: next(chosen)
out["faithfulness_correlation"] = run(
    quantus.FaithfulnessCorrelation(
        **ZERO | {"return_aggregate": False}, nr_runs=len(held), subset_size=int(held[0].sum())
    )
)
np.random.choice = choice

# Segments of ours in place of SLIC's, and one fill for all channels.
cells = np.add.outer(np.arange(SIZE) // 4 * 2, np.arange(SIZE) // 4)
utils.get_superpixel_segments = lambda img, segmentation_method: cells
fill = lambda arr, mask, **_: np.where(mask, 0, arr)
options = PLAIN | {"return_aggregate": False}
out["irof"] = run(quantus.IROF(perturb_func=fill, **options), softmax=True)

# Changes of ours: one patch is the whole image, and what stands in it is drawn beforehand.
changed = first(given["changed"])
drawn = iter(changed)
perturb = lambda arr, indices, **_: next(drawn).reshape(len(arr), -1)
out["infidelity"] = run(
    quantus.Infidelity(
        perturb_func=perturb, perturb_patch_sizes=[SIZE], n_perturb_samples=len(changed), **PLAIN
    )
)
for normalize in (False, True):
    drawn = iter(changed)

    def taken(inputs, drawn=drawn):
        seen = torch.tensor(next(drawn))
        return inputs - seen, seen

    name = "captum_infidelity" + "_normalized" * normalize
    found = infidelity(
        net, taken, torch.tensor(x), torch.tensor(a), target=torch.tensor(top),
        n_perturb_samples=len(changed), max_examples_per_batch=COUNT, normalize=normalize,
    )  # fmt: skip
    out[name] = found.numpy()

# ROAD: places of one channel's ranking in all channels, and the imputation alone.
out["sufficiency"] = np.stack(
    [run(quantus.Sufficiency(threshold=share, **PLAIN)) for share in (0.94, 0.97, 1.0)]
)
places = a.sum(1).reshape(COUNT, -1).argsort(1)[:, ::-1]
out["imputed"] = np.stack(
    [
        [noisy_linear_imputation(x[i], places[i, :removed], noise=0.0) for i in range(COUNT)]
        for removed in (1, 20, 50, 60)
    ]
)
with torch.no_grad():
    found = [net(torch.tensor(one, dtype=torch.float32)).numpy() for one in out["imputed"]]
out["road"] = np.stack([f.argmax(1) == top for f in found])

np.savez(pathlib.Path(__file__).with_name("faithfulness_peers.npz"), **out)
for name, value in out.items():
    print(name, value.shape, value.reshape(-1)[:4])
