"""Faces in a picture: found, chosen, and aligned as ArcFace wants them.

Positions are (x, y) as OpenCV and insightface count them: whole numbers are centers of pixels.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from tora2_jax.system.unusable_file import why_unusable

if TYPE_CHECKING:  # Python has it since 3.13
    from typing_extensions import TypeIs

# Eyes, nose and corners of the mouth in a 112-pixel aligned face (ArcFace's template).
FACE_TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
LANDMARKS = "the eye at the left, the eye at the right, nose, left and right corner of the mouth"
_TEMPLATE_SIZE = 112
_MIRRORED = [1, 0, 2, 4, 3]

# Sides of the square that the detector sees; the small ones find faces that fill the picture.
_SIDES = (640, 320, 160)
_LARGE_SIDE = 1280  # for faces that are small in a large picture
_THINNEST = 100  # times as long as wide: at the smallest side not a row of pixels would be left
_BORDER = 0.5  # added around tight crops on every side, in longest sides of the picture
_DETECTORS = ("scrfd_*bnkps*.onnx", "det_*.onnx", "scrfd_*.onnx")
_OUTPUTS_WITH_LANDMARKS = (9, 15)
GET_FACE_MODELS = (
    "fetch antelopev2 (its scrfd_10g_bnkps.onnx is needed) or buffalo_l (its det_10g.onnx) from "
    "https://github.com/deepinsight/insightface/releases, unzip it and name its folder "
    "(--face-models DIR; in Python and in configs, `face_models`); insightface allows its models "
    "for non-commercial research only. Nothing is downloaded here"
)


class Face(NamedTuple):
    """One face of a picture."""

    box: Float[np.ndarray, "4"]  # left, top, right, bottom
    landmarks: Float[np.ndarray, "5 2"]  # in the order of `LANDMARKS`
    score: float  # the detector's, in [0, 1]


@runtime_checkable
class FaceDetector(Protocol):
    """Finds faces."""

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> Sequence[Face]:
        """Every face of an RGB picture, in any order."""
        ...


@runtime_checkable
class _Network(Protocol):
    """insightface's SCRFD, as far as it is used."""

    def detect(
        self, img: np.ndarray, input_size: Sequence[tuple[int, int]]
    ) -> tuple[Float[np.ndarray, "faces 5"], Float[np.ndarray, "faces 5 2"]]: ...


# Which face is meant: the k-th from the left (from 1), the one around a point, or five landmarks;
# None: the largest.
Point = tuple[float, float]
Landmarks = tuple[Point, Point, Point, Point, Point]
FaceChoice = int | Point | Landmarks | None


def is_landmarks(choice: FaceChoice) -> "TypeIs[Landmarks]":
    """Whether a face is given by its landmarks, so that none need be sought."""
    return isinstance(choice, tuple) and len(choice) == len(FACE_TEMPLATE)


class FaceModelError(ValueError):
    """The folder of face models cannot be used; the message says what to fetch."""


class FaceChoiceError(ValueError):
    """The picture does not have the face that was chosen."""


class InsightFaceDetector:
    """An SCRFD detector of insightface, from a local file; loaded when first called.

    Args:
        folder: An unzipped model pack, a folder of packs, or the detector's file.

    Raises:
        FaceModelError: No detector is there; when called, that it cannot be used.
    """

    def __init__(self, folder: str | Path):
        self.path = detector_file(folder)
        self._network: _Network | None = None

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> list[Face]:
        """See `FaceDetector`; looks again with a border, then larger, if nothing was found."""
        if max(image.shape[:2]) > _THINNEST * min(image.shape[:2]):
            return []
        sides = [(side, side) for side in _SIDES]
        border = round(_BORDER * max(image.shape[:2]))
        attempts = ((sides, 0), (sides, border), ([(_LARGE_SIDE, _LARGE_SIDE)], 0))
        for input_size, added in attempts:
            if faces := self._detect(image, input_size, added):
                return faces
        return []

    def _detect(self, image: np.ndarray, input_size: list, border: int) -> list[Face]:
        if self._network is None:
            self._network = _load_detector(self.path)
        picture = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        picture = cv2.copyMakeBorder(picture, border, border, border, border, cv2.BORDER_CONSTANT)
        boxes, landmarks = self._network.detect(picture, input_size=input_size)
        return [
            Face(box[:4] - border, points - border, float(box[4]))
            for box, points in zip(boxes, landmarks, strict=True)
        ]


def detector_file(folder: str | Path) -> Path:
    """The detector of a folder of face models.

    Args:
        folder: See `InsightFaceDetector`.

    Raises:
        FaceModelError: There is none, or the folder is not there.
    """
    folder = Path(folder).expanduser()
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise FaceModelError(f"there is no folder {folder}; {GET_FACE_MODELS}")
    # Some packs unzip into a folder of the same name inside, and insightface has `models/NAME`.
    for depth in ("", "*/", "*/*/"):
        for pattern in _DETECTORS:
            if found := sorted(folder.glob(depth + pattern)):
                return found[0]
    raise FaceModelError(
        f"{folder} holds no face detector (scrfd_10g_bnkps.onnx or det_10g.onnx); {GET_FACE_MODELS}"
    )


def detector_identity(kind: str, detector: FaceDetector | None) -> str | None:
    """Changes with the detector's file; None where no such file looks for faces.

    Args:
        kind: `face_detector` of the model.
        detector: None if there is none.
    """
    path = getattr(detector, "path", None)
    if kind == "mask_top" or path is None:
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def _load_detector(path: Path) -> "_Network":
    """insightface's SCRFD on the CPU, straight from its file: nothing can be downloaded."""
    import onnxruntime
    from insightface.model_zoo.scrfd import SCRFD

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        network = SCRFD(str(path), session=session)
    except Exception as error:  # onnxruntime's own have no common base
        reason = why_unusable(path) or f"cannot be read as a face detector: {error}"
        raise FaceModelError(f"{path} {reason}; {GET_FACE_MODELS}") from error
    if len(network.output_names) not in _OUTPUTS_WITH_LANDMARKS:
        raise FaceModelError(
            f"{path} finds no landmarks ({len(network.output_names)} outputs, not 9 "
            f"or 15); {GET_FACE_MODELS}"
        )
    return network


def from_left(faces: Sequence[Face]) -> tuple[Face, ...]:
    """Sorted by the middle of their boxes."""
    return tuple(sorted(faces, key=lambda face: (face.box[0] + face.box[2], face.box[1])))


def choose(faces: Sequence[Face], choice: int | Point | None) -> int | None:
    """Which of the faces is meant; None if there is none and none in particular was asked for.

    Args:
        faces: From left to right.
        choice: See `FaceChoice`.

    Raises:
        FaceChoiceError: There is no such face.
    """
    if choice is None:
        return int(np.argmax([_area(face) for face in faces])) if faces else None
    places = ", ".join(
        "({:.0f}, {:.0f})".format(*(face.box[:2] + face.box[2:]) / 2) for face in faces
    )
    found = f"{len(faces)} found, around {places}" if faces else "no face was found"
    if isinstance(choice, int):
        if not 1 <= choice <= len(faces):
            raise FaceChoiceError(f"there is no face {choice} from the left: {found}")
        return choice - 1
    around = [index for index, face in enumerate(faces) if _contains(face.box, choice)]
    if not around:
        raise FaceChoiceError(f"no face is at [{choice[0]:g}, {choice[1]:g}]: {found}")
    return min(around, key=lambda index: _area(faces[index]))


def _area(face: Face) -> float:
    left, top, right, bottom = face.box
    return float((right - left) * (bottom - top))


def _contains(box: np.ndarray, point: Point) -> bool:
    return bool(box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3])


def landmark_fault(landmarks: Float[np.ndarray, "5 2"]) -> str | None:
    """What is wrong with landmarks that were given by hand; None if nothing can be seen."""
    if len(np.unique(landmarks, axis=0)) < len(landmarks):
        return f"two of the five points are the same; give {LANDMARKS}"
    if _misfit(landmarks[_MIRRORED]) < _misfit(landmarks) / 2:
        return f"left and right are exchanged; as seen in the picture, give {LANDMARKS}"
    return None


def _misfit(landmarks: np.ndarray) -> float:
    """Root mean square distance from the template after alignment, in its pixels."""
    points = landmarks.astype(np.float64) @ np.array([1, 1j])
    factor, shift = _similarity(points, _TEMPLATE_SIZE)
    distance = np.abs(factor * points + shift - FACE_TEMPLATE @ np.array([1, 1j]))
    return float(np.sqrt((distance**2).mean()))


def align(
    image: UInt8[np.ndarray, "height width 3"],
    landmarks: Float[np.ndarray, "5 2"],
    size: int,
    outside: int = 0,
) -> Float[np.ndarray, "size size 3"]:
    """Move five landmarks onto the template by the least-squares similarity.

    What insightface's `norm_crop` makes, except that a face that shrinks much is averaged first,
    where a warp alone would alias.

    Args:
        image: RGB.
        landmarks: In the order of `LANDMARKS`.
        size: Side of the result; the template is made for 112 and scaled.
        outside: Value of what is outside of the picture, 0 to 255.

    Returns:
        The aligned face in [0, 1].
    """
    points = np.asarray(landmarks, np.float64)
    shrink = 1.5 * abs(_similarity(points @ np.array([1, 1j]), size)[0])
    if shrink < 1:
        extent = np.array(image.shape[1::-1])
        target = np.maximum(np.round(extent * shrink), 1).astype(int)
        image = cv2.resize(image, target.tolist(), interpolation=cv2.INTER_AREA)
        points = (points + 0.5) * target / extent - 0.5
    factor, shift = _similarity(points @ np.array([1, 1j]), size)
    matrix = np.array(
        [[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]]
    )
    aligned = cv2.warpAffine(
        image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=(outside,) * 3
    )
    return aligned.astype(np.float32) / 255


def _similarity(points: np.ndarray, size: int) -> tuple[complex, complex]:
    """Factor and shift from points to the template at that size, all as complex numbers.

    A complex factor is a turn and a scale, so this is Umeyama's fit without mirroring.
    """
    template = (FACE_TEMPLATE * size / _TEMPLATE_SIZE) @ np.array([1, 1j])
    spread = points - points.mean()
    factor = np.vdot(spread, template - template.mean()) / np.vdot(spread, spread)
    return factor, template.mean() - factor * points.mean()
