"""The BMN network (Lin et al. 2019, section 3): base, temporal evaluation, proposal evaluation."""
import torch
from torch import nn
from torch.nn import functional as F

from boundary_matching import BoundaryMatching
from defaults import with_defaults
from errors import UserError


class BMN(nn.Module):
    """Boundary-Matching Network: features of a video -> confidence of every proposal, start and end of every position.

    Args:
        opt: dict; feat_dim, temporal_scale, num_sample, num_sample_perbin and prop_boundary_ratio count, what is
            missing takes its default. bm_contraction "bags" or "dense" overrides the choice by device.

    ``state_dict`` has the reference's names without ``sample_mask``, which follows from the options.
    """

    def __init__(self, opt):
        super().__init__()
        opt = with_defaults(opt)
        # the options that decide what the network computes; a checkpoint is compared with them
        self.feat_dim, self.temporal_scale = opt["feat_dim"], opt["temporal_scale"]
        self.num_sample, self.num_sample_perbin = opt["num_sample"], opt["num_sample_perbin"]
        self.prop_boundary_ratio = opt["prop_boundary_ratio"]
        if self.feat_dim % 4:
            raise UserError("--feat_dim %d is no multiple of 4: the first layer splits the features into 4 groups"
                            % self.feat_dim)
        self.boundary_matching = BoundaryMatching(
            self.temporal_scale, self.num_sample, self.num_sample_perbin, self.prop_boundary_ratio,
            opt.get("bm_contraction", "auto"))
        rows, cols = torch.triu(torch.ones(self.temporal_scale, self.temporal_scale)).nonzero().unbind(1)
        cell = torch.full((self.temporal_scale, self.temporal_scale), len(rows), dtype=torch.int64)
        cell[rows, cols] = torch.arange(len(rows))
        self.cell = cell

        self.x_1d_b = nn.Sequential(
            nn.Conv1d(self.feat_dim, 256, kernel_size=3, padding=1, groups=4), nn.ReLU(inplace=True),
            nn.Conv1d(256, 256, kernel_size=3, padding=1, groups=4), nn.ReLU(inplace=True))
        self.x_1d_s = _boundary_head()
        self.x_1d_e = _boundary_head()
        self.x_1d_p = nn.Sequential(nn.Conv1d(256, 256, kernel_size=3, padding=1), nn.ReLU(inplace=True))
        self.x_3d_p = nn.Sequential(
            nn.Conv3d(256, 512, kernel_size=(self.num_sample, 1, 1), stride=(self.num_sample, 1, 1)),
            nn.ReLU(inplace=True))
        self.x_2d_p = nn.Sequential(
            nn.Conv2d(512, 128, kernel_size=1), nn.ReLU(inplace=True),
            nn.Conv2d(128, 128, kernel_size=3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(128, 128, kernel_size=3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(128, 2, kernel_size=1), nn.Sigmoid())
        self._register_load_state_dict_pre_hook(self._drop_sample_mask)

    def forward(self, x, valid_only=False):
        """Features to the three outputs.

        Args:
            x: [B, C, T].
            valid_only: cells with start > end, which mean nothing, are not computed and hold 0.

        Returns:
            confidence_map [B, 2, T, T] (channel 0 regression, 1 classification; indices start, end), start [B, T],
            end [B, T]; all in 0..1.

        Raises:
            UserError: x has another shape than the options say.
        """
        self._check(x)
        base = self.x_1d_b(x)
        start = self.x_1d_s(base).squeeze(1)
        end = self.x_1d_e(base).squeeze(1)
        confidence_map = self._proposal_evaluation(self.x_1d_p(base))
        if valid_only:
            confidence_map = torch.triu(confidence_map)
        return confidence_map, start, end

    def _proposal_evaluation(self, x):
        # x [B, 256, T]; V [512, 256, N] -> [N, 512, 256]: a row of the table is one sample at one position
        conv3d, conv2d = self.x_3d_p[0], self.x_2d_p[0]
        weight = conv3d.weight.flatten(2).permute(2, 0, 1).reshape(-1, 256)         # [N*512, 256]
        table = F.linear(x.transpose(1, 2), weight).view(x.shape[0], self.temporal_scale, self.num_sample, 512)
        rows = self.boundary_matching(table) + conv3d.bias.to(table.dtype)         # [B, P, 512]
        # cells with start > end sample nothing: the bias is all they have, the same for all of them
        rows = torch.cat([rows, conv3d.bias.to(rows.dtype).expand(x.shape[0], 1, -1)], 1)
        rows = F.relu(F.linear(F.relu(rows), conv2d.weight.flatten(1), conv2d.bias))        # [B, P+1, 128]
        cells = rows.index_select(1, self.cell.flatten().to(x.device))
        cells = cells.view(x.shape[0], self.temporal_scale, self.temporal_scale, 128).permute(0, 3, 1, 2)   # channels last
        return self.x_2d_p[2:](cells)

    def _check(self, x):
        if x.dim() != 3 or x.shape[1] != self.feat_dim or x.shape[2] != self.temporal_scale:
            raise UserError("features of shape %s do not fit --feat_dim %d and --temporal_scale %d: [videos, %d, %d] "
                            "is needed" % (list(x.shape), self.feat_dim, self.temporal_scale, self.feat_dim, self.temporal_scale))

    def _drop_sample_mask(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        """The reference stores its sampling weights: their shape must fit, then they are left out."""
        mask = state_dict.get(prefix + "sample_mask")
        if mask is None:
            return
        wanted = (self.temporal_scale, self.num_sample * self.temporal_scale ** 2)
        if tuple(mask.shape) != wanted:
            errors.append("sample_mask has shape %s, %s is needed: the checkpoint was made with another "
                          "--temporal_scale or --num_sample" % (tuple(mask.shape), wanted))
        state_dict.pop(prefix + "sample_mask")


def _boundary_head():
    return nn.Sequential(
        nn.Conv1d(256, 256, kernel_size=3, padding=1, groups=4), nn.ReLU(inplace=True),
        nn.Conv1d(256, 1, kernel_size=1), nn.Sigmoid())
