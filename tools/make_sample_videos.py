"""Make small videos with actions in them, and a backbone of random weights, from a seed: the data of make demo-video.

    python3 tools/make_sample_videos.py --output demo-video --videos 160

A texture moves slowly over the picture. In an action it moves in another way: it falls, rises or shakes. Distractors
are stretches in which only its colours change. <output>/videos/ gets the videos, anno.json what happens in them, in
ActivityNet's own form, and backbone/ a small VideoMAE, saved as any model of transformers is. Nobody trained it, but a
network of random weights still answers to motion.
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bmn.errors import UserError, command_line, run_as_program
from bmn.options import SEED, Parser
from bmn.video.packages import check_python


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default="demo-video", help="folder to write to (default: %(default)s)")
    parser.add_argument("--videos", type=int, default=160, help="number of videos (default: %(default)s)")
    parser.add_argument("--seed", type=SEED, default=0, help="of everything that is random (default: %(default)s)")
    args = parser.parse_args()
    if args.videos < 5:
        raise UserError("--videos %d leaves a subset empty: give at least 5" % args.videos)
    check_python()
    return args


if __name__ == "__main__":      # before the imports that take seconds
    ARGUMENTS = command_line(parse_arguments)

from fractions import Fraction
from typing import Any, Dict, List, Tuple

import numpy as np

from bmn.files import replacing, write_json
from bmn.progress import progress
from bmn.video.packages import package

WIDTH, HEIGHT = 160, 120
RATE = Fraction(25, 2)          # frames a second
SLOW = 1.0                      # pixels a frame, where nothing happens
MOTIONS = {"falling": lambda k: (4, 0), "rising": lambda k: (-4, 0), "shaking": lambda k: (0, 6 if k // 2 % 2 else -6)}
TRAINING = 0.7                  # part of the videos


def plan(random: np.random.RandomState) -> Tuple[int, List[tuple], List[tuple]]:
    """(frames, actions, distractors) of a video; an action is (first frame, frame after the last one, label)."""
    frames = int(random.uniform(14, 26) * RATE)
    taken, position = [], int(random.uniform(0.5, 4) * RATE)
    while True:
        length = int(np.exp(random.uniform(np.log(2.5), np.log(9))) * RATE)
        if position + length > frames - 5:
            break
        taken.append((position, position + length))
        position += length + int(random.uniform(1.5, 5) * RATE)
    actions = [(*span, list(MOTIONS)[random.randint(len(MOTIONS))]) for span in taken if random.rand() < 0.75]
    distractors = [span for span in taken if all(span != action[:2] for action in actions)]
    return frames, actions, distractors


def pictures(random: np.random.RandomState, frames: int, actions: List[tuple], distractors: List[tuple]) -> Any:
    """Yield uint8 [HEIGHT, WIDTH, 3] of each frame."""
    texture = _texture(random)
    colours = random.uniform(0.4, 1, (2, 3))
    angle = random.uniform(0, 2 * np.pi)
    drift = np.array([np.sin(angle), np.cos(angle)]) * SLOW
    at = np.zeros(2)
    for frame in range(frames):
        motion = next((MOTIONS[label](frame - first) for first, last, label in actions if first <= frame < last), drift)
        at = at + motion
        rolled = np.roll(texture, tuple(np.round(at).astype(int)), axis=(0, 1))
        colour = colours[int(any(first <= frame < last for first, last in distractors))]
        noise = random.randint(-6, 7, (HEIGHT, WIDTH, 1))
        yield np.clip(rolled[:, :, None] * colour + noise, 0, 255).astype(np.uint8)


def _texture(random):
    """float [HEIGHT, WIDTH] from 0 to 255 that can be rolled: random waves up to about 10 pixels."""
    waves = np.fft.rfft2(random.randn(HEIGHT, WIDTH))
    down, across = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None]
    waves *= np.exp(-((np.hypot(down, across) - 0.06) / 0.03) ** 2)
    texture = np.fft.irfft2(waves, (HEIGHT, WIDTH))
    return np.clip(128 + 70 * texture / texture.std(), 0, 255)


def write_video(path: str, frames: Any) -> None:
    """Write pictures as H.264, which browsers play.

    Raises:
        UserError: the file cannot be written, or PyAV is missing.
    """
    av = package("av", "making videos")
    with replacing(path, durable=False) as temporary, av.open(temporary, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "26", "g": "25", "movflags": "faststart"}
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def make_backbone(folder: str, seed: int) -> None:
    """Save a VideoMAE of random weights and its preprocessing, as transformers saves any.

    Raises:
        UserError: transformers is missing.
    """
    torch, transformers = package("torch", "a backbone"), package("transformers", "a backbone")
    transformers.logging.disable_progress_bar()
    torch.manual_seed(seed)
    size = {"height": 48, "width": 64}
    config = transformers.VideoMAEConfig(
        image_size=(48, 64), patch_size=16, num_frames=16, tubelet_size=2, hidden_size=192, num_hidden_layers=1,
        num_attention_heads=4, intermediate_size=768, initializer_range=0.15)
    transformers.VideoMAEModel(config).save_pretrained(folder)
    transformers.VideoMAEImageProcessorPil(size=size, do_center_crop=False).save_pretrained(folder)


def main(args: argparse.Namespace) -> None:
    database: Dict[str, dict] = {}
    for number in progress(range(args.videos), "making videos", args.videos, "video"):
        random = np.random.RandomState((args.seed, number))
        frames, actions, distractors = plan(random)
        name = "sample_%03d" % number
        write_video(os.path.join(args.output, "videos", name + ".mp4"), pictures(random, frames, actions, distractors))
        database[name] = {
            "subset": "training" if number < TRAINING * args.videos else "validation", "duration": float(frames / RATE),
            "annotations": [{"segment": [float(first / RATE), float(last / RATE)], "label": label}
                            for first, last, label in actions]}
    write_json(os.path.join(args.output, "anno.json"), {"version": "sample videos", "database": database})
    make_backbone(os.path.join(args.output, "backbone"), args.seed)
    print("%d videos, anno.json and backbone/ in %s" % (args.videos, args.output))


if __name__ == "__main__":
    run_as_program(main, ARGUMENTS)
