"""``hccl`` of the simulated device: gloo on the CPU aliases of NPU tensors."""
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _create_work_from_future

from torch_npu.memory import NAME, converted, on_device, to_cpu


def _alias(tensor):
    if not on_device(tensor):
        raise RuntimeError("No backend type associated with device type %s" % tensor.device.type)
    return to_cpu(tensor)


class ProcessGroupHCCL(dist.ProcessGroup):
    """The collectives that DistributedDataParallel and the project use."""

    def __init__(self, store, rank, size, timeout):
        super().__init__(rank, size)
        self._gloo, self._size = dist.ProcessGroupGloo(store, rank, size, timeout), size

    @property
    def _device_types(self):
        return [torch.device(NAME)]

    def size(self):
        return self._size

    def getBackendName(self):
        return "hccl"

    def _done(self, work, result):
        work.wait()
        future = torch.futures.Future()
        future.set_result(result)
        return _create_work_from_future(future)

    def broadcast(self, tensors, options):
        return self._done(self._gloo.broadcast(converted(tensors, _alias), options), tensors)

    def allreduce(self, tensors, options):
        return self._done(self._gloo.allreduce(converted(tensors, _alias), options), tensors)

    def allgather(self, outputs, inputs, options):
        return self._done(self._gloo.allgather(converted(outputs, _alias), converted(inputs, _alias), options), outputs)


def register():
    if dist.is_available():
        dist.Backend.register_backend("hccl", ProcessGroupHCCL, devices=[NAME])
