"""`python -m convert arcface`: the forms in which people hold it, and what is refused."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from flax import nnx
from onnx import helper, numpy_helper
from safetensors.torch import save_file

from tests.support import recognition_twins as twins
from tests.support import weights_rule
from tests.support.parity import BLOCK_TOLERANCE, insensitive, relative_error
from tests.support.recognition_twins import channels_first, convert, loaded, refused
from tora2_jax.config import ArcFaceConfig, ModelConfig
from tora2_jax.models.encoders.arcface import ArcFace
from tora2_jax.models.frozen import computes_in
from tora2_jax.models.layers.basic import flat_variables
from tora2_jax.weights import checkpoint
from tora2_jax.weights.settings import setting_differences

GOLDEN = Path(__file__).parents[1] / "golden"
IMAGES = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)


def face_features(folder, images=IMAGES):
    forward, arrays, _ = loaded(folder, "face", ArcFaceConfig, ArcFace)
    return forward(arrays, images)


@pytest.fixture(scope="module")
def face():
    """The twin, and its last map [b, k, c] and embedding of IMAGES."""
    twin = twins.face_twin()
    with torch.no_grad():
        images = (channels_first(IMAGES) - 0.5) / 0.5
        found = twin.map(images).flatten(2).transpose(1, 2).numpy()
        return twin, found, twin(images).numpy()


def assert_face(features, expected):
    assert relative_error(features.tokens, expected[1]) <= BLOCK_TOLERANCE
    assert relative_error(features.vector, expected[2]) <= BLOCK_TOLERANCE


@pytest.mark.parametrize("form", ["backbone.pth", "checkpoint.pt", "face.safetensors"])
def test_arcface_of_pytorch(face, form, tmp_path, capsys):
    state, source = face[0].state_dict(), tmp_path / form
    if form.endswith("safetensors"):
        save_file(state, source)
    elif form == "backbone.pth":
        torch.save(state, source)
    else:
        parallel = {f"module.{name}": value for name, value in state.items()}
        torch.save({"epoch": 3, "state_dict_backbone": parallel}, source)
    assert_face(face_features(convert("arcface", source, tmp_path / "face")), face)
    told = "config.model.face must have image_size=32, layers=(1, 2, 1, 1), widths=(4, 6, 8, 10)"
    assert told in capsys.readouterr().out


def test_arcface_parity_sees_every_array(face, tmp_path):
    torch.save(face[0].state_dict(), tmp_path / "backbone.pth")
    folder = convert("arcface", tmp_path / "backbone.pth", tmp_path / "face")
    forward, arrays, _ = loaded(folder, "face", ArcFaceConfig, ArcFace)
    assert insensitive(lambda values: forward(values, IMAGES).vector, arrays, face[2]) == []


def export(twin, path, **options):
    torch.onnx.export(
        twin,
        torch.zeros(1, 3, 32, 32),
        path,
        input_names=["input.1"],
        dynamic_axes={"input.1": {0: "None"}},
        dynamo=False,
        **{"opset_version": 11, **options},
    )
    return onnx.load(path)


def run_onnx(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


@pytest.fixture(scope="module")
def exported(face, tmp_path_factory):
    """The twin as insightface exports it: norms behind convolutions are folded."""
    path = tmp_path_factory.mktemp("onnx") / "glintr100.onnx"
    model = export(face[0], path)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("BatchNormalization") == 7  # five blocks, map, embedding
    return path


def test_arcface_of_onnx(face, exported, tmp_path):
    pixels = (255 * IMAGES - 127.5) / 127.5  # insightface's own
    expected = run_onnx(exported, np.moveaxis(pixels, -1, 1))
    features = face_features(convert("arcface", exported, tmp_path / "face"))
    assert relative_error(features.vector, expected) <= BLOCK_TOLERANCE
    assert_face(features, face)


def test_arcface_of_onnx_without_folding(face, tmp_path):
    model = export(
        face[0], tmp_path / "a.onnx", training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )  # fmt: skip
    assert [node.op_type for node in model.graph.node].count("BatchNormalization") == 22
    assert_face(face_features(convert("arcface", tmp_path / "a.onnx", tmp_path / "face")), face)


def initializers(model):
    return {tensor.name: tensor for tensor in model.graph.initializer}


def constant(model, name, array):
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
    return name


def as_mxnet(path, target):
    """The same graph as exporters of MXNet write it.

    Colors are normalized inside, by 1/128; epsilon is 2e-5; the embedding is a product and a sum;
    one slope serves all channels of the stem; no name means anything.
    """
    model = onnx.load(path)
    nodes = list(model.graph.node)
    weights = initializers(model)
    weights[nodes[1].input[1]].CopyFrom(
        numpy_helper.from_array(np.full((1, 1, 1), 0.3, np.float32), nodes[1].input[1])
    )
    subtract = helper.make_node("Sub", ["input.1", constant(model, "m", 127.5)], ["s"])
    scale = helper.make_node("Mul", ["s", constant(model, "d", [[[1 / 128]]] * 3)], ["n"])
    nodes[0].input[0] = "n"
    for node in nodes:
        if node.op_type == "BatchNormalization":
            next(item for item in node.attribute if item.name == "epsilon").f = 2e-5
    at = next(index for index, node in enumerate(nodes) if node.op_type == "Gemm")
    gemm = nodes[at]
    weight = numpy_helper.to_array(weights[gemm.input[1]])
    product = helper.make_node(
        "MatMul", [gemm.input[0], constant(model, "w", weight.T)], ["product"]
    )
    total = helper.make_node("Add", [gemm.input[2], "product"], [gemm.output[0]])
    nodes = [subtract, scale, *nodes[:at], product, total, *nodes[at + 1 :]]
    for node in nodes:
        node.name = ""
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, target)
    return target


def test_arcface_of_onnx_in_another_form(exported, tmp_path):
    source = as_mxnet(exported, tmp_path / "model.onnx")
    expected = run_onnx(source, np.moveaxis(255 * IMAGES, -1, 1))
    features = face_features(convert("arcface", source, tmp_path / "face"))
    assert relative_error(features.vector, expected) <= BLOCK_TOLERANCE


def test_arcface_equals_the_reference(tmp_path):
    """Full-size R100 from a state dict, through the command."""
    golden = np.load(GOLDEN / "arcface_r100.npz")
    seed, shapes = int(golden["seed"]), json.loads(str(golden["shapes"]))
    tensors = {name: weights_rule.tensor(name, tuple(shapes[name]), seed) for name in shapes}
    tensors["features.weight"] = np.ones(512, np.float32)  # the reference keeps this scale at 1
    state = {name: torch.from_numpy(value) for name, value in tensors.items()}
    torch.save(state, tmp_path / "backbone.pth")
    folder = convert("arcface", tmp_path / "backbone.pth", tmp_path / "face")
    features = face_features(folder, golden["image"] * 0.5 + 0.5)
    expected = golden["feature_map"].reshape(2, 512, 49).swapaxes(1, 2)
    assert relative_error(features.tokens, expected) <= BLOCK_TOLERANCE
    assert relative_error(features.vector, golden["embedding"]) <= BLOCK_TOLERANCE
    metadata = checkpoint.component_metadata(folder / "face")
    assert setting_differences("face", ModelConfig(), metadata) == []


def small_graph(path, nodes, outputs=("out",)):
    """A graph of some nodes on an image."""
    kind, shape = onnx.TensorProto.FLOAT, [1, 3, 32, 32]
    inputs = [helper.make_tensor_value_info("image", kind, shape)]
    outputs = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
    weight = numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float32), "w")
    slope = numpy_helper.from_array(np.zeros((4, 1, 1), np.float32), "a")
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight, slope])
    onnx.save(helper.make_model(graph), path)
    return path


def test_other_networks_in_onnx_are_told_from_arcface(tmp_path, capsys):
    def told(nodes, outputs=("out",)):
        source = small_graph(tmp_path / "det_10g.onnx", nodes, outputs)
        return refused(capsys, "arcface", source, tmp_path)

    convolution = helper.make_node("Conv", ["image", "w"], ["c"], pads=[1, 1, 1, 1])
    heads = [helper.make_node("Relu", ["c"], [name]) for name in ("out", "boxes", "points")]
    message = told([convolution, *heads], ("out", "boxes", "points"))
    assert "is no ArcFace iresnet: it has 1 inputs and 3 outputs, as detectors have" in message
    assert "glintr100.onnx" in message
    message = told([convolution, helper.make_node("Relu", ["c"], ["out"])])
    assert "the stem should go on with PRelu, not Relu" in message
    stem = [convolution, helper.make_node("PRelu", ["c", "a"], ["p"])]
    message = told([*stem, helper.make_node("Sigmoid", ["p"], ["out"])])
    assert "should go on with BatchNormalization, not Sigmoid" in message
    wide = helper.make_node("Conv", ["image", "w"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1])
    assert "stride 1" in told([wide, *stem[1:]])
    shifted = [
        helper.make_node("Div", ["image", "scale"], ["n"]),
        helper.make_node("Constant", [], ["scale"], value=numpy_helper.from_array(np.float32(255))),
    ]
    convolution = helper.make_node("Conv", ["n", "w"], ["c"], pads=[1, 1, 1, 1])
    assert "middle of the range" in told([shifted[1], shifted[0], convolution, *stem[1:]])


def test_damaged_onnx_is_told(exported, tmp_path, capsys):
    source = tmp_path / "glintr100.onnx"
    source.write_bytes(exported.read_bytes()[:3000])
    message = refused(capsys, "arcface", source, tmp_path)
    assert "is not a whole ONNX file" in message and "download it again" in message
    assert "there is no such file" in refused(capsys, "arcface", tmp_path / "a.onnx", tmp_path)


def test_unfit_tensors_of_arcface_are_told_at_once(face, tmp_path, capsys):
    state, source = dict(face[0].state_dict()), tmp_path / "backbone.pth"
    del state["layer2.1.bn2.running_var"], state["features.bias"]
    state["layer1.0.se.fc.weight"] = torch.zeros(3)
    torch.save(state, source)
    message = refused(capsys, "arcface", source, tmp_path)
    for told in (
        "missing: stages.1.1.norm_middle.var (6,)",
        "missing: norm_embedding.bias (7,)",
        "extra: layer1.0.se.fc.weight (3,)",
    ):
        assert told in message
    del state["fc.weight"]
    torch.save(state, source)
    assert "missing: fc.weight, which tells" in refused(capsys, "arcface", source, tmp_path)
    state["fc.weight"] = torch.zeros(7, 30)
    torch.save(state, source)
    assert "does not read a square map" in refused(capsys, "arcface", source, tmp_path)
    torch.save(twins.reid_twin(twins.Torchvision).state_dict(), source)
    assert "is no ArcFace iresnet" in refused(capsys, "arcface", source, tmp_path)


def test_half_precision_files_compute_in_full(face, tmp_path):
    """Resting as they came, or widened first, it is the same; also beside networks in bfloat16."""
    state = {name: value.half() for name, value in face[0].state_dict().items()}
    torch.save(state, tmp_path / "backbone.pth")
    folder = convert("arcface", tmp_path / "backbone.pth", tmp_path / "face")
    forward, arrays, settings = loaded(folder, "face", ArcFaceConfig, ArcFace)
    resting = nnx.eval_shape(lambda: ArcFace(settings, rngs=nnx.Rngs(0)))
    dtype = computes_in("face", jnp.bfloat16)
    checkpoint.restore_frozen(resting, folder / "face", dtype=dtype)
    assert {str(value.dtype) for value in flat_variables(resting).values()} == {"float16"}
    found = nnx.jit(lambda module, images: module(images))(resting, IMAGES).vector
    expected = forward(arrays, IMAGES).vector  # float32 parameters
    assert found.dtype == np.float32
    assert relative_error(found, expected) <= 1e-6
