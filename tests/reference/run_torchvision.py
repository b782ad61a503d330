"""Writes torchvision_nets.npz: names and shapes of torchvision's networks, some of their logits.

Run where torch and torchvision (0.29) are. Weights are those of draw_torch_weights.py. Keys are
`net/shapes`, a JSON table, and `net/HEIGHTxWIDTH`, every twentieth logit and, last, the largest
absolute one. Also tiny_state.pth and tiny_state_older.pth: a few tensors as torch.save writes them.
"""

import json
import pathlib
from collections import OrderedDict

import numpy as np
import torch
import torchvision
from draw_torch_weights import draw, images

FOLDER = pathlib.Path(__file__).parent
NETS = "alexnet vgg11 vgg11_bn vgg16 vgg16_bn vgg19 vgg19_bn resnet18 resnet34 resnet50"
SIZES = ((96, 128), (224, 224), (192, 256))


def main():
    out = {}
    for name in (*NETS.split(), "squeezenet1_0", "squeezenet1_1", "mobilenet_v2"):
        net = getattr(torchvision.models, name)(weights=None).eval()
        shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
        state = {k: torch.from_numpy(draw(k, s)) for k, s in shapes.items() if s}
        net.load_state_dict(state, strict=False)  # without the counts of steps
        out[f"{name}/shapes"] = json.dumps(shapes)
        for height, width in SIZES:
            x = torch.from_numpy(images(height, width)).permute(0, 3, 1, 2)
            with torch.no_grad():
                logits = net(x)[0].numpy()
            kept = np.append(logits[::20], np.abs(logits).max())
            out[f"{name}/{height}x{width}"] = kept
        print(name, np.abs(logits).max(), flush=True)
    np.savez_compressed(FOLDER / "torchvision_nets.npz", **out)

    base = torch.arange(24.0).reshape(2, 3, 4)
    state = OrderedDict(
        whole=base,
        transposed=base.transpose(0, 2),  # a view of the same numbers
        part=base[1, 1:],
        parameter=torch.nn.Parameter(torch.tensor([0.5, -2.0])),
        half=torch.tensor([1.5, -3.0], dtype=torch.float16),
        brain=torch.tensor([1.5, -3.0], dtype=torch.bfloat16),
        count=torch.tensor(7),
        empty=torch.zeros(0, 3),
    )
    state._metadata = {"": {"version": 1}}  # as a module's state dict has
    torch.save(state, FOLDER / "tiny_state.pth")
    older = {"_use_new_zipfile_serialization": False}
    torch.save(state, FOLDER / "tiny_state_older.pth", **older)


if __name__ == "__main__":
    main()
