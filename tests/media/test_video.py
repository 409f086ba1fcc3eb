"""Videos and pictures: what is written can be read, and what cannot be says why."""

import numpy as np
import pytest
from PIL import Image

from tora2_jax.media import video


def clip(frames=6, height=48, width=64):
    """A smooth moving gradient, which H.264 keeps well."""
    f, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    return np.stack([2 * x + 5 * f, 3 * y, 128 + 0 * x], -1).astype(np.uint8)


def test_video_survives_the_round_trip(tmp_path):
    path = tmp_path / "made" / "clip.mp4"
    video.write_video(path, clip(), fps=8)
    frames, fps = video.read_video(path)
    assert frames.shape == (6, 48, 64, 3) and fps == 8
    assert np.abs(frames.astype(int) - clip()).mean() < 3
    assert [item.name for item in path.parent.iterdir()] == ["clip.mp4"]


def test_odd_sizes_are_padded(tmp_path):
    video.write_video(tmp_path / "odd.mp4", clip(height=47, width=63)[:1], fps=29.97)
    frames, fps = video.read_video(tmp_path / "odd.mp4")
    assert frames.shape == (1, 48, 64, 3)
    assert fps == pytest.approx(29.97, abs=0.01)


@pytest.mark.parametrize("share", [0.1, 0.6, 0.9])
def test_cut_off_video(tmp_path, share):
    path = tmp_path / "clip.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), np.uint8)
    video.write_video(path, noise, fps=8)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(video.VideoError, match=r"clip\.mp4: is (cut off|damaged)"):
        video.read_video(path)


def test_what_is_no_video(tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(video.VideoError, match="damaged or no video"):
        video.read_video(tmp_path / "text.mp4")
    with pytest.raises(video.VideoError, match="no such file"):
        video.read_video(tmp_path / "none.mp4")


@pytest.mark.parametrize(
    ("name", "frames", "fps", "message"),
    [
        ("clip.avi", clip(), 8, "must end in .mp4"),
        ("clip.mp4", clip().astype(np.float32), 8, "uint8"),
        ("clip.mp4", clip()[:0], 8, "uint8"),
        ("clip.mp4", clip(), 0, "frames per second"),
        ("file/clip.mp4", clip(), 8, "cannot be written"),
    ],
)
def test_what_cannot_be_written(tmp_path, name, frames, fps, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(video.VideoError, match=message):
        video.write_video(tmp_path / name, frames, fps)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_failed_encoding_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")

    def fail(partial, *_):
        partial.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(video, "_encode", fail)
    with pytest.raises(video.VideoError, match="disk full"):
        video.write_video(path, clip(), 8)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_pictures(tmp_path):
    for channels, mode in ((1, "L"), (3, "RGB"), (4, "RGBA")):
        video.write_image(tmp_path / "a.png", np.full((5, 7, channels), 9, np.uint8))
        assert Image.open(tmp_path / "a.png").mode == mode
    wrong = (("a.png", np.zeros((5, 7, 2), np.uint8)), ("a.xyz", clip()[0]), ("a.psd", clip()[0]))
    for name, image in wrong:
        with pytest.raises(video.VideoError, match=name):
            video.write_image(tmp_path / name, image)


def test_overlay_marks_the_place_and_adds_the_references():
    frames = np.zeros((3, 96, 96, 3), np.uint8)
    tracks = np.array([[[20, 70], [40, 60], [60, 50]], [[5, 5]] * 3], np.float32)
    visible = np.array([[True, True, False], [False] * 3])
    image = np.full((10, 20, 4), 255, np.uint8)
    drawn = video.overlay(frames, tracks, visible, ["man", "kite"], [[image], [image, image]])
    assert drawn.shape[1] == 384 and drawn.shape[2] > 384
    assert drawn.shape[2] % 2 == 0
    for frame, (x, y) in ((0, (20, 70)), (1, (40, 60))):
        assert tuple(drawn[frame, y * 4, x * 4]) == video.COLORS[0]
    assert not drawn[2, 40 * 4 :, : 384 // 8].any()  # nothing where no path is
    assert not (drawn[:, :384, :384] == video.COLORS[1]).all(-1).any()  # the kite has no path
    assert (drawn[:, :, 384:] == video.COLORS[1]).all(-1).any()  # but it has references
    assert not frames.any()


def test_overlay_keeps_labels_inside():
    frames = np.zeros((1, 400, 400, 3), np.uint8)

    def drawn_pixels(place):
        drawn = video.overlay(frames, np.array([[place]]), np.ones((1, 1), bool), ["a tall woman"])
        assert drawn.shape == frames.shape
        return drawn.any(-1).sum()

    label = drawn_pixels((200, 200))
    for corner in ((0, 0), (400, 0), (400, 400), (0, 400)):
        assert drawn_pixels(corner) > 0.8 * label


def test_overlay_explains_wrong_shapes():
    with pytest.raises(video.VideoError, match="2 labels and 6 frames"):
        video.overlay(clip(), np.zeros((1, 6, 2)), np.ones((1, 6), bool), ["man", "kite"])


def test_contact_sheet():
    frames = clip(frames=7)
    sheet = video.contact_sheet(frames, columns=3)
    assert sheet.shape == (3 * 52 - 4, 3 * 68 - 4, 3)
    assert np.array_equal(sheet[52:100, 68:132], frames[4])
    few = video.contact_sheet(frames, columns=4, count=3)
    assert few.shape == (48, 3 * 68 - 4, 3)
    assert np.array_equal(few[:, -64:], frames[-1])
