"""Losses of sparse autoencoders by SAELens and overcomplete, on weights drawn here.

Made with sae-lens 6.20.1 and Overcomplete 0.3.0 (torch 2.13), which need not all be installed: what
their losses do not touch (data sets, logging) is replaced by stand-ins. Run it in that environment:
`python tests/reference/run_autoencoder_peers.py`; it writes autoencoder_peers.npz beside it.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import pathlib
import sys
import types
from unittest import mock

import numpy as np
import torch
from torch import nn

REAL = ("torch", "numpy", "sae_lens", "overcomplete", "jaxtyping", "einops", "typeguard")


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules that are not installed, as mocks; asked last."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REAL:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = mock.MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module):
        pass


class HookPoint(nn.Module):
    """TransformerLens' hook without hooks."""

    _forward_hooks_of = ()

    def forward(self, x):
        return x


def stand_in():
    for name in ("sae_lens", "overcomplete"):  # without what their own __init__ import
        bare = types.ModuleType(name)
        bare.__path__ = importlib.util.find_spec(name).submodule_search_locations
        bare.__version__, bare.logger = "", mock.MagicMock()
        sys.modules[name] = bare
    sys.meta_path.append(StandIns())
    hooks = mock.MagicMock()
    hooks.HookPoint = HookPoint
    hooks.HookedRootModule = type("HookedRootModule", (nn.Module,), {"setup": lambda self: None})
    sys.modules["transformer_lens"] = mock.MagicMock(hook_points=hooks)
    sys.modules["transformer_lens.hook_points"] = hooks


B, C, K, KEEP = 12, 8, 16, 3


def drawn():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return {
        **{"a": draw(B, C), "decoder": draw(K, C), "encoder": draw(C, K)},
        **{"encoder_bias": 0.3 * draw(K), "bias": 0.3 * draw(C)},
        **{"magnitude": 0.3 * draw(K), "magnitude_bias": 0.3 * draw(K)},
        "log_threshold": 0.3 * draw(K) - 1,
        **{"dead": rng.random(K) < 0.4, "points": draw(20, C), "mixture": draw(K, 20)},
        "residue": draw(K, C),
    }


def sae_lens(given):
    from sae_lens.saes import (
        batchtopk_sae,
        gated_sae,
        jumprelu_sae,
        matryoshka_batchtopk_sae as matryoshka,
        standard_sae,
        topk_sae,
    )
    from sae_lens.saes.sae import TrainStepInput

    sizes = {"d_in": C, "d_sae": K}
    made = {
        "top_k": topk_sae.TopKTrainingSAE(topk_sae.TopKTrainingSAEConfig(**sizes, k=KEEP)),
        "batch_top_k": batchtopk_sae.BatchTopKTrainingSAE(
            batchtopk_sae.BatchTopKTrainingSAEConfig(**sizes, k=KEEP)
        ),
        "matryoshka": matryoshka.MatryoshkaBatchTopKTrainingSAE(
            matryoshka.MatryoshkaBatchTopKTrainingSAEConfig(
                **sizes, k=KEEP, matryoshka_widths=[4, 8, K]
            )
        ),
        "standard": standard_sae.StandardTrainingSAE(
            standard_sae.StandardTrainingSAEConfig(**sizes)
        ),
        "gated": gated_sae.GatedTrainingSAE(gated_sae.GatedTrainingSAEConfig(**sizes)),
        "jump_relu": jumprelu_sae.JumpReLUTrainingSAE(
            jumprelu_sae.JumpReLUTrainingSAEConfig(
                **sizes, pre_act_loss_coefficient=0.2, jumprelu_bandwidth=0.5
            )
        ),
    }
    names = {"encoder": "W_enc", "decoder": "W_dec", "bias": "b_dec"}
    found = {}
    for kind, model in made.items():
        own = dict(names, encoder_bias="b_gate" if kind == "gated" else "b_enc")
        if kind == "gated":
            own |= {"magnitude": "r_mag", "magnitude_bias": "b_mag"}
        if kind == "jump_relu":
            own["log_threshold"] = "log_threshold"
        for ours, theirs in own.items():
            getattr(model, theirs).data = torch.tensor(given[ours])
        step = TrainStepInput(
            sae_in=torch.tensor(given["a"]),
            coefficients={"l1": 0.7, "l0": 0.7},
            dead_neuron_mask=torch.tensor(given["dead"]),
            n_training_steps=0,
        )
        out = model.training_forward_pass(step)
        out.loss.backward()
        found[f"sae_lens/{kind}"] = out.loss.item()
        found[f"sae_lens/{kind}/codes"] = out.feature_acts.detach().numpy()
        for ours, theirs in own.items():
            found[f"sae_lens/{kind}/{ours}"] = getattr(model, theirs).grad.numpy()
    return found


def overcomplete(given):
    from overcomplete.sae.archetypal_dictionary import RelaxedArchetypalDictionary
    from overcomplete.sae.losses import mse_l1, top_k_auxiliary_loss

    a = torch.tensor(given["a"])
    pre = a @ torch.tensor(given["encoder"]) + torch.tensor(given["encoder_bias"])
    positive = pre.relu()
    best = positive.topk(KEEP, -1)
    codes = torch.zeros_like(pre).scatter(-1, best.indices, best.values)
    atoms = RelaxedArchetypalDictionary(C, K, torch.tensor(given["points"]), delta=1.0)
    atoms.W.data, atoms.Relax.data = (torch.tensor(given[n]) for n in ("mixture", "residue"))
    atoms = atoms.get_dictionary().detach()
    unit = torch.tensor(given["decoder"])
    unit = unit / unit.norm(dim=1, keepdim=True)
    return {
        "overcomplete/archetypal": top_k_auxiliary_loss(a, codes @ atoms, pre, codes, atoms).item(),
        "overcomplete/archetypal/atoms": atoms.numpy(),
        "overcomplete/standard": mse_l1(
            a, positive @ unit, pre, positive, unit, penalty=0.7
        ).item(),
    }


if __name__ == "__main__":
    stand_in()
    given = drawn()
    arrays = {**given, **sae_lens(given), **overcomplete(given)}
    np.savez_compressed(pathlib.Path(__file__).with_name("autoencoder_peers.npz"), **arrays)
    print({k: v for k, v in arrays.items() if isinstance(v, float)})
