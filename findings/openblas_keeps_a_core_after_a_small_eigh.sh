#!/usr/bin/env bash
# On a CPU, jnp.linalg.eigh of a 50x50 matrix takes half a millisecond, and a tenth of a second of
# another core after it has returned.
#
# Versions: jax and jaxlib 0.12.0.1 with scipy 1.18.1 and numpy 2.5.5 (Python 3.13, Linux x86-64, two
# cores or more).
# jaxlib has no LAPACK of its own: it calls scipy's, which is OpenBLAS' with a thread for each core.
# What a product within hands to a thread is soon done, but the thread then waits for more in a loop,
# for 2^28 clock ticks by default (OPENBLAS_THREAD_TIMEOUT=28), before it sleeps. Whatever XLA runs in
# that time has a core less: a loop of such calls keeps all other cores busy with nothing. With one
# thread (OPENBLAS_NUM_THREADS=1) nothing of the kind is seen; a 20x20 matrix wakes no thread.
# Output seen: "eigh 20x20: 0.4 ms of processors", "eigh 50x50: 104 ms", one thread: "0.7 ms".
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3.13 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.12.0.1 jaxlib==0.12.0.1 scipy==1.18.1 numpy==2.5.5
cat >"$folder/spin.py" <<'PY'
import os, sys, time
import jax
import jax.numpy as jnp

assert len(os.sched_getaffinity(0)) > 1, "one core has nothing to lose"
eigh = jax.jit(lambda a: jnp.linalg.eigh(a)[1])


def milliseconds(size):
    a = jax.random.normal(jax.random.key(0), (size, size))
    a = a + a.T
    jax.block_until_ready(eigh(a))
    time.sleep(0.5)  # till all threads sleep
    start, busy = time.perf_counter(), time.process_time()
    jax.block_until_ready(eigh(a))
    took = 1e3 * (time.perf_counter() - start)
    time.sleep(0.3)
    return took, 1e3 * (time.process_time() - busy)


for size in (20, 50):
    took, busy = milliseconds(size)
    print(f"eigh {size}x{size}: {took:.1f} ms by the clock, {busy:.1f} ms of processors")
    wanted = "waits" if size == 50 and "OPENBLAS_NUM_THREADS" not in os.environ else "sleeps"
    assert (busy > 20) == (wanted == "waits"), (size, busy, wanted)
PY
"$folder/venv/bin/python" "$folder/spin.py"
OPENBLAS_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/spin.py"
