"""Autocast of the simulated device: the part of torch_npu's lists that a convolutional network meets."""
import torch
from torch.library import Library, fallthrough_kernel

from torch_npu.memory import NAME, converted, on_device
from torch_npu.operators import named

KEY = "AutocastPrivateUse1"
LOWER = ("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d.input",
         "conv_transpose3d.input", "prelu", "addmm", "addmv", "addr", "matmul", "mm", "mv", "linear", "addbmm",
         "baddbmm", "bmm", "einsum")
FLOAT32 = ("exp", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "pow.Tensor_Scalar", "pow.Tensor_Tensor",
           "pow.Scalar", "softplus", "layer_norm", "group_norm", "kl_div", "l1_loss", "smooth_l1_loss", "mse_loss",
           "binary_cross_entropy_with_logits", "cumsum", "prod", "softmax.int", "log_softmax.int", "sum",
           "sum.dim_IntList")

_libraries = Library("aten", "IMPL"), Library("_", "IMPL")
_without_autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)


def _casting(operator, dtype):
    """``operator`` on floating-point tensors cast to ``dtype``; None is the type of the autocast context."""
    def kernel(*args, **kwargs):
        wanted = dtype or torch.get_autocast_dtype(NAME)

        def cast(value):
            return value.to(wanted) if on_device(value) and value.is_floating_point() else value
        with torch._C._ExcludeDispatchKeyGuard(_without_autocast):
            return operator(*converted(args, cast), **{name: converted(value, cast) for name, value in kwargs.items()})
    return kernel


def _refused(*args, **kwargs):
    raise RuntimeError("torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast.")


def register():
    aten, everything = _libraries
    everything.fallback(fallthrough_kernel, KEY)
    for names, dtype in ((LOWER, None), (FLOAT32, torch.float32)):
        for name in names:
            aten.impl(name, _casting(named(name), dtype), KEY)
    aten.impl("binary_cross_entropy", _refused, KEY)
