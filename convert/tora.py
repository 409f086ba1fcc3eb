"""`python -m convert tora`: released Tora weights of either kind -> a folder to sample from."""

from pathlib import Path

from convert import conversion, tora_sat
from convert.components import TORA
from convert.engine import ConversionError, listing
from convert.tensor_files import SourceError, TensorFiles
from convert.tokenizers import t5_problems
from tora2_jax import checkpoint

_FROM_BASE = ("vae", "text")


def convert_tora(
    source: str | Path, destination: str | Path, base: str | Path | None = None
) -> list[str]:
    """Converts Tora's transformer and motion path, and makes the result self-contained.

    Weights go through array by array, each in the dtype it came with. The destination appears when
    everything is written.

    Args:
        source: A folder of the diffusers version, or the SAT version's `mp_rank_00_model_states.pt`
            or the folder it lies in; only local files are read.
        destination: Must not exist.
        base: A folder that `convert cogvideox` made. VAE, text encoder, tokenizer and scheduler
            settings are its, where the source has none; the SAT version never has.

    Returns:
        What the user should know.

    Raises:
        ConversionError: lists everything about source and base that is missing, damaged or of
            another model.
        FolderError: the destination cannot be written.
    """
    source, base = Path(source), None if base is None else Path(base)
    if not source.exists():
        raise ConversionError(f"{source}: there is no such file or folder")
    file = source / tora_sat.FILE if source.is_dir() else source
    if file.is_file():
        wanted = _check_sat(file, base)
    else:
        wanted = conversion.check_folder(source, tora=True, base=base)
    conversion.write(destination, wanted)
    return wanted.notes


def _check_sat(source: Path, base: Path | None) -> conversion.Plan:
    problems: list[str] = []
    found = None
    if base is None:
        problems.append(
            "--base is needed: a folder that `convert cogvideox` made; a SAT checkpoint has no "
            "tokenizer and no settings"
        )
    else:
        found = conversion.read_base(base, list(_FROM_BASE), problems)
    files = _open_sat(source, problems)
    specs = {} if files is None else files.specs
    fits = False
    if found is not None:
        problems += t5_problems(base / "tokenizer", found.model.text.vocab_size)
        unfit = tora_sat.base_problems(found.model, specs)
        problems += unfit
        fits = files is not None and not unfit  # else every tensor would be said to be wrong
    if not fits:
        raise listing(source, problems)
    model = conversion.with_motion(tora_sat.settings(found.model, specs), files)
    component = TORA._replace(rules=tora_sat.rules)
    jobs = conversion.make_job(component, model, files, problems)
    if problems:
        raise listing(source, problems)
    copies = {name: checkpoint.component_path(base, name) for name in _FROM_BASE}
    return conversion.Plan(model, jobs, copies, base / "tokenizer", tora_sat.notes(specs, model))


def _open_sat(source: Path, problems: list[str]) -> TensorFiles | None:
    """The file, if it is a Tora; what is wrong with it goes to `problems`."""
    try:
        files = TensorFiles(source, tora_sat.KEY)
    except SourceError as error:
        problems += error.problems
        return None
    wrong = tora_sat.file_problems(files.specs)
    problems += wrong
    return None if wrong else files
