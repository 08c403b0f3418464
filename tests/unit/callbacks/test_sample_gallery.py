"""SampleGallery: the right samples, the same pixels in every logger, memory for k, nothing of the model changed."""

from __future__ import annotations

import io
import itertools
import json
import math

import numpy as np
import pytest
import torch
from _helpers.figure_layout import HOSTILE_NAMES, layout_faults
from boring_module import SIZE, Boring, board, board_events, fit, images, loader, trainer, wandb
from lightning_fabric.utilities.exceptions import MisconfigurationException
from PIL import Image, ImageDraw
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from lpips_lightning import LPIPS, PerceptualLoss
from lpips_lightning.callbacks import SampleGallery
from lpips_lightning.callbacks._loggers import check_pixels, log_image
from lpips_lightning.callbacks._sample_panel import Legend, Sample, Scored, sample_panel
from lpips_lightning.callbacks._sample_sheet import sample_sheet
from lpips_lightning.callbacks._step_outputs import OutputReader
from lpips_lightning.io.heatmap import heatmap_colors, heatmap_indices, heatmap_limit
from lpips_lightning.io.image_files import to_pixels

# 2026-11-21, pytorch_lightning/trainer/connectors/data_connector.py: its advice on loaders.
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")
SAMPLES = [f"val/gallery/{kind}_{place}" for kind in ("worst", "best") for place in (1, 2)]
NAMES = [*SAMPLES, "val/gallery/sheet"]


def gallery(**options):
    return SampleGallery("embedded", **{"data_range": (0, 1), "k": 2, **options})


@pytest.fixture
def drawn(monkeypatch):
    """Logged images: name, step, pixels."""
    found = []

    def note(trainer, name, pixels, step, **options):
        found.append((name, step, pixels))
        log_image(trainer, name, pixels, step, **options)

    monkeypatch.setattr("lpips_lightning.callbacks.sample_gallery.log_image", note)
    return found


@pytest.fixture
def chosen(monkeypatch):
    """Which samples are drawn: label and whose score."""
    found = []

    def note(sample, scored, place, *args):
        found.append((place, scored))
        return sample_panel(sample, scored, place, *args)

    monkeypatch.setattr("lpips_lightning.callbacks.sample_gallery.sample_panel", note)
    return found


def read(path):
    with Image.open(path) as image:
        return np.array(image)


def test_the_worst_and_the_best_are_chosen(tmp_path, chosen):
    model = Boring()
    loaders = [loader(n=7, seed=1), loader(n=3, seed=2)]
    trainer(tmp_path, [gallery()]).validate(model, loaders, verbose=False)
    expected = []
    for index, one in enumerate(loaders):
        x, target = one.dataset.tensors
        scores = LPIPS("embedded")(model(x), target, data_range=(0, 1)).tolist()
        expected += [(score, index, number) for number, score in enumerate(scores)]
    expected = sorted(expected, reverse=True)[:2] + sorted(expected)[:2]
    assert [place for place, _ in chosen] == ["worst 1 of 2", "worst 2 of 2", "best 1 of 2", "best 2 of 2"]
    assert [scored[1:3] for _, scored in chosen] == [one[1:] for one in expected]
    assert [scored.score for _, scored in chosen] == pytest.approx([one[0] for one in expected], rel=1e-5)


def test_every_logger_shows_the_same_pixels(tmp_path, drawn):
    tensorboard, table = board(tmp_path), CSVLogger(tmp_path, name="csv")
    weights_and_biases = wandb(tmp_path)
    fit(tmp_path, [gallery()], logger=[tensorboard, table, weights_and_biases])
    assert [(name, step) for name, step, _ in drawn] == [(name, step) for step in (3, 6) for name in NAMES]
    events = board_events(tensorboard)
    assert sorted(events.Tags()["images"]) == sorted(NAMES)
    media = {read(path).tobytes() for path in tmp_path.rglob("files/media/images/val/gallery/*_*_*.png")}
    assert len(list(tmp_path.rglob("files/media/images/val/gallery/*_*_*.png"))) == len(drawn)
    for name, step, pixels in drawn:
        assert pixels.dtype == np.uint8
        (shown,) = [event for event in events.Images(name) if event.step == step]
        assert np.array_equal(read(io.BytesIO(shown.encoded_image_string)), pixels)
        assert np.array_equal(read(f"{table.log_dir}/{name}_step_{step:08d}.png"), pixels)
        assert pixels.tobytes() in media
    assert len(list(tmp_path.rglob("sheet.pdf"))) == 1  # the last, in the first logger's folder
    media_files = list(tmp_path.rglob("files/media/**/*.png"))
    assert len(list(tmp_path.rglob("*.png"))) == len(drawn) + len(media_files)
    tables = sorted(tmp_path.rglob("files/media/table/val/*.table.json"))
    assert len(tables) == 2
    content = json.loads(tables[0].read_text())
    assert content["columns"] == ["kind", "place", "lpips", "dataloader_idx", "image", "name", "sample"]
    assert [row[:2] for row in content["data"]] == [["worst", 1], ["worst", 2], ["best", 1], ["best", 2]]
    assert all(isinstance(row[2], float) for row in content["data"])
    weights_and_biases.experiment.finish()


def test_mlflow_shows_the_same_pixels(tmp_path, drawn, monkeypatch):
    pytest.importorskip("mlflow")
    from pytorch_lightning.loggers import MLFlowLogger

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path / 'runs'}")
    fit(tmp_path, [gallery()], logger=logger, max_epochs=1)
    assert len(drawn) == 4
    for name, step, pixels in drawn:
        file = logger.experiment.download_artifacts(logger.run_id, f"{name}_step_{step:08d}.png", str(tmp_path))
        assert np.array_equal(read(file), pixels)


def test_without_a_logger_images_are_files_and_tests_have_them_too(tmp_path, drawn):
    trainer(tmp_path, [gallery(k=1)]).test(Boring(), loader(), verbose=False)
    assert [name for name, _, _ in drawn] == [f"test/gallery/{name}" for name in ("worst_1", "best_1", "sheet")]
    for name, _, pixels in drawn:
        assert np.array_equal(read(tmp_path / f"{name}_step_00000000.png"), pixels)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [
        "best_1_step_00000000.png",
        "sheet.pdf",
        "sheet_step_00000000.png",
        "worst_1_step_00000000.png",
    ]


def test_fast_dev_run_writes_nothing_and_the_sanity_check_draws_nothing(tmp_path, drawn):
    fit(tmp_path / "new", [gallery()], fast_dev_run=True)
    assert len(drawn) == 5  # of two samples, each is among the worst and the best; and the sheet
    assert not (tmp_path / "new").exists()
    drawn.clear()
    fit(tmp_path, [gallery()], limit_val_batches=1, max_epochs=0)
    fit(tmp_path, [gallery(every_n_epochs=2)], max_epochs=5)
    assert [step for _, step, _ in drawn] == [6] * 5 + [12] * 5


def test_memory_is_bounded_by_k(tmp_path):
    most = []

    class Watching(SampleGallery):
        def on_validation_batch_end(self, *args, **kwargs):
            super().on_validation_batch_end(*args, **kwargs)
            most.append(len(self._samples))

    callback = Watching("embedded", data_range=(0, 1), k=2)
    fit(tmp_path, [callback], val=loader(n=12, seed=1), max_epochs=1, num_sanity_val_steps=0)
    assert max(most) == 4
    assert not callback._samples


def test_mode_and_random_numbers_are_as_found(tmp_path):
    model, states = Boring(), []
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model.train()
    trainer(tmp_path, [gallery()]).validate(model, loader(), verbose=False)
    states.append(torch.get_rng_state())
    torch.set_rng_state(before)
    trainer(tmp_path, []).validate(model, loader(), verbose=False)
    assert torch.equal(states[0], torch.get_rng_state())
    assert model.training


def test_a_nan_prediction_is_the_worst_sample(tmp_path, chosen, drawn):
    def returns(x, pred, target):
        pred = pred.clone()
        pred[0] = math.nan
        return {"pred": pred, "target": target}

    with pytest.warns(UserWarning, match="pred: .* a NaN usually comes from a diverged network"):
        trainer(tmp_path, [gallery(k=1)]).validate(Boring(returns), loader(seed=1), verbose=False)
    scored = dict(chosen)
    assert scored["worst 1 of 1"].score == math.inf
    assert math.isfinite(scored["best 1 of 1"].score)


def cells(pixels, count=4, height=SIZE, factor=6):
    """The images inside the image, at their own size."""
    text = max(13, min(SIZE * factor // 17, 26))
    top, gap = round(text * 2.9), text
    side = SIZE * factor
    found = [pixels[top : top + side, gap + i * (side + gap) :][:, :side] for i in range(count)]
    small = [one[::factor, ::factor] for one in found]
    for one, large in zip(small, found, strict=True):
        assert np.array_equal(one.repeat(factor, 0).repeat(factor, 1), large)
    return small


def test_the_image_shows_input_prediction_target_and_map(tmp_path, drawn):
    model = Boring(lambda x, pred, target: {"input": x[:, :1, ::4, ::4], "preds": pred, "target": target})
    x, target = images(1)
    trainer(tmp_path, [gallery(k=1, heatmap_max=1.0)]).validate(
        model, DataLoader(TensorDataset(x, target)), verbose=False
    )
    low, pred, truth, heat = cells(drawn[0][2])
    expected = to_pixels(x[0, :1, ::4, ::4], (0, 1)).repeat(4, 0).repeat(4, 1)
    assert np.array_equal(low, expected)
    assert np.array_equal(truth, to_pixels(target[0], (0, 1)))
    with torch.no_grad():
        made = model(x)
        heat_map = LPIPS("embedded")(made, target, data_range=(0, 1), spatial=True)[0, 0]
    assert np.array_equal(pred, to_pixels(made[0], (0, 1)))
    assert np.array_equal(heat, heatmap_colors()[(heat_map.half().float() * 255).round().clamp(max=255).long().numpy()])


def test_larger_distances_are_brighter():
    brightness = heatmap_colors() @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(brightness) > -0.5).all()
    assert brightness[0] < 5
    assert brightness[-1] > 240
    assert (brightness[16:] - brightness[:-16]).min() > 5


def test_equal_distances_have_equal_colors_in_all_images():
    rising = torch.linspace(0, 2, 64).expand(64, 64)
    assert heatmap_indices(rising, 1.0)[0, :33].max() == 255
    assert heatmap_indices(torch.full((2, 2), 0.5), 1.0).tolist() == [[128, 128], [128, 128]]
    black = np.zeros((64, 64, 3), np.uint8)
    samples = [Sample(black, black, None, distances) for distances in (rising, rising / 2)]
    scored, legend = Scored(0.3, 0, 0, 0), Legend("alex v0.1", 1.0)
    first, second = (sample_panel(sample, scored, "best 1 of 1", legend) for sample in samples)
    middle = first.shape[0] // 2
    assert len({tuple(color) for color in second[middle]} - {tuple(color) for color in first[middle]}) < 40
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(("height", "width"), [(512, 31), (31, 512), (300, 500)])
def test_images_of_any_shape_are_drawn_without_interpolation(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    sample = Sample(image, image, image, torch.zeros(height, width))
    drawn = sample_panel(sample, Scored(0.123, 1, 12345, 0), "worst 10 of 10", Legend("squeeze v0.1", 1.0))
    windows = np.lib.stride_tricks.sliding_window_view(drawn[..., 0], (height, width))
    assert (windows[:, :, 0, 0] == image[0, 0, 0]).any()
    matches = [(windows[y, x] == image[..., 0]).all() for y, x in np.argwhere(windows[..., 0, 0] == image[0, 0, 0])]
    assert sum(matches) == 3


def test_inputs_that_are_not_images_are_refused_or_omitted(tmp_path, drawn):
    model = Boring(lambda x, pred, target: {"input": torch.cat([x, x], 1), "pred": pred, "target": target})
    message = r"input_key: expected images \(2, 3, h, w\) or \(2, 1, h, w\), .*\(2, 6, 48, 48\); pass input_key=None"
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, [gallery()], model)
    trainer(tmp_path, [gallery(k=1, input_key=None)]).validate(model, loader(), verbose=False)
    assert len(cells(drawn[0][2], count=3)) == 3
    with pytest.raises(MisconfigurationException, match="validation_step: expected a mapping .* got None; return"):
        fit(tmp_path, [gallery()], Boring(lambda *args: None))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k: expected at least 1, got 0"),
        ({"every_n_epochs": 0}, "every_n_epochs: expected at least 1, got 0"),
        ({"heatmap_max": 0.0}, "heatmap_max: expected a positive distance, got 0.0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        gallery(**arguments)


def test_only_uint8_reaches_a_logger():
    with pytest.raises(TypeError, match="pixels: expected uint8, got float64"):
        check_pixels(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match=r"pixels: expected shape \(H, W, 3\), got \(3, 4, 4\)"):
        check_pixels(np.zeros((3, 4, 4), np.uint8))
    values = torch.tensor([-0.2, 0.0, 0.5, 1.0, 1.2]).expand(3, 1, 5)
    assert to_pixels(values, (0, 1))[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert to_pixels(values, (-1, 1))[0, :, 0].tolist() == [102, 128, 191, 255, 255]


@pytest.mark.parametrize("memory_budget", [None, 2**24])
@pytest.mark.parametrize("kind", ["gray", "alpha", "resize", "channels"])
def test_samples_are_drawn_as_the_network_input(tmp_path, monkeypatch, kind, memory_budget):
    """Prediction, target, heatmap and score of every kind equal those of the corresponding color images."""
    kept = []
    monkeypatch.setattr(
        "lpips_lightning.callbacks.sample_gallery.sample_panel",
        lambda sample, scored, place, *args: (kept.append((place, sample, scored)), sample.target)[1],
    )
    alpha = torch.linspace(0, 1, SIZE).expand(1, SIZE, SIZE)
    make, see, options = {
        "gray": (lambda t: t[:, :1], lambda t: t[:, :1].expand(-1, 3, -1, -1), {"gray": "repeat"}),
        "alpha": (
            lambda t: torch.cat([t, alpha.expand(len(t), -1, -1, -1)], 1),
            lambda t: t * alpha + (1 - alpha),
            {"background": "white"},
        ),
        "resize": (
            lambda t: t,
            lambda t: torch.nn.functional.interpolate(t, (40, 44), mode="bilinear", antialias=True),
            {"resize": (40, 44)},
        ),
        "channels": (lambda t: t, lambda t: t.mean(1, keepdim=True).expand(-1, 3, -1, -1), {"gray": "per_channel"}),
    }[kind]
    returns = {
        True: lambda x, pred, target: {"input": make(x), "preds": make(pred), "target": make(target)},
        False: lambda x, pred, target: {"input": x, "preds": see(pred), "target": see(target)},
    }
    for own in (True, False):
        model = Boring(returns[own])
        said = {**options, "memory_budget": memory_budget} if own else {}
        trainer(tmp_path, [gallery(**said)]).validate(model, loader(seed=1), verbose=False)
    assert len(kept) == 8
    net = LPIPS("embedded", **options)
    by_index = {scored.dataset_index: sample for _, sample, scored in kept[4:]}
    for place, sample, scored in kept[:4]:
        x, target = (batch[scored.dataset_index : scored.dataset_index + 1] for batch in images(5, 1))
        pred = (0.8 * x).clamp(0, 1)
        expected = float(net(make(pred), make(target), (0, 1)))
        assert scored.score == pytest.approx(expected, rel=1e-4), place
        assert np.abs(sample.target.astype(int) - to_pixels(see(target)[0], (0, 1))).max() <= 1
        assert np.abs(sample.pred.astype(int) - to_pixels(see(pred)[0], (0, 1))).max() <= 1
        assert sample.input.shape == (SIZE, SIZE, 3) and sample.distances.shape == sample.target.shape[:2]
        if kind != "channels" and scored.dataset_index in by_index:
            torch.testing.assert_close(sample.distances, by_index[scored.dataset_index].distances, rtol=2e-3, atol=1e-3)


def test_transparent_inputs_need_a_background(tmp_path):
    model = Boring(lambda x, pred, target: {"input": torch.cat([x, x[:, :1]], 1), "preds": pred, "target": target})
    with pytest.raises(MisconfigurationException, match="^input_key: expected images .*; pass background= for transp"):
        trainer(tmp_path, [gallery()]).validate(model, loader(), verbose=False)
    trainer(tmp_path, [gallery(background="black")]).validate(model, loader(), verbose=False)


def test_samples_have_the_names_of_step_or_batch(tmp_path, chosen):
    model = Boring(
        lambda x, pred, target: {"pred": pred, "target": target, "name": [f"n{len(x)}{i}" for i in range(len(x))]}
    )
    trainer(tmp_path, [gallery(k=1)]).validate(model, loader(n=1), verbose=False)
    assert [scored.source for _, scored in chosen] == ["n10", "n10"]
    assert Scored(0.1, 2, 7, 0).source == "image 7, loader 2"
    outputs = {"pred": torch.zeros(2, 3, 8, 8), "target": torch.zeros(2, 3, 8, 8)}
    read = OutputReader().read
    assert read(outputs, (outputs["pred"], ("a", "b")), "s").names == ("a", "b")
    assert read(outputs, {"image": outputs["pred"], "names": ["c", "d"]}, "s").names == ["c", "d"]
    assert read(outputs, (outputs["pred"], ("a",)), "s").names is None  # another number
    assert read(outputs, (outputs["pred"], outputs["pred"]), "s").names is None


@pytest.mark.parametrize(("own", "shown"), [("embedded", True), ("squeeze", False)])
def test_the_network_of_the_loss_is_marked(tmp_path, monkeypatch, own, shown):
    legends = []

    def note(sample, scored, place, legend):
        legends.append(legend)
        return sample_panel(sample, scored, place, legend)

    monkeypatch.setattr("lpips_lightning.callbacks.sample_gallery.sample_panel", note)
    model = Boring()
    model.perceptual = PerceptualLoss(own, data_range=(0, 1), weights=None if own == "embedded" else "random")
    trainer(tmp_path, [gallery(k=1)]).validate(model, loader(), verbose=False)
    assert {legend.is_loss for legend in legends} == {shown}
    (limit,) = {legend.heatmap_max for legend in legends}
    x, target = loader().dataset.tensors
    maps = LPIPS("embedded")(model(x), target, data_range=(0, 1), spatial=True)
    assert 0 < limit <= heatmap_limit(maps[..., None].amax())  # fits the samples


@pytest.mark.parametrize(("height", "width"), [(8, 8), (20, 300), (300, 20)])
@pytest.mark.parametrize("name", HOSTILE_NAMES[:6])
def test_texts_in_the_image_fit_their_columns(monkeypatch, height, width, name):
    texts = []
    draw = ImageDraw.ImageDraw.text

    def note(self, place, text, *args):
        font, anchor = args[1], args[2]
        texts.append((self.textbbox(place, text, font, anchor), anchor, self.im.size))
        draw(self, place, text, *args)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    image = np.zeros((height, width, 3), np.uint8)
    sample = Sample(image, image, image, torch.full((height, width), math.nan))
    sample_panel(sample, Scored(0.1, 3, 12, 0, name), "worst 1 of 4", Legend(name, 0.05, name, is_loss=True))
    headings = sorted(box for box, anchor, _ in texts if anchor == "ma")
    assert len(headings) == 8
    assert all(box[0] >= 0 and box[2] <= size[0] and box[3] <= size[1] for box, _, size in texts)
    for first, second in itertools.combinations(headings, 2):
        across, down = (min(first[i + 2], second[i + 2]) - max(first[i], second[i]) for i in (0, 1))
        assert across <= 0 or down <= 0


@pytest.mark.parametrize("k", [1, 9])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (20, 300), (300, 20)])
def test_the_sheet_is_readable(k, height, width):
    image = np.zeros((height, width, 3), np.uint8)
    sample = Sample(image, image, image[::2, ::2], torch.full((height, width), math.nan))
    scored = [(sample, Scored(math.inf, 0, index, 0, name)) for index, name in enumerate(HOSTILE_NAMES[:k])]
    with sample_sheet(
        {"worst": scored, "best": scored[:1]}, Legend(HOSTILE_NAMES[-1], 0.05, HOSTILE_NAMES[-2], True)
    ) as figure:
        assert layout_faults(figure) == []


def test_without_matplotlib_there_is_no_sheet(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr("lpips_lightning.callbacks.sample_gallery.find_spec", lambda name: None)
    trainer(tmp_path, [gallery(k=1)]).validate(Boring(), loader(), verbose=False)
    assert [name for name, _, _ in drawn] == ["val/gallery/worst_1", "val/gallery/best_1"]
