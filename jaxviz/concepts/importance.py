"""How much of a score's variance each concept of a dictionary has a part in."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.concepts.dictionary import Dictionary, decode, encode
from jaxviz.concepts.pooled import places_mean
from jaxviz.engine.contract import Target, explanation, select
from jaxviz.engine.copies import outputs_of_copies, stacked_scores
from jaxviz.graph.held import hold
from jaxviz.graph.split import mean_over_places, split, split_where_read
from jaxviz.graph.trace import trace
from jaxviz.parts import designs
from jaxviz.parts.channels import channel_axis

_AT_ONCE, _BYTES = 16, 2**28


@explanation("layer", "num_designs", "chunk_size", sweeps=True, integers=True)
def concept_importance(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layer: str,
    dictionary: Dictionary,
    key: jax.Array,
    num_designs: int = 32,
    chunk_size: int | None = None,
) -> jax.Array:
    """Total Sobol indices of the score when a layer's concepts are faded: CRAFT's importance.

    Each of the K codes is multiplied by a number that is uniform on [0, 1], the same at all places;
    what the dictionary leaves out stays: a - decode(u) + decode(m u). Then as `sobol`:
    T_k = E[Var(f | all but m_k)] / Var f.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]` or a pytree of such; token ids too.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`.
      dictionary: Of K atoms in the layer's channels, as `nmf` makes one.
      key: Key of the shift that makes the Sobol sequence random.
      num_designs: Pairs of masks, a power of two, >= 2.
      chunk_size: Masked values at once, for all N examples. None is 16, or as many as take 256 MB.

    Returns:
      `[N, K]`, shares of the variance, >= 0, without a sign; with interactions they sum to more
      than 1; 0 where nothing varies. Costs one pass up to the layer, and num_designs * (K + 2) from
      there on; from the mean over places on, where nothing else reads the layer.

    Raises:
      ValueError: No such layer, or one with another number of channels.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x) @ w
      >>> codes = Dictionary(jnp.eye(2), encoder=jnp.eye(2), threshold=jnp.zeros(()))
      >>> options = dict(layer="relu_0", dictionary=codes, key=jax.random.key(0))
      >>> concept_importance(net, jnp.array([[1.0], [0.0]]), jnp.ones((1, 2)), 0, **options)[0, 1]
      Array(0., dtype=float32)

    Reference:
      Fel et al. 2023, arXiv:2211.10154, section 3.3. There, and in Xplique, what the dictionary
      leaves out is dropped, so that the net sees values that it never makes.
    """
    name = "concept_importance"
    designs.check_designs(name, num_designs)
    head, tail = split_where_read(apply_fn, params, x, layer)
    a, carry = head(params, x)
    axis = channel_axis(name, apply_fn, params, x, layer)
    codes = encode(dictionary, jnp.moveaxis(a, axis, -1))
    count = codes.shape[-1]
    if mean := mean_over_places(trace(*hold(name, apply_fn, params), x), layer):
        # A mask is the same at all places, so that the mean of what it leaves is that of the means.
        head, tail = split(apply_fn, params, x, mean)
        a, carry = head(params, x)
        axis, codes = -1, places_mean(codes)
    mask = designs.masks(key, count, num_designs)
    # The bias of a dictionary is no concept: only what atoms say is faded.
    atoms = dictionary._replace(bias=None)

    def faded(k):
        seen = mask(k // num_designs, k % num_designs).astype(codes.dtype)
        less = jnp.broadcast_to(1 - seen, codes.shape)
        return a - jnp.moveaxis(decode(atoms, codes * less), -1, axis)

    if chunk_size is None:
        # One at a time takes a processor three times as long: products with K columns are too thin.
        chunk_size = max(1, min(_AT_ONCE, _BYTES // max(a.size * a.dtype.itemsize, 1)))
    outputs = outputs_of_copies(tail, (params, carry), a, faded)
    num = designs.num_masks(count, num_designs)
    scores, _ = stacked_scores(name, outputs, select, num, chunk_size, a, target)
    scores = scores.reshape(count + 2, num_designs, -1)
    return designs.total_indices(scores, np.ones(num_designs, bool))[0]
