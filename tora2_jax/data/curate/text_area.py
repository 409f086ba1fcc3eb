"""How much of the picture is text, by RapidOCR (PP-OCR; Apache-2.0, weights in the package)."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

_LONGER = 960  # pixels of the longer side at which text is looked for


class TextFinder:
    """RapidOCR's text detector.

    Raises:
        ImportError: it is not installed; the message says what to install.
    """

    def __init__(self):
        try:
            from rapidocr_onnxruntime import RapidOCR
        except ImportError as error:
            reason = "rapidocr-onnxruntime is needed to find text: pip install -e '.[curate]'"
            raise ImportError(f"{reason}; or set text_finder to none") from error

        self._detect = RapidOCR().text_det

    def __call__(self, frames: Sequence[UInt8[np.ndarray, "height width 3"]]) -> float:
        """The share of the picture that text covers, in the mean over frames."""
        return float(np.mean([self._share(frame) for frame in frames]))

    def _share(self, frame: UInt8[np.ndarray, "height width 3"]) -> float:
        scale = min(1.0, _LONGER / max(frame.shape[:2]))
        size = round(frame.shape[1] * scale), round(frame.shape[0] * scale)
        small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        boxes, _ = self._detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        covered = np.zeros(small.shape[:2], np.uint8)
        for box in [] if boxes is None else boxes:
            cv2.fillPoly(covered, [np.round(box).astype(np.int32)], 1)
        return float(covered.mean())
