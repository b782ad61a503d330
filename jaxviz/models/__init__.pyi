from jaxviz.models.bcos import BcosConv as BcosConv, BcosNet as BcosNet
from jaxviz.models.chains import VGG as VGG, AlexNet as AlexNet
from jaxviz.models.cifar import CIFARNet as CIFARNet
from jaxviz.models.convnext import ConvNeXt as ConvNeXt
from jaxviz.models.densenet import DenseNet as DenseNet
from jaxviz.models.efficientnet import EfficientNet as EfficientNet
from jaxviz.models.imagenet import (
    imagenet_classes as imagenet_classes,
    photographs as photographs,
    preprocess as preprocess,
)
from jaxviz.models.mnist import (
    MNISTNetA as MNISTNetA,
    MNISTNetB as MNISTNetB,
    MNISTNetC as MNISTNetC,
)
from jaxviz.models.mobilenet import MobileNetV2 as MobileNetV2
from jaxviz.models.published import published_weights as published_weights
from jaxviz.models.registry import (
    Input as Input,
    apply_fn as apply_fn,
    inputs as inputs,
    name_of as name_of,
    nets as nets,
    small_nets as small_nets,
)
from jaxviz.models.resnet import ResNet as ResNet, ResNet20 as ResNet20
from jaxviz.models.squeezenet import SqueezeNet as SqueezeNet
from jaxviz.models.swin import SwinTransformer as SwinTransformer
from jaxviz.models.transformer import VisionTransformer as VisionTransformer
from jaxviz.models.weights import (
    load_torchvision as load_torchvision,
    save_torchvision as save_torchvision,
)
