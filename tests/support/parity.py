"""What every parity test shares: one measure, two tolerances, random twins."""

from collections.abc import Callable

import numpy as np

BLOCK_TOLERANCE = 1e-5
PIPELINE_TOLERANCE = 1e-4


def relative_error(actual, expected) -> float:
    """max|a - b| / max|b|; infinite if the shapes differ or anything is not finite."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("inf")
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def randomize(module, seed: int):
    """Give every parameter and buffer of a PyTorch module a random value that keeps it tame."""
    import torch

    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            noise = 0.5 + torch.rand(tensor.shape, generator=generator)
        elif tensor.ndim >= 2:
            noise = noise / max(1, tensor[0].numel()) ** 0.5
        elif name.endswith("weight"):
            noise = 1 + 0.2 * noise
        else:
            noise = 0.2 * noise
        tensor.data.copy_(noise)
    return module.eval()


def numpy_state(module) -> dict[str, np.ndarray]:
    """The state dict of a PyTorch module as numpy arrays."""
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def insensitive(
    forward: Callable[[dict[str, np.ndarray]], np.ndarray],
    variables: dict[str, np.ndarray],
    expected,
    tolerance: float = BLOCK_TOLERANCE,
) -> list[str]:
    """Paths whose values can change by one per cent without the parity check noticing.

    Args:
        forward: From all variables by path to the output; best compiled once.
        variables: The converted variables.
        expected: The output of the reference.
        tolerance: What the check allows.
    """
    unnoticed = []
    for path, value in variables.items():
        changed = {**variables, path: (value * 1.01).astype(value.dtype)}
        if relative_error(forward(changed), expected) <= tolerance:
            unnoticed.append(path)
    return unnoticed
