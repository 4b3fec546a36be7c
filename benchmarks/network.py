"""Time, memory and results of our network beside the reference's, on one thread of a CPU.

    python3 benchmarks/network.py --reference DIR           # side by side, about ten minutes; needs 11 GB
    python3 benchmarks/network.py --tscales 50,100,200,400 --batches 1,2,4,8,16 --profile       # ours alone
    python3 benchmarks/network.py --device cuda [--reference DIR]       # on a card: seconds of the clock instead

DIR is a clone of github.com/JJBOY/BMN-Boundary-Matching-Network at a92c1d7; what no longer runs in it is mended in
memory. Both networks have the same weights, inputs, labels and draws, but their own losses; they take turns in one
process. Times are processor seconds a video, the least of the repeats; memory is the peak of a fresh process.
"""
import argparse
import functools
import json
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import numpy as np
import torch
from reference import load_reference

from bmn.data.annotations import Video
from bmn.errors import UserError, run_as_program
from bmn.machine.amp import Plain, bfloat16_problem
from bmn.machine.device import cuda_problem, keep_freed_memory
from bmn.network.contraction import choose_contraction
from bmn.options import COUNT, DEFAULTS
from dataset import Labels
from loss_function import bmn_loss_func, get_mask
from models import BMN

NO_BFLOAT16 = bfloat16_problem()
PRECISIONS = ("O0",) if NO_BFLOAT16 else ("O0", "O1")       # float32; bfloat16 autocast, where the processor has it


def make_batch(batch, scale, channels=400):
    """Features, IoU map, start and end of made-up videos: one long, one middling and one short segment each."""
    random, items = np.random.RandomState(0), []
    for _ in range(batch):
        centre, half = random.uniform(30, 70, 3), random.uniform(0.5, 1, 3) * (30, 10, 4)
        items.append(Labels(scale)(Video(100.0, 100.0, 100.0, [(c - h, c + h, "") for c, h in zip(centre, half)])))
    labels = [torch.stack([torch.as_tensor(value) for value in values]).float() for values in zip(*items)]
    return [torch.from_numpy(random.randn(batch, channels, scale).astype(np.float32))] + labels


class Side:
    """One of the two implementations: its network, its losses, and what is measured of them."""

    def __init__(self, options, reference=None):
        torch.manual_seed(0)
        if reference:
            models, losses = load_reference(reference, "models", "loss_function")
            self.network, self.loss_function = models.BMN(options), losses.bmn_loss_func
        else:
            self.network, self.loss_function = BMN(options), bmn_loss_func
        self.is_reference = bool(reference)
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=1e-3, weight_decay=1e-4)

    def outputs(self, batch, precision):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "O1"):
            outputs = self.network(batch[0])
        return [output.float() for output in outputs] if precision == "O1" else outputs

    def loss(self, outputs, batch):
        """The total loss."""
        arguments = list(outputs) + batch[1:] + [get_mask(batch[1].shape[1])]
        if self.is_reference:
            np.random.seed(0)               # it draws from the global generator
            return self.loss_function(*arguments)[0]
        random = np.random.RandomState(0)
        draws = [torch.from_numpy(random.rand(*batch[1].shape)).float() for _ in range(2)]
        return self.loss_function(*arguments, draws=draws)[0]

    def train(self, batch, precision):
        """Make a training step."""
        self.optimizer.zero_grad()
        self.loss(self.outputs(batch, precision), batch).backward()
        self.optimizer.step()

    def infer(self, batch, precision):
        """Compute the three outputs; ours leaves out the cells that decoding never reads."""
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "O1"):
            self.network(batch[0], **({} if self.is_reference else {"valid_only": True}))


def seconds(work, *arguments):
    """Processor seconds of ``work(*arguments)``."""
    began = time.process_time()
    work(*arguments)
    return time.process_time() - began


def side_by_side(args, theirs, ours):
    """Print times and ratios of a training step and an inference in both precisions."""
    batch = make_batch(args.batch, args.temporal_scale)
    small = [part[:1] for part in batch]
    print("\nbatch %d, processor seconds a video, least of %d" % (args.batch, args.repeats))
    print("%-14s %-4s %12s %8s %8s %26s" % ("", "", "reference", "ours", "ratio", "ours to reference in O0"))
    for name in ("train", "infer"):
        in_float32 = None
        for precision in PRECISIONS:
            best = []
            for side in (theirs, ours):
                getattr(side, name)(small, precision)           # warm up
            for _ in range(args.repeats):
                best.append([seconds(getattr(side, name), batch, precision) / args.batch
                             for side in (theirs, ours, ours)])         # ours twice, because it costs little
            reference, mine = np.min(best, axis=0)[0], np.min(best, axis=0)[1:].min()
            in_float32 = in_float32 or reference
            print("%-14s %-4s %12.3f %8.4f %7.1fx %25.1fx" % (
                {"train": "training step", "infer": "inference"}[name], precision, reference, mine, reference / mine,
                in_float32 / mine), flush=True)


def equality(args, theirs, ours):
    """Print how far outputs, gradients of our loss and losses of both networks differ, with the same weights."""
    print("\nequality, batch 1: largest difference of outputs; of gradients, the norm of the difference over the norm; "
          "difference of the losses")
    for dtype in (torch.float64, torch.float32):
        batch = [part.to(dtype) for part in make_batch(1, args.temporal_scale)]
        found = []
        for side in (theirs, ours):
            side.network.to(dtype).zero_grad()
            outputs = side.outputs(batch, "O0")
            ours.loss(outputs, batch).backward()
            gradients = {name: p.grad.clone() for name, p in side.network.named_parameters() if p.grad is not None}
            found.append(([output.detach() for output in outputs], gradients, side.loss(outputs, batch).item()))
            side.network.float().zero_grad()
        (their_outputs, their_gradients, their_loss), (our_outputs, our_gradients, our_loss) = found
        assert their_gradients.keys() == our_gradients.keys()
        print("%-8s outputs %.1e, gradients %.1e, loss %.1e" % (
            str(dtype)[6:], max(float((a - b).abs().max()) for a, b in zip(their_outputs, our_outputs)),
            max(float((gradient - our_gradients[name]).norm() / gradient.norm())
                for name, gradient in their_gradients.items()), abs(their_loss - our_loss)), flush=True)


def fresh(args, kind, work, precision, scale, batch):
    """(processor seconds a video, peak MB) of a process of its own."""
    command = [sys.executable, os.path.abspath(__file__),
               "--one", "%s,%s,%s,%d,%d" % (kind, work, precision, scale, batch)]
    if kind == "reference":
        command += ["--reference", args.reference]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def one(args):
    """Run in the process that :func:`fresh` starts."""
    kind, work, precision, scale, batch = args.one.split(",")
    side = Side(dict(DEFAULTS, temporal_scale=int(scale)), args.reference if kind == "reference" else None)
    data = make_batch(int(batch), int(scale))
    repeats = 1 if kind == "reference" else 3
    took = [seconds(getattr(side, work), data, precision) for _ in range(repeats)]
    with open("/proc/self/status") as handle:       # getrusage() would count the parent's memory
        peak = next(line for line in handle if line.startswith("VmHWM"))
    print(json.dumps((min(took) / int(batch), int(peak.split()[1]) / 1024)))


def table(args, title, cases):
    print("\n%s: processor seconds a video and peak memory of a process (MB), ours" % title)
    print("%5s %6s" % ("T", "batch") + "".join("%22s" % ("%s %s" % (work, precision)) for work in ("train", "infer")
                                                  for precision in PRECISIONS))
    for scale, batch in cases:
        cells = [fresh(args, "ours", work, precision, scale, batch) for work in ("train", "infer")
                 for precision in PRECISIONS]
        print("%5d %6d" % (scale, batch) + "".join("%14.4f %7.0f" % tuple(cell) for cell in cells), flush=True)


def peak_rate(dtype):
    """Multiply-adds a second of the library's 3x3 convolution on a whole map, as a measure of what it can do."""
    image = torch.randn(1, 128, 100, 100, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    best = min(seconds(lambda: torch.conv2d(image, weight, padding=1)) for _ in range(20))
    return 128 * 128 * 9 * 100 * 100 / best


def arithmetic(network):
    """Multiply-adds of convolutions and matrix products for one video, forward."""
    scale, cells, bm = network.temporal_scale, network.cells[False], network.boundary_matching
    one_dimensional = sum(layer.weight.numel() * scale for layer in network.modules()
                          if isinstance(layer, torch.nn.Conv1d))
    return (one_dimensional + bm.rows * 512 * 256 + (bm.proposals + 1) * 512 * 128
            + (cells.first.rows + cells.second.rows) * 9 * 128 * 128 + cells.second.rows * 128 * 2)


def profile(args, ours):
    """Print where a training step spends its time, and how near that is to what the library can do."""
    from torch.profiler import ProfilerActivity
    kinds = (("convolutions", ("convolution",)), ("matrix products", ("aten::mm", "aten::addmm", "aten::bmm")),
             ("weighted bags", ("embedding_bag",)), ("ReLU", ("threshold", "clamp_min", "aten::relu")),
             ("copies, gathers", ("copy_", "index", "aten::cat", "stack")),
             ("optimizer", ("Optimizer", "lerp", "addc", "sqrt", "aten::div")))
    batch = make_batch(args.batch, args.temporal_scale)
    for precision in PRECISIONS:
        floor = 3 * arithmetic(ours.network) / peak_rate(torch.bfloat16 if precision == "O1" else torch.float32)
        step = min(seconds(ours.train, batch, precision) for _ in range(3)) / args.batch
        with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as record:
            ours.train(batch, precision)
        parts = dict.fromkeys([name for name, _ in kinds] + ["everything else"], 0.0)
        for event in record.key_averages():
            kind = next((name for name, parts in kinds if any(part in event.key for part in parts)), "everything else")
            parts[kind] += event.self_cpu_time_total
        total = sum(parts.values())
        print("\n%s: a training step is %.3f s a video; its %.2f GMAC of convolutions and products would take %.3f s "
              "at the rate of a 3x3 convolution: %.0f %%" % (precision, step, 3 * arithmetic(ours.network) / 1e9, floor,
                                                             100 * floor / step))
        for name, part in sorted(parts.items(), key=lambda item: -item[1]):
            print("  %-16s %5.1f %%" % (name, 100 * part / total), flush=True)


CARD = {"float32": (False, None), "TF32": (True, None), "float16 O1": (True, torch.float16)}    # TF32, autocast


def card_seconds(work, synchronize):
    """Median seconds of five rounds of ``work()``, after two that are not timed; None where memory is short."""
    took = []
    try:
        for _ in range(7):
            synchronize()
            began = time.perf_counter()
            work()
            synchronize()
            took.append(time.perf_counter() - began)
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        return None
    return float(np.median(took[2:]))


def on_card(args, kind, batches):
    """Print milliseconds a video of both networks on a card, and ours as a share of the rate of its products.

    Both have our loss, because the reference's runs on card 0 alone. Float16 is not scaled: that changes no time.
    """
    synchronize = getattr(torch, kind).synchronize if kind != "cpu" else (lambda: None)
    print("\n%-11s %6s %-14s %14s %10s %8s %16s" % ("milliseconds", "batch", "", "reference", "ours", "ratio",
                                                    "share of peak"))
    for name, (short, dtype) in CARD.items():
        if kind == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = short
        square = torch.randn(4096 if kind == "cuda" else 256, 4096, device=kind, dtype=dtype or torch.float32)
        peak = len(square) ** 2 * 4096 / card_seconds(functools.partial(torch.mm, square, square.t()), synchronize)
        precision = Plain(name, lambda dtype=dtype: torch.autocast(kind, dtype or torch.float16, dtype is not None))
        for batch in batches:
            data = [part.to(kind) for part in make_batch(batch, args.temporal_scale)]
            took = {}
            for side in ("reference", "ours"):
                if side == "reference" and not args.reference:
                    continue
                one = Side(dict(DEFAULTS, temporal_scale=args.temporal_scale), args.reference if side == "reference"
                           else None)
                one.network.to(kind)
                if side == "ours":
                    choose_contraction(one.network, CardRuntime(kind, synchronize), precision, batch, True)
                took[side] = [card_seconds(functools.partial(card_step, one, data, precision, training), synchronize)
                              for training in (True, False)]
            for index, work in enumerate(("training step", "inference")):
                ours, theirs = took["ours"][index], took.get("reference", (None, None))[index]
                rate = batch * arithmetic(one.network) * (3 if index == 0 else 1) / ours if ours else 0
                print("%-11s %6d %-14s %14s %10s %8s %15.0f%%" % (
                    name, batch, work, *("-" if value is None else "%.3f" % (1000 * value / batch)
                                         for value in (theirs, ours)),
                    "%.1fx" % (theirs / ours) if theirs and ours else "-", 100 * rate / peak), flush=True)


def card_step(side, data, precision, training):
    with torch.set_grad_enabled(training), precision.autocast():
        outputs = side.network(data[0])
    if training:
        side.optimizer.zero_grad()
        bmn_loss_func(*(output.float() for output in outputs), *data[1:],
                      get_mask(data[1].shape[1]).to(data[0].device))[0].backward()
        side.optimizer.step()


class CardRuntime:
    """What :func:`choose_contraction` needs of a Runtime."""

    is_main, log = True, staticmethod(print)
    agreed = staticmethod(lambda found: found)
    random_state, set_random_state = staticmethod(torch.get_rng_state), staticmethod(torch.set_rng_state)

    def __init__(self, kind, synchronize):
        self.kind, self.synchronize = kind, synchronize


def counts(text):
    """An argparse type: whole numbers above 0, separated by commas."""
    return [COUNT(part) for part in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference", help="clone of the reference")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--temporal_scale", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tscales", type=counts, help="values of T for a table of ours, such as 50,100,200,400")
    parser.add_argument("--batches", type=counts, help="batch sizes for a table of ours, such as 1,2,4,8,16")
    parser.add_argument("--profile", action="store_true", help="where a training step of ours spends its time")
    parser.add_argument("--device", choices=("cuda",), help="measure on a card, with batches of --batches or 16,128")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()         # as main.py does
    if args.one:
        return one(args)
    if args.device:
        problem = cuda_problem()
        if problem:
            raise UserError("--device cuda: %s; without it the measurement runs on the CPU" % problem)
        return on_card(args, args.device, args.batches or (16, 128))
    if not (args.reference or args.tscales or args.batches or args.profile):
        raise UserError("nothing to measure: give --reference DIR, --tscales, --batches or --profile")
    print("PyTorch %s, one thread%s" % (torch.__version__, ", O0 alone: %s" % NO_BFLOAT16 if NO_BFLOAT16 else ""))
    options = dict(DEFAULTS, temporal_scale=args.temporal_scale)
    ours = Side(options)
    if args.reference:
        theirs = Side(options, args.reference)
        ours.network.load_state_dict(theirs.network.state_dict())
        equality(args, theirs, ours)
        side_by_side(args, theirs, ours)
        del theirs
        peaks = [fresh(args, kind, "train", "O0", args.temporal_scale, args.batch)[1] for kind in ("reference", "ours")]
        print("\npeak memory of a training process: reference %.0f MB, ours %.0f MB: %.1f times less"
              % (peaks[0], peaks[1], peaks[0] / peaks[1]))
    if args.tscales:
        table(args, "temporal scales", [(scale, 2) for scale in args.tscales])
    if args.batches:
        table(args, "batches", [(args.temporal_scale, batch) for batch in args.batches])
    if args.profile:
        profile(args, ours)
    return None


if __name__ == "__main__":
    run_as_program(main)
