"""The annotations of what the tests import are checked: a wrong array does not get in or out."""

import importlib
import pkgutil

import jaxtyping
import numpy as np
import pytest

import convert
import tora2_jax
from tora2_jax import diffusion
from tora2_jax.config import DiffusionConfig
from tora2_jax.media.video import contact_sheet
from tora2_jax.references.crops import with_mask


def test_arrays_of_another_rank_or_type_are_refused():
    frames = np.zeros((2, 4, 6, 3), np.uint8)
    assert contact_sheet(frames).shape[-1] == 3
    for wrong in (frames[0], frames.astype(np.float32), frames[..., :2]):
        with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'frames'"):
            contact_sheet(wrong)


def test_one_letter_is_one_length_in_a_call():
    values, alpha = np.zeros((2, 3), np.float32), np.zeros(2, np.float32)
    assert diffusion.add_noise(values, values, alpha).shape == (2, 3)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'alpha'"):
        diffusion.add_noise(values, values, np.zeros(3, np.float32))


def test_other_types_are_refused_too():
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'num_inference_steps'"):
        diffusion.timesteps(DiffusionConfig(), "50")
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'num_steps'"):
        DiffusionConfig(num_steps="1000")
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'image'"):
        with_mask(np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8))


@pytest.mark.parametrize("package", [tora2_jax, convert], ids=lambda package: package.__name__)
def test_every_module_is_checked(package):
    """Whatever is imported before the hook stands, or by another way, would go unchecked."""
    unchecked = []
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not found.name.endswith("__main__"):
            loader = importlib.import_module(found.name).__loader__
            if "jaxtyping" not in type(loader).__module__:
                unchecked.append(found.name)
    assert not unchecked
