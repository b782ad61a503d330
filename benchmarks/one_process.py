"""The fresh processes that first_call.py starts: `python one_process.py SIDE NET METHOD`.

Prints one line of JSON. `SIDE` is "jaxviz", whatever checkout is imported, "plain", which is
`jax.jit(jax.grad)` of the same net, or "torch". Only what has long been public is used of jaxviz.
"""

import json
import os
import sys
import time


def jaxviz_calls(net):
    """Each method's call, on one photograph's worth of noise, and the plain gradient's."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from nets import VisionTransformer, token_grid

    import jaxviz as jv
    from jaxviz import models

    if ":" in net:
        import third_party

        model, params, shape = third_party.build(net)
        x = jax.random.normal(jax.random.key(1), (1, *shape))
    else:
        module = VisionTransformer(6, 384, 6) if net == "vit6" else models.nets[net]()
        x = jax.random.normal(jax.random.key(1), (1, 224, 224, 3))
        params = jax.block_until_ready(jax.jit(module.init)(jax.random.key(0), x))
        model = models.apply_fn(module)
    target, key = jnp.array([7]), jax.random.key(0)
    layer = {"squeezenet1_1": "features/12", "resnet18": "layer4", "mobilenet_v2": "features/18"}
    if net == "vit6":
        place = {"layer": "block5", "reshape": token_grid}
    else:
        place = {"layer": layer[net]} if net in layer else {}
    cells = np.arange(224) * 7 // 224
    regions = (7 * cells[:, None] + cells).astype(np.int32)
    window = {"window": (32, 32), "stride": (16, 16)}
    methods = {
        "saliency": (jv.saliency, {}),
        "gradcam": (jv.grad_cam, place),
        "ig": (jv.integrated_gradients, {"num_steps": 50}),
        "lrp": (jv.lrp, {"rules": "epsilon"}),
        "deeplift": (jv.deep_lift, {}),
        "occlusion": (jv.occlusion, window),
        "scorecam": (jv.score_cam, place | {"num_channels": 64}),
        "kernelshap": (jv.kernel_shap, {"segments": regions, "num_samples": 200, "key": key}),
    }
    gradient = jax.jit(jax.grad(lambda x, params: model(params, x)[:, 7].sum()))
    calls = {
        name: lambda method=method, options=options: method(model, params, x, target, **options)
        for name, (method, options) in methods.items()
    }
    return calls | {"plain": lambda: gradient(x, params)}, jax.block_until_ready


def torch_calls(net):
    import torch
    from torch_side import build, methods

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return methods(*build(net), torch.randn(1, 3, 224, 224)), lambda result: result


KINDS = {
    "xla": "/jax/core/compile/backend_compile_duration",
    "lowering": "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "tracing": "/jax/core/compile/jaxpr_trace_duration",
}


def listen():
    """`(start, end)` of what JAX does in Python and in XLA from now on, and the jaxprs it makes."""
    import jax
    from jax.extend.core import Jaxpr

    spans, made, init = {event: [] for event in KINDS.values()}, [], Jaxpr.__init__

    def heard(event, start, end, **_):
        if event in spans:
            spans[event].append((start, end))

    def counted(self, *arguments, **options):
        init(self, *arguments, **options)
        made.append(len(self.eqns))

    jax.monitoring.register_event_time_span_listener(heard)
    Jaxpr.__init__ = counted  # JAX reports the outermost traces alone
    return spans, made


def covered(spans):
    """Seconds that lie in at least one of the spans, which nest and may run side by side."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total


def split(spans, made, first):
    """Of the first call: XLA, lowering without it, tracing without both, and the rest."""
    found, taken, before = {}, [], 0.0
    for name, event in KINDS.items():
        taken = taken + spans[event]
        found[f"{name}_ms"] = 1e3 * (covered(taken) - before)
        before = covered(taken)
    found["rest_ms"] = 1e3 * (first - before)
    counts = {"traces": len(spans[KINDS["tracing"]]), "programs": len(spans[KINDS["xla"]])}
    return found | counts | {"jaxprs": len(made), "equations": sum(made)}


def main(side, net, method):
    calls, wait = (torch_calls if side == "torch" else jaxviz_calls)(net)
    call = calls["plain" if side == "plain" else method]
    heard = None if side == "torch" else listen()
    seconds, processor, told = [], [], {}
    for number in range(2):
        start, used = time.perf_counter(), time.process_time()
        wait(call())
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
        if heard and number == 0:
            told = split(*heard, seconds[0])
    where = sys.modules["jaxviz"].__file__ if "jaxviz" in sys.modules else None
    times = {"first_ms": seconds[0], "cpu_ms": processor[0], "second_ms": seconds[1]}
    print(json.dumps({k: 1e3 * v for k, v in times.items()} | {"from": where} | told))


if __name__ == "__main__":
    main(*sys.argv[1:])
