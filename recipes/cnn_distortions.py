"""Trains the CNN-based distortions of the paper: a family of denoising autoencoders that are drawn at random.

    lpips-lightning cnn-distortions fit --data.folder Kodak      # 16 networks; 96 as in the paper: see the YAML
    lpips-lightning cnn-distortions fit --data.folder Kodak --trainer.devices 8    # each process trains its own ones
    lpips-lightning bapps make --folder Kodak --out made --family both --cnn family.safetensors

Drawn are the corruption of the input, the form of the network, the weights of its losses (L1, perceptual,
discriminator), the form of the discriminator and the learning rate (Zhang et al. 2018, section 2.1 and Table 2). Each
network is trained shortly, so that it leaves artifacts.
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser
from rich.table import Table
from torch import Tensor, nn
from typing_extensions import override

from lpips_lightning import __version__
from lpips_lightning._lightning import Callback, LightningModule, MisconfigurationException
from lpips_lightning.callbacks._loggers import log_folder
from lpips_lightning.callbacks.calibration_file import check_tensor_file
from lpips_lightning.data.cnn_distortions import (
    Corruption,
    DenoisingAutoencoder,
    DistortionFamily,
    GeneratorSpec,
    draw_generator,
    network_names,
    read_family,
    write_family,
)
from lpips_lightning.data.crops import seeded
from lpips_lightning.data.family_sheet import write_family_sheet
from lpips_lightning.io.console import Console
from lpips_lightning.loss import PerceptualLoss
from lpips_lightning.recipes.cnn_distortions_data import CNNDistortionsData
from lpips_lightning.recipes.cnn_distortions_training import Trainee, TrainingSpec, draw_training
from lpips_lightning.recipes.command import RecipeCLI, run_recipe
from lpips_lightning.recipes.run_history import rounded
from lpips_lightning.recipes.run_report import command_line, print_line

_DRAW, _MEASURE, _ORDER = (1 << 32, 0), (1 << 32, 1), (1 << 32, 2)  # no index of a network or a step
_FLAT = 0.1  # contrast of outputs in units of the images' own
_PRECISIONS = ("32-true", "bf16-mixed")
_KEY = "cnn_distortions"


class CNNDistortions(LightningModule):
    """Trains one network after the other; an epoch trains one on every process.

    A network, its batches and its random numbers depend only on the seed and its index, so that the family is the same
    on any number of processes, and after an interruption. All arguments are plain values, so a checkpoint loads with
    ``weights_only=True``.

    Args:
        networks: Networks of the family.
        first_channels: Choices for the channels of a network's first layer.
        most_channels: Choices for the most channels of a layer.
        loss_net: ``net_type`` of the perceptual loss and of the measured distances; the paper's is vgg.
        loss_weights: Backbone weights of it: a path, ``"random"``, or None for torchvision's.
        seed: Random seed of the family.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        networks: int = 16,
        first_channels: Sequence[int] = (8, 16),
        most_channels: Sequence[int] = (32, 64),
        loss_net: str = "embedded",
        loss_weights: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (("networks", networks, 1), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        first_channels, most_channels = list(first_channels), list(most_channels)
        if not first_channels or not most_channels or not 1 <= max(first_channels) <= min(most_channels):
            raise ValueError(
                f"most_channels: expected at least all of first_channels, got {most_channels} and {first_channels}"
            )
        self.save_hyperparameters()
        self.automatic_optimization = False
        # Counts the steps. Lightning counts those of its optimizers, and its DDP needs a parameter; the networks have
        # their own optimizers, and differ from process to process.
        self.steps = nn.Parameter(torch.zeros(()))
        self.finished: dict[int, dict[str, Any]] = {}
        self._trainee: Trainee | None = None
        self._loaded: dict[str, Any] | None = None
        self._perceptual: list[PerceptualLoss] = []

    def specs(self, index: int) -> tuple[GeneratorSpec, TrainingSpec]:
        """What is drawn about a network; five in a row have the five corruptions, in random order."""
        options, known = self.hparams, get_args(Corruption)
        row, place = divmod(index, len(known))
        order = torch.randperm(len(known), generator=seeded(options["seed"], row, *_ORDER)).tolist()
        generator = seeded(options["seed"], index, *_DRAW)
        channels = options["first_channels"], options["most_channels"]
        return draw_generator(generator, *channels, corruption=known[order[place]]), draw_training(generator)

    @property
    def perceptual(self) -> PerceptualLoss:
        """The perceptual loss; its network is loaded on first use."""
        if not self._perceptual:
            net, weights = self.hparams["loss_net"], self.hparams["loss_weights"]
            self._perceptual.append(PerceptualLoss(net, data_range=(0, 1), weights=weights))
        return self._perceptual[0]

    @override
    def setup(self, stage: str) -> None:
        if stage != "fit":
            return
        if self.trainer.precision not in _PRECISIONS:  # the networks are no parameters, which Lightning would convert
            known = " or ".join(_PRECISIONS)
            raise MisconfigurationException(f"precision: expected {known}, got {self.trainer.precision}")
        _ = self.perceptual  # a missing backbone is an error here, not in a step
        epochs = -(-self.hparams["networks"] // self.trainer.world_size)
        most = self.trainer.max_epochs
        self.trainer.fit_loop.max_epochs = epochs if most is None or most < 0 else min(most, epochs)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.steps], lr=1.0)

    def _index(self) -> int:
        return self.trainer.current_epoch * self.trainer.world_size + self.trainer.global_rank

    def _current(self) -> Trainee | None:
        """The network that this process trains in this epoch; None if there is none left for it."""
        index = self._index()
        if index >= self.hparams["networks"]:
            return None
        if self._trainee is None or self._trainee.index != index:
            self._trainee = Trainee(index, *self.specs(index), self.hparams["seed"], self.device)
            if self._loaded is not None and self._loaded["index"] == index:
                self._trainee.load_state_dict(self._loaded)
            self._loaded = None
        return self._trainee

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        trainee = self._current()
        if trainee is not None:
            losses = trainee.step(batch, self.perceptual)
            self.log_dict({f"train/{name}": loss for name, loss in losses.items()})
            self.log("train/network", float(trainee.index))
        self.steps.grad = -torch.ones_like(self.steps)
        optimizer: Any = self.optimizers()
        optimizer.step()

    @override
    def on_train_epoch_end(self) -> None:
        trainee, finished = self._trainee, {}
        if trainee is not None and trainee.steps >= self.trainer.num_training_batches:  # fewer: stopped by max_steps
            finished[trainee.index] = self._finish(trainee)
            self._trainee = None
        for part in _gathered(finished):
            self.finished.update(part)

    def _finish(self, trainee: Trainee) -> dict[str, Any]:
        """Weights of a trained network, and its record."""
        network = trainee.network.eval().cpu()
        scores = measure(network, _data_of(self.trainer).patches(), self.hparams["seed"], self.perceptual)
        self.log_dict({f"network/{name}": value for name, value in scores.items()})
        record = {"generator": asdict(network.spec), "training": asdict(trainee.training), "scores": scores}
        return {"weights": network.state_dict(), "record": record}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trainee = None if self._trainee is None else self._trainee.state_dict()
        checkpoint[_KEY] = {"finished": self.finished, "running": _gathered(trainee)}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint[_KEY]
        self.finished = state["finished"]
        if self._trainer is None:
            return
        ranks = len(state["running"])
        if ranks != self.trainer.world_size and len(self.finished) < self.hparams["networks"]:
            raise MisconfigurationException(
                f"devices: expected {ranks} processes, as in the checkpoint, got {self.trainer.world_size}"
            )
        self._loaded = state["running"][self.trainer.global_rank] if ranks == self.trainer.world_size else None

    def family(self) -> list[DenoisingAutoencoder]:
        """The networks that are trained, in order."""
        networks = []
        for index, one in sorted(self.finished.items()):
            network = DenoisingAutoencoder(self.specs(index)[0])
            network.load_state_dict(one["weights"])
            networks.append(network.eval())
        return networks

    def records(self) -> list[dict[str, Any]]:
        """Record of each of these: what was drawn, and the scores."""
        return [one["record"] for _, one in sorted(self.finished.items())]


@torch.no_grad()
def measure(network: DenoisingAutoencoder, patches: Tensor, seed: int, perceptual: PerceptualLoss) -> dict[str, float]:
    """How a network changes patches.

    Args:
        network: In eval mode, on the CPU.
        patches: Shape ``(N, 3, H, W)`` in [0, 1].
        seed: Seed of the corruption.
        perceptual: Gives the distances.

    Returns:
        LPIPS: mean, standard deviation, least and most; mean absolute difference; and the standard deviation of an
        output over its pixels in units of the patch's, the mean over patches: near 0 if it is nearly one color.
    """
    made = DistortionFamily([network]).distort(patches, "cnn00", seeded(seed, *_MEASURE))
    distances = perceptual.net(made, patches, data_range=(0, 1))
    contrast, own = (images.flatten(2).std(2).mean(1) for images in (made, patches))
    values = {
        "lpips": distances.mean(),
        "lpips_std": distances.std(correction=0),
        "lpips_min": distances.min(),
        "lpips_max": distances.max(),
        "l1": (made - patches).abs().mean(),
        "contrast": contrast.mean() / own.mean().clamp(min=1e-6),
    }
    return {name: round(float(value), 5) for name, value in values.items()}


class FamilyFile(Callback):
    """Writes the family, its record and a contact sheet at the end of training.

    Args:
        path: A ``.safetensors`` file, written atomically; its folder is created if missing. None for
            ``family.safetensors`` in the log folder, which is a new one for every run. The contact sheet lies beside
            it, as PNG and PDF.

    Attributes:
        written: The files and what they are, once they are written.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self.written: list[tuple[Path, str]] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.path is not None:
            check_tensor_file(self.path)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, CNNDistortions) or not trainer.is_global_zero or not pl_module.finished:
            return
        if getattr(trainer, "fast_dev_run", False):
            return
        print_networks(pl_module.records(), pl_module.hparams["loss_net"])
        path = Path(self.path or log_folder(trainer, trainer.logger) / "family.safetensors")
        write_family(path, pl_module.family(), family_record(trainer, pl_module))
        self.written = [(path, "the family of networks")]
        if find_spec("matplotlib") is None:
            print_line('No contact sheet, which matplotlib draws: pip install "lpips_lightning[recipes]"')
            return
        patches = _data_of(trainer).patches()
        files = write_family_sheet(read_family(path), patches, path.with_suffix(".png"), pl_module.hparams["seed"])
        self.written += [(file, "what each network makes of patches") for file in files]


def print_networks(records: Sequence[dict[str, Any]], net: str) -> None:
    """Print what was drawn about each network and how strongly it distorts; a line names those that gave up.

    Args:
        records: Record of each network.
        net: Network of the distances.
    """
    table = Table(title="Distortions of the networks", title_justify="left")
    for heading in ("network", "corruption", f"LPIPS({net})", "least", "most", "contrast"):
        table.add_column(heading, justify="left" if heading in ("network", "corruption") else "right")
    flat = []
    for name, record in zip(network_names(len(records)), records, strict=True):
        scores = record["scores"]
        numbers = [rounded(scores[key]) for key in ("lpips", "lpips_min", "lpips_max", "contrast")]
        table.add_row(name, record["generator"]["corruption"].replace("_", " "), *numbers)
        flat += [name] if scores["contrast"] < _FLAT else []
    Console().print(table)
    if flat:
        print_line(f"Nearly one color whatever the image: {', '.join(flat)}; more --data.steps help")


def family_record(trainer: Trainer, module: CNNDistortions) -> dict[str, Any]:
    """Record for the file of a family: settings, training data, and what was drawn and measured for each network."""
    data = _data_of(trainer)
    return {
        "recipe": f"recipes/cnn_distortions.py, lpips_lightning {__version__}",
        **{name: value for name, value in module.hparams.items() if name != "networks"},
        "data": data.names,
        "size": data.size,
        "batch_size": data.batch_size,
        "steps": data.steps,
        "data_seed": data.seed,
        "date": date.today().isoformat(),
        "networks": module.records(),
    }


class CNNDistortionsCLI(RecipeCLI):
    """Adds ``--checkpoint.*`` (ModelCheckpoint) and ``--file.path``."""

    networks = (("model.loss_net", "model.loss_weights"),)
    outputs = (("file.path", "fit"),)

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(FamilyFile, "file")

    @override
    def trained(self) -> str:
        return f"{self.model.hparams['networks']} networks"

    @override
    def written_files(self) -> list[tuple[Path, str]]:
        return self._get(self.config_init, "file").written

    @override
    def next_commands(self, checkpoint: Path) -> list[str]:
        options = ["--folder", self.datamodule.folder or "PHOTOGRAPHS", "--out", "made", "--family", "both", "--cnn"]
        made = [str(path) for path, _ in self.written_files()[:1]]
        return [command_line("lpips-lightning bapps", "make", [*options, path]) for path in made]


def main(args: list[str] | None = None) -> None:
    """Run the recipe: ``fit``, with defaults from ``cnn_distortions.yaml``.

    Args:
        args: Command line without the program name; None takes ``sys.argv``.
    """
    with warnings.catch_warnings():
        # Checkpoints hold the networks after the step, and it is right to resume from them.
        warnings.filterwarnings("ignore", "Using ModelCheckpoint with manual optimization")
        run_recipe(CNNDistortionsCLI, CNNDistortions, CNNDistortionsData, __file__, args)


def _gathered(one: Any) -> list[Any]:
    """What each process has, in the order of the ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return [one]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, _on_cpu(one))
    return found


def _on_cpu(state: Any) -> Any:
    if isinstance(state, dict):
        return {name: _on_cpu(one) for name, one in state.items()}
    return state.cpu() if isinstance(state, Tensor) else state


def _data_of(trainer: Trainer) -> CNNDistortionsData:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, CNNDistortionsData):
        raise MisconfigurationException("datamodule: expected CNNDistortionsData, got none; pass it to Trainer.fit")
    return data
