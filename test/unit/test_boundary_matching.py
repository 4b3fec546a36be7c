"""The sampling weights and their contraction."""
import hashlib
import json

import numpy as np
import pytest

from boundary_matching import sampling_entries


def whole(tscale, num_sample, num_sample_perbin, ratio):
    """The weights as the reference holds them: float32 [T, N, T, T], indices t, n, start, end."""
    key, value = sampling_entries(tscale, num_sample, num_sample_perbin, ratio)
    proposal, n, t = key // (num_sample * tscale), key // tscale % num_sample, key % tscale
    start, end = np.triu_indices(tscale)
    weights = np.zeros((tscale, num_sample, tscale, tscale), np.float32)
    weights[t, n, start[proposal], end[proposal]] = value
    return weights


@pytest.mark.parametrize("name", ["model_t20_mask", "model_t24_mask", "model_t100_mask"])
def test_weights_are_the_reference_bit_for_bit(golden, name):
    figures = golden(name + ".npz")
    opt = json.loads(str(figures["options"]))
    weights = whole(opt["temporal_scale"], opt["num_sample"], opt["num_sample_perbin"], opt["prop_boundary_ratio"])
    assert hashlib.sha256(weights.tobytes()).hexdigest() == str(figures["sha256"])
    assert (weights != 0).sum() == int(figures["nonzeros"])
