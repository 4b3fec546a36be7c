"""apex.amp as a program sees it: it scales the loss, unscales the gradients, and leaves out a step that overflowed.

Nothing is computed in half precision. Every call is recorded in ``calls``, and written to the file that the
environment variable APEX_CALLS names.
"""
import contextlib
import os
import types

import torch

calls = []
_scaler = {"loss_scale": 1.0, "dynamic": False}


def _record(*call):
    calls.append(call)
    if "APEX_CALLS" in os.environ:
        with open(os.environ["APEX_CALLS"], "a") as handle:
            handle.write(repr(call) + "\n")


def initialize(models, optimizers=None, opt_level="O1", loss_scale=None, combine_grad=None, verbosity=1):
    if isinstance(models, torch.nn.parallel.DistributedDataParallel):
        raise RuntimeError("Parallel wrappers should only be applied to the model(s) AFTER amp.initialize.")
    _record("initialize", opt_level, loss_scale, combine_grad)
    _scaler.update(dynamic=loss_scale == "dynamic", loss_scale=2.0 ** 16 if loss_scale == "dynamic" else loss_scale)
    if optimizers is None:
        return models
    if hasattr(optimizers, "_amp_stash"):
        raise RuntimeError("A given optimizer should only be passed through amp.initialize once.")
    optimizers._amp_stash = types.SimpleNamespace(already_patched=False)
    return models, optimizers


@contextlib.contextmanager
def scale_loss(loss, optimizer):
    _record("scale_loss", _scaler["loss_scale"])
    yield loss.float() * _scaler["loss_scale"]
    gradients = [weight.grad for group in optimizer.param_groups for weight in group["params"]]
    for gradient in gradients:
        gradient.div_(_scaler["loss_scale"])
    if not all(torch.isfinite(gradient).all() for gradient in gradients):
        _scaler["loss_scale"] /= 2 if _scaler["dynamic"] else 1
        _leave_out_next_step(optimizer)
    _record("gradients", optimizer._amp_stash.already_patched)


def _leave_out_next_step(optimizer):
    step = optimizer.step

    def skip(closure=None):
        optimizer.step, optimizer._amp_stash.already_patched = step, False
    optimizer.step, optimizer._amp_stash.already_patched = skip, True


def state_dict():
    return {"loss_scaler0": {"loss_scale": _scaler["loss_scale"], "unskipped": 0}}


def load_state_dict(state):
    _record("load_state_dict", state)
