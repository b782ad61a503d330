"""Writes cam_peers.npz: what pytorch-grad-cam, torch-cam and Captum give for gradient_inputs.npz.

The class activation maps and the methods of layers and neurons that run_gradient_peers.py has not.
Run where torch, captum (0.8.0), grad-cam (1.5.7) and torchcam (0.5.0) are; in double precision.
"""

import pathlib
from unittest import mock

import numpy as np
import torch
from captum import attr
from pytorch_grad_cam import (
    FEM,
    KPCA_CAM,
    FinerCAM,
    GradCAMElementWise,
    SegEigenCAM,
)
from pytorch_grad_cam.utils.model_targets import (
    ClassifierOutputTarget,
    FasterRCNNBoxScoreTarget,
    SemanticSegmentationTarget,
)
from run_gradient_peers import INPUTS, first, last, load, rows_of
from torchcam import methods as torchcam

FOLDER = pathlib.Path(__file__).parent
# Our own draws, which the peers get: written by draw_cam_inputs.py.
INPUTS_OF_OURS = np.load(FOLDER / "cam_inputs.npz")


def raw_maps(net, x, target):
    """pytorch-grad-cam's maps before it rectifies, scales and resizes them."""
    targets = [ClassifierOutputTarget(int(t)) for t in target]
    out = {}
    for name, method, layer in (
        ("elementwise", GradCAMElementWise, net.conv2),
        ("fem", FEM, net.relu2),
        ("kpca", KPCA_CAM, net.relu2),
        ("seg_eigen", SegEigenCAM, net.relu2),
    ):
        raw = []
        cam = method(net, [layer])
        get = cam.get_cam_image
        cam.get_cam_image = lambda *a, get=get, raw=raw, **k: raw.append(get(*a, **k)) or raw[-1]
        cam(x.clone(), targets)
        out[f"pgc_{name}"] = raw[-1]
    finer = FinerCAM(net, [net.relu2])
    get, raw = finer.base_cam.get_cam_image, []
    finer.base_cam.get_cam_image = lambda *a, **k: raw.append(get(*a, **k)) or raw[-1]
    finer(x.clone())
    out["pgc_finer"] = raw[-1]
    return out


def torch_cams(net, x, target):
    shape, rows = tuple(x.shape[1:]), [int(t) for t in target]
    out = {}
    two = ["relu1", "relu2"]

    def maps(method, layer, **options):
        extract = method(net, layer, input_shape=shape, **options)
        with extract:
            scores = net(x)
            return extract(rows, scores, normalized=False)[0]

    out["tc_finer"] = maps(torchcam.FinerCAM, "relu2")
    # Their noise is ours: [channel, sample] draws of each example's mask.
    draws = torch.tensor(INPUTS_OF_OURS["mask_noise"])  # [C, S, N, H, W]
    each = iter(range(draws.shape[1]))
    noise = lambda self, size: 0.5 * draws[:, next(each)].permute(1, 0, 2, 3)
    with mock.patch.object(torch.distributions.normal.Normal, "sample", noise):
        out["tc_ss"] = maps(torchcam.SSCAM, "relu1", num_samples=draws.shape[1], std=0.5)
    out["tc_is"] = maps(torchcam.ISCAM, "relu1", num_samples=4)
    extract = torchcam.LayerCAM(net, two, input_shape=shape)
    with extract:
        scores = net(x)
        cams = extract(rows, scores)
        out["tc_fused"] = extract.fuse_cams(cams, (12, 12))
    extract = torchcam.RefineCAM(net, two, input_shape=shape, base_method=torchcam.LayerCAM)
    with extract:
        scores = net(x)
        out["tc_refined"] = extract(rows, scores, normalized=False, target_shape=(12, 12))[0]
    return out


def layers_and_neurons(net, x, target):
    baseline, baselines = first(INPUTS["baseline"][None]), first(INPUTS["baselines"])
    out = {}
    layer, neuron = net.conv2, (5, 2, 3)  # channel, row, column
    for rule in ("riemann_left", "riemann_right", "riemann_middle", "gausslegendre"):
        short = rule.removeprefix("riemann_")
        steps = {"n_steps": 6, "method": rule}
        out[f"conductance_{short}"] = attr.LayerConductance(net, layer).attribute(
            x, baseline, target, **steps
        )
    steps = {"n_steps": 6, "method": "gausslegendre"}
    out["influence"] = attr.InternalInfluence(net, layer).attribute(x, baseline, target, **steps)
    out["neuron_conductance"] = attr.NeuronConductance(net, layer).attribute(
        x, neuron, baseline, target, **steps
    )
    fresh = load()
    out["layer_lrp"] = attr.LayerLRP(fresh, fresh.conv2).attribute(x, target)
    # Where no maximum is passed: there Captum's DeepLIFT is not complete.
    fresh = load()
    deep = attr.LayerDeepLift(fresh, fresh.pool2)
    out["layer_deep_lift"] = deep.attribute(x, baseline, target)
    fresh = load()
    deep = attr.NeuronDeepLift(fresh, fresh.relu1)
    out["neuron_deep_lift"] = deep.attribute(x, neuron, baseline)
    fresh = load()
    out["neuron_guided"] = attr.NeuronGuidedBackprop(fresh, fresh.conv2).attribute(x, neuron)
    fresh = load()
    draws = len(INPUTS["which"])
    which, where = rows_of(INPUTS["which"]).astype(int), rows_of(INPUTS["where"])
    noise = torch.zeros(draws * len(x), *x.shape[1:])
    with (
        mock.patch.object(torch, "normal", return_value=noise.double()),
        mock.patch.object(np.random, "choice", return_value=which),
        mock.patch.object(np.random, "uniform", return_value=where),
    ):
        out["neuron_gradient_shap"] = attr.NeuronGradientShap(fresh, fresh.conv2).attribute(
            x, neuron, baselines, n_samples=draws, stdevs=0.0
        )
    # Each feature's donors: example n takes it of example DONORS[feature, n].
    segments = torch.tensor(INPUTS_OF_OURS["segments"])[None, None]
    donors = iter(INPUTS_OF_OURS["donors"])
    permute = lambda x, mask: torch.where(mask, x[torch.tensor(next(donors))], x)
    out["permutation"] = attr.FeaturePermutation(net, perm_func=permute).attribute(
        x, target, feature_mask=segments
    )
    return {name: last(value) for name, value in out.items()}


def targets(rng):
    """Scores of detections and of a mask, of made-up outputs."""
    out = {}
    corner = rng.uniform(0, 8, (6, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 6, (6, 2))], 1)
    scores, labels = rng.uniform(0, 1, 6), rng.integers(0, 2, 6)
    near = boxes[2] + 0.3
    found = {"boxes": torch.tensor(boxes), "scores": torch.tensor(scores)}
    found["labels"] = torch.tensor(labels)
    label = int(labels[2])
    own = FasterRCNNBoxScoreTarget([label], [torch.tensor(near)])
    out |= {"boxes": boxes, "scores": scores, "labels": labels, "box": near}
    out["box_score"] = own(found).numpy()
    maps, mask = rng.normal(size=(3, 4, 5)), rng.uniform(size=(4, 5)) > 0.5
    out |= {"maps": maps, "mask": mask}
    score = SemanticSegmentationTarget(1, mask.astype(float))
    out["mask_score"] = score(torch.tensor(maps)).numpy()
    return out


def main():
    net, x = load(), first(INPUTS["x"])
    target = torch.tensor(INPUTS["target"])
    out = raw_maps(load(), x, target)
    cams = torch_cams(load(), x, target)
    out |= {name: a.detach().numpy() for name, a in cams.items()}
    out |= layers_and_neurons(net, x, target)
    out |= targets(np.random.default_rng(3))
    np.savez_compressed(FOLDER / "cam_peers.npz", **out)


if __name__ == "__main__":
    main()
