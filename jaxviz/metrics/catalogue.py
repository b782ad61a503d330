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
    )
}
