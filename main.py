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
import json
import os
import sys

from tqdm import tqdm

import engine
import post_processing
from bmn.data.annotations import Annotations, remarks
from bmn.data.features import open_features
from bmn.data.ground_truth import ground_truth_of
from bmn.data.loaders import TrainingBatches, load_batches, rank_blocks
from bmn.files import check_writable, replacing, write_json
from bmn.inputs import check_input
from bmn.machine import amp
from bmn.network.onnx_network import OnnxNetwork
from bmn.options import BEST
from bmn.results.figures import picture_format
from bmn.results.result_files import read_detections
from bmn.results.score_tables import FOLDER, CsvExport
from bmn.training import checkpoint
from bmn.training.training import Training
from dataset import VideoDataSet, default_workers
from detection import evaluate_detection
from eval import evaluation_proposal
from models import BMN
from report import write_report

LOSS_LINE = ("BMN %s loss(epoch %d, n_iter %d): tem_loss: %.03f, pem class_loss: %.03f, pem reg_loss: %.03f, "
             "total_loss: %.03f")


def main(arguments):
    opt = vars(arguments)
    with device.setup(opt) as runtime:
        annotations = ground_truth = None
        if runtime.is_main:         # the machines of a run need not share a disk
            check_files(opt, runtime)
            if opt["mode"] != "train":
                ground_truth = ground_truth_of(opt, runtime.log)
        if opt["mode"] in ("evaluate", "detection"):
            return evaluate(opt, runtime, ground_truth)
        annotations = open_annotations(opt, runtime)
        precision = amp.choose(runtime.kind, opt["opt_level"], opt["loss_scale"])
        runtime.log("precision: %s (--opt_level %s)" % (precision.description, opt["opt_level"]))
        if opt["mode"] in ("train", "full"):
            train(dict(opt, mode="train"), runtime, precision, annotations)
        if opt["mode"] in ("inference", "full"):
            infer(dict(opt, mode="inference", pth_path=network_of(opt)), runtime, precision, annotations, ground_truth)


def network_of(opt):
    """The checkpoint that inference reads: --pth_path, or in --mode full the best of this run."""
    return os.path.join(opt["checkpoint_path"], BEST) if opt["mode"] == "full" else opt["pth_path"]


def check_files(opt, runtime):
    """Find out now, not after ten epochs, that an input does not exist or that an output cannot be written."""
    for name in ("onnx", "classification_file", "ground_truth", "blocked"):
        if opt[name]:
            check_input(opt[name], "--" + name)
    if opt["resume"] not in ("", "auto"):
        check_input(opt["resume"], "--resume", "give a checkpoint, or auto")
    starts_from_a_network = opt["finetune"] if opt["mode"] in ("train", "full") else opt["mode"] == "inference"
    if starts_from_a_network and not opt["onnx"]:
        check_input(opt["pth_path"], "--pth_path", "give a checkpoint, or train first")
    if opt["mode"] in ("train", "full"):
        check_writable(os.path.join(opt["checkpoint_path"], "opts.json"))
        runtime.check_profiler(opt["profile"])
    if opt["mode"] != "train":
        check_writable(opt["result_file"])
        check_writable(opt["save_fig_path"])
        picture_format(opt["save_fig_path"])


def open_annotations(opt, runtime):
    """What the annotation files say, with a word about whatever in it bends the figures of this run."""
    annotations = Annotations(opt)
    subsets = {"train": ("train", "validation"), "inference": ("validation",), "full": ("train", "validation")}
    for line in remarks(annotations, [annotations.subset(subset) for subset in subsets[opt["mode"]]]):
        runtime.log(line)
    return annotations


def train(opt, runtime, precision, annotations):
    """Train for --train_epochs epochs, validate after each, keep the last and the best checkpoint."""
    local_batch_size = runtime.local_batch_size(opt["batch_size"])
    training_videos, validation_videos = open_datasets(opt, runtime, annotations, "train", "validation")
    labelled = any(video.actions for video in validation_videos.videos.values())
    if not labelled:
        runtime.log("none of the %d validation videos has an action, so their losses say nothing: the best checkpoint "
                    "is the last one" % len(validation_videos))
    batches = TrainingBatches(len(training_videos), local_batch_size, opt["seed"], runtime.rank, runtime.world_size)
    blocks = rank_blocks(len(validation_videos), runtime.rank, runtime.world_size)
    training_loader = load(training_videos, batches, opt, runtime)
    validation_loader = load(validation_videos, list(blocks.values()), opt, runtime)

    training = begin(opt, runtime, precision)
    if runtime.is_main:
        write_json(os.path.join(opt["checkpoint_path"], "opts.json"), opt)
    model = runtime.wrap(training.network)
    first = training.epochs_done
    for epoch in range(first, opt["train_epochs"]):
        batches.epoch, learning_rate = epoch, training.learning_rate
        runtime.reset_peak_memory()
        with runtime.profiler(opt["profile"] if epoch == first else "") as profiler:
            trained = engine.train_one_epoch(model, training, training_loader, runtime,
                                             log_every=10 if sys.stdout.isatty() else 100, profiler=profiler)
        validated = engine.validate(training, validation_loader, blocks, runtime, opt["seed"])
        log_epoch(runtime, epoch, trained, validated)
        is_best = training.end_epoch({
            "fps": trained["fps"], "time": trained["time"], "data_time": trained["data_time"],
            "iterations": trained["iterations"], "epoch": epoch, "lr": learning_rate, "train": trained["losses"],
            "validation": validated["losses"], "skipped_steps": precision.skipped,
            "peak_memory_mb": runtime.peak_memory_mb(), "device": runtime.kind, "world_size": runtime.world_size,
            "videos": {"training": len(training_videos), "validation": len(validation_videos),
                       "left_out": training_videos.left_out + validation_videos.left_out},
        }, validated["losses"]["total"] if labelled else None)
        state = dict(training.state_dict(), random_states=runtime.gather(runtime.random_state()))
        if runtime.is_main:
            save(opt["checkpoint_path"], state, is_best)
    runtime.barrier()       # the best checkpoint is on the disk before anybody reads it


def begin(opt, runtime, precision):
    """A Training with the same weights on every rank: a new one, or what --resume goes on with."""
    device.seed_everything(opt["seed"])
    network = BMN(opt)
    if opt["finetune"]:
        checkpoint.put_network(read_checkpoint(opt["pth_path"], runtime, opt["ema"]), network)
    training = Training(network.to(runtime.device), precision, opt)
    device.seed_everything(opt["seed"] + runtime.rank)      # but each rank draws numbers of its own
    path = opt["resume"]
    if path == "auto":
        path = os.path.join(opt["checkpoint_path"], checkpoint.LAST)
        if not runtime.broadcast(os.path.exists(path)):
            runtime.log("--resume auto: there is no %s yet, so this is a new run" % path)
            path = ""
    if path:
        resume(training, path, opt, runtime)
    return training


def resume(training, path, opt, runtime):
    """Go on with the run in the checkpoint ``path``."""
    state = read_checkpoint(path, runtime)
    training.load_state_dict(state)
    if len(state["random_states"]) == runtime.world_size:
        runtime.set_random_state(state["random_states"][runtime.rank])
    else:
        runtime.log("%s was written by %d processes, and these are %d: from here on, the losses draw other random "
                    "numbers than in a run that was never stopped"
                    % (path, len(state["random_states"]), runtime.world_size))
    runtime.log("resumed from %s: %d of %d epochs are done" % (path, state["epoch"], opt["train_epochs"]))


def log_epoch(runtime, epoch, trained, validated):
    """Log an epoch. Scripts look for the first three lines: keep them to the letter."""
    runtime.log("Epoch: %d,FPS: %.2f,time: %.2f" % (epoch, trained["fps"], trained["time"]))
    for name, result in (("training", trained), ("test", validated)):
        losses = result["losses"]
        runtime.log(LOSS_LINE % (name, epoch, result["iterations"] - 1, losses["tem"], losses["pem_cls"],
                                 losses["pem_reg"], losses["total"]))
    if trained["skipped"]:
        runtime.log("epoch %d: %d of %d steps were left out because their gradients overflowed (--loss_scale)"
                    % (epoch, trained["skipped"], trained["iterations"]))


def open_datasets(opt, runtime, annotations, *subsets):
    """The videos of each subset with their features, found and checked before anything is computed."""
    videos = [annotations.subset(subset) for subset in subsets]
    features = open_features(opt, list(dict.fromkeys(itertools.chain(*videos))), runtime, runtime.log)
    datasets = [VideoDataSet(opt, subset, features, its_videos) for subset, its_videos in zip(subsets, videos)]
    for subset, dataset in zip(subsets, datasets):
        runtime.log("%s subset video numbers: %d" % (subset, len(dataset)))
    return datasets


def load(dataset, batches, opt, runtime):
    """A DataLoader over ``batches`` of a data set, on as many processes as --num_workers says."""
    workers = opt["num_workers"] if opt["num_workers"] >= 0 else default_workers(runtime, dataset.features)
    return load_batches(dataset, batches, workers, pin_memory=runtime.kind == "cuda")


def read_checkpoint(path, runtime, ema=0):
    """Rank 0 reads it and the others get it from there: the machines of a run need not share a disk."""
    state = runtime.broadcast(checkpoint.read(path, bool(ema)) if runtime.is_main else None)
    for line in checkpoint.remarks(state):
        runtime.log(line)
    return state


def save(folder, state, is_best):
    """Write the best checkpoint if this epoch is the best, then the last one, then a JSON line for each epoch done.

    In this order the best network is on the disk before the record that names it. A run that is killed in between
    repeats the epoch.
    """
    if is_best:
        checkpoint.save(os.path.join(folder, BEST), state)
    checkpoint.save(os.path.join(folder, checkpoint.LAST), state)
    with replacing(os.path.join(folder, "metrics.jsonl")) as path, open(path, "w") as handle:
        handle.writelines(json.dumps(line) + "\n" for line in state["metrics"])


def infer(opt, runtime, precision, annotations, ground_truth):
    """Proposals of the validation videos: --result_file, then AR@AN, the figure and the report."""
    videos, = open_datasets(opt, runtime, annotations, "validation")
    layout = opt["layout"], opt["max_duration"]
    network = OnnxNetwork(opt["onnx"], *layout) if opt["onnx"] else trained_network(opt, runtime, precision)
    found = propose(videos, network, opt, runtime, precision)
    if runtime.is_main:
        results = post_processing.write_result(opt["result_file"], videos.videos, found, ground_truth.spelled())
        maps_of = functools.partial(maps_of_videos, videos, network, runtime, precision)
        result = evaluation_proposal(opt, results, ground_truth)
        runtime.log("proposals: %s" % opt["result_file"])
        if result:
            page = write_report(opt, result, videos.videos, maps_of, annotations.subset_or_none("train"))
            runtime.log("figure: %s\nreport: %s" % (opt["save_fig_path"], page))


def evaluate(opt, runtime, ground_truth):
    """Measure --result_file as it is: AR@AN of proposals, mAP of detections, or of proposals with --mode detection."""
    if not runtime.is_main:
        return
    detections = read_detections(opt["result_file"])
    if detections is not None or opt["mode"] == "detection":
        evaluate_detection(opt, ground_truth, detections, runtime.log)
    else:
        result = evaluation_proposal(opt, None, ground_truth)
        if result:
            runtime.log("figure: %s\nreport: %s" % (opt["save_fig_path"], write_report(opt, result)))


def trained_network(opt, runtime, precision):
    """The network of --pth_path on the device, ready for inference."""
    network = BMN(opt)
    checkpoint.put_network(read_checkpoint(opt["pth_path"], runtime, opt["ema"]), network)
    return precision.prepare(network.to(runtime.device))[0]


def propose(videos, network, opt, runtime, precision):
    """{name: proposals} of all videos, on rank 0. The ranks divide the work, and --save_csv exports the tables."""
    blocks = rank_blocks(len(videos), runtime.rank, runtime.world_size)
    loader = load(videos, list(blocks.values()), opt, runtime)
    helpers = max(1, opt["post_process_thread"] // runtime.world_size)
    export = (CsvExport(FOLDER, helpers, opt["layout"], opt["max_duration"]) if opt["save_csv"]
              else contextlib.nullcontext())
    bar = tqdm(total=len(videos), desc="inference", unit="video", disable=None if runtime.is_main else True)
    found = {}
    with export as tables, bar:
        for indices, *maps in engine.infer(network, loader, precision, runtime):
            names = [videos.video_list[index] for index in indices]
            found.update(zip(names, post_processing.proposals(*maps, opt)))
            if tables:
                tables.add(names, *maps)
            bar.update(min(len(names) * runtime.world_size, bar.total - bar.n))
    return {name: proposals for rank in runtime.gather(found) for name, proposals in rank.items()}


def maps_of_videos(videos, network, runtime, precision, names):
    """[confidence map [2, T, T], start [T], end [T]] of each of the videos ``names``, computed again."""
    batches = [[videos.video_list.index(name)] for name in names]
    outputs = engine.infer(network, load_batches(videos, batches, 0), precision, runtime)
    return [[part[0] for part in maps] for _, *maps in outputs]


if __name__ == "__main__":
    run_as_program(main, ARGUMENTS)
