"""A face detector with the nine outputs of SCRFD, made by hand: red discs are faces.

A cell of 8 pixels is a face as far as it is redder than blue; its green says how large the face is:
255 reaches 16 cells to every side. Landmarks stand as in ArcFace's template.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tora2_jax.references.faces import FACE_TEMPLATE

REACH = 16  # cells, at the greenest
STRIDES = (8, 16, 32)
LANDMARKS = (FACE_TEMPLATE - 56) / 56  # in reaches from the middle


def save(path: Path, outputs: int = 9) -> Path:
    """Writes the detector; with six outputs it finds no landmarks."""
    graph = _Graph()
    image = "image"
    red, green, blue = (graph.add("Gather", image, graph.number(channel), axis=1) for channel in
                        (0, 1, 2))  # fmt: skip
    redness = graph.add("Sub", red, blue)
    results: list[list[str]] = [[], [], []]
    for stride in STRIDES:
        pooled = [
            graph.add("AveragePool", graph.unsqueezed(plane), kernel_shape=[stride] * 2,
                      strides=[stride] * 2)
            for plane in (redness, green)
        ]  # fmt: skip
        # Normalized colors go from about -1 to 1.
        share = graph.add("Mul", pooled[0], graph.constant(0.5 if stride == 8 else 0.0))
        reach = graph.add("Mul", graph.add("Add", pooled[1], graph.constant(1.0)),
                          graph.constant(REACH / 2))  # fmt: skip
        results[0].append(graph.rows(share, [[1.0]]))
        results[1].append(graph.rows(reach, [[1.0]] * 4))
        results[2].append(graph.rows(reach, LANDMARKS.reshape(10, 1)))
    names = [name for group in results[: outputs // 3] for name in group]
    widths = [width for width in (1, 4, 10)[: outputs // 3] for _ in STRIDES]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "tiny",
            [helper.make_tensor_value_info(image, TensorProto.FLOAT, [1, 3, "h", "w"])],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"n{index}", width])
                for index, (name, width) in enumerate(zip(names, widths, strict=True))
            ],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


class _Graph:
    """Nodes and constants under fresh names."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def add(self, operation: str, *inputs: str, **attributes) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, list(inputs), [name], **attributes))
        return name

    def constant(self, value, dtype=np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def number(self, value: int) -> str:
        return self.constant(value, np.int64)

    def unsqueezed(self, plane: str) -> str:
        return self.add("Unsqueeze", plane, self.constant([1], np.int64))

    def rows(self, cells: str, factors) -> str:
        """`[1, 1, h, w]` times each of the factors, both anchors of a cell -> rows of factors."""
        weight = self.constant(np.reshape(factors, (-1, 1, 1, 1)))
        wide = self.add("Transpose", self.add("Conv", cells, weight), perm=[0, 2, 3, 1])
        both = self.add("Concat", wide, wide, axis=-1)
        return self.add("Reshape", both, self.constant([-1, len(factors)], np.int64))
