"""Training loops of public repositories, in own words: with the import changed they give the numbers of `lpips`."""

from __future__ import annotations

import copy
import functools
import itertools
import types
from contextlib import nullcontext

import pytest
import pytorch_lightning as pl
import torch
from public_code import KINKS, AutoEncoder, Comparison, critic, images, packages, with_loss
from references import relative_distance
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

BF16 = 0.05  # eight bits, in every layer


@pytest.fixture(scope="module")
def same(backbones, tmp_path_factory):
    return Comparison(*packages(backbones, tmp_path_factory.mktemp("backbones")))


@pytest.fixture(params=["compat", "loss"])
def either(same, request):
    """The import changed, or the loop rewritten with `PerceptualLoss`."""
    return same if request.param == "compat" else with_loss(same, same.ours.LPIPS.keywords["weights"])


class LPIPSWithDiscriminator(nn.Module):
    """The loss of VQGAN and, with a learned variance, of latent diffusion's KL autoencoder."""

    def __init__(self, lpips, learned_variance):
        super().__init__()
        self.perceptual_loss = lpips.LPIPS(net="vgg").eval()
        self.discriminator = critic()
        self.logvar = nn.Parameter(torch.zeros(()), requires_grad=learned_variance)
        self.learned_variance = learned_variance

    def reconstruction(self, inputs, reconstructions):
        p_loss = self.perceptual_loss(inputs.contiguous(), reconstructions.contiguous())
        each = (inputs.contiguous() - reconstructions.contiguous()).abs() + p_loss  # (N, 1, 1, 1) over all pixels
        if not self.learned_variance:
            return each.mean()
        return (each / self.logvar.exp() + self.logvar).sum() / len(each)

    def generator(self, inputs, reconstructions, last_layer):
        nll = self.reconstruction(inputs, reconstructions)
        adversarial = -self.discriminator(reconstructions.contiguous()).mean()
        norms = [torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm() for loss in (nll, adversarial)]
        weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
        return nll + 0.8 * weight * adversarial, nll, weight

    def critic(self, inputs, reconstructions):
        real, fake = (self.discriminator(x.contiguous().detach()) for x in (inputs, reconstructions))
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def autoencoder_with_discriminator(lpips, learned_variance):
    model, x = AutoEncoder(), images(size=32)
    loss = LPIPSWithDiscriminator(lpips, learned_variance)
    learned = [*model.parameters(), loss.logvar] if learned_variance else list(model.parameters())
    optimizers = [torch.optim.Adam(p, lr=1e-3, betas=(0.5, 0.9)) for p in (learned, loss.discriminator.parameters())]
    log = []
    for _ in range(3):
        mean, logvar = model.encode(x)
        reconstructions = model.decode(mean + (0.5 * logvar).exp() * torch.randn_like(mean))
        total, nll, weight = loss.generator(x, reconstructions, model.conv_out.weight)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum() / len(x)
        optimizers[0].zero_grad()
        (total + 1e-6 * kl).backward()
        optimizers[0].step()
        optimizers[1].zero_grad(set_to_none=True)
        found = loss.critic(x, reconstructions)
        found.backward()
        optimizers[1].step()
        log.append({"loss": nll, "critic": found, "weight of gradients": weight})
    return log


@pytest.mark.parametrize("learned_variance", [False, True], ids=["taming-transformers", "latent-diffusion"])
def test_autoencoder_with_discriminator_and_adaptive_weight(either, learned_variance):
    log = either.training(autoencoder_with_discriminator, learned_variance)
    assert log[-1]["loss"] < log[0]["loss"]


class AutoencoderKL(pl.LightningModule):
    """The same loop as a LightningModule with two optimizers by hand, which holds the loss and its discriminator."""

    def __init__(self, lpips):
        super().__init__()
        self.automatic_optimization = False
        self.network = AutoEncoder()
        self.loss = LPIPSWithDiscriminator(lpips, learned_variance=True)
        self.seen = []

    def training_step(self, batch, batch_idx):
        for optimizer, part in zip(self.optimizers(), ("generator", "critic"), strict=True):
            self.toggle_optimizer(optimizer)
            reconstructions = self.network(batch)
            if part == "generator":
                total, nll, _ = self.loss.generator(batch, reconstructions, self.network.conv_out.weight)
                self.seen.append(nll.detach())
            else:
                total = self.loss.critic(batch, reconstructions)
            self.log(f"train/{part}", total, prog_bar=True)
            optimizer.zero_grad()
            self.manual_backward(total)
            self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    @torch.no_grad()
    def validation_step(self, batch, batch_idx):
        self.log("val/rec", self.loss.perceptual_loss(batch, self.network(batch)).mean())

    def configure_optimizers(self):
        learned = [*self.network.parameters(), self.loss.logvar]
        return [torch.optim.Adam(p, lr=1e-3) for p in (learned, self.loss.discriminator.parameters())]


# The validation of an untrained network; pytorch-lightning's advice on loaders; torchmetrics' network is in eval mode.
@pytest.mark.filterwarnings(
    "ignore:in1. expected values on", "ignore:.*does not have many workers", "ignore:.*in eval mode at the start"
)
@pytest.mark.parametrize("precision", ["32-true", pytest.param("bf16-mixed", marks=pytest.mark.slow)])
def test_latent_diffusion_as_a_lightning_module(same, precision):
    def train(lpips):
        module, loader = AutoencoderKL(lpips), DataLoader(images(4, 32), batch_size=2)
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = pl.Trainer(
            max_epochs=2, precision=precision, accelerator="cpu", enable_model_summary=False, **options
        )
        trainer.fit(module, loader, loader)
        return [*module.seen, trainer.callback_metrics["val/rec"]]

    rounding = {"first": BF16, "later": BF16} if precision == "bf16-mixed" else {}
    same.training(train, **rounding)


class AcceleratorLike:
    """What accelerate does to a model: an autocast forward in place, whose outputs are float32 again."""

    def __init__(self, dtype, steps):
        self.dtype, self.steps, self.seen = dtype, steps, 0

    def prepare(self, *models):
        for model in models:
            model._original_forward = model.forward
            forward = torch.autocast("cpu", self.dtype, enabled=self.dtype is not None)(model.forward.__func__)

            def as_float(self, *args, _forward=forward, **kwargs):
                return _forward(self, *args, **kwargs).float()

            model.forward = types.MethodType(as_float, model)
        return models

    def backward(self, loss):
        self.seen += 1
        (loss / self.steps).backward()

    @property
    def sync_gradients(self):
        return self.seen % self.steps == 0


def diffusers_vae(lpips, dtype, frozen):
    accelerator = AcceleratorLike(dtype, steps=2)
    vae, loss_fn = accelerator.prepare(AutoEncoder(), lpips.LPIPS(net="alex").eval())
    loss_fn.requires_grad_(False)
    optimizer, log = torch.optim.AdamW(vae.parameters(), lr=2e-3), []
    for step in range(4):
        targets = images(seed=step % 2)
        reconstructions = vae(targets)
        with torch.no_grad() if frozen else nullcontext():
            p_loss = loss_fn(reconstructions, targets)
        rec_loss = F.mse_loss(reconstructions.float(), targets.float(), reduction="none") + 0.5 * p_loss
        loss = rec_loss.sum() / len(rec_loss)
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            nn.utils.clip_grad_norm_(itertools.chain(vae.parameters()), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        log.append(loss)
    return log


# Without a gradient a prediction of an untrained network is only known by the target beside it.
@pytest.mark.filterwarnings("ignore:in0. expected values on")
@pytest.mark.parametrize("frozen", [False, True], ids=["gradient", "no_grad"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_vae_script_with_accelerate(same, dtype, frozen):
    rounding = {"first": BF16, "later": BF16} if dtype else {}
    log = same.training(diffusers_vae, dtype, frozen, **rounding)
    assert log[2] < log[0] and log[3] < log[1]


LOSSES = {}


def register(cls):
    LOSSES[cls.__name__] = cls
    return cls


@register
class LPIPSLoss(nn.Module):
    """BasicSR's and CodeFormer's wrapper: a registered loss built from a YAML's options."""

    def __init__(self, lpips, loss_weight=1.0, use_input_norm=True, range_norm=False):
        super().__init__()
        self.perceptual = lpips.LPIPS(net="vgg", spatial=False).eval()
        self.loss_weight, self.use_input_norm, self.range_norm = loss_weight, use_input_norm, range_norm
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, pred, target):
        if self.range_norm:
            pred, target = (pred + 1) / 2, (target + 1) / 2
        if self.use_input_norm:
            pred, target = ((x - self.mean) / self.std for x in (pred, target))
        return self.perceptual(target.contiguous(), pred.contiguous()).mean() * self.loss_weight


def registered_loss(lpips, options, low):
    options = dict(options)
    network = nn.Conv2d(3, 3, 5, padding=2)
    criterion = LOSSES[options.pop("type")](lpips, **options)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    target, log = images(size=32, low=low), []
    for _ in range(3):
        optimizer.zero_grad()
        loss = criterion(network(F.avg_pool2d(target, 5, 1, 2)), target)
        loss.backward()
        optimizer.step()
        log.append(loss)
    return log


# Images on [0, 1] where the package wants [-1, 1], and targets beyond both.
@pytest.mark.filterwarnings("ignore:in[01]. (declared|expected values) on")
@pytest.mark.parametrize(("range_norm", "low"), [(False, 0.0), (True, -1.0)])
@pytest.mark.parametrize("use_input_norm", [False, True])
def test_registered_loss_of_images_normalized_as_imagenet(same, use_input_norm, range_norm, low):
    """With ``use_input_norm`` predictions and targets reach 2.6."""
    options = {"type": "LPIPSLoss", "loss_weight": 0.1, "use_input_norm": use_input_norm, "range_norm": range_norm}
    log = same.training(registered_loss, options, low)
    assert log[-1] < log[0]


def consistency_distillation(lpips):
    """The student's sample against its EMA's, enlarged to 224 pixels, weighted by the noise level."""
    student = AutoEncoder()
    target_model = copy.deepcopy(student).requires_grad_(False)
    loss_fn = lpips.LPIPS(net="alex")
    optimizer, x, log = torch.optim.RAdam(student.parameters(), lr=1e-3), images(size=32), []
    for _ in range(3):
        sigma = torch.rand(len(x)) + 0.1
        noise = torch.randn_like(x)
        distiller = student(x + noise * sigma.view(-1, 1, 1, 1))
        with torch.no_grad():
            distiller_target = target_model(x + 0.5 * noise * sigma.view(-1, 1, 1, 1)).clamp(-1, 1)
        large = (F.interpolate(one, size=224, mode="bilinear") for one in (distiller, distiller_target))
        loss = (loss_fn(*large).flatten() / sigma**2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for ema, new in zip(target_model.parameters(), student.parameters(), strict=True):
                ema.lerp_(new, 0.05)
        log.append(loss)
    return log


def test_consistency_distillation(either):
    either.training(consistency_distillation)


def pivotal_tuning(lpips):
    """A latent of a frozen generator, then the generator, until the distance is below a threshold."""
    generator, loss_fn = AutoEncoder(), lpips.LPIPS(net="alex").to(torch.device("cpu")).eval()
    original, real, log = copy.deepcopy(generator).eval().requires_grad_(False), images(1), []
    w = torch.zeros(1, 16, 24, 24, requires_grad=True)
    for learned, network, lr in (([w], original, 0.1), (generator.parameters(), generator, 3e-3)):
        optimizer = torch.optim.Adam(learned, betas=(0.9, 0.999), lr=lr)
        for _ in range(3):
            synthesized = network.decode(w)
            distance = torch.squeeze(loss_fn(synthesized, real))
            loss = distance + F.mse_loss(synthesized, real)
            if distance <= 0.01:
                break
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            log.append(loss)
        w = w.detach()
    return log


def test_inversion_and_pivotal_tuning(either):
    log = either.training(pivotal_tuning)
    assert len(log) == 6 and log[2] < log[0] and log[5] < log[3]


def multiscale(lpips):
    """Levels of half the size; noise outside the mask, on both images, so that black does not count."""
    loss_fn, y = lpips.LPIPS(net="alex", verbose=False), images(1, 64, low=0.0)
    x = nn.Parameter(images(1, 64, seed=1, low=0.0))
    mask, log = torch.zeros(1, 1, 64, 64), []
    mask[..., 16:] = 1
    optimizer = torch.optim.Adam([x], lr=0.02)
    for _ in range(3):
        losses, x_i, y_i, mask_i = [], x, y, mask
        while y_i.shape[-1] > 16:
            noise = (torch.randn_like(x_i) + 0.5) / 2 * (1 - mask_i)
            losses.append(loss_fn(x_i * mask_i + noise, y_i * mask_i + noise, normalize=True).mean())
            x_i, y_i, mask_i = (F.avg_pool2d(one, 2) for one in (x_i, y_i, mask_i))
        loss = torch.stack(losses).sum() + 0.1 * F.l1_loss(x_i, y_i)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log.append(loss)
    return log


@pytest.mark.filterwarnings("ignore:in[01]. expected values on")  # the noise takes targets off the range too
def test_multiscale_with_noise_outside_a_mask(same):
    log = same.training(multiscale)
    assert log[-1] < log[0]


def optimize_an_image(lpips, optimizer_type):
    """The pixels themselves; kept on the range after every step."""
    loss_fn, target = lpips.LPIPS(net="alex").eval(), images(1)
    image = nn.Parameter(images(1, seed=1))
    lbfgs = optimizer_type is torch.optim.LBFGS
    options = {"max_iter": 3, "line_search_fn": "strong_wolfe"} if lbfgs else {"lr": 0.02}
    optimizer, log = optimizer_type([image], **options), []

    def closure():
        optimizer.zero_grad()
        loss = loss_fn.forward(image, target).mean() + 0.1 * (image - target).abs().mean()
        loss.backward()
        return loss

    for _ in range(3):
        log.append(optimizer.step(closure))
        image.data.clamp_(-1, 1)
    return log


@pytest.mark.parametrize("optimizer_type", [torch.optim.Adam, torch.optim.SGD, torch.optim.LBFGS])
def test_an_image_is_optimized(either, optimizer_type):
    # A line search multiplies what its first step differs by.
    log = either.training(
        optimize_an_image, optimizer_type, later=KINKS if optimizer_type is torch.optim.LBFGS else 1e-3
    )
    assert log[-1] < log[0]


def attack(lpips):
    """Projected gradient ascent on the distance, by autograd.grad of a sum."""
    loss_fn, x = lpips.LPIPS(net="squeeze"), images(3)
    delta = torch.zeros_like(x).uniform_(-8 / 255, 8 / 255)
    log = []
    for _ in range(3):
        delta.requires_grad_(True)
        distance = loss_fn((x + delta).clamp(-1, 1), x).view(-1)
        (gradient,) = torch.autograd.grad(distance.sum(), delta)
        size = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        delta = (delta + 2 * gradient / size).clamp(-8 / 255, 8 / 255).detach()
        log.append(distance)
    return log


def test_adversarial_perturbation(either):
    log = either.training(attack, first=1e-3, later=KINKS)  # close images: float32's rounding over a small distance
    assert (log[-1] > log[0]).all()


def rate_distortion(lpips):
    """A codec: bits, MSE on 8 bits and distance, an auxiliary optimizer, clipped gradients."""
    model, loss_fn = AutoEncoder(), lpips.LPIPS(net="alex").requires_grad_(False)
    scale = nn.Parameter(torch.zeros(16, 1, 1))
    optimizers = [torch.optim.Adam(model.parameters(), lr=2e-3), torch.optim.Adam([scale], lr=1e-3)]
    x, log = images(low=0.0), []
    for _ in range(4):
        z = model.encode(x)[0]
        noisy = z + torch.rand_like(z) - 0.5
        bits = (noisy.pow(2) * scale.neg().exp() + scale).mean()
        x_hat = model.decode(noisy)
        distance = loss_fn(x_hat, x, normalize=True).mean()
        loss = 1e-4 * 255**2 * F.mse_loss(x_hat, x) + distance + 0.01 * bits
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        for optimizer in optimizers:
            optimizer.step()
        log.append((loss, distance))
    return log


def test_rate_distortion_loop(either):
    log = either.training(rate_distortion)
    assert log[-1][0] < log[0][0]


def scaled(lpips):
    """fp16 with a scale that is far too large first; a step without finite gradients is skipped."""
    model, loss_fn, x = AutoEncoder(), lpips.LPIPS(net="alex"), images()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.05), torch.amp.GradScaler("cpu", init_scale=2.0**20)
    log = []
    for _ in range(10):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            reconstructions = model(x)
            loss = (reconstructions.float() - x).abs().mean()
        loss = loss + loss_fn(reconstructions.float(), x).mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        log.append({"loss": loss, "scale": scaler.get_scale()})
    return log


def test_grad_scaler_skips_what_overflows(either):
    log = either.training(scaled, later=5e-3)  # the network's own rounding in fp16
    assert log[0]["scale"] < 2.0**20 and log[-1]["scale"] > 1
    assert log[-1]["loss"] < log[0]["loss"]


def nan_step(lpips):
    """A batch whose prediction is not finite is left out by its loss."""
    model, loss_fn, x = AutoEncoder(), lpips.LPIPS(net="alex"), images()
    optimizer, log = torch.optim.SGD(model.parameters(), lr=0.05), []
    for step in range(4):
        prediction = model(x) * (float("nan") if step == 1 else float("inf") if step == 2 else 1)
        loss = loss_fn(prediction, x).mean()
        log.append(loss)
        optimizer.zero_grad()
        if torch.isfinite(loss):
            loss.backward()
            optimizer.step()
    return log


def test_a_step_that_is_not_finite_is_skipped(either):
    log = either.training(nan_step)
    assert log[3] < log[0]
    assert not log[1].isfinite() and not log[2].isfinite()


def gradient_of(loss, model):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.filterwarnings("ignore:in0. expected values on")  # a reentrant checkpoint takes the gradient away
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("around", ["decoder", "loss", "both"])
def test_checkpointed_parts_give_the_gradient(either, use_reentrant, around):
    model, x = AutoEncoder(), images()
    loss_fn = either.ours.LPIPS(net="alex")
    expected = gradient_of(loss_fn(model(x), x).mean(), model)
    again = functools.partial(checkpoint, use_reentrant=use_reentrant)
    z = model.encode(x)[0]
    found = {
        "decoder": lambda: loss_fn(again(model.decode, z), x),
        "loss": lambda: again(loss_fn, model.decode(z), x),
        "both": lambda: again(lambda z: loss_fn(model.decode(z), x), z),
    }[around]()
    assert relative_distance(gradient_of(found.mean(), model), expected) < 1e-6


@pytest.mark.parametrize("retain", [False, True])
def test_accumulated_micro_batches_give_the_gradient_of_the_batch(either, retain):
    model, x = AutoEncoder(), images(4)
    loss_fn = either.ours.LPIPS(net="alex")
    expected = gradient_of(loss_fn(model(x), x).mean(), model)
    model.zero_grad(set_to_none=True)
    losses = [loss_fn(model(part), part).mean() / 4 for part in x.split(1)]  # all graphs alive at the same time
    for loss in losses:
        loss.backward(retain_graph=retain)
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert relative_distance(found, expected) < 1e-5


def video(lpips):
    """Frames of a video as a batch; the terms of the first layers alone, and where the deepest one differs."""
    model, loss_fn, clip = AutoEncoder(), lpips.LPIPS(net="vgg"), images(4, 32).view(2, 2, 3, 32, 32)
    spatial = lpips.LPIPS(net="vgg", spatial=True)
    optimizer, log = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(3):
        frames = clip.flatten(0, 1)
        reconstructions = model(frames)
        total, layers = loss_fn(reconstructions, frames, retPerLayer=True)
        loss = torch.stack(layers[:3]).sum(dim=0).view(2, 2).mean(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            where = spatial(reconstructions.clamp(-1, 1), frames, retPerLayer=True)[1][-1]
        log.append((loss, total, where.mean((1, 2, 3))))
    return log


def test_video_frames_with_the_first_layers(same):
    log = same.training(video)
    assert log[-1][0] < log[0][0]


@pytest.mark.real
@pytest.mark.parametrize("learned_variance", [False, True])
def test_autoencoder_loop_with_the_real_backbones(real_weights, tmp_path, learned_variance):
    from safetensors.torch import load_file

    real = {"vgg": load_file(real_weights / "vgg16.safetensors")}
    real["vgg"] = {name: tensor for name, tensor in real["vgg"].items() if name.startswith("features.")}
    compare = Comparison(*packages(real, tmp_path))
    log = compare.training(autoencoder_with_discriminator, learned_variance)
    assert log[-1]["loss"] < log[0]["loss"]
