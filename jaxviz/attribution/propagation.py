"""Explanations that change what the backward pass lets through: one rule set each."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.calls.public import public
from jaxviz.engine.contract import Target, explanation, select
from jaxviz.engine.copies import fixed_target
from jaxviz.graph.indices import is_channel
from jaxviz.graph.rewrite import Rule, RuleSet, rewrite
from jaxviz.graph.split import split, split_where_read
from jaxviz.parts.channels import channel_axis, checked_channel
from jaxviz.parts.gradients import input_gradient, plain_gradient
from jaxviz.rules import lrp_composites, relu
from jaxviz.rules.lrp_maps import contribution, over_fast
from jaxviz.rules.unread import read_only

Rules = str | Mapping[str, Rule] | RuleSet


@explanation()
def guided_backprop(apply_fn: Callable, params: Any, x: Any, target: Target = None) -> Any:
    """What in the input excites the explained number, through live units and for it only.

    The gradient, where every ReLU y = max(x, 0) passes g * 1[x > 0] * 1[g > 0] instead of
    g * 1[x > 0].

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such; integer leaves may stand beside floating ones.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.

    Returns:
      The shape of `x`, signed, in units of the explained output per unit of the input. Not a
      derivative of anything: it sharpens edges and depends little on `target` (Adebayo et al.
      2018). Costs a forward and a backward pass, like `saliency`.

    Raises:
      ValueError: `x` is no batch, or `target` names no output.
      TypeError: `apply_fn` is no hashable function, or `x` has no floating number.

    Example:
      >>> w = {"a": jnp.array([[1.0, 1.0]]), "b": jnp.array([[2.0], [-3.0]])}
      >>> net = lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"]
      >>> guided_backprop(net, w, jnp.ones((1, 1)), 0).tolist()  # the gradient is 2 - 3
      [[2.0]]

    Reference:
      Springenberg et al. 2014, arXiv:1412.6806, section 3.4. ReLU6 is treated likewise; activations
      that are no ReLU keep their own derivative (`rules.guided` takes a row for them).
    """
    return input_gradient(rewrite(apply_fn, relu.guided), params, x, target)


@explanation()
def deconvnet(apply_fn: Callable, params: Any, x: Any, target: Target = None) -> Any:
    """What in the input would excite the explained number, whatever was live in the forward pass.

    The gradient, where every ReLU passes max(g, 0) instead of g * 1[x > 0]. Max pooling gives to
    the place that won: Zeiler's unpooling by switches. Where all units of a window are dead that is
    its first place, as in JAX, PyTorch and Captum: half a window towards the start of each axis.
    `deconvnet(rewrite(apply_fn, rules.shared_ties), ...)` prefers no side: such places share.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such; integer leaves may stand beside floating ones.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.

    Returns:
      The shape of `x`, signed, in units of the explained output per unit of the input. Costs a
      forward and a backward pass. `jaxviz.feature_projection` starts from a feature map instead.

    Raises:
      ValueError: `x` is no batch, or `target` names no output.
      TypeError: `apply_fn` is no hashable function, or `x` has no floating number.

    Example:
      >>> w = {"a": jnp.array([[1.0, -1.0]]), "b": jnp.array([[2.0], [3.0]])}
      >>> net = lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"]
      >>> deconvnet(net, w, jnp.ones((1, 1)), 0).tolist()  # the second unit is dead, yet counts
      [[-1.0]]

    Reference:
      Zeiler and Fergus 2013, arXiv:1311.2901, section 2.1; as a pullback from an output:
      Simonyan et al. 2013, arXiv:1312.6034, section 4. ReLU6 is treated likewise.
    """
    return input_gradient(rewrite(apply_fn, relu.deconvnet), params, x, target)


@public()
def lrp(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    rules: Rules = "epsilon_plus",
) -> Any:
    """Hands the explained number down to the input, layer by layer (LRP).

    R = f_target(x) at the output; each layer shares the relevance R_j of its outputs among its
    inputs, R_i = sum_j (share of i in j) R_j, by the rule that the table gives it.

    What is explained is the function as it is computed. A derivative that the model puts in place
    of the function's own (`stop_gradient`, `custom_jvp`, `custom_vjp`: straight-through estimators,
    gradient reversal) plays no part here nor in `deep_lift`; gradients and what is made of them use
    it. What a comparison or an integer of the input chose (a mask) is a constant, as params are.

    Layer norm and its kin, however spelled: centred, the deviation held, scaled, shifted. Softmax:
    gradient times input; log-sum-exp: each term its part of the sum; the logarithm of a softmax, in
    any spelling, masked, over segments, of numbers picked or added up: the number less that (so it
    conserves, but for a constant's part of the sum); a product of activations: the same to each
    factor, or with `{"mul": rules.lrp.signal_takes_all()}` nothing to gates; a quotient: all to the
    numerator (`rules.composite` has the whole list).

    Relevance of a layer is that of the tail from there on: `a, carry = head(params, x)`, then
    `lrp(tail, (params, carry), a, target)`, with `head, tail = jaxviz.split(...)`.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched. Batch norm is folded into the layer before it while
        tracing; nothing in `params` changes.
      x: `[N, ...]`, floating, or a pytree of such; integer leaves may stand beside floating ones.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
        With a function g, relevance starts as outputs * dg / d outputs.
      rules: A composite's name: "epsilon" (everywhere), "epsilon_plus" (z+ in convolutions, epsilon
        in dense layers), "epsilon_alpha2_beta1", either with "_flat" (the first layer shares
        evenly), "excitation_backprop"; for transformers "attn_lrp" and "cp_lrp" (attention weights,
        gates and norms are constants). Or `rules.epsilon_gamma_box(low, high)`, or any `RuleSet`.
        Or a table laid over "epsilon": from a layer's name, "first" or a kind ("conv", "dense",
        "batch_norm", "add", ...) to one of `rules.lrp`; its row "default" is for operations in no
        other row, which are refused without it.

    Returns:
      The shape of `x`, signed, in units of the explained output. Sums over an example to the
      explained number less what biases and other constants took, what a softmax's gradient times
      input leaves out and what an epsilon damped (there is none unless given, so that inputs of any
      scale are shared alike): on a bias-free net of layers, activations, pools, norms without an
      epsilon and products that is nothing (1e-4 relative), on a trained MNIST net of 5 layers a few
      per cent for "epsilon_plus".
      A rule made with `bias=False` gives biases nothing. Costs a forward and a backward pass for
      epsilon, two to four for rules that split signs.

    Raises:
      NotImplementedError: An operation without a rule, named with the user's file and line; or
        outputs that depend on the input only through comparisons or integers.
      ValueError: `x` is no batch, `target` names no output, or `rules` names no composite.
      TypeError: `apply_fn` is no hashable function, or `x` has no floating number.

    Example:
      >>> w = {"a": jnp.array([[1.0, 1.0], [2.0, -1.0]]), "b": jnp.array([[1.0], [1.0]])}
      >>> net = lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"]
      >>> lrp(net, w, jnp.array([[1.0, 3.0]]), 0, rules="epsilon").round(4).tolist()
      [[1.0, 6.0]]

    Reference:
      Bach et al. 2015, doi:10.1371/journal.pone.0130140; composites: Kohlbrenner et al. 2020,
      arXiv:1910.09840, and Montavon et al. 2019, doi:10.1007/978-3-030-28954-6_10. Each rule names
      its own source and where peers depart from it.
    """
    return _lrp(apply_fn, params, x, target, rules=lrp_composites.resolve("lrp", rules))


def _relevance(apply_fn, params, x, target=None, *, rules):
    read = read_only(apply_fn, params, x, target)
    return _carried(read, rules, params, x, lambda o: start(o, target))


def _carried(apply_fn, rules, params, x, score):
    if not rules.functional:
        return input_gradient(rewrite(apply_fn, rules), params, x, score)
    return plain_gradient(rewrite(apply_fn, over_fast(rules)), params, x, score)


_relevance.__name__ = "lrp"  # the name that its errors begin with
_lrp = explanation("rules")(_relevance)


@public()
def concept_relevance(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layer: str,
    channel: int | jax.Array,
    rules: Rules = "epsilon_plus",
) -> Any:
    """The part of `lrp` that passes through one channel of a layer.

    The relevance of the layer is found, all but the channel set to zero, and the rest handed down.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such; integer leaves may stand beside floating ones.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`.
      channel: Index along the layer's axis of channels (`Layer.channel_axis`), or one for each
        example `[N]`. New channels do not recompile; `jax.vmap` over them gives all. One that is
        not there is refused, or gives NaN where it is traced.
      rules: As in `lrp`.

    Returns:
      The shape of `x`, signed, in units of the explained output. Over all channels they add up to
      `lrp` less what bypasses the layer.

    Raises:
      NotImplementedError: An operation without a rule; named with the user's file and line.
      ValueError: No such layer, or as in `lrp`.

    Example:
      >>> w = {"a": jnp.array([[1.0, 1.0], [2.0, -1.0]]), "b": jnp.array([[1.0], [1.0]])}
      >>> net = lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"]
      >>> options = dict(layer="relu_0", rules="epsilon")
      >>> x = jnp.array([[3.0, 1.0]])
      >>> concept_relevance(net, w, x, 0, channel=1, **options).round(4).tolist()
      [[3.0, -1.0]]

    Reference:
      Achtibat et al. 2023, arXiv:2206.03208, eq. 5. Paths around the layer carry nothing here, nor
      in zennit-crp 0.6.0 unless it is given `exclude_parallel=False`.
    """
    found = lrp_composites.resolve("concept_relevance", rules)
    checked_channel("concept_relevance", apply_fn, params, x, layer, channel)
    return _concept(apply_fn, params, x, target, layer=layer, channel=channel, rules=found)


def _concept_relevance(apply_fn, params, x, target=None, *, layer, channel, rules):
    head, a, relevance = relevance_at(apply_fn, params, x, target, layer, rules)
    axis = channel_axis("concept_relevance", apply_fn, params, x, layer)
    kept = through_channel(a, relevance, channel, axis)
    return _carried(head, rules, params, x, kept)


def relevance_at(
    apply_fn: Callable, params: Any, x: Any, target: Target, layer: str, rules: RuleSet
) -> tuple[Callable, jax.Array, jax.Array]:
    """What makes a layer, its value, and the relevance of that value; to be traced in a method."""
    head, tail = split_where_read(apply_fn, params, x, layer)
    a, carry = head(params, x)
    joined = Joined(tail)
    target = fixed_target(joined, params, (a, carry), target)
    read = read_only(joined, params, (a, carry), target)
    relevance, _ = _carried(read, rules, params, (a, carry), lambda o: start(o, target))
    return head, a, relevance


def through_channel(a: jax.Array, relevance: jax.Array, channel: Any, axis: int) -> Callable:
    """A score of what makes a layer whose gradient by it is the relevance of one channel."""
    here, present = is_channel(a, channel, axis)
    chosen = jnp.where(here, relevance, jnp.zeros_like(relevance)) * present
    return lambda outputs: (outputs[0] * chosen).reshape(a.shape[0], -1).sum(1)


def relevance_below(
    head: Callable, params: Any, x: Any, score: Callable, layer: str, rules: RuleSet
) -> jax.Array:
    """The relevance that a score of a head hands down to an earlier layer."""
    first, rest = split(head, params, x, layer)
    a, carry = first(params, x)
    relevance, _ = _carried(Joined(rest), rules, params, (a, carry), score)
    return relevance


_concept_relevance.__name__ = "concept_relevance"
_concept = explanation("layer", "rules")(_concept_relevance)


@dataclasses.dataclass(frozen=True)
class Joined:
    """A tail with what it carries as inputs too: paths around the layer have relevance."""

    tail: Callable
    is_tail = True

    def __call__(self, params, x):
        a, carry = x
        return self.tail((params, carry), a)


def start(outputs: Any, target: Target) -> jax.Array:
    """The explained numbers, with outputs times their gradient as their relevance.

    For a class that is its logit on the class and nothing elsewhere: nothing of a masked output,
    NaN where the explained number itself is infinite.
    """
    fixed = None if callable(target) else target
    score = lambda outputs, fixed: select(outputs, target if callable(target) else fixed)

    @jax.custom_jvp
    def explained(outputs, fixed):
        return score(outputs, fixed)

    @explained.defjvp
    def tangent(inputs, tangents):
        outputs, fixed = inputs

        def scaled(o, t):
            return contribution(o, t) if jnp.issubdtype(o.dtype, jnp.inexact) else t

        along = jax.tree.map(scaled, outputs, tangents[0])
        found, d = jax.jvp(lambda o: score(o, fixed), (outputs,), (along,))
        return found, d * (1 + 0 * found)

    return explained(outputs, fixed)
