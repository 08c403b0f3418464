"""Adversarial loss: adaptive weight, separate gradients of generator and discriminator, manual optimization, DDP."""

from __future__ import annotations

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lpips_lightning import AdversarialLoss, PatchDiscriminator, adaptive_weight


@pytest.fixture
def parts():
    torch.manual_seed(0)
    decoder, target = nn.Conv2d(3, 3, 3, padding=1), torch.rand(2, 3, 32, 32)
    preds = decoder(target.flip(-1))
    return decoder, preds, target, (preds - target).abs().mean()


def small(**options):
    return AdversarialLoss(**{"weight": 0.5, "layers": 2, "channels": 4, **options})


def test_the_adaptive_weight_is_the_ratio_of_gradient_norms(parts):
    decoder, preds, _, nll = parts
    generator = small().generator_loss(preds)
    norms = [
        torch.autograd.grad(loss, decoder.weight, retain_graph=True)[0].double().norm() for loss in (nll, generator)
    ]
    made = adaptive_weight(nll, generator, decoder.weight)
    torch.testing.assert_close(made.double(), norms[0] / (norms[1] + 1e-4), rtol=1e-5, atol=0)
    assert not made.requires_grad
    assert decoder.weight.grad is None


def test_the_adaptive_weight_is_clamped(parts):
    decoder, preds, _, nll = parts
    generator = small().generator_loss(preds)
    assert float(adaptive_weight(nll, 0 * generator, decoder.weight)) <= 1e4
    assert float(adaptive_weight(1e9 * nll, 0 * generator, decoder.weight)) == 1e4
    assert float(adaptive_weight(nll, generator, decoder.weight, largest=1e-3)) == pytest.approx(1e-3)


def test_with_the_adaptive_weight_both_losses_pull_equally(parts):
    decoder, preds, target, nll = parts
    terms = small(weight=1.0)(nll, preds, target, decoder.weight, step=0)
    pulls = [torch.autograd.grad(loss, decoder.weight, retain_graph=True)[0].norm() for loss in (nll, terms.generator)]
    torch.testing.assert_close(*pulls, rtol=1e-2, atol=0)


@pytest.mark.parametrize("kind", ["hinge", "logistic"])
def test_each_term_trains_its_own_network(parts, kind):
    decoder, preds, target, nll = parts
    loss = small(kind=kind)
    terms = loss(nll, preds, target, decoder.weight, step=0)
    of_decoder = torch.autograd.grad(terms.generator, decoder.weight, retain_graph=True)
    assert bool(of_decoder[0].abs().sum() > 0)
    ours = list(loss.parameters())
    assert torch.autograd.grad(terms.generator, ours, retain_graph=True, allow_unused=True) == (None,) * len(ours)
    assert torch.autograd.grad(terms.discriminator, decoder.weight, retain_graph=True, allow_unused=True) == (None,)
    weights = [one for one in ours if one.ndim == 4]  # the last bias has none while all logits are in (-1, 1)
    assert all(bool(one.abs().sum() > 0) for one in torch.autograd.grad(terms.discriminator, weights))


def test_the_losses_are_the_published_ones(parts):
    _, preds, target, _ = parts
    loss = small()
    real, made = loss.discriminator(target), loss.discriminator(preds)
    hinge = 0.5 * (torch.clamp(1 - real, min=0).mean() + torch.clamp(1 + made, min=0).mean())
    torch.testing.assert_close(loss.discriminator_loss(preds, target), hinge)
    torch.testing.assert_close(loss.generator_loss(preds), -made.mean())
    loss.kind = "logistic"
    entropy = nn.functional.binary_cross_entropy_with_logits
    both = (entropy(real, torch.ones_like(real)) + entropy(made, torch.zeros_like(made))) / 2
    torch.testing.assert_close(loss.discriminator_loss(preds, target), both)
    torch.testing.assert_close(loss.generator_loss(preds), entropy(made, torch.ones_like(made)))


def test_before_the_start_both_terms_are_zero_and_the_discriminator_has_gradients(parts):
    decoder, preds, target, nll = parts
    loss = small(start=3)
    terms = loss(nll, preds, target, decoder.weight, step=2)
    assert [float(one.detach()) for one in terms] == [0.0, 0.0, 0.0]
    (nll + terms.generator + terms.discriminator).backward()
    assert all(one.grad is not None and not one.grad.any() for one in loss.parameters())
    preds = decoder(target)
    assert float(loss((preds - target).abs().mean(), preds, target, decoder.weight, step=3).weight) > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, p, t, n: adaptive_weight(n.detach(), p.mean(), d.weight), "last_layer: expected .* nll depends on"),
        (lambda d, p, t, n: adaptive_weight(n, t.mean(), d.weight), "generator_loss depends on"),
        (lambda d, p, t, n: adaptive_weight(n, p.mean(), nn.Conv2d(3, 3, 3).weight), "nll depends on"),
        (lambda d, p, t, n: torch.no_grad()(adaptive_weight)(n, p.mean(), d.weight), "expected enabled gradients"),
        (lambda d, p, t, n: small()(n, p, t, step=0), "last_layer: expected the weight"),
        (lambda *_: AdversarialLoss(-1), "weight: expected at least 0, got -1"),
        (lambda *_: AdversarialLoss(start=-1), "start: expected at least 0"),
        (lambda *_: AdversarialLoss(kind="wgan"), "kind: expected one of"),
        (lambda *_: PatchDiscriminator(layers=0), "layers: expected at least 1, got 0"),
    ],
)
def test_errors_name_the_argument(parts, call, message):
    with pytest.raises(ValueError, match=message):
        call(*parts)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_too_small_images_are_refused_at_the_first_step(layers):
    loss, smallest = small(layers=layers, start=100), 3 * 2**layers
    assert loss.discriminator(torch.rand(1, 3, smallest, smallest + 1)).shape[2:] == (1, 1)
    images = torch.rand(1, 3, smallest, smallest - 1, requires_grad=True)
    with pytest.raises(ValueError, match=f"layers: .*at least {smallest} pixels a side .*{smallest}x{smallest - 1}"):
        loss(images.mean(), images, images, images, step=0)
    loss.weight = 0.0  # the discriminator is not in use
    assert float(loss(images.mean(), images, images, step=0).weight) == 0


class Manual(LightningModule):
    """The README's pattern for manual optimization: two optimizers, the helper between them."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.decoder, self.adversarial = nn.Conv2d(3, 3, 3, padding=1), small()
        self.weights = []

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        preds = self.decoder(batch.flip(-1))
        nll, generator = (preds - batch).abs().mean(), self.adversarial.generator_loss(preds)
        weight = adaptive_weight(nll, generator, self.decoder.weight)
        self.weights.append(float(weight))
        first.zero_grad()
        self.manual_backward(nll + 0.5 * weight * generator)
        first.step()
        second.zero_grad()
        self.manual_backward(self.adversarial.discriminator_loss(preds, batch))
        second.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(part.parameters(), 1e-2) for part in (self.decoder, self.adversarial)]


class Automatic(LightningModule):
    """One optimizer, one backward pass."""

    def __init__(self):
        super().__init__()
        self.decoder, self.adversarial = nn.Conv2d(3, 3, 3, padding=1), small(start=1)

    def training_step(self, batch, batch_idx):
        preds = self.decoder(batch.flip(-1))
        nll = (preds - batch).abs().mean()
        terms = self.adversarial(nll, preds, batch, self.decoder.weight, step=self.global_step)
        return nll + terms.generator + terms.discriminator

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def fit(module, **options):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", max_steps=4, **quiet, **options)
    torch.manual_seed(0)
    trainer.fit(module, DataLoader(torch.rand(8, 3, 16, 16), batch_size=2))
    return module


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", [Manual, Automatic])
def test_a_training_moves_both_networks(kind, precision):
    torch.manual_seed(1)
    module = kind()
    before = {name: value.clone() for name, value in module.named_parameters() if value.ndim == 4}
    fit(module, precision=precision)
    same = [name for name, value in before.items() if torch.equal(module.get_parameter(name), value)]
    assert not same
    assert all(bool(value.isfinite().all()) for value in module.parameters())


def test_one_backward_pass_gives_the_gradients_of_two(parts):
    decoder, preds, target, nll = parts
    loss = small()
    terms = loss(nll, preds, target, decoder.weight, step=0)
    networks = [*decoder.parameters(), *loss.parameters()]
    together = torch.autograd.grad(nll + terms.generator + terms.discriminator, networks, retain_graph=True)
    generator = torch.autograd.grad(nll + terms.generator, list(decoder.parameters()), retain_graph=True)
    alone = (*generator, *torch.autograd.grad(loss.discriminator_loss(preds, target), list(loss.parameters())))
    torch.testing.assert_close(together, alone)


@pytest.mark.slow
def test_two_processes_end_with_the_same_networks(tmp_path):
    module = fit(Automatic(), strategy="ddp_spawn", devices=2)
    assert all(bool(value.isfinite().all()) for value in module.parameters())
