"""Rules on trained networks against Captum and zennit: see real_nets.py and tests/reference."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from real_nets import CASES, PUBLISHED, STEP, TRAINED, differences, net, peers, sensitivity

import jaxviz as jv

DATA = "JAXVIZ_DATA" in os.environ

# A few here, all of them where there is time: `python tests/rules/real_nets.py` prints the rest.
FEW = {
    "mnist_a": ["captum_deep_lift", "zennit_epsilon_gamma_box"],
    "mnist_b": ["captum_guided_backprop", "captum_gamma_no_bias"],
    "mnist_c": ["captum_epsilon", "zennit_epsilon_alpha2_beta1_flat"],
    "cifar": ["captum_deconvnet", "zennit_epsilon_plus"],
    "resnet20": ["captum_deep_lift", "zennit_epsilon_plus_flat"],
    "squeezenet": ["captum_guided_backprop"],
}
if "JAXVIZ_SLOW" in os.environ:
    FEW = {name: [c for c in CASES if f"{name}/{c}" in peers()] for name in (*TRAINED, *PUBLISHED)}


@pytest.mark.parametrize(("name", "case"), [(n, c) for n, cases in FEW.items() for c in cases])
def test_ours_is_the_peers(name, case):  # Captum 0.9.0, zennit 0.5.1, both in double precision
    if name in PUBLISHED and not DATA:
        pytest.skip("$JAXVIZ_DATA is not set")
    maps, sums = differences(name, case, "float64")
    # Evenly shared through residual sums: see `flat`; half a unit in the last place moves it 3e-10.
    assert maps < (1e-9 if (name, case) == ("resnet20", "zennit_flat") else 1e-10)
    assert sums < 1e-8  # of numbers that cancel


@pytest.mark.skipif("JAXVIZ_SLOW" not in os.environ, reason="takes minutes")
@pytest.mark.parametrize(("name", "case"), [(n, c) for n, cases in FEW.items() for c in cases])
def test_float32_is_as_near_as_rounding_the_weights_lets_it(name, case):
    if name in PUBLISHED and not DATA:
        pytest.skip("$JAXVIZ_DATA is not set")
    maps, _ = differences(name, case, "float32")
    if maps >= 1e-5:  # the rule's conditioning, not our arithmetic
        assert maps < 2 * sensitivity(name, case, 6e-8)


@pytest.mark.skipif(not DATA, reason="$JAXVIZ_DATA is not set")
def test_captum_is_wrong_where_a_skip_is_an_identity_module():
    """LRP-0 is gradient times input on a ReLU net (Ancona et al. 2018, proposition 1).

    Ours is, and Captum's where the skip hands on its tensor. With an nn.Identity there, two hooks
    of Captum sit on one tensor and cancel, and its relevance is up to 80 times too large.
    """
    with jax.enable_x64(True):
        f, params, x = net("resnet20", "float64")
        target = jnp.asarray(peers()["resnet20/target"])
        relevance = CASES["captum_epsilon"]
        both = jax.jit(
            lambda x: [m(f, params, x, target) for m in (relevance, jv.input_x_gradient)]
        )
        ours, by_gradient = (np.asarray(out) for out in both(x))
    np.testing.assert_allclose(ours, by_gradient, rtol=0, atol=1e-12 * np.abs(ours).max())
    kept = ours[:, :: STEP["resnet20"], :: STEP["resnet20"]]
    plain, identity = (peers()[f"resnet20/captum_epsilon{s}"] for s in ("", "_identity"))
    np.testing.assert_allclose(kept, plain, rtol=0, atol=1e-10 * np.abs(plain).max())
    assert np.abs(identity).max() > 10 * np.abs(kept).max()


@pytest.mark.parametrize("name", [*TRAINED, *PUBLISHED])
def test_logits_are_the_peers(name):
    if name in PUBLISHED and not DATA:
        pytest.skip("$JAXVIZ_DATA is not set")
    f, params, x = net(name, "float32")
    out = jax.jit(f)(params, x)
    assert jnp.argmax(out, 1).tolist() == peers()[f"{name}/target"].tolist()
    np.testing.assert_allclose(out, peers()[f"{name}/logits"], rtol=1e-4, atol=1e-4)
