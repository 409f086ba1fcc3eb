"""How the programs that work with a training config read their flags."""

import sys
from typing import Literal

from absl import flags
from ml_collections import config_flags


def define_config() -> None:
    """Defines `--config FILE` and `--config.FIELD=VALUE`."""
    # The choices are checked with the rest of the config (train_config.problems).
    config_flags.register_flag_parser_for_type(Literal, flags.ArgumentParser())
    config_flags.DEFINE_config_file("config", None, "A file of configs/.")


def parse(arguments: list[str]) -> list[str]:
    """The parser for `app.run`: what is wrong with a flag is told in words, with exit code 2."""
    try:
        rest = flags.FLAGS(arguments)
        getattr(flags.FLAGS.config, "stage", None)  # raises if the file could not be loaded
        return rest
    except (flags.Error, AttributeError, ValueError, TypeError, KeyError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
