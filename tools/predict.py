"""Proposals of new videos, in seconds, from the videos or their features, and a checkpoint. It needs no annotations.

    python3 tools/predict.py my.mp4 --checkpoint checkpoint/BMN_best.pth.tar --page my.html
    python3 tools/predict.py v_new.csv --duration 92.5 --checkpoint checkpoint/BMN_best.pth.tar
    python3 tools/predict.py folder --duration lengths.csv --output predictions.json --plot pictures
    python3 tools/predict.py folder --video_anno anno.json --plot pictures

FEATURES is a file <video>.csv, .npy, .npz, .pt or .pkl, a folder of such files, an HDF5 file or a packed file. A table
that does not have the network's T positions must hold raw snippets of 16 frames, which are rescaled as in
tools/prepare_features.py. A network of windows (--window) takes features of any length, at their own rate. --duration
is the length in seconds, or a CSV file with the columns video and seconds. With --video_anno the length comes from the
annotation file, and the pictures show the annotated actions. The best proposals are printed, and all of them are
written to --output.

FEATURES may also be a video or a folder of videos, if features.json lies beside the checkpoint: their features are
extracted first, as those of the training were (docs/video.md). --page FILE is an HTML page with the videos, in which a
click on a proposal plays it; for features, --videos DIR says where the videos are.
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bmn.errors import UserError, command_line, run_as_program
from bmn.options import DEFAULTS, INDEX, OPTIONS, RECORDED_OPTIONS, Parser, with_defaults

SOFT_NMS = ("soft_nms_alpha", "soft_nms_low_thres", "soft_nms_high_thres", "kept")
WINDOWS = ("window_overlap", "feature_stride", "feature_snippet")


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", metavar="FEATURES", help="file or folder of features, or of videos")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--duration", help="length in seconds, or a CSV file with the columns video and seconds")
    length.add_argument("--video_anno", action="append", help="annotation file: lengths, and actions for the pictures; "
                        "may be given several times")
    parser.add_argument("--checkpoint", default=DEFAULTS["pth_path"], help="the network (default: %(default)s)")
    parser.add_argument("--ema", **OPTIONS["ema"].check,
                        help="1: take the averaged (EMA) weights of the checkpoint, where it has them (default: 0)")
    parser.add_argument("--output", help="JSON file of all proposals, in the form of result_proposal.json")
    parser.add_argument("--plot", metavar="FOLDER", help="draw FOLDER/<video>.png")
    parser.add_argument("--page", metavar="FILE", help="HTML page with the videos and their proposals")
    parser.add_argument("--videos", metavar="DIR", help="where the videos of the features are, for --page")
    parser.add_argument("--backbone", help="where the backbone of the features is by now (default: where the "
                        "features.json beside the checkpoint says)")
    parser.add_argument("--top", type=INDEX, default=10, help="proposals to print (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "npu", "cuda", "cpu"), default="auto",
                        help="auto: the first of npu, cuda and cpu that is there (default: %(default)s)")
    options = parser.add_argument_group("the network and its post-processing (default: what the checkpoint says, else "
                                        "as in main.py)")
    for name in RECORDED_OPTIONS + WINDOWS + SOFT_NMS:
        options.add_argument("--" + name, **OPTIONS[name].check)
    return parser.parse_args()


if __name__ == "__main__":      # before the imports that take seconds
    ARGUMENTS = command_line(parse_arguments, "scipy")

from bmn.machine import device  # isort: skip  (before torch)
from typing import Any, Dict, List, Tuple

import numpy as np
import torch

import opts
import post_processing
from bmn import extracted
from bmn.data.annotations import Video
from bmn.data.feature_files import few, filled_up, own_columns
from bmn.data.features import say_how_files_are_read
from bmn.data.loaders import BLOCK
from bmn.data.new_videos import are_videos, find_videos, read_features, read_lengths
from bmn.data.windows import cut, joined, margin_of, padded, with_stride
from bmn.files import check_outputs, inside
from bmn.progress import progress
from bmn.results import figures, pages, time_axis
from bmn.training import checkpoint, recorded
from bmn.values import by_id, counted
from bmn.video.packages import check_python
from models import BMN


def open_network(args: argparse.Namespace) -> Tuple[BMN, dict]:
    """(network, complete options): the options of the command line, else those of the checkpoint, else the defaults.

    Raises:
        UserError: the checkpoint cannot be used, or the options contradict it or each other.
    """
    state = checkpoint.read(args.checkpoint, bool(args.ema))
    for line in checkpoint.remarks(state):
        print(line)
    recorded_with_it = state.get("options")
    opt = {name: recorded_with_it[name] for name in WINDOWS + SOFT_NMS
           if isinstance(recorded_with_it, dict) and name in recorded_with_it}
    if args.feature_stride and not args.feature_snippet and opt.get("feature_snippet"):
        # the snippets of the training, by its stride, are as many of the new stride
        opt["feature_snippet"] = "%.9g%s" % (
            (1 + 2 * margin_of(opt)) * float(args.feature_stride.rstrip("fs")), "f" * args.feature_stride.endswith("f"))
    opt.update((name, getattr(args, name)) for name in WINDOWS + SOFT_NMS if getattr(args, name) is not None)
    opt = with_defaults(dict(opt, device=args.device, **recorded.network_options(state, vars(args))))
    opts.check_together(opt)
    network = BMN(opt)
    checkpoint.put_network(state, network)
    return network, opt


def extract(args: argparse.Namespace, opt: dict, runtime: Any) -> Tuple[Any, List[str]]:
    """(source of features, names of its videos) where FEATURES is a video or a folder of videos.

    Raises:
        UserError: the backbone or every video cannot be used, or a package is missing.
    """
    check_python()
    from bmn.video import sources  # not above: nobody else needs its packages
    recipe = sources.recipe_of(args.checkpoint, args.backbone, runtime.device, runtime.kind)
    if filled_up(recipe.backbone.description["size"]) != opt["feat_dim"]:
        raise UserError("the backbone %s gives %d numbers, but the network of %s takes %d: give the backbone of its "
                        "features" % (recipe.backbone.description["backbone"], recipe.backbone.description["size"],
                                      args.checkpoint, opt["feat_dim"]))
    source = sources.VideoFeatures(args.features, recipe)
    return source, sorted(source.names())


def predict(network: BMN, runtime: Any, features: np.ndarray) -> Tuple[np.ndarray, ...]:
    """(confidence map [B, 2, T, T], start [B, T], end [B, T]) of features [B, C, T], float32 arrays."""
    with torch.no_grad():
        outputs = network(torch.from_numpy(features).to(runtime.device), valid_only=True)
    return tuple(output.float().cpu().numpy() for output in outputs)


def predict_windows(network: BMN, runtime: Any, features: np.ndarray, name: str, opt: dict,
                    margin: float) -> Tuple[np.ndarray, Tuple[None, np.ndarray, np.ndarray]]:
    """Proposals of a video from features at their own rate, and its boundary curves.

    Args:
        features: float32 [C, rows].
        name: the video.
        opt: complete dict of options, with a window.
        margin: what windows.margin_of returned.

    Returns:
        float64 [n <= kept, 3] (score, xmin, xmax in fractions of the features); (None in the place of a map, start
        [positions], end [positions]).
    """
    windows = cut(name, features.shape[1], opt, margin)
    merged, found, curves = post_processing.OfWindows(opt), {}, []
    for first in range(0, len(windows), BLOCK):
        batch = windows[first:first + BLOCK]
        rows = [padded(features[:, window.rows_of_file], opt["window"]) for window in batch]
        maps = predict(network, runtime, np.stack(rows))
        found.update(merged.add(batch, *maps))
        curves.append(maps[1:])
    start, end = (joined(windows, np.concatenate(parts)) for parts in zip(*curves))
    found[name][:, 1:] = np.clip(found[name][:, 1:], 0, 1)     # the outermost positions may reach beyond the features
    return found[name], (None, start, end)


def print_table(name: str, video: Video, found: np.ndarray, top: int) -> None:
    """Print the ``top`` best proposals of a video in seconds; ``found`` is [n, 3] (score, xmin, xmax as fractions)."""
    seconds = video.proposal_seconds
    print("%s, %.1f seconds" % (name, video.seconds))
    print("%6s %10s %10s %10s %8s" % ("", "start", "end", "length", "score"))
    for rank, (score, xmin, xmax) in enumerate(found[:top], 1):
        print("%6d %10.2f %10.2f %10.2f %8.4f" % (rank, xmin * seconds, xmax * seconds, (xmax - xmin) * seconds, score))
    if not len(found):
        print("no proposals: it is so short that its features have a single position")


def draw(path: str, name: str, video: Video, maps: Tuple[np.ndarray, ...], found: np.ndarray) -> None:
    """Draw a prediction, with the annotated actions if there are any; ``maps`` is what :func:`predict` returned.

    Raises:
        UserError: the file cannot be written.
    """
    truth = sorted(video.actions)
    confidence_map, start, end = maps
    figures.save(time_axis.prediction(name, video.proposal_seconds, start, end, confidence_map, found, truth), path)


def write_page(args: argparse.Namespace, source: Any, videos: Dict[str, Video], curves: Dict[str, tuple],
               found: Dict[str, np.ndarray]) -> None:
    """Write --page; ``curves`` are {name: (start [T], end [T])}.

    Raises:
        UserError: it cannot be written.
    """
    files = getattr(source, "files", None) or (pages.find_files(args.videos, list(videos)) if args.videos else {})
    lacking = [name for name in videos if name not in files]
    if lacking:
        print("--page %s: no file for %d of %s (%s): --videos DIR says where they are"
              % (args.page, len(lacking), counted(len(videos), "video"), few(lacking)))
    pages.write_page(args.page, [pages.PageVideo(
        name, files.get(name), video.proposal_seconds, found[name] * ((1,) + 2 * (video.proposal_seconds,)),
        video.actions, *curves[name]) for name, video in videos.items()])


def check_paths(args: argparse.Namespace) -> None:
    """Check now that the outputs can be written and overwrite no input.

    Raises:
        UserError: one cannot, or two paths are the same file.
    """
    inputs = {"FEATURES": args.features, "--checkpoint": args.checkpoint, "--duration": args.duration}
    inputs.update(("--video_anno " + path, path) for path in args.video_anno or ())
    outputs = {"--output": args.output, "a picture of --plot": args.plot and os.path.join(args.plot, "video.png"),
               "--page": args.page}
    if args.videos and not os.path.isdir(args.videos):
        raise UserError("--videos %s is no folder: give the one of the videos" % args.videos)
    check_outputs({what: path for what, path in outputs.items() if path is not None},
                  {what: path for what, path in inputs.items() if path})


def main(args: argparse.Namespace) -> None:
    check_paths(args)
    if not os.path.exists(args.features):
        raise UserError("%s does not exist: give a feature file or a video, or a folder of them" % args.features)
    network, opt = open_network(args)
    with device.setup(opt) as runtime:
        source, names = (extract(args, opt, runtime) if are_videos(args.features) else find_videos(args.features, opt))
        if args.output:
            by_id(names, args.features)             # two names must not be one video in the result file
        pictures = {name: inside(args.plot, name, ".png") for name in names} if args.plot else {}
        lengths = source.lengths if hasattr(source, "lengths") else extracted.lengths_of(source.path, names)
        videos = read_lengths(args, names, lengths)
        say_how_files_are_read(source, names, print)
        columns, rows = own_columns(source.table(names[0])[0].shape, opt["feat_dim"]), {}
        if columns != opt["feat_dim"] and not opt["window"]:
            print("the %d columns of %s are filled up with zeros to the %d of the network"
                  % (columns, "the features" if len(names) > 1 else names[0], opt["feat_dim"]))
        for name in progress(names, "checking", len(names), "video"):   # a bad file shows before hours of work
            rows[name] = read_features(source, name, videos[name], opt, columns, lengths.get(name)).shape[1]
        margin = margin_of(opt)
        if opt["window"]:
            videos = with_stride(videos, rows, opt, margin, lengths)
        network.to(runtime.device).eval()
        found, curves = {}, {}
        for name in progress(names, "predicting", len(names), "video"):
            features = read_features(source, name, videos[name], opt, columns, lengths.get(name))
            if opt["window"]:
                found[name], maps = predict_windows(network, runtime, features, name, opt, margin)
            else:
                maps = predict(network, runtime, features[None])
                found[name], maps = post_processing.proposals(*maps, opt)[0], [one[0] for one in maps]
            curves[name] = maps[1:]
            if args.plot:
                draw(pictures[name], name, videos[name], maps, found[name])
    for name in names:
        print_table(name, videos[name], found[name], args.top)
    if args.output:
        post_processing.write_result(args.output, videos, found)
    if args.page:
        write_page(args, source, videos, curves, found)
        print("page: %s" % args.page)
    flaws = getattr(source, "flaws", ())
    for flaw in flaws:
        print("left out: %s" % flaw)
    if flaws:
        raise UserError("%d of %s could not be used: see above" % (len(flaws), counted(len(source.files), "video")))


if __name__ == "__main__":
    run_as_program(main, ARGUMENTS)
