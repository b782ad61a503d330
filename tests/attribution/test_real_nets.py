"""Gradient, path and CAM methods on trained networks agree with Captum and pytorch-grad-cam."""

import pytest
import real_gradients

# The peer's path points are float32 even where all else is float64; XGrad-CAM adds 1e-7 to sums.
LOOSE = ("ig_", "internal", "layer_conductance", "pgc_xgradcam")
ON_SMALL = ["ig_gausslegendre", "smoothgrad", "guided_gradcam", "layer_conductance"]
PAIRS = [
    *(("mnist_c", case) for case in ON_SMALL),
    *(("cifar", case) for case in ("ig_trapezoid", "gradient_shap", "pgc_xgradcam")),
    *(("resnet20", case) for case in ("ig_middle", "layer_gradcam", "pgc_layercam")),
    *(("squeezenet", case) for case in ("gradient", "layer_gradcam")),
]


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_agrees_with_the_peer_in_double_precision(name, case):
    if name in real_gradients.real_nets.PUBLISHED and not real_gradients.real_nets.WEIGHTS.is_dir():
        pytest.skip("needs $JAXVIZ_DATA")
    tolerance = 1e-5 if case.startswith(LOOSE) else 1e-9
    assert real_gradients.difference(name, case, "float64") < tolerance
