"""`python -m convert reid`: residual networks of several programs -> our object encoder.

They share the network (ResNet with bottlenecks) and its normalization of colors; they differ in
names, in the pooling behind the stem, in what becomes the vector, and in what no tensor tells.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convert.checkpoints import encoders
from convert.checkpoints.recognition_files import block_counts, first_names, read_tensors
from convert.engine.rules import CONV2D, Rule, ignored
from convert.engine.weight_places import SourceError
from tora2_jax.config import ObjectEncoderConfig
from tora2_jax.models.encoders.object_encoder import IMAGENET_MEAN, IMAGENET_STD, ObjectEncoder
from tora2_jax.models.layers.basic import shape_rngs

_PERSON = {"image_size": 256, "image_width": 128}  # what networks for people are trained on
_NECK = r"heads\.(?:bottleneck\.0|bnneck)"


class Family(NamedTuple):
    """Residual networks as one program saves them.

    Attributes:
        title: How messages call them.
        mark: A tensor that the families after it do not have.
        backbone: What stands before the names of the residual network.
        neck: The batch norm behind the pooling, if there may be one; a pattern.
        unused: Tensors that are only for training; a pattern.
        settings: What no tensor tells, as the program has it by default.
    """

    title: str
    mark: str
    backbone: str
    neck: str | None
    unused: str
    settings: dict[str, Any]


FAMILIES = (
    Family(
        "fast-reid",
        "backbone.conv1.weight",
        "backbone.",
        _NECK,
        r"heads\.(?:weight|classifier\..*|cls_layer\..*)|pixel_mean|pixel_std",
        _PERSON | {"last_stride": 1, "stem_pool": "unpadded"},
    ),
    Family(
        "reid-strong-baseline",
        "base.conv1.weight",
        "base.",
        "bottleneck",
        r"classifier\..*",
        _PERSON | {"last_stride": 1},
    ),
    Family("torchreid", "classifier.weight", "", None, r"classifier\..*", _PERSON),
    Family("torchvision", "conv1.weight", "", None, r"fc\..*", {}),
)
# Parts of names that only other networks have -> what they are.
_OTHERS = {
    r"\.IN\.weight$": "instance-batch norms (IBN)",
    r"(^|\.)NL_\d": "non-local blocks",
    r"\.se\.": "squeeze and excitation",
    r"^b\d+\.": "branches (MGN)",
    r"^fc\.0\.": "a layer behind the pooling (fc512)",
}
_EXPONENT = "heads.pool_layer.p"
FIXED_EXPONENT = 3.0  # of fast-reid's GeneralizedMeanPooling, which saves none
UNTOLD = ("image_size", "image_width", "last_stride", "stem_pool")

_CONVOLUTIONS = {
    r"conv1": "conv_reduce",
    r"conv2": "conv_space",
    r"conv3": "conv_expand",
    r"downsample\.0": "shortcut",
}
_NORMS = {
    r"bn1": "norm_reduce",
    r"bn2": "norm_space",
    r"bn3": "norm_expand",
    r"downsample\.1": "norm_shortcut",
}


def convert_encoder(source: str | Path, destination: str | Path, **given: Any) -> list[str]:
    """Converts a file for `config.weights.object`.

    Args:
        source: Safetensors or a pickle of tensors, of one of `FAMILIES`.
        destination: Must not exist.
        given: Settings of `ObjectEncoderConfig` that no tensor tells, where they are not those that
            the program has by default: size, last stride, pooling.

    Returns:
        What the user should know.

    Raises:
        ConversionError: lists everything about the source that is missing, damaged or of another
            network.
        FolderError: the destination cannot be written.
    """
    source, problems = Path(source), []
    tensors, notes, settings, encoder = {}, [], None, None
    try:
        tensors, notes = read_tensors(source)
    except SourceError as error:
        problems += error.problems
    family = find_family(tensors, problems) if tensors else None
    if family is not None:
        settings = read_settings(family, tensors, given, problems)
    if settings is not None:
        if settings.pooling == "generalized_mean":
            tensors.setdefault(_EXPONENT, np.full(1, FIXED_EXPONENT, np.float32))
        table = rules(settings, family)
        encoder = encoders.Encoder(
            "object", settings, lambda: ObjectEncoder(settings, rngs=shape_rngs()), table
        )
    arrays = encoders.Arrays(tensors, notes)
    notes = encoders.write(source, destination, encoder, arrays, problems)
    assumed = {name: getattr(settings, name) for name in UNTOLD if name not in given}
    told = ", ".join(f"{name}={value!r}" for name, value in assumed.items())
    notes = [*notes, encoders.settings_note(encoder, {})]
    return [*notes, f"taken from {family.title}'s defaults: {told}"] if told else notes


def find_family(tensors: Mapping[str, np.ndarray], problems: list[str]) -> Family | None:
    """Which program saved the tensors; None, and `problems` says why, if they are another network.

    Args:
        tensors: By name.
        problems: Grows.
    """
    found = next((family for family in FAMILIES if family.mark in tensors), None)
    others = [
        f"{title}, as in {names[0]}, are not implemented; give a plain ResNet-50 or -101"
        for pattern, title in _OTHERS.items()
        if (names := [name for name in tensors if re.search(pattern, name)])
    ]
    if found is None and not others:
        marks = ", ".join(family.mark for family in FAMILIES)
        others = [f"is no ResNet: has none of {marks}, but {first_names(tensors)}"]
    elif found is not None and f"{found.backbone}layer1.0.conv3.weight" not in tensors:
        others.append(
            f"missing: {found.backbone}layer1.0.conv3.weight; ResNet-18 and -34 have no such and "
            "are not implemented"
        )
    problems += others
    return None if others else found


def read_settings(
    family: Family,
    tensors: Mapping[str, np.ndarray],
    given: Mapping[str, Any],
    problems: list[str],
) -> ObjectEncoderConfig | None:
    """The settings that the tensors, the user and the program's defaults tell.

    Args:
        family: From `find_family`.
        tensors: By name.
        given: Of the user; see `convert_encoder`.
        problems: Grows; None is returned if they leave no settings to check the tensors against.
    """
    if _EXPONENT in tensors and given.get("pooling") == "mean":
        problems.append(f"--pooling mean: but the file has the exponent of another, {_EXPONENT}")
    for name, wanted in (("pixel_mean", IMAGENET_MEAN), ("pixel_std", IMAGENET_STD)):
        if name in tensors and not np.allclose(tensors[name].reshape(-1), 255 * np.array(wanted)):
            problems.append(f"{name}: is {tensors[name].reshape(-1)}; only ImageNet's is known")
    if any(tensor.ndim == 4 for name, tensor in tensors.items() if name.startswith("heads.bottl")):
        problems.append("heads.bottleneck: shortens the vector (EMBEDDING_DIM), not implemented")
        return None
    told = family.settings | ({"pooling": "generalized_mean"} if _EXPONENT in tensors else {})
    layers = block_counts(tensors, family.backbone)
    if len(layers) != 4 or 0 in layers or f"{family.backbone}conv1.weight" not in tensors:
        problems.append(f"missing: conv1 or a whole stage; there are {layers} blocks in stages")
        return None
    neck = family.neck and any(re.fullmatch(rf"{family.neck}\.\w+", name) for name in tensors)
    return ObjectEncoderConfig(
        layers=layers,
        base_width=len(tensors[f"{family.backbone}conv1.weight"]),
        neck=bool(neck),
        **told | given,
    )


def rules(config: ObjectEncoderConfig, family: Family = FAMILIES[-1]) -> list[Rule]:
    """The whole table; what is on top for training alone is dropped."""
    prefix = re.escape(family.backbone)
    table = [
        Rule(rf"{prefix}conv1\.weight", "stem.kernel", CONV2D),
        *batch_norm(f"{prefix}bn1", "norm_stem"),
    ]
    for stage in range(len(config.layers)):
        source, target = rf"{prefix}layer{stage + 1}\.(\d+)\.", rf"stages.{stage}.\1."
        table += block_rules(source, target, _CONVOLUTIONS, _NORMS)
    if family.neck is not None:
        table += batch_norm(family.neck, "neck")
    table.append(Rule(re.escape(_EXPONENT), "pool.exponent"))
    return [*table, ignored(family.unused), ignored(r".*num_batches_tracked")]


def block_rules(
    source: str, target: str, convolutions: dict[str, str], norms: dict[str, str]
) -> list[Rule]:
    """Rules of one stage's blocks, from the names of the parts there to the names here."""
    table = [
        Rule(rf"{source}{theirs}\.weight", f"{target}{ours}.kernel", CONV2D)
        for theirs, ours in convolutions.items()
    ]
    for theirs, ours in norms.items():
        table += batch_norm(source + theirs, target + ours)
    return table


def batch_norm(source: str, target: str) -> list[Rule]:
    """The four tensors of a batch norm."""
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return [Rule(rf"{source}\.{theirs}", f"{target}.{ours}") for theirs, ours in names.items()]
