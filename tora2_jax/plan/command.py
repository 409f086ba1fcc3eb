"""Whether a run fits its machine, and what it costs, before there is a machine.

    python -m tora2_jax.plan --config configs/tora2_5b.py --target v5p:4x4x4 [--config.mesh.fsdp=16]
    python -m tora2_jax.plan --config ... --target h200:8 --program sample [--requests 1]

compiles one step of training or sampling with the target's own compiler (`pip install
tora2_jax[tpu]` or `[cuda]`; neither needs the hardware), and prints the memory of one device by
kind, what a block sends between devices, operations, and the time at an assumed utilization.
Without that compiler, fake CPU devices stand in for the machine, and the output says so.

Exit codes: 0 it fits; 1 it does not, or the compiler refuses it; 2 something has to be changed;
3 not known, because the compiler is not here.
"""

import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from absl import flags

from tora2_jax import parallel
from tora2_jax.config import flags as train_flags
from tora2_jax.errors import TrainError
from tora2_jax.hardware import collectives, targets
from tora2_jax.plan import programs
from tora2_jax.system import feedback
from tora2_jax.system.addresses import address_problems
from tora2_jax.system.files import write_text

UTILIZATION = 0.4  # of the devices' peak; what well-tuned trainings of video diffusion reach
_SHOWN = 1 << 20  # bytes; smaller exchanges are counted but not listed
_SECONDS_PER_DAY = 86_400


class Plan(NamedTuple):
    """What the compiler says of one program."""

    program: programs.Program
    memory: dict[str, int]  # bytes of one device by kind
    exchanges: list[collectives.Collective]
    text: str  # of the compiled program


def compile_plan(program: programs.Program, options: Mapping[str, Any]) -> Plan:
    """Compiles a program for the devices of its mesh, with options of the compiler.

    Raises:
        jax.errors.JaxRuntimeError: the compiler refuses the program, as for lack of memory.
    """
    compiled = program.lower().compile(dict(options))
    memory, text = _memory(program, compiled.memory_analysis()), compiled.as_text()
    return Plan(program, memory, collectives.collectives(text), text)


def _memory(program: programs.Program, sizes) -> dict[str, int]:
    # Activations: with gradients, and whatever else lives while the program runs.
    known = program.arguments | {"activations": sizes.temp_size_in_bytes}
    total = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    total += sizes.temp_size_in_bytes - sizes.alias_size_in_bytes
    return known | {"other": max(0, total - sum(known.values()))} | program.beside


def report(model: str, target: targets.Target, compiled: bool, plan: Plan) -> list[str]:
    """The plan in lines of text.

    Args:
        model: Its name.
        target: The machine.
        compiled: Whether by its own compiler.
        plan: From `compile_plan`.
    """
    compiler = f"compiled by the {target.kind.platform} compiler"
    if not compiled:
        compiler = (
            f"compiled for {target.count} fake CPU devices, because the compiler of "
            f"{target.kind.platform} is not installed: memory and exchanges are those of a CPU"
        )
    mesh = plan.program.mesh
    axes = parallel.written(mesh)
    if mesh.size < target.count:
        axes += f", which leaves {target.count - mesh.size} unused"
    lines = [
        f"{model} on {target.name}: {target.count} devices, {axes}",
        compiler,
        "",
        "memory of one device, GiB",
        *(f"  {kind:14} {size / 2**30:8.2f}" for kind, size in plan.memory.items() if size),
        "",
        *_exchange_lines(target, plan),
        "",
        *_cost_lines(target, plan.program),
        "",
    ]
    return [*lines, _verdict(target, compiled, plan)]


def fits(target: targets.Target, plan: Plan) -> bool:
    """Whether one device has the memory; unknown machines have."""
    return not target.kind.memory or sum(plan.memory.values()) <= target.kind.memory


def _verdict(target: targets.Target, compiled: bool, plan: Plan) -> str:
    total = sum(plan.memory.values()) / 2**30
    if not target.kind.memory:
        return f"{total:.2f} GiB per device"
    room = target.kind.memory / 2**30
    if not compiled:
        return (
            f"whether it fits is not known: on a CPU it takes {total:.2f} GiB, a device has "
            f"{room:.2f}; install the compiler (docs/plan.md)"
        )
    return f"{'fits' if fits(target, plan) else 'DOES NOT FIT'}: {total:.2f} of {room:.2f} GiB"


def _exchange_lines(target: targets.Target, plan: Plan) -> list[str]:
    inside = [exchange for exchange in plan.exchanges if exchange.times == plan.program.rounds]
    per_block = sum(exchange.size for exchange in inside) / plan.program.blocks / 2**20
    lines = [f"exchanged per device in all passes of one block: {per_block:.0f} MiB, of them"]
    listed: Counter = Counter()
    for exchange in inside:
        if exchange.size >= _SHOWN:
            listed[exchange.kind, " ".join(exchange.shapes), exchange.size] += 1
    for (kind, shapes, size), count in sorted(listed.items(), key=lambda item: -item[0][2]):
        times = f"{count / plan.program.blocks:g} x {size / 2**20:.1f} MiB"
        lines.append(f"  {kind:19} {times:18} {shapes}")
    total = sum(exchange.size * exchange.times for exchange in plan.exchanges)
    line = f"in a whole step: {total / 2**30:.1f} GiB"
    if target.kind.link:
        line += (
            f", {total / target.kind.link:.1f} s at the links' full speed "
            f"({target.kind.link / 1e9:.0f} GB/s) if none of it is hidden"
        )
    return [*lines, line]


def _cost_lines(target: targets.Target, program: programs.Program) -> list[str]:
    work = program.operations
    lines = [
        f"operations of a step: {work.model / 1e15:.2f} PFLOP, "
        f"{work.executed / 1e15:.2f} with what is computed again"
    ]
    if target.kind.peak:
        seconds = work.model / (target.kind.peak * program.mesh.size * UTILIZATION)
        line = (
            f"estimate at {UTILIZATION:.0%} utilization (assumed, not measured): "
            f"{seconds:.2f} s per step"
        )
        if program.steps > 1:
            days = seconds * program.steps / _SECONDS_PER_DAY
            line += f", {days:.1f} days for {program.steps} steps"
        lines.append(line)
    return lines


def main(arguments: list[str]) -> int:
    """Prints the plan; returns the exit code (see the module)."""
    del arguments
    options = flags.FLAGS
    try:
        if problems := address_problems({"--text": options.text}):
            raise TrainError(*problems)
        target = targets.parse(options.target)
        has_compiler = targets.prepare(target)
        devices = targets.devices(target, has_compiler)
        if options.program == "train":
            program = programs.training(options.config, devices)
        else:
            program = programs.sampling(options.config, devices, options.requests)
        with feedback.working("compiling"):
            plan = compile_plan(program, targets.compiler_options(target, has_compiler))
    except (TrainError, targets.TargetError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except jax.errors.JaxRuntimeError as error:
        sys.stderr.write(f"the compiler refuses the program: {str(error)[:2000]}\n")
        return 1
    print("\n".join(report(options.config.model.name, target, has_compiler, plan)))
    if options.text:
        try:
            write_text(options.text, plan.text)
        except OSError as error:
            sys.stderr.write(f"--text: {error}\n")
            return 2
    if not has_compiler:
        return 3
    return 0 if fits(target, plan) else 1


def run(arguments: list[str]) -> None:
    """The program: defines the flags, reads them, plans, exits."""
    train_flags.define_config()
    flags.DEFINE_string("target", None, "The machine: v5p:4x4x4, v6e:8x8, h200:8, cpu:8, ...")
    flags.DEFINE_enum("program", "train", ["train", "sample"], "One step of which program.")
    flags.DEFINE_integer("requests", 1, "Videos at once, when sampling.", lower_bound=1)
    flags.DEFINE_string("text", None, "File to write the compiled program to (HLO).")
    train_flags.run(main, arguments, __doc__, needed=("config", "target"))
