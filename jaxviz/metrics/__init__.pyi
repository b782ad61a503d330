from jaxviz.metrics.agreement import (
    Agreement as Agreement,
    agreement as agreement,
)
from jaxviz.metrics.axioms import (
    input_invariance as input_invariance,
    non_sensitivity as non_sensitivity,
)
from jaxviz.metrics.complexity import (
    complexity as complexity,
    effective_complexity as effective_complexity,
    sparseness as sparseness,
)
from jaxviz.metrics.confidence import (
    average_drop as average_drop,
    increase_in_confidence as increase_in_confidence,
)
from jaxviz.metrics.continuity import (
    consistency as consistency,
    continuity as continuity,
)
from jaxviz.metrics.curves import (
    Curve as Curve,
    Gain as Gain,
    deletion as deletion,
    insertion as insertion,
    pixel_flipping as pixel_flipping,
    srg as srg,
)
from jaxviz.metrics.infidelities import (
    gaussian_noise as gaussian_noise,
    infidelity as infidelity,
    square_removal as square_removal,
)
from jaxviz.metrics.information import (
    InformationCurve as InformationCurve,
    pic as pic,
)
from jaxviz.metrics.localization import (
    attribution_localisation as attribution_localisation,
    auc as auc,
    boxes_to_masks as boxes_to_masks,
    energy_based_pointing as energy_based_pointing,
    focus as focus,
    pointing_game as pointing_game,
    relevance_mass as relevance_mass,
    relevance_rank as relevance_rank,
    top_k_intersection as top_k_intersection,
)
from jaxviz.metrics.monotonic import (
    Monotonicity as Monotonicity,
    monotonicity as monotonicity,
    monotonicity_correlation as monotonicity_correlation,
)
from jaxviz.metrics.mosaic import (
    Mosaics as Mosaics,
    grid_pointing_game as grid_pointing_game,
    mosaics as mosaics,
)
from jaxviz.metrics.patches import (
    irof as irof,
    region_perturbation as region_perturbation,
    selectivity as selectivity,
)
from jaxviz.metrics.randomization import (
    Randomization as Randomization,
    efficient_parameter_randomization as efficient_parameter_randomization,
    parameter_randomization as parameter_randomization,
    random_logit as random_logit,
    randomized_layers as randomized_layers,
    smooth_parameter_randomization as smooth_parameter_randomization,
)
from jaxviz.metrics.remove_and_debias import (
    Road as Road,
    road as road,
)
from jaxviz.metrics.robustness import (
    avg_sensitivity as avg_sensitivity,
    local_lipschitz as local_lipschitz,
    max_sensitivity as max_sensitivity,
    worst_case_sensitivity as worst_case_sensitivity,
)
from jaxviz.metrics.similarity import (
    cosine as cosine,
    pearson as pearson,
    spearman as spearman,
    ssim as ssim,
    top_k_overlap as top_k_overlap,
)
from jaxviz.metrics.stability import (
    relative_input_stability as relative_input_stability,
    relative_output_stability as relative_output_stability,
    relative_representation_stability as relative_representation_stability,
)
from jaxviz.metrics.subsets import (
    Correlations as Correlations,
    faithfulness_correlation as faithfulness_correlation,
    faithfulness_estimate as faithfulness_estimate,
    mu_fidelity as mu_fidelity,
    sensitivity_n as sensitivity_n,
)
from jaxviz.metrics.sufficient import (
    sufficiency as sufficiency,
)
from jaxviz.parts.imputation import (
    noisy_linear_imputation as noisy_linear_imputation,
)
