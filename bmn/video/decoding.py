"""The frames of a video file, with the times at which they are shown, and on a grid of equal steps.

A feature belongs to a time, not to the number of a frame. So frames are placed by their own time stamps: where the rate
varies, where B-frames are stored in another order, or where the video begins later than its sound, the time is right.
"""
import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from bmn.errors import UserError
from bmn.inputs import check_input
from bmn.video.packages import package

LATE = 0.1              # seconds: a video that begins later than the rest of its file is shown from there on
DISTORTED = 8           # pixels that would be wider or higher than so many squares are no statement about a picture


class Span(NamedTuple):
    """When the frames of a file are shown.

    Attributes:
        origin: time stamp in seconds of the beginning of the video, from which everything else is counted.
        seconds: length up to the end of the last frame.
        frames: number of frames.
        last: seconds from the origin to the last frame.
        announced: length in seconds that the file itself states, 0 where it states none.
    """
    origin: float
    seconds: float
    frames: int
    last: float
    announced: float

    @property
    def fps(self) -> float:
        """Frames a second, on the average."""
        return self.frames / self.seconds


class Film:
    """A video file.

    Args:
        path: the file.
        threads: threads of the decoder; 0: as many as FFmpeg likes.

    Attributes:
        span: what the time stamps of its packets say, before anything is decoded.
        seconds: length of the video; after :meth:`on_grid` of what could be decoded of it.
        problems: number of packets that could not be decoded so far.

    Raises:
        UserError: it is no video, or has no frames.
    """

    def __init__(self, path: str, threads: int = 1):
        self.path, self.threads, self.problems = path, threads, 0
        self._av = package("av", "reading a video")
        check_input(path, "video")
        self.span = self._read_span()
        self.seconds = self.span.seconds

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """(container, stream of the video)"""
        try:
            # An absolute path is no address, and what a playlist names beside it is a file at most.
            container = self._av.open(os.path.abspath(self.path), container_options={"protocol_whitelist": "file"},
                                      metadata_errors="replace")
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise UserError("video %s cannot be read (%s): convert it, or fetch it again"
                            % (self.path, getattr(error, "strerror", None) or error)) from None
        with container:
            streams = [stream for stream in container.streams.video
                       if not stream.disposition & self._av.stream.Disposition.attached_pic]
            if not streams:
                raise UserError("video %s has no pictures%s: give a file with a video stream"
                                % (self.path, ", only sound" if container.streams.audio else ""))
            stream = max(streams, key=lambda one: (one.width * one.height, -one.index))
            if stream.codec_context is None:
                raise UserError("video %s has a codec that PyAV does not know: convert it, to H.264 for example"
                                % self.path)
            stream.thread_count = self.threads
            stream.thread_type = "AUTO"
            yield container, stream

    def _packets(self, container, stream):
        """The packets of the stream, up to its end or to where the file is damaged."""
        packets = container.demux(stream)
        while True:
            try:
                yield next(packets)
            except StopIteration:
                return
            except (self._av.FFmpegError, OSError):
                self.problems += 1
                return

    def _read_span(self) -> Span:
        with self._opened() as (container, stream):
            guess = float(stream.average_rate or stream.guessed_rate or 25)
            # FFmpeg counts it in microseconds, and may not know it.
            began = float("inf") if container.start_time is None else container.start_time / 1e6
            shown, length, packets = [], {}, 0
            for packet in self._packets(container, stream):
                if packet.size and not packet.is_discard:
                    packets += 1
                    if packet.pts is not None:
                        shown.append(packet.pts)
                        length[packet.pts] = packet.duration or 0
            unit = stream.time_base or Fraction(1, 1)
            announced = float(stream.duration * unit) if stream.duration else (container.duration or 0) / 1e6
        self.problems = 0           # the same damage is met again when the frames are decoded
        if not packets:
            raise UserError("video %s has no frames: fetch it again, or leave it out" % self.path)
        if len(shown) < packets / 2:                    # a file without time stamps
            return Span(0.0, packets / guess, packets, (packets - 1) / guess, announced)
        first, last = min(shown), max(shown)
        step = float((last - first) * unit) / (len(shown) - 1) if last > first else 1 / guess
        origin, end = float(first * unit), float(last * unit) + (float(length[last] * unit) or step)
        frames = len(shown)
        if began + LATE < origin:                       # until it begins, its first frame is shown
            frames += round((origin - began) / step)
            origin = began
        return Span(origin, end - origin, frames, float(last * unit) - origin, announced)

    def frames(self) -> Iterator[tuple[float, "Picture"]]:
        """(seconds from the beginning, frame) of all frames that can be decoded, in the order in which they are shown.

        What cannot be decoded is counted in ``problems`` and left out, as players do.
        """
        number = 0
        with self._opened() as (container, stream):
            ratio = stream.sample_aspect_ratio
            for packet in self._packets(container, stream):
                try:
                    decoded = stream.decode(packet) if packet.size else stream.decode(None)
                except (self._av.FFmpegError, ValueError):
                    self.problems += 1
                    continue
                for frame in decoded:
                    if frame.is_corrupt:
                        self.problems += 1
                    # The frames that come out last have lost their unit, which is that of the stream.
                    unit = frame.time_base or stream.time_base
                    time = number / self.span.fps if frame.pts is None else float(frame.pts * unit) - self.span.origin
                    yield time, Picture(frame, ratio)
                    number += 1

    def on_grid(self, rate: float) -> Iterator["Picture"]:
        """The frame that is shown in the middle of each step of 1 / ``rate`` seconds.

        At the file's own, constant rate each frame is met once. Afterwards ``seconds`` is the length that was decoded.
        """
        step, shown, time = 0, None, 0.0
        for time, frame in self.frames():
            while shown is not None and (step + 0.5) / rate < time:
                yield shown
                step += 1
            shown = frame
        if shown is None:
            raise UserError("video %s has no frame that can be decoded: convert it, or fetch it again" % self.path)
        # The last frame is shown up to the end, unless the file breaks off before it.
        complete = time > self.span.last - 0.5 / self.span.fps
        self.seconds = self.span.seconds if complete else max(time, 0.0) + 1 / self.span.fps
        while (step + 0.5) / rate < self.seconds:
            yield shown
            step += 1


class Picture:
    """A decoded frame, which is turned into numbers only where somebody looks at it."""

    def __init__(self, frame: Any, ratio: Fraction | None):
        self._frame, self._ratio = frame, ratio

    def rgb(self) -> np.ndarray:
        """uint8 [height, width, 3], upright, with square pixels."""
        frame, ratio = self._frame, self._ratio
        width = frame.width
        if ratio and ratio != 1 and 1 / DISTORTED < ratio < DISTORTED:
            width = max(1, round(width * ratio))
        try:
            image = frame.to_ndarray(format="rgb24", width=width, height=frame.height)
        except (ValueError, OSError, MemoryError) as error:         # FFmpeg's errors are of these, too
            raise UserError("a frame of %d x %d pixels in the form %s cannot be turned into colours (%s)"
                            % (frame.width, frame.height, frame.format.name, error)) from None
        for one in frame.side_data:
            if one.type.name == "DISPLAYMATRIX":
                return upright(image, np.frombuffer(one, "<i4", 9))
        return image


def upright(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """``image`` [height, width, 3] turned or mirrored as its display matrix says (nine numbers, row by row).

    A pixel at (x, y) is shown at (a x + c y, b x + d y). Only quarter turns are made: the nearest one.
    """
    a, b, c, d = (int(matrix[k]) for k in (0, 1, 3, 4))
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, across, down = image.transpose(1, 0, 2), c, b
    else:
        across, down = a, d
    return np.ascontiguousarray(image[::-1 if down < 0 else 1, ::-1 if across < 0 else 1])
