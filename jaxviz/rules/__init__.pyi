from jaxviz.rules import lrp as lrp
from jaxviz.rules.constants import constants as constants
from jaxviz.rules.lrp_composites import (
    attn_lrp as attn_lrp,
    composite as composite,
    cp_lrp as cp_lrp,
    epsilon_alpha2_beta1 as epsilon_alpha2_beta1,
    epsilon_gamma_box as epsilon_gamma_box,
    epsilon_plus as epsilon_plus,
    excitation_backprop as excitation_backprop,
    with_flat as with_flat,
)
from jaxviz.rules.relu import (
    deconvnet as deconvnet,
    deconvnet_rule as deconvnet_rule,
    guided as guided,
    guided_rule as guided_rule,
    redirected_relu as redirected_relu,
    softplus_surrogate as softplus_surrogate,
)
from jaxviz.rules.ties import shared_ties as shared_ties
