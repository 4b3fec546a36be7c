"""The sampling weights and their contraction."""
import hashlib
import json

import pytest

from boundary_matching import dense_weights


@pytest.mark.parametrize("name", ["model_t20_mask", "model_t24_mask", "model_t100_mask"])
def test_weights_are_the_reference_bit_for_bit(golden, name):
    figures = golden(name + ".npz")
    opt = json.loads(str(figures["options"]))
    weights = dense_weights(opt["temporal_scale"], opt["num_sample"], opt["num_sample_perbin"],
                            opt["prop_boundary_ratio"])
    assert hashlib.sha256(weights.tobytes()).hexdigest() == str(figures["sha256"])
    assert (weights != 0).sum() == int(figures["nonzeros"])
