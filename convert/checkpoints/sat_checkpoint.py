"""A checkpoint of SAT, CogVideoX's or Tora's, together with the base that has the rest."""

from pathlib import Path

from convert.checkpoints import conversion
from convert.checkpoints.components import COMPONENTS, TORA
from convert.engine.rules import listing
from convert.engine.tensor_files import TensorFiles
from convert.engine.tokenizers import t5_problems
from convert.families import tora_sat
from tora2_jax.weights import checkpoint

FROM_BASE = ("vae", "text")


def check(source: Path, files: TensorFiles, tora: bool, base: Path | None) -> conversion.Plan:
    """Checks a checkpoint and its base as a whole.

    Args:
        source: How messages call the checkpoint.
        files: Its tensors.
        tora: Whether it is to be Tora or CogVideoX.
        base: A folder that `convert cogvideox` made.

    Raises:
        ConversionError: lists everything about both that is missing, damaged or of another model.
    """
    problems = tora_sat.file_problems(files.specs, tora)
    found, fits = None, not problems
    if base is None:
        problems.append(
            "--base is needed: a folder that `convert cogvideox` made; a SAT checkpoint has no "
            "VAE, text encoder, tokenizer and settings"
        )
    else:
        found = conversion.read_base(base, list(FROM_BASE), problems)
    if fits:
        files.rename(tora_sat.network_prefix(files.specs), tora_sat.NETWORK)
    if found is not None:
        problems += t5_problems(base / "tokenizer", found.model.text.vocab_size)
        unfit = tora_sat.base_problems(found.model, files.specs, tora)
        problems += unfit
        fits = fits and not unfit  # else every tensor would be said to be wrong
    if not fits or found is None:
        raise listing(source, problems)
    model = tora_sat.settings(found.model, files.specs, tora)
    component = COMPONENTS["transformer"]
    if tora:
        model, component = conversion.with_motion(model, files), TORA
    component = component._replace(rules=tora_sat.rules)
    jobs = conversion.make_job(component, model, files, problems)
    if problems:
        raise listing(source, problems)
    copies = {name: checkpoint.component_path(base, name) for name in FROM_BASE}
    notes = files.notes + tora_sat.notes(files.specs, model)
    return conversion.Plan(model, jobs, copies, base / "tokenizer", notes)
