"""Distills the distances of a large backbone into a small one; this made the embedded networks.

    lpips-lightning distillation fit --data.folder Kodak     # weights/embedded.safetensors; options in the YAML
    lpips-lightning distillation fit --config recipes/distillation_vgg.yaml --data.folder Kodak    # embedded_vgg

The student has the form of LPIPS: features normalized to unit length over channels, weights >= 0 on the squared
difference, mean over space, sum over layers. It is trained to match the teacher's distances, their ratios within a
group, and the distance and map of every layer; and, to be a good loss, on images that it optimized itself.
"""

import copy
import math
import os
import sys
from dataclasses import asdict, replace
from datetime import date
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef
from typing_extensions import override

from lpips_lightning import __version__
from lpips_lightning._lightning import Callback, LightningModule, MisconfigurationException
from lpips_lightning.backbones.definition import get_backbone
from lpips_lightning.backbones.frozen import FrozenNetwork
from lpips_lightning.backbones.loading import resolve_network, version_name
from lpips_lightning.backbones.plain import EMBEDDED, Stage
from lpips_lightning.callbacks._loggers import log_folder
from lpips_lightning.callbacks.calibration_file import check_tensor_file
from lpips_lightning.data.samplers import seed_of
from lpips_lightning.distributed import dataset_indices, gather
from lpips_lightning.images.preprocessing import to_backbone
from lpips_lightning.io.tensor_files import write_tensors
from lpips_lightning.recipes.command import RecipeCLI, run_recipe
from lpips_lightning.recipes.distillation_data import DistillationData
from lpips_lightning.recipes.distillation_student import BackboneStudent, Student, load_into, pair_maps, prune_into
from lpips_lightning.recipes.distillation_targets import (
    OptimizedGroups,
    Replay,
    Targets,
    answers,
    feature_error,
    gradient_error,
    gradient_of,
    weighted_features,
)

TeacherDtype = Literal["float32", "bfloat16"]
_PRETRAINED = ("alex", "vgg", "squeeze")
_STARTS = ("teacher", "random", "pretrained")


class Distillation(LightningModule):
    """Trains a `Student` to match LPIPS; logs ``val/spearman_<size>``, ``val/pearson_*`` and ``val/scale_*``.

    All arguments are plain values, so a checkpoint loads with ``weights_only=True``. Validation and export use the
    moving average of the student. On several ranks, every rank takes a batch per step, and validation gives the numbers
    of one process.

    Args:
        teacher: ``net_type`` of the teacher.
        teacher_version: LPIPS version of the teacher.
        teacher_weights: Backbone weights of the teacher: a path, ``"random"``, or None for torchvision's.
        teacher_calibration: Calibration of the teacher: a path, or None for the official one.
        stages: Convolutions of the student, each with the fields of `Stage`; None for those of the embedded net.
        backbone: A backbone whose form the student has, in place of `stages`: alex, vgg or squeeze.
        backbone_file: Its weights for ``initialize="pretrained"``: a path, ``"random"``, or None for torchvision's.
        normalize: Normalize the output of every convolution over the batch during training; the file has the weights
            of the same network without it. For students that start from random weights.
        initialize: ``"teacher"``: from the teacher's most important channels (alex only); ``"random"``;
            ``"pretrained"``: from the weights and the official calibration of `backbone`; or the path of a student's
            file of the same form, to train it further.
        lr: Highest learning rate of AdamW.
        calibration_lr: The same for the calibration; None for twice `lr`.
        warmup_steps: Linear warm-up to `lr`; then cosine decay.
        decay: Decay of the moving average per step.
        floor: Added to distances before the logarithm, so that distances far below it have little weight.
        ratio_weight: Weight of the log ratio of student and teacher distance.
        absolute_weight: Weight of the absolute difference, in units of 0.3.
        group_weight: Weight of the log ratio minus its mean over the group, which orders the versions of an image.
        layer_weight: Weight of the log ratios of layers, if student and teacher have equally many layers.
        map_weight: Weight of the difference of the layers' maps, if they have equally many layers.
        gradient_weight: Weight of the difference of the gradients w.r.t. the images, for a student that is to be a
            loss. They are compared on the optimized group of a step, or on all groups of a step without one.
        feature_weight: Weight of the part of the teacher's features that a linear map of the student's does not give,
            if they have equally many layers.
        teacher_dtype: ``"float32"``, or ``"bfloat16"``, which takes half the time on processors that have it.
        replay: Groups of each step, drawn from those of the last steps; 0 trains on the fresh groups alone. With a slow
            teacher, its answers are then used several times.
        replay_megapixels: Megapixels of images to draw from.
        optimized: Groups whose versions the student optimizes during training (see `OptimizedGroups`); one of them is
            added in every step of the smallest size, and replayed. 0 for none.
        optimized_steps: Steps until such a group is replaced.

    Raises:
        ValueError: If `initialize` or `teacher_dtype` has another value, or features are compared between unequal
            numbers of layers.
    """

    def __init__(
        self,
        teacher: str = "alex",
        teacher_version: str | float = "0.1",
        teacher_weights: str | None = None,
        teacher_calibration: str | None = None,
        stages: list[dict[str, int | bool]] | None = None,
        backbone: str | None = None,
        backbone_file: str | None = None,
        initialize: str = "teacher",
        normalize: bool = False,
        lr: float = 1e-3,
        calibration_lr: float | None = None,
        warmup_steps: int = 100,
        decay: float = 0.998,
        floor: float = 1e-3,
        ratio_weight: float = 1.0,
        absolute_weight: float = 1.0,
        group_weight: float = 1.0,
        layer_weight: float = 0.5,
        map_weight: float = 0.5,
        gradient_weight: float = 0.0,
        feature_weight: float = 0.0,
        teacher_dtype: TeacherDtype = "float32",
        replay: int = 0,
        replay_megapixels: float = 24.0,
        optimized: int = 0,
        optimized_steps: int = 300,
    ) -> None:
        super().__init__()
        _check_start(initialize, stages, backbone, normalize)
        if teacher_dtype not in get_args(TeacherDtype):
            raise ValueError(f"teacher_dtype: expected one of {get_args(TeacherDtype)}, got {teacher_dtype!r}")
        teacher_version = version_name(teacher_version)
        self.save_hyperparameters()
        self.stages = (
            [Stage(**cast("dict[str, Any]", stage)) for stage in stages] if stages is not None else list(EMBEDDED)
        )
        student = Student(self.stages, normalize) if backbone is None else BackboneStudent(backbone)
        self.student = student.to(memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(self.student).requires_grad_(False)
        self._teacher: list[FrozenNetwork] = []  # a list, so that it is no submodule and not in checkpoints
        self._seen: list[tuple[int, int, Tensor, Tensor]] = []  # batch, size, distances of student and teacher
        self._replay = Replay(int(replay_megapixels * 1e6))
        self._optimized = OptimizedGroups(optimized, optimized_steps)
        self._smallest = sys.maxsize
        self.projections = self._new_projections(teacher) if feature_weight else nn.ModuleList()

    def _new_projections(self, teacher: str) -> nn.ModuleList:
        """Linear maps from the student's features to the teacher's; they are not part of the student."""
        pairs = list(zip_longest(self.student.channels, get_backbone(teacher).channels))
        if any(None in pair for pair in pairs):
            raise ValueError(f"feature_weight: expected 0, unless the student has as many layers as {teacher!r}")
        return nn.ModuleList(nn.Conv2d(own, given, 1) for own, given in pairs)

    @property
    def teacher(self) -> FrozenNetwork:
        """Teacher on this module's device; loaded on first use."""
        if not self._teacher:
            options = self.hparams
            calibration = options["teacher_calibration"]
            _, network = resolve_network(
                options["teacher"], options["teacher_version"], True, options["teacher_weights"], calibration, seed=0
            )
            self._teacher = [network.moved(self.device, getattr(torch, options["teacher_dtype"]))]
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
    def on_train_epoch_start(self) -> None:
        self.averaged.eval()  # not in __init__: Lightning would warn

    @override
    def on_fit_start(self) -> None:
        self._smallest = min(_data_of(self.trainer).sizes)
        if self.trainer.ckpt_path is not None:  # resumed: the student comes from the checkpoint
            return
        if self.hparams["initialize"] not in _STARTS:
            load_into(self.student, self.hparams["initialize"])
            self.averaged.load_state_dict(self.student.state_dict())
            return
        self._initialize(next(iter(_data_of(self.trainer).val_dataloader())).to(self.device))
        if self.trainer.world_size > 1:  # the batches of the ranks differ
            state = {name: tensor.cpu() for name, tensor in self.student.state_dict().items()}
            self.student.load_state_dict(self.trainer.strategy.broadcast(state))
        self.averaged.load_state_dict(self.student.state_dict())

    def _initialize(self, batch: Tensor) -> None:
        """Set the student's weights, and give its distances the teacher's level on groups of images."""
        versions, images = batch.shape[1] - 1, self.to_backbone(batch.flatten(0, 1))
        if isinstance(self.student, Student) and self.hparams["initialize"] == "teacher":
            prune_into(self.student, self.teacher, images, versions)
        if isinstance(self.student, BackboneStudent) and self.hparams["initialize"] == "pretrained":
            net, source = self.hparams["backbone"], self.hparams["backbone_file"]
            self.student.load_pretrained(resolve_network(net, "0.1", True, source, None, seed=0)[1])
        with torch.no_grad():
            student = pair_maps(self.student.encode(images), dict(self.student.calibration), versions)
            teacher = pair_maps(self._encode_by_teacher(images), self.teacher.calibration or {}, versions)
            level = torch.stack([m.mean() for m in teacher]).sum() / torch.stack([m.mean() for m in student]).sum()
            for index, weight in enumerate(self.student.calibration.values()):
                weight.mul_(teacher[index].mean() / student[index].mean() if len(student) == len(teacher) else level)

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.trainer.world_size > 1:  # other random numbers on every rank, and the same ones again after a resume
            start = int(os.environ.get("PL_GLOBAL_SEED", 0)), self.current_epoch, batch_idx, self.trainer.global_rank
            torch.manual_seed(seed_of(*start))
        images = self.to_backbone(augment(batch.flatten(0, 1))).unflatten(0, batch.shape[:2])
        optimize = bool(self.hparams["optimized"]) and images.shape[-1] == self._smallest
        fresh = self._ask(images, gradients=not optimize)
        terms = self._feature_terms(fresh)
        groups = [self._replayed(fresh)]
        if optimize:
            optimized = self._ask(self._optimized.advance(images, self._student_gradient), gradients=True)
            if self.hparams["replay"]:
                self._replay.add(replace(optimized, gradients=None))
            groups.append(optimized)
        own = self._ask_student(torch.cat([group.images for group in groups]))
        terms |= self.terms(own.maps, _joined(groups), images.shape[1] - 1)
        if groups[-1].gradients is not None:
            self.student.eval()
            own = self._ask_student(groups[-1].images, gradients=True)
            self.student.train()
            terms["gradient"] = gradient_error(cast("Tensor", own.gradients), groups[-1].gradients)
        loss = torch.stack([self.hparams[f"{name}_weight"] * term for name, term in terms.items()]).sum()
        self.log_dict({f"train/{name}": term.detach() for name, term in terms.items()})
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def _ask(self, images: Tensor, gradients: bool) -> Targets:
        """The teacher's answers; gradients only if they are trained on."""
        gradients = gradients and self.hparams["gradient_weight"] > 0
        features = self.hparams["feature_weight"] > 0
        calibration = self.teacher.calibration or {}
        return answers(self._encode_by_teacher, calibration, images, gradients, keep_features=features)

    def _ask_student(self, images: Tensor, gradients: bool = False) -> Targets:
        """The student's answers, to be trained on."""
        return answers(self.student.encode, dict(self.student.calibration), images, gradients, create_graph=True)

    def _student_gradient(self, images: Tensor) -> Tensor:
        return gradient_of(self.averaged.encode, dict(self.averaged.calibration), images)

    def _encode_by_teacher(self, images: Tensor) -> dict[str, Tensor]:
        dtype = getattr(torch, self.hparams["teacher_dtype"])
        return {layer: features.float() for layer, features in self.teacher.extractor(images.to(dtype)).items()}

    def _feature_terms(self, fresh: Targets) -> dict[str, Tensor]:
        if not self.hparams["feature_weight"]:
            return {}
        own = self.student.encode(fresh.images.flatten(0, 1))
        weighted = weighted_features(own, {name: w.detach() for name, w in self.student.calibration.items()})
        projected = [projection(f) for projection, f in zip(self.projections, weighted, strict=True)]
        return {"feature": feature_error(projected, weighted_features(fresh.features, self.teacher.calibration or {}))}

    def _replayed(self, fresh: Targets) -> Targets:
        """Groups of the last steps, or the fresh ones."""
        count, size = self.hparams["replay"], fresh.images.shape[-1]
        if not count:
            return fresh
        self._replay.add(fresh)
        return self._replay.draw(size, max(1, round(count * (self._smallest / size) ** 2)))

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
            for kept, now in zip(self.averaged.buffers(), self.student.buffers(), strict=True):
                kept.copy_(now.lerp(kept, decay) if now.is_floating_point() else now)

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        versions, images = batch.shape[1] - 1, self.to_backbone(batch.flatten(0, 1))
        teacher = pair_maps(self._encode_by_teacher(images), self.teacher.calibration or {}, versions)
        student = pair_maps(self.averaged.encode(images), dict(self.averaged.calibration), versions)
        distance, target = (
            torch.stack([m.mean((2, 3)) for m in maps]).sum(0)[:, :versions].flatten() for maps in (student, teacher)
        )
        for index in dataset_indices(self.trainer, 0, batch_idx, 1):  # none for a batch that another rank has too
            self._seen.append((index, batch.shape[-1], distance.cpu(), target.cpu()))

    @override
    def on_validation_epoch_end(self) -> None:
        parts = gather(self.trainer, self._seen)
        self._seen = []
        by_size: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for _, size, distances, targets in sorted((one for part in parts for one in part), key=lambda one: one[0]):
            by_size.setdefault(size, []).append((distances, targets))
        for size, pairs in by_size.items():
            distance, target = (torch.cat(values).to(self.device) for values in zip(*pairs, strict=True))
            spearman = spearman_corrcoef(distance, target)
            self.log(f"val/spearman_{size}", spearman, prog_bar=True, sync_dist=True)
            self.log(f"val/pearson_{size}", pearson_corrcoef(distance, target), sync_dist=True)
            self.log(f"val/scale_{size}", distance.mean() / target.mean(), sync_dist=True)

    @override
    def configure_optimizers(self) -> Any:
        lr, calibration_lr = self.hparams["lr"], self.hparams["calibration_lr"]
        groups = [
            {"params": list(self.student.features.parameters()), "lr": lr},
            {"params": list(self.projections.parameters()), "lr": lr},
            {"params": list(self.student.calibration.parameters()), "lr": calibration_lr or 2 * lr},
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
        half: Write the backbone's tensors in float16, half the size. They are loaded as float32.

    Attributes:
        written: The file, once it is written.
    """

    def __init__(self, path: str | None = None, half: bool = False) -> None:
        self.path, self.half = path, half
        self.written: Path | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.path is not None:
            check_tensor_file(self.path)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, Distillation) or not trainer.is_global_zero:
            return
        tensors, record = pl_module.averaged.folded(), student_record(trainer, pl_module)
        if self.half:
            tensors = {name: t if name.startswith("calibration.") else t.half() for name, t in tensors.items()}
        self.written = Path(self.path or log_folder(trainer, trainer.logger) / "student.safetensors")
        write_tensors(self.written, tensors, record, net_type=_net_of(pl_module) or "custom", version="0.1")


def student_record(trainer: Trainer, module: Distillation) -> dict[str, Any]:
    """Record for the student's file: settings, training data and agreement with the teacher."""
    options, data = dict(module.hparams), _data_of(trainer)
    measured = {
        name: round(float(value), 4) for name, value in trainer.callback_metrics.items() if name.startswith("val/")
    }
    return {
        "recipe": f"recipes/distillation.py, lpips_lightning {__version__}",
        "teacher": f"LPIPS-{options['teacher']} v{options['teacher_version']}",
        "stages": [asdict(stage) for stage in module.stages] if options["backbone"] is None else None,
        "backbone": options["backbone"],
        "seed": data.seed,
        "steps": trainer.global_step,
        "data": data.trained_on,
        "held_out": data.validated_on,
        "date": date.today().isoformat(),
        "agreement": measured,
    }


class DistillationCLI(RecipeCLI):
    """Adds ``--checkpoint.*`` (ModelCheckpoint) and ``--file.path``."""

    networks = (("model.teacher", "model.teacher_weights"), ("model.backbone", "model.backbone_file"))
    outputs = (("file.path", "fit"),)

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(StudentFile, "file")

    @override
    def needed_networks(self) -> tuple[tuple[str, str], ...]:
        config = self.config[self.subcommand] if self.subcommand else self.config
        return self.networks if config.get("model.initialize") == "pretrained" else self.networks[:1]

    @override
    def written_files(self) -> list[tuple[Path, str]]:
        written = self._get(self.config_init, "file").written
        return [] if written is None else [(written, "the student")]

    @override
    def next_commands(self, checkpoint: Path) -> list[str]:
        net = _net_of(self.model)
        if net is None:
            return []
        return [f"LPIPS({net!r}, weights={str(path)!r}) in Python" for path, _ in self.written_files()]


def main(args: list[str] | None = None) -> None:
    """Run the recipe: ``fit`` or ``validate``, with defaults from ``distillation.yaml``.

    Args:
        args: Command line without the program name; None takes ``sys.argv``.
    """
    run_recipe(DistillationCLI, Distillation, DistillationData, __file__, args)


def _check_start(initialize: str, stages: object, backbone: str | None, normalize: bool) -> None:
    if initialize not in _STARTS and Path(initialize).suffix != ".safetensors":
        raise ValueError(f"initialize: expected {', '.join(_STARTS)} or a .safetensors file, got {initialize!r}")
    if backbone is None:
        if initialize == "pretrained":
            raise ValueError("initialize: expected pretrained with model.backbone, got it without")
        return
    if backbone not in _PRETRAINED:
        raise ValueError(f"backbone: expected one of {', '.join(_PRETRAINED)}, got {backbone!r}")
    if stages is not None:
        raise ValueError(f"stages: expected null with backbone {backbone}, which has its own")
    if initialize == "teacher":
        raise ValueError(f"initialize: expected pretrained, random or a file with backbone {backbone}, got teacher")
    if normalize:
        raise ValueError(f"normalize: expected False with backbone {backbone}, which has no such layers")


def _net_of(module: Distillation) -> str | None:
    """The net whose form a student has."""
    backbone = module.hparams["backbone"]
    if backbone is None:
        return "embedded" if tuple(module.stages) == EMBEDDED else None
    return "embedded-vgg" if backbone == "squeeze" else str(backbone)


def _data_of(trainer: Trainer) -> DistillationData:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, DistillationData):
        raise MisconfigurationException("datamodule: expected DistillationData, got none; pass it to Trainer.fit")
    return data


def _joined(targets: list[Targets]) -> list[Tensor]:
    return [torch.cat(maps) for maps in zip(*(one.maps for one in targets), strict=True)]


def _huber(error: Tensor) -> Tensor:
    return F.smooth_l1_loss(error, torch.zeros_like(error), beta=0.1)


def _fit(teacher_map: Tensor, student_map: Tensor) -> Tensor:
    """Resize the teacher's map to the student's."""
    size = student_map.shape[-2:]
    return teacher_map if teacher_map.shape[-2:] == size else F.interpolate(teacher_map, size=size, mode="bilinear")
