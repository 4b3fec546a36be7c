"""Each frame at its time: what the rows of features name is what the time line says, whatever the file is like."""
import os
from fractions import Fraction

import clips
import numpy as np
import pytest

pytest.importorskip("av", reason="videos need PyAV (requirements-video.txt)")

from bmn.errors import UserError
from bmn.video.decoding import Film, upright

KINDS = {"mp4": ("libx264", {"bf": 3, "g": 12}), "mkv": ("libx264", {"bf": 2}), "webm": ("libvpx-vp9", {}),
         "avi": ("mpeg4", {}), "ts": ("libx264", {"bf": 3}), "mpg": ("mpeg2video", {"bf": 2})}


def shown(path, rate=None):
    """(numbers of the frames on the grid, the film)"""
    film = Film(str(path))
    return [clips.number_of(picture.rgb()) for picture in film.on_grid(rate or film.span.fps)], film


@pytest.mark.parametrize("fps", ["25", "30000/1001", "12.5", "60"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [1, 47])
def test_at_a_constant_rate_each_frame_is_met_once_in_order(tmp_path, kind, fps, frames):
    if kind == "mpg" and fps == "12.5":
        fps = "24"              # this format knows a few rates only
    codec, options = KINDS[kind]
    clips.write(tmp_path / ("a." + kind), frames, fps, codec=codec, **options)
    numbers, film = shown(tmp_path / ("a." + kind))
    assert numbers == list(range(frames))
    if frames > 1:
        assert film.span.fps == pytest.approx(float(Fraction(fps)), rel=2e-3)
        assert film.seconds == pytest.approx(frames / float(Fraction(fps)), rel=2e-3)


@pytest.mark.parametrize("case", range(6))
@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_at_a_variable_rate_the_time_decides(tmp_path, kind, case, rng):
    rng.seed(case)
    steps = rng.choice([1, 2, 3, 8], 60) * Fraction(1, 30)
    times = [sum(steps[:number], Fraction(0)) for number in range(60)]
    clips.write(tmp_path / ("a." + kind), fps=30, times=times, codec="libx264", bf=2)
    rate = float(rng.choice([5, 12.5, 29.97]))
    numbers, film = shown(tmp_path / ("a." + kind), rate)
    middles = (np.arange(len(numbers)) + 0.5) / rate
    want = np.searchsorted(np.array(times, float), middles, side="right") - 1
    clear = np.abs(np.subtract.outer(middles, np.array(times, float))).min(1) > 2e-3    # Matroska counts milliseconds
    assert (np.array(numbers) == want)[clear].all() and clear.sum() > 20
    assert film.seconds == pytest.approx(float(times[-1]), abs=0.3) and len(numbers) == round(film.seconds * rate)
    own, film = shown(tmp_path / ("a." + kind))
    assert abs(len(own) - 60) <= 1                # the file's own rate is the mean


def test_a_video_that_begins_after_its_sound_is_shown_from_there_on(tmp_path):
    clips.write(tmp_path / "late.mkv", 50, 25, sound=True, first=2)
    clips.write(tmp_path / "soon.mkv", 50, 25, sound=True, first=0.04)
    numbers, film = shown(tmp_path / "late.mkv")
    assert numbers == [0] * 50 + list(range(50)) and film.seconds == pytest.approx(4, abs=0.01)
    assert shown(tmp_path / "soon.mkv")[0] == list(range(50))


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("size", [(64, 48), (80, 48), (97, 61), (65, 49)])
def test_pictures_stand_upright_at_any_size(tmp_path, rotation, size):
    clips.write(tmp_path / "a.mp4", 3, size=size, rotation=rotation)
    picture, = [picture for time, picture in Film(str(tmp_path / "a.mp4")).frames() if 0.03 < time < 0.05]
    image = picture.rgb()
    assert clips.number_of(np.rot90(image, -rotation // 90)) == 1
    assert image.shape == ((size[0], size[1], 3) if rotation % 180 else (size[1], size[0], 3))


def test_every_quarter_turn_and_mirror():
    image = np.arange(24).reshape(2, 4, 3)
    turned = {(1, 0, 0, 1): image, (0, -1, 1, 0): np.rot90(image), (-1, 0, 0, -1): np.rot90(image, 2),
              (0, 1, -1, 0): np.rot90(image, 3), (-1, 0, 0, 1): image[:, ::-1], (1, 0, 0, -1): image[::-1],
              (0, 1, 1, 0): image.transpose(1, 0, 2), (0, -1, -1, 0): np.rot90(image, 2).transpose(1, 0, 2)}
    for (a, b, c, d), want in turned.items():
        np.testing.assert_array_equal(upright(image, np.array([a, b, 0, c, d, 0, 0, 0, 1]) << 16), want)


def test_pixels_are_made_square(tmp_path):
    import av
    clips.write(tmp_path / "a.mp4", 2)
    with av.open(str(tmp_path / "a.mp4")) as source, av.open(str(tmp_path / "b.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.sample_aspect_ratio = Fraction(3, 2)
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    _, picture = next(Film(str(tmp_path / "b.mp4")).frames())
    assert picture.rgb().shape == (48, 96, 3)


def test_a_damaged_end_ends_the_video(tmp_path):
    clips.write(tmp_path / "whole.mp4", 100, movflags="faststart", g=10, bf=0)
    import av
    with av.open(str(tmp_path / "whole.mp4")) as source, av.open(str(tmp_path / "fast.mp4"), "w", options={
            "movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    content = (tmp_path / "fast.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[:len(content) * 2 // 3])
    numbers, film = shown(tmp_path / "cut.mp4")
    assert 10 < len(numbers) < 90 and numbers == list(range(len(numbers)))
    assert film.seconds == pytest.approx(len(numbers) / 25, abs=0.05) and film.span.announced == pytest.approx(4)


def test_damage_in_the_middle_moves_nothing(tmp_path):
    clips.write(tmp_path / "a.mp4", 200, g=10, bf=0)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    middle = len(content) // 2
    content[middle:middle + 300] = bytes(300)
    (tmp_path / "a.mp4").write_bytes(content)
    numbers, _ = shown(tmp_path / "a.mp4")
    right = np.array(numbers) == np.arange(200)
    assert len(numbers) == 200 and right[:60].all() and right[-60:].all() and not right.all()


def test_what_is_no_video_is_one_sentence(tmp_path):
    import av
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 8000
        container.mux(stream.encode(samples))
        container.mux(stream.encode(None))
    with av.open(str(tmp_path / "none.mkv"), "w") as container:
        stream, tone = container.add_stream("libx264", rate=25), container.add_stream("aac", rate=8000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(tone.encode(samples))
        container.mux(tone.encode(None))
    os.mkdir(str(tmp_path / "folder.mp4"))
    os.mkfifo(str(tmp_path / "pipe.mp4"))
    for name, words in (("empty.mp4", "cannot be read"), ("text.mp4", "cannot be read"), ("none.mkv", "no frames"),
                        ("sound.mp4", "has no pictures, only sound"), ("folder.mp4", "is a folder"),
                        ("pipe.mp4", "is a pipe"), ("missing.mp4", "does not exist")):
        with pytest.raises(UserError, match=words) as error:
            Film(str(tmp_path / name))
        assert "\n" not in str(error.value) and str(tmp_path / name) in str(error.value)


def test_a_picture_on_the_cover_is_no_video(tmp_path):
    import av
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        tone, cover = container.add_stream("aac", rate=8000), container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(clips.frame(1), format="rgb24")))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 8000
        container.mux(tone.encode(samples))
        container.mux(tone.encode(None))
    with pytest.raises(UserError, match="only sound"):
        Film(str(tmp_path / "song.mp4"))
