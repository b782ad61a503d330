"""pytorch-grad-cam on a ViT, as its documents call it: the last block's first norm, and patches
laid out by `reshape_transform`."""

import functools

import pytorch_grad_cam as peer
from pytorch_grad_cam.ablation_layer import AblationLayerVit
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

CHANNELS = 16  # of Score-CAM and Ablation-CAM: 768 take minutes
KINDS = {
    "grad_cam": peer.GradCAM,
    "grad_cam_pp": peer.GradCAMPlusPlus,
    "xgrad_cam": peer.XGradCAM,
    "layer_cam": peer.LayerCAM,
    "hires_cam": peer.HiResCAM,
    "elementwise_cam": peer.GradCAMElementWise,
    "eigen_cam": peer.EigenCAM,
    "eigen_grad_cam": peer.EigenGradCAM,
    "seg_eigen_cam": peer.SegEigenCAM,
    "kpca_cam": peer.KPCA_CAM,
    "fem_cam": peer.FEM,
}


class Zeroed(AblationLayerVit):
    """Zeros for the patches, as in the paper; the layer that ships puts the least value less ten
    million, and for the class token, too."""

    def __call__(self, x):
        for i, channel in enumerate(self.indices[: len(self.activations)]):
            self.activations[i, 1:, channel] = 0
        return self.activations


def by_cam(case, kind, channels=None, **options):
    reshape = lambda tokens: case.grid(tokens[..., :channels])
    with kind(case.net, [case.target_layer], reshape_transform=reshape, **options) as cam:
        return cam(case.x, [ClassifierOutputTarget(0)])


def by_finer(case):
    with peer.FinerCAM(case.net, [case.target_layer], reshape_transform=case.grid) as cam:
        return cam(case.x, target_idx=0)


def cams(case):
    by = {name: functools.partial(by_cam, case, kind) for name, kind in KINDS.items()}
    by["finer_cam"] = functools.partial(by_finer, case)
    by["score_cam"] = lambda: by_cam(case, peer.ScoreCAM, CHANNELS)
    options = {"ablation_layer": Zeroed(), "batch_size": CHANNELS}
    by["ablation_cam"] = lambda: by_cam(case, peer.AblationCAM, CHANNELS, **options)
    return by
