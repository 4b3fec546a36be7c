"""A simulated NPU, for tests on machines without one.

    PYTHONPATH=test/simulated_npu python3 main.py --device npu ...

makes ``import torch_npu`` give this package. Tensors then say ``device='npu:0'``, while their numbers lie in CPU
memory and every operator runs on the CPU. What a real NPU refuses, or does differently from a CPU, is imitated
where the project depends on it:

- tensors of the CPU and of the NPU do not mix in one operation;
- ``embedding_bag`` and sparse tensors are refused, float64 is refused, and ``.double()`` gives float32;
- autocast casts by torch_npu's lists, and forbids ``binary_cross_entropy``;
- the device cannot be used in a forked process;
- ``hccl`` is a backend of torch.distributed that takes NPU tensors only.

The simulation shows that a program uses torch_npu correctly. It does not show numerics, speed or memory of an NPU, nor
whether a kernel exists there. There is one device, which two processes can share (``--DeviceID 0,0``). Private
interfaces of PyTorch are needed; 2.13 has them.
"""
import torch

from torch_npu import autocast, hccl, operators, runtime

__version__ = torch.__version__.split("+")[0] + "+simulated"
npu = runtime.register()
operators.register()
autocast.register()
hccl.register()

from torch_npu import profiler  # noqa: E402,F401  (as in torch_npu: an attribute of the package)
