"""Where torchvision's weights for ImageNet are found: a folder, the cache, the network."""

from pathlib import Path

from jaxviz.data.sources import File, Source, find

# The end of a name is the beginning of its SHA-256. The first weights published for each network:
# all were trained on, and are for, photographs scaled to 256 and cut to 224.
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
}
_FOLDER = "https://download.pytorch.org/models/"


def _file(net: str, name: str) -> File:
    local = (f"{net}.safetensors", f"{net}_imagenet.safetensors", f"{net}.pth")
    return File((name, *local), f"sha256:{Path(name).stem.rsplit('-', 1)[1]}")


SOURCE = Source({net: (_file(net, name),) for net, name in _FILES.items()}, (_FOLDER,))


def published_weights(net: str, *, download: bool = True) -> Path:
    """The file of torchvision's ImageNet weights of a network.

    It is looked for in `$JAXVIZ_DATA/weights`, then in the user's cache, under torchvision's name
    or as `NET.safetensors`, `NET_imagenet.safetensors` or `NET.pth`; what is nowhere is downloaded
    into the cache, 5 MB (SqueezeNet) to 575 MB (VGG-19), and kept only if its checksum begins with
    the eight digits that its name ends in.

    Args:
      net: A name in `nets` that is torchvision's.
      download: Whether the network may be used.

    Returns:
      The file's path.

    Raises:
      ValueError: No weights of that network are published there.
      FileNotFoundError: The file is nowhere and was not to be downloaded.
      ConnectionError: The download failed.

    Example:
      >>> published_weights("mnist_a")
      Traceback (most recent call last):
      ...
      ValueError: published_weights: net must be one that torchvision publishes, ...
    """
    if net not in _FILES:
        raise ValueError(
            f"published_weights: net must be one that torchvision publishes, one of "
            f"{', '.join(_FILES)}; got {net}. Pass a file of weights."
        )
    try:
        (path,) = find("weights", SOURCE, net, None, download)
    except (FileNotFoundError, ConnectionError) as error:
        raise type(error)(
            f"{error} torchvision's weights of {net} are at {_FOLDER}{_FILES[net]}; a file that is "
            "elsewhere can be passed by its path."
        ) from None
    return path
