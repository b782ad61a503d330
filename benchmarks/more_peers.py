"""The peer's calls of more_methods.py; what a row needs (torch-cam, shap, shapiq, saliency) is
imported when it is run, so that a row without it says so and others are timed."""

import itertools
from unittest import mock

import numpy as np
import torch
from captum import attr
from trees import halves


def methods(net, layer, x, target, options, copies, raw, pooled):
    """Calls of every further method; `raw` gives pytorch-grad-cam's maps as they are, `pooled` the
    net for DeepLIFT."""
    module, count = net.get_submodule(layer), len(x)
    zeros, steps = torch.zeros_like(x), options["steps"]
    cells = torch.tensor(options["segments"], device=x.device)[None, None]
    labels = [int(t) for t in target]
    path = {"n_steps": steps, "internal_batch_size": copies and copies * count}
    path |= {"attribute_to_layer_input": False}

    @torch.no_grad()
    def without_graph(call, *arguments, **settings):
        return call(*arguments, **settings)

    def grad_cam(name):
        import pytorch_grad_cam

        method = getattr(pytorch_grad_cam, name)
        return raw(net, module, x, target, method, grad=True)

    def torch_cam(name, **settings):
        from torchcam import methods as torchcam

        extract = getattr(torchcam, name)(net, layer, input_shape=tuple(x.shape[1:]), **settings)
        with extract:
            return extract(labels, net(x), normalized=False)[0]

    def bent(name, each):
        """PAIR's: one image after another, channels last, in NumPy."""
        import saliency.core as saliency

        quantile = np.quantile  # by the name that NumPy 2 has for what saliency 0.2.1 asks for
        older = lambda a, q, interpolation: quantile(a, q, method=interpolation)
        explainer, out = getattr(saliency, name)(), []
        for image, label in zip(x, labels, strict=True):

            def gradients(images, call_model_args=None, expected_keys=None, label=label):
                here = torch.tensor(np.moveaxis(np.asarray(images), -1, 1), dtype=x.dtype)
                here.requires_grad_(True)
                (found,) = torch.autograd.grad(net(here)[:, label].sum(), here)
                found = np.moveaxis(found.numpy(), 1, -1)
                return {saliency.INPUT_OUTPUT_GRADIENTS: found}

            with mock.patch.object(np, "quantile", older):
                out.append(explainer.GetMask(image.movedim(0, -1).numpy(), gradients, **each))
        return np.stack(out)

    def game(n):
        """Of coalitions `[M, G]` the scores of example n, the rest of it hidden."""
        flat = cells[0, 0].numpy()

        @torch.no_grad()
        def scores(kept):
            masks = torch.tensor(np.asarray(kept)[:, flat][:, None], dtype=x.dtype)
            return net(x[n : n + 1] * masks)[:, labels[n]].numpy()

        return scores

    def owen():
        import shap

        size = int(cells.max()) + 1
        nodes, inside = halves(size), [1] * size
        for a, b in nodes:
            inside.append(inside[a] + inside[b])
        rows = [[a, b, level, inside[size + level]] for level, (a, b) in enumerate(nodes)]
        clustering = np.array(rows, float)
        clustering[:, 2] += 1
        masker = shap.maskers.Partition(np.zeros((1, size)), clustering=clustering)
        out = []
        for n in range(count):
            explainer = shap.PartitionExplainer(game(n), masker)
            most = {"max_evals": options["budget"], "batch_size": copies, "silent": True}
            out.append(explainer(np.ones((1, size)), **most).values)
        return np.concatenate(out)

    def interactions():
        import shapiq

        size = int(cells.max()) + 1
        for n in range(count):
            approximator = shapiq.SHAPIQ(n=size, max_order=2, index="k-SII", random_state=0)
            found = approximator.approximate(budget=options["budget"], game=game(n))
        return np.array([found[pair] for pair in itertools.combinations(range(size), 2)])

    baselines = (torch.arange(4.0) / 8).reshape(4, 1, 1, 1).expand(4, *x.shape[1:]).to(x.device)
    masks = options["masks"]
    return {
        "conductance": lambda: attr.LayerConductance(net, module).attribute(
            x, zeros, target, **path
        ),
        "influence": lambda: attr.InternalInfluence(net, module).attribute(
            x, zeros, target, **path
        ),
        "deepliftshap": lambda: attr.DeepLiftShap(pooled(net)).attribute(x, baselines, target),
        "permutation": lambda: without_graph(
            attr.FeaturePermutation(net).attribute, x, target=target, feature_mask=cells
        ),
        "shapley": lambda: without_graph(
            attr.ShapleyValueSampling(net).attribute,
            x,
            target=target,
            feature_mask=cells,
            n_samples=2 * options["orders"],
            perturbations_per_eval=copies or 1,
        ),
        "elementwise": lambda: grad_cam("GradCAMElementWise"),
        "fem": lambda: grad_cam("FEM"),
        "kpca": lambda: grad_cam("KPCA_CAM"),
        "segeigen": lambda: grad_cam("SegEigenCAM"),
        "randomcam": lambda: grad_cam("RandomCAM"),
        "finer": lambda: torch_cam("FinerCAM"),
        "sscam": lambda: torch_cam("SSCAM", num_samples=masks, batch_size=copies or 32),
        "iscam": lambda: torch_cam("ISCAM", num_samples=masks, batch_size=copies or 32),
        "smoothpp": lambda: torch_cam("SmoothGradCAMpp", num_samples=masks),
        "guidedig": lambda: bent("GuidedIG", {"x_steps": steps, "x_baseline": None}),
        "blurig": lambda: bent("BlurIG", {"steps": steps, "max_sigma": 10, "batch_size": copies}),
        "owen": owen,
        "interactions": interactions,
    }
