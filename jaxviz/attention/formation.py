"""How attention forms what a head reads: gradients of each block's own score."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.attention.blocks import blocks, ways
from jaxviz.attention.found import found
from jaxviz.attention.gradients import by_examples, gradients_of
from jaxviz.attention.laid import alike, laid_out
from jaxviz.attention.late import attended
from jaxviz.attention.maps import chosen
from jaxviz.attention.zeroing import handed_on
from jaxviz.calls.options import layer_list, maybe
from jaxviz.engine.contract import Target, explanation, select
from jaxviz.graph.changed import run, run_changed
from jaxviz.graph.stopped import stopped
from jaxviz.parts.feature_maps import Resize


@explanation("layers", "resize", "chunk_size", integers=True, layers=maybe(layer_list))
def le_grad(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layers: Sequence[str] | None = None,
    resize: Resize = True,
    chunk_size: int | None = None,
) -> jax.Array:
    """Which tokens more attention would build the class from, in every block.

    The mean over blocks l, heads and queries of relu(d s_l / d A_l); s_l is the explained number
    of what follows the last block, fed with the mean over tokens of what block l hands on.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]` or a pytree of such; token ids too.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, of the model's own outputs.
      layers: Names of `attentions` to take; None takes all. They must be self-attentions over the
        same tokens.
      resize: For images, whether to scale the map to their size, or to which.
      chunk_size: Examples at once; None takes all.

    Returns:
      `[N, H, W]` for an image whose patches the model shows to be the tokens, `[N, rows, columns]`
      with `resize=False`; else `[N, tokens]`. Non-negative, in units of the explained output, at
      least float32. Costs a forward pass, and a backward one of each block and of the head.

    Raises:
      ValueError: The model has no attention, those taken are not over the same tokens, or the
        tokens that a block hands on are not plain from the model.

    Example:
      >>> net = lambda w, x: (x + jax.nn.softmax(x @ x.mT) @ x).mean(1)
      >>> x = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
      >>> le_grad(net, None, x, 0).tolist()
      [[0.5, 0.0]]

    Reference:
      Bousselham et al. 2024, arXiv:2404.03214, section 3.2. The authors' code takes the last two
      blocks, adds them up and scales the map to 0..1; CLIP's embedding is normalised there, as it
      is in a model that does so. With one attention alone, what its block hands on is the last sum
      of two values behind it.
    """
    name = "le_grad"

    def some(x, target):
        traced = attended(apply_fn, params, x)
        taken = alike(name, traced, chosen(name, traced, layers))
        known, around = ways(traced), blocks(traced)
        last = found(traced)[-1]
        end = handed_on(name, last, around[last.name])
        head = [known.nodes[i] for i in sorted(known.reached(known.made[end.value]))]
        streams = {s.value: s for s in (handed_on(name, a, around[a.name]) for a in taken)}
        outputs = lambda env: jax.tree.map(lambda value: env[value], traced.outputs)

        def scores(change, _):
            given: dict[Any, jax.Array] = {}

            def noted(value, a):  # later blocks read it, but no gradient comes back from them
                given[value] = a
                return stopped(a)

            alone = {value: functools.partial(noted, value) for value in streams}
            env = run(traced, jax.tree.leaves((params, x)), {**change, **alone})
            top = jnp.argmax(outputs(env), axis=1) if target is None else target
            total: Any = 0
            for value, stream in streams.items():
                tokens = stream.read(given[value])
                mean = jnp.broadcast_to(tokens.mean(1, keepdims=True), tokens.shape)
                here = {**env, end.value: end.written(mean, env[end.value])}
                run_changed(head, here, {})
                total = total + select(outputs(here), top).sum()
            return total, None

        seen = lambda a, g, w: jax.nn.relu(g).mean((1, 2))
        total: Any = sum(gradients_of(scores, traced, taken, seen)[0])
        return laid_out(name, taken[-1].tokens, total / len(taken), x, resize)

    return by_examples(name, some, x, target, chunk_size)
