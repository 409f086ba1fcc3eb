"""Whether weights were made for the settings of a model."""

import json
from collections.abc import Mapping
from typing import Any

from tora2_jax.config import ModelConfig, to_dict

_SETTINGS = {"motion_vae": ("vae",), "personalization": ("personalization", "binding")}
_FREE = {"rematerialize"}  # may differ from what the weights were made with


def setting_differences(
    component: str, model: ModelConfig, metadata: Mapping[str, Any]
) -> list[str]:
    """Settings in which a model differs from the one that a component's weights were made for.

    Many of them (positions, scaling factor, epsilons) show in no shape; a wrong one would give
    wrong videos without a word.

    Args:
        component: its name, as in `WeightsConfig`.
        model: what the weights shall serve.
        metadata: of the component; nothing is said about what it leaves out.
    """
    found = []
    for part in _SETTINGS.get(component, (component,)):
        own = getattr(model, part, None)
        stored = metadata.get("model", {}).get(part)
        if own is None or stored is None:
            continue
        for name, value in json.loads(json.dumps(to_dict(own))).items():
            if name in stored and name not in _FREE and stored[name] != value:
                found.append(f"model.{part}.{name} is {value!r}; the weights want {stored[name]!r}")
    return found
