"""Writes token_peers.npz: Captum's layer methods at the embedding of a masked transformer block.

Run where torch and captum are: `python run_token_peers.py`. torch 2.13, captum 0.8.0.
"""

import pathlib

import captum.attr as peers
import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
RANDOM = np.random.default_rng(0)
WIDTH = 6
IDS = np.array([[3, 7, 9, 2, 0, 0], [1, 1, 5, 4, 8, 11]])
draw = lambda *shape: RANDOM.normal(size=shape) / np.sqrt(shape[0]) * 1.5
WEIGHTS = {
    **{"words": draw(12, WIDTH) * 3, "query": draw(WIDTH, WIDTH), "key": draw(WIDTH, WIDTH)},
    **{"value": draw(WIDTH, WIDTH), "out": draw(WIDTH, 2)},
}


class Net(torch.nn.Module):
    """Attention that sees no padding (id 0), a rectifier, the mean of what is none."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding.from_pretrained(torch.tensor(WEIGHTS["words"]))
        self.w = {name: torch.tensor(value) for name, value in WEIGHTS.items()}

    def forward(self, ids, real):
        a = self.embed(ids)
        scores = (a @ self.w["query"]) @ (a @ self.w["key"]).mT
        scores = scores.masked_fill(~real[:, None, :], float("-inf"))
        a = torch.relu(a + scores.softmax(-1) @ (a @ self.w["value"]))
        mean = (a * real[..., None]).sum(1) / real.sum(1)[:, None]
        return mean @ self.w["out"]


def main():
    net, ids = Net(), torch.tensor(IDS)
    real, blank = ids > 0, torch.zeros_like(ids)
    more = {"target": 1, "additional_forward_args": (real,)}
    found = {
        "integrated_gradients": peers.LayerIntegratedGradients(net, net.embed).attribute(
            ids, baselines=blank, n_steps=50, **more
        ),
        "input_x_gradient": peers.LayerGradientXActivation(net, net.embed).attribute(ids, **more),
        "feature_ablation": peers.FeatureAblation(net).attribute(ids, baselines=6, **more),
    }
    arrays = {name: value.detach().numpy() for name, value in found.items()}
    arrays["outputs"] = net(ids, real).detach().numpy()
    np.savez_compressed(HERE / "token_peers.npz", ids=IDS, **arrays, **WEIGHTS)


if __name__ == "__main__":
    main()
