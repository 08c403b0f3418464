"""Weight files and their records: file, source, license, sha256.

A `Weights` record describes a small file that ships in this folder; `load` reads it and verifies its sha256.
`CALIBRATIONS` holds those of LPIPS by network and version. A `BackboneFile` record describes weights of a backbone that
do not ship, `BACKBONE_FILES` all of them; `lpips_lightning.weights.lookup` lists where they may be on the user's
machine.
`WeightsError` is raised if weights are missing, damaged, or do not match their record.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BACKBONE_FILES", "CALIBRATIONS", "BackboneFile", "Weights", "WeightsError"]

FOLDER = Path(__file__).parent
DIGEST = "tensors_sha256"
"""Metadata key under which the safetensors files we write store their `tensors_sha256`."""


class WeightsError(RuntimeError):
    """Weights that are missing, damaged, or do not match their record."""


@dataclass(frozen=True)
class Weights:
    """A weight file in this folder.

    Attributes:
        file: Name of the safetensors file.
        sha256: sha256 of the file; verified on every load.
        source: Where the weights come from.
        license: SPDX identifier; the text is in NOTICE.
        protocol: How the weights were trained, and for what.
        calibration_sha256: `tensors_sha256` of its calibration, whose first digits fingerprints show; empty without.
        backbone_sha256: `tensors_sha256` of its backbone, likewise.
    """

    file: str
    sha256: str
    source: str
    license: str
    protocol: str
    calibration_sha256: str = ""
    backbone_sha256: str = ""


@dataclass(frozen=True)
class BackboneFile:
    """Weights of a backbone, which do not ship: those of a torchvision model, or those in a package of a package index.

    Attributes:
        builder: Name of the torchvision model, or of ours; the stem of accepted file names in a folder.
        url: Download URL; the hex digits in the file name are the start of its sha256. Empty for weights in a package.
        convolutions_sha256: `tensors_sha256` of the convolutional part; None if not recorded.
        name: The publisher's name of these weights.
        license: SPDX identifier.
        publisher: Who published them: torchvision, or the package.
    """

    builder: str
    url: str
    convolutions_sha256: str | None
    name: str = "IMAGENET1K_V1"
    license: str = "BSD-3-Clause"
    publisher: str = "torchvision"

    @property
    def file(self) -> str:
        """File name of the download, or of the file that is made of a package."""
        return self.url.rpartition("/")[2] or f"{self.builder}.safetensors"

    @property
    def sha256_prefix(self) -> str:
        """First hex digits of the downloaded file's sha256, from its name; empty for weights in a package."""
        return self.file.rpartition("-")[2].removesuffix(".pth") if self.url else ""

    @property
    def title(self) -> str:
        """The weights as messages name them."""
        return f"torchvision's {self.name}" if self.url else f"the weights {self.name} of {self.publisher}"


STLPIPS = "stlpips-pytorch 0.0.2"
"""The package that holds the weights of shift-tolerant LPIPS."""


def _shift_tolerant(net_type: str, sha256: str, calibration_sha256: str) -> Weights:
    source = f"{STLPIPS} (abhijay9/ShiftTolerant-LPIPS), weights/vST0.0/{net_type}_shift_tolerant.pth"
    protocol = "calibrated (lin) with its backbone on BAPPS, input scaled"
    return Weights(f"{net_type}_st_v0.1.safetensors", sha256, source, "BSD-2-Clause", protocol, calibration_sha256)


def _official(net_type: str, version: str, sha256: str, calibration_sha256: str) -> Weights:
    protocol = f"calibrated (lin) on BAPPS, input {'not ' if version == '0.0' else ''}scaled"
    source = f"lpips 0.1.4 (richzhang/PerceptualSimilarity), lpips/weights/v{version}/{net_type}.pth"
    file = f"{net_type}_v{version}.safetensors"
    return Weights(file, sha256, source, "BSD-2-Clause", protocol, calibration_sha256)


EMBEDDED = Weights(
    "embedded.safetensors",
    "419d7644af7efb25928f1a0a7fc600591e0a185d265dd378b64b043c95890e1b",
    "recipes/distillation.py, started from channels of torchvision's AlexNet; the file's metadata say more",
    "BSD-2-Clause AND BSD-3-Clause",
    "distilled from LPIPS-alex v0.1, input scaled",
    "132bd6b73d77c18705b1c22e96083f79f144f1100acb8cf99663c76fb8aedffd",
    "992845029a1de87bc1d40271919ac3bc9fd3986a3362f69738a3f8e1f508d3f0",
)
"""The embedded network: backbone as ``features.*`` and calibration as ``calibration.*`` in one file."""

EMBEDDED_VGG = Weights(
    "embedded_vgg.safetensors",
    "02a12c60ac53938425290e838bb0212fe2348a1a7535118d6d37ce6526f54937",
    "recipes/distillation.py, started from torchvision's SqueezeNet; the file's metadata say more",
    "BSD-2-Clause AND BSD-3-Clause",
    "distilled from LPIPS-vgg v0.1, input scaled",
    "b3bdddb4bf1f1fe501d894986d1094bb20f6153909300ef6ea72fd672ded0e96",
    "87e0daab8fe8719d65d44aa7347c65dd345d0babb227c4a354e3ce6a8fc69822",
)
"""The embedded network that learned from vgg, likewise; the backbone is in float16."""

EXAMPLES = Weights(
    "examples.safetensors",
    "d6d06769ca9141672ce66188af28968eb01bead9b213861f0f194e1cb40e6edd",
    "lpips 0.1.4 (richzhang/PerceptualSimilarity), imgs/ex_ref.png, ex_p0.png, ex_p1.png",
    "BSD-2-Clause",
    "the reference's example patches, uint8, for the self-check",
)
"""Three patches ``(3, 64, 64)``: ``ref``, ``p0``, ``p1``."""

DISTS = Weights(
    "dists.safetensors",
    "745cdae1b30c00fe14c81d72f852015ae5c33dc3d83c49d4c928295c1cfc4ce9",
    "DISTS_pytorch 0.1 (dingkeyan93/DISTS), weights.pt",
    "MIT",
    "trained on KADID-10k and textures (Ding et al. 2020), VGG16 with L2 pooling",
    "786a75a1466c3b790832696dd26ddce8d5b3ffeb66d931869254bd02b8596e55",
)
"""``alpha`` and ``beta`` of DISTS, ``(1475,)``: the channels of the image and of five layers of VGG16.

Its `calibration_sha256` is that of both by layer, divided by their sum, as the distance uses them.
"""

CALIBRATIONS: dict[tuple[str, str], Weights] = {
    ("alex", "0.0"): _official(
        "alex",
        "0.0",
        "8296e492193cf133469d5dfb59ae9d63aaff4f15e8fda7b6e96ceb28b163f890",
        "13bfaf8716719396cbf1a8a88f1168258649b8d70123bd5ef1e1cf42fde626ea",
    ),
    ("vgg", "0.0"): _official(
        "vgg",
        "0.0",
        "b39e978b77a5517e7372ad875a01f5506f51a5afebb8c25d4c7e8d4ffee2ae39",
        "69a0d5af0e665c00a20db7202b69c0559bc9cf8a6c14fb0c810e4cbfac9af65b",
    ),
    ("squeeze", "0.0"): _official(
        "squeeze",
        "0.0",
        "44889f7f5b0110619e368764bb240ac7fa778ed151276f49fcc52d11bd3f81d0",
        "af2e9aae7d1296703e2da6790223d44fca71bb5ecbd98ff7340505edad3f44eb",
    ),
    ("alex", "0.1"): _official(
        "alex",
        "0.1",
        "13668d61ff48fc915f020c8750c00b8b252a37f61c20402f7eaf5f395187a437",
        "fe6a817a5c14daedb80f5dcaa0955de8d6720c32c188e06ba378ec3e57d8b7de",
    ),
    ("vgg", "0.1"): _official(
        "vgg",
        "0.1",
        "c042846ba41242cedf210fe7fdd6f7f476bf0236870f2373c0ffbe5ddd516022",
        "217e282106b9d9f58547bda96e1a8b3dd266425c3ee4343a3b68c90f999a523f",
    ),
    ("squeeze", "0.1"): _official(
        "squeeze",
        "0.1",
        "c858ab51bbcbaaa3b685e4a31bcf84b6d4aed24822c47e9335f396a0b45d9ef9",
        "2c988386a6af4cc8c544a2ce5c4af50fdc8aa8ace3baf2f6d09a7e2d7df3caa5",
    ),
    ("embedded", "0.1"): EMBEDDED,
    ("embedded-vgg", "0.1"): EMBEDDED_VGG,
    ("alex-st", "0.1"): _shift_tolerant(
        "alex",
        "48e2a701c40a21d77249cb751c105c7e4cd6a400ba1d2bf5ba4785d45f2b8caa",
        "78ca04d7fbdbae60b70d8c3915de6ebe24d8bb7e149f7beae021646fc495ffad",
    ),
    ("vgg-st", "0.1"): _shift_tolerant(
        "vgg",
        "fa9273843e47576a322371f4ff94db33eaaee4e902bcb534e93b574302c28abb",
        "d03da7c5b5d95f87fe1168393e55317cf779e25c696087f3a19c6d66284162cb",
    ),
}
"""Calibrations by (net_type, version). Tensors are named as the net's layers, shape ``(C,)``."""

BACKBONE_FILES: dict[str, BackboneFile] = {
    record.builder: record
    for record in (
        BackboneFile(
            "alexnet",
            "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            "195266a4c8e96483085621ac3389a6c24f1dd0963c9ac0e001705d24ece83273",
        ),
        BackboneFile(
            "vgg16",
            "https://download.pytorch.org/models/vgg16-397923af.pth",
            "e7a5a0521f65f1615c3aab84437b37f969539737cec5eb492c06e0321f4bdbc4",
        ),
        BackboneFile(
            "squeezenet1_1",
            "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
            "e93098750a62e61ef70cc50f01c17f7eccd8b4c075997affea326c113b362a6e",
        ),
        BackboneFile(
            "alexnet_st",
            "",
            "9016dc04af8bfcb608d1011cfd4c3e22dad4e524d56a0375204b5fd30d411020",
            "ST0.0",
            "BSD-2-Clause",
            STLPIPS,
        ),
        BackboneFile(
            "vgg16_st",
            "",
            "2b01feabfac08d040de91d71c309a9b4cfa8d5324f1a4fddf521944d31379189",
            "ST0.0",
            "BSD-2-Clause",
            STLPIPS,
        ),
    )
}
"""Backbones that do not ship, by builder name: torchvision's, and those of shift-tolerant LPIPS."""


def load(record: Weights) -> dict[str, Tensor]:
    """Load a shipped file, on the CPU.

    Args:
        record: One of this module's records.

    Returns:
        Tensor by name.

    Raises:
        WeightsError: If the file is missing or its sha256 differs from the record.

    Example:
        >>> calibration = load(CALIBRATIONS["alex", "0.1"])
        >>> [(name, tuple(tensor.shape)) for name, tensor in sorted(calibration.items())][:2]
        [('relu1', (64,)), ('relu2', (192,))]
    """
    from safetensors.torch import load as parse

    path = FOLDER / record.file
    try:
        data = path.read_bytes()
    except OSError as error:
        got = f"a file that cannot be read ({error.strerror})"
        raise WeightsError(f"{path}: expected sha256 {record.sha256}, got {got}; reinstall lpips_lightning") from error
    found = hashlib.sha256(data).hexdigest()
    if found != record.sha256:
        raise WeightsError(f"{path}: expected sha256 {record.sha256}, got {found}; reinstall lpips_lightning")
    return parse(data)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a ``.safetensors`` file or a ``torch.save`` file; code in a pickle is never executed.

    Checksums in the file are verified: those of the zip archive of ``torch.save``, and the `DIGEST` of safetensors
    files that we write. Other safetensors files and ``torch.save`` files before torch 1.6 have none; there, a flipped
    bit cannot be detected.

    Args:
        path: The file. Files without the suffix ``.safetensors`` are read as ``torch.save`` files; of a checkpoint,
            only its ``state_dict``, ``teacher`` or ``model`` is read.

    Returns:
        Tensor by name, on the CPU.

    Raises:
        WeightsError: If the file cannot be read, is damaged, or is not a mapping of names to tensors.
    """
    import torch

    if path.exists() and not path.is_file() and not path.is_dir():  # to open a pipe may wait for ever
        raise WeightsError(f"{path}: expected a regular file of tensors, got a pipe or device; copy it to a file first")
    try:
        content = _of_safetensors(path) if path.suffix == ".safetensors" else _of_torch_save(path)
    except Exception as error:  # safetensors, zipfile and pickle raise different errors
        raise WeightsError(f"{path}: expected a whole file of tensors, got {_reason(path, error)}") from error
    parts = (content.get(part) for part in _OF_CHECKPOINTS) if isinstance(content, dict) else ()
    content = next((part for part in parts if isinstance(part, dict)), content)
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected a mapping of names to tensors, got {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(
                f"{path}: expected a mapping of names to tensors, got {type(value).__name__} by the name {name!r}"
            )
    return dict(content)


_OF_CHECKPOINTS = ("state_dict", "teacher", "model")  # Lightning and most others; DINO; DeiT and MAE


class _DamagedError(Exception):
    """A checksum in the file does not match; the message completes an error message."""


def _of_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        expected = (file.metadata() or {}).get(DIGEST)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- it is no mapping
    if expected is not None and (found := tensors_sha256(tensors)) != expected:
        raise _DamagedError(f"tensors of sha256 {found} where it says {expected}")
    return tensors


def _of_torch_save(path: Path) -> Any:
    import torch

    if zipfile.is_zipfile(path):  # torch.load does not verify the checksums
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise _DamagedError(f"one whose part {damaged!r} fails its checksum")
    return torch.load(path, map_location="cpu", weights_only=True)


def _reason(path: Path, error: Exception) -> str:
    """Completes an error message; torch's own message would advise to execute the pickle."""
    if isinstance(error, _DamagedError):
        return str(error)
    if path.is_dir():
        return "a folder"
    if isinstance(error, OSError):
        return "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror or error)
    with path.open("rb") as file:
        beginning = file.read(512).lstrip().lower()
    if not beginning:
        return "an empty file"
    if beginning.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "an HTML page; download the file itself"
    if path.suffix == ".safetensors":
        return "a damaged file, or a file of another format"
    return "a damaged file, or a file with other objects than tensors; no code in it was executed"


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names, shapes and float32 values, independent of file format, dtype and memory format.

    Args:
        tensors: Tensors by name.

    Returns:
        64 hex digits.

    Example:
        >>> import torch
        >>> a = {"w": torch.ones(2, 3)}
        >>> tensors_sha256(a) == tensors_sha256({"w": torch.ones(3, 2).T})
        True
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(values.numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()
