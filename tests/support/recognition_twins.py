"""Small random twins of recognition networks, named as in their files, and what becomes of them."""

import functools

import numpy as np
import torch

from convert.__main__ import main
from tests.support.encoder_twins import compiled
from tests.support.parity import randomize
from tora2_jax.config import from_dict
from tora2_jax.weights import checkpoint

nn = torch.nn
_COMPILED = {}  # networks by their settings


class FaceBlock(nn.Module):
    """A block of insightface's iresnet."""

    def __init__(self, in_width, width, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride > 1:
            projection = nn.Conv2d(in_width, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(width))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(x)) + shortcut


class FaceTwin(nn.Module):
    """insightface's iresnet: layers (1, 2, 1, 1), 32 pixels, a map of 2 x 2."""

    def __init__(self, widths=(4, 6, 8, 10), layers=(1, 2, 1, 1), embedding=7):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        in_width = widths[0]
        for stage, (width, count) in enumerate(zip(widths, layers, strict=True)):
            blocks = [FaceBlock(in_width, width, 2)]
            blocks += [FaceBlock(width, width, 1) for _ in range(count - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            in_width = width
        self.bn2 = nn.BatchNorm2d(in_width)
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(in_width * 4, embedding)
        self.features = nn.BatchNorm1d(embedding)

    def map(self, x):
        """The last map."""
        x = self.prelu(self.bn1(self.conv1(x)))
        return self.bn2(self.layer4(self.layer3(self.layer2(self.layer1(x)))))

    def forward(self, x):
        x = self.dropout(torch.flatten(self.map(x), 1))
        return self.features(self.fc(x))


def face_twin(seed=0):
    """With every tensor random."""
    return randomize(FaceTwin(), seed)


class Bottleneck(nn.Module):
    """A block of torchvision's ResNet-50."""

    def __init__(self, in_width, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride > 1 or in_width != 4 * width:
            projection = nn.Conv2d(in_width, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(4 * width))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return (self.bn3(self.conv3(x)) + shortcut).relu()


class ResNet(nn.Module):
    """torchvision's residual network up to its last map."""

    def __init__(self, last_stride, pool, base_width=4, layers=(2, 1, 1, 1)):
        super().__init__()
        self.conv1 = nn.Conv2d(3, base_width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(base_width)
        self.pool = pool
        in_width = base_width
        for stage, count in enumerate(layers):
            width = base_width * 2**stage
            blocks = [Bottleneck(in_width, width, (1, 2, 2, last_stride)[stage])]
            blocks += [Bottleneck(4 * width, width, 1) for _ in range(count - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            in_width = 4 * width
        self.width = in_width

    def forward(self, x):
        x = self.pool(self.bn1(self.conv1(x)).relu())
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class GeneralizedMean(nn.Module):
    """fast-reid's pooling with a learned exponent."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x):
        return x.clamp(min=1e-6).pow(self.p).mean((2, 3), keepdim=True).pow(1 / self.p)


MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def _unit_input(images):
    """[b, 3, h, w] in [0, 1], normalized as torchvision's transforms do."""
    return (images - MEAN.view(3, 1, 1)) / DEVIATION.view(3, 1, 1)


class Torchvision(ResNet):
    """With its classifier on top."""

    def __init__(self):
        super().__init__(2, nn.MaxPool2d(3, 2, 1))
        self.fc = nn.Linear(self.width, 5)

    def features(self, images):
        """Last map and vector of images in [0, 1]."""
        found = self(_unit_input(images))
        return found, found.mean((2, 3))


class Torchreid(ResNet):
    """As torchvision's, with another name for the classifier."""

    def __init__(self):
        super().__init__(2, nn.MaxPool2d(3, 2, 1))
        self.classifier = nn.Linear(self.width, 5)

    features = Torchvision.features


class StrongBaseline(nn.Module):
    """reid-strong-baseline: last stride 1 and a batch norm behind the pooling."""

    def __init__(self):
        super().__init__()
        self.base = ResNet(1, nn.MaxPool2d(3, 2, 1))
        self.bottleneck = nn.BatchNorm1d(self.base.width)
        self.classifier = nn.Linear(self.base.width, 5, bias=False)

    def features(self, images):
        found = self.base(_unit_input(images))
        return found, self.bottleneck(found.mean((2, 3)))


class FastReid(nn.Module):
    """fast-reid's Baseline: reads 0 to 255, pools its stem without padding, GeM, batch norm."""

    def __init__(self):
        super().__init__()
        self.backbone = ResNet(1, nn.MaxPool2d(3, 2, ceil_mode=True))
        self.heads = nn.Module()
        self.heads.pool_layer = GeneralizedMean()
        self.heads.bottleneck = nn.Sequential(nn.BatchNorm2d(self.backbone.width))
        self.heads.weight = nn.Parameter(torch.zeros(5, self.backbone.width))
        self.register_buffer("pixel_mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.zeros(1, 3, 1, 1))

    def features(self, images):
        found = self.backbone((255 * images - self.pixel_mean) / self.pixel_std)
        return found, self.heads.bottleneck(self.heads.pool_layer(found))[..., 0, 0]


def reid_twin(cls, seed=0):
    """With every tensor random but what normalizes colors."""
    twin = randomize(cls(), seed)
    if cls is FastReid:
        twin.heads.pool_layer.p.data += 2.7
        twin.pixel_mean.copy_(255 * MEAN.view(1, 3, 1, 1))
        twin.pixel_std.copy_(255 * DEVIATION.view(1, 3, 1, 1))
    return twin


def convert(command, source, folder, *options):
    """The folder of the command's result."""
    code = main([command, "--src", str(source), "--dst", str(folder), *options])
    assert code == 0
    return folder


def refused(capsys, command, source, tmp_path, *options):
    """The message of a command that fails, without leaving anything."""
    code = main([command, "--src", str(source), "--dst", str(tmp_path / "no"), *options])
    assert code == 2 and not (tmp_path / "no").exists()
    return capsys.readouterr().err


def loaded(folder, component, config_class, network):
    """The network as a function of its arrays, these, and its settings from beside them."""
    found = checkpoint.component_metadata(folder / component)["model"][component]
    settings = from_dict(config_class, found)
    arrays = dict(checkpoint.read_component(folder / component))
    key = repr(settings)
    if key not in _COMPILED:
        make = functools.partial(network, settings)
        _COMPILED[key] = compiled(make, lambda copy, images: copy(images))
    return _COMPILED[key], arrays, settings


def channels_first(images):
    return torch.tensor(np.moveaxis(images, -1, 1))
