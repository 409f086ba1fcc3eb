"""Quantized weights: they are recognized, so that nobody takes their integers for values."""

import re
from collections.abc import Iterable

ADVICE = "take the same model in bfloat16, float16 or float32"
# Tensors that only quantized files have -> whose they are.
_MARKS = {
    r"\.(SCB|weight_format)$": "by bitsandbytes to 8 bits",
    r"\.(absmax|quant_map|quant_state\..*)$": "by bitsandbytes to 4 bits",
    r"\.(qweight|qzeros)$": "by GPTQ or AWQ",
    r"\._(data|scale)$": "by optimum-quanto",
    r"(^|\.)(scaled_fp8|scale_weight|weight_scale(_inv)?|comfy_quant)$": "to 8 bits with scales",
    r"\.(wscales|smooth_factor)$": "by SVDQuant",
}
_EIGHT_BITS = ("F8_", "F4", "F6_")  # beginnings of safetensors' names of types


def by_names(names: Iterable[str]) -> str | None:
    """How the tensors of these names were quantized, as a sentence about their file, or None."""
    for name in names:
        for pattern, how in _MARKS.items():
            if re.search(pattern, name):
                return f"its weights were quantized {how} (it has {name}); {ADVICE}"
    return None


def by_types(types: Iterable[str]) -> str | None:
    """What is wrong with types of safetensors that numpy does not have, or None."""
    found = sorted(set(types))
    if not found:
        return None
    small = [name for name in found if name.startswith(_EIGHT_BITS)]
    advice = f"; {ADVICE}" if small else ""
    return f"holds values of type {', '.join(found)}, which are not read{advice}"
