"""A model whose outputs are the concepts of a layer: what explains a class explains a concept."""

from collections.abc import Callable

import jax

from jaxviz.calls.made import made
from jaxviz.calls.public import public
from jaxviz.concepts.dictionary import Dictionary
from jaxviz.concepts.pooled import places_mean
from jaxviz.concepts.through import through
from jaxviz.graph.held import hold
from jaxviz.graph.split import Values, run_values


@public()
def concept_scores(apply_fn: Callable, layer: str, dictionary: Dictionary) -> Callable:
    """The model up to a layer, with the mean codes of a dictionary for its outputs.

    What takes a model and a class takes it and a concept: maps of a concept
    (`integrated_gradients(scores, params, x, k)`), and CRAFT's recursion, which asks of what
    concepts of an earlier layer a concept is made:
    `craft(concept_scores(net, "fire9", found.dictionary), params, crops, k, layer="fire5", ...)`,
    with `crops` the concept's own, brought to the images' size.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`, its channels on any axis.
      dictionary: Of K atoms in the layer's channels.

    Returns:
      A function `(params, x) -> [N, K]`, a pytree of the dictionary's arrays as `through` makes
      one; layers before `layer` have the names they had.

    Raises:
      ValueError: When called: no such layer, or one with another number of channels.

    Example:
      >>> import jax.numpy as jnp
      >>> net = lambda w, x: jax.nn.relu(x) @ w
      >>> sums = Dictionary(jnp.ones((1, 2)), encoder=jnp.ones((2, 1)))
      >>> concept_scores(net, "relu_0", sums)(jnp.ones((2, 1)), jnp.array([[2.0, 1.0]])).tolist()
      [[3.0]]

    Reference:
      Fel et al. 2023, arXiv:2211.10154, section 3.2 (recursive decomposition); there earlier
      layers are factorised on the crops of a concept, too, and importance is of the class.
    """
    return jax.tree_util.Partial(_scores, through(apply_fn, layer, dictionary))


@made(lambda coded: ("concept_scores", "params and x must be what apply_fn takes"))
def _scores(coded, params, x):
    name = f"{coded.layer}/codes"
    held, arrays = hold("concept_scores", coded, params)
    return places_mean(run_values(Values(held, (name,), "concept_scores"), arrays, x)[name])
