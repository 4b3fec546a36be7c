"""The one table of options: name, default, type and help of each.

The command line (opts.py) is made from it, and callers that pass a plain dict get their defaults from it. Programs
written for the reference pass only the reference's keys, and bring an ``opts`` module of their own. So the table lives
here, and nothing that such programs import may import opts.
"""
import argparse
import os
import sys
from typing import Any, Callable, NamedTuple, Tuple, Union

from bmn.errors import UserError
from bmn.layouts import LAYOUTS


class Parser(argparse.ArgumentParser):
    """A parser of the command line whose errors are a sentence, and not the usage of all options."""

    def error(self, message):
        raise UserError("%s (python3 %s --help lists all options)" % (message, sys.argv[0]))


class Option(NamedTuple):
    """An option.

    ``kind`` is a function from text to a value, or the tuple of the values that are allowed. With ``several``, more
    than one value may be given: a list then.
    """
    name: str
    default: Any
    kind: Union[Callable[[str], Any], Tuple[str, ...]]
    help: str
    several: bool = False

    @property
    def check(self) -> dict:
        """How argparse is told the kind."""
        return {"choices" if isinstance(self.kind, tuple) else "type": self.kind}


def _number(convert, holds, wanted):
    """A kind of option: ``convert`` the text, and insist that the value ``holds``."""
    def parse(text):
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not holds(value):
            raise argparse.ArgumentTypeError("%r is not %s" % (text, wanted))
        return value
    return parse


WORD = _number(str, lambda v: v.strip() != "", "a word")


def _count(least, most):
    """A kind of option: a whole number in a range that a machine can serve."""
    return _number(int, lambda v: least <= v <= most, "a whole number from %d to %d" % (least, most))


def _path(text):
    """A kind of option: the path of something that is written, so it cannot be empty."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError("%r is no path: give one, or leave the option out" % text)
    return text


def _stride(text):
    """A kind of option: seconds, or frames with an f; "" is not given."""
    number = text[:-1] if text.endswith(("f", "s")) else text
    try:
        holds = not text or 0 < float(number) < MANY
    except ValueError:
        holds = False
    if not holds:
        raise argparse.ArgumentTypeError("%r is neither seconds, such as 0.2, nor frames, such as 5f" % text)
    return text


MANY = 10 ** 9
INDEX = _count(0, MANY)
COUNT = _count(1, MANY)
POSITIONS = _count(2, 4096)
WINDOW = _number(int, lambda v: v == 0 or 2 <= v <= 4096, "0 or a whole number from 2 to 4096")
SAMPLES = _count(1, 1024)
CHANNELS = _count(1, 2 ** 16)
RATIO = _number(float, lambda v: 0 <= v <= 16, "a number from 0 to 16")
SEED = _number(int, lambda v: 0 <= v < 2 ** 32, "a whole number from 0 to 4294967295")
FLAG = _number(int, lambda v: v in (0, 1), "0 or 1")
WORKERS = _number(int, lambda v: v >= -1, "a whole number of at least 0, or -1 for as many as suit the machine")
SECONDS = _number(float, lambda v: 1 <= v <= MANY, "a number of seconds of at least 1")
POSITIVE = _number(float, lambda v: 0 < v < float("inf"), "a number above 0")
NOT_NEGATIVE = _number(float, lambda v: 0 <= v < float("inf"), "a number of at least 0")
FRACTION = _number(float, lambda v: 0 <= v <= 1, "a number from 0 to 1")
PART = _number(float, lambda v: 0 <= v < 1, "a number from 0 to below 1")
LOSS_SCALE = _number(float, lambda v: v == -1 or 0 < v < float("inf"), "a number above 0, or -1 for dynamic scaling")

BEST = "BMN_best.pth.tar"       # the file name of a run's best checkpoint

GROUPS = {
    "what to do": (
        Option("mode", "train", ("train", "inference", "full", "evaluate", "detection"),
               "train; inference: proposals of the validation videos and AR@AN; full: both; evaluate: measure "
               "--result_file as it is; detection: proposals times classes (--classification_file) and mAP"),
        Option("finetune", 0, FLAG, "1: start from the network in --pth_path"),
        Option("checkpoint_path", "./checkpoint", _path,
               "folder of BMN_checkpoint.pth.tar, BMN_best.pth.tar, metrics.jsonl and opts.json"),
        Option("pth_path", "./checkpoint/" + BEST, str,
               "checkpoint for --finetune 1 and for --mode inference; else the best of --checkpoint_path"),
        Option("ema", 0, FLAG, "1: take the averaged (EMA) weights of --pth_path, where it has them"),
        Option("resume", "", str,
               "go on from this checkpoint, or 'auto': the last one of --checkpoint_path where there is one"),
        Option("save_every", 0.0, NOT_NEGATIVE, "minutes after which a run is also saved within an epoch; 0: never"),
    ),
    "optimisation": (
        Option("training_lr", 0.001, POSITIVE, "learning rate of Adam"),
        Option("weight_decay", 1e-4, NOT_NEGATIVE, "L2 term of Adam"),
        Option("train_epochs", 10, COUNT, "number of epochs"),
        Option("batch_size", 8, COUNT, "videos in a step, over all ranks together"),
        Option("step_size", 7, COUNT, "epochs between two reductions of the learning rate"),
        Option("step_gamma", 0.1, POSITIVE, "factor of such a reduction"),
        Option("seed", 0, SEED, "seed of the weights, of the order of the videos and of the sampling in the loss"),
    ),
    "data": (
        Option("video_info", "data/activitynet_annotations/video_info_new.csv", str,
               "CSV file that lists the videos and their subset; not needed where --video_anno has the subsets"),
        Option("video_anno", "data/activitynet_annotations/anet_anno_action.json", str,
               "file, or several, of lengths and annotated segments, in any form that docs/data.md describes", True),
        Option("training_subset", "training", WORD, "subset of the videos to train on, as the files spell it"),
        Option("validation_subset", "validation", WORD, "subset of the videos to validate, infer and evaluate on"),
        Option("blocked", "", str, "file of videos to leave out: a name on each line, or a JSON list"),
        Option("data_path", "data/activitynet_feature_cuhk/", str,
               "folder that holds csv_mean_<T>/<video>.csv (also --data, --feature_path)"),
        Option("temporal_scale", 100, POSITIONS, "T, positions that a video is rescaled to"),
        Option("feat_dim", 400, CHANNELS, "C, numbers of a feature"),
        Option("window", 0, WINDOW,
               "W, positions of a window over features at their own rate, which is then T; 0: a whole video, rescaled"),
        Option("window_overlap", 0.5, PART, "part of a window that lies in the next one"),
        Option("window_subsample", 1, COUNT, "take every k-th row of the features"),
        Option("window_inside", 0.9, FRACTION, "part of an action that must lie in a window to count there"),
        Option("feature_stride", "", _stride,
               "time between two rows of features, in seconds (0.2) or frames (5f); else length by rows"),
        Option("feature_snippet", "", _stride, "length of a row's snippet, written in the same way; else the stride"),
        Option("num_workers", -1, WORKERS, "processes of each rank that load data; -1: as many as suit the machine"),
        Option("feature_cache", "auto", str, "auto, off, or a folder: where features are packed once for fast reading"),
        Option("feature_cache_dtype", "float32", ("float32", "float16"), "precision of the packed features"),
        Option("skip_missing", 0, FLAG, "go on without the videos whose features are missing"),
    ),
    "boundary matching": (
        Option("num_sample", 32, SAMPLES, "N, sampled points of a proposal"),
        Option("num_sample_perbin", 3, SAMPLES, "K, points averaged into one of them"),
        Option("prop_boundary_ratio", 0.5, RATIO,
               "how far a proposal is widened on either side, as a fraction of its length"),
        Option("layout", "reference", tuple(LAYOUTS),
               "whose map and samples: the reference's since 2020, or those that networks of reference2019, mmaction2 "
               "and opentad were trained with"),
        Option("max_duration", 0, INDEX, "D, positions of the longest proposal; 0: T"),
    ),
    "proposals and their evaluation": (
        Option("post_process_thread", 8, COUNT, "processes of the post-processing"),
        Option("soft_nms_alpha", 0.4, POSITIVE, "width of the Gaussian decay"),
        Option("soft_nms_low_thres", 0.5, FRACTION, "IoU above which the shortest proposals suppress others"),
        Option("soft_nms_high_thres", 0.9, FRACTION, "the same for proposals as long as the video"),
        Option("kept", 100, COUNT, "proposals of a video that soft-NMS keeps"),
        Option("output_dir", "./output", _path, "folder of all results: tables, proposals, figure and report"),
        Option("result_file", "./output/result_proposal.json", _path,
               "JSON file of the proposals; the report is written beside it; else in --output_dir"),
        Option("save_fig_path", "./output/evaluation_result.jpg", _path,
               "picture of the AR-AN curve; else in --output_dir"),
        Option("save_csv", 1, FLAG, "1: also write BMN_results/<video>.csv in --output_dir, but not of windows"),
        Option("videos", "", str,
               "folder of the videos themselves: the report links those that it shows to a page that plays them"),
        Option("ground_truth", "", str,
               "ground truth in ActivityNet's format; else Evaluation/data/activity_net_1_3_new.json where it exists, "
               "else derived from --video_info and --video_anno"),
        Option("protocol", "activitynet", ("activitynet", "opentad", "thumos14", "thumos14-kit", "hacs"),
               "how results are measured: docs/evaluation.md"),
        Option("classification_file", "", str, "classes of whole videos, for --mode detection"),
        Option("classes", 2, COUNT, "best classes of a video that its proposals get"),
        Option("onnx", "", str, "run inference on this ONNX file instead of a checkpoint"),
    ),
    "machine": (
        Option("device", "auto", ("auto", "npu", "cuda", "cpu"), "auto: the first of npu, cuda and cpu that is there"),
        Option("DeviceID", "0", str, "card, or cards separated by commas, one for each process of this machine"),
        Option("is_distributed", 0, FLAG, "1: one of several processes (torchrun needs neither this nor the next two)"),
        Option("local_rank", 0, INDEX, "number of this process on its machine"),
        Option("world_size", 1, COUNT, "number of processes"),
        Option("opt_level", "O1", ("O0", "O1", "O2"), "O0: float32; O1: mixed precision; O2: apex only"),
        Option("loss_scale", 128.0, LOSS_SCALE, "factor on the loss in float16, -1: dynamic"),
        Option("bm_contraction", "auto", ("auto", "bags", "dense"),
               "how the BM layer contracts: weights that are not zero, or all; auto: a card measures which is faster"),
        Option("patience", 60.0, SECONDS, "seconds after which a process that stands still ends the whole run"),
        Option("log_seconds", 30.0, SECONDS, "seconds between two lines of progress"),
        Option("profile", "", str, "folder for a trace of a few training steps"),
    ),
}
OPTIONS = {option.name: option for options in GROUPS.values() for option in options}
DEFAULTS = {name: option.default for name, option in OPTIONS.items()}

# Options that decide what the network computes; a checkpoint serves only a network that has the same.
NETWORK_OPTIONS = ("temporal_scale", "num_sample", "num_sample_perbin", "prop_boundary_ratio", "feat_dim", "layout",
                   "max_duration")
# Options that decide what such a network is shown, so they are recorded and compared as well.
INPUT_OPTIONS = ("window", "window_subsample")
RECORDED_OPTIONS = NETWORK_OPTIONS + INPUT_OPTIONS
# Options that may name the feature folder; the first of them that is given wins.
DATA_PATH_NAMES = ("data_path", "data", "feature_path")


def with_defaults(opt: dict) -> dict:
    """A new dict with every option of the table, and the values of ``opt`` where it has them.

    ``data_path`` is the first of ``data_path``, ``data`` and ``feature_path`` that is given. ``pth_path``, where it is
    not given, is the best checkpoint of ``checkpoint_path``. ``result_file`` and ``save_fig_path``, where they are not
    given, lie in ``output_dir``. With a ``window``, ``temporal_scale`` is its length.
    """
    complete = dict(DEFAULTS)
    complete.update(opt)
    for name in ("result_file", "save_fig_path"):
        if not opt.get(name):
            complete[name] = os.path.join(complete["output_dir"], os.path.basename(DEFAULTS[name]))
    complete["data_path"] = next((opt[name] for name in DATA_PATH_NAMES if opt.get(name)), complete["data_path"])
    if complete["window"]:
        complete["temporal_scale"] = complete["window"]
    if not opt.get("pth_path"):
        complete["pth_path"] = os.path.join(complete["checkpoint_path"], BEST)
    return complete
