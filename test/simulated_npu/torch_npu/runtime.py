"""``torch.npu`` of the simulated device: devices, memory, random numbers, mixed precision, storages."""
import contextlib
import sys
import types

import torch
from torch.utils.backend_registration import (
    _setup_privateuseone_for_python_backend,
    generate_methods_for_privateuse1_backend,
)

from torch_npu.memory import NAME
from torch_npu.operators import in_forked_process


class GradScaler(torch.amp.GradScaler):
    """With torch_npu's signature: ``dynamic=False`` keeps the scale."""

    def __init__(self, init_scale=2.0 ** 16, growth_factor=2.0, backoff_factor=0.5, growth_interval=2000,
                 dynamic=True, enabled=True):
        super().__init__(NAME, init_scale, growth_factor, backoff_factor, growth_interval, enabled)
        self._dynamic = dynamic

    def update(self, new_scale=None):
        super().update(new_scale if self._dynamic else self.get_scale())


def _autocast(enabled=True, dtype=torch.float16, cache_enabled=True):
    return torch.autocast(NAME, dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)


def _set_device(device):
    index = device if isinstance(device, int) else torch.device(device).index
    if index:
        raise RuntimeError("invalid device %s: one npu is simulated" % device)


@contextlib.contextmanager
def _device(device):
    _set_device(device)
    yield


def _nothing(*args, **kwargs):
    """Synchronising, seeding (operators draw from the CPU's generator) and caches have no meaning here."""


def _module():
    npu = types.ModuleType("torch.npu")
    npu.device, npu.set_device = _device, _set_device
    npu.current_device, npu.device_count = (lambda: 0), (lambda: 1)
    npu.is_available = npu.is_initialized = lambda: True
    npu.get_device_name = lambda device=None: "Simulated"
    npu._is_in_bad_fork = in_forked_process
    npu._lazy_init = npu.init = npu.synchronize = npu.empty_cache = _nothing
    npu.manual_seed = npu.manual_seed_all = npu.seed_all = npu.reset_peak_memory_stats = _nothing
    npu.memory_allocated = npu.max_memory_allocated = lambda device=None: 0
    npu.get_rng_state = lambda device=None: torch.get_rng_state()
    npu.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    npu.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16, torch.float32]
    npu.is_bf16_supported = lambda: False
    npu.conv = types.SimpleNamespace(allow_hf32=True)
    npu.matmul = types.SimpleNamespace(allow_hf32=False)
    npu.amp = types.ModuleType("torch.npu.amp")
    npu.amp.autocast, npu.amp.GradScaler = _autocast, GradScaler
    sys.modules["torch.npu.amp"] = npu.amp
    return npu


def _teach_storages():
    """Let torch.save and torch.load move storages; PyTorch itself needs an allocator written in C++ for that."""
    base = torch.storage._StorageBase
    to, clone = base.to, base.clone

    def npu(self, device=None, non_blocking=False):
        if self.device.type == NAME:
            return self
        storage = torch.empty(self.nbytes(), dtype=torch.uint8, device=NAME).untyped_storage()
        storage.copy_(self, non_blocking)
        return storage
    base.npu = npu
    base.to = lambda self, *, device, non_blocking=False: (
        npu(self) if torch.device(device).type == NAME else to(self, device=device, non_blocking=non_blocking))
    base.clone = lambda self: npu(self.cpu()) if self.device.type == NAME else clone(self)


def register():
    """Make the device known to PyTorch. Returns ``torch.npu``."""
    _setup_privateuseone_for_python_backend(NAME, _module())
    generate_methods_for_privateuse1_backend(for_tensor=False, for_module=False, for_packed_sequence=False,
                                             for_storage=True)
    _teach_storages()
    return torch.npu
