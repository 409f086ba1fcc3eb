"""ArcFace networks in insightface's ONNX files -> tensors with the names of its PyTorch network.

Names in these files are numbers, and exporters differ in which batch norms they fold into the
convolution before them. So the graph is followed from its input to its output, and every node is
known by its operator and its place. What was folded becomes a norm that adds the bias of the
convolution and does nothing else, so that one network serves all files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convert.engine.weight_places import SourceError
from convert.onnx.graph import Graph, Node, UnexpectedNode
from tora2_jax.models.layers.batch_norm import EPSILON

_HALVES = (127.5, 0.5)  # half of the largest color, for files that normalize colors themselves
_ARITHMETIC = ("Sub", "Add", "Mul", "Div")
_NORM = "BatchNormalization"
_ADVICE = (
    "give the recognition model of an insightface package (glintr100.onnx, w600k_r50.onnx) or "
    "another iresnet"
)

Tensors = dict[str, np.ndarray]


class Convolution(NamedTuple):
    """What a convolution is to the network."""

    weight: np.ndarray  # [out, in, size, size]
    bias: np.ndarray | None
    stride: int
    output: str  # name of its result


class Block(NamedTuple):
    """A residual block that was read."""

    tensors: Tensors  # by names inside the block
    stride: int
    output: str  # name of its result


def read_onnx(path: Path) -> tuple[Tensors, int | None]:
    """The tensors of a file by PyTorch's names, and the side of its images if it says one.

    Raises:
        SourceError: the file cannot be read, or its graph is none of an iresnet; then the message
            says where it differs.
    """
    graph = Graph.load(path)
    try:
        tensors = _network(graph)
    except (ValueError, IndexError) as error:  # UnexpectedNode, or shapes that do not go together
        raise SourceError([f"{path}: is no ArcFace iresnet: {error}; {_ADVICE}"]) from error
    (shape,) = graph.inputs.values()
    return tensors, shape[2] if len(shape) == 4 and shape[2] == shape[3] else None


def _network(graph: Graph) -> Tensors:
    """Stem, blocks and head. Raises UnexpectedNode where the graph is another."""
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise UnexpectedNode(
            f"it has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, as detectors "
            "have, not one image and one embedding"
        )
    value, factor = _colors(graph, next(iter(graph.inputs)))
    stem = _convolution(graph, value, "the stem", 3)
    if stem.weight.shape[1] != 3 or stem.stride != 1:
        raise UnexpectedNode("its stem is not a convolution of RGB with stride 1")
    kernel = (stem.weight * factor[:, None, None]).astype(np.float32)
    norm, value = _folded_norm(graph, stem)
    slopes, value = _activation(graph, value, "the stem", len(kernel))
    tensors = {"conv1.weight": kernel} | _named("bn1", norm) | {"prelu.weight": slopes}
    blocks, value = _blocks(graph, value)
    head, value = _head(graph, value)
    if not graph.ends(value):
        raise UnexpectedNode(f"behind its embedding comes {graph.tell(value)}")
    return tensors | blocks | head


def _colors(graph: Graph, value: str) -> tuple[str, np.ndarray]:
    """The value behind arithmetic on the colors, and the factor that replaces it, per channel.

    Files without any are given colors that were normalized exactly as our network does it.
    """
    scale, shift, start = np.ones(3), np.zeros(3), value
    while (node := graph.next(value)) and node.operator in _ARITHMETIC:
        constant = graph.other_operand(node, "its input").astype(np.float64)
        if constant.size not in (1, 3):
            raise UnexpectedNode(f"its colors are changed by {constant.size} numbers, not 1 or 3")
        constant = np.broadcast_to(constant.reshape(-1), (3,))
        if node.operator in ("Mul", "Div"):
            factor = constant if node.operator == "Mul" else 1 / constant
            scale, shift = scale * factor, shift * factor
        else:
            shift = shift + (constant if node.operator == "Add" else -constant)
        value = node.output
    if value == start:
        return value, scale
    for half in _HALVES:
        if np.abs(half * scale + shift).max() < 1e-5:
            return value, half * scale
    raise UnexpectedNode(
        "it does not move the middle of the range of colors to 0, which our network cannot follow "
        "at the border of the image"
    )


def _blocks(graph: Graph, value: str) -> tuple[Tensors, str]:
    """All residual blocks; one with stride 2 opens a stage."""
    tensors: Tensors = {}
    stage, index = 0, 0
    while len(graph.consumers(value)) > 1:
        block = _block(graph, value, f"the block behind {stage}.{index}" if stage else "block 1.0")
        stage, index = (stage + 1, 0) if block.stride == 2 else (stage, index + 1)
        if not stage:
            raise UnexpectedNode("its first block does not halve the map")
        tensors |= _named(f"layer{stage}.{index}", block.tensors)
        value = block.output
    return tensors, value


def _block(graph: Graph, value: str, where: str) -> Block:
    """Norm, convolution, norm, PReLU, convolution with stride, norm; plus the shortcut."""
    consumers = graph.consumers(value)
    norms = [node for node in consumers if node.operator == _NORM]
    shortcuts = [node for node in consumers if node.operator in ("Conv", "Add")]
    if len(consumers) != 2 or len(norms) != 1 or len(shortcuts) != 1:
        raise UnexpectedNode(
            f"{where} should start with {_NORM} beside a shortcut, not {graph.tell(value)}"
        )
    first = _convolution(graph, norms[0].output, where, 3)
    if first.stride != 1:
        raise UnexpectedNode(f"the first convolution of {where} has stride {first.stride}")
    middle, out = _folded_norm(graph, first)
    slopes, out = _activation(graph, out, where, len(first.weight))
    second = _convolution(graph, out, where, 3)
    last, out = _folded_norm(graph, second)
    end = graph.take(out, ("Add",), where)
    shortcut, joined = _shortcut(graph, shortcuts[0], second.stride, where)
    if joined.index != end.index:
        raise UnexpectedNode(f"the branches of {where} are not added to each other")
    tensors = {"conv1.weight": first.weight, "conv2.weight": second.weight, "prelu.weight": slopes}
    tensors |= _named("bn1", _norm(graph, norms[0])) | _named("bn2", middle) | _named("bn3", last)
    return Block(tensors | shortcut, second.stride, end.output)


def _shortcut(graph: Graph, node: Node, stride: int, where: str) -> tuple[Tensors, Node]:
    """The tensors of a shortcut, and the sum that it goes to."""
    if node.operator == "Add":
        if stride != 1:
            raise UnexpectedNode(f"{where} halves the map, but has no convolution on its shortcut")
        return {}, node
    convolution = _read_convolution(graph, node, where, 1)
    if convolution.stride != stride:
        raise UnexpectedNode(f"the branches of {where} have strides {stride} and 1 or 2")
    norm, out = _folded_norm(graph, convolution)
    tensors = {"downsample.0.weight": convolution.weight} | _named("downsample.1", norm)
    return tensors, graph.take(out, ("Add",), f"the shortcut of {where}")


def _head(graph: Graph, value: str) -> tuple[Tensors, str]:
    """Norm, flattening, linear map and norm."""
    where, whole = "its last map", "its embedding"
    norm = graph.take(value, (_NORM,), where)
    flat = graph.take(norm.output, ("Flatten", "Reshape"), where)
    if flat.attributes.get("axis", 1) != 1:
        raise UnexpectedNode("it flattens the batch too")
    linear = graph.take(flat.output, ("Gemm", "MatMul"), "its flattened map")
    weight, bias = _linear(graph, linear, whole)
    out = linear.output
    if bias is None and (node := graph.next(out)) and node.operator == "Add":
        bias, out = graph.other_operand(node, whole), node.output
    last, out = _folded_norm(graph, Convolution(weight, None, 1, out))
    bias = np.zeros(len(weight), np.float32) if bias is None else bias.reshape(-1)
    tensors = {"fc.weight": weight, "fc.bias": bias}
    return tensors | _named("bn2", _norm(graph, norm)) | _named("features", last), out


def _linear(graph: Graph, node: Node, where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Weight [out, in] and bias of a linear map, with its factors."""
    weight = graph.constant(node.inputs[1], where)
    given = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0} | node.attributes
    if given["transA"] or weight.ndim != 2:
        raise UnexpectedNode(f"{where} is computed from a transposed map")
    weight = (weight if given["transB"] else weight.T) * np.float32(given["alpha"])
    if len(node.inputs) < 3:
        return weight, None
    return weight, graph.constant(node.inputs[2], where) * np.float32(given["beta"])


def _convolution(graph: Graph, value: str, where: str, size: int) -> Convolution:
    """The next node, which must be a convolution of that size."""
    return _read_convolution(graph, graph.take(value, ("Conv",), where), where, size)


def _read_convolution(graph: Graph, node: Node, where: str, size: int) -> Convolution:
    """A square convolution that keeps the size at stride 1, neither grouped nor dilated."""
    usual = {"group": 1, "dilations": [1, 1], "pads": [0] * 4, "strides": [1, 1]}
    given = usual | {"auto_pad": b"NOTSET"} | node.attributes
    stride = given["strides"][0]
    wanted = {
        "group": 1,
        "dilations": [1, 1],
        "pads": [size // 2] * 4,
        "strides": [stride, stride],
        "auto_pad": b"NOTSET",
    }
    weight = graph.constant(node.inputs[1], where)
    others = [name for name, value in wanted.items() if given[name] != value]
    if others or stride not in (1, 2) or weight.shape[2:] != (size, size):
        told = ", ".join(f"{name} {given[name]}" for name in [*usual])
        raise UnexpectedNode(
            f"{where} has a convolution {list(weight.shape)} ({told}) where a {size} x {size} one "
            "is expected"
        )
    bias = graph.constant(node.inputs[2], where) if len(node.inputs) > 2 else None
    return Convolution(weight, bias, stride, node.output)


def _folded_norm(graph: Graph, convolution: Convolution) -> tuple[Tensors, str]:
    """The norm behind a convolution, and what comes out of it; without one, what it folded to."""
    node = graph.next(convolution.output)
    if node is not None and node.operator == _NORM:
        return _norm(graph, node, convolution.bias), node.output
    zeros = np.zeros(len(convolution.weight), np.float32)
    bias = zeros if convolution.bias is None else convolution.bias
    variance = zeros + np.float32(1) - np.float32(EPSILON)  # 1 with epsilon
    norm = {"weight": zeros + 1, "bias": bias, "running_mean": zeros, "running_var": variance}
    return norm, convolution.output


def _norm(graph: Graph, node: Node, bias: np.ndarray | None = None) -> Tensors:
    """The four tensors of a norm of a value to which a bias is still to be added.

    Its epsilon becomes ours by moving the variance.
    """
    names = ("weight", "bias", "running_mean", "running_var")
    tensors = {
        name: graph.constant(constant, "a norm")
        for name, constant in zip(names, node.inputs[1:5], strict=True)
    }
    if bias is not None:
        tensors["running_mean"] = tensors["running_mean"] - bias
    moved = np.float32(node.attributes.get("epsilon", EPSILON)) - np.float32(EPSILON)
    return tensors | {"running_var": tensors["running_var"] + moved}


def _activation(graph: Graph, value: str, where: str, width: int) -> tuple[np.ndarray, str]:
    """Slopes of a PReLU, [width, 1, 1] or one number there, and what comes out of it."""
    node = graph.take(value, ("PRelu",), where)
    slopes = graph.constant(node.inputs[1], where).reshape(-1)
    return np.array(np.broadcast_to(slopes, (width,)) if slopes.size == 1 else slopes), node.output


def _named(name: str, tensors: Mapping[str, np.ndarray]) -> Tensors:
    return {f"{name}.{key}": value for key, value in tensors.items()}
