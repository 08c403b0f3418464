"""CNN-based distortions: what is drawn, the networks, their corruptions, the checked file, the contact sheet."""

import json
from collections import Counter
from dataclasses import asdict, replace

import pytest
import torch
from _helpers.figure_layout import layout_faults
from safetensors.torch import load_file, save_file
from torch import nn

from lpips_lightning.data.cnn_distortions import (
    COMMAND,
    DenoisingAutoencoder,
    DistortionFamily,
    GeneratorSpec,
    draw_generator,
    read_family,
    write_family,
)
from lpips_lightning.data.crops import seeded
from lpips_lightning.data.family_sheet import family_figure, write_family_sheet
from lpips_lightning.weights import WeightsError

SMALL = {"first_channels": 2, "most_channels": 4}
CORRUPTIONS = ("null", "pink_noise", "white_noise", "color_removal", "downsampling")
DRAWN = [draw_generator(seeded(0, index), (4, 6), (8, 12)) for index in range(24)]


def network(seed=0, **options):
    torch.manual_seed(seed)
    return DenoisingAutoencoder(GeneratorSpec(**{**SMALL, **options})).eval()


def patches(count=2, height=32, width=32):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def family():
    return [network(0, corruption="white_noise", corruption_strength=0.5), network(1, normalization="batch", layers=5)]


def test_every_choice_is_drawn_within_its_range():
    drawn = [draw_generator(seeded(1, index), (16, 32), (256, 512)) for index in range(300)]
    values = {name: Counter(asdict(spec)[name] for spec in drawn) for name in asdict(drawn[0])}
    assert set(values["corruption"]) == set(CORRUPTIONS)
    assert set(values["layers"]) == {4, 5, 6, 7, 8}
    assert set(values["upsampling"]) == {"nearest", "bilinear", "transposed"}
    assert set(values["normalization"]) == {"none", "batch", "instance"}
    assert set(values["first_stride"]) == {1, 2} and set(values["forced_skip"]) == {False, True}
    assert set(values["first_channels"]) == {16, 32} and set(values["most_channels"]) == {256, 512}
    choices = ("corruption", "upsampling", "normalization", "first_stride", "forced_skip", "first_channels")
    assert all(min(values[name].values()) > 0.6 * 300 / len(values[name]) for name in choices)
    assert {len(spec.skips) for spec in drawn} == set(range(7)) and {len(spec.dropout) for spec in drawn} == {*range(8)}
    assert all(0.2 <= strength <= 1 for strength in values["corruption_strength"])
    assert drawn == [draw_generator(seeded(1, index), (16, 32), (256, 512)) for index in range(300)]
    assert len(set(drawn)) == 300


@pytest.mark.parametrize("spec", DRAWN, ids=range(len(DRAWN)))
def test_every_network_keeps_the_size_of_images_and_their_range(spec):
    assert GeneratorSpec(**json.loads(json.dumps(asdict(spec)))) == spec
    net = DenoisingAutoencoder(spec).eval()
    for height, width in ((16, 16), (17, 40), (64, 64)):
        with torch.no_grad():
            made = net(patches(1, height, width))
        assert made.shape == (1, 3, height, width)
        assert 0 <= made.min() < made.max() <= 1


def test_the_form_of_a_network_is_that_of_its_spec():
    spec = GeneratorSpec("null", 0, 6, (1, 3), False, (2,), "transposed", "batch", 2, 4, 16)
    assert spec.strides == [2, 2, 2, 2, 1, 1] and spec.channels == [4, 8, 16, 16, 16, 16]
    assert replace(spec, first_stride=1).strides == [1, 2, 2, 2, 2, 1]
    net = DenoisingAutoencoder(spec)
    inputs = [layer[0].in_channels for layer in net.decoder]
    assert inputs == [4, 2 * 8, 16, 2 * 16, 16, 16]
    assert DenoisingAutoencoder(replace(spec, forced_skip=True)).decoder[0][0].in_channels == 2 * 4
    assert sum(isinstance(module, nn.ConvTranspose2d) for module in net.modules()) == 4  # where the stride is 2
    assert [any(isinstance(one, nn.Dropout) for one in layer) for layer in net.decoder] == [
        *[False] * 2,
        True,
        *[False] * 3,
    ]
    norms = [sum(isinstance(one, nn.BatchNorm2d) for one in layer) for layer in (*net.encoder, *net.decoder)]
    assert norms == 2 * [0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruption": "blur"}, "corruption: expected one of null, pink_noise, .*, got 'blur'"),
        ({"upsampling": "cubic"}, "upsampling: expected one of nearest, bilinear, transposed, got 'cubic'"),
        ({"corruption_strength": 1.5}, r"corruption_strength: expected a number in \[0, 1\], got 1.5"),
        ({"layers": 1}, "layers: expected at least 2, got 1"),
        ({"first_channels": 99}, "most_channels: expected at least 99, got 64"),
        ({"first_stride": 3}, "first_stride: expected 1 or 2, got 3"),
        ({"skips": [3]}, r"skips: expected layers from 1 to 2, got \(3,\)"),
        ({"dropout": [0]}, r"dropout: expected layers from 1 to 3, got \(0,\)"),
    ],
)
def test_wrong_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GeneratorSpec(**options)


def corrupted(corruption, strength, images, seed=0):
    return network(corruption=corruption, corruption_strength=strength).corrupt(
        images, torch.Generator().manual_seed(seed)
    )


def test_corruptions_do_what_they_are_called():
    gray = torch.full((4, 3, 64, 64), 0.5)
    assert torch.equal(corrupted("null", 1.0, gray), gray)
    removed = corrupted("color_removal", 0.3, patches())
    assert torch.equal(removed[:, 0], removed[:, 2])
    r, g, b = patches().unbind(1)
    torch.testing.assert_close(removed[:, 1], 0.299 * r + 0.587 * g + 0.114 * b)
    for kind in ("white_noise", "pink_noise"):
        assert float((corrupted(kind, 0.4, gray) - gray).std()) == pytest.approx(0.1, rel=0.05)
    white, pink = (corrupted(kind, 0.4, gray) - gray for kind in ("white_noise", "pink_noise"))
    assert white.diff(dim=-1).std() > 1.1 * pink.diff(dim=-1).std()  # pink noise is smoother
    small = nn.functional.interpolate(patches(height=64), (16, 8), mode="bilinear", antialias=True)
    back = nn.functional.interpolate(small, (64, 32), mode="bilinear")
    torch.testing.assert_close(corrupted("downsampling", 1.0, patches(height=64)), back)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_the_generator_decides(corruption):
    one = DistortionFamily([network(corruption=corruption, corruption_strength=0.5)])
    first, again, other = (one.distort(patches(), "cnn00", torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == ("noise" not in corruption)
    assert not first.requires_grad


@pytest.mark.parametrize("normalization", ["none", "batch", "instance"])
def test_an_image_does_not_depend_on_its_batch(normalization):
    net = network(normalization=normalization, dropout=(1, 2)).train()
    net(patches(4))  # running statistics
    one = DistortionFamily([net])
    batch = one.distort(patches(3), "cnn00", torch.Generator())
    singles = torch.cat([one.distort(image[None], "cnn00", torch.Generator()) for image in patches(3)])
    torch.testing.assert_close(batch, singles)


def test_distort_refuses_unknown_names_and_other_images():
    one = DistortionFamily(family())
    with pytest.raises(ValueError, match="name: expected one of cnn00, cnn01, got 'cnn02'"):
        one.distort(patches(), "cnn02", torch.Generator())
    for wrong in (patches()[0], patches(height=15), patches().mul(255).byte()):
        with pytest.raises(ValueError, match=r"images: expected floats \(N, 3, H, W\), sides of at least 16"):
            one.distort(wrong, "cnn00", torch.Generator())
    half = one.distort(patches().half(), "cnn00", torch.Generator())
    assert half.dtype == torch.float16


def test_a_file_holds_the_networks_and_the_record(tmp_path):
    path = write_family(tmp_path / "f.safetensors", family(), {"steps": 3})
    found = read_family(path)
    assert found.names == ["cnn00", "cnn01"] and len(found) == 2 and found.record == {"steps": 3}
    assert found.sha256 == DistortionFamily(family()).sha256
    for name, own in zip(found.names, family(), strict=True):
        assert found[name].spec == own.spec and not any(one.requires_grad for one in found[name].parameters())
        made = (one.distort(patches(), name, torch.Generator()) for one in (found, DistortionFamily(family())))
        assert torch.equal(*made)


def test_a_missing_damaged_or_other_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"cnn: expected a file .*, got none at '.*f.safetensors'; `{COMMAND}`"):
        read_family(tmp_path / "f.safetensors")
    path = write_family(tmp_path / "f.safetensors", family(), {})
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(WeightsError, match="tensors of sha256"):
        read_family(path)
    save_file(load_file(write_family(path, family(), {})), path)
    with pytest.raises(WeightsError, match="f.safetensors: expected a file from `lpips-lightning cnn-distortions fit"):
        read_family(path)


@pytest.mark.parametrize("change", ["layers", "unknown"])
def test_networks_that_do_not_fit_their_specs_are_refused(tmp_path, monkeypatch, change):
    monkeypatch.setattr(
        "lpips_lightning.data.cnn_distortions.asdict", lambda spec: {**asdict(spec), change: 7, "dropout": []}
    )
    path = write_family(tmp_path / "f.safetensors", family(), {})
    with pytest.raises(WeightsError, match="expected networks that fit their specs, got"):
        read_family(path)


def test_the_contact_sheet_shows_the_two_most_detailed_patches_beside_the_outputs(tmp_path):
    flat, some, most = (torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * c for c in (0.1, 0.5, 1))
    found = DistortionFamily(family())
    files = write_family_sheet(found, torch.cat([some, flat, most]), tmp_path / "sheet.png")
    assert [file.name for file in files] == ["sheet.png", "sheet.pdf"] and all(file.stat().st_size for file in files)
    again = write_family_sheet(found, torch.cat([flat, some, most]), tmp_path / "again.png")
    assert again[0].read_bytes() == files[0].read_bytes()
    other = write_family_sheet(found, torch.cat([flat, some, most]), tmp_path / "other.png", seed=1)
    assert other[0].read_bytes() != files[0].read_bytes()  # noise
    with pytest.raises(ValueError, match="out: expected a path that ends in .png"):
        write_family_sheet(found, flat, tmp_path / "sheet.jpg")


@pytest.mark.parametrize(("networks", "images"), [(1, 2), (8, 4)])
def test_nothing_in_the_sheet_is_cut_off_or_overlaps(networks, images):
    rows = [(f"cnn{index:02}: color removal", list(patches(images))) for index in range(networks)]
    with family_figure(rows) as figure:
        assert len(figure.axes) == networks * images
        assert layout_faults(figure) == []
