from jaxviz import (
    concepts as concepts,
    influence as influence,
    metrics as metrics,
    rules as rules,
)
from jaxviz.adapters.equinox import from_equinox as from_equinox
from jaxviz.adapters.haiku import from_haiku as from_haiku
from jaxviz.adapters.keras import from_keras as from_keras
from jaxviz.adapters.nnx import from_nnx as from_nnx
from jaxviz.attention.flow import (
    attention_rollout as attention_rollout,
    attention_x_gradient as attention_x_gradient,
)
from jaxviz.attention.formation import le_grad as le_grad
from jaxviz.attention.maps import attentions as attentions
from jaxviz.attention.recipro import recipro_cam as recipro_cam
from jaxviz.attention.relevance import attention_relevance as attention_relevance
from jaxviz.attention.transformed import token_tm as token_tm
from jaxviz.attention.zeroing import value_zeroing as value_zeroing
from jaxviz.attribution.ablation import feature_ablation as feature_ablation
from jaxviz.attribution.bottleneck import (
    Bottleneck as Bottleneck,
    information_bottleneck as information_bottleneck,
)
from jaxviz.attribution.cam import (
    cam as cam,
    grad_cam as grad_cam,
    grad_cam_pp as grad_cam_pp,
    guided_grad_cam as guided_grad_cam,
    hires_cam as hires_cam,
    layer_cam as layer_cam,
    shapley_cam as shapley_cam,
    xgrad_cam as xgrad_cam,
)
from jaxviz.attribution.cam_eigen import (
    eigen_cam as eigen_cam,
    eigen_grad_cam as eigen_grad_cam,
    kpca_cam as kpca_cam,
    seg_eigen_cam as seg_eigen_cam,
)
from jaxviz.attribution.cam_layers import fused_cam as fused_cam, refine_cam as refine_cam
from jaxviz.attribution.cam_perturb import (
    ablation_cam as ablation_cam,
    is_cam as is_cam,
    score_cam as score_cam,
    ss_cam as ss_cam,
)
from jaxviz.attribution.cam_variants import (
    elementwise_cam as elementwise_cam,
    fem as fem,
    finer_cam as finer_cam,
    random_cam as random_cam,
    smooth_grad_cam_pp as smooth_grad_cam_pp,
)
from jaxviz.attribution.conductance import (
    internal_influence as internal_influence,
    layer_conductance as layer_conductance,
    neuron_conductance as neuron_conductance,
)
from jaxviz.attribution.conservation import lrp_conservation as lrp_conservation
from jaxviz.attribution.dependence import (
    Dependence as Dependence,
    Importance as Importance,
    partial_dependence as partial_dependence,
    permutation_importance as permutation_importance,
)
from jaxviz.attribution.difference import (
    deep_lift as deep_lift,
    deep_lift_shap as deep_lift_shap,
)
from jaxviz.attribution.full_grad import full_grad as full_grad, full_gradient as full_gradient
from jaxviz.attribution.gradient import (
    gradient as gradient,
    input_x_gradient as input_x_gradient,
    saliency as saliency,
)
from jaxviz.attribution.integrated_hessians import integrated_hessians as integrated_hessians
from jaxviz.attribution.interactions import (
    Interactions as Interactions,
    occlusion_interactions as occlusion_interactions,
    shapley_interactions as shapley_interactions,
)
from jaxviz.attribution.layer import at_layer as at_layer, at_neuron as at_neuron
from jaxviz.attribution.learned_mask import learned_mask as learned_mask
from jaxviz.attribution.linear_reading import dave as dave
from jaxviz.attribution.mutagenesis import in_silico_mutagenesis as in_silico_mutagenesis
from jaxviz.attribution.occlusion import (
    occlusion as occlusion,
    occlusion_scores as occlusion_scores,
)
from jaxviz.attribution.owen import owen_values as owen_values
from jaxviz.attribution.path import (
    completeness_gap as completeness_gap,
    expected_gradients as expected_gradients,
    integrated_gradients as integrated_gradients,
)
from jaxviz.attribution.path_along import (
    idgi as idgi,
    path_integrated_gradients as path_integrated_gradients,
)
from jaxviz.attribution.path_bent import (
    blur_integrated_gradients as blur_integrated_gradients,
    guided_integrated_gradients as guided_integrated_gradients,
)
from jaxviz.attribution.permutation import feature_permutation as feature_permutation
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
from jaxviz.attribution.rise import rise as rise
from jaxviz.attribution.sensitivity import hsic as hsic, sobol as sobol
from jaxviz.attribution.shapley import (
    shapley_sampling as shapley_sampling,
    shapley_values as shapley_values,
)
from jaxviz.attribution.smooth import (
    augmented as augmented,
    low_passed as low_passed,
    smooth_grad as smooth_grad,
    square_grad as square_grad,
    var_grad as var_grad,
)
from jaxviz.attribution.surrogate import kernel_shap as kernel_shap, lime as lime
from jaxviz.attribution.xrai import xrai as xrai
from jaxviz.catalogue import methods as methods
from jaxviz.engine.compiled import keep_compiled as keep_compiled
from jaxviz.engine.layout import channels_first as channels_first
from jaxviz.engine.memory import keep_memory as keep_memory
from jaxviz.explanation import Explanation as Explanation, explain as explain
from jaxviz.features import (
    objectives as objectives,
    parametrizations as parametrizations,
    regularizers as regularizers,
    transforms as transforms,
)
from jaxviz.features.activation_grid import (
    ActivationGrid as ActivationGrid,
    activation_grid as activation_grid,
)
from jaxviz.features.dreaming import deep_dream as deep_dream
from jaxviz.features.examples import top_examples as top_examples
from jaxviz.features.filters import filters as filters
from jaxviz.features.inversion import (
    caricature as caricature,
    invert as invert,
    restyle as restyle,
)
from jaxviz.features.maximization import maximize_activation as maximize_activation
from jaxviz.features.natural import accentuate as accentuate, maco as maco
from jaxviz.graph.layer_graph import LayerGraph as LayerGraph, layer_graph as layer_graph
from jaxviz.graph.layers import layers as layers, summary as summary
from jaxviz.graph.outputs import log_softmax as log_softmax, softmax as softmax
from jaxviz.graph.receptive import receptive_field as receptive_field
from jaxviz.graph.rewrite import RuleSet as RuleSet, rewrite as rewrite
from jaxviz.graph.rows import Layer as Layer
from jaxviz.graph.split import activations as activations, split as split
from jaxviz.interventions.patched import patched as patched, steered as steered
from jaxviz.interventions.patching import (
    Patching as Patching,
    activation_patching as activation_patching,
    attribution_patching as attribution_patching,
    layer_ablation as layer_ablation,
)
from jaxviz.interventions.paths import path_patching as path_patching
from jaxviz.parts import targets as targets
from jaxviz.parts.feature_maps import default_layer as default_layer
from jaxviz.parts.imputation import inpainted as inpainted
from jaxviz.parts.regions import (
    blurred as blurred,
    grid_segments as grid_segments,
    slic_segments as slic_segments,
)
from jaxviz.parts.targets import continuations as continuations
from jaxviz.report import report as report
from jaxviz.sweep import (
    Evaluation as Evaluation,
    LrpSearch as LrpSearch,
    Sweep as Sweep,
    evaluate as evaluate,
    lrp_search as lrp_search,
    open_sweep as open_sweep,
    sweep as sweep,
)

__version__: str
