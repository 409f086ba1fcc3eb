"""What the tests check annotations with, see `conftest.py`."""

import warnings
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException, BeartypeDecorHintPep585DeprecationWarning

# Whole numbers are floats, as PEP 484 has it.
_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Any) -> Any:
    """beartype, except for functions with a hint that it cannot check outside of their class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
        try:
            return _beartype(function)
        except BeartypeDecorHintException:
            return function
