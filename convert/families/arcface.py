"""`python -m convert arcface`: ArcFace's improved residual network of insightface -> our weights.

From PyTorch (`backbone.pth` of arcface_torch, whatever its depth) and from ONNX (`glintr100.onnx`),
which `arcface_onnx` turns into PyTorch's names first.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from convert.checkpoints import encoders
from convert.checkpoints.recognition_files import block_counts, first_names, read_tensors
from convert.engine.rules import CONV2D, Rule, Transform, ignored
from convert.engine.weight_places import SourceError
from convert.families.object_encoder import batch_norm, block_rules
from convert.onnx.arcface import read_onnx
from tora2_jax.config import ArcFaceConfig
from tora2_jax.models.encoders.arcface import ArcFace, map_size
from tora2_jax.models.layers.basic import shape_rngs

_MARK = "layer1.0.prelu.weight"  # other residual networks have no such
_CONVOLUTIONS = {r"conv1": "conv_in", r"conv2": "conv_out", r"downsample\.0": "shortcut"}
_NORMS = {
    r"bn1": "norm_in",
    r"bn2": "norm_middle",
    r"bn3": "norm_out",
    r"downsample\.1": "norm_shortcut",
}


def convert_encoder(source: str | Path, destination: str | Path) -> list[str]:
    """Converts a file for `config.weights.face`.

    Args:
        source: `.onnx`, or safetensors or a pickle of tensors.
        destination: Must not exist.

    Returns:
        What the user should know.

    Raises:
        ConversionError: lists everything about the source that is missing, damaged or of another
            network.
        FolderError: the destination cannot be written.
    """
    source, problems, settings, side = Path(source), [], None, None
    tensors: dict[str, np.ndarray] = {}
    notes: list[str] = []
    try:
        if source.suffix == ".onnx":
            tensors, side = read_onnx(source)
        else:
            tensors, notes = read_tensors(source)
        settings = read_settings(tensors, side, problems)
    except SourceError as error:
        problems += error.problems
    encoder = None if settings is None else _encoder(settings)
    arrays = encoders.Arrays(tensors, notes)
    notes = encoders.write(source, destination, encoder, arrays, problems)
    return [*notes, encoders.settings_note(encoder, {})]


def _encoder(settings: ArcFaceConfig) -> encoders.Encoder:
    return encoders.Encoder(
        "face", settings, lambda: ArcFace(settings, rngs=shape_rngs()), rules(settings)
    )


def read_settings(
    tensors: Mapping[str, np.ndarray], side: int | None, problems: list[str]
) -> ArcFaceConfig | None:
    """The settings that the shapes of tensors tell.

    Args:
        tensors: By PyTorch's names.
        side: Of the images, if the source says it; the smallest multiple that fits otherwise.
        problems: Grows if None is returned.
    """
    layers = block_counts(tensors)
    firsts = [f"layer{stage + 1}.0.conv1.weight" for stage in range(len(layers))]
    if not layers or _MARK not in tensors:
        problems.append(
            f"is no ArcFace iresnet: has no {_MARK}, but {first_names(tensors)}; give backbone.pth "
            "of arcface_torch or glintr100.onnx"
        )
        return None
    missing = [name for name in (*firsts, "fc.weight") if name not in tensors]
    if missing:
        problems += [f"missing: {name}, which tells the size of the network" for name in missing]
        return None
    widths = tuple(len(tensors[name]) for name in firsts)
    embedding, inputs = tensors["fc.weight"].shape
    rows = math.isqrt(inputs // widths[-1])
    side = side or rows * 2 ** len(layers)
    settings = ArcFaceConfig(image_size=side, layers=layers, widths=widths, embedding=embedding)
    if map_size(settings) != rows or rows**2 * widths[-1] != inputs:
        problems.append(
            f"misshapen: fc.weight {(embedding, inputs)} does not read a square map of "
            f"{widths[-1]} channels of an image of {side} x {side} pixels"
        )
        return None
    return settings


def rules(config: ArcFaceConfig) -> list[Rule]:
    """The whole table."""
    table = [
        Rule(r"conv1\.weight", "stem.kernel", CONV2D),
        *batch_norm("bn1", "norm_stem"),
        Rule(r"prelu\.weight", "activation.slope"),
        *batch_norm("bn2", "norm_map"),
        Rule(r"fc\.weight", "embedding.kernel", flattened_map(config.widths[-1], map_size(config))),
        Rule(r"fc\.bias", "embedding.bias"),
        *batch_norm("features", "norm_embedding"),
        ignored(r".*num_batches_tracked"),
    ]
    for stage in range(len(config.layers)):
        source, target = rf"layer{stage + 1}\.(\d+)\.", rf"stages.{stage}.\1."
        table += block_rules(source, target, _CONVOLUTIONS, _NORMS)
        table.append(Rule(rf"{source}prelu\.weight", f"{target}activation.slope"))
    return table


def flattened_map(channels: int, size: int) -> Transform:
    """Linear on a flattened square map: channels are outermost in PyTorch and innermost here."""

    def forward(weight: np.ndarray) -> np.ndarray:
        weight = weight.reshape(-1, channels, size, size)
        return weight.transpose(2, 3, 1, 0).reshape(size * size * channels, -1)

    def backward(kernel: np.ndarray) -> np.ndarray:
        kernel = kernel.reshape(size, size, channels, -1)
        return kernel.transpose(3, 2, 0, 1).reshape(kernel.shape[-1], -1)

    return Transform(forward, backward)
