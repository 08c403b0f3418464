"""Distills the distances of a large backbone into a small one; this made ``weights/embedded.safetensors``.

    lpips-lightning distillation fit --data.folder Kodak     # remake the shipped file; options in the YAML
    lpips-lightning distillation fit --model.teacher vgg --model.initialize random --data.folder my/images

The student has the form of LPIPS: features normalized to unit length over channels, weights >= 0 on the squared
difference, mean over space, sum over layers. It is trained to match the teacher's distances, their ratios within a
group, and the distance and map of every layer.
"""

import copy
import math
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef
from typing_extensions import override

from lpips_lightning import __version__
from lpips_lightning._lightning import Callback, LightningModule, MisconfigurationException
from lpips_lightning.backbones.frozen import FrozenNetwork
from lpips_lightning.backbones.loading import resolve_network, version_name
from lpips_lightning.backbones.plain import EMBEDDED, Stage
from lpips_lightning.callbacks._loggers import log_folder
from lpips_lightning.callbacks.calibration_file import check_tensor_file
from lpips_lightning.images.preprocessing import to_backbone
from lpips_lightning.io.tensor_files import write_tensors
from lpips_lightning.recipes.command import RecipeCLI, run_recipe
from lpips_lightning.recipes.distillation_data import DistillationData
from lpips_lightning.recipes.distillation_student import Student, pair_maps, prune_into

Initialization = Literal["teacher", "random"]


class Distillation(LightningModule):
    """Trains a `Student` to match LPIPS; logs ``val/spearman_<size>``, ``val/pearson_*`` and ``val/scale_*``.

    All arguments are plain values, so a checkpoint loads with ``weights_only=True``. Validation and export use the
    moving average of the student.

    Args:
        teacher: ``net_type`` of the teacher.
        teacher_version: LPIPS version of the teacher.
        teacher_weights: Backbone weights of the teacher: a path, ``"random"``, or None for torchvision's.
        teacher_calibration: Calibration of the teacher: a path, or None for the official one.
        stages: Convolutions of the student, each with the fields of `Stage`; None for those of the embedded net.
        initialize: ``"teacher"``: from the teacher's most important channels (alex only); or ``"random"``.
        lr: Highest learning rate of AdamW; twice as high for the calibration.
        warmup_steps: Linear warm-up to `lr`; then cosine decay.
        decay: Decay of the moving average per step.
        floor: Added to distances before the logarithm, so that distances far below it have little weight.
        ratio_weight: Weight of the log ratio of student and teacher distance.
        absolute_weight: Weight of the absolute difference, in units of 0.3.
        group_weight: Weight of the log ratio minus its mean over the group, which orders the versions of an image.
        layer_weight: Weight of the log ratios of layers, if student and teacher have equally many layers.
        map_weight: Weight of the difference of the layers' maps, if they have equally many layers.

    Raises:
        ValueError: If `initialize` is unknown.
    """

    def __init__(
        self,
        teacher: str = "alex",
        teacher_version: str | float = "0.1",
        teacher_weights: str | None = None,
        teacher_calibration: str | None = None,
        stages: list[dict[str, int]] | None = None,
        initialize: Initialization = "teacher",
        lr: float = 1e-3,
        warmup_steps: int = 100,
        decay: float = 0.998,
        floor: float = 1e-3,
        ratio_weight: float = 1.0,
        absolute_weight: float = 1.0,
        group_weight: float = 1.0,
        layer_weight: float = 0.5,
        map_weight: float = 0.5,
    ) -> None:
        super().__init__()
        if initialize not in get_args(Initialization):
            raise ValueError(f"initialize: expected one of {get_args(Initialization)}, got {initialize!r}")
        teacher_version = version_name(teacher_version)
        self.save_hyperparameters()
        self.stages = (
            [Stage(**cast("dict[str, Any]", stage)) for stage in stages] if stages is not None else list(EMBEDDED)
        )
        self.student = Student(self.stages).to(memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(self.student).requires_grad_(False)
        self._teacher: list[FrozenNetwork] = []  # a list, so that it is no submodule and not in checkpoints
        self._seen: dict[int, list[tuple[Tensor, Tensor]]] = {}

    @property
    def teacher(self) -> FrozenNetwork:
        """Teacher on this module's device; loaded on first use."""
        if not self._teacher:
            options = self.hparams
            calibration = options["teacher_calibration"]
            _, network = resolve_network(
                options["teacher"], options["teacher_version"], True, options["teacher_weights"], calibration, seed=0
            )
            self._teacher = [network.moved(self.device, torch.float32)]
        return self._teacher[0]

    @override
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Features by layer of the averaged student, for images ``(N, 3, H, W)`` in [0, 1] or uint8."""
        return self.averaged.encode(self.to_backbone(images))

    def to_backbone(self, images: Tensor) -> Tensor:
        """Convert images, as for `forward`, to the input of teacher and student."""
        data_range = (0.0, 1.0) if images.is_floating_point() else (0.0, 255.0)
        teacher = self.teacher
        return to_backbone(images, data_range, teacher.shift, teacher.scale, torch.float32, clamp=False)

    @override
    def on_fit_start(self) -> None:
        if self.trainer.ckpt_path is not None:  # resumed: the student comes from the checkpoint
            return
        batch = next(iter(_data_of(self.trainer).val_dataloader())).to(self.device)
        versions, images = batch.shape[1] - 1, self.to_backbone(batch.flatten(0, 1))
        if self.hparams["initialize"] == "teacher":
            prune_into(self.student, self.teacher, images, versions)
        with torch.no_grad():
            student = pair_maps(self.student.encode(images), dict(self.student.calibration), versions)
            teacher = pair_maps(self.teacher.extractor(images), self.teacher.calibration or {}, versions)
            level = torch.stack([m.mean() for m in teacher]).sum() / torch.stack([m.mean() for m in student]).sum()
            for index, weight in enumerate(self.student.calibration.values()):
                weight.mul_(teacher[index].mean() / student[index].mean() if len(student) == len(teacher) else level)
        self.averaged.load_state_dict(self.student.state_dict())

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        versions, images = batch.shape[1] - 1, self.to_backbone(augment(batch.flatten(0, 1)))
        with torch.no_grad():
            teacher = pair_maps(self.teacher.extractor(images), self.teacher.calibration or {}, versions)
        student = pair_maps(self.student.encode(images), dict(self.student.calibration), versions)
        terms = self.terms(student, teacher, versions)
        loss = torch.stack([self.hparams[f"{name}_weight"] * term for name, term in terms.items()]).sum()
        self.log_dict({f"train/{name}": term.detach() for name, term in terms.items()})
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def terms(self, student: list[Tensor], teacher: list[Tensor], versions: int) -> dict[str, Tensor]:
        """Loss terms by name from the `pair_maps` of student and teacher."""
        layers, target_layers = (torch.stack([m.mean((2, 3)) for m in maps]) for maps in (student, teacher))
        distance, target, floor = layers.sum(0), target_layers.sum(0), self.hparams["floor"]
        ratio = ((distance + floor) / (target + floor)).log()
        centered = ratio[:, :versions] - ratio[:, :versions].mean(1, keepdim=True)
        terms = {"ratio": _huber(ratio), "absolute": (distance - target).abs().mean() / 0.3, "group": _huber(centered)}
        if len(student) == len(teacher):
            small = floor / len(student)
            terms["layer"] = _huber(((layers + small) / (target_layers + small)).log())
            errors = [
                (a - _fit(b, a)).abs().mean((2, 3)) / (b.mean((2, 3)) + small)
                for a, b in zip(student, teacher, strict=True)
            ]
            terms["map"] = torch.stack(errors).mean()
        return terms

    @override
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # Not in on_train_batch_end: a checkpoint may be written before that hook.
        super().optimizer_step(*args, **kwargs)
        self.student.clamp_calibration()
        steps = self.global_step + 1
        decay = min(self.hparams["decay"], (steps + 1) / (steps + 10))
        with torch.no_grad():
            for average, value in zip(self.averaged.parameters(), self.student.parameters(), strict=True):
                average.lerp_(value, 1 - decay)

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        versions, images = batch.shape[1] - 1, self.to_backbone(batch.flatten(0, 1))
        teacher = pair_maps(self.teacher.extractor(images), self.teacher.calibration or {}, versions)
        student = pair_maps(self.averaged.encode(images), dict(self.averaged.calibration), versions)
        distance, target = (
            torch.stack([m.mean((2, 3)) for m in maps]).sum(0)[:, :versions].flatten() for maps in (student, teacher)
        )
        self._seen.setdefault(batch.shape[-1], []).append((distance, target))

    @override
    def on_validation_epoch_end(self) -> None:
        for size, pairs in self._seen.items():
            distance, target = (torch.cat(values) for values in zip(*pairs, strict=True))
            self.log(f"val/spearman_{size}", spearman_corrcoef(distance, target), prog_bar=True)
            self.log(f"val/pearson_{size}", pearson_corrcoef(distance, target))
            self.log(f"val/scale_{size}", distance.mean() / target.mean())
        self._seen.clear()

    @override
    def configure_optimizers(self) -> Any:
        lr = self.hparams["lr"]
        groups = [
            {"params": list(self.student.features.parameters()), "lr": lr},
            {"params": list(self.student.calibration.parameters()), "lr": 2 * lr},
        ]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0)
        warmup = self.hparams["warmup_steps"]

        def factor(step: int) -> float:
            # Not for step 0: estimated_stepping_batches creates the dataloader. Before the loops are restored from a
            # checkpoint, that would lose the position in the epoch.
            progress = min(step / self.trainer.estimated_stepping_batches, 1.0) if step else 0.0
            return min(1.0, (step + 1) / (warmup + 1)) * (0.5 + 0.5 * math.cos(math.pi * progress)) + 0.005

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}


def augment(images: Tensor) -> Tensor:
    """Flip, transpose or permute the channels of all images alike, at random from the global generator."""
    horizontal, vertical, transpose, permute = torch.rand(4).tolist()
    images = images.flip(-1) if horizontal < 0.5 else images
    images = images.flip(-2) if vertical < 0.5 else images
    images = images.transpose(-1, -2) if transpose < 0.5 else images
    return images[:, torch.randperm(3)] if permute < 0.25 else images


class StudentFile(Callback):
    """Writes the averaged student and its record at the end of training.

    Args:
        path: A ``.safetensors`` file, written atomically; its folder is created if missing. None for
            ``student.safetensors`` in the log folder, which is a new one for every run.

    Attributes:
        written: The file, once it is written.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self.written: Path | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.path is not None:
            check_tensor_file(self.path)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, Distillation) or not trainer.is_global_zero:
            return
        net_type = "embedded" if tuple(pl_module.stages) == EMBEDDED else "custom"
        record = student_record(trainer, pl_module)
        self.written = Path(self.path or log_folder(trainer, trainer.logger) / "student.safetensors")
        write_tensors(self.written, pl_module.averaged.state_dict(), record, net_type=net_type, version="0.1")


def student_record(trainer: Trainer, module: Distillation) -> dict[str, Any]:
    """Record for the student's file: settings, training data and agreement with the teacher."""
    options, data = dict(module.hparams), _data_of(trainer)
    measured = {
        name: round(float(value), 4) for name, value in trainer.callback_metrics.items() if name.startswith("val/")
    }
    return {
        "recipe": f"recipes/distillation.py, lpips_lightning {__version__}",
        "teacher": f"LPIPS-{options['teacher']} v{options['teacher_version']}",
        "stages": [asdict(stage) for stage in module.stages],
        "seed": data.seed,
        "steps": trainer.global_step,
        "data": data.trained_on,
        "held_out": data.validated_on,
        "date": date.today().isoformat(),
        "agreement": measured,
    }


class DistillationCLI(RecipeCLI):
    """Adds ``--checkpoint.*`` (ModelCheckpoint) and ``--file.path``."""

    networks = (("model.teacher", "model.teacher_weights"),)
    outputs = (("file.path", "fit"),)

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(StudentFile, "file")

    @override
    def written_files(self) -> list[tuple[Path, str]]:
        written = self._get(self.config_init, "file").written
        return [] if written is None else [(written, "the student")]

    @override
    def next_commands(self, checkpoint: Path) -> list[str]:
        if tuple(self.model.stages) != EMBEDDED:
            return []
        return [f"LPIPS('embedded', weights={str(path)!r}) in Python" for path, _ in self.written_files()]


def main(args: list[str] | None = None) -> None:
    """Run the recipe: ``fit`` or ``validate``, with defaults from ``distillation.yaml``.

    Args:
        args: Command line without the program name; None takes ``sys.argv``.
    """
    run_recipe(DistillationCLI, Distillation, DistillationData, __file__, args)


def _data_of(trainer: Trainer) -> DistillationData:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, DistillationData):
        raise MisconfigurationException("datamodule: expected DistillationData, got none; pass it to Trainer.fit")
    return data


def _huber(error: Tensor) -> Tensor:
    return F.smooth_l1_loss(error, torch.zeros_like(error), beta=0.1)


def _fit(teacher_map: Tensor, student_map: Tensor) -> Tensor:
    """Resize the teacher's map to the student's."""
    size = student_map.shape[-2:]
    return teacher_map if teacher_map.shape[-2:] == size else F.interpolate(teacher_map, size=size, mode="bilinear")
