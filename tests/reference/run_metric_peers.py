"""Writes metric_peers.npz: what Quantus gives for a small net, its gradients, and drawn maps.

Run where torch and quantus (0.6.0) are. All arrays are channels-first, in double precision; maps,
masks, neighbours and redrawn weights are kept, so that both libraries have the same.
"""

import pathlib

import numpy as np
import quantus
import torch

FOLDER = pathlib.Path(__file__).parent
QUIET = {"disable_warnings": True, "abs": False, "normalise": False}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(1, 3, 3), torch.nn.Linear(108, 2)

    def forward(self, x):
        return self.fc(torch.flatten(torch.tanh(self.conv(x)), 1))


def gradients(model, inputs, targets, **_):
    x = torch.tensor(inputs, dtype=torch.float64, requires_grad=True)
    scores = model(x)[torch.arange(len(x)), torch.as_tensor(targets)]
    return torch.autograd.grad(scores.sum(), x)[0].numpy()


def main():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    rng = np.random.default_rng(0)
    net = Net().eval()
    x, y = rng.normal(size=(4, 1, 8, 8)), np.array([0, 1, 1, 0])
    maps = rng.normal(size=(4, 1, 8, 8))
    masks = rng.random((4, 1, 8, 8)) < 0.3
    noise = rng.uniform(-0.2, 0.2, (6, 4, 64))
    weights = {k: v.detach().numpy() for k, v in net.state_dict().items()}
    out = {"x": x, "y": y, "maps": maps, "masks": masks, "noise": noise}
    out |= {f"weights.{k}": v.copy() for k, v in weights.items()}

    def of(metric, a=None, **more):
        given = {"x_batch": x.copy(), "y_batch": y, "channel_first": True}
        given |= {"a_batch": None if a is None else a.copy(), "device": "cpu"}
        return np.asarray(metric(model=net, **given, **more), float)

    def masked(metric, a=maps):
        return of(metric, a, s_batch=masks.astype(int))

    positive = np.maximum(maps, 0)
    out["pointing_game"] = masked(quantus.PointingGame(**QUIET))
    out["relevance_mass"] = masked(quantus.RelevanceMassAccuracy(**QUIET), positive)
    out["relevance_rank"] = masked(quantus.RelevanceRankAccuracy(**QUIET))
    out["top_k_intersection"] = masked(quantus.TopKIntersection(k=10, **QUIET))
    out["auc"] = masked(quantus.AUC(**QUIET))
    local = quantus.AttributionLocalisation(positive_attributions=True, **QUIET)
    out["attribution_localisation"] = masked(local)
    out["focus"] = of(quantus.Focus(**QUIET), maps, custom_batch=[(1, 0, 0, 1)] * 4)
    positive = QUIET | {"abs": True}
    out["sparseness"] = of(quantus.Sparseness(**positive), maps)
    out["complexity"] = of(quantus.Complexity(**positive), maps)
    largest = positive | {"normalise": True}
    out["effective_complexity"] = of(quantus.EffectiveComplexity(eps=0.3, **largest), maps)

    def neighbours():
        number = iter(range(1000))

        def perturb(arr, indices=None, **_):
            return arr + noise[next(number) % len(noise)]

        return perturb

    explained = {"explain_func": gradients}
    sampled = {"perturb_func": neighbours(), "return_nan_when_prediction_changes": False}
    many = {"nr_samples": len(noise), **sampled}
    own = gradients(net, x, y)
    for name, metric in {
        "max_sensitivity": quantus.MaxSensitivity,
        "avg_sensitivity": quantus.AvgSensitivity,
        "local_lipschitz": quantus.LocalLipschitzEstimate,
        "relative_input_stability": quantus.RelativeInputStability,
        "relative_output_stability": quantus.RelativeOutputStability,
    }.items():
        options = many | {"perturb_func": neighbours()}
        out[name] = of(metric(**options, **QUIET), own, **explained)
    options = many | {"perturb_func": neighbours(), "layer_names": ["conv"]}
    stable = quantus.RelativeRepresentationStability(**options, **QUIET)
    out["relative_representation_stability"] = of(stable, own, **explained)
    options = many | {"perturb_func": neighbours(), "return_nan_when_prediction_changes": True}
    strict = quantus.RelativeInputStability(**options, **QUIET)
    out["relative_input_stability_strict"] = of(strict, own, **explained)
    smooth = quantus.Continuity(nr_steps=8, **QUIET)
    out["continuity"] = of(smooth, own, **explained)
    unused = quantus.NonSensitivity(eps=1e-5, **QUIET | {"abs": True})
    blind = own.copy()
    blind[:, :, :3] = 0
    out["non_sensitivity"] = of(unused, blind)
    other = quantus.RandomLogit(
        num_classes=2, similarity_func=quantus.similarity_func.correlation_spearman, **QUIET
    )
    out["random_logit"] = of(other, own, **explained)
    other = quantus.RandomLogit(num_classes=2, **QUIET)
    out["random_logit_ssim"] = of(other, own, **explained)
    for order in ("top_down", "bottom_up", "independent"):
        cascade = quantus.MPRT(layer_order=order, **QUIET | {"abs": True})
        given = {"x_batch": x.copy(), "y_batch": y, "a_batch": None, "channel_first": True}
        scores = cascade(model=net, device="cpu", **given, **explained)
        out[f"parameter_randomization.{order}"] = np.array(list(scores.values())).T
        out[f"layers.{order}"] = np.array(list(scores))
    whole = quantus.EfficientMPRT(**QUIET | {"abs": True})
    out["efficient"] = of(whole, None, **explained)
    wrapped = quantus.helpers.utils.get_wrapped_model(net, True, False, "cpu")
    *_, (_, redrawn) = wrapped.get_random_layer_generator("top_down", 42)
    out |= {f"redrawn.{k}": v.detach().numpy().copy() for k, v in redrawn.state_dict().items()}
    np.savez_compressed(FOLDER / "metric_peers.npz", **out)
    for k, v in out.items():
        print(k, np.asarray(v).shape, np.asarray(v).ravel()[:4])


if __name__ == "__main__":
    main()
