"""A network for windows of long videos, beside OpenTAD's BMN: processor seconds of a training step and an inference.

    OMP_NUM_THREADS=1 python3 benchmarks/windows.py --opentad DIR       # T = 128, D = 64, batch 8; about five minutes

DIR is a clone of github.com/sming256/OpenTAD. Its own modules run, with its losses and on its map of durations; only
its registry, which needs mmengine, is replaced. Both take turns in one process, on one thread, on the same features.
The networks are not quite equal: OpenTAD samples 128 channels of a position, and ours 256 as the paper does.
Without --opentad, ours alone shows what a longest duration saves.
"""
import argparse
import importlib
import os
import sys
import types

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import numpy as np
import torch
from network import PRECISIONS, Side, make_batch, seconds

from bmn.errors import UserError, run_as_program
from bmn.machine.device import keep_freed_memory
from bmn.options import COUNT, DEFAULTS
from loss_function import get_mask

PARTS = {"projections.base": "ConvSingleProj", "dense_heads.tem_head": "TemporalEvaluationHead",
         "roi_heads.standard_map_head": "StandardProposalMapHead",
         "roi_heads.proposal_generator.dense_map": "DenseProposalMap",
         "roi_heads.roi_extractors.bmn_extractor": "BMNExtractor", "roi_heads.proposal_head.pem_head": "PEMHead",
         "losses.balanced_bce_loss": "BalancedBCELoss", "losses.balanced_l2_loss": "BalancedL2Loss"}


class Registry:
    """Builds a class by its name, as mmengine's does."""

    def __init__(self):
        self.classes = {}

    def register_module(self):
        def register(one):
            return self.classes.setdefault(one.__name__, one)
        return register

    def build(self, config):
        return self.classes[config["type"]](**{name: value for name, value in config.items() if name != "type"})


def load_opentad(folder):
    """OpenTAD's registry, with the modules of its BMN.

    Raises:
        UserError: there is no such clone.
    """
    models = os.path.join(folder, "opentad", "models")
    if not os.path.isfile(os.path.join(models, "detectors", "bmn.py")):
        raise UserError("--opentad '%s' is no clone of OpenTAD: clone github.com/sming256/OpenTAD there" % folder)
    registry, builder = Registry(), types.ModuleType("opentad.models.builder")
    for name in ("PROJECTIONS", "HEADS", "LOSSES", "MODELS", "ROI_EXTRACTORS", "PROPOSAL_GENERATORS"):
        setattr(builder, name, registry)
    for name in ("loss", "head", "projection", "proposal_generator", "roi_extractor"):
        setattr(builder, "build_" + name, registry.build)
    sys.modules[builder.__name__] = builder
    packages = {"opentad.models." + part.rsplit(".", 1)[0] for part in (*PARTS, "bricks.conv", "utils.iou_tools")}
    for name in sorted(packages | {"opentad", "opentad.models", "opentad.models.roi_heads"}):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [os.path.join(folder, *name.split("."))]       # but its __init__.py does not run
    bricks = sys.modules["opentad.models.bricks"]
    bricks.ConvModule = importlib.import_module("opentad.models.bricks.conv").ConvModule
    bricks.TransformerBlock = bricks.GCNeXt = None
    for part, name in PARTS.items():
        assert getattr(importlib.import_module("opentad.models." + part), name) is registry.classes[name]
    return registry


class OpenTad(torch.nn.Module):
    """OpenTAD's BMN as its configs/_base_/models/bmn.py describes it; forward as in its TwoStageDetector."""

    def __init__(self, registry, scale, duration, channels):
        super().__init__()
        sizes = {"tscale": scale, "dscale": duration}
        self.projection = registry.build({"type": "ConvSingleProj", "in_channels": channels, "out_channels": 256,
                                          "num_convs": 2, "conv_cfg": {"groups": 4}})
        self.rpn_head = registry.build({"type": "TemporalEvaluationHead", "in_channels": 256, "num_classes": 2,
                                        "conv_cfg": {"groups": 4},
                                        "loss": {"pos_thresh": 0.5, "gt_type": ["startness", "endness"]}})
        self.roi_head = registry.build({
            "type": "StandardProposalMapHead", "proposal_generator": {"type": "DenseProposalMap", **sizes},
            "proposal_roi_extractor": {"type": "BMNExtractor", "in_channels": 256, "roi_channels": 512,
                                       "out_channels": 128, "prop_extend_ratio": 0.5, **sizes},
            "proposal_head": {"type": "PEMHead", "in_channels": 128, "feat_channels": 128, "num_convs": 2,
                              "num_classes": 2, "loss": types.SimpleNamespace(
                                  cls_loss={"type": "BalancedBCELoss", "pos_thresh": 0.9},
                                  reg_loss={"type": "BalancedL2Loss", "high_thresh": 0.7, "low_thresh": 0.3,
                                            "weight": 5.0})}})


class Theirs:
    """What :class:`network.Side` is for the others."""

    def __init__(self, folder, scale, duration):
        self.network = OpenTad(load_opentad(folder), scale, duration, DEFAULTS["feat_dim"])
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3, weight_decay=1e-4)

    def _base(self, batch):
        return self.network.projection(batch[0], torch.ones(len(batch[0]), batch[0].shape[2], dtype=torch.bool))

    def train(self, batch, precision):
        self.optimizer.zero_grad()
        scale = batch[0].shape[2]
        segments = [torch.tensor([[0.2, 0.5], [0.55, 0.7]]) * scale for _ in batch[0]]      # two actions in a window
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "O1"):
            base, masks = self._base(batch)
        with torch.autocast("cpu", enabled=False):
            losses = self.network.rpn_head.forward_train(base.float(), masks, gt_segments=segments)[0]
            losses.update(self.network.roi_head.forward_train(base.float(), None, segments, None))
        sum(losses.values()).backward()
        self.optimizer.step()

    def infer(self, batch, precision):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "O1"):
            base, masks = self._base(batch)
            self.network.rpn_head.forward_test(base, masks)
            self.network.roi_head.forward_test(base)


class Ours(Side):
    """Ours, whose loss counts only the pairs that are short enough."""

    def loss(self, outputs, batch):
        mask = get_mask(batch[1].shape[1], self.network.max_duration)
        return self.loss_function(*outputs, *batch[1:], mask)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--opentad", help="clone of OpenTAD")
    parser.add_argument("--temporal_scale", type=COUNT, default=128)
    parser.add_argument("--max_duration", type=COUNT, default=64)
    parser.add_argument("--batch", type=COUNT, default=8)
    parser.add_argument("--repeats", type=COUNT, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()         # as main.py does
    options = dict(DEFAULTS, temporal_scale=args.temporal_scale, layout="opentad")
    sides = {"ours, D = T": Ours(options), "ours": Ours(dict(options, max_duration=args.max_duration))}
    if args.opentad:
        sides = {"OpenTAD": Theirs(args.opentad, args.temporal_scale, args.max_duration), **sides}
    short, every = (sides[name].network.boundary_matching.proposals for name in ("ours", "ours, D = T"))
    print("PyTorch %s, one thread; T = %d, D = %d: %d of %d pairs; batch %d, processor seconds a video, least of %d"
          % (torch.__version__, args.temporal_scale, args.max_duration, short, every, args.batch, args.repeats))
    print("%-20s" % "" + "".join("%14s" % name for name in sides) + "%10s" % "ratio")
    batch = make_batch(args.batch, args.temporal_scale)
    for work, name in (("train", "training step"), ("infer", "inference")):
        for precision in PRECISIONS if not args.opentad else PRECISIONS[:1]:
            for side in sides.values():
                getattr(side, work)([part[:1] for part in batch], precision)            # warm up
            best = np.min([[seconds(getattr(side, work), batch, precision) / args.batch for side in sides.values()]
                           for _ in range(args.repeats)], axis=0)
            print("%-14s %-5s" % (name, precision) + "".join("%14.4f" % one for one in best)
                  + "%9.1fx" % (best[0] / best[-1]), flush=True)


if __name__ == "__main__":
    run_as_program(main)
