"""An ONNX graph that is followed from its input to its output, by operators and not by names."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from convert.engine.weight_places import SourceError
from tora2_jax.errors import first_line
from tora2_jax.system.unusable_file import why_unusable

_TRANSPARENT = {"Identity", "Dropout"}  # Dropout does nothing outside of training
_RESHAPING = {"Identity", "Unsqueeze", "Squeeze"}  # of weights, by exporters that do not fold them


class UnexpectedNode(ValueError):
    """The graph is not the one that was expected; the message says where it differs."""


class Node(NamedTuple):
    """One operation.

    Attributes:
        index: Its place in the file, by which two nodes are told apart.
        operator: Such as "Conv".
        inputs: Names of the values that it reads, in order.
        output: Name of its first result.
        attributes: Of the operator, by name.
    """

    index: int
    operator: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any]


class Graph:
    """Nodes by what they read, and the constants among the values.

    Args:
        graph: From a loaded file.

    Attributes:
        inputs: Name and shape of each input that is no weight; unknown lengths are None.
        outputs: Names of the outputs.
    """

    def __init__(self, graph: onnx.GraphProto):
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._reshaped: dict[str, str] = {}  # what such a node makes -> what it reads
        self._consumers: dict[str, list[Node]] = {}
        for index, proto in enumerate(graph.node):
            attributes = {
                item.name: onnx.helper.get_attribute_value(item) for item in proto.attribute
            }
            if proto.op_type == "Constant" and "value" in attributes:
                self._constants[proto.output[0]] = attributes["value"]
                continue
            if proto.op_type in _RESHAPING and self._weight(proto.input[0]) is not None:
                self._reshaped[proto.output[0]] = proto.input[0]
                continue
            inputs = tuple(name for name in proto.input if name)  # optional ones may have no name
            node = Node(index, proto.op_type, inputs, proto.output[0], attributes)
            for name in dict.fromkeys(node.inputs):
                self._consumers.setdefault(name, []).append(node)
        self.inputs = {
            item.name: tuple(_length(dim) for dim in item.type.tensor_type.shape.dim)
            for item in graph.input
            if item.name not in self._constants
        }
        self.outputs = [item.name for item in graph.output]

    @classmethod
    def load(cls, path: Path) -> "Graph":
        """The graph of a file. Raises SourceError if it cannot be read."""
        if not path.is_file():
            raise SourceError([f"{path}: there is no such file"])
        if reason := why_unusable(path):
            raise SourceError([f"{path}: {reason}"])
        try:
            return cls(onnx.load(path).graph)
        except Exception as error:  # protobuf and onnx raise errors of many kinds
            reason = first_line(error)[:200]
            raise SourceError(
                [f"{path}: is not a whole ONNX file ({reason}); download it again"]
            ) from error

    def consumers(self, value: str) -> list[Node]:
        """The nodes that compute with a value, seen through those that do nothing."""
        found = []
        for node in self._consumers.get(value, ()):
            if node.operator in _TRANSPARENT:
                found += self.consumers(node.output)
            elif node.operator != "Shape":  # the length of the batch, for a reshaping
                found.append(node)
        return found

    def next(self, value: str) -> Node | None:
        """The one node that computes with a value; None if there are none or several."""
        found = self.consumers(value)
        return found[0] if len(found) == 1 else None

    def take(self, value: str, operators: tuple[str, ...], where: str) -> Node:
        """The next node, which must be one of these operators; UnexpectedNode otherwise."""
        node = self.next(value)
        if node is None or node.operator not in operators:
            raise UnexpectedNode(
                f"{where} should go on with {' or '.join(operators)}, not {self.tell(value)}"
            )
        return node

    def ends(self, value: str) -> bool:
        """Whether a value is the graph's result, seen through nodes that do nothing."""
        if value in self.outputs:
            return True
        nodes = self._consumers.get(value, ())
        return any(node.operator in _TRANSPARENT and self.ends(node.output) for node in nodes)

    def tell(self, value: str) -> str:
        """What computes with a value, in words."""
        found = [node.operator for node in self.consumers(value)]
        return " and ".join(found) if found else "the end of the graph"

    def constant(self, name: str, where: str) -> np.ndarray:
        """A weight by name, without lengths of 1 that were added to it for the computation.

        Raises:
            UnexpectedNode: the value is computed.
        """
        tensor = self._weight(name)
        if tensor is None:
            raise UnexpectedNode(f"{where} computes with {name!r}, which is no weight of the file")
        array = numpy_helper.to_array(tensor)
        return array.astype(np.float32) if array.dtype.kind == "f" else array

    def _weight(self, name: str) -> onnx.TensorProto | None:
        while name in self._reshaped:
            name = self._reshaped[name]
        return self._constants.get(name)

    def other_operand(self, node: Node, where: str) -> np.ndarray:
        """The constant that a node combines with a value.

        Raises:
            UnexpectedNode: there is none, or it is subtracted from or divided by.
        """
        names = [name for name in node.inputs if self._weight(name) is not None]
        swapped = node.operator in ("Sub", "Div") and node.inputs[0] in names
        if len(node.inputs) != 2 or len(names) != 1 or swapped:
            raise UnexpectedNode(f"{where} has a {node.operator} that is none by a constant")
        return self.constant(names[0], where)


def _length(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
