"""Mixed precision: --opt_level and --loss_scale, by whatever this device and this PyTorch have for it.

O0 is float32 throughout. O1 computes convolutions and matrix products in half precision and keeps the weights in
float32: float16 with a scaled loss on NPU and CUDA, bfloat16, which needs no scaling, on a CPU. O2, half-precision
weights, exists in apex alone.
"""
import contextlib

import torch

from bmn.errors import UserError
from bmn.machine.device import TORCH

APEX_BEFORE = (2, 0)        # the older PyTorch of an NPU comes with Ascend's apex, and is meant to be used with it


class Precision:
    """How to compute a training step. One object serves every device; its parts are chosen when it is made.

    Attributes:
        opt_level: "O0", "O1" or "O2", as asked for.
        skipped: steps left out so far because a gradient overflowed float16.
    """

    def __init__(self, runtime, opt_level, loss_scale):
        """Choose. ``loss_scale``: a number, or -1 for one that adapts.

        Raises:
            UserError: this level is not to be had here.
        """
        self.opt_level, self.skipped = opt_level, 0
        self._scale = None if loss_scale == -1 else float(loss_scale)
        self._kind, self._apex, self._scaler, self._torch_patched = runtime.kind, None, None, False
        self._autocast, self._how = contextlib.nullcontext, "float32"
        if opt_level == "O0":
            _exact_float32(runtime.kind)
        elif runtime.kind == "cpu":
            self._choose_on_cpu()
        else:
            self._choose_on_card()

    def _choose_on_cpu(self):
        if self.opt_level == "O2":
            raise UserError("--opt_level O2 needs apex on an NPU or a CUDA device: give O1 or O0 on a CPU")
        problem = bfloat16_problem()
        if problem:
            self._how = "float32, for O1 would need bfloat16 and %s" % problem
        else:
            self._autocast, self._how = _autocast_on_cpu, "bfloat16 autocast"

    def _choose_on_card(self):
        native = _native(self._kind)
        wants_apex = self.opt_level == "O2" or native is None or (self._kind == "npu" and TORCH < APEX_BEFORE)
        apex, problem = find_apex() if wants_apex else (None, None)
        scaling = "dynamic loss scale" if self._scale is None else "loss scale %g" % self._scale
        if apex:
            self._apex, self._how = apex, "apex %s, %s" % (self.opt_level, scaling)
        elif native and self.opt_level == "O1":
            self._autocast, scaler = native
            self._scaler = _make_scaler(scaler, self._kind, self._scale)
            self._how = "float16 autocast, %s%s" % (scaling, ", for %s" % problem if problem else "")
        else:
            raise UserError("--opt_level %s needs %s apex here, but %s: install that, or give --opt_level %s"
                            % (self.opt_level, "Ascend's" if self._kind == "npu" else "NVIDIA's", problem,
                               "O1" if native else "O0"))

    def describe(self):
        """One line for the log."""
        return "precision: %s (--opt_level %s)" % (self._how, self.opt_level)

    def prepare(self, model, optimizer=None):
        """Make ready a model, already on its device and not yet wrapped, and its optimizer (None for inference).

        Returns:
            (model, optimizer), to be used from now on.
        """
        # apex O1 works by changing torch itself, for all models: once is enough, twice would cast everything twice.
        if self._apex is None or (self._torch_patched and optimizer is None):
            return model, optimizer
        self._torch_patched = self.opt_level == "O1"
        how = {"opt_level": self.opt_level, "loss_scale": "dynamic" if self._scale is None else self._scale,
               "verbosity": 0}
        if self._kind == "npu":
            how["combine_grad"] = True              # Ascend's own: unscale all gradients in one piece
        if optimizer is None:
            return self._apex.initialize(model, **how), None
        return self._apex.initialize(model, optimizer, **how)

    def autocast(self):
        """The context for the network's forward pass; its outputs may be half precision."""
        return self._autocast()

    def step(self, loss, optimizer):
        """Gradients of ``loss`` from nothing, and a step with them unless they overflowed."""
        optimizer.zero_grad()
        if self._apex:
            with self._apex.scale_loss(loss, optimizer) as scaled:
                scaled.backward()
            # apex has looked at the gradients; where they overflow it puts an empty step() in the optimizer's place
            self.skipped += bool(getattr(getattr(optimizer, "_amp_stash", None), "already_patched", False))
            optimizer.step()
        elif self._scaler:
            self._scaler.scale(loss).backward()
            counted = _Counted(optimizer)
            self._scaler.step(counted)
            self.skipped += counted.steps == 0
            if self._scale is None or self._kind == "npu":
                self._scaler.update()
            else:
                self._scaler.update(self._scale)        # stays where it is
        else:
            loss.backward()
            optimizer.step()

    def state_dict(self):
        """What resuming needs: numbers and names."""
        state = {"kind": self._kind_of_scaling(), "skipped": self.skipped}
        if self._apex:
            state["apex"] = self._apex.state_dict()
        elif self._scaler:
            state["scaler"] = self._scaler.state_dict()
        return state

    def load_state_dict(self, state):
        """Go on from there; the scaling of another device or level does not fit here and is left out."""
        self.skipped = int(state["skipped"])
        if state["kind"] != self._kind_of_scaling():
            return
        if self._apex:
            self._apex.load_state_dict(state["apex"])
        elif self._scaler and self._scale is None:      # a scale that was given is given again
            self._scaler.load_state_dict(state["scaler"])

    def _kind_of_scaling(self):
        return "apex" if self._apex else "scaler" if self._scaler else "none"


class _Counted:
    """An optimizer that tells whether the scaler let it make its step (whose result says nothing)."""

    def __init__(self, optimizer):
        self.optimizer, self.steps = optimizer, 0

    def __getattr__(self, name):
        return getattr(self.optimizer, name)

    def step(self, *args, **kwargs):
        self.steps += 1
        return self.optimizer.step(*args, **kwargs)


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


def _make_scaler(scaler, kind, scale):
    if scale is None:
        return scaler()
    return scaler(init_scale=scale, dynamic=False) if kind == "npu" else scaler(init_scale=scale)


def _autocast_on_cpu():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def bfloat16_problem(cpuinfo="/proc/cpuinfo"):
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


def find_apex():
    """(apex.amp, None), or (None, why not, as the middle of a sentence)."""
    try:
        import apex  # noqa: F401
    except ImportError:
        return None, "apex is not installed"
    except Exception as error:
        return None, "apex cannot be imported (%s)" % (str(error) or repr(error)).splitlines()[0]
    try:
        from apex import amp
        return amp, None
    except ImportError:
        return None, "the installed package 'apex' is another program of that name (PyPI's), without apex.amp"


def _exact_float32(kind):
    """Switch off the shortened products (HF32, TF32) that convolutions use by default: O0 is there to compare."""
    if kind == "npu" and hasattr(torch.npu, "conv"):
        torch.npu.conv.allow_hf32 = torch.npu.matmul.allow_hf32 = False
    elif kind == "cuda":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
