"""Shift-tolerant networks: blur pooling, weights out of a wheel, and that they do what other networks do."""

import hashlib
import io
import pickle
import zipfile
from dataclasses import replace

import pytest
import torch
from frozen_networks import frozen_network
from tiling_nets import thin_shift_tolerant

from lpips_lightning import LPIPS
from lpips_lightning.backbones import shift_tolerant, source_package
from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.backbones.extractor import random_backbone
from lpips_lightning.backbones.offline import packaged_net, require_backbone
from lpips_lightning.backbones.shift_tolerant import BlurPool, reflect
from lpips_lightning.backbones.source_package import STLPIPS_PYTORCH, fetch_from_package
from lpips_lightning.cli import commands as cli
from lpips_lightning.io.tensor_files import read_record
from lpips_lightning.weights import BACKBONE_FILES, WeightsError, read_tensors, tensors_sha256

NETS = ("alex-st", "vgg-st")
FILE = STLPIPS_PYTORCH.package.file


def slow_blur(image):
    """One channel, pixel by pixel."""
    height, width = len(image), len(image[0])

    def at(row, column):
        row, column = abs(row), abs(column)
        return image[min(row, 2 * (height - 1) - row)][min(column, 2 * (width - 1) - column)]

    taps = {0: 1, 1: 2, 2: 1}
    return [
        [
            sum(taps[i] * taps[j] * at(row + i, column + j) for i in taps for j in taps) / 16
            for column in range(-2, width, 2)
        ]
        for row in range(-2, height, 2)
    ]


@pytest.mark.parametrize("size", [(3, 3), (3, 4), (4, 5), (7, 6)])
def test_blur_pooling_is_that_of_slow_loops(size):
    x = torch.rand(2, 3, *size, dtype=torch.float64, requires_grad=True)
    found = BlurPool()(x)
    assert found.shape[2:] == tuple((side + 1) // 2 + 1 for side in size)
    expected = torch.tensor([[slow_blur(channel.tolist()) for channel in image] for image in x], dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=1e-14)
    assert torch.autograd.gradcheck(BlurPool(), x)
    assert list(BlurPool().state_dict()) == []


def test_the_deterministic_way_on_gpus_reflects_alike():
    x = torch.rand(1, 2, 5, 6)
    found = shift_tolerant._reflected(shift_tolerant._reflected(x, 2, 2), 3, 1)
    assert torch.equal(found, reflect(x, 2, 1))
    assert torch.equal(shift_tolerant._reflected(x, 2, 0), x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_traced_blur_filters_are_constants_and_compiled_ones_are_alike():
    """ONNX files hold convolutions with constant filters alone."""
    x, other = torch.rand(1, 3, 8, 9), torch.rand(2, 3, 13, 7)
    traced = torch.jit.trace(BlurPool(), x)
    assert "aten::arange" not in str(traced.inlined_graph)
    assert torch.equal(traced(other), BlurPool()(other))
    compiled = torch.compile(BlurPool(), fullgraph=True, backend="eager")
    assert torch.equal(compiled(other), BlurPool()(other))


@pytest.mark.parametrize("net", NETS)
def test_layers_and_smallest_images(net):
    record = BACKBONES[net]
    lpips = LPIPS(net, weights="random")
    features = frozen_network(lpips).extractor(torch.rand(1, 3, record.smallest_side, record.smallest_side))
    assert [tuple(found.shape[1:2]) for found in features.values()] == [(channels,) for channels in record.channels]
    assert list(features) == list(BACKBONES[net.removesuffix("-st")].feature_layers)
    small = 2 * torch.rand(1, 3, record.smallest_side - 1, 40) - 1
    with pytest.raises(ValueError, match=f"at least {record.smallest_side}"):
        lpips(small, small)
    with pytest.raises(RuntimeError):  # it is the smallest one
        record.build()(small)


@pytest.mark.parametrize("net", NETS)
def test_erosion_leaves_masked_pixels_without_influence(net):
    lpips = LPIPS(thin_shift_tolerant(net), calibrated=False)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 1, 3, 150, 150, generator=generator)
    mask = torch.ones(1, 150, 150)
    mask[:, :4, 70:73] = 0  # at the border, which is reflected
    other = torch.where(mask[:, None] > 0, x, torch.rand(x.shape, generator=generator))
    options = {"data_range": (0, 1), "mask": mask, "erode": True}
    found = lpips(x, y, **options)
    assert float(found) > 0 and torch.equal(found, lpips(other, y, **options))
    assert not torch.equal(lpips(x, y, data_range=(0, 1), mask=mask), lpips(other, y, data_range=(0, 1), mask=mask))


class Wheel:
    """A folder with a wheel, and the records that fit to it."""

    def __init__(self, folder, monkeypatch, whole=True, **members):
        small = {"features.0.weight": torch.rand(2, 3), "features.0.bias": torch.rand(2)}
        self.tensors = {"alexnet_st": random_backbone(BACKBONES["alex-st"], 1) if whole else small, "vgg16_st": small}
        content = dict(map(upstream, self.tensors, self.tensors.values())) | members
        for builder, tensors in self.tensors.items():
            record = replace(BACKBONE_FILES[builder], convolutions_sha256=tensors_sha256(tensors))
            monkeypatch.setitem(BACKBONE_FILES, builder, record)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as wheel:
            for name, data in content.items():
                wheel.writestr(name, data)
        folder.mkdir(parents=True)
        (folder / FILE).write_bytes(packed.getvalue())
        digest = hashlib.sha256(packed.getvalue()).hexdigest()
        package = replace(STLPIPS_PYTORCH.package, sha256=digest)
        self.source = replace(STLPIPS_PYTORCH, package=package)
        monkeypatch.setattr(source_package, "STLPIPS_PYTORCH", self.source)


def upstream(builder, tensors):
    """The file in the wheel: by slices, with blur filters, input scaling and calibration."""
    named = {
        f"net.slice{number % 5 + 1}.{name.removeprefix('features.')}": t
        for number, (name, t) in enumerate(tensors.items())
    }
    named |= {"net.slice1.1.filt": torch.ones(2, 1, 3, 3), "scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    named["lin0.model.1.weight"] = torch.ones(1, 64, 1, 1)
    saved = io.BytesIO()
    torch.save(named, saved, _use_new_zipfile_serialization=False)  # as theirs
    return STLPIPS_PYTORCH.checkpoints[builder].member, saved.getvalue()


def test_the_command_takes_them_from_an_index_and_the_network_finds_them(tmp_path, monkeypatch, capsys):
    wheel = Wheel(tmp_path / "index" / "stlpips-pytorch", monkeypatch)
    folder = tmp_path / "to"
    arguments = ["weights", "fetch", "--source", "pypi", "--net", "vgg-st,alex-st", "--to", str(folder)]
    cli.main([*arguments, "--mirror", str(tmp_path / "index")])
    said = capsys.readouterr().out
    assert f"vgg-st: fetched: {folder / 'vgg16_st.safetensors'}\n" in said
    assert f"alex-st: fetched: {folder / 'alexnet_st.safetensors'}\n" in said and "squeeze" not in said
    for builder, tensors in wheel.tensors.items():
        found = read_tensors(folder / f"{builder}.safetensors")
        assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
    record = read_record(folder / "alexnet_st.safetensors")
    assert record["license"] == "BSD-2-Clause" and wheel.source.package.sha256 in record["source"]
    cli.main([*arguments, "--mirror", str(tmp_path)])  # nothing is downloaded
    assert "alex-st: present" in capsys.readouterr().out
    cache = tmp_path / "cache" / "checkpoints"
    cache.mkdir(parents=True)
    (folder / "alexnet_st.safetensors").rename(cache / "alexnet_st.safetensors")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(folder))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    assert "backbone ST0.0" in LPIPS("alex-st").fingerprint
    for net in NETS:
        require_backbone(net, "--net")
    cli.main(["weights", "list"])
    assert f"alex-st: stlpips-pytorch 0.0.2 ST0.0, BSD-2-Clause: {cache}" in capsys.readouterr().out


class Harm:
    def __reduce__(self):
        return (exec, ("raise SystemExit('run')",))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("code", "expected a file of tensors and nothing else, got .* no code in it was executed"),
        ("noise", "expected a file of tensors and nothing else, got"),
        ("others", "expected the weights ST0.0 of stlpips-pytorch 0.0.2, tensors of sha256"),
        ("list", "expected a file of tensors and nothing else, got"),
    ],
)
def test_what_is_not_those_tensors_is_refused(tmp_path, monkeypatch, kind, message):
    saved = io.BytesIO()
    if kind == "code":
        pickle.dump(Harm(), saved)
    elif kind == "others":
        torch.save({"net.slice1.0.weight": torch.ones(2)}, saved)
    elif kind == "list":
        torch.save([torch.ones(2)], saved)
    else:
        saved.write(b"PK\x03\x04 no archive")
    member = STLPIPS_PYTORCH.checkpoints["alexnet_st"].member
    wheel = Wheel(tmp_path / "index", monkeypatch, whole=False, **{member: saved.getvalue()})
    with pytest.raises(WeightsError, match=message):
        fetch_from_package(wheel.source, ["alexnet_st"], tmp_path / "to", str(tmp_path / "index"))
    assert list((tmp_path / "to").iterdir()) == []


def test_other_tensors_in_the_folder_are_refused(tmp_path, monkeypatch):
    folder = tmp_path / "to"
    wheel = Wheel(tmp_path / "index", monkeypatch)
    fetch_from_package(wheel.source, ["alexnet_st"], folder, str(tmp_path / "index"))
    monkeypatch.undo()  # the published record
    monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(folder))
    with pytest.raises(
        WeightsError, match="expected the weights ST0.0 of stlpips-pytorch 0.0.2, tensors of sha256 9016"
    ):
        LPIPS("alex-st")
    assert "backbone custom" in LPIPS("alex-st", weights=folder).fingerprint


def test_without_them_errors_name_the_command(monkeypatch):
    command = "lpips-lightning weights fetch --net vgg-st --source pypi --to"
    with pytest.raises(WeightsError, match=rf"vgg16_st.safetensors\n.*(?s:.*){command} DIR\n"):
        LPIPS("vgg-st")
    with pytest.raises(WeightsError, match=f"--net vgg-st: expected its backbone .* `{command} FOLDER`.*embedded-vgg"):
        require_backbone("vgg-st", "--net")
    assert packaged_net("alex-st") == "embedded"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--net", "alex-st"], "got 'alex-st', which torchvision lacks; --source pypi has it"),
        (
            ["--net", "squeeze", "--source", "pypi"],
            "got 'squeeze', which the package lacks; --source torchvision has it",
        ),
        (["--net", "embedded", "--source", "pypi"], "got 'embedded'; it is packaged, there is nothing to fetch"),
    ],
)
def test_the_source_of_a_network_is_named(arguments, message, tmp_path, capsys):
    assert cli.main(["weights", "fetch", "--to", str(tmp_path / "to"), *arguments]) == 2
    assert message in capsys.readouterr().err


def stlpips(net):
    """The authors' network, or a visible skip; of the packages that it imports and does not use, empty ones will do."""
    stlpips = pytest.importorskip("stlpips_pytorch.stlpips")
    return stlpips.LPIPS(net=net.removesuffix("-st"), variant="shift_tolerant", verbose=False)


@pytest.fixture
def published(real_weights):
    if not all((real_weights / BACKBONE_FILES[BACKBONES[net].builder].file).is_file() for net in NETS):
        pytest.skip("LPIPS_LIGHTNING_WEIGHTS has no alexnet_st.safetensors and vgg16_st.safetensors")
    return real_weights


@pytest.mark.real
@pytest.mark.parametrize("net", NETS)
def test_the_published_weights_give_the_authors_values(published, net):
    assert LPIPS(net, weights=published).selfcheck()["p0"] == pytest.approx(
        {"alex-st": 0.7777554988861084, "vgg-st": 0.651697099}[net], rel=1e-6
    )


@pytest.mark.real
@pytest.mark.parametrize("net", NETS)
def test_values_and_gradients_are_those_of_the_authors_code(published, pair, net):
    theirs, ours = stlpips(net), LPIPS(net, weights=published)
    for size in ((64, 64), (96, 72)):
        x, y = pair(2, *size)
        gradients = []
        for distance in (theirs, ours):
            leaf = x.clone().requires_grad_()
            values = distance(leaf, y).flatten()
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
            gradients.append((values.detach(), gradient))
        assert torch.allclose(gradients[0][0], gradients[1][0], rtol=3e-6)
        assert float((gradients[0][1] - gradients[1][1]).norm() / gradients[0][1].norm()) < 1e-3  # ReLUs at 0
