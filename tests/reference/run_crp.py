"""Relevance maximisation and conditional heat maps by zennit-crp 0.6.0 with zennit 0.5.1.

Needs torch and zennit-crp; not JAX. `python run_crp.py` writes crp.npz beside itself, for
tests/concepts/test_relevant.py.
"""

import pathlib

import numpy as np
import torch
from crp.attribution import CondAttribution
from crp.concepts import ChannelConcept
from zennit.composites import EpsilonPlus

CLASS, UNITS = 1, 4
rng = np.random.default_rng(11)
draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
weights = {"a": draw(2, 2, 2, 3), "b": draw(2, 2, 3, UNITS), "c": draw(UNITS, 2)}
images = draw(13, 5, 6, 2)


def convolution(kernel):
    found = torch.nn.Conv2d(*kernel.shape[2:], kernel.shape[:2], bias=False)
    found.weight = torch.nn.Parameter(torch.tensor(kernel.transpose(3, 2, 0, 1).copy()))
    return found


dense = torch.nn.Linear(UNITS, 2, bias=False)
dense.weight = torch.nn.Parameter(torch.tensor(weights["c"].T.copy()))
net = torch.nn.Sequential(
    *(convolution(weights["a"]), torch.nn.ReLU(), convolution(weights["b"]), torch.nn.ReLU()),
    *(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), dense),
)
layer = "2"
attribution = CondAttribution(net)
fresh = lambda: torch.tensor(images.transpose(0, 3, 1, 2).copy(), requires_grad=True)

whole = attribution(fresh(), [{"y": [CLASS]}], EpsilonPlus(), record_layer=[layer])
relevance, concept = whole.relevances[layer].detach(), ChannelConcept()
found = {
    "images": images,
    "class": np.array(CLASS),
    **{f"weights_{k}": w for k, w in weights.items()},
}
for by in ("sum", "max"):
    for normalized in (False, True):
        order, scores, neurons = concept.reference_sampling(relevance, layer, by, normalized)
        name = f"{by}_{'normalized' if normalized else 'plain'}"
        for key, value in (("order", order), ("scores", scores), ("neurons", neurons)):
            found[f"{name}_{key}"] = value.numpy()
heats = [
    attribution(fresh(), [{"y": [CLASS], layer: [unit]}], EpsilonPlus()).heatmap
    for unit in range(UNITS)
]
found["heats"] = np.stack([heat.detach().numpy() for heat in heats])
np.savez_compressed(pathlib.Path(__file__).with_name("crp.npz"), **found)
