"""Do the methods find the object? Ten photographs, SqueezeNet 1.1, every family of methods.

`python examples/all_methods.py --out FOLDER`, some minutes on a CPU. Needs $JAXVIZ_DATA, with the
photographs and their boxes. Draws a sheet a family, and prints for each method on how many of them
its strongest place lies in the object's box, and how much denser it is there than everywhere.
"""

import argparse
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import jaxviz as jv
from jaxviz import models, plot
from jaxviz.folders import out_folder

SIZE = 224
WRAPPERS = "smooth_grad square_grad var_grad"  # of any method; here of the gradient


def inside(annotation):
    """Which pixels of the centre crop lie in a box of the object, [224, 224]."""
    scale = 256 / min(annotation["width"], annotation["height"])
    left, top = ((annotation[side] * scale - SIZE) / 2 for side in ("width", "height"))
    out = np.zeros((SIZE, SIZE), bool)
    for box in annotation["boxes"]:
        if box["label"] == annotation["label"]:
            rows = slice(*(max(0, round(box[k] * scale - top)) for k in ("y0", "y1")))
            out[rows, slice(*(max(0, round(box[k] * scale - left)) for k in ("x0", "x1")))] = True
    return out


def sheets(x, steps):
    """Sheet -> method -> its options; `steps` passes where a method takes many."""
    black = {"baseline": models.preprocess(np.zeros(x.shape[1:], np.float32))}
    key, last, line = {"key": jax.random.key(0)}, {"layer": "features/12"}, {"num_steps": steps}
    cells = {"segments": jv.grid_segments((SIZE, SIZE), (7, 7))}
    sampled, few = key | {"num_samples": 8 * steps}, max(2, steps // 8)
    alike = lambda names, options: dict.fromkeys(names.split(), options)
    return {
        "gradients": {
            **alike("saliency input_x_gradient full_grad", {}) | alike(WRAPPERS, key),
            **alike("integrated_gradients guided_integrated_gradients", black | line),
            **{"blur_integrated_gradients": {"max_sigma": 20.0} | line, "xrai": line},
            "expected_gradients": {"baselines": x, "num_samples": steps} | key,
        },
        "propagation": alike("guided_backprop deconvnet lrp", {})
        | {"deep_lift": black, "guided_grad_cam": last},
        "class_activation_maps": {
            **{"cam": {"layer": "classifier/relu_0"}, "score_cam": last | {"num_channels": 64}},
            **alike("grad_cam grad_cam_pp xgrad_cam hires_cam layer_cam shapley_cam", last),
            **alike("eigen_cam eigen_grad_cam ablation_cam", last),
        },
        "perturbation": {
            "occlusion": {"window": (48, 48), "stride": (16, 16)},
            **{"feature_ablation": cells, "rise": sampled, "hsic": {"cells": 7} | sampled},
            **{"sobol": {"cells": 7, "num_designs": few} | key, "learned_mask": {"num_steps": 64}},
            **alike("lime kernel_shap", cells | sampled),
            "shapley_sampling": cells | key | {"num_samples": few},
        },
    }


def explained(name, options, *arguments):
    """A method's map by its name, `[N, 224, 224]` or with colours; RISE's above its least place."""
    method = getattr(jv, name)
    method = method(jv.gradient, num_samples=16) if name in WRAPPERS else method
    out = method(*arguments, **options)
    out = np.asarray(getattr(out, "mask" if name == "learned_mask" else "map", out))
    return out - out.min((1, 2), keepdims=True) if name == "rise" else out


def found(name, heat, boxes):
    """One line: hits of the strongest 15x15 pixels, density inside the boxes over the whole's."""
    heat = np.maximum(heat.sum(-1) if heat.ndim == 4 else heat, 0)
    smooth = jax.lax.reduce_window(heat, 0.0, jax.lax.add, (1, 15, 15), (1, 1, 1), "SAME")
    places = np.asarray(smooth).reshape(len(heat), -1).argmax(1)
    hits = int(sum(box.ravel()[place] for box, place in zip(boxes, places, strict=True)))
    dense = [h[b].mean() / h.mean() if h.any() else 0 for h, b in zip(heat, boxes, strict=True)]
    print(f"{name:28s}{hits:3d} of {len(heat)}   {np.median(dense):.2f} times as dense", flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the sheets")
    parser.add_argument("--photos", type=int, default=10)
    parser.add_argument("--steps", type=int, default=32)
    options = parser.parse_args(argv)
    if "JAXVIZ_DATA" not in os.environ:
        raise SystemExit("all_methods: set JAXVIZ_DATA to the folder with imagenet/ and weights/.")
    folder = pathlib.Path(os.environ["JAXVIZ_DATA"]) / "imagenet"
    options.out.mkdir(parents=True, exist_ok=True)
    annotations = json.loads((folder / "annotations.json").read_text())
    files, chosen = zip(*list(annotations.items())[: options.photos], strict=True)
    boxes, labels = [inside(one) for one in chosen], np.array([one["label"] for one in chosen])
    photos = models.photographs([folder / file for file in files])
    module, x = models.SqueezeNet(), jnp.asarray(models.preprocess(photos))
    net, params = models.apply_fn(module), models.load_torchvision(module)
    said = {
        "probabilities": np.asarray(jax.jit(jv.softmax(net))(params, x)),
        **{"class_names": models.imagenet_classes(), "labels": labels, "target": labels},
    }
    for sheet, methods in sheets(x, options.steps).items():
        maps = {}
        for name, given in methods.items():
            title = name.replace("integrated_gradients", "IG").replace("_", " ")
            maps[title] = explained(name, given, net, params, x, jnp.asarray(labels))
            found(title, maps[title], boxes)
        coarse = [name for name, heat in maps.items() if heat.ndim == 3]
        title = f"SqueezeNet 1.1, the photograph's own class: {sheet.replace('_', ' ')}"
        figure = plot.explanation_sheet(photos, maps, overlay=coarse, title=title, **said)
        figure.savefig(options.out / f"{sheet}.png", dpi=80)


if __name__ == "__main__":
    jv.keep_compiled()
    main()
