"""The distillation recipe: groups, the start from the teacher, learning, the file it writes, the command line."""

import csv
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import forked_python
import numpy as np
import pytest
import torch
import yaml
from frozen_networks import frozen_network
from PIL import Image
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from safetensors import safe_open
from safetensors.torch import load_file

from lpips_lightning import LPIPS
from lpips_lightning.backbones.loading import resolve_network
from lpips_lightning.backbones.plain import EMBEDDED, PlainBackbone, Stage
from lpips_lightning.recipes import distillation
from lpips_lightning.recipes.distillation import Distillation, StudentFile, augment, main
from lpips_lightning.recipes.distillation_data import DistillationData, Groups, public_domain_photographs
from lpips_lightning.recipes.distillation_student import Student, pair_maps, prune_into

TINY = [{"channels": 8, "kernel": 11, "stride": 4, "padding": 2}, {"channels": 8, "pool": 3}]
pytestmark = [
    # 2026-11-21, pytorch_lightning/trainer/connectors/data_connector.py: noise for a few images.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    # 2026-11-21, pytorch_lightning/loops/fit_loop.py: few batches in a test.
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # 2026-11-21, torchmetrics 1.7: distances of a random backbone hardly vary.
    pytest.mark.filterwarnings("ignore:The variance of predictions or target is close to zero"),
]


@pytest.fixture
def folder(tmp_path):
    """Three images of soft colored shapes."""
    generator = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        small = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        small.resize((96, 72), Image.Resampling.BICUBIC).save(path)
    return path.parent


@pytest.fixture
def data(folder):
    return DistillationData(
        [str(folder)], public_domain=False, held_out=["c"], sizes={64: 16, 96: 4}, val_groups=8, batch_size=4
    )


def trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {"max_epochs": 2, "enable_checkpointing": False, "gradient_clip_val": 1.0, **quiet, **options}
    return Trainer(default_root_dir=tmp_path, **options)


def random_alex():
    return resolve_network("alex", "0.1", True, "random", None, seed=0)[1]


def images(groups=2, versions=2, side=64):
    return torch.randn(groups * (1 + versions), 3, side, side, generator=torch.Generator().manual_seed(1))


def test_pair_maps_match_lpips():
    net = LPIPS("alex", weights="random")
    batch = images().clamp(-1, 1)
    maps = pair_maps(net.encode(batch).layers, frozen_network(net).calibration, versions=2)
    first, second = batch[[0, 0, 1, 3, 3, 4]], batch[[1, 2, 2, 4, 5, 5]]
    expected = net(first, second, per_layer=True)
    assert len(maps) == 5
    for layer_map, distance in zip(maps, expected.values(), strict=True):
        torch.testing.assert_close(layer_map.mean((2, 3)).flatten(), distance)


def test_a_student_as_wide_as_its_teacher_starts_as_its_teacher():
    stages = [Stage(64, 11, 4, 2), Stage(192, 5, 1, 2, pool=3), Stage(384, pool=3), Stage(256), Stage(256)]
    student, teacher = Student(stages), random_alex()
    prune_into(student, teacher, images(), versions=2)
    mine, given = student.encode(images()), teacher.extractor(images())
    assert len(mine) == 5
    for (layer, activations), expected in zip(mine.items(), given.values(), strict=True):
        torch.testing.assert_close(activations, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(student.calibration[layer].detach(), teacher.calibration[layer] + 0.02)


def test_a_narrow_student_starts_from_the_most_important_channels():
    student, teacher = Student(EMBEDDED), random_alex()
    prune_into(student, teacher, images(), versions=2)
    given = teacher.extractor.graph.state_dict()["features.0.weight"]
    same = (student.features[0].weight[:, None] == given[None]).flatten(2).all(2)
    assert (same.sum(1) == 1).all()
    taken = same.int().argmax(1)
    assert len(set(taken.tolist())) == 48
    expected = teacher.calibration["relu1"][taken] + 0.02
    torch.testing.assert_close(student.calibration["relu1"].detach(), expected)
    left_out = sorted(set(range(64)) - set(taken.tolist()))
    assert teacher.calibration["relu1"][taken].mean() > teacher.calibration["relu1"][left_out].mean()


@pytest.mark.parametrize("net_type", ["vgg", "squeeze"])
def test_starting_from_a_teacher_of_another_shape_is_refused(net_type):
    teacher = resolve_network(net_type, "0.1", True, "random", None, seed=0)[1]
    with pytest.raises(ValueError, match="initialize: expected 'random'"):
        prune_into(Student(EMBEDDED), teacher, images(), versions=2)


def test_groups_begin_with_the_image_itself_and_follow_the_seed():
    images = [torch.full((3, 64, 64), 200, dtype=torch.uint8)]
    one, two, other = (Groups(images, 64, 32, 3, 0.0, seed).groups for seed in (1, 1, 2))
    assert one.shape == (64, 4, 3, 32, 32)
    assert (one[:, 0] == 200).all()
    assert (one[:, 1:] != 200).any()
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_every_batch_has_one_size_and_about_as_many_pixels(data):
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert sorted(tuple(batch.shape) for batch in batches) == [(2, 5, 3, 96, 96)] * 2 + [(4, 5, 3, 64, 64)] * 4
    assert all(batch.dtype == torch.uint8 for batch in batches)
    validation = [list(data.val_dataloader()) for _ in range(2)]
    assert len(validation[0]) == 2 + 4
    assert all(torch.equal(one, two) for one, two in zip(*validation, strict=True))


def of_ranks(data, ranks, epoch=0):
    """Loaders of training and validation, by rank."""
    for rank in range(ranks):
        data.trainer = SimpleNamespace(world_size=ranks, global_rank=rank, is_global_zero=not rank, current_epoch=epoch)
        data.setup("fit")
        yield data.train_dataloader(), data.val_dataloader()


def test_ranks_share_the_groups_and_draw_different_ones_in_every_epoch(data):
    (first, _), (second, _) = of_ranks(data, 2)
    banks = [[bank.groups for bank in loader.dataset.banks] for loader in (first, second)]
    assert [list(map(len, one)) for one in banks] == [[8, 2], [8, 2]]  # of 16 and 4 groups
    assert not any(torch.equal(one, other) for one, other in zip(*banks, strict=True))
    assert len(first) == len(second) == 3  # batches of 4 and 2 groups
    batches = []
    for epoch in range(2):
        for loader in (first, second):
            loader.sampler.set_epoch(epoch)
            batches.append(list(loader))
    shapes = [sorted(tuple(batch.shape) for batch in one + other) for one, other in (batches[:2], batches[2:])]
    assert shapes == [[(2, 5, 3, 96, 96)] * 2 + [(4, 5, 3, 64, 64)] * 4] * 2
    state = torch.get_rng_state()
    torch.manual_seed(7)
    again = list(second)  # of epoch 1, whatever the global random numbers
    torch.set_rng_state(state)
    assert all(torch.equal(one, other) for one, other in zip(again, batches[3], strict=True))
    assert not any(torch.equal(one, other) for one in batches[1] for other in batches[3])


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_validate_on_the_batches_of_one_process(ranks, data):
    ((_, alone),) = of_ranks(data, 1)
    expected = list(alone)
    loaders = [val for _, val in of_ranks(data, ranks)]
    parts = [list(val) for val in loaders]
    assert len(expected) == 6
    together = [one for step in zip(*parts, strict=True) for one in step]
    assert len(together) == len(expected) + -len(expected) % ranks
    assert all(torch.equal(one, other) for one, other in zip(together, expected, strict=False))


def test_held_out_images_are_not_trained_on(data, folder):
    data.setup("fit")
    assert data.trained_on == ["a", "b"]
    unknown = DistillationData([str(folder)], public_domain=False, held_out=["z"])
    with pytest.raises(ValueError, match=r"held_out: expected names among a, b, c, got 'z'"):
        unknown.setup("fit")
    with pytest.raises(ValueError, match="expected images to train on"):
        DistillationData(public_domain=False).setup("fit")


def test_folders_with_images_of_one_name_are_refused(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.png").write_bytes((folder / "b.png").read_bytes())
    data = DistillationData([str(folder), str(other)], public_domain=False)
    with pytest.raises(ValueError, match=r"folder: expected each name once, got '.*images/a.png' and '.*other/a.png'"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("options", "message"), [({"versions": 1}, "versions"), ({"procedural_fraction": 2}, "procedural_fraction")]
)
def test_impossible_data_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DistillationData(**options)


def test_public_domain_photographs_are_those_in_the_installed_scikit_image():
    found = public_domain_photographs()
    assert {"astronaut", "camera", "chelsea", "coffee", "rocket"} <= set(found)
    assert all(path.is_file() for path in found.values())


def test_augment_treats_all_images_alike_and_only_moves_values():
    batch = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4)
    seen = [augment(batch) for _ in range(40)]
    assert len({tuple(turned.flatten().tolist()) for turned in seen}) > 8
    for turned in seen:
        assert torch.equal(turned[1] - turned[0], batch[1] - batch[0])
        assert torch.equal(turned.flatten().sort()[0], batch.flatten())


def error_after_training(folder, tmp_path, epochs=10, seed=0, **options):
    """Mean absolute error of the distance on the groups trained on."""
    torch.manual_seed(seed)
    data = DistillationData([str(folder)], public_domain=False, sizes={64: 32}, val_groups=8, batch_size=4)
    model = Distillation(teacher_weights="random", warmup_steps=2, **options)
    fit = trainer(tmp_path, max_epochs=epochs, limit_val_batches=0)
    fit.fit(model, data)
    images = fit.train_dataloader.dataset.banks[0].groups.flatten(0, 1)
    given = pair_maps(model.teacher.extractor(model.to_backbone(images)), model.teacher.calibration, 4)
    mine = pair_maps(model(images), model.averaged.calibration, 4)
    return float(model.terms(mine, given, 4)["absolute"])


def test_a_student_learns_its_teachers_distances(folder, tmp_path):
    student = {"stages": TINY, "initialize": "random"}
    before, after = (error_after_training(folder, tmp_path, lr=lr, **student) for lr in (1e-9, 1e-3))
    assert after < 0.5 * before


@pytest.mark.slow
def test_initialization_from_the_teacher_helps(folder, tmp_path):
    pruned, blank = (
        np.mean([error_after_training(folder, tmp_path, 1, seed, lr=1e-9, initialize=start) for seed in range(3)])
        for start in ("teacher", "random")
    )
    assert pruned < 0.8 * blank  # 0.3 with torch 2.15, 0.7 with torch 2.6, whose random weights start nearer


def test_calibration_is_never_negative(data, tmp_path):
    model = Distillation(teacher_weights="random", stages=TINY, initialize="random", lr=0.5, warmup_steps=0)
    trainer(tmp_path, max_epochs=1).fit(model, data)
    assert sum(int((weight == 0).sum()) for weight in model.student.calibration.values()) > 0
    assert all((weight >= 0).all() for weight in model.student.calibration.values())


def test_the_file_holds_the_averaged_student_and_its_record(data, tmp_path):
    path = tmp_path / "made" / "student.safetensors"
    model = Distillation(teacher_weights="random", stages=TINY, initialize="random")
    trainer(tmp_path, callbacks=[StudentFile(str(path))]).fit(model, data)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        record = json.loads(file.metadata()["record"])
    names = {"calibration.relu1", "calibration.relu2"} | {
        f"features.{i}.{n}" for i in (0, 3) for n in ("weight", "bias")
    }
    assert set(tensors) == names
    for name, value in model.averaged.state_dict().items():
        assert torch.equal(tensors[name], value)
    assert any(not torch.equal(tensors[name], value) for name, value in model.student.state_dict().items())
    backbone = PlainBackbone([Stage(**stage) for stage in record["stages"]])
    backbone.load_state_dict({name: value for name, value in tensors.items() if name.startswith("features")})
    assert record["teacher"] == "LPIPS-alex v0.1"
    assert record["data"] == ["a", "b"]
    assert record["held_out"] == ["c"]
    assert record["steps"] == 12
    assert {f"val/{score}_{size}" for score in ("spearman", "pearson", "scale") for size in (64, 96)} == set(
        record["agreement"]
    )
    assert str(tmp_path) not in json.dumps(record)


def test_a_checkpoint_loads_as_plain_data_without_the_teacher_and_resumes(data, tmp_path):
    model = Distillation(teacher_weights="random", stages=TINY, initialize="random")
    fit = trainer(tmp_path)
    fit.fit(model, data)
    fit.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in saved} == {"student", "averaged"}
    resumed = Distillation.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert resumed.stages == model.stages
    taken_up = {}

    class Start(Callback):
        def on_train_start(self, trainer, pl_module):
            taken_up.update({name: value.clone() for name, value in pl_module.state_dict().items()})

    longer = trainer(tmp_path, max_epochs=3, callbacks=[Start()])
    longer.fit(resumed, data, ckpt_path=tmp_path / "last.ckpt")
    assert longer.global_step == 18
    assert taken_up.keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in taken_up.items())


def test_validated_scores_are_those_of_all_pairs_with_the_image(data, tmp_path):
    model = Distillation(teacher_weights="random", stages=TINY, initialize="random")
    fit = trainer(tmp_path)
    scores = fit.validate(model, data, verbose=False)[0]
    batches = [batch for batch in data.val_dataloader() if batch.shape[-1] == 64]
    mine, given = [], []
    teacher = LPIPS("alex", weights=model.teacher.extractor.graph.state_dict())
    for batch in batches:
        for group in batch:
            pairs = group[:1].expand(4, -1, -1, -1), group[1:]
            given.append(teacher(*pairs, data_range=(0, 255)))
            maps = pair_maps(model(group), model.averaged.calibration, 4)
            mine.append(torch.stack([layer.mean((2, 3)) for layer in maps]).sum(0)[0, :4])
    mine, given = torch.cat(mine), torch.cat(given)
    assert scores["val/scale_64"] == pytest.approx(float(mine.mean() / given.mean()), rel=1e-3)
    assert scores["val/pearson_64"] == pytest.approx(float(torch.corrcoef(torch.stack([mine, given]))[0, 1]), abs=1e-4)


def test_the_packaged_yaml_makes_the_embedded_backbone_and_takes_a_step(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["distillation"])
    packaged = yaml.safe_load(Path(distillation.__file__).with_suffix(".yaml").read_text())
    assert tuple(Stage(**stage) for stage in packaged["model"]["stages"]) == EMBEDDED
    small = f"--data.folder={folder} --data.public_domain=false --data.val_groups=4"
    short = (
        "--data.batch_size=2 --trainer.max_epochs=1 --trainer.enable_progress_bar=false --file.path=made.safetensors"
    )
    main(["fit", "--model.teacher_weights=random", "--data.sizes={64: 4}", *small.split(), *short.split()])
    with safe_open(tmp_path / "made.safetensors", "pt") as file:
        assert file.get_tensor("features.0.weight").shape == (48, 3, 11, 11)


def test_training_without_the_data_module_is_refused_before_the_first_step(data, tmp_path):
    data.setup("fit")
    model = Distillation(teacher_weights="random", stages=TINY, initialize="random")
    with pytest.raises(MisconfigurationException, match="datamodule: expected DistillationData, got none"):
        trainer(tmp_path).fit(model, data.train_dataloader(), data.val_dataloader())


def test_an_unknown_initialization_is_refused():
    with pytest.raises(ValueError, match=r"initialize: expected teacher, random, pretrained or .* file, got 'warm'"):
        Distillation(initialize="warm")


def test_a_backbone_learns_from_its_pretrained_weights_on(folder, tmp_path):
    """Its first distances are those of the network up to a scale; the file, of half size, is weights for LPIPS."""
    network = resolve_network("squeeze", "0.1", True, "random", None, seed=0)[1]
    halves = {name: tensor.half() for name, tensor in network.extractor.graph.state_dict().items()}
    options = {"backbone": "squeeze", "backbone_file": "random", "initialize": "pretrained", "lr": 1e-9}
    model = Distillation(teacher="squeeze", teacher_weights="random", warmup_steps=1, **options)
    data = DistillationData([str(folder)], public_domain=False, sizes={64: 4}, val_groups=4, batch_size=2)
    path = tmp_path / "student.safetensors"
    fit = trainer(tmp_path, max_epochs=1, callbacks=[StudentFile(str(path), half=True)])
    fit.fit(model, data)
    assert float(fit.callback_metrics["val/spearman_64"]) == pytest.approx(1, abs=1e-3)
    assert float(fit.callback_metrics["val/scale_64"]) == pytest.approx(1, abs=1e-3)
    tensors = load_file(path)
    assert {t.dtype for name, t in tensors.items() if name.startswith("features.")} == {torch.float16}
    written = LPIPS("squeeze", weights=path)
    x, y = images(groups=1, versions=1).sigmoid().chunk(2)
    expected = LPIPS("squeeze", weights=halves)(x, y, data_range=(0, 1))
    torch.testing.assert_close(written(x, y, data_range=(0, 1)), expected, rtol=1e-3, atol=0)
    further = Distillation(**options | {"initialize": str(path), "backbone_file": None}, teacher_weights="random")
    trainer(tmp_path, max_epochs=1).fit(further, data)
    for name, tensor in further.averaged.folded().items():
        torch.testing.assert_close(tensor, tensors[name].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initialize": "pretrained"}, "initialize: expected pretrained with model.backbone, got it without"),
        ({"backbone": "resnet18"}, "backbone: expected one of alex, vgg, squeeze, got 'resnet18'"),
        (
            {"backbone": "squeeze"},
            "initialize: expected pretrained, random or a file with backbone squeeze, got teacher",
        ),
        ({"backbone": "alex", "stages": TINY, "initialize": "random"}, "stages: expected null with backbone alex"),
        ({"backbone": "alex", "normalize": True, "initialize": "random"}, "normalize: expected False with backbone"),
    ],
)
def test_a_start_that_a_student_cannot_have_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Distillation(**options)


def test_a_student_learns_from_features_gradients_and_what_it_optimizes(folder, tmp_path):
    options = {"stages": [{**stage} for stage in TINY], "initialize": "random", "teacher": "alex"}
    extras = {"replay": 6, "optimized": 2, "optimized_steps": 3, "gradient_weight": 0.1}
    torch.manual_seed(0)
    data = DistillationData([str(folder)], public_domain=False, sizes={64: 8, 96: 2}, val_groups=4, batch_size=2)
    model = Distillation(teacher_weights="random", teacher_dtype="bfloat16", normalize=True, **options, **extras)
    fit = trainer(tmp_path, max_epochs=2, callbacks=[StudentFile(str(tmp_path / "student.safetensors"))])
    fit.fit(model, data)
    written = PlainBackbone(model.stages)
    tensors = load_file(tmp_path / "student.safetensors")
    written.load_state_dict({name: value for name, value in tensors.items() if name.startswith("features")})
    pictures = images(groups=1, versions=1)
    for layer, expected in model.averaged.eval().encode(pictures).items():
        torch.testing.assert_close(written.encode(pictures)[layer], expected, rtol=1e-3, atol=1e-3)
    assert {f"train/{name}" for name in ("ratio", "absolute", "group", "gradient", "loss")} <= set(fit.callback_metrics)
    assert all(value.isfinite() for value in fit.callback_metrics.values())


def test_features_are_compared_layer_by_layer(data, tmp_path):
    stages = [
        {"channels": 8, "kernel": 11, "stride": 4, "padding": 2},
        *({"channels": 8, "pool": pool} for pool in (3, 3, 0, 0)),
    ]
    model = Distillation(teacher_weights="random", stages=stages, initialize="random", feature_weight=1.0)
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(model, data)
    assert 0 < float(fit.callback_metrics["train/feature"]) < float("inf")
    moments = fit.optimizers[0].state
    assert all(moments[weight]["exp_avg"].any() for weight in model.projections.parameters())
    assert not any("projection" in name for name in model.averaged.state_dict())
    with pytest.raises(ValueError, match="feature_weight: expected 0, unless the student has as many layers as 'alex'"):
        Distillation(teacher_weights="random", stages=TINY, feature_weight=1.0)


def test_training_goes_on_from_a_students_file(data, tmp_path):
    path = tmp_path / "first.safetensors"
    options = {"teacher_weights": "random", "stages": TINY}
    first = Distillation(**options, initialize="random")
    trainer(tmp_path, max_epochs=1, callbacks=[StudentFile(str(path))]).fit(first, data)
    second = Distillation(**options, initialize=str(path), lr=1e-12)
    trainer(tmp_path, max_epochs=1).fit(second, data)
    for name, value in first.averaged.state_dict().items():
        torch.testing.assert_close(second.averaged.state_dict()[name], value)
    with pytest.raises(ValueError, match="normalize: expected False to train a student's file further"):
        trainer(tmp_path, max_epochs=1).fit(Distillation(**options, initialize=str(path), normalize=True), data)
    other = Distillation(teacher_weights="random", initialize=str(path))
    with pytest.raises(ValueError, match="initialize: expected a student of the same stages"):
        trainer(tmp_path, max_epochs=1).fit(other, data)


def on_two_ranks(*lines):
    """Run command lines of the recipe on two processes."""
    words = [word for number, line in enumerate(lines) for word in ["--then"][: number > 0] + list(line)]
    # Without wandb's: an old one leaves the address of its server there, at which a new process waits when it ends.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = {**inherited, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).parents[1] / "_helpers" / "recipe_jobs.py"
    done = forked_python.run([script, "distillation", *words], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]


def validated(folder):
    """The last validation in a folder's log."""
    with (folder / "metrics.csv").open(newline="") as text:
        rows = [row for row in csv.DictReader(text) if row.get("val/scale_64")]
    return {name: float(value) for name, value in rows[-1].items() if name.startswith("val/")}


@pytest.mark.slow
def test_two_processes_validate_as_one_and_resume_as_if_never_interrupted(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages = [{**TINY[0]}, {**TINY[1]}, {**TINY[1]}, {"channels": 8}, {"channels": 8}]
    data = ["--data.public_domain=false", "--data.held_out=[c]", "--data.val_groups=10", "--data.batch_size=4"]
    data += [f"--data.folder={folder}", "--data.sizes={64: 32, 96: 8}", "--data.versions=2"]
    model = ["--model.teacher_weights=random", f"--model.stages={stages}", "--trainer.enable_progress_bar=false"]
    loss = ["--model.gradient_weight=0.5", "--model.feature_weight=0.1", "--model.normalize=true"]
    model += [*loss, "--model.initialize=random"]
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    fit = ["fit", *data, *model, *two, "--trainer.max_epochs=2", "--trainer.reload_dataloaders_every_n_epochs=1"]
    mid = ["--checkpoint.every_n_train_steps=8", "--checkpoint.filename=mid"]  # of 6 + 6 steps
    whole, resumed = (f"--trainer.logger.init_args.name={name}" for name in ("whole", "resumed"))
    checkpoint = "outputs/whole/version_0/checkpoints/mid.ckpt"
    on_two_ranks([*fit, *mid, whole], [*fit, *mid, resumed, f"--ckpt_path={checkpoint}"])
    first, second = (load_file(f"outputs/{name}/version_0/student.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(list(tmp_path.rglob("student.safetensors"))) == 2

    test = ["validate", *data, *model, *mid, f"--ckpt_path={checkpoint}"]
    on_two_ranks([*test, *two, "--trainer.logger.init_args.name=together"])
    main([*test, "--trainer.logger.init_args.name=alone"])
    together, alone = (validated(tmp_path / "outputs" / name / "version_0") for name in ("together", "alone"))
    assert together == alone
    assert len(alone) == 6
