"""A model with its outputs turned into probabilities, for those who want these explained."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.calls.options import described
from jaxviz.calls.public import public


@dataclasses.dataclass(frozen=True)
class OnOutputs:
    """`(params, x) -> function(apply_fn(params, x))`; equal for equal arguments."""

    apply_fn: Callable
    function: Callable

    def __call__(self, params: Any, x: Any) -> Any:
        return self.function(self.apply_fn(params, x))


def _softmax(outputs: Any) -> jax.Array:
    return jax.nn.softmax(_logits("softmax", outputs))


def _log_softmax(outputs: Any) -> jax.Array:
    return jax.nn.log_softmax(_logits("log_softmax", outputs))


def _logits(name, outputs):
    floating = jnp.issubdtype(getattr(outputs, "dtype", bool), jnp.floating)
    if not floating or len(getattr(outputs, "shape", ())) < 2:  # one axis is that of the examples
        raise ValueError(
            f"{name}: apply_fn must return logits [N, K], or [N, ..., K]; got {described(outputs)}."
        )
    return outputs


@public()
def softmax(apply_fn: Callable) -> Callable:
    """The model with probabilities in place of logits.

    Explaining a probability is not explaining its logit: where the model is sure, the softmax is
    flat and its gradient nearly nothing. Nothing in jaxviz takes a softmax unasked.

    Args:
      apply_fn: `(params, x) -> logits [N, K]`.

    Returns:
      `(params, x) -> probabilities [N, K]`, equal (`==`, `hash`) for equal models. Its outputs sum
      to 1 along the last axis; outputs without an axis of classes are a ValueError.

    Example:
      >>> import jax.numpy as jnp
      >>> softmax(lambda params, x: x)(None, jnp.zeros((1, 2))).tolist()
      [[0.5, 0.5]]
    """
    return OnOutputs(apply_fn, _softmax)


@public()
def log_softmax(apply_fn: Callable) -> Callable:
    """The model with log-probabilities in place of logits.

    Args:
      apply_fn: `(params, x) -> logits [N, K]`.

    Returns:
      `(params, x) -> log-probabilities [N, K]`, in nats, equal (`==`, `hash`) for equal models.

    Example:
      >>> import jax.numpy as jnp
      >>> log_softmax(lambda params, x: x)(None, jnp.zeros((1, 1))).tolist()
      [[0.0]]
    """
    return OnOutputs(apply_fn, _log_softmax)
