"""Videos as people bring them: frames are what players show, or the message says what to do."""

import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.support.videos import cut_without_encoding, gray, number_of, quadrants, write
from tora2_jax.media import video
from tora2_jax.media.video import VideoError, VideoReadError, frames_at, read_video, video_info

GRAYS = [gray(number) for number in range(40)]
B_FRAMES = {"bf": "2", "g": "10", "sc_threshold": "0"}


def assert_close(picture: np.ndarray, expected: np.ndarray, tolerance: float = 6):
    assert picture.shape == expected.shape
    difference = np.abs(picture.astype(int) - expected)[2::9, 2::9]
    assert np.median(difference) < tolerance, np.median(difference)


def assert_read_alike(path, count: int):
    """What is known before decoding, all frames and single frames agree."""
    info, (frames, fps) = video_info(path), read_video(path)
    assert info.frames == len(frames) == count and info.fps == fps
    assert frames.shape[1:3] == (info.height, info.width)
    few = sorted({0, count // 2, count - 1})
    for number, frame in zip(few, frames_at(path, few), strict=True):
        np.testing.assert_array_equal(frame, frames[number])
    return info, frames


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270, -90, 360])
def test_turned_and_mirrored_videos_stand_upright(tmp_path, degrees, mirrored):
    path = write(
        tmp_path / "phone.mp4",
        [quadrants()] * 3,
        change=lambda stream: stream.set_display_rotation(degrees, hflip=mirrored),
    )
    expected = quadrants()[:, ::-1] if mirrored else quadrants()
    # FFmpeg counts degrees against the clock, as NumPy does; it mirrors what is turned already.
    expected = np.rot90(quadrants(), degrees // 90)
    expected = expected[:, ::-1] if mirrored else expected
    info, frames = assert_read_alike(path, 3)
    assert_close(frames[0], expected)
    assert ("turned" in info.changed) == (degrees % 360 != 0 or mirrored)


def test_a_leaning_video_is_refused(tmp_path):
    path = write(
        tmp_path / "a.mp4", [quadrants()] * 3, change=lambda one: one.set_display_rotation(30)
    )
    for read in (read_video, video_info, lambda path: next(frames_at(path, [0]))):
        with pytest.raises(VideoError, match=r"shown turned by about (29|30) degrees"):
            read(path)


@pytest.mark.parametrize("start", [0.0, 1.9])
def test_cuts_made_without_encoding_show_what_players_show(tmp_path, start):
    whole = write(tmp_path / "whole.mp4", GRAYS, options=B_FRAMES)
    path = cut_without_encoding(whole, tmp_path / "cut.mp4", start)
    first = int(np.ceil(start * 8))
    info, frames = assert_read_alike(path, 40 - first)
    assert [number_of(frame) for frame in frames] == list(range(first, 40))
    assert info.fps == pytest.approx(8, abs=1e-3) and info.times is None


def test_a_header_that_counts_hidden_frames_is_no_fault(tmp_path):
    """The edit list begins behind the second key frame: the first group is never read."""
    whole = write(tmp_path / "whole.mp4", GRAYS, options=B_FRAMES)
    with (
        av.open(str(whole)) as read,
        av.open(
            str(tmp_path / "cut.mp4"), "w", options={"avoid_negative_ts": "disabled"}
        ) as written,
    ):
        stream = read.streams.video[0]
        copy = written.add_stream_from_template(stream)
        offset = round(1.9 / stream.time_base)
        for packet in read.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
                packet.stream = copy
                written.mux(packet)
    with av.open(str(tmp_path / "cut.mp4")) as read:
        assert read.streams.video[0].frames == 40
        assert sum(1 for packet in read.demux(video=0) if packet.size) < 40
    _, frames = assert_read_alike(tmp_path / "cut.mp4", 24)
    assert [number_of(frame) for frame in frames] == list(range(16, 40))


def test_a_cut_end_is_not_shown(tmp_path):
    path = write(tmp_path / "a.mp4", GRAYS, options=B_FRAMES)
    data = bytearray(path.read_bytes())
    place = data.find(b"elst") + 12
    assert struct.unpack(">I", data[place : place + 4]) == (5000,)
    data[place : place + 4] = struct.pack(">I", 3000)  # milliseconds that the edit list shows
    path.write_bytes(data)
    with av.open(str(path)) as read:
        assert sum(1 for packet in read.demux(video=0) if packet.size) == 40
    _, frames = assert_read_alike(path, 24)
    assert [number_of(frame) for frame in frames] == list(range(24))


def test_frames_whose_key_frame_was_cut_away_do_not_count(tmp_path):
    options = {"x264-params": "open-gop=1:keyint=12:min-keyint=1:bframes=2:scenecut=0:b-adapt=0"}
    whole = write(tmp_path / "whole.mkv", GRAYS, options=options)
    with av.open(str(whole)) as read, av.open(str(tmp_path / "cut.mkv"), "w") as written:
        stream = read.streams.video[0]
        copy = written.add_stream_from_template(stream)
        packets = [packet for packet in read.demux(stream) if packet.size]
        second = [index for index, packet in enumerate(packets) if packet.is_keyframe][1]
        for packet in packets[second:]:
            packet.stream = copy
            written.mux(packet)
    shown = read_video(tmp_path / "cut.mkv")[0]
    assert len(shown) < len(packets) - second  # there are such frames
    _, frames = assert_read_alike(tmp_path / "cut.mkv", len(shown))
    numbers = [number_of(frame) for frame in frames]
    assert numbers == list(range(40 - len(shown), 40))


def test_a_varying_rate_is_told_by_times(tmp_path):
    times = [33 * k for k in range(20)] + [660 + 100 * k for k in range(20)]
    for name in ("a.mp4", "a.mkv"):
        path = write(tmp_path / name, GRAYS, 30, times=times)
        info, frames = assert_read_alike(path, 40)
        np.testing.assert_allclose(info.times, np.array(times) / 1000, atol=1e-3)
        assert info.fps == pytest.approx(39 / 2.56, rel=1e-3)
        assert info.position(39) == pytest.approx(39) and info.position(20) < 11
        assert [number_of(frame) for frame in frames] == list(range(40))


@pytest.mark.parametrize("rate", [8, 24, 30])
def test_rounded_times_are_a_constant_rate(tmp_path, rate):
    path = write(tmp_path / "a.mkv", GRAYS, rate, times=[round(1000 * k / rate) for k in range(40)])
    info = video_info(path)
    assert info.times is None and info.fps == pytest.approx(rate, rel=1e-3)
    assert info.position(7) == 7


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mov", "libx264"),
        ("a.M4V", "libx264"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx-vp9"),
        ("b.webm", "libvpx"),
        ("a.avi", "mpeg4"),
        ("b.avi", "libx264"),
    ],
)
def test_other_containers(tmp_path, name, codec):
    path = tmp_path / name
    write(tmp_path / name.lower(), GRAYS, codec=codec, options={"b": "9M"}).rename(path)
    info, frames = assert_read_alike(path, 40)
    assert [number_of(frame) for frame in frames] == list(range(40))
    assert info[1:] == (8, 64, 96, None, ())
    data = path.read_bytes()
    for share in (0.5, 0.95):
        path.write_bytes(data[: int(len(data) * share)])
        for read in (read_video, video_info):
            with pytest.raises(VideoError, match=r"is (cut off|damaged)"):
                read(path)


def tagged(**tags: int):
    def change(stream):
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)

    return change


@pytest.mark.parametrize(
    ("size", "written", "changed"),
    [
        ((64, 96), {}, ()),
        ((64, 96), {"space": "itu709", "change": tagged(colorspace=1)}, ()),
        ((64, 96), {"color_range": 2, "change": tagged(color_range=2)}, ()),
        ((64, 96), {"pixels": "yuv420p10le"}, ()),
        ((64, 1280), {"space": "itu709"}, ("BT.709",)),
        ((720, 96), {"space": "itu709"}, ("BT.709",)),
        ((720, 96), {"space": "itu709", "pixels": "yuv420p10le"}, ("BT.709",)),
        ((720, 96), {"change": tagged(colorspace=6)}, ()),
        ((720, 96), {"codec": "libx264rgb", "pixels": "rgb24"}, ()),
    ],
)
def test_colors_are_those_of_the_file_or_of_its_size(tmp_path, size, written, changed):
    path = write(tmp_path / "a.mkv", [quadrants(*size)] * 2, **written)
    info, frames = assert_read_alike(path, 2)
    assert_close(frames[0], quadrants(*size), 5)
    assert info.changed == changed


@pytest.mark.parametrize(
    ("size", "tag", "space"), [((576, 96), 6, "itu601"), ((578, 96), 1, "itu709")]
)
def test_written_videos_say_what_their_colors_are(tmp_path, size, tag, space):
    path = tmp_path / "a.mp4"
    video.write_video(path, np.stack([quadrants(*size)] * 2))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    told = (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range)
    assert told == (tag, tag, tag, 1)
    assert_close(frame.to_ndarray(format="rgb24", src_colorspace=space), quadrants(*size), 5)
    assert_close(read_video(path)[0][0], quadrants(*size), 5)


def test_pixels_become_square(tmp_path):
    def stretch(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        stream.set_display_rotation(-90)

    path = write(tmp_path / "dvd.mp4", [quadrants(64, 96)] * 2, change=stretch)
    info, frames = assert_read_alike(path, 2)
    assert info.changed == ("turned", "stretched")
    assert_close(frames[0], np.rot90(quadrants(64, 128), -1))


def test_what_would_look_wrong_is_refused_with_the_next_step(tmp_path):
    for number, name in ((16, "PQ"), (18, "HLG")):
        pixels, change = "yuv420p10le", tagged(color_trc=number, colorspace=9)
        path = write(tmp_path / "hdr.mkv", GRAYS[:2], pixels=pixels, change=change)
        for read in (read_video, video_info, lambda path: next(frames_at(path, [0]))):
            with pytest.raises(VideoError, match=rf"is HDR \({name}\).*ffmpeg -i IN -vf zscale"):
                read(path)
    path = write(tmp_path / "tv.mp4", GRAYS[:4], options={"x264-params": "interlaced=1"})
    with pytest.raises(VideoError, match=r"is interlaced.*bwdif"):
        video_info(path)


def test_titles_in_other_encodings_are_no_fault(tmp_path):
    path = write(
        tmp_path / "a.mp4",
        GRAYS[:3],
        change=lambda stream: stream.container.metadata.update(title="Caf*"),
    )
    data = path.read_bytes()
    assert b"Caf*" in data
    path.write_bytes(data.replace(b"Caf*", b"Caf\xe9"))
    assert_read_alike(path, 3)


def join(path, *sources) -> None:
    """One file of the first streams of several; of those whose flag is set, as covers."""
    parts = []
    with av.open(str(path), "w") as written:
        for source, is_cover in sources:
            with av.open(str(source)) as read:
                stream = read.streams[0]
                copy = written.add_stream_from_template(stream)
                if is_cover:
                    copy.disposition = av.stream.Disposition.attached_pic
                parts.append((copy, [packet for packet in read.demux(stream) if packet.size]))
        for copy, packets in parts:
            for packet in packets:
                packet.stream = copy
                written.mux(packet)


def test_covers_and_thumbnails_are_no_videos(tmp_path):
    picture = write(tmp_path / "picture.mkv", [quadrants()], codec="mjpeg", pixels="yuvj420p")
    clip = write(tmp_path / "clip.mp4", GRAYS)
    for is_cover in (True, False):
        join(tmp_path / "both.mov", (picture, is_cover), (clip, False))
        _, frames = assert_read_alike(tmp_path / "both.mov", 40)
        assert number_of(frames[9]) == 9
    with av.open(str(tmp_path / "sound.mp4"), "w") as written:
        stream = written.add_stream("aac", rate=48000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 48000
        written.mux(stream.encode(silence))
        written.mux(stream.encode())
    join(tmp_path / "song.mp4", (tmp_path / "sound.mp4", False), (picture, True))
    with av.open(str(tmp_path / "song.mp4")) as read:
        assert len(read.streams.video) == 1
    with pytest.raises(VideoError, match=r"song\.mp4: holds no video"):
        video_info(tmp_path / "song.mp4")


def test_a_colon_is_part_of_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("12:30:05.mp4", "http:x.mp4"):
        video.write_video(name, np.stack(GRAYS[:3]))
        assert_read_alike(name, 3)
    assert sorted(os.listdir()) == ["12:30:05.mp4", "http:x.mp4"]


def test_a_disk_that_fails_is_no_damage(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", GRAYS[:3])

    def fail(*_, **__):
        raise av.error.OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(VideoError, match="is damaged") as error:
        video_info(path)  # the file itself can be read
    assert not isinstance(error.value, VideoReadError)
    monkeypatch.setattr("pathlib.Path.open", fail)
    with pytest.raises(VideoReadError, match=r"a\.mp4: cannot be read"):
        video_info(path)


def test_frames_of_several_sizes_are_refused(tmp_path):
    parts = [
        write(tmp_path / f"{index}.h264", [gray(number, *size) for number in range(4)])
        for index, size in enumerate([(64, 96), (48, 64)])
    ]
    path = tmp_path / "call.mkv"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    told = r"call\.mkv: changes its size from 64 x 96 to 48 x 64 at frame 4; convert it with"
    with pytest.raises(VideoError, match=told):
        read_video(path)
    assert [number_of(frame) for frame in frames_at(path, [0, 3])] == [0, 3]
    with pytest.raises(VideoError, match=told):
        list(frames_at(path, [0, 4]))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "is a Git LFS poin",
        ),
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"", "is empty; download"),
        (bytes(1000), r"is damaged or no video \(Invalid data found when processing input\)"),
    ],
)
def test_what_is_no_video_is_recognized(tmp_path, content, told):
    (tmp_path / "a.mp4").write_bytes(content)
    for read in (read_video, video_info):
        with pytest.raises(VideoError, match=rf"a\.mp4: {told}"):
            read(tmp_path / "a.mp4")
