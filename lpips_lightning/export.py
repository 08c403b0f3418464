"""One file with backbone and calibration for other runtimes: ONNX, TorchScript or ``torch.export``."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from lpips_lightning.images.preprocessing import SIGNED
from lpips_lightning.images.ranges import DataRange
from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.network import LPIPS
from lpips_lightning.weights.lookup import file_sha256

Format = Literal["onnx", "torchscript", "pt2"]
_Pair: TypeAlias = tuple[Tensor, Tensor]

EXTRA_FILE = "lpips.json"
"""Name of the extra file with the metadata in TorchScript and pt2 files."""

# Two float32 implementations of one network differ by about 1e-6; another runtime may choose other algorithms.
_TOLERANCE = 1e-4
_OLDEST_OPSET = 11  # the first whose Equal compares floats
_SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".pt": "torchscript", ".pts": "torchscript", ".pt2": "pt2"}
_LOAD = {
    "onnx": 'onnxruntime.InferenceSession({path!r}).run(["distance"], {{"x": x, "y": y}})[0]',
    "torchscript": "torch.jit.load({path!r})(x, y)",
    "pt2": "torch.export.load({path!r}).module()(x, y)",
}


class ExportedFile(NamedTuple):
    """A file that `export_network` wrote.

    Attributes:
        path: The file.
        sha256: sha256 of the file, 64 hex digits.
        error: Largest difference from the network's distances, relative to the largest; None if it was not verified
            because onnxruntime is not installed.
        usage: Python expression that loads the file and computes distances of ``x`` and ``y``.
        metadata: The metadata in the file.
    """

    path: Path
    sha256: str
    error: float | None
    usage: str
    metadata: dict[str, str]


def export_network(
    net: LPIPS,
    path: str | os.PathLike[str],
    format: Format | None = None,  # noqa: A002 -- as the option of the command
    *,
    data_range: DataRange | None = None,
    size: tuple[int, int] = (64, 64),
    opset: int | None = None,
) -> ExportedFile:
    """Write a network as one file with backbone and calibration, to run without this package.

    The file takes ``x`` and ``y``, float32 ``(N, 3, H, W)`` on `data_range`, for any N, H and W, and returns
    ``distance`` ``(N,)``. It holds `LPIPS.fingerprint`, the sha256 of both weights and `data_range` as metadata: in
    ``metadata_props`` of ONNX, and in the extra file `EXTRA_FILE` of the other formats.

    An exported network checks no pixel values: rounding overshoot is clamped as by `LPIPS`, and so is everything else
    that `LPIPS` would refuse. Images smaller than those that `LPIPS` accepts fail or give NaN; pt2 also refuses sizes
    whose last feature layer has a single row or column (below 47 pixels for alex and embedded).

    The file is compared with the network at several sizes before it is moved to `path`; ONNX by onnxruntime, if
    installed.

    Args:
        net: The network, with ``precision="fp32"`` or ``"autocast"``.
        path: Output file; missing folders are created.
        format: ``"onnx"``, ``"torchscript"`` or ``"pt2"`` (`torch.export`); None decides by the suffix: ``.onnx``,
            ``.pt`` or ``.pts``, ``.pt2``.
        data_range: Range of the images: ``(low, high)``, or ``high`` alone for ``(0, high)``; None: ``(-1, 1)``, or no
            range for a network without one.
        size: ``(H, W)`` of the example images that are traced.
        opset: Version of the ONNX operators; None for PyTorch's default.

    Returns:
        The file and its sha256.

    Raises:
        TypeError: If `net` is no `LPIPS`, or `data_range` neither a pair nor a number.
        ValueError: If an argument has an unknown value, or the file gives other distances than the network.
        ModuleNotFoundError: If the onnx package is missing.
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = export_network(LPIPS("embedded"), f"{folder}/lpips.pt", data_range=(0, 1))
        >>> file.metadata["data_range"], file.error < 1e-5, len(file.sha256)
        ('[0.0, 1.0]', True, 64)
    """
    file = Path(path).expanduser()
    _check_type(net)
    kind = _format(file, format, opset)
    low_high = net.images.value_range(data_range, SIGNED)
    _check_network(net, kind, size)
    net.check_range(low_high)
    metadata = _metadata(net, low_high)
    module = _Distance(net, low_high)
    example = _images(net, low_high, 2, *size)
    write = {"onnx": _onnx, "torchscript": _torchscript, "pt2": _pt2}[kind]
    with (
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        _quiet_exporters(),
        atomic_write(file, durable=True) as temporary,
    ):
        temporary.write_bytes(write(module, example, metadata, opset))
        error = _verify(kind, temporary.read_bytes(), module, low_high, size)
        sha256 = file_sha256(temporary)
    return ExportedFile(file, sha256, error, _LOAD[kind].format(path=str(file)), metadata)


class _Distance(nn.Module):
    """Distances ``(N,)`` of images on one range. It registers the frozen network, so that files store it once."""

    def __init__(self, net: LPIPS, data_range: tuple[float, float]) -> None:
        super().__init__()
        self.net, self.data_range = net, data_range
        self.network = net.frozen_network()
        self.training = False  # not .eval(): the network is shared

    @override
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        distance: Tensor = self.net(x, y, self.data_range)
        return distance


def _format(path: Path, format: str | None, opset: int | None) -> Format:  # noqa: A002
    known = get_args(Format)
    if format is not None and format not in known:
        raise ValueError(f"format: expected one of {', '.join(map(repr, known))}, got {format!r}")
    found = format or _SUFFIXES.get(path.suffix.lower())
    if found is None:
        suffixes = ", ".join(_SUFFIXES)
        raise ValueError(
            f"format: expected one of {', '.join(map(repr, known))}, or a file that ends in one of {suffixes}, got"
            f" {str(path)!r}"
        )
    if opset is not None and found != "onnx":
        raise ValueError(f"opset: expected None for {found}, got {opset!r}; only ONNX has operator versions")
    if opset is not None and opset < _OLDEST_OPSET:
        raise ValueError(f"opset: expected {_OLDEST_OPSET} or later, got {opset}")
    if found == "onnx" and find_spec("onnx") is None:
        raise ModuleNotFoundError('onnx is missing: pip install "lpips_lightning[onnx]"')
    return found  # type: ignore[return-value]


def _check_type(net: object) -> None:
    if not isinstance(net, LPIPS):
        hint = "; its attribute net is one" if isinstance(getattr(net, "net", None), LPIPS) else ""
        raise TypeError(f"net: expected an LPIPS, got {type(net).__name__}{hint}")


def _check_network(net: LPIPS, kind: Format, size: tuple[int, int]) -> None:
    if net.images.gray or net.images.background:
        raise ValueError(f"net: expected a network of RGB images to export, got one with {net.images}")
    if net.images.resize and kind == "onnx":
        raise ValueError("net: expected resize=None for onnx, got a network that resizes; resize the images first")
    if net.precision not in ("fp32", "autocast"):
        raise ValueError(f"net: expected precision='fp32' to export, got {net.precision!r}")
    if len(size) != 2 or not all(isinstance(side, int) and side >= net.smallest_side for side in size):
        raise ValueError(f"size: expected two sides of at least {net.smallest_side} pixels, got {tuple(size)}")


def _metadata(net: LPIPS, data_range: tuple[float, float]) -> dict[str, str]:
    found = net.specification
    return {
        "fingerprint": net.fingerprint,
        "backbone": found.backbone,
        "backbone_sha256": found.backbone_sha256,
        "calibration_sha256": found.calibration_sha256,
        "data_range": json.dumps(data_range if net.images.has_range else None),
        "inputs": f"x, y: float32 (N, {net.images.channels}, H, W) on data_range",
        "output": "distance: float32 (N,)",
    }


def _images(net: LPIPS, data_range: tuple[float, float], count: int, height: int, width: int) -> _Pair:
    """Seeded image pairs whose distances are neither 0 nor all alike."""
    low, high = data_range if net.images.has_range else (-3.0, 3.0)
    generator = torch.Generator().manual_seed(height * width)
    x, noise = torch.rand(2, count, net.images.channels, height, width, generator=generator, dtype=torch.float32)
    strength = torch.linspace(0.2, 0.8, count, dtype=torch.float32).view(-1, 1, 1, 1)
    return low + (high - low) * x, low + (high - low) * torch.lerp(x, noise, strength)


def _torchscript(module: nn.Module, example: _Pair, metadata: dict[str, str], opset: int | None) -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, example), stream, _extra_files={EXTRA_FILE: json.dumps(metadata)})
    return stream.getvalue()


def _pt2(module: nn.Module, example: _Pair, metadata: dict[str, str], opset: int | None) -> bytes:
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    program = torch.export.export(module, example, dynamic_shapes=(sizes, sizes), strict=False)
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files={EXTRA_FILE: json.dumps(metadata)})
    return stream.getvalue()


def _onnx(module: nn.Module, example: _Pair, metadata: dict[str, str], opset: int | None) -> bytes:
    import onnx

    sizes = {0: "N", 2: "H", 3: "W"}
    # The exporter on torch.jit.trace: it needs a twentieth of the time, and works alike from torch 2.6 on.
    options: dict[str, Any] = {"input_names": ["x", "y"], "output_names": ["distance"], "dynamo": False}
    axes = {"x": sizes, "y": sizes, "distance": {0: "N"}}
    with TemporaryDirectory() as folder:
        path = f"{folder}/network.onnx"
        try:
            torch.onnx.export(module, example, path, dynamic_axes=axes, opset_version=opset, **options)
        except Exception as error:  # the exporter raises many types
            if opset is None:
                raise
            reason = str(error).partition("\n")[0]
            raise ValueError(f"opset: expected a version that PyTorch can export, got {opset} ({reason})") from error
        model = onnx.load(path)
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def _verify(
    kind: Format, data: bytes, module: _Distance, data_range: tuple[float, float], size: tuple[int, int]
) -> float | None:
    """Largest relative difference of a file's distances from the network's; None if ONNX cannot be run here."""
    if kind == "onnx" and find_spec("onnxruntime") is None:
        return None
    run = {"onnx": _run_onnx, "torchscript": _run_torchscript, "pt2": _run_pt2}[kind](data)
    height, width = size
    differences = []
    for shape in ((2, height, width), (3, height + 37, width), (1, height, width + 64)):
        x, y = _images(module.net, data_range, *shape)
        expected, found = module(x, y), run(x, y)
        differences += [(found - expected).abs().max() / expected.abs().max(), run(x, x).abs().max()]
    worst = float(torch.stack(differences).max())  # NaN if one is
    if not worst <= _TOLERANCE:
        raise ValueError(f"path: expected the network's distances from the {kind} file, got a difference of {worst:g}")
    return worst


def _run_onnx(data: bytes) -> Callable[[Tensor, Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda x, y: torch.from_numpy(session.run(["distance"], {"x": x.numpy(), "y": y.numpy()})[0])


def _run_torchscript(data: bytes) -> Callable[[Tensor, Tensor], Tensor]:
    return torch.jit.load(io.BytesIO(data))


def _run_pt2(data: bytes) -> Any:
    return torch.export.load(io.BytesIO(data)).module()


@contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Without PyTorch's advice on which of its exporters to use, and how to save tensors that are on the CPU."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield
