"""Claim: 64 channels of 128x128 pixels climb at once at least as fast as in a PyTorch loop.

`python benchmarks/maximization.py --peer-python PYTHON` (one with torch; by default this one). The
same SqueezeNet 1.1 weights up to the same layer, Fourier images, Adam, jitter, zoom, rotation and
jitter, 2 threads; a few steps of both in turn, torch in the better of its two layouts, milliseconds
a step. `--cut` leaves out the transforms on both sides.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=true")

import jax
import jax.numpy as jnp
import numpy as np

import jaxviz as jv
from benchmarks.gradient_nets import SQUEEZENET, run, weights
from benchmarks.timing import json_line


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--layer", type=int, default=7, help="operation of the net: 7 is fire 7")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4, help="of each timed run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--chunk-size", type=int)
    parser.add_argument("--cut", action="store_true", help="without transforms")
    arguments = parser.parse_args()
    arrays = weights(SQUEEZENET)
    path = pathlib.Path(tempfile.mkdtemp()) / "weights.npz"
    np.savez(path, **arrays)
    params = {k: jnp.asarray(a) for k, a in arrays.items()}
    net = functools.partial(run, SQUEEZENET)
    script = pathlib.Path(__file__).with_name("maximization_peer.py")
    peer = subprocess.Popen(
        [arguments.peer_python, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert peer.stdin is not None
    assert peer.stdout is not None
    stdin, stdout = peer.stdin, peer.stdout

    def ask(**command):
        stdin.write(json.dumps(command) + "\n")
        stdin.flush()
        return json.loads(stdout.readline())

    def climb(seed):
        units = (np.arange(arguments.images) + seed) % 64
        found = jv.maximize_activation(
            net,
            params,
            (arguments.size, arguments.size, 3),
            jv.objectives.channel(f"at_{arguments.layer}", units),
            key=jax.random.key(seed),
            num_steps=arguments.steps,
            redirected_steps=0,
            chunk_size=arguments.chunk_size,
            **({"transforms": ()} if arguments.cut else {}),
        )
        return jax.block_until_ready(found)

    shape = {"images": arguments.images, "size": arguments.size, "steps": arguments.steps}
    load = {"net": SQUEEZENET, "layer": arguments.layer, "weights": str(path), **shape}
    load |= {"cut": arguments.cut}
    start = time.perf_counter()
    climb(0)
    compile_seconds = time.perf_counter() - start
    best = {}
    for last in (False, True):
        ask(**load, channels_last=last)
        ask(climb=True)
        best[last] = ask(climb=True)["ms"]
    ask(**load, channels_last=best[True] < best[False])
    ask(climb=True)
    times, theirs = [], []
    for repeat in range(arguments.repeats):
        start = time.perf_counter()
        climb(repeat + 1)  # other units, same program
        times.append(1e3 * (time.perf_counter() - start) / arguments.steps)
        theirs.append(ask(climb=True)["ms"])
    ms, peer_ms = statistics.median(times), statistics.median(theirs)
    json_line(
        net="squeezenet",
        layer=f"at_{arguments.layer}",
        **shape,
        transforms=not arguments.cut,
        ms_a_step=ms,
        peer_ms_a_step=peer_ms,
        ratio=peer_ms / ms,
        peer_layout="channels_last" if best[True] < best[False] else "default",
        first_call_seconds=compile_seconds,
    )
    stdin.close()
    peer.wait()


if __name__ == "__main__":
    main()
