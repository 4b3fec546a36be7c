"""The network from an ONNX file, which onnxruntime runs on the CPU instead of PyTorch (main.py --onnx)."""
import importlib
from typing import Any, Tuple

import numpy as np
import torch

from bmn.errors import UserError, first_line
from bmn.inputs import read_bytes

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
        layout, max_duration, shown: of the network, and what it is shown (options.INPUT_OPTIONS); a file that tells
            other ones is refused.

    Raises:
        UserError: onnxruntime is missing, or the file is not such a network.
    """

    def __init__(self, path: str, layout: str = "reference", max_duration: int = 0, **shown: int):
        onnxruntime = import_or_say("onnxruntime", "--onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        content = read_bytes(path, "--onnx")
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"],
                                                        enable_fallback=0)     # which prints, and tries the same again
        except Exception as error:          # onnxruntime's exceptions have no class in common
            raise UserError("--onnx %s cannot be loaded by onnxruntime (%s): export it again with "
                            "tools/export_onnx.py" % (path, first_line(error)[:200])) from None
        self.path = path
        self._check_ends()
        self._check_options(dict(shown, layout=layout, max_duration=max_duration))

    def _check_ends(self):
        """Insist on one input [batch, C, T] and on our three outputs, all of one T where the file says it."""
        inputs, outputs = self.session.get_inputs(), {one.name: one for one in self.session.get_outputs()}
        if ([(value.type, len(value.shape)) for value in inputs] != [("tensor(float)", 3)]
                or any(name not in outputs or outputs[name].type != "tensor(float)"
                       or len(outputs[name].shape) != dimensions for name, dimensions in OUTPUTS.items())):
            raise UserError("--onnx %s has inputs %.200s and outputs %.200s, but it must have one float input "
                            "[batch, C, T] and float outputs with these numbers of dimensions, %s: export it with "
                            "tools/export_onnx.py"
                            % (self.path, _described(inputs), _described(outputs.values()), OUTPUTS))
        self.input = inputs[0].name
        self.batch, *self.shape = inputs[0].shape       # for an open batch this is a name and not a number
        if isinstance(self.shape[1], int):
            for name, wanted in _shapes(self.shape[1]).items():
                for there, here in zip(outputs[name].shape[1:], wanted):
                    if isinstance(there, int) and there != here:
                        raise self._other_shape(name, outputs[name].shape[1:], wanted)

    def _check_options(self, wanted):
        metadata = self.session.get_modelmeta().custom_metadata_map
        for name, value in wanted.items():
            found = metadata.get(name, "reference" if name == "layout" else str(value))
            if found != str(value):
                raise UserError("--onnx %s is a network of --%s %s, but here it is %s: give the same value"
                                % (self.path, name, found, value))

    def _other_shape(self, name, there, here):
        return UserError("--onnx %s gives %s of shape %s for a video, but %s is needed for its input of %s positions: "
                         "export it with tools/export_onnx.py" % (self.path, name, list(there), list(here), here[-1]))

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
        for part in parts:
            for output, (name, wanted) in zip(part, _shapes(x.shape[2]).items()):
                if output.shape[1:] != wanted:
                    raise self._other_shape(name, output.shape[1:], wanted)
        outputs = [torch.from_numpy(np.concatenate(part)) for part in zip(*parts)]
        if valid_only:
            outputs[0] = torch.triu(outputs[0])
        return tuple(outputs)

    def _run(self, x, size):
        """The outputs of at most ``size`` videos; a fixed batch is filled up with zeros."""
        filled = np.concatenate([x, np.zeros((size - len(x),) + x.shape[1:], x.dtype)])
        return [output[:len(x)] for output in self.session.run(list(OUTPUTS), {self.input: filled})]


def _shapes(scale):
    """{output: its shape for one video of T positions}."""
    return {"confidence_map": (2, scale, scale), "start": (scale,), "end": (scale,)}


def _described(values):
    return ["%s %s %s" % (value.name, value.type, value.shape) for value in values]
