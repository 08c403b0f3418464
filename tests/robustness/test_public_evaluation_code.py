"""Evaluation code of public repositories, in own words: with the import changed it gives the peers' numbers."""

from __future__ import annotations

import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from public_code import AutoEncoder, Comparison, images, packages
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchvision.transforms.functional import normalize, to_tensor
from tqdm import tqdm

from lpips_lightning.functional.lpips import learned_perceptual_image_patch_similarity


@pytest.fixture(scope="module")
def same(backbones, tmp_path_factory):
    return Comparison(*packages(backbones, tmp_path_factory.mktemp("backbones")))


def renders(count=3, size=48):
    """Renders and ground truth as a rasterizer gives them: ``(H, W, 3)`` on [0, 1]."""
    gt = images(count, size, low=0.0)
    return F.avg_pool2d(gt, 3, 1, 1).permute(0, 2, 3, 1), gt.permute(0, 2, 3, 1)


class NerfModel(nn.Module):
    """nerfstudio's: metrics in the model, images with the channels first, one at a time."""

    def __init__(self, metrics):
        super().__init__()
        self.field = nn.Linear(3, 3)
        self.psnr = PeakSignalNoiseRatio(data_range=1.0)
        self.ssim = StructuralSimilarityIndexMeasure(data_range=1.0)
        self.lpips = metrics.LearnedPerceptualImagePatchSimilarity(normalize=True)

    @torch.no_grad()
    def get_image_metrics(self, rgb, gt):
        gt, rgb = (torch.moveaxis(image, -1, 0)[None, ...] for image in (gt, rgb))
        found = {"psnr": self.psnr(gt, rgb).item(), "ssim": float(self.ssim(gt, rgb))}
        return {**found, "lpips": float(self.lpips(gt, rgb))}


def nerfstudio(metrics):
    model = NerfModel(metrics).to(torch.device("cpu")).eval()
    each = [model.get_image_metrics(rgb, gt) for rgb, gt in zip(*renders(), strict=True)]
    mean = {key: torch.mean(torch.tensor([one[key] for one in each])) for key in each[0]}
    return each, mean, model.lpips.compute()


def test_nerfstudio_metrics(same):
    same(nerfstudio)


# What this code calls vgg on purpose takes [0, 1] as if it were [-1, 1], as 3DGS itself does.
@pytest.mark.filterwarnings("ignore:.*expected values on .* got none below 0")
@pytest.mark.parametrize(("net", "normalize_images"), [("alex", True), ("vgg", False)])
def test_gsplat_simple_trainer(same, net, normalize_images):
    def evaluate(metrics):
        lpips = metrics.LearnedPerceptualImagePatchSimilarity(net_type=net, normalize=normalize_images).to("cpu")
        psnr, stats = PeakSignalNoiseRatio(data_range=1.0), {"psnr": [], "lpips": []}
        for colors, pixels in zip(*renders(), strict=True):
            pixels_p = pixels[None].permute(0, 3, 1, 2)
            colors_p = torch.clamp(colors[None], 0.0, 1.0).permute(0, 3, 1, 2)
            stats["psnr"].append(psnr(colors_p, pixels_p))
            stats["lpips"].append(lpips(colors_p, pixels_p))
        return {name: torch.stack(values).mean().item() for name, values in stats.items()}

    same(evaluate)


# The warning is right: this code takes images on [0, 1] as if they were on [-1, 1].
@pytest.mark.filterwarnings("ignore:.*expected values on .* got none below 0")
def test_3dgs_metrics_script(backbones, same):
    """``lpips(render, gt, net_type="vgg")`` of images on [0, 1], a scalar each, in a list that becomes a tensor."""
    render, gt = (x.permute(0, 3, 1, 2) for x in renders())
    theirs = same.theirs.LPIPS(net="vgg")

    def old(x, y, net_type):
        return theirs(x, y).mean()

    def new(x, y, net_type):
        return learned_perceptual_image_patch_similarity(x, y, net_type, weights=backbones["vgg"])

    pairs = list(zip(render.split(1), gt.split(1), strict=True))
    found, expected = (
        torch.tensor([lpips(x[:, :3], y[:, :3], net_type="vgg") for x, y in pairs]) for lpips in (new, old)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.fixture
def folders(tmp_path):
    """Restored images and ground truth as PNG files."""
    for name, batch in zip(("restored", "gt"), renders(), strict=True):
        (tmp_path / name).mkdir()
        for number, image in enumerate(batch):
            pixels = Image.fromarray((image * 255).round().to(torch.uint8).numpy())
            pixels.save(tmp_path / name / f"{number:03}.png")
    return tmp_path


def read_bgr(path):
    """OpenCV's order, float32 on [0, 1]."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))[..., ::-1].astype(np.float32) / 255.0


def basicsr(lpips, folder):
    loss_fn_vgg, lpips_all = lpips.LPIPS(net="vgg"), []
    names = sorted(path.name for path in (folder / "gt").glob("*"))
    for name in tqdm(names, disable=True):
        pair = []
        for part in ("restored", "gt"):
            bgr = read_bgr(folder / part / name)
            image = torch.from_numpy(np.ascontiguousarray(bgr[..., ::-1].transpose(2, 0, 1)))
            normalize(image, [0.5] * 3, [0.5] * 3, inplace=True)
            pair.append(image.unsqueeze(0))
        lpips_all.append(loss_fn_vgg(*pair).cpu().numpy()[0, 0, 0, 0])
    return [*lpips_all, sum(lpips_all) / len(lpips_all)]


def test_basicsr_calculate_lpips_over_folders(same, folders):
    torch.set_grad_enabled(False)
    try:
        assert len(same(basicsr, folders)) == 4
    finally:
        torch.set_grad_enabled(True)


class Pairs(Dataset):
    """Measures in the worker, as evaluation code does that has no GPU."""

    def __init__(self, folder, loss_fn=None):
        self.folder, self.loss_fn = folder, loss_fn

    def __len__(self):
        return 3

    def __getitem__(self, number):
        pair = []
        for part in ("restored", "gt"):
            with Image.open(self.folder / part / f"{number:03}.png") as image:
                pair.append(to_tensor(image.convert("RGB")))
        if self.loss_fn is None:
            return pair
        with torch.no_grad():
            return float(self.loss_fn(pair[0][None], pair[1][None], normalize=True))


def total_by_average(lpips, folder):
    """Batches of a loader, summed with their sizes, then divided."""
    loss_fn = lpips.LPIPS(net="alex").eval()
    if torch.cuda.is_available():
        loss_fn.cuda()
    total, count = 0.0, 0
    with torch.inference_mode():
        for x, y in DataLoader(Pairs(folder), batch_size=2):
            distance = loss_fn(x * 2 - 1, y * 2 - 1).squeeze()
            total += distance.mean().item() * x.size(0)
            count += x.size(0)
    return total / count


def test_loader_average(same, folders):
    same(total_by_average, folders)


# 2026-11-28, torch.utils.data: fewer cores than workers; Python 3.12 and later warn of fork beside threads.
@pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*fork")
def test_measured_in_the_workers_of_a_loader(same, folders):
    expected = [Pairs(folders, same.theirs.LPIPS(net="alex"))[number] for number in range(3)]
    loader = DataLoader(
        Pairs(folders, same.ours.LPIPS(net="alex")), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    np.testing.assert_allclose(list(loader), expected, rtol=1e-5)


def test_a_server_measures_in_threads(same):
    """One module, several requests at a time."""
    loss_fn, theirs = same.ours.LPIPS(net="squeeze"), same.theirs.LPIPS(net="squeeze")
    pairs = [
        (images(1, size, seed=size), images(1, size, seed=size + 1)) for size in (32, 40, 48, 56) for _ in range(3)
    ]
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: loss_fn(*pair).item(), pairs))
        expected = [theirs(*pair).item() for pair in pairs]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def interpolation(lpips):
    """FILM's and RIFE's: frames in numpy, ``(H, W, 3)`` uint8, padded, one score a triplet, and a CSV line."""
    loss_fn, rows = lpips.LPIPS(net="alex", version="0.1"), []
    clip = (images(4, 40, low=0.0) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for first, truth, last in zip(clip, clip[1:], clip[2:], strict=False):
        middle = ((first.astype(np.float32) + last) / 2).round().astype(np.uint8)
        pair = [torch.tensor(x.transpose(2, 0, 1)[None] / 255.0).float() for x in (middle, truth)]
        pair = [F.pad(x, (0, 8, 0, 8), mode="replicate") for x in pair]
        distance = loss_fn(*(x * 2 - 1 for x in pair)).detach().cpu().numpy()
        rows.append(float(distance.squeeze()))
        assert float(f"{distance.item():.4f}") == pytest.approx(rows[-1], abs=5e-5)
    return [*rows, np.mean(rows)]


def test_frame_interpolation_evaluation(same):
    same(interpolation)


CALLS = {
    "positional": lambda loss_fn, x, y: loss_fn(x, y, False, True),
    "in0 and in1": lambda loss_fn, x, y: loss_fn(in0=x, in1=y, normalize=True),
    "retPerLayer": lambda loss_fn, x, y: loss_fn(x, y, retPerLayer=True, normalize=True)[1],
    "forward": lambda loss_fn, x, y: loss_fn.forward(2 * x - 1, 2 * y - 1),
    "no images": lambda loss_fn, x, y: loss_fn(x[:0], y[:0]),
    "an image against itself": lambda loss_fn, x, y: loss_fn(x, x, normalize=True),
    "not contiguous": lambda loss_fn, x, y: loss_fn(
        *(z.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for z in (x, y))
    ),
    "expanded": lambda loss_fn, x, y: loss_fn(x, y[:1].expand(2, -1, -1, -1), normalize=True),
    "sliced": lambda loss_fn, x, y: loss_fn(x[..., 3:40, 5:41], y[..., 3:40, 5:41], normalize=True),
    "numpy": lambda loss_fn, x, y: loss_fn(x, y, normalize=True).detach().cpu().numpy().flatten(),
    "float64": lambda loss_fn, x, y: loss_fn.double()(x.double(), y.double(), normalize=True),
    "moved and cast": lambda loss_fn, x, y: loss_fn.to("cpu", torch.float32, non_blocking=True)(x, y, normalize=True),
    "channels last": lambda loss_fn, x, y: loss_fn.to(memory_format=torch.channels_last)(x, y, normalize=True),
    "sum of the batch": lambda loss_fn, x, y: torch.sum(loss_fn(x, y, normalize=True)) / x.shape[0],
}


@pytest.mark.filterwarnings("ignore:.*expected values on .* got none below 0")
@pytest.mark.parametrize("net", ["alex", "squeeze"])
@pytest.mark.parametrize("call", CALLS)
def test_ways_to_call(same, call, net):
    x, y = images(low=0.0), images(low=0.0, seed=1)
    same(lambda lpips: CALLS[call](lpips.LPIPS(net=net, verbose=False).eval(), x, y))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_model_and_images(same, dtype):
    """Theirs rounds in every layer; ours, which stays float32, is as close as that allows."""
    x, y = images().to(dtype), images(seed=1).to(dtype)
    same(lambda lpips: lpips.LPIPS(net="alex").to(dtype).eval()(x, y).float(), tolerance=8 * torch.finfo(dtype).eps)


def test_an_empty_batch_adds_no_gradient(same):
    def step(lpips):
        network, x = nn.Conv2d(3, 3, 1), images()[:0]
        lpips.LPIPS(net="alex")(network(x), x).sum().backward()
        return network.weight.grad + 1

    same(step)


def video_metrics(lpips):
    """Clips ``(B, T, C, H, W)`` a frame at a time, the mean over time by clip."""
    loss_fn, x, y = lpips.LPIPS(net="alex"), images(6).view(2, 3, 3, 48, 48), images(6, seed=1).view(2, 3, 3, 48, 48)
    by_clip = []
    for clip_x, clip_y in zip(x, y, strict=True):
        frames = zip(clip_x, clip_y, strict=True)
        each = [loss_fn(a.unsqueeze(0), b.unsqueeze(0)).mean().detach().cpu().item() for a, b in frames]
        by_clip.append(np.mean(each))
    return by_clip


def test_video_frame_by_frame(same):
    same(video_metrics)


def gray_images(lpips):
    """Magnetic resonance images: one channel, scaled to its own range, repeated."""
    loss_fn, scans = lpips.LPIPS(net="alex"), images().mean(1, keepdim=True)
    smallest, largest = scans.amin((2, 3), keepdim=True), scans.amax((2, 3), keepdim=True)
    target = 2 * (scans - smallest) / (largest - smallest) - 1
    prediction = F.avg_pool2d(target, 3, 1, 1)
    return loss_fn(prediction.repeat(1, 3, 1, 1), target.expand(-1, 3, -1, -1)).view(-1)


def test_gray_images_repeated(same):
    same(gray_images)


def metric_as_a_loss(metrics, of_network):
    """torchmetrics' class, or the network in it, as the loss of a VAE; the network ends in a tanh."""
    model, x, log = AutoEncoder(), images(), []
    metric = metrics.LearnedPerceptualImagePatchSimilarity(net_type="alex")
    for parameter in metric.parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(3):
        prediction = torch.tanh(model(x))
        distance = metric.net(prediction, x).mean() if of_network else metric(prediction, x)
        loss = F.mse_loss(prediction, x) + distance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log.append(loss)
    return log


@pytest.mark.parametrize("of_network", [False, True])
def test_torchmetrics_class_as_a_loss(same, of_network):
    log = same.training(metric_as_a_loss, of_network)
    assert log[-1] < log[0]


class Restoration(pl.LightningModule):
    """A collection of metrics by stage, logged as objects; reset by Lightning."""

    def __init__(self, metrics):
        super().__init__()
        self.network = nn.Conv2d(3, 3, 3, padding=1)
        every = {
            "psnr": PeakSignalNoiseRatio(data_range=1.0),
            "lpips": metrics.LearnedPerceptualImagePatchSimilarity("squeeze", normalize=True),
            "lpips_sum": metrics.LearnedPerceptualImagePatchSimilarity("squeeze", "sum", True),
        }
        self.train_metrics = MetricCollection(dict(every), prefix="train/")
        self.val_metrics = self.train_metrics.clone(prefix="val/")

    def forward(self, x):
        return torch.sigmoid(self.network(x))

    def training_step(self, batch, batch_idx):
        prediction = self(batch[0])
        self.log_dict(self.train_metrics(prediction.detach(), batch[1]), on_step=True, on_epoch=False)
        return F.mse_loss(prediction, batch[1])

    def validation_step(self, batch, batch_idx):
        self.val_metrics.update(self(batch[0]), batch[1])

    def on_validation_epoch_end(self):
        self.log_dict(self.val_metrics.compute())
        self.val_metrics.reset()

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), lr=0.1)


# pytorch-lightning's advice on loaders, and on torchmetrics' network, which is a part of the model.
@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*in eval mode at the start of training")
def test_collection_in_a_lightning_module(same, tmp_path):
    def fit(metrics):
        x, y = renders()
        data = list(zip(x.permute(0, 3, 1, 2), y.permute(0, 3, 1, 2), strict=True))
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 2}
        trainer = pl.Trainer(**options, accelerator="cpu", enable_model_summary=False, log_every_n_steps=1)
        trainer.fit(Restoration(metrics), DataLoader(data, 2), DataLoader(data, 2))
        return {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}

    assert len(same(fit, tolerance=1e-4)) == 6


class OneChannel:
    """Made a subclass of either package's class: repeats its one channel, always to [0, 1]."""

    def __init__(self, **options):
        super().__init__(**options)
        for parameter in self.parameters():
            parameter.requires_grad = False
        self.eval()

    def forward(self, in0, in1, normalize=True, **options):
        in0, in1 = (x.view(-1, 1, *x.shape[2:]).repeat(1, 3, 1, 1) for x in (in0, in1))
        return super().forward(in0, in1, normalize=normalize, **options)


def test_a_subclass_with_its_own_forward(same, backbones, tmp_path):
    import lpips

    from lpips_lightning import compat

    x, y = (images(low=0.0, seed=seed)[:, :1] for seed in (0, 1))
    theirs = types.new_class("OneChannelLPIPS", (OneChannel, lpips.LPIPS))
    ours = types.new_class("OneChannelLPIPS", (OneChannel, compat.LPIPS))
    old = theirs.__new__(theirs)
    old.__dict__ = same.theirs.LPIPS(net="alex").__dict__
    new = ours(net="alex", weights=same.ours.LPIPS.keywords["weights"])
    torch.testing.assert_close(new(x, y), old(x, y), rtol=1e-5, atol=0)
