"""Weight files of every kind, damaged in every way: refused in one sentence that names them, and never executed.

What a file can be held against differs by its kind, and so does what is promised:

- files that ship, and torchvision's by their name or as they are looked for: their sha256 is on record;
- safetensors that this library wrote (calibrations, distilled students, k-means backbones, caches): they say theirs;
- what ``torch.save`` writes since torch 1.6: a zip, with a checksum of every part;
- other safetensors, and older ``torch.save`` files: nothing. A changed structure is seen, and a changed number where
  it is no longer finite, or a negative weight of a calibration; else the fingerprint alone tells.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from small_data import write_bapps
from torch import nn

from lpips_lightning import LPIPS, weights
from lpips_lightning.backbones.custom import from_module
from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.backbones.extractor import random_backbone
from lpips_lightning.backbones.loading import calibration_tensors
from lpips_lightning.calibration.export import write_calibration
from lpips_lightning.calibration.model import TrainableLPIPS
from lpips_lightning.calibration.pooled import cached_pool
from lpips_lightning.cli import commands as cli
from lpips_lightning.data.bapps import TwoAFCDataset
from lpips_lightning.io.tensor_files import write_tensors
from lpips_lightning.weights import (
    BACKBONE_FILES,
    CALIBRATIONS,
    DISTS,
    EMBEDDED,
    EXAMPLES,
    WeightsError,
    tensors_sha256,
)

torch.manual_seed(0)
SMALL = from_module(nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Conv2d(9, 12, 3), nn.ReLU()), ["1", "3"])
BACKBONE = random_backbone(SMALL, 3)
LIN = {"1": torch.rand(9), "3": torch.rand(12)}
STUDENT = {**BACKBONE, **{f"calibration.{layer}": weight for layer, weight in LIN.items()}}


@dataclass
class Kind:
    """A kind of file: where it lies, how it is read, and what errors of it must say.

    `sealed`: whether a flip of any bit that matters is seen.
    """

    path: Path
    read: object
    known: str = ""
    sealed: bool = True


def torch_saved(tensors, legacy=False):
    stream = io.BytesIO()
    torch.save(tensors, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def _numbers(net):
    """All that decides a distance."""
    return net.specification.backbone_sha256, net.specification.calibration_sha256


def _lin(net, version):
    return tensors_sha256(calibration_tensors(BACKBONES[net], version, None))


def _shipped(folder, monkeypatch, record, read):
    (folder / record.file).write_bytes((weights.FOLDER / record.file).read_bytes())
    for other in (EMBEDDED, EXAMPLES):
        if other != record:
            (folder / other.file).write_bytes((weights.FOLDER / other.file).read_bytes())
    monkeypatch.setattr(weights, "FOLDER", folder)
    return Kind(folder / record.file, read, record.sha256)


def _of_torchvision(folder, monkeypatch, data, name=None):
    """A backbone where torchvision's SqueezeNet is looked for, of which the record knows the sha256."""
    record = BACKBONE_FILES["squeezenet1_1"]
    digest = hashlib.sha256(data).hexdigest()[:8]
    tensors = load(data) if name and name.endswith("safetensors") else torch.load(io.BytesIO(data), weights_only=True)
    known = tensors_sha256(tensors) if name else "0" * 64
    record = replace(record, url=f"https://x.invalid/squeezenet1_1-{digest}.pth", convolutions_sha256=known)
    monkeypatch.setitem(BACKBONE_FILES, "squeezenet1_1", record)
    monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(folder))
    (folder / (name or record.file)).write_bytes(data)
    return Kind(folder / (name or record.file), lambda: _numbers(LPIPS("squeeze")), known if name else digest)


def _own(folder, name, data, read, sealed=True):
    (folder / name).write_bytes(data)
    return Kind(folder / name, lambda: read(folder / name), "", sealed)


def _backbone_at(path):
    return _numbers(LPIPS(SMALL, weights=path, calibrated=False))


def _lin_at(path):
    return _numbers(LPIPS(SMALL, calibration=path))


def _both_at(path):
    return _numbers(LPIPS(SMALL, weights=path))


def _written(tensors):
    def make(folder):
        path = write_tensors(folder / "own.safetensors", tensors, {"mode": "lin"}, version="0.1")
        return path.read_bytes()

    return make


SQUEEZE = random_backbone(BACKBONES["squeeze"], 0)
KINDS = {
    "calibration that ships": lambda folder, patch: _shipped(
        folder, patch, CALIBRATIONS["alex", "0.1"], lambda: _lin("alex", "0.1")
    ),
    "calibration v0.0 that ships": lambda folder, patch: _shipped(
        folder, patch, CALIBRATIONS["vgg", "0.0"], lambda: _lin("vgg", "0.0")
    ),
    "the embedded network": lambda folder, patch: _shipped(
        folder, patch, EMBEDDED, lambda: _numbers(LPIPS("embedded"))
    ),
    "patches of the self-check": lambda folder, patch: _shipped(
        folder, patch, EXAMPLES, lambda: tensors_sha256(weights.load(EXAMPLES))
    ),
    "torchvision's file": lambda folder, patch: _of_torchvision(folder, patch, torch_saved(SQUEEZE)),
    "torchvision's file, before zips": lambda folder, patch: _of_torchvision(folder, patch, torch_saved(SQUEEZE, True)),
    "torchvision's backbone as .pth": lambda folder, patch: _of_torchvision(
        folder, patch, torch_saved(SQUEEZE), "squeezenet1_1.pth"
    ),
    "torchvision's backbone as .safetensors": lambda folder, patch: _of_torchvision(
        folder, patch, save(SQUEEZE), "squeezenet1_1.safetensors"
    ),
    "own calibration": lambda folder, _: _own(folder, "own.safetensors", _written(LIN)(folder), _lin_at),
    "own backbone as .pth": lambda folder, _: _own(folder, "own.pth", torch_saved(BACKBONE), _backbone_at),
    "own calibration as .pth": lambda folder, _: _own(folder, "own.pth", torch_saved(LIN), _lin_at),
    "checkpoint": lambda folder, _: _own(
        folder, "own.ckpt", torch_saved({"state_dict": BACKBONE, "epoch": 3}), _backbone_at
    ),
    "distilled student": lambda folder, _: _own(folder, "own.safetensors", _written(STUDENT)(folder), _both_at),
    "k-means backbone": lambda folder, _: _own(folder, "own.safetensors", _written(BACKBONE)(folder), _backbone_at),
    "another's backbone": lambda folder, _: _own(folder, "own.safetensors", save(BACKBONE), _backbone_at, sealed=False),
    "another's calibration": lambda folder, _: _own(folder, "own.safetensors", save(LIN), _lin_at, sealed=False),
    "backbone before zips": lambda folder, _: _own(
        folder, "own.pth", torch_saved(BACKBONE, True), _backbone_at, sealed=False
    ),
}
ALEX = random_backbone(BACKBONES["alex"], 0)
PLACES = 20  # of a flipped bit
PAGE = b"\n<!DOCTYPE html><html><head><title>404</title></head><body>Not Found</body></html>"
WHOLES = {  # what lies there instead of the file, or how much of it
    "nothing": lambda data: b"",
    "one byte": lambda data: data[:1],
    "eight bytes": lambda data: data[:8],
    "half of its header": lambda data: data[:200],
    "half": lambda data: data[: len(data) // 2],
    "all but one byte": lambda data: data[:-1],
    "zeros": lambda data: bytes(len(data)),
    "zeros from the middle on": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "a page of the web": lambda data: PAGE,
    "an image": lambda data: b"\x89PNG\r\n\x1a\n" + data,
    "a list": lambda data: pickle.dumps([1, 2, 3], protocol=2),
    "code": lambda data: pickle.dumps({"features.0.weight": Code("executed")}, protocol=2),
}


class Code:
    """Unpickled as others do, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (exec, (f"open({str(self.path)!r}, 'w').close()",))


def refusal(kind):
    """The sentence that refuses a file."""
    with pytest.raises(WeightsError) as caught:
        kind.read()
    return sentence(caught.value, kind.path)


def sentence(error, path):
    """What an error says, in one sentence, in our own words, with the file's name."""
    said = str(error)
    assert "\n" not in said and str(path) in said
    assert not any(word in said for word in ("Error", "deserializ", "unpickl", "miniz", "weights_only"))
    return said


@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_bit_is_refused_or_does_no_harm(name, tmp_path, monkeypatch):
    kind = KINDS[name](tmp_path, monkeypatch)
    data, right = kind.path.read_bytes(), kind.read()
    numbers = np.random.default_rng(len(data))
    ends = [0, 1, 2, 7, 8, 9, len(data) // 2, len(data) - 1]
    refused = changed = 0
    for place in [*ends, *numbers.integers(0, min(len(data), 600), 4), *numbers.integers(0, len(data), PLACES - 12)]:
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(numbers.integers(8))
        kind.path.write_bytes(damaged)
        try:
            with torch.no_grad():
                found = kind.read()
        except WeightsError as error:
            said = sentence(error, kind.path)
            refused += 1
            if kind.known:
                promised = len(kind.known) == 8 or kind.path.parent == weights.FOLDER
                assert kind.known in said or not promised
                assert hashlib.sha256(damaged).hexdigest() in said or not promised
            continue
        changed += found != right
    assert refused >= 5 if kind.sealed else refused >= 3  # the rest fell on padding, or were harmless
    assert changed == 0 if kind.sealed else changed > 0


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_longer_the_file_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kind = KINDS[name](tmp_path, monkeypatch)
    data, right = kind.path.read_bytes(), kind.read()
    for damage in WHOLES.values():
        damaged = damage(data)
        kind.path.write_bytes(damaged)
        if damage is WHOLES["zeros from the middle on"] and not kind.sealed:
            continue
        said = refusal(kind)
        if kind.known and (len(kind.known) == 8 or kind.path.parent == weights.FOLDER):
            assert kind.known in said and hashlib.sha256(damaged).hexdigest() in said
    kind.path.unlink()
    kind.path.mkdir()
    with pytest.raises(RuntimeError, match="expected|was not found"):
        kind.read()
    kind.path.rmdir()
    kind.path.write_bytes(data)
    assert kind.read() == right
    assert not (tmp_path / "executed").exists()


def test_the_tables_are_long():
    assert len(KINDS) >= 15 and len(WHOLES) >= 12 and len(KINDS) * (PLACES + len(WHOLES)) >= 500


def test_what_a_file_without_checksum_cannot_tell_is_told_by_the_fingerprint(tmp_path):
    kind = KINDS["another's calibration"](tmp_path, None)
    before = LPIPS(SMALL, calibration=kind.path).fingerprint
    data = bytearray(kind.path.read_bytes())
    data[-4] ^= 1  # the last bit of a float32
    kind.path.write_bytes(data)
    after = LPIPS(SMALL, calibration=kind.path).fingerprint
    assert before.split("sha256:")[0] == after.split("sha256:")[0] and before != after
    data[-1] ^= 0x80  # its sign
    kind.path.write_bytes(data)
    assert "own.safetensors: 3: expected finite weights >= 0, got a smallest of -" in refusal(kind)


CODE = {  # how a pickle with code in it may lie there: the file's name, its bytes
    "torch.save, in a state dict": ("x.pth", lambda code: torch_saved({"features.0.weight": code})),
    "torch.save, alone": ("x.pth", torch_saved),
    "torch.save before zips, in a state dict": ("x.pth", lambda code: torch_saved({"0.weight": code}, True)),
    "torch.save before zips, alone": ("x.pth", lambda code: torch_saved(code, True)),
    "torch.save, beside a state dict": (
        "x.ckpt",
        lambda code: torch_saved({"state_dict": BACKBONE, "callbacks": code}),
    ),
    "torch.save, as a name": ("x.pth", lambda code: torch_saved({code: BACKBONE["0.weight"]})),
    "pickle, protocol 2": ("x.pt", lambda code: pickle.dumps(code, protocol=2)),
    "pickle, protocol 5": ("x.bin", lambda code: pickle.dumps({"a": code}, protocol=5)),
    "pickle by the name of safetensors": ("x.safetensors", lambda code: pickle.dumps(code, protocol=2)),
    "torch.save by the name of safetensors": ("x.safetensors", torch_saved),
    "pickle behind a header": ("x.safetensors", lambda code: struct.pack("<Q", 2) + b"{}" + pickle.dumps(code)),
    "module": ("x.pth", lambda code: torch_saved(_with_code(code))),
}


def _with_code(code):
    module = nn.Linear(1, 1)
    module.code = code
    return module


# torch.load warns of a pickle's protocol.
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", CODE)
def test_code_in_a_file_is_never_executed(name, tmp_path, capsys):
    file, made = CODE[name]
    mark, path = tmp_path / "executed", tmp_path / file
    path.write_bytes(made(Code(mark)))
    for read in (
        lambda: LPIPS("squeeze", weights=path),
        lambda: LPIPS("embedded", weights=path),
        lambda: LPIPS("embedded", calibration=path),
        lambda: LPIPS(SMALL, weights=path),
        lambda: TrainableLPIPS("embedded", weights=path),
    ):
        refusal(Kind(path, read))
    for option in ("--weights", "--calibration"):
        image = tmp_path / "a.png"
        if not image.exists():
            write_image(image)
        assert cli.main(["compare", "--net", "embedded", str(image), str(image), option, str(path)]) == 2
        said = capsys.readouterr()
        assert said.out == "" and str(path) in said.err and said.err.count("\n") == 1
    assert not mark.exists()
    if name != "pickle behind a header":
        stream = io.BytesIO(path.read_bytes())
        if path.read_bytes().startswith(b"PK"):
            torch.load(stream, weights_only=False)
        while not mark.exists():
            pickle.load(stream)  # what it does to those who trust it


def write_image(path):
    from PIL import Image

    Image.fromarray(np.zeros((40, 40, 3), dtype=np.uint8)).save(path)


def test_code_in_the_place_of_a_judgment_is_never_executed(tmp_path):
    write_bapps(tmp_path / "bapps", {"2afc/val/cnn": 1}, size=40)
    mark = tmp_path / "executed"
    judgment = tmp_path / "bapps/2afc/val/cnn/judge/000000.npy"
    np.save(judgment, np.array([Code(mark)], dtype=object), allow_pickle=True)
    data = TwoAFCDataset(tmp_path / "bapps", "val", ["cnn"])
    with pytest.raises(ValueError, match=r"000000\.npy: expected a NumPy file of one number"):
        data[0]
    assert not mark.exists()
    np.load(judgment, allow_pickle=True)
    assert mark.exists()


@pytest.mark.parametrize("damage", [*WHOLES, "a flipped bit", "code under torch.save"])
def test_a_damaged_cache_is_computed_anew_and_the_log_says_so(damage, tmp_path, caplog):
    write_bapps(tmp_path / "bapps", {"2afc/val/cnn": 2}, size=40)
    data, network = TwoAFCDataset(tmp_path / "bapps", "val", ["cnn"]), TrainableLPIPS("embedded")
    first = cached_pool(network, data, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    whole = path.read_bytes()
    other = {
        "a flipped bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        "code under torch.save": lambda data: torch_saved(Code(tmp_path / "executed")),
    }
    path.write_bytes((WHOLES | other)[damage](whole))
    with caplog.at_level(logging.WARNING, "lpips_lightning"):
        again = cached_pool(network, data, tmp_path / "cache")
    assert torch.equal(again.mean, first.mean)
    assert len(caplog.messages) == 1 and str(path) in caplog.text and "; recomputing" in caplog.text
    assert not (tmp_path / "executed").exists() and not Path("executed").exists()
    caplog.clear()
    cached_pool(network, data, tmp_path / "cache")
    assert caplog.messages == []


def _renamed(name):
    return {("y" if key == name else key): tensor for key, tensor in BACKBONE.items()}


BIG = 1e300 * torch.ones(9, 3, 3, 3, dtype=torch.float64)
CONTENTS = {  # of a file: how it is read, its tensors, what is said
    "negative": (_lin_at, {**LIN, "1": -LIN["1"]}, "1: expected finite weights >= 0, got a smallest of -"),
    "one negative": (_lin_at, {**LIN, "3": LIN["3"] - LIN["3"].max() * torch.eye(12)[3] - 1e-9}, "3: expected finite"),
    "NaN": (_lin_at, {**LIN, "1": LIN["1"] * torch.nan}, "1: expected finite weights >= 0, got a smallest of nan"),
    "infinite": (_lin_at, {**LIN, "1": LIN["1"] + torch.inf}, "1: expected finite weights >= 0"),
    "zeros": (
        _lin_at,
        {layer: 0 * weight for layer, weight in LIN.items()},
        "expected weights of which some are above",
    ),
    "whole numbers": (_lin_at, {**LIN, "1": torch.ones(9, dtype=torch.long)}, ">= 0, got torch.int64"),
    "truths": (_lin_at, {**LIN, "1": torch.ones(9, dtype=torch.bool)}, ">= 0, got torch.bool"),
    "beyond float32": (_lin_at, {**LIN, "1": BIG[:, 0, 0, 0]}, "1: expected finite weights >= 0"),
    "too short": (_lin_at, {**LIN, "1": LIN["1"][:8]}, r"1: expected shape (9,), got (8,)"),
    "a column": (_lin_at, {**LIN, "1": LIN["1"][:, None]}, r"1: expected shape (9,), got (9, 1)"),
    "layers swapped": (_lin_at, {"1": LIN["3"], "3": LIN["1"]}, r"1: expected shape (9,), got (12,)"),
    "a layer too few": (_lin_at, {"1": LIN["1"]}, "expected weights of the layers ['1', '3'], got ['1']"),
    "a layer too many": (
        _lin_at,
        {**LIN, "5": torch.ones(9)},
        "expected weights of the layers ['1', '3'], got ['1', '3', ",
    ),
    "a layer of another name": (_lin_at, {"1": LIN["1"], "relu3": LIN["3"]}, "got ['1', 'relu3']"),
    "no calibration": (_lin_at, BACKBONE, "expected weights of the layers ['1', '3'], got ['0.bias'"),
    "nothing": (_lin_at, {}, "expected weights of the layers ['1', '3'], got []"),
    "backbone: NaN": (
        _backbone_at,
        {**BACKBONE, "0.bias": torch.full((9,), torch.nan)},
        "0.bias: expected finite floating-",
    ),
    "backbone: infinite": (_backbone_at, {**BACKBONE, "2.bias": torch.full((12,), -torch.inf)}, "got 12 that are not"),
    "backbone: beyond float32": (
        _backbone_at,
        {**BACKBONE, "0.weight": BIG},
        "0.weight: expected finite floating-point values",
    ),
    "backbone: whole numbers": (
        _backbone_at,
        {**BACKBONE, "0.bias": torch.ones(9, dtype=torch.int8)},
        "got torch.int8",
    ),
    "backbone: another shape": (
        _backbone_at,
        {**BACKBONE, "0.bias": torch.ones(10)},
        r"0.bias: expected shape (9,), got (10,)",
    ),
    "backbone: turned": (
        _backbone_at,
        {**BACKBONE, "2.weight": BACKBONE["2.weight"].transpose(0, 1)},
        "expected shape (12, 9, 3",
    ),
    "backbone: layers swapped": (
        _backbone_at,
        {**BACKBONE, "0.weight": BACKBONE["2.weight"], "2.weight": BACKBONE["0.weight"]},
        "0.weight: expected shape (9, 3, 3, 3), got (12, 9, 3, 3)",
    ),
    "backbone: renamed": (_backbone_at, _renamed("2.weight"), "missing: 2.weight; unknown: y"),
    "backbone: a tensor too few": (
        _backbone_at,
        {k: v for k, v in BACKBONE.items() if k != "2.bias"},
        "missing: 2.bias; unknow",
    ),
    "backbone: a tensor too many": (
        _backbone_at,
        {**BACKBONE, "9.bias": torch.ones(9)},
        "missing: none; unknown: 9.bias",
    ),
    "backbone: a calibration": (_backbone_at, LIN, "missing: 0.bias, 0.weight, 2.bias, 2.weight; unknown: 1, 3"),
    "backbone: nothing": (_backbone_at, {}, "missing: 0.bias, 0.weight, 2.bias, 2.weight; unknown: none"),
    "student: negative": (_both_at, {**STUDENT, "calibration.1": -LIN["1"]}, "1: expected finite weights >= 0"),
    "student: a layer too few": (_both_at, {**BACKBONE, "calibration.1": LIN["1"]}, "expected weights of the layers"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", CONTENTS)
def test_whole_files_of_wrong_numbers_are_refused(name, suffix, tmp_path):
    read, tensors, said = CONTENTS[name]
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    path = tmp_path / f"own{suffix}"
    path.write_bytes(torch_saved(tensors) if suffix == ".pth" else save(tensors))
    if name.startswith("student") and suffix == ".pth":
        assert said in _from_mapping(read, tensors)
    assert said in refusal(Kind(path, lambda: read(path)))


def _from_mapping(read, tensors):
    with pytest.raises(WeightsError, match=r"^(weights|calibration): ") as caught:
        read(tensors)
    return str(caught.value)


ODD = {  # what is handed over in the place of weights: what is said
    "sparse": (
        {**BACKBONE, "0.weight": BACKBONE["0.weight"].to_sparse()},
        "0.weight: expected a dense tensor with data, got",
    ),
    "without data": (
        {**BACKBONE, "0.weight": BACKBONE["0.weight"].to("meta")},
        "0.weight: expected a dense tensor with data",
    ),
    "complex": (
        {**BACKBONE, "0.weight": BACKBONE["0.weight"] * 1j},
        "expected finite floating-point values, got torch.comp",
    ),
    "a list": ({**BACKBONE, "0.bias": [0.0] * 9}, "expected tensors by name, got list by the name '0.bias'"),
    "an array": ({**BACKBONE, "0.bias": np.zeros(9)}, "expected tensors by name, got ndarray by the name '0.bias'"),
    "nothing": ({**BACKBONE, "0.bias": None}, "expected tensors by name, got NoneType by the name '0.bias'"),
    "a number for a name": ({0: BACKBONE["0.bias"]}, "expected tensors by name, got Tensor by the name 0"),
    "a checkpoint": ({"state_dict": BACKBONE}, "expected tensors by name, got dict by the name 'state_dict'"),
    "a module": (nn.Linear(1, 1), "expected None, a path or tensors by name, got Linear(in_features=1, out_features=1"),
    "a path of bytes": (b"own.pth", "expected None, a path or tensors by name, got b'own.pth'"),
    "no path": ("", "expected None, a path or tensors by name, got ''"),
    "a number": (3, "expected None, a path or tensors by name, got 3"),
}


@pytest.mark.parametrize("argument", ["weights", "calibration"])
@pytest.mark.parametrize("name", ODD)
def test_what_is_no_weights_is_refused_by_its_argument(name, argument):
    given, said = ODD[name]
    if isinstance(given, dict) and argument == "calibration":
        given = {
            {"0.weight": "1", "0.bias": "3"}.get(key, key): value for key, value in given.items() if key != "2.bias"
        }
        given.pop("2.weight", None)
        said = (
            said.replace("0.weight:", "1:").replace("'0.bias'", "'3'").replace("floating-point values", "weights >= 0")
        )
        given = {"1": LIN["1"], **given} if name not in ("a number for a name", "a checkpoint") else given
        given = {key: v[:, 0, 0, 0] if name == "complex" and key == "1" else v for key, v in given.items()}
        given = {**given, "3": given.get("3", LIN["3"])}
        given = {key: LIN["3"] if name == "complex" and key == "3" else value for key, value in given.items()}
    with pytest.raises((WeightsError, TypeError), match=f"^{argument}: ") as caught:
        LPIPS(SMALL, **{"calibrated": argument == "calibration", argument: given})
    assert said in str(caught.value)


OTHERS = {  # another architecture's file: its tensors, the net that it is given to, as what
    "alex for squeeze": (ALEX, "squeeze", "weights"),
    "alex for vgg": (ALEX, "vgg", "weights"),
    "alex for embedded": (ALEX, "embedded", "weights"),
    "squeeze for alex": (SQUEEZE, "alex", "weights"),
    "a resnet for alex": ({"conv1.weight": torch.rand(64, 3, 7, 7), "bn1.weight": torch.rand(64)}, "alex", "weights"),
    "a small backbone for squeeze": (BACKBONE, "squeeze", "weights"),
    "a student for alex": (weights.load(EMBEDDED), "alex", "weights"),
    "a calibration for alex": (weights.load(CALIBRATIONS["alex", "0.1"]), "alex", "weights"),
    "images for alex": (weights.load(EXAMPLES), "alex", "weights"),
    "calibration: alex for squeeze": (weights.load(CALIBRATIONS["alex", "0.1"]), "squeeze", "calibration"),
    "calibration: alex for vgg": (weights.load(CALIBRATIONS["alex", "0.1"]), "vgg", "calibration"),
    "calibration: alex for embedded": (weights.load(CALIBRATIONS["alex", "0.1"]), "embedded", "calibration"),
    "calibration: squeeze for alex": (weights.load(CALIBRATIONS["squeeze", "0.1"]), "alex", "calibration"),
    "calibration: vgg for alex": (weights.load(CALIBRATIONS["vgg", "0.0"]), "alex", "calibration"),
    "calibration: a student for alex": (weights.load(EMBEDDED), "alex", "calibration"),
    "calibration: a backbone for alex": (ALEX, "alex", "calibration"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_architectures_file_is_refused_by_name(name, tmp_path):
    tensors, net, argument = OTHERS[name]
    path = tmp_path / "other.pth"
    torch.save(tensors, path)
    options = {"weights": "random" if net != "embedded" else None, argument: path}
    said = refusal(Kind(path, lambda: LPIPS(net, **options)))
    assert said.startswith(f"{path}: ") and (", got" in said or "missing: " in said)


def test_a_calibration_of_another_version_is_refused():
    path = weights.FOLDER / CALIBRATIONS["alex", "0.0"].file
    assert LPIPS("alex", weights=ALEX, version="0.0", calibration=path).specification.version == "0.0"
    said = refusal(Kind(path, lambda: LPIPS("alex", weights=ALEX, calibration=path)))
    assert said == f"{path}: expected a calibration of version '0.1', got one of '0.0'"


def test_a_calibration_of_another_network_is_refused_by_name(tmp_path):
    path = tmp_path / "own.safetensors"
    write_calibration(path, TrainableLPIPS("embedded"), 1.0, {})
    said = refusal(Kind(path, lambda: LPIPS("alex", weights=ALEX, calibration=path)))
    assert said == f"{path}: expected a calibration of 'alex', got one of 'embedded'; choose that network"


def test_torchvisions_name_is_believed_nowhere_without_its_sha256(tmp_path, monkeypatch):
    kind = KINDS["torchvision's file"](tmp_path, monkeypatch)
    other = torch_saved({name: tensor + 1 for name, tensor in SQUEEZE.items()})
    kind.path.write_bytes(other)
    found = hashlib.sha256(other).hexdigest()
    for give in (None, tmp_path, kind.path):  # looked up, in a folder, by its path
        said = refusal(Kind(kind.path, lambda give=give: LPIPS("squeeze", weights=give)))
        assert f"expected a sha256 that begins with {kind.known}, " in said and f"got {found}" in said
    kind.path.rename(tmp_path / "mine.pth")
    assert "backbone custom" in LPIPS("squeeze", weights=tmp_path / "mine.pth").fingerprint


def test_other_weights_than_the_recorded_ones_are_not_looked_up_but_taken_when_asked_for(tmp_path, monkeypatch):
    kind = KINDS["torchvision's backbone as .safetensors"](tmp_path, monkeypatch)
    assert "backbone IMAGENET1K_V1" in LPIPS("squeeze").fingerprint
    other = {name: tensor + 1 for name, tensor in SQUEEZE.items()}
    kind.path.write_bytes(save(other))
    said = refusal(kind)
    assert (
        f"tensors of sha256 {kind.known}, got {tensors_sha256(other)}; to use other weights, pass weights=PATH" in said
    )
    for given in (kind.path, tmp_path):
        assert "backbone custom" in LPIPS("squeeze", weights=given).fingerprint


def test_the_doctor_names_every_damaged_file(tmp_path, monkeypatch, capsys):
    kind = KINDS["calibration that ships"](tmp_path, monkeypatch)
    for record in (*CALIBRATIONS.values(), DISTS):
        if not (tmp_path / record.file).exists():
            (tmp_path / record.file).write_bytes((Path(weights.__file__).parent / record.file).read_bytes())
    for file in (kind.path, tmp_path / EXAMPLES.file):
        data = bytearray(file.read_bytes())
        data[-3] ^= 4
        file.write_bytes(data)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["weights", "doctor"])
    said = capsys.readouterr().out
    assert stopped.value.code == 1
    assert f"expected sha256 {kind.known}, got " in said and f"expected sha256 {EXAMPLES.sha256}, got " in said
    assert said.count(": intact") == len(CALIBRATIONS) - 1 + 1  # all but one, and DISTS


def test_files_that_we_write_say_the_sha256_of_what_they_hold(tmp_path):
    path = write_tensors(tmp_path / "own.safetensors", LIN, {"mode": "lin"})
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    said = json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"][weights.DIGEST]
    assert said == tensors_sha256(LIN) == LPIPS(SMALL, calibration=path).specification.calibration_sha256
