"""jaxviz: pure functions that explain what a JAX network looks at and what it has learned."""

from jaxviz.attribution.gradient import (
    gradient as gradient,
    input_x_gradient as input_x_gradient,
    saliency as saliency,
)
from jaxviz.graph.layers import Layer as Layer, layers as layers, summary as summary
from jaxviz.graph.nnx import from_nnx as from_nnx
from jaxviz.graph.rewrite import RuleSet as RuleSet, rewrite as rewrite
from jaxviz.graph.split import activations as activations, split as split

__version__ = "0.1.0.dev0"
