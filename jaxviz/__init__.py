"""jaxviz: pure functions that explain what a JAX network looks at and what it has learned."""

from jaxviz import rules as rules
from jaxviz.attribution.difference import (
    deep_lift as deep_lift,
    deep_lift_shap as deep_lift_shap,
)
from jaxviz.attribution.gradient import (
    gradient as gradient,
    input_x_gradient as input_x_gradient,
    saliency as saliency,
)
from jaxviz.attribution.projection import (
    feature_projection as feature_projection,
    top_projections as top_projections,
)
from jaxviz.attribution.propagation import (
    concept_relevance as concept_relevance,
    deconvnet as deconvnet,
    guided_backprop as guided_backprop,
    lrp as lrp,
)
from jaxviz.graph.layers import Layer as Layer, layers as layers, summary as summary
from jaxviz.graph.nnx import from_nnx as from_nnx
from jaxviz.graph.outputs import log_softmax as log_softmax, softmax as softmax
from jaxviz.graph.rewrite import RuleSet as RuleSet, rewrite as rewrite
from jaxviz.graph.split import activations as activations, split as split

__version__ = "0.1.0.dev0"
