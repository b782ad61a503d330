"""The metrics by name: what each is about, and whether more or less of it is better.

Nothing is imported for the names: a metric is, when it is asked for.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

HIGHER, LOWER = "higher", "lower"


class Metric(NamedTuple):
    """A number of an explanation that `evaluate` can rank methods by.

    Attributes:
      name: The public function's.
      family: "faithfulness", "localisation", "robustness", "complexity", "axioms" or
        "randomisation".
      better: "higher" or "lower".
      needs: What it cannot do without beside a model and images: "mask", "layer", "" for none.
    """

    name: str
    family: str
    better: str
    needs: str = ""

    def better_with(self, options: Mapping[str, Any]) -> str:
        """Which is better with these options: what goes last ought to matter least."""
        if options.get("order") != "least_first":
            return self.better
        return LOWER if self.better == HIGHER else HIGHER


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("deletion", "faithfulness", LOWER),
        Metric("insertion", "faithfulness", HIGHER),
        Metric("pixel_flipping", "faithfulness", LOWER),
        Metric("region_perturbation", "faithfulness", HIGHER),
        Metric("selectivity", "faithfulness", LOWER),
        Metric("irof", "faithfulness", HIGHER),
        Metric("srg", "faithfulness", HIGHER),
        Metric("sensitivity_n", "faithfulness", HIGHER),
        Metric("faithfulness_correlation", "faithfulness", HIGHER),
        Metric("faithfulness_estimate", "faithfulness", HIGHER),
        Metric("mu_fidelity", "faithfulness", HIGHER),
        Metric("monotonicity", "faithfulness", HIGHER),
        Metric("monotonicity_correlation", "faithfulness", HIGHER),
        Metric("infidelity", "faithfulness", LOWER),
        Metric("road", "faithfulness", LOWER),
        Metric("average_drop", "faithfulness", LOWER),
        Metric("increase_in_confidence", "faithfulness", HIGHER),
        Metric("pic", "faithfulness", HIGHER),
        Metric("sufficiency", "faithfulness", HIGHER),
        Metric("parameter_randomization", "randomisation", LOWER),
        Metric("smooth_parameter_randomization", "randomisation", LOWER),
        Metric("efficient_parameter_randomization", "randomisation", HIGHER),
        Metric("random_logit", "randomisation", LOWER),
        Metric("pointing_game", "localisation", HIGHER, "mask"),
        Metric("relevance_mass", "localisation", HIGHER, "mask"),
        Metric("relevance_rank", "localisation", HIGHER, "mask"),
        Metric("top_k_intersection", "localisation", HIGHER, "mask"),
        Metric("auc", "localisation", HIGHER, "mask"),
        Metric("attribution_localisation", "localisation", HIGHER, "mask"),
        Metric("energy_based_pointing", "localisation", HIGHER, "mask"),
        Metric("focus", "localisation", HIGHER, "mask"),
        Metric("grid_pointing_game", "localisation", HIGHER),
        Metric("max_sensitivity", "robustness", LOWER),
        Metric("avg_sensitivity", "robustness", LOWER),
        Metric("worst_case_sensitivity", "robustness", LOWER),
        Metric("local_lipschitz", "robustness", LOWER),
        Metric("relative_input_stability", "robustness", LOWER),
        Metric("relative_output_stability", "robustness", LOWER),
        Metric("relative_representation_stability", "robustness", LOWER, "layer"),
        Metric("continuity", "robustness", LOWER),
        Metric("consistency", "robustness", HIGHER),
        Metric("sparseness", "complexity", HIGHER),
        Metric("complexity", "complexity", LOWER),
        Metric("effective_complexity", "complexity", LOWER),
        Metric("non_sensitivity", "axioms", LOWER),
        Metric("input_invariance", "axioms", LOWER),
    )
}
