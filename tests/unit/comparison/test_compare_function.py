"""`lpips_lightning.compare`: files, folders, Pillow images, arrays and tensors give the numbers of the command."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from image_file_kinds import RGB, deep_png, noise, saved
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from lpips_lightning import LPIPS, compare
from lpips_lightning.comparison import fidelity

X = noise()


def image(seed, height=40, width=36):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tensor(pixels):
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


@pytest.fixture
def files(tmp_path):
    """Folders a and b with two images of one size each."""
    for side, shift in (("a", 0), ("b", 10)):
        (tmp_path / side).mkdir()
        for number in (1, 2):
            Image.fromarray(image(number + shift)).save(tmp_path / side / f"{number}.png")
    return tmp_path


WAYS = {
    "paths": lambda a, b: (a, b),
    "names": lambda a, b: (str(a), str(b)),
    "Pillow": lambda a, b: (Image.open(a), Image.open(b)),
    "arrays": lambda a, b: (np.asarray(Image.open(a)), np.asarray(Image.open(b))),
    "tensors": lambda a, b: (tensor(np.asarray(Image.open(a))), tensor(np.asarray(Image.open(b)))),
    "uint16": lambda a, b: (np.asarray(Image.open(a)).astype(np.uint16) * 257, b),
    "a path and a tensor": lambda a, b: (a, tensor(np.asarray(Image.open(b)))),
}
FLOATS = {
    "floats on [0, 1]": (lambda pixels: pixels / 255, (0, 1)),
    "floats on [0, 255]": (lambda pixels: pixels.astype(np.float32), 255),
    "tensors on [-1, 1]": (lambda pixels: tensor(pixels).float() / 127.5 - 1, (-1, 1)),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_kind_of_image_has_the_number_of_the_command(way, files, run):
    a, b = files / "a/1.png", files / "b/1.png"
    printed = float(run(a, b)[1][0])
    found = compare(*WAYS[way](a, b), net="embedded")
    assert isinstance(found, float) and found == pytest.approx(printed, rel=1e-6)


@pytest.mark.parametrize("way", FLOATS)
def test_floats_need_their_range(way, net):
    convert, data_range = FLOATS[way]
    x, y = image(1), image(2)
    assert compare(convert(x), convert(y), net=net, data_range=data_range) == pytest.approx(
        compare(x, y, net=net), rel=1e-4
    )
    with pytest.raises(ValueError, match=r"a: expected data_range= for floating-point values, such as"):
        compare(convert(x), convert(y), net=net)
    with pytest.raises(ValueError, match=r"a: expected values on \[0, 0.1\], got"):
        compare(convert(x), convert(y), net=net, data_range=(0, 0.1))


def test_folders_and_batches_give_names_distances_and_scores(files, run, net):
    lines = dict(line.split("\t", 1) for line in run(files / "a", files / "b", "--psnr", "--ssim")[1][:-1])
    found = compare(files / "a", files / "b", net=net, metrics=["ssim", "psnr"])
    assert found.names == ["1", "2"] and found.notes == []
    assert found.mean == pytest.approx(float(lines["mean"]), rel=1e-6)
    assert np.mean(found.psnr) == pytest.approx(float(lines["psnr"]), rel=1e-8)
    assert np.mean(found.ssim) == pytest.approx(float(lines["ssim"]), rel=1e-8)
    assert found.fingerprint == run(files / "a", files / "b", "--psnr", "--ssim")[1][-1]
    batches = [np.stack([image(1 + shift), image(2 + shift)]) for shift in (0, 10)]
    batch = compare(*batches, net=net)
    assert (batch.names, batch.psnr, batch.fingerprint) == (["0", "1"], [], net.fingerprint)
    assert batch.distances == pytest.approx(found.distances, rel=1e-6)
    assert compare(batches[0][:1], batches[1][:1], net=net).distances == pytest.approx(found.distances[:1], rel=1e-6)


@pytest.mark.parametrize("resize", [None, 48])
def test_scores_are_those_of_torchmetrics_in_strips_too(resize, net, monkeypatch):
    x, y = image(1, 61, 50), image(2, 61, 50) // 2
    options = {} if resize is None else {"resize": resize}
    network = LPIPS("embedded", **options)
    monkeypatch.setattr(fidelity, "_STRIP", 50 * 7)
    found = compare(x, y, net=network, metrics=["psnr", "ssim"])
    one, two = (network.images.to_flat_rgb(tensor(part)[None] / 255, (0.0, 1.0))[0] for part in (x, y))
    assert found.psnr == pytest.approx([float(peak_signal_noise_ratio(one, two, data_range=1.0))], rel=1e-5)
    ssim = structural_similarity_index_measure(one, two, data_range=1.0)
    assert found.ssim == pytest.approx([float(ssim)], rel=1e-4)


def test_psnr_is_exact_for_sixteen_bits_and_infinite_for_equal_images(tmp_path, net):
    deep = noise(high=65535)
    (tmp_path / "x.png").write_bytes(deep_png(deep, RGB))
    (tmp_path / "y.png").write_bytes(deep_png(deep + np.uint16(1), RGB))
    found = compare(tmp_path / "x.png", tmp_path / "y.png", net=net, metrics=["psnr"])
    assert found.psnr == pytest.approx([20 * math.log10(65535)], rel=1e-9)
    assert found.names == ["x"]
    assert compare(image(1), image(1), net=net, metrics=["psnr"]).psnr == [math.inf]


def test_masked_psnr_is_that_of_the_mask(tmp_path, net):
    mask = np.zeros((40, 36), np.uint8)
    mask[:, :20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    x, y = image(1), image(2)
    found = compare(x, y, net=net, metrics=["psnr"], mask=tmp_path / "mask.png")
    error = ((x[:, :20] / 255 - y[:, :20] / 255) ** 2).mean()
    assert found.psnr == pytest.approx([-10 * math.log10(error)], rel=1e-9)
    assert found.distances == pytest.approx(
        net(tensor(x)[None], tensor(y)[None], mask=torch.from_numpy(mask > 0)[None]).tolist(), rel=1e-5
    )
    assert "mask mask.png; PSNR in dB from the mean squared error over the mask" in found.fingerprint


def test_pillow_images_are_checked_as_files_are(net):
    sideways = Image.Exif()
    sideways[0x0112] = 6
    turned = saved(np.rot90(X, 1).copy(), "PNG", exif=sideways)
    deep, gray = deep_png(noise(high=65536), RGB), saved(noise(channels=1), "PNG", "LA")
    assert compare(Image.open(io.BytesIO(turned)), X, net=net) < 1e-12
    with pytest.raises(ValueError, match="a: expected 8 bits per channel, got a file with 16, .* give its path"):
        compare(Image.open(io.BytesIO(deep)), X, net=net)
    with pytest.raises(ValueError, match="a: expected a color image, got a gray one; gray='repeat' repeats it"):
        compare(Image.open(io.BytesIO(gray)), X, net=net)


BAD = {
    "channels first": ((X.transpose(2, 0, 1), X), {}, r"a: expected an array \(H, W, 3\).*np.moveaxis\(array, -3, -1"),
    "channels last": ((torch.from_numpy(X), X), {}, r"a: expected a tensor \(3, H, W\) .*\.movedim\(-1, -3\)"),
    "integers": ((X.astype(np.int32), X), {}, "a: expected uint8, uint16 or floating-point values, got int32"),
    "nothing": ((X, None), {}, "b: expected a path, a Pillow image, a NumPy array or a tensor, got NoneType"),
    "sizes": ((X, X[:-1]), {}, "b: expected the size of 'a', .* resize= resizes all images to one size"),
    "gray": ((X, X[..., 0]), {}, "b: expected a color image, got a gray one; gray='repeat'"),
    "alpha": ((X, np.zeros((40, 36, 4), np.uint8)), {}, "b: expected an opaque image, .*; background= sets the color"),
    "counts": ((X[None], np.stack([X, X])), {}, "b: expected as many images as a, 1, got 2; nothing is broadcast"),
    "no file": (("gone.png", X), {}, "gone.png: expected an image, a video or a folder, got no such file"),
    "a folder and an image": ((".", X), {}, "b: expected a folder too, as '.' is one"),
    "options of folders": ((X, X), {"common": True}, "common: expected two folders with this option"),
    "metrics": ((X, X), {"metrics": "psnr"}, "metrics: expected some of"),
    "masked SSIM": ((X, X), {"metrics": ["ssim"], "mask": "m.png"}, "metrics: expected no 'ssim' with mask="),
    "an option": ((X, X), {"grey": "repeat"}, "grey"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named_as_arguments(name):
    images, options, message = BAD[name]
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        compare(*images, net="embedded", **options)


def test_an_image_in_memory_is_not_taken_for_a_file_of_its_name(tmp_path, monkeypatch, net):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_bytes(saved(image(2), "PNG"))
    assert compare(image(1), "a", net=net) == pytest.approx(compare(image(1), image(2), net=net), rel=1e-6)


def test_differing_names_are_answered_with_arguments(files, net):
    (files / "b/2.png").rename(files / "b/3.png")
    with pytest.raises(ValueError, match="common=True compares the 1 names in both; in_order=True matches"):
        compare(files / "a", files / "b", net=net)
    assert compare(files / "a", files / "b", net=net, common=True).names == ["1"]
    assert len(compare(files / "a", files / "b", net=net, in_order=True).distances) == 2
