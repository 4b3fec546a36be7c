"""Features of videos: decodes them and computes a row for each snippet, with any network for pictures or videos.

    python3 tools/extract_features.py videos --backbone MCG-NJU/videomae-base-finetuned-kinetics --output features
    python3 tools/extract_features.py my.mp4 --backbone facebook/dinov2-small --output features --frames 4
    python3 tools/extract_features.py videos --backbone network.onnx --mean 0.45 0.45 0.45 --std 0.225 0.225 0.225 \\
        --output features

VIDEO is a file, or a folder of files. --backbone is a model of transformers (its name on the Hugging Face Hub, or the
folder where it was saved) or an ONNX file. Row i describes the frames from i * --snippet_stride on, by the snippet of
--snippet_frames frames in their middle. <output>/<video>.npy gets the rows, videos.csv the lengths of the videos, and
features.json says how it was done. What is there already is kept, so the command can be repeated after any end. A video
that cannot be used does not stop the others: they are listed at the end, and the status is 1. docs/video.md says more.
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bmn.errors import UserError, command_line, run_as_program
from bmn.options import COUNT, DEFAULTS, POSITIVE, Parser
from bmn.video.packages import check_python


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", metavar="VIDEO", help="video file, or folder of video files")
    parser.add_argument("--backbone", required=True, help="name or folder of a model of transformers, or an ONNX file")
    parser.add_argument("--output", required=True, help="folder of the features")
    parser.add_argument("--snippet_frames", type=COUNT, default=16, help="frames of a snippet (default: %(default)s)")
    parser.add_argument("--snippet_stride", type=COUNT, default=16,
                        help="frames from one snippet to the next (default: %(default)s)")
    parser.add_argument("--fps", type=POSITIVE, help="take frames at this rate (default: that of the file)")
    parser.add_argument("--frames", type=COUNT, help="frames of a snippet that a network for pictures looks at "
                        "(default: all); one for videos says itself how many it needs")
    parser.add_argument("--mean", type=float, nargs=3, help="for ONNX files: mean of the colours, which are 0 to 1")
    parser.add_argument("--std", type=POSITIVE, nargs=3, help="for ONNX files: standard deviation of the colours")
    parser.add_argument("--batch_size", type=COUNT, default=8, help="snippets at once (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "npu", "cuda", "cpu"), default="auto",
                        help="auto: the first of npu, cuda and cpu that is there (default: %(default)s)")
    parser.add_argument("--log_seconds", type=POSITIVE, default=DEFAULTS["log_seconds"],
                        help="seconds between two lines of progress (default: %(default)s)")
    args = parser.parse_args()
    check_python()
    return args


if __name__ == "__main__":      # before the imports that take seconds
    ARGUMENTS = command_line(parse_arguments)

from bmn.machine import device  # isort: skip  (before torch)
import torch

from bmn.options import with_defaults
from bmn.owner import Owner
from bmn.values import counted
from bmn.video import backbones, extraction


def main(args: argparse.Namespace) -> None:
    videos = extraction.find_videos(args.videos)
    sampling = extraction.Sampling(args.snippet_frames, args.snippet_stride, args.fps)
    with device.setup(with_defaults({"device": args.device})) as runtime, Owner(args.output, "output") as owner:
        decoders, computing = backbones.share_processors(runtime.kind)
        torch.set_num_threads(computing)
        backbone = backbones.open_backbone(args.backbone, runtime.device, computing, args.mean, args.std)
        recipe = extraction.Recipe.of(backbone, sampling, args.frames, args.batch_size, decoders)
        folder = extraction.Folder(args.output, recipe.description())
        flaws = extraction.extract(videos, folder, recipe, args.log_seconds, owner.check)
    print("features of %s in %s" % (counted(sum(map(folder.has, videos)), "video"), args.output))
    if flaws:
        for flaw in flaws:
            print("left out: %s" % flaw)
        raise UserError("%d of %s could not be used: see above"
                        % (len(flaws), counted(len(videos), "video")))


if __name__ == "__main__":
    run_as_program(main, ARGUMENTS)
