"""AlexNets that other programs wrote: every layout gives the same values, and nothing in a file runs."""

from __future__ import annotations

import io
import os
import pickle
import struct
from typing import ClassVar

import numpy as np
import pytest
import torch
from references import relative_difference
from safetensors.torch import save_file
from torch import nn

from lpips_lightning import LPIPS
from lpips_lightning.backbones.caffe_alexnet import CaffeAlexNet
from lpips_lightning.backbones.caffe_file import write_caffe_alexnet
from lpips_lightning.backbones.foreign import caffe_alexnet_of_file
from lpips_lightning.backbones.published import METHODS
from lpips_lightning.cli import commands as cli
from lpips_lightning.io.tensor_files import read_record
from lpips_lightning.weights import WeightsError

SMALL = (4, 8, 6, 8, 4)


def convolutions(colors=3, seed=0, channels=SMALL, groups=(1, 2, 1, 2, 2)):
    """``(weight, bias)`` of five convolutions as arrays."""
    generator = np.random.default_rng(seed)
    inputs = (colors, *channels[:-1])
    shapes = [(o, i // g, k, k) for o, i, g, k in zip(channels, inputs, groups, (11, 5, 3, 3, 3), strict=True)]
    return [
        (generator.normal(0, 0.1, shape).astype(np.float32), generator.normal(0, 0.1, shape[0]).astype(np.float32))
        for shape in shapes
    ]


def tensors(pairs, names, ends=("weight", "bias")):
    return {
        f"{name}.{end}": torch.from_numpy(array)
        for name, pair in zip(names, pairs, strict=True)
        for end, array in zip(ends, pair, strict=True)
    }


def field(number, content):
    """A length-delimited field of the wire format of protocol buffers, by hand."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value):
    more = b""
    while value > 127:
        more += bytes([value & 127 | 128])
        value >>= 7
    return more + bytes([value])


def blob(array, old=False):
    data = field(5, array.astype("<f4").tobytes())
    if not old:
        return field(7, field(1, b"".join(map(varint, array.shape)))) + data
    sides = (1,) * (4 - array.ndim) + array.shape
    return b"".join(varint(number << 3) + varint(side) for number, side in enumerate(sides, start=1)) + data


def caffemodel(layers, old=False):
    """A NetParameter with blobs by layer; `old` as before 2015."""
    name, blobs, layer = (4, 6, 2) if old else (1, 7, 100)
    content = field(1, b"AlexNet")
    for said, arrays in layers.items():
        content += field(
            layer, field(name, said.encode()) + b"".join(field(blobs, blob(array, old)) for array in arrays)
        )
    return content


def hwio(array):
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0))


NAMED = [f"conv{number}" for number in range(1, 6)]
NUMBERED = [f"features.module.{number}" for number in (0, 4, 8, 10, 12)]
HEAD = {"classifier.1.weight": torch.zeros(5, 4), "fc6.weight": torch.zeros(16, 4, 6, 6), "fc6.bias": torch.zeros(16)}


def save_npy(path, content):
    np.save(path, content, allow_pickle=True)


class Python2Pickler(pickle._Pickler):
    """Byte strings as Python 2 wrote them, where Python 3 has text or bytes."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        content = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def save_python2(path, content):
    """A dict in a 0-dimensional array, as numpy.save of Python 2 wrote it."""
    packed = io.BytesIO()
    Python2Pickler(packed, protocol=2).dump(np.array(content, dtype=object))
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(packed.getvalue().replace(b"cnumpy._core.", b"cnumpy.core."))


WRITERS = {
    "named.pt": lambda path, pairs: torch.save({**tensors(pairs, NAMED), **HEAD}, path),
    "numbered.pt": lambda path, pairs: torch.save({**tensors(pairs, NUMBERED), **HEAD}, path),
    "checkpoint.pth": lambda path, pairs: torch.save(
        {"epoch": 3, "state_dict": tensors(pairs, [f"model.encoder.conv{n}" for n in range(1, 6)])}, path
    ),
    "named.safetensors": lambda path, pairs: save_file({**tensors(pairs, NAMED), **HEAD}, path),
    "dicts.npy": lambda path, pairs: save_npy(
        path, {n: {"weights": hwio(w), "biases": b} for n, (w, b) in zip(NAMED[::-1], pairs[::-1], strict=True)}
    ),
    "lists.npy": lambda path, pairs: save_npy(path, {n: [w, b] for n, (w, b) in zip(NAMED, pairs, strict=True)}),
    "old.npy": lambda path, pairs: save_python2(
        path, {n: [hwio(w), b] for n, (w, b) in zip(NAMED, pairs, strict=True)}
    ),
    "slashes.npz": lambda path, pairs: np.savez(
        path,
        **{f"{n}/{role}": a for n, p in zip(NAMED, pairs, strict=True) for role, a in zip(("W", "b"), p, strict=True)},
    ),
    "underscores.npz": lambda path, pairs: np.savez(
        path,
        **{
            f"{n}_{role}": a
            for n, (w, b) in zip(NAMED, pairs, strict=True)
            for role, a in (("weights", hwio(w)), ("biases", b))
        },
    ),
    "new.caffemodel": lambda path, pairs: path.write_bytes(
        caffemodel({**dict(zip(NAMED, pairs, strict=True)), "fc6": (np.zeros((16, 36)), np.zeros(16))})
    ),
    "old.caffemodel": lambda path, pairs: path.write_bytes(
        caffemodel({**dict(zip(NAMED, pairs, strict=True)), "fc6": (np.zeros((16, 36)), np.zeros(16))}, old=True)
    ),
}


@pytest.mark.parametrize("file", WRITERS)
def test_every_layout_gives_the_weights_bit_by_bit(tmp_path, file):
    pairs = convolutions()
    WRITERS[file](tmp_path / file, pairs)
    net = caffe_alexnet_of_file(tmp_path / file, "bigan")
    for index, (weight, bias) in zip(net.convolutions, pairs, strict=True):
        assert np.array_equal(net.features[index].weight.detach(), weight)
        assert np.array_equal(net.features[index].bias.detach(), bias)
    assert (net.settings["channels"], net.settings["groups"]) == ([*SMALL], [1, 2, 1, 2, 2])
    assert (net.settings["leaky"], net.settings["lrn"], net.settings["colors"]) == (0.2, False, "bgr")


def published(method):
    """The layers of a converted network as its authors list them, with few channels."""
    norm = method in ("audio", "video-order", "egomotion")
    first = nn.Conv2d(3, 4, 11, 4, 5 if method == "context" else 0)
    groups = 1 if method == "context" else 2
    pool, lrn = (lambda: nn.MaxPool2d(3, 2, ceil_mode=True)), (lambda: nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0))
    second = nn.Conv2d(4, 8, 5, padding=2, groups=groups)
    later = [
        nn.Conv2d(8, 6, 3, padding=1),
        nn.Conv2d(6, 8, 3, padding=1, groups=groups),
        nn.Conv2d(8, 4, 3, padding=1, groups=groups),
    ]
    bn = lambda channels: nn.BatchNorm2d(channels, affine=False)  # noqa: E731
    layers = [first, *([bn(4)] if method == "audio" else []), nn.ReLU(), pool()]
    layers += [*([bn(4)] if method == "egomotion" else []), lrn()]
    layers += [second, *([bn(8)] if method == "audio" else []), nn.ReLU(), pool(), lrn()]
    layers += [bn(8)] if method == "egomotion" else []
    for number, convolution in enumerate(later):
        before = [bn(convolution.out_channels)] if method in ("audio", "video-order") else []
        layers += [convolution, *before, nn.ReLU()]
        layers += [bn(convolution.out_channels)] if method == "egomotion" and number < 2 else []
    layers += [pool(), *([bn(4)] if method == "egomotion" else [])]
    net = nn.Sequential(*layers)
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    assert norm == any(isinstance(module, nn.BatchNorm2d) for module in net)
    return net.eval()


@pytest.mark.parametrize("method", ["audio", "context", "egomotion", "puzzle", "video-order"])
def test_networks_of_the_torch_conversions_give_their_features(tmp_path, method):
    torch.manual_seed(0)
    net = published(method)
    torch.save(
        {f"features.{name}": tensor for name, tensor in net.state_dict().items()}, tmp_path / "alexnet-weakly.pt"
    )
    found = caffe_alexnet_of_file(tmp_path / "alexnet-weakly.pt", method)
    relus = []
    for module in net:
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _module, _inputs, output: relus.append(output))
    inputs = torch.randn(1, 3, 67, 71) * 50
    with torch.no_grad():
        net(inputs)
        encoded = found.encode_preprocessed(inputs)
    for layer, expected in zip(encoded.values(), relus, strict=True):
        assert torch.allclose(layer, expected, rtol=1e-5, atol=1e-6)
    assert found.settings["normalization"] == {
        "audio": "batch",
        "egomotion": "batch_after",
        "video-order": "batch_345",
    }.get(method, "none")


def test_batch_normalization_of_caffe_is_divided_by_its_weight_and_scaled(tmp_path):
    layers, expected = {}, []
    for number, pair in enumerate(convolutions(), start=1):
        mean, var, factor, shift = (
            np.random.default_rng(number).uniform(0.5, 2, (4, SMALL[number - 1])).astype(np.float32)
        )
        layers |= {
            f"conv{number}": pair,
            f"bn{number}": (mean, var, np.array([4.0])),
            f"scale{number}": (factor, shift),
        }
        expected.append((mean / 4, var / 4, factor, shift))
    (tmp_path / "audio.caffemodel").write_bytes(caffemodel(layers))
    net = caffe_alexnet_of_file(tmp_path / "audio.caffemodel", "audio")
    found = [module for module in net.features if isinstance(module, nn.BatchNorm2d)]
    for module, arrays in zip(found, expected, strict=True):
        for tensor, array in zip(
            (module.running_mean, module.running_var, module.weight, module.bias), arrays, strict=True
        ):
            assert np.array_equal(tensor.detach(), array)
    with pytest.raises(
        WeightsError, match=r"of no channels, got those of \[4, 8, 6, 8, 4\]; --set normalization=batch or"
    ):
        caffe_alexnet_of_file(tmp_path / "audio.caffemodel", "puzzle")
    del layers["scale3"]
    (tmp_path / "audio.caffemodel").write_bytes(caffemodel(layers))
    with pytest.raises(WeightsError, match="expected a scale for every batch normalization, got 4 for 5"):
        caffe_alexnet_of_file(tmp_path / "audio.caffemodel", "audio")


def test_the_scale_of_lab_is_read_of_a_caffemodel(tmp_path):
    scale, shift = np.array([0.02, 0.01, 0.01]).reshape(3, 1, 1, 1), np.array([-1.0, 0, 0])
    layers = {"data_lab": (scale, shift), **dict(zip(NAMED, convolutions(), strict=True))}
    (tmp_path / "split.caffemodel").write_bytes(caffemodel(layers))
    settings = caffe_alexnet_of_file(tmp_path / "split.caffemodel", "split-brain").settings
    assert settings["mean"] == pytest.approx([50, 0, 0]) and settings["std"] == pytest.approx([50, 100, 100])
    chosen = caffe_alexnet_of_file(tmp_path / "split.caffemodel", "split-brain", settings={"std": [1, 2, 3]}).settings
    assert chosen["std"] == [1, 2, 3]


def test_colors_are_an_argument_and_change_the_distance(pair, tmp_path):
    WRITERS["named.pt"](tmp_path / "named.pt", convolutions())
    x, y = pair(1)
    nets = {
        colors: caffe_alexnet_of_file(tmp_path / "named.pt", "puzzle", settings={"colors": colors})
        for colors in ("bgr", "rgb")
    }
    found = {colors: LPIPS(net.backbone(), calibrated=False)(x, y) for colors, net in nets.items()}
    # Swapping red and blue in both images undoes it, up to the mean of each channel.
    nets["rgb"] = caffe_alexnet_of_file(
        tmp_path / "named.pt", "puzzle", settings={"colors": "rgb", "mean": [104, 117, 123]}
    )
    swapped = LPIPS(nets["rgb"].backbone(), calibrated=False)(x.flip(1), y.flip(1))
    assert relative_difference(swapped, found["bgr"]) < 1e-5 < relative_difference(found["rgb"], found["bgr"])
    with pytest.raises(
        WeightsError, match="1 input channels for colors 'lightness', got 3; --set colors=... takes bgr"
    ):
        caffe_alexnet_of_file(tmp_path / "named.pt", "colorization")


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("file", ["bad.npy", "bad.pt", "bad.npz", "nested.npy"])
def test_code_in_a_file_does_not_run(tmp_path, file):
    evil = Malicious(tmp_path / "executed")
    layers = {"conv1": {"weights": evil}}
    if file.endswith(".npy"):
        save_npy(tmp_path / file, layers if file == "bad.npy" else {"conv1": [np.array([evil], dtype=object)]})
    elif file == "bad.pt":
        torch.save({"conv1.weight": evil}, tmp_path / file)
    else:
        np.savez(tmp_path / file, conv1=np.array([evil], dtype=object))
    with pytest.raises(WeightsError, match="no code in it was executed"):
        caffe_alexnet_of_file(tmp_path / file, "puzzle")
    assert not (tmp_path / "executed").exists()


def test_what_is_ambiguous_or_damaged_is_refused(tmp_path):
    pairs = convolutions()
    two = tensors(pairs, [f"a.conv{n}" for n in range(1, 6)]) | tensors(
        convolutions(seed=1), [f"b.conv{n}" for n in range(1, 6)]
    )
    torch.save(two, tmp_path / "two.pt")
    with pytest.raises(WeightsError, match="of several networks in a file, --prefix chooses one"):
        caffe_alexnet_of_file(tmp_path / "two.pt", "puzzle")
    chosen = caffe_alexnet_of_file(tmp_path / "two.pt", "puzzle", prefix="b.")
    assert torch.equal(chosen.features[0].weight, two["b.conv1.weight"])
    with pytest.raises(WeightsError, match=r"prefix: expected one of .*, whose layers are a.conv1, .*, got 'c'"):
        caffe_alexnet_of_file(tmp_path / "two.pt", "puzzle", prefix="c")

    kernels = [(11, 11, 11, 11), (5, 5, 5, 5), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)]
    np.savez(tmp_path / "cube.npz", **{f"{n}/W": np.zeros(k, np.float32) for n, k in zip(NAMED, kernels, strict=True)})
    with pytest.raises(WeightsError, match="which both fit"):
        caffe_alexnet_of_file(tmp_path / "cube.npz", "puzzle")
    pairs[2] = (np.full_like(pairs[2][0], np.nan), pairs[2][1])
    torch.save(tensors(pairs, NAMED), tmp_path / "nan.pt")
    with pytest.raises(WeightsError, match="expected finite values"):
        caffe_alexnet_of_file(tmp_path / "nan.pt", "puzzle")
    torch.save(tensors(convolutions()[:4], NAMED[:4]), tmp_path / "four.pt")
    with pytest.raises(WeightsError, match="expected the five convolutions of one AlexNet .* got conv1"):
        caffe_alexnet_of_file(tmp_path / "four.pt", "puzzle")
    for name, content in (
        ("a.caffemodel", b"\xff" * 40),
        ("b.caffemodel", field(1, b"empty")),
        ("c.npy", b"no"),
        ("d.npz", b"PK\x03"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=f"{name}: expected a "):
            caffe_alexnet_of_file(tmp_path / name, "puzzle")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(WeightsError, match="expected a dict of layers, got an array of float64"):
        caffe_alexnet_of_file(tmp_path / "array.npy", "puzzle")
    with pytest.raises(WeightsError, match=r"expected a file that ends in one of \.pt, .* got '.t7'"):
        caffe_alexnet_of_file(tmp_path / "torch.t7", "puzzle")


def test_files_that_lpips_takes_as_they_are_are_refused(tmp_path, backbones):
    torch.save(backbones["alex"], tmp_path / "alexnet.pth")
    with pytest.raises(WeightsError, match=r"channels of torchvision's, .*; LPIPS\('alex', weights=FILE\) takes"):
        caffe_alexnet_of_file(tmp_path / "alexnet.pth", "puzzle")
    path = write_caffe_alexnet(tmp_path / "ours.safetensors", CaffeAlexNet(SMALL), "puzzle")
    with pytest.raises(WeightsError, match="expected a file of another program, got one for LPIPS"):
        caffe_alexnet_of_file(path, "puzzle")


def test_a_truncated_caffemodel_is_refused(tmp_path):
    whole = caffemodel(dict(zip(NAMED, convolutions(), strict=True)))
    for length in (len(whole) // 2, len(whole) - 3):
        (tmp_path / "cut.caffemodel").write_bytes(whole[:length])
        with pytest.raises(WeightsError, match="cut.caffemodel: expected"):
            caffe_alexnet_of_file(tmp_path / "cut.caffemodel", "puzzle")


def test_every_method_has_settings_of_the_class_and_a_source():
    for name, method in METHODS.items():
        net = CaffeAlexNet(SMALL, **method.settings)
        assert method.paper and method.source, name
        assert net.settings.keys() >= method.settings.keys()
    assert {"context", "puzzle", "split-brain", "colorization", "bigan", "watching", "inpainting"} < METHODS.keys()
    assert {"egomotion", "video-order", "audio", "kmeans"} < METHODS.keys()


def test_the_command_writes_a_backbone_file_and_says_all_that_it_assumed(capsys, tmp_path, monkeypatch, pair):
    monkeypatch.chdir(tmp_path)
    WRITERS["named.pt"](tmp_path / "bigan.pt", convolutions())
    command = ["weights", "convert", "bigan.pt", "--as", "bigan", "--out", "mine.safetensors"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    for line in (
        "bigan: Donahue et al. 2017",
        "  leaky: 0.2",
        "  colors: bgr",
        "  mean: 127.5, 127.5, 127.5",
        "  lrn: False",
    ):
        assert line in said
    assert "Written to mine.safetensors; evaluate it as caffe-alexnet:weights=mine.safetensors" in said
    record = read_record("mine.safetensors")
    assert (record["mode"], record["source"], record["settings"]["colors"]) == ("bigan", "bigan.pt", "bgr")
    x, y = pair(1)
    expected = LPIPS(caffe_alexnet_of_file("bigan.pt", "bigan").backbone(), calibrated=False)(x, y)
    assert torch.equal(LPIPS(weights="mine.safetensors")(x, y), expected)

    assert cli.main(command) == 2
    assert "out: mine.safetensors exists; --force replaces it" in capsys.readouterr().err
    assert cli.main([*command, "--force", "--set", "lrn=true", "--set", "mean=[1,2,3]"]) == 0
    assert "  lrn: True" in capsys.readouterr().out
    assert read_record("mine.safetensors")["architecture"]["mean"] == [3, 2, 1]  # of RGB
    for setting, error in (
        ("lnr=true", "--set: expected some of colors, "),
        ("lrn", "--set: expected NAME=VALUE, got 'lrn'"),
    ):
        assert cli.main([*command, "--force", "--set", setting]) == 2
        assert error in capsys.readouterr().err


@pytest.mark.parametrize("method", ["puzzle", "egomotion", "audio"])
@pytest.mark.parametrize("places", [(1,), (1, 2), (2, 3, 4, 5), (5,)])
def test_no_batch_normalization_of_a_convolution_is_left_out(tmp_path, method, places):
    state = {}
    for number, (weight, bias) in enumerate(convolutions(), start=1):
        state |= {f"conv{number}.weight": torch.tensor(weight), f"conv{number}.bias": torch.tensor(bias)}
        if number in places:
            state |= {f"bn{number}.{role}": torch.ones(len(bias)) for role in ("weight", "bias", "running_mean")}
            state[f"bn{number}.running_var"] = torch.ones(len(bias))
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"expected batch normalizations of .*, got those of .*no variant"):
        caffe_alexnet_of_file(tmp_path / "net.pth", method)
