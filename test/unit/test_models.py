"""The network against the reference's figures."""
import json

import numpy as np
import pytest
import torch
from formulas import wave, wave_parameters

from device import TORCH
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


@pytest.mark.skipif(TORCH < (2, 1), reason="this PyTorch has no autocast for CPUs")
def test_probabilities_are_float32_under_autocast():
    """Half precision rounds 0.998 to 1, whose logarithm and gradient are lost."""
    network = BMN({"temporal_scale": 8, "feat_dim": 4, "num_sample": 4})
    for head in (network.x_1d_s[2], network.x_1d_e[2], network.x_2d_p[6]):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.constant_(head.bias, 7.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = network(torch.randn(1, 4, 8))
    for output in outputs:
        assert output.dtype == torch.float32
        assert torch.allclose(output, torch.sigmoid(torch.tensor(7.0))) and (output < 1).all()
