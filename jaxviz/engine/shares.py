"""A program whose loop over independent chunks is shared out: a thread for each core.

XLA's CPU backend gives one operation after the other to all cores, and all wait for the slowest.
Executions of their own, each with a share of the chunks and one core, wait for nobody.

Data flow: `side_by_side(f)` traces f; where f calls `shared(function, parts)`, each part becomes a
marked call; the traced program is cut into what comes before the calls, one call, and what comes
after; the calls run on threads, those of a long loop in turns, between which Ctrl-C is heard.
"""

import contextvars
import functools
import os
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from jaxviz.engine.progress import in_turns
from jaxviz.graph.equations import called, operands, section, variables
from jaxviz.graph.interpreter import INLINED

_MARK = "jaxviz_share"
MOST = 8  # threads: each has its own chunks in memory
_width = contextvars.ContextVar("jaxviz_width", default=1)


def width() -> int:
    """In how many shares a loop that is being traced is to be divided; 1 is not at all."""
    return _width.get()


def cores() -> int:
    """How many cores a call has here.

    1 but on CPUs, and where JAX has several devices: those are the caller's to divide work among.
    """
    if jax.default_backend() != "cpu" or len(jax.local_devices()) > 1:
        return 1
    allowed = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def shared(function: Callable, parts: Sequence[Any]) -> list[Any]:
    """`[function(part) for part in parts]`, all of one shape; side by side if traced for that."""
    if width() == 1 or len(parts) == 1:
        return [function(part) for part in parts]

    def share(part):
        return traced_with(1, function, part)  # a loop within a share is that share's own

    share.__name__ = _MARK
    call = jax.jit(share)
    return [call(part) for part in parts]


def shared_rows(function: Callable, rows: Any) -> Any:
    """`function(rows)`, which is of each row by itself; rows side by side if traced for that.

    Args:
      function: Of a pytree of arrays, however many rows they have, to one.
      rows: A pytree of arrays `[M, ...]`.

    Returns:
      What `function` gives. A share has one row: so none waits long for the last one.
    """
    count = len(jax.tree.leaves(rows)[0])
    if width() == 1 or count == 1:
        return function(rows)
    each = [jax.tree.map(lambda a, n=n: a[n : n + 1], rows) for n in range(count)]
    found = shared(function, each)
    return jax.tree.map(lambda *each: jnp.concatenate(each), *found)


def side_by_side(
    function: Callable,
    count: int,
    *,
    static_argnums: tuple[int, ...] = (),
    options: dict[str, Any] | None = None,
    alone: dict[str, Any] | None = None,
) -> Callable:
    """`jax.jit(function)`, whose calls of `shared` are divided among `count` threads.

    Args:
      function: Pure, of pytrees.
      count: Threads.
      static_argnums: As for `jax.jit`.
      options: For the compiler.
      alone: The same, for the program of a share.

    Returns:
      The function, for calls outside any trace. Compiled once for shapes and static arguments;
      with the results of `jax.jit`, except that XLA may add in another order.
    """

    def traced(*arguments):
        return traced_with(count, function, *arguments)

    traced.__name__ = function.__name__
    whole = jax.jit(traced, static_argnums=static_argnums, compiler_options=options)
    cuts: Any = weakref.WeakKeyDictionary()  # by traced program, which JAX finds again
    whole_ones = set()  # calls that share nothing, as hashes: finding their program takes time

    def call(*arguments):
        fixed = [a for i, a in enumerate(arguments) if i in static_argnums]
        moving = [a for i, a in enumerate(arguments) if i not in static_argnums]
        leaves, structure = jax.tree.flatten(moving)
        known = hash((*fixed, structure, *map(jax.typeof, leaves)))
        if known in whole_ones:
            return whole(*arguments)
        trace = whole.trace(*arguments)
        if trace.jaxpr not in cuts:
            cut = _cut(trace.jaxpr, len(leaves), count, options, alone, traced.__name__)
            cuts[trace.jaxpr] = cut, jax.tree.structure(trace.out_info)
        run, outputs = cuts[trace.jaxpr]
        if run is None:
            whole_ones.add(known)
        if run is None or jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            return whole(*arguments)
        return jax.tree.unflatten(outputs, run(leaves))

    return call


def traced_with(count: int, function: Callable, *arguments: Any) -> Any:
    """`function(*arguments)`, whose loops are divided in `count` shares; with 1, in none.

    With 1 for loops inside another that is not itself shared: their shares would be run by nobody
    but one program, one after another.
    """
    token = _width.set(count)
    try:
        return function(*arguments)
    finally:
        _width.reset(token)


def _cut(
    closed: Any,
    arguments: int,
    count: int,
    options: dict[str, Any] | None,
    alone: dict[str, Any] | None,
    name: str,
) -> Callable | None:
    """The program in three parts, `leaves -> flat outputs`; None where nothing is shared."""
    jaxpr = closed.jaxpr
    marked = lambda e: e.primitive.name in INLINED and e.params.get("name") == _MARK
    calls = [e for e in jaxpr.eqns if marked(e)]
    # More inputs than arguments: values under `grad` or `vmap` that the function closes over.
    if not calls or jaxpr.effects or len(jaxpr.invars) != arguments:
        return None
    # The first loop alone: a later one may need its results, and runs with what comes after.
    first = calls[0].params["jaxpr"]
    ours = lambda e: marked(e) and e.params["jaxpr"] is first
    calls = [e for e in calls if ours(e)]
    made = [v for e in calls for v in e.outvars]
    behind, before, after = set(made), [], []
    for equation in jaxpr.eqns:
        if ours(equation):
            continue
        if behind.isdisjoint(variables(equation.invars)):
            before.append(equation)
        else:
            after.append(equation)
            behind.update(equation.outvars)
    finish = section(after, jaxpr.outvars)
    early = {v for e in before for v in e.outvars}
    late = variables([*finish.reads, *(a for e in calls for a in e.invars)])
    start = section(before, [v for v in late if v in early])

    begin = jax.jit(start.function, compiler_options=options)
    end = jax.jit(finish.function, compiler_options=options)
    one = jax.jit(called(calls[0]), compiler_options=alone)
    # Threads do not see this one's configuration: here arrays get their types, and the compiler its
    # own. Once, as far as possible, for there are hundreds.
    array = lambda a: a if isinstance(a, jax.Array | jex.Var) else jnp.asarray(a)
    consts = dict(zip(jaxpr.constvars, map(array, closed.consts), strict=True))
    own = lambda e: operands(e, {v: v for v in variables(e.invars)})  # variables as themselves
    reads = [list(map(array, own(e))) for e in calls]
    compiled: list[Any] = []

    def run(leaves):
        env = consts | dict(zip(jaxpr.invars, map(array, leaves), strict=True))
        env.update(zip(start.makes, begin(*(env[v] for v in start.reads)), strict=True))
        given = [[env[a] if isinstance(a, jex.Var) else a for a in row] for row in reads]
        if not compiled:
            compiled.append(one.lower(*given[0]).compile())
        one_turn = lambda values: jax.block_until_ready(compiled[0](*values))
        found = in_turns(_threads(count), one_turn, given, name)
        env.update(zip(made, (a for arrays in found for a in arrays), strict=True))
        return end(*(env[v] for v in finish.reads))

    return run


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "jaxviz")
