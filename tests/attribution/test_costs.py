"""No method comes to cost more unnoticed: FLOPs and bytes of the compiled programs, not seconds.

`costs.json` holds what each method cost when it was last looked at, for each version of JAX. After
a change that is meant, this writes it anew:

    JAXVIZ_WRITE_COSTS=1 python -m pytest tests/attribution/test_costs.py
"""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_net import apply_fn, inputs

import jaxviz as jv
from jaxviz.graph.flops import call_flops
from jaxviz.rules.fast import compiler_options

PATH = pathlib.Path(__file__).with_name("costs.json")
VERSION = ".".join(jax.__version__.split(".")[:2])
KEY = jax.random.key(0)
UNITS = jv.objectives.channel("relu2", np.arange(2))


def smooth_grad(*call):
    return jv.smooth_grad(jv.gradient, num_samples=4)(*call, key=KEY)


def maximized(f, params, x, _):
    shape = (2, *x.shape[1:])
    found = jv.maximize_activation(
        f, params, shape, UNITS, key=KEY, num_steps=4, redirected_steps=0, transforms=()
    )
    return found.images


METHODS = {
    "saliency": jv.saliency,
    "integrated_gradients": lambda *call: jv.integrated_gradients(*call, num_steps=8),
    "smooth_grad": smooth_grad,
    "grad_cam": lambda *call: jv.grad_cam(*call, layer="relu2"),
    "guided_backprop": jv.guided_backprop,
    "deep_lift": jv.deep_lift,
    "lrp": lambda *call: jv.lrp(*call, rules="epsilon"),
    "occlusion": lambda *call: jv.occlusion(
        *call, window=(4, 4), stride=(4, 4), method="incremental"
    ),
    "score_cam": lambda *call: jv.score_cam(*call, layer="relu2"),
    "maximize_activation": maximized,
}


def costs(method):
    """FLOPs of the program as it is written, all turns of its loops; and as XLA compiled it."""
    params, x, target, *_ = inputs(jnp.float32)
    run = lambda params, x, target: method(apply_fn, params, x, target)
    compiled = jax.jit(run, compiler_options=compiler_options() or None)
    found = compiled.lower(params, x, target).compile().cost_analysis()
    assert found is not None
    return {
        "flops": call_flops(run, params, x, target),
        "compiled_flops": round(found["flops"]),
        "compiled_bytes": round(found["bytes accessed"]),
    }


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the costs are those of a CPU")
@pytest.mark.parametrize("name", METHODS)
def test_costs_have_not_grown(name):
    known, now = json.loads(PATH.read_text()), costs(METHODS[name])
    if "JAXVIZ_WRITE_COSTS" in os.environ:
        known.setdefault(VERSION, {})[name] = now
        PATH.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    if VERSION not in known:
        pytest.skip(f"no costs are recorded for JAX {VERSION}")
    before = known[VERSION][name]
    grown = {k: f"{before[k]} to {now[k]}" for k in now if now[k] > 1.05 * before[k]}
    assert not grown, f"{name} costs more than before: {grown}"
