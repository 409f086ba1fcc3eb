"""What is measured of clips whose motion is known."""

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tora2_jax.data.curate.measures import camera_motion, evenly, flow_score


def texture(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).random((height, width, 3))
    smooth = gaussian_filter(noise, (3, 3, 0))
    spread = (smooth - smooth.min()) / np.ptp(smooth)
    return np.round(255 * spread).astype(np.uint8)


def panned(way: tuple[int, int], frames: int = 6, size=(360, 640)) -> np.ndarray:
    """A camera over a picture; `way` is how far the picture moves in a frame, x and y."""
    height, width = size
    margin = 80
    ground = texture(height + 2 * margin, width + 2 * margin)
    views = []
    for index in range(frames):
        x, y = (margin - index * step for step in way)
        views.append(ground[y : y + height, x : x + width])
    return np.stack(views)


def zoomed(factor: float, frames: int = 5) -> np.ndarray:
    import cv2

    ground = texture(480, 640)
    views = []
    for index in range(frames):
        way = cv2.getRotationMatrix2D((320, 240), 0, factor**index)
        views.append(cv2.warpAffine(ground, way, (640, 480), borderMode=cv2.BORDER_REFLECT))
    return np.stack(views)


@pytest.mark.parametrize(
    ("way", "angle"), [((6, 0), 0), ((0, 5), 90), ((-6, 0), 180), ((0, -5), 270), ((4, 4), 45)]
)
def test_the_direction_of_a_pan(way, angle):
    found = camera_motion(panned(way))
    difference = (found.angle - angle + 180) % 360 - 180
    assert abs(difference) < 3
    # Twice as many pixels at twice as many lines.
    assert found.speed == pytest.approx(2 * np.hypot(*way), rel=0.1)
    assert found.zoom == pytest.approx(0.5, abs=0.1)


def test_zooming_in_moves_pixels_outward_and_zooming_out_inward():
    assert camera_motion(zoomed(1.03)).zoom > 0.9
    assert camera_motion(zoomed(1 / 1.03)).zoom < 0.1


def test_a_still_camera_has_no_direction_and_no_zoom():
    found = camera_motion(np.stack([texture(240, 320)] * 4))
    assert math.isnan(found.angle) and found.zoom == 0.5 and found.speed < 0.05


def test_the_flow_score_is_pixels_of_a_small_picture():
    still = np.stack([texture(320, 576)] * 3)
    assert flow_score(still) < 0.05
    assert flow_score(panned((4, 0), size=(320, 576))) == pytest.approx(4, rel=0.15)
    # The same video at twice the size moves twice as far and scores the same.
    assert flow_score(panned((8, 0), size=(640, 1152))) == pytest.approx(4, rel=0.15)
    upright = panned((0, 4), size=(576, 320))
    assert flow_score(upright) == pytest.approx(4, rel=0.15)


def test_any_estimator_can_take_the_place_of_the_flow():
    def five(video):
        return np.full((len(video) - 1, *video.shape[1:3], 2), [3.0, 4.0], np.float32)

    assert flow_score(panned((1, 0)), five) == 5
    found = camera_motion(panned((1, 0)), five)
    assert found.angle == pytest.approx(math.degrees(math.atan2(4, 3))) and found.speed == 5


def test_frames_are_spread_evenly():
    assert evenly(100, 3).tolist() == [0, 50, 99]
    assert evenly(2, 10).tolist() == [0, 1] and evenly(1, 10).tolist() == [0]
