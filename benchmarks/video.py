"""Extraction of features: decoding alone, the network alone, and both at once, as tools/extract_features.py runs them.

    python3 benchmarks/video.py                                         # a video and a backbone of its own
    python3 benchmarks/video.py --video my.mp4 --backbone MCG-NJU/videomae-base

Where both at once take little more than the slower one alone, neither waits for the other. On a machine that others
use, the smallest of several repeats counts.
"""
import argparse
import os
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


import numpy as np

from bmn.machine import device  # isort: skip  (before torch)
import torch

from bmn.errors import run_as_program
from bmn.options import with_defaults
from bmn.video import backbones, extraction
from bmn.video.packages import package


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", help="video file (default: one of --seconds, made now)")
    parser.add_argument("--backbone", help="as in tools/extract_features.py (default: a VideoMAE of random weights)")
    parser.add_argument("--seconds", type=int, default=60, help="length of the video that is made (default: 60)")
    parser.add_argument("--height", type=int, default=480, help="height of the video that is made (default: 480)")
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "npu", "cuda", "cpu"), default="cpu")
    return parser.parse_args()


def make_video(path: str, seconds: int, height: int) -> None:
    """A video of moving waves at 25 frames a second, in the form 16:9."""
    av, width = package("av", "making a video"), height * 16 // 9 // 2 * 2
    y, x = np.mgrid[:height, :width]
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "veryfast"}
        for frame in range(seconds * 25):
            waves = [128 + 100 * np.sin((x * a + y * b + 3 * frame) / 40) for a, b in ((1, 0), (0, 1), (1, 1))]
            picture = av.VideoFrame.from_ndarray(np.stack(waves, -1).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def make_backbone(folder: str) -> str:
    """A VideoMAE of random weights, so small that it takes about as long as decoding: then both have to overlap."""
    transformers = package("transformers", "a backbone")
    config = transformers.VideoMAEConfig(image_size=224, hidden_size=96, num_hidden_layers=2, num_attention_heads=3,
                                         intermediate_size=384)
    transformers.VideoMAEModel(config).save_pretrained(folder)
    transformers.VideoMAEImageProcessorPil().save_pretrained(folder)
    return folder


def measure(recipe: extraction.Recipe, path: str) -> dict:
    """Seconds of decoding alone, of the network alone, and of both at once."""
    batches, seconds = [], {}
    began = time.perf_counter()
    extraction.decode(path, recipe, batches.append)
    seconds["decoding"] = time.perf_counter() - began
    began = time.perf_counter()
    for batch in batches:
        recipe.backbone.vectors(batch)
    seconds["network"] = time.perf_counter() - began
    began = time.perf_counter()
    list(extraction.features_of({"video": path}, recipe))
    seconds["both"] = time.perf_counter() - began
    return seconds


def main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder, device.setup(with_defaults({"device": args.device})) as runtime:
        path, backbone = args.video or os.path.join(folder, "video.mp4"), args.backbone or os.path.join(folder, "net")
        if not args.video:
            make_video(path, args.seconds, args.height)
        if not args.backbone:
            make_backbone(backbone)
        decoders, computing = backbones.share_processors(runtime.kind)
        torch.set_num_threads(computing)
        opened = backbones.open_backbone(backbone, runtime.device, computing)
        recipe = extraction.Recipe.of(opened, extraction.Sampling(), None, 8, decoders)
        found = [measure(recipe, path) for _ in range(args.repeats)]
        best = {name: min(one[name] for one in found) for name in found[0]}
        for name, title in (("decoding", "decoding and preparing"), ("network", "network"), ("both", "both at once")):
            print("%-24s %7.2f s" % (title, best[name]))
        print("both at once take %.2f times the slower one" % (best["both"] / max(best["decoding"], best["network"])))


if __name__ == "__main__":
    run_as_program(main, parse_arguments())
