"""Writes perturbation_peers.npz: what Captum gives for gradient_inputs.npz when parts are hidden.

Run where torch and captum (0.9.0) are; the net and inputs are those of run_gradient_peers.py, in
double precision, though Captum adds up occlusion and ablation in single precision. Arrays are
channels-last.
"""

import pathlib

import numpy as np
import torch
from captum import attr
from run_gradient_peers import INPUTS, first, last, load

FOLDER = pathlib.Path(__file__).parent


def main():
    net, x = load(), first(INPUTS["x"])
    target = torch.tensor(INPUTS["target"])
    baseline = first(INPUTS["baseline"][None])
    slide = attr.Occlusion(net)
    out = {}
    for name, window, stride, fill in (
        ("occlusion_overlapping", (2, 5, 5), (2, 3, 3), baseline),  # 12 = 5 + 3 + 3 + 1: one is cut
        ("occlusion_uneven", (2, 4, 7), (2, 4, 2), 0),
        ("occlusion_by_channel", (1, 3, 6), (1, 2, 5), baseline),
    ):
        options = {"strides": stride, "target": target, "perturbations_per_eval": 3}
        out[name] = slide.attribute(x, window, baselines=fill, **options)
    rng = np.random.default_rng(5)
    out["segments"] = rng.integers(0, 5, (12, 12))
    out["segments_each"] = rng.integers(0, 4, (3, 12, 12, 2))
    out["grid"] = np.repeat(np.repeat(np.arange(6).reshape(2, 3), 6, 0), 4, 1)
    segments = torch.tensor(out["segments"])[None, None]
    each = torch.tensor(np.moveaxis(out["segments_each"], -1, 1).copy())
    grid = torch.tensor(out["grid"])[None, None]
    ablate = attr.FeatureAblation(net)
    out["ablation"] = ablate.attribute(x, baseline, target, feature_mask=segments)
    out["ablation_each"] = ablate.attribute(x, baseline, target, feature_mask=each)
    out["ablation_single"] = ablate.attribute(x, 0, target, perturbations_per_eval=16)
    out["shapley"] = attr.ShapleyValues(net).attribute(x, baseline, target, feature_mask=grid)
    arrays = {k: last(a) if torch.is_tensor(a) else np.int32(a) for k, a in out.items()}
    np.savez_compressed(FOLDER / "perturbation_peers.npz", **arrays)


if __name__ == "__main__":
    main()
