"""Whether operations are recorded into a graph that runs later, on other images.

While they are, only plain PyTorch operations on tensors may decide the result: Python's numbers and branches would
become constants of the graph, and writes into ``out=`` are lost in some of them.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import _get_dispatch_mode_pre_dispatch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Proxy
from torch.overrides import _pop_mode, _push_mode
from torch.utils._python_dispatch import _disable_current_modes
from typing_extensions import override

_Modes = torch._C._TorchDispatchModeKey


def is_tracing() -> bool:
    """Whether a graph is recorded: by ``torch.compile``, ``torch.export``, ``torch.jit.trace``, ONNX or ``make_fx``.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> seen = []
        >>> graph = make_fx(lambda x: seen.append(is_tracing()) or x + 1)(torch.zeros(1))
        >>> seen, is_tracing()
        ([True], False)
    """
    if torch.compiler.is_compiling():  # first: Dynamo follows no further
        return True
    return torch._C._is_tracing() or any(map(_is_active, (_Modes.PROXY, _Modes.FUNCTIONAL)))


def is_jit_tracing() -> bool:
    """Whether ``torch.jit.trace``, or the ONNX exporter built on it, records a graph; it sees no Python number."""
    return not torch.compiler.is_compiling() and torch._C._is_tracing()


def is_symbolic(tensor: Tensor) -> bool:
    """Whether operations on a tensor are recorded, or compute shapes alone.

    That is: tracing, ``FakeTensorMode``, and ``torch.func.functionalize``.

    Args:
        tensor: Any tensor.
    """
    if is_tracing() or isinstance(tensor, FakeTensor) or torch._C._get_dispatch_mode(_Modes.FAKE) is not None:
        return True
    return torch._is_functional_tensor(tensor)


def static_sizes(sizes: Iterable[int]) -> tuple[int, ...]:
    """Sizes to check, not to compute with: what is done with them is not recorded.

    Args:
        sizes: Of a shape; 0-dimensional tensors in ``torch.jit.trace``.

    Returns:
        Python's integers, those of the example while tracing; symbolic integers in ``torch.export``.
    """
    if not is_jit_tracing():
        return tuple(sizes)
    with untraced():
        return tuple(map(int, sizes))


def untraced() -> contextlib.AbstractContextManager[None]:
    """A context in which nothing is recorded and tensors have values, to make constants such as weights."""
    return contextlib.nullcontext() if torch.compiler.is_dynamo_compiling() else _untraced()


@contextlib.contextmanager
def _untraced() -> Iterator[None]:
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    modes = [_pop_mode() for _ in range(torch._C._len_torch_function_stack())]
    try:
        with _disable_current_modes():
            yield
    finally:
        for mode in reversed(modes):
            _push_mode(mode)
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


class TraceableModule(nn.Module):
    """A module whose `forward` may have keyword-only arguments and switches under ``torch.onnx.export(dynamo=False)``.

    That exporter passes the default of every argument by position, and turns numbers and switches into tensors.
    """

    @override
    def _slow_forward(self, *args: Any, **kwargs: Any) -> Any:  # forward while tracing
        parameters = inspect.signature(self.forward).parameters.values()
        if any(parameter.kind == parameter.VAR_POSITIONAL for parameter in parameters):
            return super()._slow_forward(*args, **kwargs)  # type: ignore[no-untyped-call]
        named = {
            parameter.name: _constant(value) if isinstance(parameter.default, int | float | tuple) else value
            for parameter, value in zip(parameters, args, strict=False)
        }
        return super()._slow_forward(*args[len(named) :], **named, **kwargs)  # type: ignore[no-untyped-call]


def refuse_scripts(module: object, **arguments: object) -> None:
    """Raise if a module of ours runs as ``torch.jit.script`` or ``torch.fx.symbolic_trace`` would have it.

    Args:
        module: The module.
        arguments: Arguments by name.

    Raises:
        TypeError: If the module was scripted, or an argument is a ``torch.fx.Proxy``.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(
            "forward: expected a module of Python, got one of torch.jit.script; use torch.jit.trace instead"
        )
    refuse_proxies(**arguments)


def refuse_proxies(**arguments: object) -> None:
    """Raise if ``torch.fx.symbolic_trace`` runs a module of ours, instead of leaving it a leaf.

    Args:
        arguments: Arguments by name.

    Raises:
        TypeError: If one is a ``torch.fx.Proxy``.
    """
    for name, value in arguments.items():
        if isinstance(value, Proxy):
            raise TypeError(
                f"{name}: expected a tensor, got a torch.fx.Proxy, which has no shape; use torch.export.export, or a "
                "torch.fx.Tracer whose is_leaf_module is True for this module"
            )


def _constant(value: Any) -> Any:
    """Python's value of numbers that became 0-dimensional tensors."""
    if isinstance(value, tuple):
        return tuple(map(_constant, value))
    with untraced():
        return value.item() if isinstance(value, Tensor) else value


def _is_active(mode: torch._C._TorchDispatchModeKey) -> bool:
    return (torch._C._get_dispatch_mode(mode) or _get_dispatch_mode_pre_dispatch(mode)) is not None
