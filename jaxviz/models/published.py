"""Where published weights are found: a folder, the cache, and torchvision's on the network."""

from pathlib import Path

from jaxviz.calls.public import public
from jaxviz.data.sources import File, Source, find
from jaxviz.folders import cache_folder

# The end of a name is the beginning of its SHA-256. The first weights published for each network;
# how photographs are scaled and cut for them stands in the registry.
_FILES = {
    "alexnet": "alexnet-owt-7be5be79.pth",
    "vgg11": "vgg11-8a719046.pth",
    "vgg11_bn": "vgg11_bn-6002323d.pth",
    "vgg16": "vgg16-397923af.pth",
    "vgg16_bn": "vgg16_bn-6c64b313.pth",
    "vgg19": "vgg19-dcbb9e9d.pth",
    "vgg19_bn": "vgg19_bn-c79401a0.pth",
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "squeezenet1_0": "squeezenet1_0-b66bff10.pth",
    "squeezenet1_1": "squeezenet1_1-b8a52dc0.pth",
    "mobilenet_v2": "mobilenet_v2-b0353104.pth",
    "densenet121": "densenet121-a639ec97.pth",
    "efficientnet_b0": "efficientnet_b0_rwightman-7f5810bc.pth",
    "convnext_tiny": "convnext_tiny-983f1562.pth",
    "swin_t": "swin_t-704ceda3.pth",
    "swin_s": "swin_s-5e29d889.pth",
    "vit_b_16": "vit_b_16-c867db91.pth",
    "vit_b_32": "vit_b_32-d86f8d99.pth",
}
_FOLDER = "https://download.pytorch.org/models/"


def _file(net: str, name: str) -> File:
    local = (f"{net}.safetensors", f"{net}_imagenet.safetensors", f"{net}.pth")
    return File((name, *local), f"sha256:{Path(name).stem.rsplit('-', 1)[1]}")


# These are no state dict as they are published: a file made of them is taken, none downloaded.
_MADE = {"resnet20": "resnet20_cifar10.safetensors"}
_ORIGINALS = {
    "resnet20": "in github.com/akamaster/pytorch_resnet_cifar10, pretrained_models/resnet20-"
    "12fca82f.th: save its 'state_dict' as .safetensors, keys without 'module.' and 'fc' for "
    "'linear'"
}

SOURCE = Source(
    {net: (_file(net, name),) for net, name in _FILES.items()}
    | {net: (File((name, f"{net}.safetensors")),) for net, name in _MADE.items()},
    (_FOLDER,),
)


@public()
def published_weights(net: str, *, download: bool = True) -> Path:
    """The file of a network's published weights: torchvision's, or those of ResNet-20 for CIFAR-10.

    It is looked for in `$JAXVIZ_DATA/weights`, then in the user's cache, under torchvision's name
    or as `NET.safetensors`, `NET_imagenet.safetensors` or `NET.pth`; what is nowhere is downloaded
    into the cache, 5 MB (SqueezeNet) to 575 MB (VGG-19), and kept only if its checksum begins with
    the eight digits that its name ends in. ResNet-20's is looked for as
    `resnet20_cifar10.safetensors` or `resnet20.safetensors` and never downloaded.

    Args:
      net: A name in `nets` that is torchvision's, or "resnet20".
      download: Whether the network may be used.

    Returns:
      The file's path.

    Raises:
      ValueError: No weights of that network are published.
      FileNotFoundError: The file is nowhere and was not to be downloaded.
      ConnectionError: The download failed.

    Example:
      >>> published_weights("mnist_a")
      Traceback (most recent call last):
      ...
      ValueError: published_weights: net must be one with published weights, ...
    """
    if net not in SOURCE.files:
        raise ValueError(
            f"published_weights: net must be one with published weights, one of "
            f"{', '.join(SOURCE.files)}; got {net}. Pass a file of weights."
        )
    try:
        (path,) = find("weights", SOURCE, net, None, download and net in _FILES)
    except (FileNotFoundError, ConnectionError) as error:
        if net in _MADE:
            raise FileNotFoundError(
                f"published_weights: {net} needs {_MADE[net]} in $JAXVIZ_DATA/weights or "
                f"{cache_folder() / 'weights'}; it is not there. The weights are "
                f"{_ORIGINALS[net]}."
            ) from None
        raise type(error)(
            f"{error} The published weights of {net} are at {_FOLDER}{_FILES[net]}; a file that is "
            "elsewhere can be passed by its path."
        ) from None
    return path
