"""Whole processes, start to end, for `python -m benchmarks.first_call --whole --images FILE`.

A script that writes one saliency map of a ResNet-18 (weights from a file) as a picture: here, in
the other checkout, in torch with Captum. Then `jaxviz explain` (SqueezeNet 1.1, whose weights must
lie in `$JAXVIZ_DATA`) and `jaxviz demo`, each with a cache folder of its own that is empty at
first; `here_warm` is the same call once more, which finds what the one before left there.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent.parent


def surroundings(checkout, **more):
    """A process's environment: it imports this checkout's jaxviz and knows no cache of ours."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    path = os.pathsep.join(filter(None, (str(checkout), kept.get("PYTHONPATH"))))
    return kept | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"} | more


def run(command, environment, folder=HERE):
    """`(seconds, output)` of a process; what it wrote to standard error if it failed."""
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1][:300])
    return seconds, done.stdout


def ratios(row, keys):
    """Of every other side to here."""
    here = row.get(keys.get("here"))
    return {
        f"{name}_by_here": round(row[key] / here, 3)
        for name, key in keys.items()
        if name != "here" and here and key in row
    }


SCRIPT = """
import sys
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import jaxviz as jv
from jaxviz import models
image, weights, out = sys.argv[1:]
net = models.nets["resnet18"]()
variables = models.load_torchvision(net, weights)
x = models.preprocess(models.photographs([image]))
found = jv.saliency(models.apply_fn(net), variables, x)
plt.imsave(out, abs(found[0]).max(-1))
"""
TORCH_SCRIPT = """
import json, sys
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from captum.attr import Saliency
from PIL import Image
sys.path.append("BENCHMARKS")
from torch_side import ResNet
image, weights, out = sys.argv[1:]
raw = open(weights, "rb").read()
start = 8 + int.from_bytes(raw[:8], "little")
state = dict()
for name, told in json.loads(raw[8:start]).items():
    low, high = (start + offset for offset in told["data_offsets"])
    values = torch.frombuffer(bytearray(raw[low:high]), dtype=torch.float32)
    state[name] = values.reshape(told["shape"])
net = ResNet((2, 2, 2, 2)).eval()
net.load_state_dict(state, strict=False)
photo = Image.open(image).convert("RGB")
scale = 256 / min(photo.size)
photo = photo.resize([round(side * scale) for side in photo.size], Image.BILINEAR)
left, top = ((side - 224) // 2 for side in photo.size)
x = torch.tensor(np.asarray(photo)[top : top + 224, left : left + 224]).permute(2, 0, 1)[None] / 255
mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
x = (x - mean) / std
found = Saliency(net).attribute(x, net(x).argmax(1))
plt.imsave(out, found[0].amax(0).numpy())
""".replace("BENCHMARKS", str(HERE / "benchmarks"))
WEIGHTS = """
import sys
import jax
import numpy as np
from jaxviz import models
net = models.nets["resnet18"]()
variables = jax.jit(net.init)(jax.random.key(0), np.zeros((1, 224, 224, 3), np.float32))
models.save_torchvision(net, variables, sys.argv[1])
"""
COMMAND = "import sys; from jaxviz.cli import main; sys.exit(main())"


def whole(options, sides):
    """One row each: the script, `jaxviz explain` and `jaxviz demo`; processes by turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        weights, image = str(folder / "resnet18.safetensors"), str(options.images[0].resolve())
        run([sys.executable, "-c", WEIGHTS, weights], surroundings(HERE))
        scripts = {"jaxviz": SCRIPT, "torch": TORCH_SCRIPT}
        explain = ("explain", "--net", "squeezenet1_1", "--images", image)
        commands = {
            "script": lambda kind, out: ["-c", scripts[kind], image, weights, f"{out}.png"],
            "explain": lambda kind, out: ["-c", COMMAND, *explain, "--out", str(out)],
            "demo": lambda kind, out: ["-c", COMMAND, "demo", "--out", str(out)],
        }
        for name in options.rows:
            times = {}
            kinds = ("jaxviz", "torch") if name == "script" else ("jaxviz",)
            sides_here = {k: v for k, v in sides.items() if v[2] in kinds and k != "warm"}
            for repeat in range(options.repeats):
                for side, (python, checkout, kind) in sides_here.items():
                    cache = folder / f"cache-{name}{repeat}{side}"
                    warm = side == "here" and name != "script"
                    for state in (side, f"{side}_warm") if warm else (side,):
                        command = commands[name](kind, folder / f"{name}{repeat}{state}")
                        environment = surroundings(checkout, XDG_CACHE_HOME=str(cache))
                        seconds = run([python, *command], environment, folder)[0]
                        times.setdefault(state, []).append(seconds)
            row = {f"{side}_s": round(statistics.median(t), 2) for side, t in times.items()}
            row |= ratios(row, {side: f"{side}_s" for side in times})
            print(json.dumps({"row": f"whole {name}"} | row), flush=True)
