"""Times compiled functions side by side: compile time apart, interleaved calls, medians."""

import functools
import json
import os
import platform
import statistics
import time

import jax


def machine():
    """What a figure depends on besides the code: versions, processor, number of cores."""
    return {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }


def side_by_side(candidates, args, *, repeats=11, seconds=4.0):
    """Median run time and compile time of each of `candidates`, called in turn on `args`.

    Interleaving spreads whatever else the machine does evenly over the candidates, so their ratio
    is steadier than either figure.

    Args:
      candidates: Dict name -> function; those that are not compiled yet are given to `jax.jit`.
      args: Tuple of arguments, the same for every candidate.
      repeats: Calls of each candidate after warm-up, at most.
      seconds: The loop stops after about this long, with at least three calls of each.

    Returns:
      Dict name -> (milliseconds a call, milliseconds to compile).
    """
    calls, compile_ms = {}, {}
    for name, function in candidates.items():
        function = function if hasattr(function, "lower") else jax.jit(function)
        start = time.perf_counter()
        calls[name] = functools.partial(function.lower(*args).compile(), *args)
        compile_ms[name] = 1e3 * (time.perf_counter() - start)
    medians = in_turn(calls, repeats, seconds)
    return {name: (medians[name], compile_ms[name]) for name in candidates}


def in_turn(calls, repeats=11, seconds=4.0):
    """Median milliseconds of each of `calls`, functions without arguments, called once before."""
    runs = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    begin = time.perf_counter()
    for repeat in range(repeats):
        if repeat >= 3 and time.perf_counter() - begin > seconds:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            runs[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in runs.items()}


def json_line(**fields):
    """Prints one measurement, with the machine it was taken on, as one line of JSON."""
    rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in fields.items()}
    print(json.dumps(rounded | machine()), flush=True)
