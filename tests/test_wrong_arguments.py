"""Every public function with every kind of wrong argument: refused, in one sentence of ours.

One argument of a call that would work is replaced by a value that makes no sense there. The error
must begin with the function's name and say which argument it is about; nothing may be taken. What
makes sense for which argument is said here in a table: a new argument has to be entered, so that no
new function slips through.
"""

import inspect
import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # read when Keras is imported

from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import linen as nn, nnx
from PIL import Image

import jaxviz as jv
from jaxviz import data, metrics, models, plot, training


def net(params, x):
    x = jax.nn.relu(x * params["a"])
    return x.mean((1, 2)) @ params["d"]


class Tensor:
    """An array of another library, whose dtype NumPy does not know."""

    shape, ndim, dtype = (2, 8, 8, 2), 4, "torch.float32"

    def __array__(self, dtype=None, copy=None):
        return np.ones(self.shape, np.float32)


ONES = np.ones((2, 8, 8, 2), np.float32)
PARAMS = {"a": jnp.ones((1, 1, 1, 2)), "d": jnp.ones((2, 3))}
KEY = jax.random.key(0)
CELLS = np.arange(64).reshape(8, 8) // 32

GIVEN_AWAY = jnp.ones((2, 8, 8, 2))
GIVEN_AWAY.delete()  # as `donate_argnums` does

# Values that make no sense in most places.
WRONG: dict[str, Any] = {
    "none": None,
    "true": True,
    "zero": 0,
    "minus": -1,
    "half": 2.5,
    "minus_half": -0.5,
    "nan": float("nan"),
    "inf": float("inf"),
    "complex": 1 + 2j,
    "word": "nonsense",
    "empty_word": "",
    "bytes": b"nonsense",
    "empty_tuple": (),
    "words": ("nonsense", "more"),
    "zeros": (0, 0),
    "minuses": [-1, -1],
    "nans": (float("nan"), 1.0),
    "empty_dict": {},
    "dict": {"image": 1},
    "set": {1, 2},
    "object": object(),
    "class": Tensor,
    "function": lambda *args, **options: None,
    "key": KEY,
    "keys": jax.random.split(KEY, 3),
    "cube": np.ones((7, 7, 7), np.float32),
    "integers": np.full((7, 7, 7), -5),
    "complexes": np.ones((2, 8, 8, 2), np.complex64),
    "letters": np.array(["a", "b"]),
    "objects": np.array([None, {}], dtype=object),
    "dates": np.array(["2020-01-01"], "M8[D]"),
    "masked": np.ma.masked_array(ONES, ONES > 2),
    "tensor": Tensor(),
    "image": Image.new("RGB", (8, 8)),
    "huge": 2**70,
    "letters_in_bytes": bytearray(b"ab"),
    "records": np.zeros(2, [("a", "f4")]),
    "given_away": GIVEN_AWAY,
    "shape": jax.ShapeDtypeStruct((2, 8, 8, 2), jnp.float32),
}

UNUSABLE = {"huge", "letters_in_bytes", "records", "given_away"}
NUMBERS = "zero minus half minus_half"
# Which of them do make sense for an argument of a kind; the rest must be refused.
TAKEN = {
    "count": "",
    "count0": "zero",
    "count_or_none": "none",
    "positive": "half huge",
    "positive0": "zero half huge",
    "positive_or_none": "half huge none",
    "number": f"{NUMBERS} huge",
    "share": "",
    "share_or_none": "none",
    "share0": "zero",
    "bounds": f"{NUMBERS} huge zeros minuses",
    "baseline": f"{NUMBERS} huge true nan inf zeros minuses nans none",
    "flag": "true",
    "choice": "",
    "table": "empty_dict",
    "layer": "",
    "key": "key",
    "sizes": "",
    "size": "true",
    "model": "class function",
    # What params are is the model's to say: a few that it cannot read are enough.
    "params": " ".join(WRONG.keys() - {"none", "half", "word", "dict", "object"} - UNUSABLE),
    "x": "",
    "x_or_shape": "shape",
    "image": "cube",
    "weight": f"{NUMBERS} huge zeros minuses",
    "rows": "cube integers",
    "name": "word",
    "vector": "cube integers zeros minuses",
    "target": "zero zeros",
    "labels": "zero minus zeros minuses integers",
    "target_or_function": "zero zeros class function",
    "function": "class function",
    "fill": f"{NUMBERS} huge true nan inf zeros minuses nans",
    "fill_or_function": f"{NUMBERS} huge true nan inf zeros minuses nans",
    "array": "",
    "unit": "zero zeros",
    "unit_or_function": "zero zeros class function",
    "position": "zeros",
    "object": "",
    "mapping": "empty_dict dict",
    "objects": "empty_tuple",
    "text": "word empty_word",
    "texts": "words empty_tuple",
    "title": "word empty_word none",
    "rule": "class function none",
    "classes": "zeros",
    "pictures": "cube",
    "picture": "image",
    "grid": "image cube integers",
    "matrix": "",
    "interval": "",
    "path": "word",
    "floats": "cube nans empty_tuple",
    "statistics": f"{NUMBERS} huge zeros minuses",
    "positives": "half huge",
    "epoch": "zero none",
    "last_too": "zero minus none",
    "names": "word words",
    "index": "zero minus zeros minuses empty_tuple dict",
    "axis": "minus",
    "value": f"{NUMBERS} huge true nan inf zeros minuses nans function class dict cube integers",
    "batch": "cube integers",
    "pair": "zeros minuses nans",
    "any": " ".join(WRONG),
}

LOGIT = jv.objectives.logit(0)
RULES = jv.RuleSet("none", {})

# For each argument the kind, and a value with which a call would work.
ARGUMENTS: dict[str, tuple[str, Any]] = {
    "apply_fn": ("model", net),
    "params": ("params", PARAMS),
    "x": ("x", ONES),
    "target": ("target", 0),
    "key": ("key", KEY),
    "layer": ("layer", "relu_0"),
    "layers": ("layer", ["relu_0"]),
    "style_layers": ("layer", ["relu_0"]),
    "style": ("x", ONES),
    "baseline": ("fill", 0.0),
    "baselines": ("array", ONES),
    "attribution": ("array", ONES),
    "fill": ("fill", 0.0),
    "segments": ("array", CELLS),
    "images": ("array", ONES),
    "magnitude": ("rows", np.ones((2, 8, 5), np.float32)),
    "objective": ("object", LOGIT),
    "optimizer": ("object", optax.adam(0.1)),
    "parametrization": ("object", jv.parametrizations.pixels()),
    "regularizers": ("objects", ()),
    "transforms": ("objects", ()),
    "init": ("fill", "noise"),
    "rules": ("object", RULES),
    "shape": ("sizes", (8, 8, 2)),
    "window": ("sizes", (2, 2)),
    "stride": ("sizes", (2, 2)),
    "resize": ("size", True),
    "value_range": ("interval", (0.0, 1.0)),
    "method": ("choice", "auto"),
    "rule": ("choice", None),
    "order": ("choice", "most_first"),
    "penalty": ("choice", "ridge"),
    "goal": ("choice", "preserve"),
    "explain": ("any", jv.gradient),  # tests/sweep
    "batches": ("any", ONES),  # tests/sweep
    "out": ("any", None),  # tests/sweep
    "mesh": ("any", None),  # tests/sweep
    "dtype": ("choice", "float32"),
    "module": ("object", None),
    "reshape": ("function", lambda a: a),
    "channel": ("unit", 0),
    "unit": ("unit", 0),
    "position": ("position", (0, 0)),
    "vector": ("vector", np.ones(2, np.float32)),
    "weight": ("weight", 1.0),
    "centre": ("number", 0.0),
    "low": ("positive", 0.5),
    "high": ("positive", 0.75),
    "value": ("number", 0.5),
    "amount": ("positive0", 1),
    "degrees": ("positive0", 5.0),
    "size": ("count", 4),
    "width": ("count0", 40),
    "a": ("rows", ONES),
    **dict.fromkeys(["chunk_size", "num_segments", "num_channels"], ("count", 1)),
    **dict.fromkeys(["num_images", "batch_size", "cells", "num_octaves"], ("count", 1)),
    **dict.fromkeys(["num_views", "num_steps"], ("count", 1)),
    **dict.fromkeys(["num_samples", "num_designs", "num"], ("count", 64)),
    **dict.fromkeys(["num_frames", "redirected_steps", "min_pixels"], ("count0", 0)),
    **dict.fromkeys(["depth", "first", "second"], ("count0", 1)),
    **dict.fromkeys(["sigma", "max_sigma", "compactness", "kernel_width"], ("positive", 1.0)),
    **dict.fromkeys(["step_size", "octave_scale", "beta", "p", "decay"], ("positive", 2.0)),
    **dict.fromkeys(["stabilizer"], ("positive0", 1e-6)),
    **dict.fromkeys(["alpha", "std", "num_deviations"], ("positive0", 1.0)),
    "num_references": ("count", 1),
    "threshold": ("share0", 0.5),
    **dict.fromkeys(["noise", "noise_scale", "strength", "sparsity"], ("positive0", 0.1)),
    **dict.fromkeys(["smoothness", "max_distance", "cosine_power"], ("positive0", 0.1)),
    **dict.fromkeys(["style_weight", "gamma", "conv_gamma", "epsilon"], ("positive0", 0.1)),
    **dict.fromkeys(["keep", "fraction", "area"], ("share", 0.5)),
    **dict.fromkeys(
        ["relu", "normalize_gradient", "strongest", "transformed", "gaussian"], ("flag", True)
    ),
    **dict.fromkeys(
        ["random", "decorrelate", "fold", "resume", "progress", "channels_last"], ("flag", True)
    ),
}
# Where a name means something else, or a value of another kind works.
OWN: dict[str, dict[str, tuple[str, Any]]] = {
    "at_layer": {"method": ("object", jv.gradient), "layer": ("name", "relu_0")},
    "at_neuron": {
        **{"method": ("object", jv.gradient), "layer": ("name", "relu_0")},
        "neuron": ("unit_or_function", 0),
    },
    "layer_conductance": {"rule": ("choice", "middle"), "speed": ("choice", "exact")},
    "internal_influence": {"rule": ("choice", "middle")},
    "neuron_conductance": {"rule": ("choice", "middle"), "neuron": ("unit", (0, 0, 0))},
    "dave": {"radius": ("count0", 1), "sigma": ("positive", 30.0)},
    "low_passed": {"method": ("function", jv.gradient)},
    "smooth_grad": {"method": ("function", jv.gradient)},
    "square_grad": {"method": ("function", jv.gradient)},
    "var_grad": {"method": ("function", jv.gradient)},
    "augmented": {
        "method": ("function", jv.gradient),
        "transforms": ("objects!", ((lambda a: a, lambda a: a),)),
    },
    "explain": {
        "methods": ("objects!", ("saliency",)),
        "classes": ("objects!", ("cat", "dog", "fox")),
    },
    "sweep": {"target": ("any", None)},
    "report": {
        **{"found": ("object", None), "out": ("object", "never.html")},
        **dict.fromkeys(["images", "labels"], ("any", None)),  # tests/report
        **dict.fromkeys(["classes", "names"], ("texts", None)),
        **dict.fromkeys(["graph", "evaluation", "attribution_graph"], ("object", None)),
        "tokens": ("object", None),
    },
    "evaluate": {  # tests/sweep
        **{"methods": ("any", "gradient"), "metrics": ("any", lambda attribution: attribution)},
        **{"data": ("any", ONES), "target": ("any", None), "lower_is_better": ("objects", ())},
    },
    "kpca_cam": {"kernel": ("choice", "sigmoid"), "gamma": ("positive", None)},
    "fused_cam": {"gamma": ("positive_or_none", 2.0), "method": ("object", jv.layer_cam)},
    "refine_cam": {"method": ("object", jv.layer_cam)},
    "xrai": {
        "segments": ("function", [np.ones((1, 8, 8), bool)] * 2),
        "area": ("share0", 0.5),
    },
    "grid_segments": {"shape": ("sizes", (8, 8)), "cells": ("sizes", (2, 2))},
    "spectrum": {"low": ("number", 0.0), "high": ("number", 1.0)},
    "pixels": {"low": ("number", 0.0), "high": ("number", 1.0)},
    "fourier": {"low": ("number", 0.0), "high": ("number", 1.0), "decay": ("positive0", 1.0)},
    "blurred": {"x": ("rows", ONES)},
    "inpainted": {"hidden": ("array", ONES[..., 0])},
    "accentuate": {"weight": ("number", 1.0)},
    "pad": {"value": ("number", None)},
    "shapley_values": {"segments": ("array!", CELLS)},
    **{
        name: {"x": ("x_or_shape", ONES), "width": ("count", 60), "depth": ("count", 1)}
        for name in "layers summary split layer_graph receptive_field default_layer".split()
    },
    "laplacian": {"low": ("number", 0.0), "high": ("number", 1.0), "levels": ("count", 2)},
    "shared": {
        **{"low": ("number", 0.0), "high": ("number", 1.0), "factors": ("sizes", [2])},
        "decay": ("positive0", 1.0),
    },
    "phases": {"low": ("number", 0.0), "high": ("number", 1.0)},
    "cppn": {
        **{"low": ("number", 0.0), "high": ("number", 1.0)},
        **{"width": ("count", 4), "depth": ("count", 1)},
    },
    "epsilon_gamma_box": {"low": ("bounds", -9.0), "high": ("bounds", 9.0)},
    **{
        f"objectives.{name}": {"target": ("rows", ONES), "layer": ("name", "relu_0")}
        for name in vars(jv.objectives)
    },
    "completeness_gap": {"baseline": ("baseline", None)},
    "learned_mask": {"area": ("share_or_none", 0.5)},
    "composite": {"name": ("text", "mine"), "rows": ("any", {}), "default": ("rule", None)},
    "deep_lift": {"rule": ("choice", "rescale")},
    "deep_lift_shap": {"rule": ("choice", "rescale")},
    "integrated_gradients": {"rule": ("choice", "middle")},
    "blur_integrated_gradients": {"rule": ("choice", "middle")},
    "lrp": {"rules": ("table", "epsilon")},
    "concept_relevance": {"rules": ("table", "epsilon")},
    "lrp_conservation": {"rules": ("table", "epsilon")},
    "lrp_search": {
        "metric": (
            "function",
            lambda f, params, x, attribution, target: attribution.sum((1, 2, 3)),
        ),
        **{"candidates": ("object", {"gamma": [0.1]}), "rules": ("function", jv.rules.attn_lrp)},
        **{"method": ("function", jv.lrp), "lower_is_better": ("flag", True)},
    },
    "top_projections": {"num_images": ("count!", 1)},
}


def attends(params, x):
    """A net with an attention; the other has none."""
    tokens = x.reshape(len(x), -1, 2) * params["a"][0]
    return (tokens + jax.nn.softmax(tokens @ tokens.mT) @ tokens).mean(1) @ params["d"]


ATTENTION = {
    "apply_fn": ("model", attends),
    "layers": ("share_or_none", ["attention_0"]),
    "query": ("last_too", 0),
    "fusion": ("choice", "mean"),
    "discard": ("share0", 0.5),
}
OWN |= {
    name: ATTENTION
    for name in dir(jv)
    if name.startswith(("attention", "value_z", "le_grad", "token_tm"))
    and inspect.isfunction(getattr(jv, name))
}
# Values of layers that are replaced: what of a layer is meant is known when the model is called.
INTERVENTION = {
    "source": ("x", ONES),
    "reference": ("x", ONES),
    "axis": ("axis", 1),
    "apply_fn": ("model", attends),
    "layers": ("layer", None),
}
INTERVENTION |= {"receivers": ("layer", None), "receiver_axis": ("axis", None)}
OWN |= {
    n: INTERVENTION
    for n in ("path_patching", "activation_patching", "attribution_patching", "layer_ablation")
}
_OF_LAYER = {
    "layer": ("names", "relu_0"),
    "where": ("index", None),
    "direction": ("vector", np.ones(2, np.float32)),
}
OWN |= {
    "patched": {**_OF_LAYER, "value": ("value", 0.0), "source": ("batch", None)},
    "steered": {**_OF_LAYER, "strength": ("number", 1.0)},
}
# Models of other frameworks.
KERAS = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
OWN |= {
    "from_nnx": {
        "module": ("object", nnx.Linear(2, 3, rngs=nnx.Rngs(0))),
        "method": ("name", "__call__"),
    },
    "from_equinox": {
        "model": ("object", eqx.nn.Linear(2, 3, key=KEY)),
        "state": ("object", None),
    },
    "from_keras": {"model": ("object", KERAS)},
    "from_haiku": {
        "transformed": ("object", hk.transform(lambda x: x)),
        "params": ("mapping", {}),
        "state": ("object", None),
    },
}
# Pairs, parts and tables.
ARGUMENTS["index"] = ("choice", "k_sii")
OWN |= {
    "shapley_interactions": {"segments": ("array!", CELLS)},
    "owen_values": {"tree": ("matrix", None), "segments": ("array!", CELLS)},
    "partial_dependence": {
        **{"feature": ("sizes", (0, 0, 0)), "grid": ("pair", None), "num_points": ("count", 2)},
    },
    "path_integrated_gradients": {
        **{"path_fn": ("function", lambda x, t: t * x), "rule": ("choice", "middle")},
    },
    "information_bottleneck": {"beta": ("positive0", 1.0), "sigma": ("positive0", 1.0)},
    "permutation_importance": {"num_samples": ("count", 2)},
    **{
        f"plot.{name}": {
            **{"values": ("pair!", np.ones(2)), "base": ("number", 0.0), "score": ("number", None)},
            **{"inputs": ("pair", None), "errors": ("pair", None), "names": ("texts", None)},
            "max_features": ("count", 2),
        }
        for name in ("waterfall", "force", "bar")
    },
    "plot.beeswarm": {
        **{"values": ("matrix", np.ones((2, 3))), "inputs": ("matrix", None)},
        **{"names": ("texts", None), "max_features": ("count", 2)},
    },
    "plot.dependence": {
        **{"grid": ("pair", np.ones(2)), "curves": ("matrix", np.ones((3, 2)))},
        **{"name": ("text", "dose"), "inputs": ("pair", None)},
    },
    "plot.interactions": {
        **{"pairs": ("matrix", np.eye(2)), "values": ("pair", None), "names": ("texts", None)},
        **{"image": ("matrix", ONES[0]), "max_pairs": ("count", 2)},
        "segments": ("matrix", CELLS),
    },
}
# Sequences.
OWN |= {
    "in_silico_mutagenesis": {"alphabet": ("position", None)},
    "continuations": {"candidates": ("matrix", [[0]])},
    "targets.position_and_class": {"position": ("weight", 0), "index": ("weight", 0)},
    "targets.log_probability": {"tokens": ("weight", [0]), "start": ("count", None)},
    "targets.masked_mean": {"mask": ("matrix", [True]), "index": ("labels", None)},
    "targets.masked_sum": {"mask": ("matrix", [True]), "index": ("labels", None)},
    "targets.finer": {"index": ("weight", None)},
    "targets.box_score": {"box": ("matrix", (0, 0, 1, 1)), "index": ("weight", 0)},
    "targets.difference": {"target": ("target_or_function", 0), "other": ("target_or_function", 0)},
}
# Pictures, data sets and training.
GRAPH = jv.layer_graph(net, PARAMS, ONES)
SET = data.Dataset(np.zeros((4, 8, 8, 1), np.float32), np.zeros(4, np.int32), ("a", "b"))
NET = models.MNISTNetA()
LINEAR = nn.Dense(3)
ARGUMENTS |= {
    "graph": ("object", GRAPH),
    "title": ("title", "a title"),
    "titles": ("texts", None),
    "notes": ("texts", None),
    "names": ("texts", None),
    "class_names": ("texts", None),
    **dict.fromkeys(["per_row", "max_units", "max_maps", "maps_per_row"], ("count", 2)),
    **dict.fromkeys(["num_epochs", "patience", "padding"], ("count", 2)),
    **dict.fromkeys(["ranked", "fast", "download"], ("flag", True)),
    "kernels": ("rows", np.ones((3, 3, 2, 4), np.float32)),
    "maps": ("rows", ONES),
    "matrix": ("matrix", np.eye(2, dtype=int)),
    "net": ("object", NET),
    "variables": ("params", {}),
    "dataset": ("object", SET),
    "train": ("object", SET),
    "monitor": ("choice", "accuracy"),
    **dict.fromkeys(["path", "folder"], ("path", "nowhere")),
    "max_size": ("count0", 0),
    "history": ("object", {"loss": [1.0, 0.5]}),
    "best_epoch": ("epoch", None),
    "predicted": ("classes", [0, 1]),
    "augment": ("function", None),
    "on_epoch": ("function", None),
    "num_classes": ("count", 2),
    "labels": ("classes", [0, 1]),
    "predictions": ("classes", [0, 1]),
}
OWN |= {
    "plot.stitched": {"images": ("pictures", ONES[..., :1])},
    "plot.overlay": {
        **{"image": ("picture", ONES[0, ..., 0]), "attribution": ("grid", ONES[0])},
        "percentile": ("positive", 99.0),
    },
    "plot.feature_maps": {"maps": ("grid", ONES[0])},
    "data.train_validation_split": {"fraction": ("share", 0.5)},
    "data.normalize": {
        **{"images": ("floats", ONES), "mean": ("statistics", 0.0), "std": ("positives", 1.0)}
    },
    "data.planted_mark": {"size": ("count", 16), "num_distractors": ("count0", 1)},
    "data.planted_blob": {"size": ("count", 8)},
    "data.planted_mosaic": {
        **{"labels": ("classes", np.arange(8)), "grid": ("sizes", (2, 2))},
        "images": ("array", np.ones((8, 2, 2, 1), np.float32)),
    },
    "data.planted_linear": {"num_relevant": ("count", 2)},
    "data.planted_pairs": {"num_pairs": ("count", 2), "pair": ("function", jnp.multiply)},
    "plot.attention_grid": {
        **{"maps": ("grid", np.ones((1, 2, 2))), "tokens": ("texts", None)},
        "keys": ("texts", None),
    },
    "plot.token_layer_map": {"tokens": ("texts!", ["a"]), "maps": ("mapping", {"a": np.ones(1)})},
    **{
        f"plot.{name}": {
            **{"tokens": ("matrix", [["a"]]), "maps": ("mapping", {"a": np.ones((1, 1))})},
            "limit": ("positive", None),
        }
        for name in ("token_sheet", "token_html")
    },
    "plot.sequence_logo": {
        **{"heights": ("matrix", np.ones((2, 4))), "alphabet": ("matrix", "ACGT")},
        "colours": ("mapping", None),
    },
    "training.predict": {"net": ("object", LINEAR), "images": ("array", ONES)},
    "training.evaluate": {"net": ("object", LINEAR), "dataset": ("object", SET)},
    "plot.ranks": {
        **{"rank": ("matrix", np.eye(2)), "means": ("matrix", None)},
        **dict.fromkeys(["methods", "metrics"], ("texts!", ["a", "b"])),
    },
    "plot.curves": {
        "curves": ("mapping", {"a": np.ones((1, 2))}),
        **dict.fromkeys(["x_label", "y_label"], ("text", "a text")),
    },
    "plot.image_grid": {"images": ("pictures", ONES[..., :1]), "predicted": ("classes", [0, 1])},
    "training.pad_crop_flip": {"padding": ("count0", 1)},
}

# A fill of a metric may be a function of what is hidden.
METRIC = {
    "fill": ("fill_or_function", 0.0),
    "unit": ("choice", "place"),
    "num_steps": ("count", 2),
    "fractions": ("sizes", (0.2, 0.5)),
    "baselines": ("array", ONES[:1]),
    "perturb": ("function", None),
    "num_samples": ("count", 2),
    **dict.fromkeys(["num_points"], ("count", 4)),
    **dict.fromkeys(["accuracy", "normalize"], ("flag", True)),
    "threshold": ("positive0", 0.6),
    "scale": ("positive", 0.2),
    "hidden": ("array", ONES[..., 0]),
}
OWN |= {f"metrics.{name}": METRIC for name in jv.metrics.__all__}
for _name in ("average_drop", "increase_in_confidence"):  # what fades is no function
    OWN[f"metrics.{_name}"] = METRIC | {"fill": ("fill", 0.0)}
# Metrics: those that explain again take a method first.
OF_METHODS = [
    name
    for name in metrics.__all__
    if inspect.isfunction(getattr(metrics, name))
    and "method" in inspect.signature(getattr(metrics, name)).parameters
]
ARGUMENTS |= {
    "mask": ("array", ONES[..., 0]),
    "b": ("rows", ONES),
    "boxes": ("array", np.zeros((2, 1, 4), np.float32)),
    "attributions": ("rows", (ONES, ONES)),
    "grid": ("sizes", (2, 2)),
    "shift": ("baseline", 1.0),
    "level": ("share", 0.95),
    "radius": ("positive", 0.5),
    **dict.fromkeys(["tolerance", "threshold"], ("positive0", 1.0)),
    **dict.fromkeys(["k", "num_top", "num_seeds", "num_bins"], ("count", 2)),
    **dict.fromkeys(["absolute", "weighted", "normalize"], ("flag", True)),
    **dict.fromkeys(["perturb", "similarity", "redraw"], ("function", None)),
}
for name in OF_METHODS:
    OWN[f"metrics.{name}"] = OWN[f"metrics.{name}"] | {"method": ("function", jv.gradient)}
OWN |= {
    f"metrics.{name}": {"attribution": ("rows", ONES)}
    for name in ("sparseness", "complexity", "effective_complexity")
}
OWN |= {
    "metrics.boxes_to_masks": {"shape": ("sizes", (8, 8))},
    "metrics.mosaics": {"target": ("weight", np.array([0, 1]))},
    "metrics.randomized_layers": {"x": ("x_or_shape", ONES)},
}
DICTIONARY = jv.concepts.Dictionary(jnp.eye(2))
OWN |= {
    "concepts.encode": {"dictionary": ("object", DICTIONARY), "a": ("array", ONES)},
    "concepts.decode": {"dictionary": ("object", DICTIONARY), "codes": ("array", ONES)},
}
TRAIN = (ONES, np.array([0, 1]))
INFLUENCE = {
    **{"x": ("x", ONES), "y": ("array", TRAIN[1]), "train": ("array", TRAIN)},
    **{"test": ("array", TRAIN), "loss": ("function", None), "layers": ("layer", None)},
    **{"projection": ("choice", None), "dim": ("count", None), "dtype": ("choice", "float32")},
    **{"checkpoints": ("params", [PARAMS]), "learning_rates": ("array", None)},
    **{"curvature": ("choice", "gauss_newton"), "damping": ("positive0", 0.0)},
    **{"factors": ("object", None), "solver": ("object", None), "rank": ("count", 2)},
    **{"features": ("array", None)},
    **{"num_neighbors": ("count", 2), "weight_decay": ("positive", 0.1)},
    "layer": ("layer", "relu_0"),
}
OWN |= {f"influence.{name}": INFLUENCE for name in jv.influence.__all__}
POINTS = np.ones((4, 2), np.float32)
SQUARES = lambda w, x: (x @ w) ** 2
STEPS = jv.influence.weighted_steps(
    SQUARES, jnp.ones(2), POINTS, [[0, 1, 2, 3]], optimizer=optax.sgd(0.1)
)
INFLUENCE |= {
    **{"steps": ("object", STEPS), "test_fn": ("function", lambda state: state.params)},
    **{"weights": ("array", np.ones((1, 4))), "max_states": ("count", None)},
    **{"loss_fn": ("function", SQUARES), "data": ("array", POINTS)},
    **{"order": ("objects!", STEPS.order), "keys": ("array", None), "checkpoint": ("path", None)},
}
RUNS = jv.influence.SubsetRuns(np.eye(4, dtype=bool), np.ones((4, 2)), np.ones(2))
INFLUENCE |= {
    **{"scores": ("matrix", np.ones((2, 4))), "runs": ("object", RUNS)},
    **{"num_runs": ("count", 2), "share": ("share", 0.5), "counts": ("sizes", (1, 2))},
    **{"suspicion": ("matrix", np.arange(4.0)), "flipped": ("array", np.eye(4, dtype=bool)[0])},
    "methods": ("matrix", {"a": np.ones((2, 4))}),
}
OWN["influence.judged"] = INFLUENCE | {
    **{"counts": ("objects", ()), "suspicions": ("matrix", None), "flipped": ("matrix", None)},
}
OWN["plot.data_attribution"] = {
    "lds": ("matrix", {"a": np.ones(2)}),
    **{"removal": ("mapping!", None), "counts": ("any", None), "detection": ("mapping!", None)},
}
OWN["influence.weighted_steps"] = INFLUENCE | {"params": ("array", jnp.ones(2))}
ROWS = np.ones((4, 2), np.float32)
CONCEPTS = {
    "probe": ("choice", "pattern"),
    "penalty": ("positives", 1.0),
    "held_out": ("share", 0.5),
    "alpha": ("share", 0.5),
    "pooled": ("flag", True),
    "concepts": ("object", {"one": ONES}),
    "layers": ("layer", ["relu_0"]),
}
OWN |= {
    "concepts.cav": CONCEPTS | {"concept": ("array", ROWS), "random": ("array", ROWS[None])},
    "concepts.tcav": CONCEPTS | {"random": ("array", np.stack([ONES] * 3))},
    **{
        f"concepts.{name}": CONCEPTS
        | {"a": ("rows", ROWS), "solver": ("choice", "hals"), "init": ("object", None)}
        | {"tolerance": ("positive0", 0.5)}
        | dict.fromkeys(["num_concepts", "num_seeds"], ("count", 1))
        for name in ("nmf", "semi_nmf", "pca", "k_means", "archetypes")
    },
    **{
        f"concepts.{name}": {
            "dictionary": ("object", DICTIONARY),
            "resize": ("flag", True),
            "stride": ("sizes", (2, 2)),
            **dict.fromkeys(["num_concepts", "num_seeds", "num_crops"], ("count", 1)),
        }
        for name in ("concept_importance", "concept_maps", "dff", "craft")
    },
    **{
        f"concepts.{name}": {"layer": ("name", "relu_0"), "dictionary": ("object", DICTIONARY)}
        for name in ("through", "concept_scores")
    },
    "concepts.concept_sensitivity": {"vectors": ("array", ROWS)},
}
OWN["concepts.attribution_graph"] = {
    **{"by": ("choice", "channel"), "num_units": ("count_or_none", 64)},
    **{"dictionaries": ("mapping", None), "layers": ("layer", ["relu_0"])},
    **dict.fromkeys(["node_threshold", "edge_threshold"], ("share0", 0.8)),
}
GRAPH = jv.concepts.AttributionGraph(
    *(np.zeros(shape) for shape in ((1, 1, 1), *[(1, 1)] * 6, (1, 1, 1))),
    layers=("<score>",),
    layer_of=(0,),
    kinds=("score",),
)
OWN["plot.attribution_graph"] = {
    "graph": ("object", GRAPH),
    **{"example": ("count0", 0), "least": ("share0", 0.1), "names": ("mapping", None)},
}
OWN |= {
    "concepts.channels_below": {"below": ("layer", "relu_0"), "rules": ("table", "epsilon")},
    "concepts.relevant_examples": {
        "rules": ("table", "epsilon"),
        **{"images": ("array", ONES), "by": ("choice", "sum"), "normalized": ("flag", False)},
        "target": ("target_or_function", 0),
    },
}
OWN["concepts.ace"] = CONCEPTS | {
    **{"segments": ("array!", [CELLS]), "random": ("array", None)},
    "target": ("target_or_function", 0),
    **dict.fromkeys(["num_concepts", "num_seeds"], ("count", 1)),
    **{"num_examples": ("count", 4), "num_random": ("count", 3)},
}
OWN["concepts.activation_atlas"] = {
    **{"images": ("array", ONES), "grid": ("sizes", (2, 2)), "layout": ("function", None)},
    **{"classes": ("objects", [0]), "pooled": ("flag", False), "min_count": ("count", 1)},
}
OWN["rules.constants"] = {"what": ("choice", "gates")}
UNITS = {
    **{"activations": ("rows", ONES), "inputs": ("array", ONES), "outputs": ("array!", ONES)},
    **{"kind": ("choice", "top_k"), "auxiliary": ("choice", "dead")},
    **dict.fromkeys(["keep", "num_units"], ("count!", 1)),
    **dict.fromkeys(["num_steps", "batch_size", "num_seeds", "dead_after"], ("count!", 1)),
    **dict.fromkeys(["bandwidth"], ("positive", 0.1)),
    **dict.fromkeys(["auxiliary_weight", "relaxation"], ("positive0", 0.1)),
    "penalty": ("array", None),
    "prefixes": ("sizes", (0.5,)),
    "points": ("array", None),
    "validation": ("array", None),
    "checkpoint": ("path", None),
}
OWN |= {
    "concepts.sparse_autoencoder": UNITS,
    "concepts.transcoder": UNITS,
    "concepts.transcode": {
        "transcoder": ("object", jv.concepts.Transcoder(*map(jnp.ones, [(2, 2), (2, 2), 2, 2, 2]))),
        "a": ("vector", ONES),
    },
    "concepts.activations_of": {"num_rows": ("count", 4), "layer": ("layer", "relu_0")},
    "concepts.matched_atoms": {"a": ("matrix", np.eye(2)), "b": ("matrix", np.eye(2))},
}
OWN["influence.lissa"] = {"scale": ("positive", 10.0), "batch_size": ("count", None)}
BY_SEARCH = {
    **{"x": ("x", ONES), "examples": ("x", ONES), "weighting": ("function", None)},
    **{"labels": ("labels!", [0, 1]), "wanted": ("labels", None), "rule": ("choice", "sim_miss")},
    **{"num_examples": ("count", 1), "layer": ("layer!", "relu_0")},
}
OWN |= {
    f"concepts.{name}": BY_SEARCH
    for name in ("nearest_examples", "counterfactual_examples", "semifactual_examples")
}
OWN["concepts.counterfactual"] = {
    **{"wanted": ("target", 0), "norm": ("choice", "l2"), "value_range": ("interval", (0.0, 1.0))},
    **{"max_radius": ("positive", 1.0), "num_radii": ("count", 2)},
}
PROTOTYPES = {
    **{"features": ("rows", ONES), "gamma": ("positive", 1.0)},
    **{"num_prototypes": ("count", 1), "num_criticisms": ("count0", 0)},
}
OWN |= {f"concepts.{name}": PROTOTYPES for name in ("mmd_critic", "proto_dash")}
OWN["concepts.loss_recovered"] = {
    **{"labels": ("labels!", [0, 1]), "dictionary": ("object", DICTIONARY)},
    "loss_fn": ("function", None),
}
OWN["metrics.continuity"] |= {"num_steps": ("count", 4)}

# Not for users, or of one argument that may be anything.
EXEMPT = {"objectives.check", "transforms.compose", "transforms.materialised", "rules.guided_rule"}
EXEMPT |= {"concepts.save_dictionary", "concepts.load_dictionary"}  # tests/concepts
EXEMPT |= {"transforms.resample", "rules.deconvnet_rule", "parametrizations.frequencies"}
# Of the floors above, those functions that can be called without files.
CHOSEN = {
    "plot": "architecture graphviz stitched filters feature_maps image_grid overlay "
    "confusion_matrix training_history ranks curves token_sheet token_html "
    "attention_grid token_layer_map sequence_logo interactions attribution_graph "
    "data_attribution "
    "waterfall force bar beeswarm dependence".split(),
    "training": "confusion_matrix per_class_accuracy pad_crop_flip predict evaluate".split(),
    "data": "train_validation_split normalize read_idx read_cifar10 planted_mark planted_blob "
    "planted_mosaic planted_linear planted_pairs".split(),
}
MODULES = {
    "": jv,
    **{name: getattr(jv, name) for name in ("objectives", "transforms", "regularizers", "targets")},
    **{name: getattr(jv, name) for name in ("parametrizations", "rules", "metrics", "concepts")},
    **{"plot": plot, "training": training, "data": data, "influence": jv.influence},
}


def public_functions():
    for prefix, module in MODULES.items():
        for name in dir(module):  # names are made when they are first asked for
            value = None if name.startswith("_") else getattr(module, name)
            path = f"{prefix}.{name}".lstrip(".")
            packaged = value.__module__ if inspect.isfunction(value) else ""
            home = module.__name__ if prefix not in ("", "rules") else "jaxviz"
            if prefix in CHOSEN and name not in CHOSEN[prefix]:
                continue
            if packaged.startswith(home) and not name.startswith("_") and path not in EXEMPT:
                if not packaged.startswith(("jaxviz.calls", "jaxviz.lazy")):
                    yield path, value


FUNCTIONS = dict(public_functions())


def arguments_of(path):
    """Each argument's kind and a value that works, in the order of the signature."""
    name = path.split(".")[-1]
    own = OWN.get(name, {}) | OWN.get(path, {})
    parameters = inspect.signature(FUNCTIONS[path]).parameters.values()
    known = ARGUMENTS | own
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name: (*known[p.name], p) for p in parameters if p.kind not in free}


def taken(kind, parameter):
    """The labels of values that make sense."""
    found = set(TAKEN[kind.rstrip("!")].split())
    if kind.endswith("!"):
        found -= {"empty_tuple"}
    mirrored = parameter.name == "value"  # of a margin: None mirrors the image
    return found | ({"none"} if parameter.default is None or mirrored else set())


def _word(option):
    return "layer" if option.endswith("layers") else option


@pytest.mark.parametrize("path", FUNCTIONS)
def test_wrong_arguments_are_refused_in_our_words(path):
    function, name = FUNCTIONS[path], path.split(".")[-1]
    given = arguments_of(path)
    works = {
        option: value
        for option, (kind, value, parameter) in given.items()
        if parameter.default is parameter.empty or kind.endswith("!")
    }
    faults = []
    for option, (kind, _, parameter) in given.items():
        for label, value in WRONG.items():
            if label in taken(kind, parameter):
                continue
            try:
                out = function(**(works | {option: value}))
                faults.append(f"{option}={label}: TAKEN: {str(jax.tree.map(np.shape, out))[:60]}")
            except (TypeError, ValueError, NotImplementedError) as error:
                if not str(error).startswith(f"{name}: ") or _word(option) not in str(error):
                    faults.append(f"{option}={label}: {type(error).__name__}: {str(error)[:150]}")
            except Exception as error:
                faults.append(f"{option}={label}: {type(error).__name__}: {str(error)[:150]}")
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults)


def test_the_matrix_is_large():
    calls = sum(
        len(WRONG.keys() - taken(kind, parameter))
        for path in FUNCTIONS
        for kind, _, parameter in arguments_of(path).values()
    )
    assert calls >= 5000
