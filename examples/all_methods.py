"""Do the methods find the object? Ten photographs, SqueezeNet 1.1, gradient, path and CAM methods.

`python examples/all_methods.py --out FOLDER`, some minutes on a CPU. Needs the folder $JAXVIZ_DATA
with the photographs, their boxes and the trained weights. Draws two sheets, and prints for each
method on how many photographs its strongest place lies in the object's box, and how much denser
its positive part is inside the box than on the whole photograph.
"""

import argparse
import json
import os
import pathlib
import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np

import jaxviz as jv
from jaxviz.plot.sheet import explanation_sheet

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
SIZE = 224


def squeezenet(weights, x):
    """SqueezeNet 1.1, [N, 224, 224, 3] -> [N, 1000], with the names of torchvision."""

    def conv(name, x, stride=1, pad=0):
        kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        numbers = ("NHWC", "OIHW", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=numbers
        )
        return jax.nn.relu(y + bias[None, None, None, :])

    x = conv("features.0", x, stride=2)
    for number in (3, 4, 6, 7, 9, 10, 11, 12):
        if number in (3, 6, 9):
            size, step = (1, 3, 3, 1), (1, 2, 2, 1)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, size, step, "VALID")
        name = f"features.{number}"
        x = conv(f"{name}.squeeze", x)
        parts = conv(f"{name}.expand1x1", x), conv(f"{name}.expand3x3", x, pad=1)
        x = jnp.concatenate(parts, -1)
    return conv("classifier.1", x).mean((1, 2))


def read_safetensors(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    table, content = json.loads(content[8 : 8 + length]), content[8 + length :]
    place = lambda entry: slice(*entry["data_offsets"])
    return {
        name: jnp.asarray(np.frombuffer(content[place(entry)], "<f4").reshape(entry["shape"]))
        for name, entry in table.items()
        if entry.get("dtype") == "F32"
    }


def inside(annotation):
    """Which pixels of the centre crop lie in a box of the object, [224, 224]."""
    scale = 256 / min(annotation["width"], annotation["height"])
    left = (annotation["width"] * scale - SIZE) / 2
    top = (annotation["height"] * scale - SIZE) / 2
    out = np.zeros((SIZE, SIZE), bool)
    for box in annotation["boxes"]:
        if box["label"] == annotation["label"]:
            rows = slice(*(max(0, round(box[k] * scale - top)) for k in ("y0", "y1")))
            out[rows, slice(*(max(0, round(box[k] * scale - left)) for k in ("x0", "x1")))] = True
    return out


def explanations(x, weights, target, steps):
    """Column title -> map, for the two sheets; `steps` passes where a method takes many."""
    key, last = jax.random.key(0), {"layer": "concatenate_7"}  # of the last fire module
    black = jnp.broadcast_to((0 - MEAN) / STD, x.shape[1:])
    noisy = {"num_samples": max(1, steps // 2)}
    one = lambda method, **options: method(squeezenet, weights, x, target, **options)
    paths = {
        "saliency": one(jv.saliency),
        "input x gradient": one(jv.input_x_gradient),
        "integrated": one(jv.integrated_gradients, baseline=black, num_steps=steps),
        "expected": one(jv.expected_gradients, baselines=x, key=key, num_samples=steps),
        "guided integrated": one(
            jv.guided_integrated_gradients, baseline=black, num_steps=2 * steps
        ),
        "blur integrated": one(jv.blur_integrated_gradients, num_steps=steps, max_sigma=20.0),
        "SmoothGrad": one(jv.smooth_grad(jv.gradient, **noisy), key=key),
        "SquareGrad": one(jv.square_grad(jv.gradient, **noisy), key=key),
        "VarGrad": one(jv.var_grad(jv.gradient, **noisy), key=key),
        "FullGrad": one(jv.full_grad),
        "XRAI": jv.xrai(squeezenet, weights, x, target, num_steps=max(1, steps // 2)),
    }
    cams = {
        "CAM": one(jv.cam, layer="relu_25"),
        "Grad-CAM": one(jv.grad_cam, **last),
        "Grad-CAM++": one(jv.grad_cam_pp, **last),
        "XGrad-CAM": one(jv.xgrad_cam, **last),
        "HiResCAM": one(jv.hires_cam, **last),
        "LayerCAM": one(jv.layer_cam, **last),
        "Shapley-CAM": one(jv.shapley_cam, **last),
        "EigenCAM": one(jv.eigen_cam, **last),
        "Eigen-Grad-CAM": one(jv.eigen_grad_cam, **last),
        "Score-CAM": one(jv.score_cam, num_channels=2 * steps, **last),
        "Ablation-CAM": one(jv.ablation_cam, **last),
        "guided Grad-CAM": one(jv.guided_grad_cam, **last),
    }
    return paths, cams


def found(name, heat, boxes):
    """One line: hits of the strongest place, and density inside the boxes over that of the whole.

    Single pixels are noise: maps are averaged over 15x15 pixels first.
    """
    heat = np.maximum(np.asarray(heat, np.float64), 0)
    heat = heat.sum(-1) if heat.ndim == 4 else heat
    padded = np.pad(heat, ((0, 0), (7, 7), (7, 7))).cumsum(1).cumsum(2)
    padded = np.pad(padded, ((0, 0), (1, 0), (1, 0)))
    smooth = padded[:, 15:, 15:] - padded[:, :-15, 15:] - padded[:, 15:, :-15]
    smooth = (smooth + padded[:, :-15, :-15]).reshape(len(heat), -1)
    hits = int(boxes.reshape(len(heat), -1)[np.arange(len(heat)), smooth.argmax(1)].sum())
    dense = [h[b].mean() / h.mean() if h.any() else 0 for h, b in zip(heat, boxes, strict=True)]
    print(f"{name:20s}{hits:3d} of {len(heat)}   {np.median(dense):.2f} times as dense", flush=True)
    return hits


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the sheets")
    parser.add_argument("--photos", type=int, default=10)
    parser.add_argument("--steps", type=int, default=32)
    arguments = parser.parse_args(argv)
    if "JAXVIZ_DATA" not in os.environ:
        sys.exit("all_methods: set JAXVIZ_DATA to the folder with imagenet/ and weights/.")
    data = pathlib.Path(os.environ["JAXVIZ_DATA"])
    arguments.out.mkdir(parents=True, exist_ok=True)

    with np.load(data / "weights" / "squeezenet1_1_reference.npz") as file:
        photos, labels = file["inputs_uint8"][: arguments.photos], file["labels"]
        files = [pathlib.Path(str(name)).stem for name in file["names"]][: arguments.photos]
    weights = read_safetensors(data / "weights" / "squeezenet1_1_imagenet.safetensors")
    lines = (data / "imagenet" / "labels.txt").read_text().splitlines()
    names = [line.split(",")[0] for line in lines]
    labels = labels[: arguments.photos]
    annotations = json.loads((data / "imagenet" / "annotations.json").read_text())
    annotations = {pathlib.Path(file).stem: entry for file, entry in annotations.items()}
    boxes = np.stack([inside(annotations[file]) for file in files])
    x = jnp.asarray((photos / np.float32(255) - MEAN) / STD)
    logits = jax.jit(squeezenet)(weights, x)

    hits = {}
    sheets = explanations(x, weights, jnp.asarray(labels), arguments.steps)
    for sheet, maps in zip(("gradients", "class_activation_maps"), sheets, strict=True):
        hits |= {name: found(name, heat, boxes) for name, heat in maps.items()}
        figure = explanation_sheet(
            photos,
            {name: np.asarray(heat) for name, heat in maps.items()},
            probabilities=np.asarray(jax.nn.softmax(logits)),
            class_names=names,
            labels=labels,
            target=labels,
            overlay=[name for name, heat in maps.items() if np.ndim(heat) == 3],
            title=f"SqueezeNet 1.1, the photograph's own class: {sheet.replace('_', ' ')}",
        )
        figure.savefig(arguments.out / f"{sheet}.png", dpi=80)
    return hits


if __name__ == "__main__":
    main()
