"""Writes modern_nets.npz: nets of torchvision, timm, Hugging Face: names, shapes, logits.

Run where torch 2.13, torchvision 0.28, timm 1.0 and transformers 5.24 are. Weights are those of
draw_torch_weights.py, under each library's own names. Keys are `net/shapes`, a JSON table, and
`net/HEIGHTxWIDTH`: of tiny nets all logits of two images; of torchvision's own every twentieth of
one image and, last, the largest absolute one. `net/published` has what it publishes weights with.
"""

import json
import pathlib
import tempfile

import numpy as np
import safetensors.torch
import timm.models.deit
import timm.models.vision_transformer
import torch
import torchvision
import transformers
from draw_torch_weights import draw, images, two_images
from torchvision.models import convnext, densenet, efficientnet, swin_transformer
from torchvision.models.vision_transformer import VisionTransformer

FOLDER = pathlib.Path(__file__).parent
WHOLE = "densenet121 efficientnet_b0 convnext_tiny swin_t swin_s vit_b_16 vit_b_32".split()
CLASSES = 5


def stages(*table):
    return [efficientnet.MBConvConfig(*row, 1.0, 1.0) for row in table]


def tiny():
    """Of each kind one with all that its large one has; of windows some are padded, some alone."""
    yield "densenet", densenet.DenseNet(8, (1, 2), 16, num_classes=CLASSES), ((32, 40),)
    table = stages((1, 3, 1, 16, 8, 1), (6, 5, 2, 8, 16, 2))
    yield "efficientnet", efficientnet.EfficientNet(table, 0.2, num_classes=CLASSES), ((32, 40),)
    table = [convnext.CNBlockConfig(16, 32, 1), convnext.CNBlockConfig(32, None, 2)]
    yield "convnext", convnext.ConvNeXt(table, num_classes=CLASSES), ((32, 40),)
    swin = swin_transformer.SwinTransformer
    swin = swin([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=CLASSES)
    yield "swin", swin, ((36, 32),)
    yield "vit", VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=CLASSES), ((32, 32),)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    sizes |= {"mlp_ratio": 2, "num_classes": CLASSES}
    yield "timm_vit", timm.models.vision_transformer.VisionTransformer(**sizes), ((32, 32),)
    yield "timm_deit", timm.models.deit.VisionTransformerDistilled(**sizes), ((32, 32),)


def hugging_face():
    """With the names of its modules, and with those that its files have."""
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 32, "num_labels": CLASSES}
    vit = transformers.ViTForImageClassification
    yield "hugging_face_vit", vit, transformers.ViTConfig(**sizes)
    deit = transformers.DeiTForImageClassificationWithTeacher
    yield "hugging_face_deit", deit, transformers.DeiTConfig(**sizes)


def drawn(state):
    return {k: torch.from_numpy(draw(k, tuple(v.shape))) for k, v in state.items() if floats(v)}


def floats(value):
    return value.is_floating_point()


def shapes(state):
    return json.dumps({k: (tuple(v.shape), floats(v)) for k, v in state.items()})


def logits(net, x):
    with torch.no_grad():
        return net.eval()(torch.from_numpy(x).permute(0, 3, 1, 2))


def published(name):
    """The file of the first weights published, and what photographs are made to for them."""
    weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    made = weights.transforms()
    return {
        **{"file": weights.url.rpartition("/")[2], "interpolation": made.interpolation.value},
        **{"size": made.crop_size[0], "shorter": made.resize_size[0]},
        **{"mean": made.mean, "std": made.std},
    }


def main():
    out = {}
    for name, net, sizes in tiny():
        out[f"{name}/shapes"] = shapes(net.state_dict())
        net.load_state_dict(drawn(net.state_dict()), strict=False)  # without counts and indices
        for height, width in sizes:
            out[f"{name}/{height}x{width}"] = logits(net, two_images(height, width)).numpy()
    for name, kind, config in hugging_face():
        net = kind(config)
        out[f"{name}/shapes"] = shapes(net.state_dict())
        net.load_state_dict(drawn(net.state_dict()))
        out[f"{name}/32x32"] = logits(net, two_images(32, 32)).logits.numpy()
        with tempfile.TemporaryDirectory() as folder:
            net.save_pretrained(folder)
            file = pathlib.Path(folder) / "model.safetensors"
            state = safetensors.torch.load_file(file)
            safetensors.torch.save_file(drawn(state), file, {"format": "pt"})
            net = kind.from_pretrained(folder)
        out[f"{name}_file/shapes"] = shapes(state)
        out[f"{name}_file/32x32"] = logits(net, two_images(32, 32)).logits.numpy()
    for name in WHOLE:
        net = getattr(torchvision.models, name)(weights=None)
        out[f"{name}/shapes"] = shapes(net.state_dict())
        out[f"{name}/published"] = json.dumps(published(name))
        net.load_state_dict(drawn(net.state_dict()), strict=False)
        found = logits(net, images(224, 224))[0].numpy()
        out[f"{name}/224x224"] = np.append(found[::20], np.abs(found).max())
        print(name, np.abs(found).max(), flush=True)
    np.savez_compressed(FOLDER / "modern_nets.npz", **out)


if __name__ == "__main__":
    main()
