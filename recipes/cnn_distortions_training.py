"""One network of the recipe for CNN-based distortions in training: drawn loss, discriminator, optimizers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from lpips_lightning.adversarial import PatchDiscriminator
from lpips_lightning.data.cnn_distortions import DenoisingAutoencoder, GeneratorSpec
from lpips_lightning.data.crops import seeded

Perceptual = Callable[[Tensor, Tensor], Tensor]
_BETAS = (0.5, 0.999)  # of pix2pix
_START, _DROPOUT = 1 << 33, 1  # what random numbers are for


@dataclass(frozen=True)
class TrainingSpec:
    """What is drawn at random about the training of a network.

    Attributes:
        l1_weight: Weight of the mean absolute difference.
        perceptual_weight: Weight of the perceptual loss; 0 for none.
        discriminator_weight: Weight of the discriminator's loss; 0 for none.
        discriminator_layers: Convolutions of stride 2 of the discriminator.
        lr: Learning rate of both.
    """

    l1_weight: float
    perceptual_weight: float
    discriminator_weight: float
    discriminator_layers: int
    lr: float


def draw_training(generator: Generator) -> TrainingSpec:
    """Draw a spec: weights and learning rate log-uniformly; a third of the networks lacks each of the last two losses.

    Args:
        generator: Random state.
    """

    def log_uniform(low: float, high: float) -> float:
        return float(f"{low * (high / low) ** float(torch.rand((), generator=generator)):.4g}")

    def sometimes(low: float, high: float) -> float:
        drawn, is_used = log_uniform(low, high), float(torch.rand((), generator=generator)) < 2 / 3
        return drawn if is_used else 0.0

    return TrainingSpec(
        l1_weight=log_uniform(0.1, 1),
        perceptual_weight=sometimes(0.03, 1),
        discriminator_weight=sometimes(0.003, 0.1),  # pix2pix has 0.01 of its L1
        discriminator_layers=int(torch.randint(1, 5, (), generator=generator)),
        lr=log_uniform(1e-4, 1e-3),
    )


class Trainee:
    """A network in training.

    Its start, the noise of its inputs and its dropout depend only on `seed`, `index` and the step.

    Args:
        index: Index of the network in the family.
        generator: Form of the network.
        training: Its loss.
        seed: Seed of the family.
        device: Where it is trained.

    Attributes:
        steps: Batches that it was trained on.
    """

    def __init__(
        self, index: int, generator: GeneratorSpec, training: TrainingSpec, seed: int, device: torch.device
    ) -> None:
        self.index, self.training, self.seed, self.device = index, training, seed, device
        self.steps = 0
        with _random_numbers(torch.device("cpu"), seed, index, _START):
            network = DenoisingAutoencoder(generator)
            judge = PatchDiscriminator(training.discriminator_layers, generator.first_channels)
        self.network, self.discriminator = network.to(device), judge.to(device)
        self._optimizers = {
            name: torch.optim.Adam(one.parameters(), training.lr, _BETAS) for name, one in self._modules().items()
        }

    def _modules(self) -> dict[str, nn.Module]:
        return {"network": self.network, "discriminator": self.discriminator}

    def step(self, images: Tensor, perceptual: Perceptual) -> dict[str, Tensor]:
        """Train on the next batch.

        Args:
            images: Shape ``(N, 3, H, W)`` in [0, 1].
            perceptual: Perceptual loss of images on [0, 1].

        Returns:
            Losses by name, before weighting.
        """
        generator = seeded(self.seed, self.index, self.steps)
        with _random_numbers(self.device, self.seed, self.index, self.steps, _DROPOUT):
            made = self.network(self.network.corrupt(images, generator))
        spec, terms = self.training, {"l1": (made - images).abs().mean()}
        loss = spec.l1_weight * terms["l1"]
        if spec.perceptual_weight:
            terms["perceptual"] = perceptual(made, images)
            loss = loss + spec.perceptual_weight * terms["perceptual"]
        if spec.discriminator_weight:
            terms["discriminator"] = self._train_discriminator(images, made.detach())
            loss = loss + spec.discriminator_weight * _error(self.discriminator(made), real=True)
        self._update("network", loss)
        self.steps += 1
        return {name: term.detach() for name, term in terms.items()}

    def _train_discriminator(self, images: Tensor, made: Tensor) -> Tensor:
        loss = (_error(self.discriminator(images), real=True) + _error(self.discriminator(made), real=False)) / 2
        self._update("discriminator", loss)
        return loss

    def _update(self, name: str, loss: Tensor) -> None:
        self._optimizers[name].zero_grad()
        loss.backward()  # not manual_backward: DDP must not exchange gradients
        self._optimizers[name].step()

    def state_dict(self) -> dict[str, Any]:
        """Index, steps, weights and states of the optimizers."""
        weights = {name: one.state_dict() for name, one in self._modules().items()}
        optimizers = {f"{name}_optimizer": one.state_dict() for name, one in self._optimizers.items()}
        return {"index": self.index, "steps": self.steps, **weights, **optimizers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of the same network."""
        self.steps = state["steps"]
        for name, one in self._modules().items():
            one.load_state_dict(state[name])
            self._optimizers[name].load_state_dict(state[f"{name}_optimizer"])


def _error(logits: Tensor, *, real: bool) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits.float(), torch.full_like(logits, float(real), dtype=torch.float32))


@contextmanager
def _random_numbers(device: torch.device, *entropy: int) -> Iterator[None]:
    """Seed torch's random numbers, and restore them afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seeded(*entropy).initial_seed())
        yield
