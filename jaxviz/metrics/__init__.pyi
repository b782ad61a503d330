from jaxviz.metrics.confidence import (
    average_drop as average_drop,
    increase_in_confidence as increase_in_confidence,
)
from jaxviz.metrics.curves import (
    Curve as Curve,
    Gain as Gain,
    deletion as deletion,
    insertion as insertion,
    pixel_flipping as pixel_flipping,
    srg as srg,
)
from jaxviz.metrics.imputation import noisy_linear_imputation as noisy_linear_imputation
from jaxviz.metrics.infidelities import (
    gaussian_noise as gaussian_noise,
    infidelity as infidelity,
    square_removal as square_removal,
)
from jaxviz.metrics.information import InformationCurve as InformationCurve, pic as pic
from jaxviz.metrics.monotonic import (
    Monotonicity as Monotonicity,
    monotonicity as monotonicity,
    monotonicity_correlation as monotonicity_correlation,
)
from jaxviz.metrics.patches import (
    irof as irof,
    region_perturbation as region_perturbation,
    selectivity as selectivity,
)
from jaxviz.metrics.remove_and_debias import Road as Road, road as road
from jaxviz.metrics.subsets import (
    Correlations as Correlations,
    faithfulness_correlation as faithfulness_correlation,
    faithfulness_estimate as faithfulness_estimate,
    mu_fidelity as mu_fidelity,
    sensitivity_n as sensitivity_n,
)
from jaxviz.metrics.sufficient import sufficiency as sufficiency
