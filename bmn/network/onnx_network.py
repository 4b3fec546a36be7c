"""The network from an ONNX file, which onnxruntime runs on the CPU instead of PyTorch (main.py --onnx)."""
import importlib
from typing import Any, Tuple

import numpy as np
import torch

from bmn.errors import UserError

OUTPUTS = {"confidence_map": 4, "start": 2, "end": 2}       # name: dimensions


def import_or_say(name: str, needed_by: str) -> Any:
    """The module ``name``; ``needed_by`` names the option or the tool that needs it.

    Raises:
        UserError: the module cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError("%s needs the Python package %s, which cannot be imported (%s): pip install %s"
                        % (needed_by, name, error, name)) from None


class OnnxNetwork:
    """Called like models.BMN: x [B, C, T] -> confidence_map [B, 2, T, T], start [B, T], end [B, T].

    Args:
        path: a file that tools/export_onnx.py wrote, or another one with the same input and outputs. Its batch size may
            be fixed or open.

    Raises:
        UserError: onnxruntime is missing, or the file is not such a network.
    """

    def __init__(self, path: str):
        onnxruntime = import_or_say("onnxruntime", "--onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:          # onnxruntime's exceptions have no class in common
            raise UserError("--onnx %s cannot be loaded by onnxruntime (%s): export it again with "
                            "tools/export_onnx.py" % (path, str(error).splitlines()[0][:200])) from None
        inputs = self.session.get_inputs()
        outputs = {output.name: len(output.shape) for output in self.session.get_outputs()}
        if ([(value.type, len(value.shape)) for value in inputs] != [("tensor(float)", 3)]
                or not OUTPUTS.items() <= outputs.items()):
            raise UserError("--onnx %s has inputs %s and outputs %s, but it must have one float input [batch, C, T] "
                            "and outputs with these numbers of dimensions, %s: export it with tools/export_onnx.py" % (
                                path, ["%s %s %s" % (value.name, value.type, value.shape) for value in inputs],
                                outputs, OUTPUTS))
        self.path, self.input = path, inputs[0].name
        self.batch, *self.shape = inputs[0].shape       # for an open batch this is a name and not a number

    def eval(self) -> "OnnxNetwork":
        """Does nothing; it exists because models.BMN has it."""
        return self

    def __call__(self, x: torch.Tensor, valid_only: bool = False) -> Tuple[torch.Tensor, ...]:
        """The same as models.BMN's forward; ``valid_only`` sets cells with start > end to 0.

        Raises:
            UserError: x has another shape than this network needs.
        """
        x = np.ascontiguousarray(torch.as_tensor(x).cpu().numpy(), dtype=np.float32)
        if list(x.shape[1:]) != self.shape:
            raise UserError("--onnx %s needs features [videos, %s, %s], but these are %s: give the --feat_dim and "
                            "--temporal_scale that it was exported with"
                            % ((self.path,) + tuple(self.shape) + (list(x.shape),)))
        size = self.batch if isinstance(self.batch, int) else len(x)
        parts = [self._run(x[first:first + size], size) for first in range(0, len(x), size)]
        outputs = [torch.from_numpy(np.concatenate(part)) for part in zip(*parts)]
        if valid_only:
            outputs[0] = torch.triu(outputs[0])
        return tuple(outputs)

    def _run(self, x, size):
        """The outputs of at most ``size`` videos; a fixed batch is filled up with zeros."""
        filled = np.concatenate([x, np.zeros((size - len(x),) + x.shape[1:], x.dtype)])
        return [output[:len(x)] for output in self.session.run(list(OUTPUTS), {self.input: filled})]
