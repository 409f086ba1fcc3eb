"""Raw videos to annotated clips (docs/curation.md).

    python scripts/curate.py run --input DIR --output DIR --config configs/curate_small.py

Run again it goes on: a video with a record is done. Nothing of the input is touched. The output is
a folder of annotated clips (docs/entity_clips.md) with one small record per video in `curated/`.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

from tora2_jax.config.curate import CurateConfig
from tora2_jax.data.curate import report, run
from tora2_jax.data.curate.tools import ToolError, missing_filters
from tora2_jax.system.addresses import local_path
from tora2_jax.system.stop import exit_code


def main(arguments: list[str] | None = None) -> int:
    """Parse, curate, report; exit code 2 and one message for anything that the user can mend."""
    options = _parser().parse_args(arguments)
    try:
        config = load_config(options.config)
        most = options.dry_run
        wanted = run.Options(options.input, options.output, config, options.workers, most)
        records = run.run(wanted)
    except (run.CurateError, ToolError) as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(report.lines(records, config, missing_filters(config))))
    return 0


def load_config(path: Path) -> CurateConfig:
    """What `get_config` of a Python file returns.

    Raises:
        CurateError: there is no such file, it fails, or it returns something else.
    """
    specification = importlib.util.spec_from_file_location("curate_config", path)
    if not path.is_file() or specification is None or specification.loader is None:
        raise run.CurateError(f"--config: {path} is no Python file")
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # the file is a program, which may fail in any way
        raise run.CurateError(f"--config: {path}: {type(error).__name__}: {error}") from error
    if not isinstance(config, CurateConfig):
        raise run.CurateError(f"--config: {path} makes {config!r}, which is no CurateConfig")
    return config


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Raw videos to annotated clips.")
    commands = parser.add_subparsers(dest="command", required=True)
    text = "cut, filter and annotate every video of a folder"
    once = commands.add_parser("run", help=text, description=text)
    once.add_argument("--input", type=local_path, required=True, help="folder with videos")
    once.add_argument(
        "--output", type=local_path, required=True, help="folder of annotated clips, made if needed"
    )
    once.add_argument(
        "--config", type=local_path, required=True, help="configs/curate_small.py, or one of yours"
    )
    once.add_argument(
        "--workers", type=int, default=1, help="processes; more than one need Ray; default: 1"
    )
    once.add_argument(
        "--dry-run",
        type=int,
        metavar="N",
        help="the first N videos only, to see what each threshold would keep",
    )
    return parser


if __name__ == "__main__":
    sys.exit(exit_code(main))
