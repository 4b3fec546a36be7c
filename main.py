"""BMN: temporal action proposals. Train, infer, evaluate, on Ascend NPUs, CUDA cards or a CPU.

one process     python3 main.py --mode full --data_path DIR --batch_size 16
eight cards     torchrun --nproc_per_node=8 main.py --mode full --data_path DIR --batch_size 128
new proposals   python3 main.py --mode inference --data_path DIR --pth_path checkpoint/BMN_best.pth.tar
figures         python3 main.py --mode evaluate --result_file FILE
detection       python3 main.py --mode detection --classification_file FILE
"""
from bmn.errors import command_line, run_as_program
from opts import parse_opt

if __name__ == "__main__":      # before PyTorch is imported: --help and a mistake in an option are answered at once
    ARGUMENTS = command_line(parse_opt)

from bmn.machine import device  # isort: skip  (before torch: a half-installed torch_npu must not end `import torch`)
import contextlib
import functools
import itertools
import os

import numpy as np

import engine
import post_processing
from bmn.data.annotations import Annotations, remarks
from bmn.data.features import open_features
from bmn.data.ground_truth import ground_truth_of
from bmn.data.loaders import BLOCK, TrainingBatches, check_batch, load_batches, rank_blocks, video_blocks
from bmn.data.windows import joined
from bmn.extracted import carry_description, find_description
from bmn.files import inside, write_json
from bmn.machine import amp
from bmn.machine.pauses import Pauses
from bmn.network.contraction import choose_contraction
from bmn.network.onnx_network import OnnxNetwork
from bmn.options import BEST, DEFAULTS, INPUT_OPTIONS
from bmn.owner import Owner
from bmn.parallel import limited
from bmn.progress import Progress
from bmn.results.result_files import read_detections
from bmn.results.score_tables import FOLDER, CsvExport
from bmn.training import checkpoint, recorded, resuming, run_folder
from bmn.training.training import Training
from bmn.values import counted
from dataset import VideoDataSet, load
from detection import evaluate_detection
from eval import evaluation_proposal
from models import BMN
from preflight import TRAINING, check_files, saves_tables
from report import write_report

USUAL_HELPERS = DEFAULTS["post_process_thread"]
LOSS_LINE = ("BMN %s loss(epoch %d, n_iter %d): tem_loss: %.03f, pem class_loss: %.03f, pem reg_loss: %.03f, "
             "total_loss: %.03f")


def main(arguments):
    opt = vars(arguments)
    with device.setup(opt) as runtime, owned(opt, runtime) as owner:
        if runtime.is_main:         # the machines of a run need not share a disk
            check_files(opt, runtime)
        if opt["mode"] in ("evaluate", "detection"):
            return evaluate(opt, runtime)
        precision = amp.choose(runtime.kind, opt["opt_level"], opt["loss_scale"])
        runtime.log("precision: %s (--opt_level %s)" % (precision.description, opt["opt_level"]))
        ground_truth = ground_truth_of(opt, runtime.log) if runtime.is_main and opt["mode"] != "train" else None
        annotations = open_annotations(opt, runtime)
        if opt["mode"] in TRAINING:
            training = train(dict(opt, mode="train"), runtime, precision, annotations, owner)
        if opt["mode"] == "inference":
            infer(opt, runtime, precision, annotations, ground_truth)
        if opt["mode"] == "full":
            best = os.path.join(opt["checkpoint_path"], BEST)
            infer(dict(opt, mode="inference", pth_path=best), runtime, precision, annotations, ground_truth,
                  training.best_record)


def description_of(opt):
    """The features.json of this run's features, which tools/predict.py looks for beside the checkpoint; or None."""
    return find_description(os.path.join(opt["data_path"], "csv_mean_%d" % opt["temporal_scale"]), opt["data_path"])


def owned(opt, runtime):
    """The checkpoint folder as this run's own while it lasts, where it trains; rank 0 alone writes there."""
    if opt["mode"] in TRAINING and runtime.is_main:
        return Owner(opt["checkpoint_path"], "checkpoint_path", runtime.log)
    return contextlib.nullcontext()


def open_annotations(opt, runtime):
    """What the annotation files say, with a word about whatever in it bends the figures of this run."""
    annotations = Annotations(opt)
    subsets = {"train": ("train", "validation"), "inference": ("validation",), "full": ("train", "validation")}
    for line in remarks(annotations, [annotations.subset(subset) for subset in subsets[opt["mode"]]]):
        runtime.log(line)
    return annotations


def train(opt, runtime, precision, annotations, owner):
    """Train for --train_epochs epochs, validate after each, keep the last and the best checkpoint."""
    local_batch_size = runtime.local_batch_size(opt["batch_size"])
    if not opt["window"]:       # before the features of all videos are packed
        check_batch(len(annotations.subset("train")), local_batch_size * runtime.world_size)
    training, begun = begin(opt, runtime, precision)
    training_videos, validation_videos = open_datasets(opt, runtime, annotations, "train", "validation")
    labelled = any(video.actions for video in validation_videos.videos.values())
    if not labelled:
        runtime.log("none of the %s has an action, so their losses say nothing: the best checkpoint is the last one"
                    % counted(len(validation_videos.video_list), "validation video"))
    run_folder.check_same_videos(begun, training_videos.item_names)
    batches = TrainingBatches(len(training_videos), local_batch_size, opt["seed"], runtime.rank, runtime.world_size,
                              "window" if opt["window"] else "video")
    blocks = rank_blocks(len(validation_videos), runtime.rank, runtime.world_size)
    rounds = len(rank_blocks(len(validation_videos), 0, runtime.world_size))
    training_loader = load(training_videos, batches, opt, runtime)
    validation_loader = load(validation_videos, list(blocks.values()), opt, runtime)
    if runtime.is_main:
        write_json(os.path.join(opt["checkpoint_path"], "opts.json"), opt)
        carry_description(description_of(opt), opt["checkpoint_path"])

    model = runtime.wrap(training.network, training.try_out)
    first = training.epochs_done
    with Pauses(runtime, opt["log_seconds"], opt["save_every"]) as pauses:
        keep = functools.partial(run_folder.keep_within_epoch, opt["checkpoint_path"], training,
                                 training_videos.item_names, runtime, owner)
        for epoch in range(first, opt["train_epochs"]):
            batches.epoch, batches.done, learning_rate = epoch, begun["steps"] if begun else 0, training.learning_rate
            runtime.reset_peak_memory()
            with runtime.profiler(opt["profile"] if epoch == first else "") as profiler:
                trained = engine.train_one_epoch(model, training, training_loader, runtime, pauses, keep, begun,
                                                 profiler)
            validated = engine.validate(training, validation_loader, blocks, rounds, runtime, opt["seed"], pauses,
                                        functools.partial(keep, begun=trained["begun"]))
            log_epoch(runtime, epoch, trained, validated)
            begun, is_best = None, training.end_epoch({
                "fps": trained["fps"], "time": trained["time"], "data_time": trained["data_time"],
                "iterations": trained["iterations"], "epoch": epoch, "lr": learning_rate, "train": trained["losses"],
                "validation": validated["losses"], "skipped_steps": trained["skipped"],
                "peak_memory_mb": runtime.peak_memory_mb(), "device": runtime.kind, "world_size": runtime.world_size,
                "videos": {"training": len(training_videos.video_list), "validation": len(validation_videos.video_list),
                           "left_out": training_videos.left_out + validation_videos.left_out},
            }, labelled)
            training.check_finite()
            state = dict(training.state_dict(), random_states=runtime.gather(runtime.random_state()))
            if runtime.is_main:
                with runtime.alone():
                    owner.check()
                    run_folder.save(opt["checkpoint_path"], state, is_best)
            pauses.saved()
    runtime.barrier()       # the best checkpoint is on the disk before anybody reads it
    return training


def begin(opt, runtime, precision):
    """(Training with the same weights on every rank, None or the epoch that --resume goes on within)."""
    device.seed_everything(opt["seed"])
    network = BMN(opt)
    if opt["finetune"]:
        checkpoint.put_network(resuming.read_checkpoint(opt["pth_path"], runtime, opt["ema"]), network)
    elif opt["pth_path"] != os.path.join(opt["checkpoint_path"], BEST):
        runtime.log("--pth_path %s is not read, because a training starts from it only with --finetune 1"
                    % opt["pth_path"])
    training = Training(network.to(runtime.device), precision, opt)
    device.seed_everything(opt["seed"] + runtime.rank)      # but each rank draws numbers of its own
    path = opt["resume"]
    if path == "auto":
        path = os.path.join(opt["checkpoint_path"], run_folder.LAST)
        if not runtime.broadcast(os.path.exists(path)):
            runtime.log("--resume auto: there is no %s yet, so this is a new run" % path)
            path = ""
    begun = resuming.resume(training, path, opt, runtime) if path else None
    choose_contraction(training.network, runtime, precision, runtime.local_batch_size(opt["batch_size"]), True,
                       training.contraction)
    return training, begun


def log_epoch(runtime, epoch, trained, validated):
    """Log an epoch. Scripts look for the first three lines: keep them to the letter."""
    runtime.log("Epoch: %d,FPS: %.2f,time: %.2f" % (epoch, trained["fps"], trained["time"]))
    for name, result in (("training", trained), ("test", validated)):
        losses = result["losses"]
        runtime.log(LOSS_LINE % (name, epoch, result["iterations"] - 1, losses["tem"], losses["pem_cls"],
                                 losses["pem_reg"], losses["total"]))
    if trained["skipped"]:
        runtime.log("epoch %d: %d of %s were left out because their gradients overflowed (--loss_scale)"
                    % (epoch, trained["skipped"], counted(trained["iterations"], "step")))


def open_datasets(opt, runtime, annotations, *subsets):
    """The videos of each subset with their features, found and checked before anything is computed."""
    videos = [annotations.subset(subset) for subset in subsets]
    features = open_features(opt, list(dict.fromkeys(itertools.chain(*videos))), runtime, runtime.log)
    datasets = [VideoDataSet(opt, subset, features, its_videos) for subset, its_videos in zip(subsets, videos)]
    for subset, dataset in zip(subsets, datasets):
        runtime.log("\n".join(["%s subset video numbers: %d" % (subset, len(dataset.video_list)), *dataset.remarks]))
    return datasets


def infer(opt, runtime, precision, annotations, ground_truth, record=None):
    """Proposals of the validation videos: --result_file, then AR@AN, the figure and the report.

    ``record`` tells the network of this run's own training from any other that may lie in --pth_path.
    """
    network = (OnnxNetwork(opt["onnx"], opt["layout"], opt["max_duration"], **shown(opt)) if opt["onnx"] else
               trained_network(opt, runtime, precision, record))
    videos, = open_datasets(opt, runtime, annotations, "validation")
    found = propose(videos, network, opt, runtime, precision)
    if runtime.is_main:
        results = post_processing.write_result(opt["result_file"], videos.videos, found, ground_truth.spelled())
        maps_of = functools.partial(maps_of_videos, videos, network, runtime, precision)
        result = evaluation_proposal(opt, results, ground_truth)
        runtime.log("proposals: %s" % opt["result_file"])
        if result:
            page = write_report(opt, result, videos.videos, maps_of, annotations.subset_or_none("train"))
            runtime.log("figure: %s\nreport: %s" % (opt["save_fig_path"], page))


def evaluate(opt, runtime):
    """Measure --result_file as it is: AR@AN of proposals, mAP of detections, or of proposals with --mode detection."""
    if not runtime.is_main:
        return
    ground_truth, detections = ground_truth_of(opt, runtime.log), read_detections(opt["result_file"])
    if detections is not None or opt["mode"] == "detection":
        evaluate_detection(opt, ground_truth, detections, runtime.log)
    else:
        result = evaluation_proposal(opt, None, ground_truth)
        if result:
            runtime.log("figure: %s\nreport: %s" % (opt["save_fig_path"], write_report(opt, result)))


def trained_network(opt, runtime, precision, record):
    """The network of --pth_path on the device, ready for inference."""
    network = BMN(opt)
    state = resuming.read_checkpoint(opt["pth_path"], runtime, opt["ema"])
    if record is not None and runtime.is_main:      # each rank measures times of its own, and rank 0's are in the file
        run_folder.check_is_of(state, record)
    recorded.check_options(state, shown(opt))
    checkpoint.put_network(state, network)
    network = precision.prepare(network.to(runtime.device))[0]
    choose_contraction(network, runtime, precision, BLOCK, False)
    return network


def shown(opt):
    """The options that decide what a network is shown: whole videos or windows."""
    return {name: opt[name] for name in INPUT_OPTIONS}


def propose(videos, network, opt, runtime, precision):
    """{name: proposals} of all videos, on rank 0. The ranks divide the work, and --save_csv exports the tables."""
    blocks = video_blocks(videos.windows_of_videos(), runtime.rank, runtime.world_size)
    loader = load(videos, list(blocks.values()), opt, runtime)
    folder = os.path.join(opt["output_dir"], FOLDER)
    if saves_tables(opt):
        for name in videos.video_list:
            inside(folder, name, ".csv")        # so that a name that leads out of it shows before hours of work
    helpers = limited(max(1, opt["post_process_thread"] // runtime.world_size), len(blocks))
    if helpers < opt["post_process_thread"] // runtime.world_size and opt["post_process_thread"] > USUAL_HELPERS:
        runtime.log("--post_process_thread %d: %d on each rank, one for each processor and each block of videos at most"
                    % (opt["post_process_thread"], helpers))
    export = (CsvExport(folder, helpers, opt["layout"], opt["max_duration"]) if saves_tables(opt)
              else contextlib.nullcontext())
    bar = Progress("inference", len(videos), "window" if opt["window"] else "video", opt["log_seconds"],
                   runtime.log if runtime.is_main else None)
    found, of_windows = {}, post_processing.OfWindows(opt)
    with export as tables, bar:
        for indices, *maps in engine.infer(network, loader, precision, runtime):
            if opt["window"]:
                found.update(of_windows.add([videos.windows[index] for index in indices], *maps))
            else:
                names = [videos.video_list[index] for index in indices]
                found.update(zip(names, post_processing.proposals(*maps, opt)))
            if tables:
                tables.add(names, *maps)
            bar.add(len(indices) * runtime.world_size)
    return {name: proposals for rank in runtime.gather(found) for name, proposals in rank.items()}


def maps_of_videos(videos, network, runtime, precision, names):
    """[confidence map [2, T, T], start [T], end [T]] of each of the videos ``names``, computed again.

    Of a video that was cut into windows there is no map (None), and its curves are as long as the video.
    """
    found = []
    for items in map(videos.items_of, names):
        batches = [items[first:first + BLOCK] for first in range(0, len(items), BLOCK)]
        outputs = engine.infer(network, load_batches(videos, batches, 0), precision, runtime)
        if videos.windows is None:
            found += [[part[0] for part in maps] for _, *maps in outputs]
        else:
            curves = zip(*(maps[1:] for _, *maps in outputs))
            found.append([None, *(joined([videos.windows[item] for item in items], np.concatenate(parts))
                                  for parts in curves)])
    return found


if __name__ == "__main__":
    run_as_program(main, ARGUMENTS)
