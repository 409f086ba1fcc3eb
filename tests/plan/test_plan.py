"""What `plan` says: operations, data between devices, machines, memory."""

import dataclasses
import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.support.sharded_step import tiny_config
from tora2_jax.config import ModelConfig
from tora2_jax.config.train import MeshConfig
from tora2_jax.errors import TrainError
from tora2_jax.hardware import flops, targets
from tora2_jax.hardware.collectives import Collective, collectives
from tora2_jax.plan import command, programs

_TERA = 1e12
_CLIP = (49, 480, 720)


def test_operations_of_the_published_model():
    works = {work.name: work.forward / _TERA for work in flops.forward_work(ModelConfig(), _CLIP)}
    assert works["linear"] == pytest.approx(169.1, abs=0.05)
    assert works["attention"] == pytest.approx(163.1, abs=0.05)
    assert works["trajectory extractor"] == pytest.approx(0.87, abs=0.005)
    assert works["fuser, spatial"] == pytest.approx(2.61, abs=0.005)
    assert works["fuser, temporal"] == pytest.approx(20.87, abs=0.005)
    assert works["cross-attention, stream"] == pytest.approx(18.5, abs=0.1)


def test_operations_of_training():
    frozen = flops.Work("linear", 10.0, "transformer", in_blocks=True)
    attention = flops.Work("attention", 5.0, None, in_blocks=True)
    trained = flops.Work("fuser", 2.0, "motion", in_blocks=True)
    encoder = flops.Work("text encoder", 1.0, "text", in_blocks=False)
    works = [frozen, attention, trained, encoder]
    model = 10 * 2 + 5 * 3 + 2 * 3 + 1
    assert flops.training_work(works, ["motion"], "none") == (model, model)
    assert flops.training_work(works, ["motion"], "full") == (model, model + 17)
    assert flops.training_work(works, ["motion"], "save_attention") == (model, model + 12)
    everything = ["motion", "transformer", "text"]
    assert flops.training_work(works, everything, "none").model == model + 10 + 2


def test_collectives_are_counted_with_the_rounds_of_their_loop():
    mesh = jax.make_mesh((2, 4), ("batch", "model"))

    def loss(x, weights):
        last, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)
        return jnp.square(last).sum()

    def placed(shape, *spec):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))

    step = jax.jit(jax.value_and_grad(loss, argnums=1))
    lowered = step.lower(placed((16, 64), "batch"), placed((6, 64, 64), None, "model"))
    found = collectives(lowered.compile().as_text())
    # The products of a split inner axis are summed over "model" in every layer: 8 x 64 numbers.
    assert any(
        x.kind == "all-reduce" and x.shapes == ("f32[8,64]",) and x.size == 2048 and x.times == 6
        for x in found
    )
    assert any(x.times == 1 and x.size == 4 for x in found)  # the loss itself


def test_speed_of_a_step():
    peak = targets.peak_of("NVIDIA H200")
    measures = flops.speed(8e15, seconds=4.0, devices=8, peak=peak)
    assert measures["speed/tflops_per_device"] == 250
    assert measures["speed/utilization"] == pytest.approx(250e12 / 989e12)
    assert set(flops.speed(1.0, 1.0, 1, targets.peak_of("cpu"))) == {"speed/tflops_per_device"}


def test_names_of_devices():
    assert targets.peak_of("TPU v5 lite") == targets.KINDS["v5e"].peak
    assert targets.peak_of("TPU v5p") == targets.peak_of("TPU v5") == targets.KINDS["v5p"].peak
    assert targets.peak_of("TPU v9") == 0


_TPU_TEXT = """
%all-reduce-scatter.1 (x: f32[8]) -> f32[4] {
  %all-reduce.1 = f32[8]{0} all-reduce(%x), channel_id=3, to_apply=%add
}

%body.2 (y: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.1 = f32[4]{0} fusion(%z), kind=kCustom, calls=%all-reduce-scatter.1
  %a2a.1 = bf16[2,4]{1,0:T(8,128)(2,1)} all-to-all(%z), channel_id=1, dimensions={1}
}

%condition.3 (y: (s32[], f32[8])) -> pred[] {
  %constant.4 = s32[]{:T(128)} constant(21)
  ROOT %lt.1 = pred[]{:T(512)} compare(%y.1, %constant.4), direction=LT
}

ENTRY %main.5 (x: f32[8]) -> f32[8] {
  %while.6 = (s32[], f32[8]{0}) while(%tuple.7), condition=%condition.3, body=%body.2
}
"""


def test_rounds_of_loops_that_only_their_condition_tells():
    found = {(x.kind, x.shapes, x.size, x.times) for x in collectives(_TPU_TEXT)}
    wanted = {("all-to-all", ("bf16[2,4]",), 16, 21), ("reduce-scatter", ("f32[8]",), 32, 21)}
    assert found == wanted


def test_a_sum_that_is_scattered_counts_what_is_summed_and_branches_count():
    text = """
%branch.1 (x: f32[8]) -> f32[4] {
  %rs.1 = f32[4]{0} reduce-scatter(%x), replica_groups={{0,1},{2,3}}, dimensions={0}
}

ENTRY %main.5 (x: f32[8]) -> f32[8] {
  %c.1 = f32[4]{0} conditional(%p, %x, %x), true_computation=%branch.1, false_computation=%other
  %rs.2 = f32[4]{0} reduce-scatter(%x), replica_groups=[2,4]<=[8], dimensions={0}
}
"""
    assert {(x.kind, x.size, x.times) for x in collectives(text)} == {
        ("reduce-scatter", 32, 1),
        ("reduce-scatter", 64, 1),
    }


def test_no_collective_on_one_device():
    step = jax.jit(lambda x: (x @ x.T).sum())
    text = step.lower(jax.ShapeDtypeStruct((4, 4), jnp.float32)).compile().as_text()
    assert collectives(text) == []


@pytest.mark.parametrize(
    ("name", "count"),
    [("v5p:4x4x4", 64), ("v6e:8x8", 64), ("tpu7x:2x2x2", 16), ("h200:8", 8), ("cpu:8", 8)],
)
def test_machines(name, count):
    assert targets.parse(name).count == count


@pytest.mark.parametrize("name", ["v5p", "v9:2", "h200:2x4", "cpu:0", "v5p:4x", ""])
def test_unknown_machines_are_told(name):
    with pytest.raises(targets.TargetError, match=r"--target: .*v5p|the number of devices"):
        targets.parse(name)


def _planned() -> command.Plan:
    """Of 80 layers in groups of two."""
    work = flops.TrainingWork(model=4e15, executed=5e15)
    mesh = jax.make_mesh((2,), ("data",))
    program = programs.Program(lambda: None, mesh, {}, {}, work, 40, 2, steps=1000)
    stream = Collective("all-to-all", ("bf16[1,1024,1024]",), 2 << 20, 40, "")
    gradients = Collective("all-reduce", ("f32[8388608]",), 32 << 20, 2, "")
    return command.Plan(program, {"frozen": 20 << 30, "batch": 0}, [stream, stream, gradients], "")


@pytest.mark.parametrize(("machine", "fits"), [("v5p:1x1x2", True), ("v5e:1x2", False)])
def test_report(machine, fits):
    target, planned = targets.parse(machine), _planned()
    text = "\n".join(command.report("model", target, True, planned))
    assert command.fits(target, planned) == fits
    assert ("DOES NOT FIT: 20.00 of" in text) != fits
    assert "all passes of one block: 2 MiB" in text  # two of a group of two blocks
    assert "1 x 2.0 MiB        bf16[1,1024,1024]" in text
    assert "whole step: 0.2 GiB" in text  # 2 x 40 x 2 + 2 x 32 MiB
    assert "4.00 PFLOP, 5.00 with" in text and "batch" not in text
    seconds = 4e15 / (2 * target.kind.peak * 0.4)
    assert f"{seconds:.2f} s per step" in text
    *told, verdict = command.report("model", target, False, planned)
    assert "fake CPU" in "\n".join(told) and "not known: on a CPU it takes 20.00 GiB" in verdict
    half = planned.program._replace(mesh=jax.make_mesh((1,), ("data",), devices=jax.devices()[:1]))
    text = "\n".join(command.report("model", target, True, planned._replace(program=half)))
    assert "data=1, which leaves 1 unused" in text and f"{2 * seconds:.2f} s per step" in text


@pytest.mark.long
def test_memory_of_sampling_is_known_before_compiling():
    config = tiny_config(mesh=MeshConfig(data=1, fsdp=2))
    program = programs.sampling(config, jax.devices()[:2], requests=1)
    whole = programs.sampling(tiny_config(mesh=MeshConfig(data=1)), jax.devices()[:1], 1)
    assert 0.4 < program.arguments["model"] / whole.arguments["model"] < 0.9
    half = programs.sampling(
        tiny_config(mesh=MeshConfig(data=1), dtype="bfloat16"), jax.devices()[:1], 1
    )
    assert 0.4 < half.arguments["model"] / whole.arguments["model"] < 0.7
    video = 2 * sum(work.forward for work in flops.forward_work(config.model, (9, 32, 48)))
    assert program.operations.model == video


def test_what_cannot_be_planned_is_told():
    devices = jax.devices()
    with pytest.raises(TrainError, match="8 devices cannot be shared"):
        programs.sampling(tiny_config(mesh=MeshConfig(data=3, fsdp=-1)), devices, 1)
    with pytest.raises(TrainError, match="only base, motion, tora2 can be planned"):
        programs.training(dataclasses.replace(tiny_config(), stage="vae"), devices)


@pytest.mark.long
@pytest.mark.parametrize("make", ["training", "sampling"])
def test_compiled_for_fake_devices(make):
    mesh = MeshConfig(data=1, fsdp=2, sequence=2)
    config = tiny_config(mesh=mesh, dtype="bfloat16", frozen_dtype="bfloat16")
    count = () if make == "training" else (1,)
    program = getattr(programs, make)(config, jax.devices()[:4], *count)
    planned = command.compile_plan(program, targets.compiler_options(targets.parse("cpu:4"), True))
    known = sum(program.arguments.values())
    assert known > 0 and planned.memory["activations"] > 0
    assert planned.memory["other"] < 0.5 * known  # inputs of a step, and small outputs
    repeated = [x for x in planned.exchanges if x.times == program.rounds]
    assert any(x.kind == "all-to-all" for x in repeated)  # attention's
    assert "GiB per device" in command.report("tiny", targets.parse("cpu:4"), True, planned)[-1]


_HAS_TPU_COMPILER = importlib.util.find_spec("libtpu") is not None


@pytest.mark.long
@pytest.mark.skipif(not _HAS_TPU_COMPILER, reason="the TPU compiler is the extra [tpu]")
@pytest.mark.parametrize("program", ["train", "sample"])
def test_toy_by_the_tpu_compiler(program):
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "tora2_jax.plan", "--config", "configs/toy.py"),
            *("--target", "v5e:2x2", "--program", program),
            *("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.sequence=2"),
        ],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
    )
    assert finished.returncode == 0, finished.stderr
    assert "compiled by the tpu compiler" in finished.stdout
    assert "fits:" in finished.stdout


_ODD = """
import jax
import jax.numpy as jnp
from tora2_jax import parallel
from tora2_jax.hardware import targets
from tora2_jax.models.layers.attention import attention
from tora2_jax.config.train import MeshConfig

target = targets.parse("h200:1")
devices = targets.devices(target, targets.prepare(target))
mesh = parallel.make_mesh(MeshConfig(data=1), devices)
place = jax.NamedSharding(mesh, jax.P())
array = jax.ShapeDtypeStruct((1, 9001, 2, 64), jnp.bfloat16, sharding=place)
gradient = jax.grad(lambda *x: attention(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2))
with parallel.use_abstractly(mesh):
    lowered = jax.jit(gradient).lower(array, array, array)
print(lowered.compile(targets.compiler_options(target, True)).as_text())
"""
_HAS_CUDA_COMPILER = importlib.util.find_spec("jax_cuda13_plugin") is not None


@pytest.mark.long
@pytest.mark.skipif(not _HAS_CUDA_COMPILER, reason="the GPU compiler is the extra [cuda]")
def test_attention_of_an_odd_length_by_the_gpu_compiler():
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    finished = subprocess.run(
        [sys.executable, "-c", _ODD], capture_output=True, text=True, env=environment
    )
    assert finished.returncode == 0, finished.stderr
    for call in ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"):
        assert f'custom_call_target="{call}"' in finished.stdout
    assert finished.stdout.count('"mask_type": "PADDING"') == 2
