"""The frame interpolation recipe: warping, search, network, error, training, command line."""

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from small_data import write_noise

from lpips_lightning import LPIPS
from lpips_lightning.callbacks import PerceptualScores
from lpips_lightning.io.image_files import read_image
from lpips_lightning.recipes.frame_interpolation import FrameInterpolation, InterpolationError, charbonnier, main
from lpips_lightning.recipes.frame_interpolation_data import FrameInterpolationData
from lpips_lightning.recipes.interpolation_network import InterpolationNetwork, likeliest, matching_scores, warp

TINY = {"channels": (4, 8), "hidden": 8, "fine": 8, "loss_weights": "random"}
SCORES = {"val/lpips", "val/psnr", "val/ssim", "val/interpolation_error"}
TRAINED = {"train/loss", "train/charbonnier", "train/coarse", "train/perceptual"}
MIDDLEBURY = Path(os.environ.get("LPIPS_LIGHTNING_DATA", ""), "images", "Middlebury")
pytestmark = [
    # 2026-11-21, pytorch_lightning/trainer/connectors/data_connector.py: right for large data, noise for five images.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]


def warp_slowly(image, flow):
    """One value at a time: bilinear, places beyond the border moved onto it."""
    _, channels, height, width = image.shape
    out = np.empty(image.shape)
    for n, y, x in np.ndindex(len(image), height, width):
        right = min(max(x + float(flow[n, 0, y, x]), 0), width - 1)
        down = min(max(y + float(flow[n, 1, y, x]), 0), height - 1)
        left, top = int(right), int(down)
        for c in range(channels):
            corners = image[n, c, top : top + 2, left : left + 2].double().numpy()
            corners = np.pad(corners, [(0, 2 - corners.shape[0]), (0, 2 - corners.shape[1])], mode="edge")
            weights = np.outer([top + 1 - down, down - top], [left + 1 - right, right - left])
            out[n, c, y, x] = (corners * weights).sum()
    return torch.from_numpy(out)


def textured(height=64, width=96, seed=0):
    """An image of noise of several sizes, ``(1, 3, height, width)``."""
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.rand(1, 3, height // size, width // size, generator=generator) for size in (2, 4, 8)]
    layers = [torch.nn.functional.interpolate(layer, (height, width), mode="bilinear") for layer in layers]
    return sum(layers) / 3


def trained_a_little(steps=4, **options):
    """A network that is no longer the mean of the frames."""
    torch.manual_seed(0)
    network = InterpolationNetwork(**{"channels": (4, 8), "hidden": 8, "fine": 8, **options})
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        charbonnier(network(textured(), textured(seed=1)).frame, textured(seed=2)).backward()
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_warping_is_bilinear_with_border_padding(dtype):
    image, flow = torch.rand(2, 3, 7, 9, dtype=dtype), 4 * torch.randn(2, 2, 7, 9, dtype=dtype)
    assert warp(image, flow).dtype == dtype
    assert torch.allclose(warp(image, flow).double(), warp_slowly(image, flow), atol=1e-5)


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, -2), (-4, 5), (0, 0)])
def test_warping_by_whole_pixels_moves_them(right, down):
    image = torch.rand(1, 3, 20, 30)
    flow = torch.tensor([float(right), float(down)]).view(1, 2, 1, 1).expand(1, 2, 20, 30)
    moved = torch.roll(image, (-down, -right), (2, 3))
    inner = (..., slice(5, -5), slice(5, -5))
    assert torch.allclose(warp(image, flow)[inner], moved[inner], atol=1e-5)


def test_warping_has_gradients_and_one_pixel_is_enough():
    image, flow = torch.rand(1, 2, 5, 6, dtype=torch.float64), torch.rand(1, 2, 5, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(warp, (image.requires_grad_(), flow.mul(0.8).add(0.1).requires_grad_()))
    assert torch.equal(warp(torch.ones(1, 3, 1, 1), torch.full((1, 2, 1, 1), 9.0)), torch.ones(1, 3, 1, 1))


def test_a_warp_of_half_precision_is_at_least_as_exact_as_float32():
    image, flow = torch.rand(1, 3, 1, 700).bfloat16(), torch.full((1, 2, 1, 700), 0.5).bfloat16()
    assert warp(image, flow).dtype == torch.float32
    expected = (image.float()[..., 600:650] + image.float()[..., 601:651]) / 2
    assert torch.allclose(warp(image, flow)[..., 600:650], expected, atol=1e-3)


def test_matching_scores_match_slow_loops():
    first, second = torch.rand(2, 3, 5, 6), torch.rand(2, 3, 5, 6)
    scores = matching_scores(first, second, 2)
    assert scores.shape == (2, 25, 5, 6)
    expected = torch.zeros(2, 25, 5, 6)
    for place, (dy, dx) in enumerate((dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)):
        for y, x in np.ndindex(5, 6):
            if 0 <= y - dy < 5 and 0 <= x - dx < 6 and 0 <= y + dy < 5 and 0 <= x + dx < 6:
                expected[:, place, y, x] = (first[:, :, y - dy, x - dx] * second[:, :, y + dy, x + dx]).sum(1)
    assert torch.allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize(("right", "down"), [(2, 0), (0, -1), (-1, 2)])
def test_the_search_finds_half_of_the_motion(right, down):
    unit = torch.nn.functional.normalize(torch.randn(1, 16, 24, 24), dim=1)
    first, second = torch.roll(unit, (-down, -right), (2, 3)), torch.roll(unit, (down, right), (2, 3))
    found = likeliest(matching_scores(first, second, 2))[..., 6:-6, 6:-6]
    assert torch.allclose(found, torch.tensor([right, down]).float().view(1, 2, 1, 1).expand_as(found), atol=0.05)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (37, 61), (5, 3), (1, 1)])
def test_untrained_network_is_the_mean_of_both_frames(height, width):
    network = InterpolationNetwork((4, 8, 8), hidden=8, fine=8)
    first, second = torch.rand(2, 2, 3, height, width)
    made = network(first, second)
    assert made.frame.shape == (2, 3, height, width)
    assert made.flow.shape == (2, 4, height, width)
    assert torch.allclose(made.frame, (first + second) / 2, atol=1e-5)
    assert torch.equal(made.blend, torch.full((2, 1, height, width), 0.5))
    assert len(made.coarse) == 2


def test_odd_sizes_are_padded_and_cropped_back():
    network = trained_a_little()
    first, second = textured(), textured(seed=1)
    padded = [
        torch.nn.functional.pad(frame[..., :61, :90], (0, 2, 0, 3), mode="replicate") for frame in (first, second)
    ]
    odd, even = network(first[..., :61, :90], second[..., :61, :90]), network(*padded)
    assert torch.equal(odd.frame, even.frame[..., :61, :90])
    assert not torch.allclose(odd.frame, (first + second)[..., :61, :90] / 2, atol=1e-3)


def test_frames_of_a_batch_are_independent():
    network = trained_a_little()
    first, second = torch.cat([textured(), textured(seed=3)]), torch.cat([textured(seed=1), textured(seed=4)])
    together = network(first, second).frame
    alone = torch.cat([network(first[n : n + 1], second[n : n + 1]).frame for n in range(2)])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": (4,)}, r"channels: expected at least two positive numbers, got \[4\]"),
        ({"channels": (4, 0)}, r"channels: expected at least two positive numbers, got \[4, 0\]"),
        ({"hidden": 0}, "hidden: expected at least 1, got 0"),
        ({"radius": -1}, "radius: expected at least 1, got -1"),
    ],
)
def test_bad_network_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FrameInterpolation(**arguments)


def test_coarse_to_fine_search_with_full_weight_finds_a_shift():
    network = InterpolationNetwork((8, 16, 16), hidden=8, fine=8)
    for search in network.searches:
        torch.nn.init.ones_(search.head.bias[5:])
    wide = textured(64, 128)
    first, second = wide[..., 8:104], wide[..., 24:120]
    # Features of random filters and, at the coarsest level, of few pixels: nearly, and most of the way.
    right, down, left, up = network(first, second).flow[..., 16:-16, 16:-16].flatten(2).median(-1).values[0].tolist()
    assert (right, left) == pytest.approx((8, -8), abs=1.5)
    assert (down, up) == pytest.approx((0, 0), abs=1)


def test_a_known_shift_is_learned_in_a_few_steps():
    torch.manual_seed(0)
    network = InterpolationNetwork((8, 16), hidden=16, fine=8)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    wide = textured(64, 128)
    first, middle, second = wide[..., 10:106], wide[..., 14:110], wide[..., 18:114]
    inner = (..., slice(8, -8), slice(8, -8))
    before = charbonnier(network(first, second).frame[inner], middle[inner])
    for _ in range(40):
        made = network(first, second)
        loss = charbonnier(made.frame, middle)
        small = [torch.nn.functional.adaptive_avg_pool2d(middle, frame.shape[-2:]) for frame in made.coarse]
        optimizer.zero_grad()
        (loss + sum(map(charbonnier, made.coarse, small))).backward()
        optimizer.step()
    made = network(first, second)
    assert charbonnier(made.frame[inner], middle[inner]) < 0.5 * before
    # What is here in the middle was 4 pixels further right in the first frame, and is 4 further left in the second.
    assert made.flow[inner].mean((0, 2, 3)).tolist() == pytest.approx([4, 0, -4, 0], abs=1.5)


def test_interpolation_error_matches_numpy_for_any_batches():
    made, truth = torch.rand(5, 3, 9, 7), torch.rand(5, 3, 9, 7)
    difference = 255 * (made.double().numpy() - truth.double().numpy())
    expected = np.mean([math.sqrt((one**2).sum(0).mean()) for one in difference])
    error = InterpolationError()
    for part in (slice(0, 3), slice(3, 5)):
        error.update(made[part], truth[part])
    assert float(error.compute()) == pytest.approx(expected, rel=1e-6)
    assert error.total.dtype == torch.float64


@pytest.fixture
def folder(tmp_path):
    """Five images of noise, one in a folder of its own."""
    return write_noise(tmp_path / "images")


@pytest.fixture
def data(folder):
    """Three batches of training crops, two validation triplets."""
    sizes = {"crop_size": 32, "val_size": 32, "epoch_size": 6, "val_count": 2, "batch_size": 2, "max_motion": 8}
    return FrameInterpolationData(folder=str(folder), held_out=["d"], **sizes)


def trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    scores = PerceptualScores("embedded", data_range=(0, 1))
    defaults = {"max_epochs": 2, "log_every_n_steps": 1, "enable_checkpointing": False, "callbacks": [scores]}
    return Trainer(default_root_dir=tmp_path, **{**defaults, **quiet, **options})


def test_training_logs_scores_and_saves_only_the_network(tmp_path, data):
    model = FrameInterpolation(**TINY)
    fitted = trainer(tmp_path)
    fitted.fit(model, data)
    assert set(fitted.callback_metrics) == SCORES | TRAINED
    assert list(model.perceptual.parameters()) == []
    fitted.save_checkpoint(tmp_path / "saved.ckpt")
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert {key.partition(".")[0] for key in saved["state_dict"]} == {"network"}


def test_reloaded_model_is_the_same_and_needs_no_backbone(tmp_path, data):
    model = FrameInterpolation(**{**TINY, "loss_net": "vgg", "loss_weight": 0.5, "loss_calibrated": False})
    fitted = trainer(tmp_path, max_epochs=1)
    fitted.fit(model, data)
    fitted.save_checkpoint(tmp_path / "saved.ckpt")
    again = FrameInterpolation.load_from_checkpoint(tmp_path / "saved.ckpt", weights_only=True)
    frames = torch.rand(2, 1, 3, 20, 24)
    assert torch.equal(again.eval()(*frames), model.eval()(*frames))
    assert again.perceptual is None
    again.setup("fit")
    assert again.perceptual.net.net_type == "vgg"
    assert again.perceptual.weight == 0.5
    assert not again.perceptual.net.calibrated


# 2026-11-21, pytorch_lightning/callbacks/model_checkpoint.py: the second run has a folder of its own.
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_mid_epoch_resume_equals_an_uninterrupted_run(tmp_path, data):
    torch.manual_seed(0)
    start = FrameInterpolation(**{**TINY, "loss_weight": 0.0}).state_dict()
    ends = []
    for seed, path in ((1, None), (2, tmp_path / "1" / "middle.ckpt")):
        torch.manual_seed(seed)  # nothing may depend on it
        saving = [ModelCheckpoint(tmp_path / str(seed), "middle", every_n_train_steps=4, save_top_k=1)]
        model = FrameInterpolation(**{**TINY, "loss_weight": 0.0})
        model.load_state_dict(start)
        fitted = trainer(tmp_path, callbacks=saving, enable_checkpointing=True, limit_val_batches=0)
        fitted.fit(model, data, ckpt_path=path)
        assert fitted.global_step == 6
        ends.append(model.state_dict())
    assert torch.load(tmp_path / "1" / "middle.ckpt", weights_only=True)["global_step"] == 4
    assert all(torch.equal(one, two) for one, two in zip(*(end.values() for end in ends), strict=True))
    assert not torch.equal(ends[0]["network.fine.0.weight"], start["network.fine.0.weight"])


def test_learning_rate_rises_and_falls_to_zero():
    model = FrameInterpolation(**TINY, warmup_steps=3)
    model.trainer = type("Planned", (), {"estimated_stepping_batches": 10})()
    scheduler = model.configure_optimizers()["lr_scheduler"]["scheduler"]
    rates = [scheduler.lr_lambdas[0](step) for step in range(13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(one > two for one, two in itertools.pairwise(rates[3:11]))
    assert rates[10:] == pytest.approx([0, 0, 0], abs=1e-9)


def test_a_step_returns_the_mean_of_the_frames_as_its_input(tmp_path, data):
    class Keep(Callback):
        def on_test_batch_end(self, trainer, model, outputs, batch, batch_idx, dataloader_idx=0):
            first, second, middle, _ = batch
            assert torch.equal(outputs["input"], (first + second) / 2)
            assert torch.equal(outputs["preds"], model.network(first, second).frame.clamp(0, 1))
            assert torch.equal(outputs["target"], middle)
            self.seen = True

    model, keep = FrameInterpolation(**TINY), Keep()
    model.network = trained_a_little()
    trainer(tmp_path, callbacks=[keep]).test(model, data, verbose=False)
    assert keep.seen


def test_untrained_validation_is_that_of_the_mean(tmp_path, data):
    (scores,) = trainer(tmp_path).validate(FrameInterpolation(**TINY), data, verbose=False)
    assert set(scores) == SCORES
    lpips, error = LPIPS("embedded"), InterpolationError()
    triplets = [data.val_data[number] for number in range(2)]
    means = torch.stack([(first + second) / 2 for first, second, _, _ in triplets])
    truth = torch.stack([middle for _, _, middle, _ in triplets])
    error.update(means, truth)
    assert scores["val/interpolation_error"] == pytest.approx(float(error.compute()), rel=1e-4)
    assert scores["val/lpips"] == pytest.approx(float(lpips(means, truth, data_range=(0, 1)).mean()), rel=1e-3)


def test_each_part_of_the_loss_counts_by_its_weight(data):
    frames = torch.rand(3, 1, 3, 32, 32)
    torch.manual_seed(0)
    model = FrameInterpolation(**TINY, pixel_weight=2.0, coarse_weight=3.0, loss_weight=0.5)
    model.setup("fit")
    losses = model.losses(*frames)
    assert set(losses) == TRAINED
    total = 2 * losses["train/charbonnier"] + 3 * losses["train/coarse"] + losses["train/perceptual"]
    assert torch.allclose(losses["train/loss"], total)
    model.perceptual.weight = 0.0
    assert set(model.losses(*frames)) == TRAINED - {"train/perceptual"}


def clip(folder, names=("f9", "f10", "f11"), size=(40, 56)):
    return write_noise(folder, names, *size)


def test_prediction_doubles_a_clip(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip(tmp_path / "clips" / "one")
    clip(tmp_path / "clips" / "two", ("a_001", "a_002"))
    small = "--trainer.accelerator=cpu --trainer.enable_progress_bar=false --trainer.logger=false"
    model = "--model.channels=[4,4] --model.hidden=4 --model.fine=4"
    main(["predict", "--data.predict_folder=clips", "--images.out=between", *f"{small} {model}".split()])
    written = {path.relative_to(tmp_path / "between").as_posix() for path in (tmp_path / "between").rglob("*.png")}
    assert written == {"one/f9_5.png", "one/f10_5.png", "two/a_001_5.png"}
    made = read_image("between/one/f9_5.png").float()
    first, second = (read_image(f"clips/one/{name}.png").float() for name in ("f9", "f10"))
    assert (made - (first + second) / 2).abs().max() <= 0.51  # of a network that nobody trained
    with Image.open("between/two/a_001_5.png") as image:
        assert image.size == (56, 40)


def test_a_wrong_value_is_one_line_with_its_option(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--data.crop_size=x"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "lpips-lightning: --data.crop_size: expected an integer, got 'x'\n"


@pytest.mark.skipif(
    not MIDDLEBURY.is_dir(), reason="LPIPS_LIGHTNING_DATA does not name a folder with images/Middlebury"
)
def test_middlebury_without_training_is_the_mean_of_the_frames(tmp_path):
    data = FrameInterpolationData(val_layout="middlebury", val_folder=str(MIDDLEBURY))
    scores = PerceptualScores("embedded", data_range=(0, 1), table=True)
    (found,) = trainer(tmp_path, callbacks=[scores]).test(FrameInterpolation(**TINY), data, verbose=False)
    assert found["test/interpolation_error"] == pytest.approx((5.131 + 20.475 + 38.004) / 3, abs=0.01)
    assert 0.05 < found["test/lpips"] < 0.2
