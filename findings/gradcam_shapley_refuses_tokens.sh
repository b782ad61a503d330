#!/usr/bin/env bash
# pytorch-grad-cam's ShapleyCAM takes no transformer: `reshape_transform` is lost on the way to the map.
#
# Versions: grad-cam 1.5.7 with torch 2.13.0 (Python 3.11, CPU).
# Its weights are made of tokens laid out as a grid; what they are multiplied with is `[N, tokens,
# channels]` still, for with `detach=False` the layer's output is kept as it is. GradCAM, on the same
# net with the same `reshape_transform`, gives a map.
# Output seen: "GradCAM (1, 16, 16); ShapleyCAM: Invalid activation shape. Get 3."
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy scipy scikit-learn opencv-python-headless tqdm matplotlib pillow
"$folder/venv/bin/pip" install -q --no-deps grad-cam==1.5.7 ttach
# In place of torchvision, of which only these names are asked: its wheels want CUDA's libraries.
mkdir -p "$folder/stub/torchvision/transforms"
echo "import torchvision.transforms" > "$folder/stub/torchvision/__init__.py"
echo "Compose = Normalize = ToTensor = None" > "$folder/stub/torchvision/transforms/__init__.py"
echo "resize = None" > "$folder/stub/torchvision/transforms/functional.py"
PYTHONPATH="$folder/stub" "$folder/venv/bin/python" - <<'PY'
import torch
from pytorch_grad_cam import GradCAM, ShapleyCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.norm(self.embed(x).flatten(2).transpose(1, 2))
        return self.head((x**3).mean(1))


torch.manual_seed(0)
net, x = Tokens(), torch.randn(1, 3, 16, 16)
grid = lambda a: a.reshape(len(a), 4, 4, -1).permute(0, 3, 1, 2)
options = {"target_layers": [net.norm], "reshape_transform": grid}
found = GradCAM(net, **options)(x, [ClassifierOutputTarget(0)])
try:
    ShapleyCAM(net, **options)(x, [ClassifierOutputTarget(0)])
    told = "a map"
except ValueError as error:
    told = str(error)
assert told == "Invalid activation shape. Get 3.", told
print(f"GradCAM {found.shape}; ShapleyCAM: {told}")
PY
