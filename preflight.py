"""What a run will read and write, looked at in its first second and not after ten epochs."""
import os
from typing import Any, Dict

from bmn.data.annotation_files import paths_of
from bmn.errors import UserError
from bmn.files import check_outputs
from bmn.inputs import check_input
from bmn.options import BEST
from bmn.results.figures import picture_format
from bmn.results.score_tables import FOLDER
from bmn.training import run_folder
from detection import FILE as DETECTIONS
from report import played_path, report_path

TRAINING = ("train", "full")        # the modes that train
INPUTS = ("video_info", "data_path", "ground_truth", "classification_file", "blocked", "onnx")      # none is written


def check_files(opt: Dict[str, Any], runtime: Any) -> None:
    """Find out now, not after ten epochs, that an input cannot be read or an output cannot be written.

    Args:
        opt: complete dict of options.
        runtime: bmn.machine.device.Runtime.

    Raises:
        UserError: a file is missing, of another kind, in the way of another one, or may not be written.
    """
    for name in ("onnx", "classification_file", "ground_truth", "blocked"):
        if opt[name]:
            check_input(opt[name], "--" + name)
    if opt["videos"] and not os.path.isdir(opt["videos"]):
        raise UserError("--videos %s is no folder: give the one of the videos" % opt["videos"])
    if opt["resume"] not in ("", "auto"):
        check_input(opt["resume"], "--resume", "give a checkpoint, or auto")
    starts_from_a_network = opt["finetune"] if opt["mode"] in TRAINING else opt["mode"] == "inference"
    if starts_from_a_network and not opt["onnx"]:
        check_input(opt["pth_path"], "--pth_path", "give a checkpoint, or train first")
    if opt["mode"] in TRAINING:
        runtime.check_profiler(opt["profile"])
    inputs = {"--" + name: opt[name] for name in INPUTS if opt[name]}
    inputs.update(("--video_anno " + path, path) for path in paths_of(opt["video_anno"]))
    check_outputs(outputs(opt), inputs)
    if opt["mode"] != "train":
        picture_format(opt["save_fig_path"])


def outputs(opt: Dict[str, Any]) -> Dict[str, str]:
    """{what it is: path} of every file that this run writes."""
    files = {"--result_file": opt["result_file"], "--save_fig_path": opt["save_fig_path"],
             "the report": report_path(opt)}
    if opt["videos"]:
        files["the page of --videos"] = played_path(opt)
    if saves_tables(opt):
        files["a table of --output_dir"] = os.path.join(opt["output_dir"], FOLDER, "video.csv")
    if opt["mode"] == "detection":
        return {"the detections": os.path.join(os.path.dirname(opt["result_file"]), DETECTIONS)}
    if opt["mode"] == "evaluate":
        written = ("--save_fig_path", "the report", "the page of --videos")
        return {name: files[name] for name in written if name in files}
    checkpoints = {name + " of --checkpoint_path": os.path.join(opt["checkpoint_path"], name)
                   for name in (BEST, run_folder.LAST, run_folder.METRICS, "opts.json")}
    return dict(checkpoints if opt["mode"] in TRAINING else {}, **(files if opt["mode"] != "train" else {}))


def saves_tables(opt: Dict[str, Any]) -> bool:
    """Whether the tables of all pairs are written: never of windows, of which a long video has gigabytes."""
    return bool(opt["save_csv"] and not opt["window"])
