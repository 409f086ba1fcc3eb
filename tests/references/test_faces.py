"""Faces: alignment as insightface does it, its detector from a local folder, the choice of one."""

import cv2
import numpy as np
import pytest
from insightface.utils import face_align

from tests.support.tiny_detector import LANDMARKS, save
from tora2_jax.references.faces import (
    FACE_TEMPLATE,
    Face,
    FaceChoiceError,
    FaceModelError,
    InsightFaceDetector,
    align,
    choose,
    detector_file,
    from_left,
    landmark_fault,
)

POSES = [(1.2, 0, (90, 60)), (0.9, 35, (200, 30)), (1.1, -80, (150, 250)), (0.7, 170, (200, 220))]


def photo(height=320, width=400, detail=24):
    """Smooth random colors: neither edges nor anything finer than `detail` pixels."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // detail, width // detail, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def pose(scale, degrees, shift, deviation=2.0):
    """Landmarks of a face that is no exact copy of the template."""
    angle = np.deg2rad(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    noise = np.random.default_rng(3).normal(0, deviation * scale, (5, 2))
    return FACE_TEMPLATE @ turn.T + shift + noise


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("size", [112, 224])
@pytest.mark.parametrize("scale, degrees, shift", POSES)
def test_alignment_is_that_of_insightface(scale, degrees, shift, size):
    image = photo()
    landmarks = pose(scale * size / 112, degrees, shift)
    expected = face_align.norm_crop(image, landmarks, size)
    rounding = 1.001  # gray levels; the template is rounded to float32 there
    np.testing.assert_allclose(align(image, landmarks, size) * 255, expected, atol=rounding)
    a_pixel = np.array([1, 0])
    moved = face_align.norm_crop(image, landmarks + a_pixel, size)
    assert np.abs(moved - expected.astype(float)).max() > 3 * rounding


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_large_faces_are_aligned_to_within_a_pixel_without_aliasing():
    image, landmarks = photo(1600, 2000, 120), pose(7.3, 20, (700, 300))
    expected = face_align.norm_crop(image, landmarks).astype(float)
    inside = slice(4, -4)

    def distance(points):
        found = align(image, points, 112) * 255
        return np.abs(found - expected)[inside, inside].mean()

    a_pixel = 7.3 * np.eye(2)
    assert 5 * distance(landmarks) < min(distance(landmarks + step) for step in a_pixel)
    stripes = np.where(np.arange(2000) % 10 < 5, 0, 255).astype(np.uint8)
    stripes = np.broadcast_to(stripes[None, :, None], image.shape).copy()
    assert face_align.norm_crop(stripes, landmarks).std() > 80  # aliased
    assert align(stripes, landmarks, 112)[inside, inside].std() * 255 < 40


def faces_of(*columns):
    """Faces of sides 20, 40, 60, ..., left to right at these columns."""
    return [
        Face(np.array([x, 10, x + side, 10 + side]), FACE_TEMPLATE, 0.9)
        for side, x in zip(range(20, 200, 20), columns, strict=False)
    ]


def test_the_largest_or_the_chosen_face():
    faces = from_left(faces_of(300, 100, 200))  # the largest, 60 wide, is in the middle
    assert [face.box[0] for face in faces] == [100, 200, 300]
    assert choose(faces, None) == 1
    assert [choose(faces, number) for number in (1, 2, 3)] == [0, 1, 2]
    assert choose(faces, (305, 15)) == 2
    assert choose(faces_of(100, 90), (110, 20)) == 0  # in both: the smaller
    assert choose([], None) is None
    with pytest.raises(FaceChoiceError, match=r"no face 4 from the left: 3 found, around \(120"):
        choose(faces, 4)
    with pytest.raises(FaceChoiceError, match=r"no face is at \[5, 5\]: 3 found"):
        choose(faces, (5, 5))
    with pytest.raises(FaceChoiceError, match="no face was found"):
        choose([], 1)


def test_landmarks_by_hand_are_looked_at():
    assert all(landmark_fault(pose(*values)) is None for values in POSES)
    profile = pose(1, 0, (0, 0)) * [0.2, 1]
    assert landmark_fault(profile) is None
    assert "exchanged" in landmark_fault(pose(*POSES[1])[[1, 0, 2, 4, 3]])
    assert "the same" in landmark_fault(np.ones((5, 2)))


def people(*faces, height=480, width=640):
    """A white picture with a face for every (x, y, greenness); x and y are multiples of 8."""
    image = np.full((height, width, 3), 255, np.uint8)
    for x, y, green in faces:
        image[y : y + 8, x : x + 8] = 255, green, 0
    return image


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save(folder / "antelopev2" / "scrfd_10g_bnkps.onnx")
    return folder


def test_insightface_finds_faces_with_local_models(models):
    detector = InsightFaceDetector(models)
    left, right = from_left(detector(people((400, 200, 80), (80, 240, 40))))
    for face, (x, y, green) in ((left, (80, 240, 40)), (right, (400, 200, 80))):
        reach = 128 * ((green - 127.5) / 128 + 1) / 2
        np.testing.assert_allclose(face.box, [x - reach, y - reach, x + reach, y + reach], atol=0.1)
        np.testing.assert_allclose(face.landmarks, LANDMARKS * reach + [x, y], atol=0.1)
        assert 0.9 < face.score <= 1
    blue = people((400, 200, 80))[..., ::-1]
    assert not detector(np.ascontiguousarray(blue))
    for height, width in ((1, 1000), (9, 1), (1, 1)):  # boxes may be like this
        assert not detector(np.zeros((height, width, 3), np.uint8))


def test_tight_crops_get_a_border_and_small_faces_a_larger_picture(models):
    detector = InsightFaceDetector(models)
    asked = []

    class Network:
        """Finds a face in the middle of pictures that have a black corner."""

        def detect(self, picture, input_size):
            asked.append((picture.shape, input_size))
            if picture[0, 0].any():
                return np.zeros((0, 5)), np.zeros((0, 5, 2))
            middle = np.array(picture.shape[1::-1]) / 2
            return np.array([[*(middle - 10), *(middle + 10), 0.8]]), middle + np.zeros((1, 5, 2))

    detector._network = Network()
    (face,) = detector(np.full((100, 60, 3), 200, np.uint8))
    assert [shape for shape, _ in asked] == [(100, 60, 3), (200, 160, 3)]
    np.testing.assert_allclose(face.box, [20, 40, 40, 60])
    np.testing.assert_allclose(face.landmarks, np.broadcast_to([30, 50], (5, 2)))
    asked.clear()
    detector._network.detect = lambda picture, input_size: (
        asked.append(input_size) or (np.zeros((0, 5)), np.zeros((0, 5, 2)))
    )
    assert detector(np.full((100, 60, 3), 200, np.uint8)) == []
    assert max(side for side, _ in asked[0]) < max(side for side, _ in asked[-1])


def test_face_models_that_cannot_be_used_are_told(models, tmp_path):
    with pytest.raises(FaceModelError, match="there is no folder") as error:
        InsightFaceDetector(tmp_path / "nowhere")
    for part in ("antelopev2", "buffalo_l", "https://github.com/deepinsight", "non-commercial"):
        assert part in str(error.value)
    (tmp_path / "glintr100.onnx").write_bytes(b"")
    with pytest.raises(FaceModelError, match=r"holds no face detector.*det_10g\.onnx"):
        InsightFaceDetector(tmp_path)
    (tmp_path / "det_10g.onnx").write_bytes(b"no network")
    with pytest.raises(FaceModelError, match="cannot be read as a face detector"):
        InsightFaceDetector(tmp_path)(people())
    with pytest.raises(FaceModelError, match="finds no landmarks"):
        InsightFaceDetector(save(tmp_path / "boxes.onnx", outputs=6))(people())
    pack = models / "antelopev2"
    assert detector_file(models) == detector_file(pack) == pack / "scrfd_10g_bnkps.onnx"
    save(models / "elsewhere" / "models" / "buffalo_l" / "det_10g.onnx")
    assert detector_file(models / "elsewhere").name == "det_10g.onnx"
