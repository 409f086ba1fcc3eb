"""Where shots begin: given cuts, those that TransNetV2 finds, dissolves, long shots in parts."""

import numpy as np
import pytest

from tests.data.curate.test_measures import panned
from tests.data.curate.test_run import world
from tora2_jax.data.curate import shots
from tora2_jax.data.curate.shots import CutError, GivenCuts, Shot, cuts_of, shots_of, small_frames


@pytest.mark.parametrize(
    ("ends", "cuts"),
    [
        ([], []),
        ([4], [5]),  # a hard cut behind frame 4
        ([4, 5, 6, 7], [4, 8]),  # a dissolve is a shot of its own
        ([0, 9], [1]),
        ([3, 6], [4, 7]),
    ],
)
def test_cuts_of_frames_at_which_shots_end(ends, cuts):
    marked = np.zeros(10, bool)
    marked[ends] = True
    assert cuts_of(marked) == cuts


def test_shots_between_cuts_and_long_ones_in_parts():
    times = np.arange(101) / 10
    assert shots_of(times, [30, 0, 100, 999], 100) == [(0, 30), (30, 100)]
    assert shots_of(times, [], 5) == [(0, 50), (50, 100)]
    assert shots_of(times, [60], 4) == [(0, 30), (30, 60), (60, 100)]
    assert shots_of(np.array([0.0, 1.0]), [], 10) == [Shot(0, 1)]


def test_where_the_rate_varies_parts_are_as_long_in_time():
    # Fifty seconds of one frame each, then ten of sixty frames.
    times = np.concatenate([np.arange(50.0), 50 + np.arange(601) / 60])
    parts = shots_of(times, [], 10)
    lengths = [times[part.end] - times[part.start] for part in parts]
    assert len(parts) == 6 and np.allclose(lengths, 10) and parts[-1] == (50, 650)


def test_a_table_of_cuts(tmp_path):
    table = tmp_path / "cuts.csv"
    table.write_text("\ufeffvideo,frame\na.mp4,20\na.mp4,10\nu\u0308.mp4,5\n", encoding="utf-8")
    given = GivenCuts(table)
    assert given.of("a.mp4") == [10, 20] and given.of("ü.mp4") == [5] and given.of("b.mp4") is None
    for text, told in (("a.mp4,x\n", "line 1"), ("video,frame\na\n", "line 2")):
        table.write_text(text)
        with pytest.raises(CutError, match=told):
            GivenCuts(table)
    with pytest.raises(CutError, match="cannot be read"):
        GivenCuts(tmp_path / "none.csv")


@pytest.mark.long
def test_transnet_finds_the_cuts_between_joined_clips():
    joined = np.concatenate(
        [world(0).video, panned((1, 1), 40, (192, 256)), world(3).video, world(5).video]
    )
    found = shots.TransNet()(small_frames(joined))
    assert {17, 57} <= set(found) and all(cut in (17, 57, 74) for cut in found)


@pytest.mark.long
def test_text_is_found_where_it_is():
    import cv2

    from tora2_jax.data.curate.text_area import TextFinder

    plain = np.full((360, 640, 3), 200, np.uint8)
    written = plain.copy()
    for line in range(4):
        place = (30, 80 + 70 * line)
        cv2.putText(written, "SUBSCRIBE NOW", place, cv2.FONT_HERSHEY_SIMPLEX, 2, (0, 0, 0), 5)
    finder = TextFinder()
    assert finder([plain]) == 0
    assert 0.1 < finder([written]) < 0.6
    assert finder([plain, written]) == pytest.approx(finder([written]) / 2)
