"""Rule sets for `rewrite`: other pullbacks, or the same ones computed faster."""

from jaxviz.rules.relu import (
    deconvnet as deconvnet,
    deconvnet_rule as deconvnet_rule,
    guided as guided,
    guided_rule as guided_rule,
    redirected_relu as redirected_relu,
    softplus_surrogate as softplus_surrogate,
)
