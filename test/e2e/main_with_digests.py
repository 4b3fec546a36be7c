"""main.py, but every rank also writes a digest of its weights after each epoch, a line of digests.<rank>."""
import hashlib
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
import main  # isort: skip

from bmn.errors import run_as_program
from bmn.training.training import Training
from opts import parse_opt

_state_dict = Training.state_dict


def _noted(training):
    weights = b"".join(weight.detach().cpu().numpy().tobytes()
                       for _, weight in sorted(training.network.named_parameters()))
    with open("digests.%s" % os.environ.get("RANK", "0"), "a") as handle:
        handle.write(hashlib.sha256(weights).hexdigest() + "\n")
    return _state_dict(training)


Training.state_dict = _noted
run_as_program(main.main, parse_opt())
