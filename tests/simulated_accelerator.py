"""An accelerator without hardware: what would fail on a GPU for where its tensors lie fails here.

Its tensors lie in the host's memory, but report a device of their own. As on a GPU, an operation
refuses tensors of the host beside them (but for single numbers, and indices into them), and a
generator of the other device. What a GPU computes otherwise, or how fast, it does not show.

The device is torch's one slot for a private backend, and stays for the rest of the process: use it
in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

DEVICE_TYPE = "simulated"
_COPIES = ("copy_", "_to_copy")
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
_aten = torch.library.Library("aten", "IMPL")
_HostGenerator = torch.Generator


class AcceleratorTensor(Tensor):
    """A tensor on the simulated device.

    Args:
        values: Its values, on the host.
        requires_grad: Whether it takes a gradient.
    """

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor, requires_grad: bool = False) -> AcceleratorTensor:
        made: AcceleratorTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=torch.device(DEVICE_TYPE, 0),
            requires_grad=requires_grad,
        )
        return made

    def __init__(self, values: Tensor, requires_grad: bool = False) -> None:
        del requires_grad
        self.values = values

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, new: Tensor) -> None:
        torch.Tensor.data.__set__(self, new)  # type: ignore[attr-defined]
        self.values = _values(new)

    def tolist(self) -> Any:
        return self.values.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"AcceleratorTensor({self.values})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        made: Tensor = AcceleratorTensor(self.values.detach().clone(), self.requires_grad)
        if isinstance(self, nn.Parameter):
            made = nn.Parameter(made, self.requires_grad)
        memo[id(self)] = made
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.values.detach().__reduce_ex__(protocol)  # a file is read to the host anyway

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return _run(func, args, kwargs or {})


class Generator(_HostGenerator):
    """A generator that remembers which device it was asked for."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        made: Generator = _HostGenerator.__new__(cls, "cpu")
        made.of_accelerator = _is_accelerator(device)
        return made


class SimulatedAccelerator(CPUAccelerator):
    """What Lightning asks about the device."""

    def setup_device(self, device: torch.device) -> None:
        assert device.type == DEVICE_TYPE, device

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        del devices
        return [torch.device(DEVICE_TYPE, 0)]


@contextmanager
def simulated_accelerator() -> Iterator[torch.device]:
    """Let there be the device, for the length of a `with` block that no other is in."""
    _setup_privateuseone_for_python_backend(DEVICE_TYPE)
    # What `torch.tensor` calls beneath every dispatch to Python.
    aten: Any = torch.ops.aten
    for func in (aten.empty_strided.default, aten.empty.memory_format, aten.copy_.default):
        _aten.impl(func, _bound(func), "PrivateUse1")
    torch.Generator = Generator  # type: ignore[misc]
    with _GeneratorsLieWhereTheyAreUsed(), _Dispatch():
        yield torch.device(DEVICE_TYPE, 0)


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return _run(func, args, kwargs or {})


class _GeneratorsLieWhereTheyAreUsed(TorchFunctionMode):
    """Below the dispatch generators have lost their Python class, so they are checked above."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if isinstance(generator, Generator):
            tensors = _tensors(args)
            device = kwargs.get("device") or (tensors[0].device if tensors else "cpu")
            if _is_accelerator(device) != generator.of_accelerator:
                raise RuntimeError(f"{func.__name__}: a generator of another device than {device}")
        return func(*args, **kwargs)


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on the values that lie on the host, if their devices agree."""
    tensors, target = _tensors((args, kwargs)), kwargs.get("device")
    ours = any(isinstance(tensor, AcceleratorTensor) for tensor in tensors)
    if not ours and not _is_accelerator(target):
        return func(*args, **kwargs)
    name = func.overloadpacket.__name__
    if ours and name not in _COPIES:
        _refuse_tensors_of_the_host(name, args, tensors)
    on_host = tree_map(_values, kwargs)
    if target is not None:
        on_host["device"] = "cpu"
    if "pin_memory" in on_host:
        on_host["pin_memory"] = False
    result = func(*tree_map(_values, args), **on_host)
    if name == "copy_":
        return args[0]
    written = _written(func, args, kwargs)
    if written and result is not None and not isinstance(result, (list, tuple)):
        return written[0]
    if written and result is not None:
        return tuple(written)
    stays = _is_accelerator(target) if target is not None else ours
    return tree_map(lambda value: _placed(value, stays=stays), result)


def _refuse_tensors_of_the_host(name: str, args: Any, tensors: list[Tensor]) -> None:
    strangers = [t for t in tensors if not isinstance(t, AcceleratorTensor) and t.dim() > 0]
    if name in _INDEXING and isinstance(args[0], AcceleratorTensor):
        indices = {id(index) for index in _tensors(args[1])}
        strangers = [tensor for tensor in strangers if id(tensor) not in indices]
    if strangers:
        shapes = [tuple(tensor.shape) for tensor in strangers]
        raise RuntimeError(f"{name}: tensors of the host beside the accelerator's, of {shapes}")


def _written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """The tensors that an operation writes to and gives back."""
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
    given |= kwargs
    return [
        given[argument.name]
        for argument in func._schema.arguments
        if argument.alias_info is not None
        and argument.alias_info.is_write
        and isinstance(given.get(argument.name), Tensor)
    ]


def _placed(value: Any, *, stays: bool) -> Any:
    return AcceleratorTensor(value) if stays and isinstance(value, Tensor) else value


def _values(value: Any) -> Any:
    return value.values if isinstance(value, AcceleratorTensor) else value


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _is_accelerator(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE_TYPE


def _bound(func: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: _run(func, args, kwargs)
