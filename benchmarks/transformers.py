"""Methods of attention beside PyTorch: same weights, inputs and threads, calls in turn.

    python -m benchmarks.transformers minilm --python PYTHON_WITH_TORCH_CAPTUM_LXT

`minilm` has MiniLM-L6's sizes and 128 tokens, `vit` ViT-B/16's at 224 (197 tokens), `tiny` a
second's; random weights, pre-norm blocks, RMS norms; explained are the tokens' embeddings. Prints a
line of JSON a method, the first one for the matrix products of a gradient alone: both medians,
their ratio, how long ours compiled, and how far the two results are from each other, as a share of
the largest; for AttnLRP also without LXT's stabilisers.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxviz as jv
from benchmarks.timing import json_line

# Blocks, width, heads, tokens.
SIZES = {"tiny": (2, 16, 2, 6), "minilm": (6, 384, 12, 128), "vit": (12, 768, 12, 197)}
STEPS = 20
SIDE = os.path.join(os.path.dirname(__file__), "transformers_side.py")


def drawn(blocks, width, heads, tokens):
    draw = np.random.default_rng(0)
    normal = lambda *shape: (draw.normal(size=shape) / np.sqrt(shape[-2])).astype(np.float32)
    w = {name: normal(blocks, width, width) for name in "qkvo"}
    w |= {"u": normal(blocks, width, 4 * width), "d": normal(blocks, 4 * width, width)}
    inputs = {name: draw.normal(size=(1, tokens, width)) for name in ("x", "source")}
    inputs = {name: a.astype(np.float32) for name, a in inputs.items()}
    return w | {"head": normal(width, 10)}, inputs, heads


def encoder(heads, bare=False):
    """`bare` leaves out norms, softmax and GELU: what is left is matrix products and sums."""

    def rms(x):
        return x if bare else x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)

    gelu = (lambda x: x) if bare else jax.nn.gelu
    softmax = (lambda x: x * np.float32(1e-6)) if bare else jax.nn.softmax

    def block(x, w):
        y = rms(x)
        q, k, v = ((y @ w[name]).reshape(*x.shape[:2], heads, -1) for name in "qkv")
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / np.float32(q.shape[-1] ** 0.5)
        z = jnp.einsum("nhqk,nkhd->nqhd", softmax(scores), v)
        x = x + z.reshape(x.shape) @ w["o"]
        return x + gelu(rms(x) @ w["u"]) @ w["d"], None

    def net(w, x):
        x, _ = jax.lax.scan(block, x, {name: w[name] for name in "qkvoud"})
        return rms(x)[:, 0] @ w["head"]

    return net


def methods(net, bare):
    return {
        "products": jax.jit(lambda w, x, _: jax.grad(lambda x: bare(w, x)[:, 0].sum())(x)),
        "gradient": lambda w, x, _: jv.gradient(net, w, x, 0),
        "rollout": lambda w, x, _: jv.attention_rollout(net, w, x),
        "relevance": lambda w, x, _: jv.attention_relevance(net, w, x, 0),
        "integrated": lambda w, x, _: jv.integrated_gradients(
            net, w, x, 0, num_steps=STEPS, rule="middle"
        ),
        "attn_lrp": lambda w, x, _: jv.lrp(net, w, x, 0, rules="attn_lrp"),
        "patching": lambda w, x, source: jv.activation_patching(net, w, x, source, 0).effect,
    }


def _apart(ours, theirs):
    return f"{np.abs(ours - theirs).max() / np.abs(theirs).max():.1e}"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("net", choices=SIZES)
    parser.add_argument("--python", required=True, help="one that has torch, captum and lxt")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processor", action="store_true", help="processor time, of one core")
    parser.add_argument("--only", nargs="*", help="names of methods")
    arguments = parser.parse_args(argv)
    w, inputs, heads = drawn(*SIZES[arguments.net])
    if arguments.processor:  # others may be at work
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    threads = str(len(os.sched_getaffinity(0)))
    clock = time.process_time if arguments.processor else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        given, result = os.path.join(folder, "given.npz"), os.path.join(folder, "result.npy")
        np.savez(given, **w, **inputs, heads=heads, steps=STEPS)  # type: ignore[arg-type]
        side = subprocess.Popen(
            [arguments.python, SIDE, given],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | {"THREADS": threads, "CLOCK": clock.__name__},
        )  # fmt: skip

        def ask(name, path=""):
            assert side.stdin is not None
            assert side.stdout is not None
            side.stdin.write(json.dumps([name, path]) + "\n")
            side.stdin.flush()
            return json.loads(side.stdout.readline())

        args = (jax.tree.map(jnp.asarray, w), *map(jnp.asarray, inputs.values()))
        for name, method in methods(encoder(heads), encoder(heads, bare=True)).items():
            if arguments.only and name not in arguments.only:
                continue
            start = time.perf_counter()
            ours = np.asarray(method(*args))
            first = time.perf_counter() - start
            ask(name, result)  # what is first asked warms up
            apart = {"apart": _apart(ours, np.load(result))}
            if name == "attn_lrp":
                ask("attn_lrp_exact", result)
                apart["apart_without_stabilisers"] = _apart(ours, np.load(result))
            times: dict[str, list[float]] = {"ours": [], "peer": []}
            for _ in range(arguments.repeats):
                start = clock()
                jax.block_until_ready(method(*args))
                times["ours"].append(clock() - start)
                times["peer"].append(ask(name))
            ms = {who: 1e3 * statistics.median(each) for who, each in times.items()}
            json_line(
                net=arguments.net, method=name, ours_ms=ms["ours"], peer_ms=ms["peer"],
                ratio=ms["peer"] / ms["ours"], first_call_s=first, **apart,
            )  # fmt: skip
        side.stdin.close()  # type: ignore[union-attr]
        side.wait()


if __name__ == "__main__":
    jv.keep_memory()
    main()
