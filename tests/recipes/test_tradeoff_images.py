"""The figure of a trade-off table: which detail it shows, its captions, and that it fits."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from figure_layout import HOSTILE_NAMES, saved_faults
from matplotlib.image import AxesImage
from matplotlib.text import Text
from PIL import Image

from lpips_lightning import LPIPS
from lpips_lightning.io.image_files import read_image, write_image
from lpips_lightning.recipes.small_jpeg import save_small_jpeg
from lpips_lightning.recipes.tradeoff_images import most_different, save_images
from lpips_lightning.recipes.tradeoff_table import TradeoffRow

SCORES = {"psnr": 26.84, "ssim": 0.8, "lpips_alex": 0.124, "lpips_squeeze": 0.145, "lpips_vgg": 0.2}
LOSSES = ("untrained", "pixel", "alex", "vgg", "squeeze", "embedded", "alex:baseline", "vgg:baseline")


def table(folder, losses, height=72, width=96, **more):
    """Rows of `losses`, with their images in `folder`."""
    rows = [TradeoffRow(loss, 0, 0.05, 60, scores=SCORES, **more) for loss in losses]
    for name, size in {**dict.fromkeys([row.stem for row in rows], 1), "target": 1, "input": 4}.items():
        write_image(torch.randint(256, (3, height // size, width // size), dtype=torch.uint8), folder / f"{name}.png")
    return rows


def texts_and_views(folder, rows, labels=None):
    """Texts of the figure, and the limits of its axes."""
    seen = {}

    def look(figure, path, kind, metadata):
        seen["texts"] = [text.get_text() for text in figure.findobj(Text) if text.get_text()]
        seen["views"] = [(*axes.get_xlim(), *axes.get_ylim()) for axes in figure.axes]

    with patch("lpips_lightning.io.figures._save", look):
        save_images(folder, rows, labels or {}, "heading")
    return seen["texts"], seen["views"]


def test_the_detail_is_where_the_images_of_the_losses_differ_most(tmp_path):
    one = torch.zeros(3, 96, 128)
    two, three = one.clone(), one.clone()
    two[:, 10:20, 90:100] = 0.9  # differs strongly, but only here
    three[:, 40:72, 50:82] = 0.4
    assert most_different([one, two, three], 32) == (40, 50)
    assert most_different([one, two, one], 10) == (10, 90)
    rows = table(tmp_path, LOSSES[:4], 96, 128)
    for row, image in zip(rows, [1 - one, one, two, three], strict=True):  # the untrained model's has no say
        write_image(image, tmp_path / f"{row.stem}.png")
    _, views = texts_and_views(tmp_path, rows)
    assert views[0] == (0, 128, 96, 0)
    assert views.count((50, 82, 72, 40)) == 6  # input, the four rows, truth


def test_with_one_trained_loss_the_detail_is_where_it_differs_from_the_others_and_the_truth(tmp_path):
    rows = table(tmp_path, ["pixel"], 96, 128)
    flat = torch.full((3, 96, 128), 0.5)
    other = flat.clone()
    other[:, 60:92, 10:42] = 0.7
    write_image(flat, tmp_path / "target.png")
    write_image(other, tmp_path / "pixel_seed0.png")
    assert texts_and_views(tmp_path, rows)[1][1] == (10, 42, 92, 60)


def test_captions_name_loss_and_scores_and_mark_the_network_of_the_loss(tmp_path):
    rows = table(tmp_path, ("untrained", "pixel", "alex", "vgg:baseline", "embedded+gan", "alex+gan"))
    failed = TradeoffRow("squeeze", 1, note="failed: ValueError")
    second = TradeoffRow("alex", 1, 0.05, 60, scores=dict.fromkeys(SCORES, 9.0))
    texts, _ = texts_and_views(tmp_path, [*rows, failed, second], {"untrained": "bicubic", "pixel": "L1"})
    plain = "26.8 dB \u00b7 vgg 0.200 \u00b7 alex 0.124"
    captions = [text for text in texts if "dB" in text]
    alex, vgg = f"{plain}\u2020", plain.replace("200", "200\u2020")
    assert captions == [plain, plain, alex, vgg, plain, alex]
    for title in ("bicubic", "L1", "L1 + LPIPS(alex)", "uncalibrated)", "L1 + LPIPS(embedded)", "+ GAN"):
        assert title in texts
    assert {"input", "truth", "local LPIPS\nby embedded-vgg"} < set(texts)
    note, own = "validation means of the first seed.", " \u2020 The network of the loss: biased."
    assert [text.endswith(note + own) for text in texts].count(True) == 1
    texts, _ = texts_and_views(tmp_path, [*rows, failed])
    assert [text.endswith(f"means over all validation images.{own}") for text in texts].count(True) == 1


@pytest.mark.parametrize("losses", [("untrained", "pixel", "embedded"), ("untrained", "pixel", "embedded", "alex+gan")])
def test_networks_with_long_names_leave_the_captions_whole(tmp_path, losses):
    rows = table(tmp_path, losses, 96, 128)
    scores = {"psnr": 26.84, "lpips_embedded": 0.124, "lpips_embedded-vgg": 0.2}
    texts, _ = texts_and_views(tmp_path, [replace(row, scores=scores) for row in rows])
    plain = "26.8 dB \u00b7 LPIPS 0.124"
    assert {text for text in texts if "dB" in text} == {plain, f"{plain}\u2020"}
    assert any(text.startswith("Scores: PSNR, and LPIPS by embedded, lower") for text in texts)


def test_maps_show_the_distance_of_the_detail_to_the_truth_on_one_scale(tmp_path):
    rows = table(tmp_path, ["pixel", "embedded-vgg", "squeeze+gan"], 96, 128)
    truth = read_image(tmp_path / "target.png") / 255
    write_image(truth, tmp_path / "pixel_seed0.png")
    maps = []

    def look(figure, path, kind, metadata):
        maps[:] = [one for one in figure.findobj(AxesImage) if one.get_array().ndim == 2]

    with patch("lpips_lightning.io.figures._save", look):
        save_images(tmp_path, rows, {}, "heading")
    assert [one.get_array().shape for one in maps] == [(32, 32)] * 3
    assert maps[0].get_array().max() < 1e-6
    assert len({one.get_clim() for one in maps}) == 1
    # alex and squeeze are not on the machine, and embedded-vgg has a loss here.
    preds = read_image(tmp_path / "squeeze_gan_seed0.png") / 255
    local = LPIPS("embedded")(preds[None], truth[None], (0, 1), spatial=True)[0, 0]
    found = torch.as_tensor(maps[2].get_array().data)
    assert min((local[y : y + 32, x : x + 32] - found).abs().max() for y in range(65) for x in range(97)) < 1e-5


def test_an_input_that_is_the_truth_is_not_shown(tmp_path):
    rows = table(tmp_path, ["pixel"])
    (tmp_path / "target.png").replace(tmp_path / "input.png")
    write_image(read_image(tmp_path / "input.png"), tmp_path / "target.png")
    texts, _ = texts_and_views(tmp_path, rows)
    assert "truth" in texts and "input" not in texts


@pytest.mark.parametrize("content", ["flat", "noise"])
def test_the_small_jpeg_is_below_150_kb_at_150_dpi_or_more(tmp_path, content):
    pixels = np.full((500, 2070, 3), 200, np.uint8)
    if content == "noise":
        pixels = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    file = save_small_jpeg(tmp_path / "a.png")
    assert file == tmp_path / "a.jpg"
    assert file.stat().st_size < 150_000
    with Image.open(file) as image:
        dpi = 225 if content == "flat" else 150
        assert image.info["dpi"] == (dpi, dpi)
        assert image.width == round(6.9 * dpi)


@pytest.mark.parametrize("count", [1, 2, 8, 30])
def test_nothing_is_cut_off_however_many_losses(tmp_path, count):
    names = [f"net{number}" for number in range(count)]
    rows = table(tmp_path, names)
    labels = dict(zip(names, HOSTILE_NAMES, strict=False)) | {"net0": HOSTILE_NAMES[-1]}
    assert saved_faults(lambda path: save_images(tmp_path, rows, labels, HOSTILE_NAMES[-1]), tmp_path) == []


def test_without_images_there_is_no_figure(tmp_path):
    rows = table(tmp_path, ["pixel", "alex"])
    (tmp_path / "alex_seed0.png").unlink()
    assert [text for text in texts_and_views(tmp_path, rows)[0] if "LPIPS(" in text] == []
    (tmp_path / "target.png").unlink()
    assert save_images(tmp_path, rows, {}, "heading") == []
    assert not (tmp_path / "tradeoff.png").exists()
