"""Whether weights were made for the settings of a model."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from tora2_jax.config import ModelConfig, from_dict, to_dict

_SETTINGS = {
    "motion_vae": ("vae",),
    "transformer": ("transformer", "diffusion"),
    "motion": ("motion", "diffusion"),
    "personalization": ("personalization", "binding", "diffusion"),
}
_SCHEDULE = {"num_steps", "beta_start", "beta_end", "snr_shift"}  # the rest a sampler may choose
# Not the transformer: a released base may be trained on with either.
_TRAINED_BESIDE_NULL_TEXT = {"motion", "personalization"}
_FREE = {"rematerialize", "unroll_layers"}  # may differ from what the weights were made with


def setting_differences(
    component: str,
    model: ModelConfig,
    metadata: Mapping[str, Any],
    measured: Collection[str] = (),
) -> list[str]:
    """Settings in which a model differs from the one that a component's weights were made for.

    Many of them (positions, scaling factor, epsilons) show in no shape; a wrong one would give
    wrong videos without a word.

    Args:
        component: its name, as in `WeightsConfig`.
        model: what the weights shall serve.
        metadata: of the component; nothing is said about what it leaves out.
        measured: settings that a training stage finds out itself at its end.
    """
    stored = metadata.get("model", {})
    found = []
    wanted = stored.get("null_text", model.null_text)
    if component in _TRAINED_BESIDE_NULL_TEXT and wanted != model.null_text:
        found.append(f"model.null_text is {model.null_text!r}; the weights want {wanted!r}")
    for part in _SETTINGS.get(component, (component,)):
        own, expected = getattr(model, part, None), stored.get(part)
        if own is not None and expected is not None:
            plain = json.loads(json.dumps(to_dict(own)))
            found += _differing_fields(part, plain, expected, _FREE | set(measured))
    return found


def _differing_fields(
    part: str, own: Mapping, expected: Mapping, free: Collection[str]
) -> list[str]:
    names = _SCHEDULE if part == "diffusion" else own.keys() - free
    return [
        f"model.{part}.{name} is {own[name]!r}; the weights want {expected[name]!r}"
        for name in own
        if name in names and name in expected and expected[name] != own[name]
    ]


def stored_settings(component: str, own: Any, metadata: Mapping[str, Any]) -> Any:
    """The settings that a component's weights were made for, in a config dataclass.

    Args:
        component: its name in `ModelConfig`.
        own: what the weights leave open stays as it is here.
        metadata: of the component.

    Raises:
        ValueError: it has settings that we do not know.
    """
    stored = metadata.get("model", {}).get(component) or {}
    return from_dict(type(own), to_dict(own) | stored)
