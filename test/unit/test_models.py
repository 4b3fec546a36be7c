"""The network against the reference's figures."""
import json

import numpy as np
import pytest
import torch
from formulas import wave, wave_parameters

from models import BMN


def golden_network(figures, dtype, contraction="auto"):
    """The network and input that the golden figures belong to."""
    opt = json.loads(str(figures["options"]))
    model = BMN(dict(opt, bm_contraction=contraction))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in wave_parameters(shapes).items()})
    x = wave((int(figures["batch"]), opt["feat_dim"], opt["temporal_scale"]), 100)
    return model.to(dtype), torch.from_numpy(x).to(dtype)


def objective(outputs):
    """The golden objective: a fixed random projection of the three outputs, valid cells only."""
    valid = [torch.triu(outputs[0]), outputs[1], outputs[2]]
    return sum((out * torch.from_numpy(wave(out.shape, 200 + i)).to(out)).sum() for i, out in enumerate(valid))


@pytest.mark.parametrize("contraction", ["bags", "dense"])
@pytest.mark.parametrize("valid_only", [False, True])
@pytest.mark.parametrize("name", ["model_t20", "model_t24", "model_t100"])
def test_float64_is_the_reference(golden, name, valid_only, contraction):
    figures = golden(name + ".npz")
    model, x = golden_network(figures, torch.float64, contraction)
    outputs = model(x, valid_only=valid_only)
    loss = objective(outputs)
    loss.backward()
    confidence_map = figures["confidence_map"]
    if valid_only:
        confidence_map = np.triu(confidence_map)
    for found, wanted in zip(outputs, (confidence_map, figures["start"], figures["end"])):
        np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=0, atol=2e-7)
    assert loss.item() == pytest.approx(float(figures["objective"]), rel=1e-9)
    for parameter, tensor in model.named_parameters():
        wanted = figures["grad/" + parameter]
        found = tensor.grad.numpy().ravel()
        assert np.linalg.norm(found) == pytest.approx(float(figures["gradnorm/" + parameter]), rel=1e-6)
        found = found[np.linspace(0, found.size - 1, 64).astype(int)]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * abs(wanted).max(), err_msg=parameter)
