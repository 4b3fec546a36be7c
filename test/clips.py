"""Small videos for tests. Each frame shows its own number in twelve black and white squares."""
from fractions import Fraction

import numpy as np

SQUARE = 16             # pixels; one that a codec does not blur away
BITS = 12


def frame(number, size=(64, 48)):
    """uint8 [height, width, 3] that shows ``number``, in a picture of (width, height)."""
    bits = [number >> bit & 1 for bit in range(BITS)]
    grid = np.array(bits, np.uint8).reshape(3, 4) * 255
    image = np.full((size[1], size[0], 3), 96, np.uint8)
    image[:48, :64] = np.kron(grid, np.ones((SQUARE, SQUARE), np.uint8))[:, :, None]
    return image


def number_of(image):
    """The number that a frame shows."""
    middles = image[8:48:16, 8:64:16, 1].ravel() > 128
    return int((middles << np.arange(BITS)).sum())


def write(path, frames=50, fps=25, times=None, size=(64, 48), codec="libx264", rotation=0, sound=False, first=0.0,
          **options):
    """Write a video.

    Args:
        frames, fps: number of frames and their rate, a number or text such as 30000/1001.
        times: seconds at which the frames are shown, instead of ``frames`` and ``fps``.
        rotation: degrees, counterclockwise, by which a player must turn the picture.
        sound: whether there is a tone beside it.
        first: seconds at which the first frame is shown.
        options: of the codec.
    """
    import av
    rate, unit = Fraction(str(fps)), Fraction(1, 90000)
    times = [Fraction(number) / rate for number in range(frames)] if times is None else times
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate.limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], "yuv444p" if size[0] % 2 else "yuv420p"
        stream.options, stream.codec_context.time_base = {key: str(value) for key, value in options.items()}, unit
        if codec in ("mpeg4", "mpeg2video"):
            stream.codec_context.time_base = 1 / rate
        if rotation:
            stream.set_display_rotation(rotation)
        tone = container.add_stream("aac", rate=8000) if sound else None
        for number, time in enumerate(times):
            picture = av.VideoFrame.from_ndarray(frame(number, size), format="rgb24")
            picture.pts, picture.time_base = round((time + Fraction(first)) / stream.codec_context.time_base), (
                stream.codec_context.time_base)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
        if tone:
            for start in range(0, int((float(times[-1]) + first + 1) * 8000), 1024):
                samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                samples.sample_rate, samples.pts, samples.time_base = 8000, start, Fraction(1, 8000)
                container.mux(tone.encode(samples))
            container.mux(tone.encode(None))


class Numbers:
    """Takes the place of a backbone: the vector of a snippet is the list of the numbers that its frames show."""

    description = {"backbone": "numbers", "version": "1", "size": 1}        # noqa: RUF012

    def __init__(self, looked_at=None, turn=0):
        self.looked_at, self.turn = looked_at, turn

    def prepare(self, image):
        return np.float32([[[number_of(image)]]])

    def vectors(self, batch):
        return batch.reshape(len(batch), -1)
