"""Mixed precision: --opt_level and --loss_scale, with what this device and this PyTorch provide.

O0 is float32 throughout. O1 computes convolutions and matrix products in half precision and keeps the weights in
float32: float16 with a scaled loss on NPU and CUDA, bfloat16, which needs no scaling, on a CPU. O2, half-precision
weights, exists in apex alone.

:func:`choose` returns one of three classes that are used alike: Plain, Scaled or Apex.
"""
import contextlib
from typing import Any, Callable, Optional, Tuple, Union

import torch
from torch.nn import Module
from torch.optim import Optimizer

from bmn.errors import UserError, first_line
from bmn.machine.device import TORCH

APEX_BEFORE = (2, 0)        # the older PyTorch of an NPU comes with Ascend's apex, and is meant to be used with it


class Plain:
    """Float32, or bfloat16 on a CPU: the loss is not scaled.

    Attributes (of all three classes):
        description: what is done, for the log.
        autocast: makes the context for the network's forward pass, whose outputs may be half precision.
        skipped: steps left out so far because a gradient overflowed float16.
    """

    def __init__(self, description: str, autocast: Callable = contextlib.nullcontext):
        self.description, self.autocast, self.skipped = description, autocast, 0

    def prepare(self, network: Module, optimizer: Optional[Optimizer] = None) -> Tuple[Module, Optional[Optimizer]]:
        """Make ready a network, on its device and not yet wrapped, and its optimizer (None for inference).

        Returns:
            (network, optimizer), to be used from now on.
        """
        return network, optimizer

    def step(self, loss: torch.Tensor, optimizer: Optimizer) -> None:
        """Compute the gradients of ``loss`` and make a step with them; where they overflow, the step is left out."""
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def state_dict(self) -> dict:
        """What resuming needs: numbers and names."""
        return {"kind": "none", "skipped": self.skipped}

    def load_state_dict(self, state: dict) -> None:
        """Go on from there; the scaling of another class does not fit here and is left out."""
        self.skipped = int(state["skipped"])


class Scaled:
    """Float16 autocast and GradScaler of PyTorch or torch_npu. Methods and attributes as in :class:`Plain`.

    Args:
        kind: "npu" or "cuda".
        autocast, scaler: what :func:`_native` found.
        scale: factor on the loss; None for one that adapts.
    """

    def __init__(self, description: str, kind: str, autocast: Callable, scaler: Callable, scale: Optional[float]):
        self.description, self.autocast, self.skipped = description, autocast, 0
        self._adapts, self._fixed_scale = scale is None, ()
        if scale is None:
            self.scaler = scaler()
        elif kind == "npu":
            self.scaler = scaler(init_scale=scale, dynamic=False)
        else:       # PyTorch's adapts, unless every update says what the scale is
            self.scaler, self._fixed_scale = scaler(init_scale=scale), (scale,)

    def prepare(self, network: Module, optimizer: Optional[Optimizer] = None) -> Tuple[Module, Optional[Optimizer]]:
        return network, optimizer

    def step(self, loss: torch.Tensor, optimizer: Optimizer) -> None:
        optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        counted = _Counted(optimizer)
        self.scaler.step(counted)
        self.skipped += counted.steps == 0
        self.scaler.update(*self._fixed_scale)

    def state_dict(self) -> dict:
        return {"kind": "scaler", "skipped": self.skipped, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.skipped = int(state["skipped"])
        if state["kind"] == "scaler" and self._adapts:      # a fixed scale comes from --loss_scale
            self.scaler.load_state_dict(state["scaler"])


class Apex:
    """Ascend's or NVIDIA's apex. Methods and attributes as in :class:`Plain`.

    Args:
        apex: the module apex.amp.
        kind, opt_level: "npu" or "cuda", "O1" or "O2".
        scale: factor on the loss; None for one that adapts.
    """

    autocast = staticmethod(contextlib.nullcontext)         # apex changes torch itself

    def __init__(self, description: str, apex: Any, kind: str, opt_level: str, scale: Optional[float]):
        self.description, self.skipped = description, 0
        self._apex, self._torch_is_patched = apex, False
        self._how = {"opt_level": opt_level, "loss_scale": "dynamic" if scale is None else scale, "verbosity": 0}
        if kind == "npu":
            self._how["combine_grad"] = True        # Ascend's own: unscale all gradients in one piece

    def prepare(self, network: Module, optimizer: Optional[Optimizer] = None) -> Tuple[Module, Optional[Optimizer]]:
        # O1 changes torch for all models: once is enough, and twice would cast everything twice.
        if self._torch_is_patched and optimizer is None:
            return network, None
        self._torch_is_patched = self._how["opt_level"] == "O1"
        if optimizer is None:
            return self._apex.initialize(network, **self._how), None
        return self._apex.initialize(network, optimizer, **self._how)

    def step(self, loss: torch.Tensor, optimizer: Optimizer) -> None:
        optimizer.zero_grad()
        with self._apex.scale_loss(loss, optimizer) as scaled:
            scaled.backward()
        # apex has looked at the gradients. Where they overflow it has put an empty step() into the optimizer.
        self.skipped += bool(getattr(getattr(optimizer, "_amp_stash", None), "already_patched", False))
        optimizer.step()

    def state_dict(self) -> dict:
        return {"kind": "apex", "skipped": self.skipped, "apex": self._apex.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.skipped = int(state["skipped"])
        if state["kind"] == "apex":
            self._apex.load_state_dict(state["apex"])


class _Counted:
    """An optimizer that tells whether the scaler let it make its step; the scaler's result does not say it."""

    def __init__(self, optimizer):
        self.optimizer, self.steps = optimizer, 0

    def __getattr__(self, name):
        return getattr(self.optimizer, name)

    def step(self, *args, **kwargs):
        self.steps += 1
        return self.optimizer.step(*args, **kwargs)


def choose(kind: str, opt_level: str, loss_scale: float) -> Union[Plain, Scaled, Apex]:
    """The precision for a device.

    Args:
        kind: "npu", "cuda" or "cpu".
        opt_level: "O0", "O1" or "O2".
        loss_scale: a number, or -1 for one that adapts.

    Raises:
        UserError: this level is not available here.
    """
    if opt_level == "O0":
        _exact_float32(kind)
        return Plain("float32")
    if kind == "cpu":
        return _on_cpu(opt_level)
    return _on_card(kind, opt_level, None if loss_scale == -1 else float(loss_scale))


def _on_cpu(opt_level):
    if opt_level == "O2":
        raise UserError("--opt_level O2 needs apex on an NPU or a CUDA device: give O1 or O0 on a CPU")
    problem = bfloat16_problem()
    if problem:
        return Plain("float32, because O1 needs bfloat16 on a CPU and %s" % problem)
    return Plain("bfloat16 autocast", lambda: torch.autocast("cpu", dtype=torch.bfloat16))


def _on_card(kind, opt_level, scale):
    native = _native(kind)
    wants_apex = opt_level == "O2" or native is None or (kind == "npu" and TORCH < APEX_BEFORE)
    apex, problem = find_apex() if wants_apex else (None, None)
    scaling = "dynamic loss scale" if scale is None else "loss scale %g" % scale
    if apex:
        return Apex("apex %s, %s" % (opt_level, scaling), apex, kind, opt_level, scale)
    if native and opt_level == "O1":
        why = ", because %s" % problem if problem else ""
        return Scaled("float16 autocast, %s%s" % (scaling, why), kind, *native, scale)
    raise UserError("--opt_level %s needs %s apex here, but %s: install that, or give --opt_level %s"
                    % (opt_level, "Ascend's" if kind == "npu" else "NVIDIA's", problem, "O1" if native else "O0"))


def _native(kind):
    """(autocast, GradScaler class) of PyTorch or torch_npu for a card; None where this version has none."""
    if kind == "npu":
        module = getattr(torch.npu, "amp", None)
        return (module.autocast, module.GradScaler) if module else None     # float16 is its default
    if TORCH >= (2, 4):
        return (lambda: torch.autocast("cuda", dtype=torch.float16)), torch.amp.GradScaler
    if TORCH >= (1, 6):
        return torch.cuda.amp.autocast, torch.cuda.amp.GradScaler
    return None


def bfloat16_problem(cpuinfo: str = "/proc/cpuinfo") -> Optional[str]:
    """Why bfloat16 would not be worth it on this CPU, as the middle of a sentence; None where it is."""
    if TORCH < (2, 1):
        return "PyTorch %s has no full autocast for CPUs" % torch.__version__
    try:
        with open(cpuinfo, encoding="utf-8") as handle:
            words = set(handle.read().split())
    except OSError:
        return "the processor does not say whether it has it"
    # x86: AVX512-BF16 or AMX; Arm: bf16
    return None if words & {"avx512_bf16", "amx_bf16", "bf16"} else "this processor has no such instructions"


def find_apex() -> Tuple[Any, Optional[str]]:
    """(apex.amp, None), or (None, why not, as the middle of a sentence)."""
    try:
        import apex  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name == "apex":
            return None, "apex is not installed"
        return None, "the installed package 'apex' lacks the package %s; PyPI's apex is another program" % error.name
    except Exception as error:
        return None, ("apex cannot be imported (%s); PyPI's package of that name is another program"
                      % first_line(error))
    try:
        from apex import amp
        return amp, None
    except ImportError:
        return None, "the installed package 'apex' is another program of that name (PyPI's), without apex.amp"


def _exact_float32(kind):
    """Switch off the shortened products (HF32, TF32) that convolutions use by default: O0 is there to compare."""
    if kind == "npu" and hasattr(torch.npu, "conv"):
        torch.npu.conv.allow_hf32 = torch.npu.matmul.allow_hf32 = False
    elif kind == "cuda" and TORCH >= (1, 7):        # before, there is no TF32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
