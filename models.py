"""The BMN network (Lin et al. 2019, section 3): base, temporal evaluation, proposal evaluation."""
from typing import Tuple

import torch
from torch import nn
from torch.nn import functional as F

from bmn.errors import UserError
from bmn.layouts import checked_duration
from bmn.network.boundary_matching import BoundaryMatching
from bmn.network.cell_convolution import CellConvolutions, WholeMap
from bmn.network.proposal_rows import proposal_rows
from bmn.options import with_defaults
from bmn.sampling import sampling_differences, told_by_mask

GROUPS = 4              # of the convolutions of the base and of the boundary heads
BASE = 256              # channels of the base, and of the features that are sampled
SAMPLED = 512           # channels of a proposal after its samples are contracted
MAP = 128               # channels of the confidence map's convolutions


class BMN(nn.Module):
    """Boundary-Matching Network: features of a video -> confidence of every proposal, start and end of every position.

    What it computes, as a textbook has it, with ``sample_mask`` [T, N*T*T] for the weights of the BM layer:

        base = x_1d_b(x)                                                    # [B, 256, T]
        start, end = x_1d_s(base).squeeze(1), x_1d_e(base).squeeze(1)       # [B, T]
        samples = (x_1d_p(base) @ sample_mask).view(B, 256, N, T, T)
        confidence_map = x_2d_p(x_3d_p(samples).squeeze(2))                 # [B, 2, T, T]

    The result is the same to rounding, but ``samples`` never exist (bmn/network/boundary_matching.py). On a CPU, cells
    with start > end that are equal are computed only once (bmn/network/cell_convolution.py).

    In the layouts of other implementations (bmn/layouts.py) x_2d_p runs on a map [duration, start]. Its result is put
    into the order [start, end], so that the outputs mean the same in every layout.

    Args:
        opt: dict; feat_dim, temporal_scale, num_sample, num_sample_perbin, prop_boundary_ratio, layout and max_duration
            are used, and missing ones get their defaults. bm_contraction "bags" or "dense" overrides the choice by
            device.

    ``state_dict`` has the reference's names without ``sample_mask``, which follows from the options.

    Raises:
        UserError: feat_dim cannot be split into groups, or the options contradict each other.
    """

    def __init__(self, opt: dict):
        super().__init__()
        opt = with_defaults(opt)
        # the options that decide what the network computes; a checkpoint is compared with them
        self.feat_dim, self.temporal_scale = opt["feat_dim"], opt["temporal_scale"]
        self.num_sample, self.num_sample_perbin = opt["num_sample"], opt["num_sample_perbin"]
        self.prop_boundary_ratio, self.layout = opt["prop_boundary_ratio"], opt["layout"]
        self.max_duration = checked_duration(self.temporal_scale, opt["max_duration"])
        if self.feat_dim % GROUPS:
            raise UserError("--feat_dim %d is no multiple of %d, because the first layer splits the features into %d "
                            "groups: tools/prepare_features.py fills features up with columns of zeros, to %d"
                            % (self.feat_dim, GROUPS, GROUPS, -(-self.feat_dim // GROUPS) * GROUPS))
        self.boundary_matching = BoundaryMatching(
            self.temporal_scale, self.num_sample, self.num_sample_perbin, self.prop_boundary_ratio,
            opt["bm_contraction"], self.layout, self.max_duration)
        self.whole_map = WholeMap(self.temporal_scale, self.layout, self.max_duration)
        self.cells = {valid_only: CellConvolutions(self.temporal_scale, valid_only, self.layout, self.max_duration)
                      for valid_only in (False, True)}

        self.x_1d_b = nn.Sequential(
            nn.Conv1d(self.feat_dim, BASE, kernel_size=3, padding=1, groups=GROUPS), nn.ReLU(inplace=True),
            nn.Conv1d(BASE, BASE, kernel_size=3, padding=1, groups=GROUPS), nn.ReLU(inplace=True))
        self.x_1d_s = _boundary_head()
        self.x_1d_e = _boundary_head()
        self.x_1d_p = nn.Sequential(nn.Conv1d(BASE, BASE, kernel_size=3, padding=1), nn.ReLU(inplace=True))
        self.x_3d_p = nn.Sequential(
            nn.Conv3d(BASE, SAMPLED, kernel_size=(self.num_sample, 1, 1), stride=(self.num_sample, 1, 1)),
            nn.ReLU(inplace=True))
        self.x_2d_p = nn.Sequential(
            nn.Conv2d(SAMPLED, MAP, kernel_size=1), nn.ReLU(inplace=True),
            nn.Conv2d(MAP, MAP, kernel_size=3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(MAP, MAP, kernel_size=3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(MAP, 2, kernel_size=1), nn.Sigmoid())
        self._register_load_state_dict_pre_hook(self._drop_sample_mask)

    def forward(self, x: torch.Tensor, valid_only: bool = False) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features to the three outputs.

        Args:
            x: [B, C, T].
            valid_only: cells with start > end, which mean nothing, are not computed and hold 0. With a max_duration
                they and the proposals that are too long always hold 0.

        Returns:
            confidence_map [B, 2, T, T] (channel 0 regression, 1 classification; indices start, end), start [B, T],
            end [B, T]; all in 0..1.

        Raises:
            UserError: x has another shape than the options say.
        """
        self._check(x)
        base = self.x_1d_b(x)
        start, end = _boundary_probability(self.x_1d_s, base), _boundary_probability(self.x_1d_e, base)
        return self._proposal_evaluation(self.x_1d_p(base), valid_only), start, end

    def _proposal_evaluation(self, x, valid_only):
        valid_only = valid_only or self.max_duration > 0
        conv3d, _ = self.x_3d_p
        features = x.transpose(1, 2)                            # [B, T, 256]
        if self._skips_cells(x):
            rows = proposal_rows(features, conv3d, self.x_2d_p[0], self.boundary_matching)
            logits = torch.stack([self._by_cell(video, self.cells[valid_only]) for video in rows])
        else:
            # V [512, 256, N, 1, 1]; row t * N + n of a table [T*N, 512] is sample n at position t
            weight = conv3d.weight.to(x.dtype).view(-1, self.num_sample).t().reshape(-1, BASE)      # [N*512, 256]
            logits = self._by_map(F.linear(features, weight).view(x.shape[0], -1, SAMPLED))
        confidence_map = logits.view(-1, 2, self.temporal_scale, self.temporal_scale).sigmoid()
        if self.max_duration:       # a product and not a triangle, which ONNX has only since opset 14
            return confidence_map * self.whole_map.is_proposal.to(confidence_map)
        return torch.triu(confidence_map) if valid_only else confidence_map

    def _skips_cells(self, x):
        """A CPU gains from computing half of the cells; a card, and an exported graph, have whole maps."""
        return x.device.type == "cpu" and self.boundary_matching.uses_bags(x)

    def _proposals(self, table):
        """The contracted samples after the first 1x1 convolution: [..., T*N, 512] -> [..., P + 1, 128]."""
        conv3d, _ = self.x_3d_p
        reduction = self.x_2d_p[0]
        rows = F.relu_(self.boundary_matching(table, conv3d.bias))
        return F.relu_(F.linear(rows, reduction.weight.flatten(1), reduction.bias))

    def _by_cell(self, rows, cells):
        """Logits [2, T*T] of one video, from the cells that differ; rows [P + 1, 128]."""
        _, _, first, _, second, _, last, _ = self.x_2d_p
        rows = cells.first(rows, first.weight, first.bias)
        rows = cells.second(rows, second.weight, second.bias)
        logits = _float32_at_least(F.linear(rows, last.weight.flatten(1), last.bias))
        return logits.t().index_select(1, cells.row)

    def _by_map(self, table):
        """Logits [B, 2, T, T], from all cells."""
        after_reduction = self.x_2d_p[2:-1]
        cells = after_reduction(self.whole_map(self._proposals(table)))
        return _float32_at_least(self.whole_map.by_pair(cells))

    def _check(self, x):
        if x.dim() != 3 or tuple(x.shape[1:]) != (self.feat_dim, self.temporal_scale):
            raise UserError("features of shape %s are not [videos, %d, %d]: --feat_dim and --temporal_scale must be "
                            "those of the features" % (list(x.shape), self.feat_dim, self.temporal_scale))

    def _drop_sample_mask(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        """Others store their sampling weights. They must not be those of another network, then they are left out."""
        state_dict.pop(prefix + "bm_mask", None)        # mmaction2's valid cells
        mask = state_dict.get(prefix + "sample_mask")
        if mask is None:
            return
        wanted = (self.temporal_scale, self.num_sample * self.temporal_scale ** 2)
        if tuple(mask.shape) != wanted:
            errors.append("sample_mask has shape %s, %s is needed: the checkpoint was made with another "
                          "--temporal_scale or --num_sample" % (tuple(mask.shape), wanted))
        else:
            told = told_by_mask(mask.detach().float().cpu().numpy())
            errors.extend("sample_mask is of another network: it was made with --%s %s, and here it is %s" % difference
                          for difference in sampling_differences(told, self))
        state_dict.pop(prefix + "sample_mask")


def _boundary_head():
    return nn.Sequential(
        nn.Conv1d(BASE, BASE, kernel_size=3, padding=1, groups=GROUPS), nn.ReLU(inplace=True),
        nn.Conv1d(BASE, 1, kernel_size=1), nn.Sigmoid())


def _boundary_probability(head, base):
    """A boundary head on the base [B, 256, T]: [B, T]."""
    before_sigmoid = head[:-1]
    return _float32_at_least(before_sigmoid(base).squeeze(1)).sigmoid()


def _float32_at_least(logits):
    """Cast half precision: bfloat16 has no probability between 0.996 and 1, where losses and ties are decided."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
