"""The recipe for CNN-based distortions: what is drawn, learning, the family's file, resuming, several processes."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from small_data import write_noise

from lpips_lightning.adversarial import PatchDiscriminator
from lpips_lightning.data.cnn_distortions import DenoisingAutoencoder, GeneratorSpec, read_family
from lpips_lightning.data.crops import seeded
from lpips_lightning.loss import PerceptualLoss
from lpips_lightning.recipes.cnn_distortions import CNNDistortions, main, measure, print_networks
from lpips_lightning.recipes.cnn_distortions_data import CNNDistortionsData
from lpips_lightning.recipes.cnn_distortions_training import Trainee, TrainingSpec, draw_training
from lpips_lightning.recipes.interruption import Interruption

# 2026-11-28, pytorch_lightning/trainer/connectors/data_connector.py: noise for a few images.
pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
SMALL = "--model.networks=3 --model.first_channels=[2] --model.most_channels=[4] --data.folder=images --data.size=48"
SMALL += " --data.batch_size=2 --data.steps=3 --data.measured=2 --trainer.enable_progress_bar=false"
FIT = ["fit", *SMALL.split()]
SPEC = GeneratorSpec(first_channels=4, most_channels=8)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_noise("images")


def family_of(number):
    return read_family(Path("outputs/cnn_distortions") / f"version_{number}" / "family.safetensors")


def last(number):
    return Path("outputs/cnn_distortions") / f"version_{number}" / "checkpoints/last.ckpt"


def shapes(count=8, size=48):
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size, mode="nearest")


def test_trainings_are_drawn_within_their_ranges():
    drawn = [draw_training(seeded(0, index)) for index in range(300)]
    ranges = {"l1_weight": (0.1, 1), "perceptual_weight": (0.03, 1), "discriminator_weight": (0.003, 0.1)}
    for name, (low, high) in {**ranges, "lr": (1e-4, 1e-3)}.items():
        used = [value for spec in drawn if (value := getattr(spec, name))]
        assert low <= min(used) < 1.2 * low and high / 1.2 < max(used) <= high
        assert len(used) == 300 if name in ("l1_weight", "lr") else 150 < len(used) < 250
    assert {spec.discriminator_layers for spec in drawn} == {1, 2, 3, 4}


def test_five_networks_in_a_row_have_the_five_corruptions_and_the_seed_decides():
    model = CNNDistortions(networks=20)
    kinds = [model.specs(index)[0].corruption for index in range(20)]
    assert all(len(set(kinds[start : start + 5])) == 5 for start in range(0, 20, 5))
    assert len({tuple(kinds[start : start + 5]) for start in range(0, 20, 5)}) > 1
    assert [CNNDistortions().specs(index) for index in range(8)] == [model.specs(index) for index in range(8)]
    assert all(CNNDistortions(seed=1).specs(index) != model.specs(index) for index in range(8))


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_a_discriminator_scores_patches(layers):
    net = PatchDiscriminator(layers, 4)
    image = torch.rand(1, 3, 192, 192, requires_grad=True)
    scores = net(image)
    assert scores.shape == (1, 1, *[192 // 2**layers - 2] * 2)
    assert net(torch.rand(1, 3, 48, 48)).shape[-1] >= 1
    scores = torch.nn.Sequential(*(one for one in net if not isinstance(one, torch.nn.GroupNorm)))(image)
    middle = scores.shape[-1] // 2
    scores[0, 0, middle, middle].backward()
    seen = image.grad.abs().sum((0, 1)).nonzero()
    assert int(seen.max(0).values[0] - seen.min(0).values[0]) + 1 == {1: 16, 2: 34, 3: 70, 4: 142}[layers]


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (1, 0, 0.1)], ids=["l1", "perceptual", "discriminator"])
def test_a_network_learns_its_losses(weights):
    trainee = Trainee(0, SPEC, TrainingSpec(*weights, 2, 3e-3), 0, CPU)
    perceptual = PerceptualLoss("embedded", data_range=(0, 1))
    before = [parameter.clone() for parameter in trainee.discriminator.parameters()]
    losses = [trainee.step(shapes(), perceptual) for _ in range(15)]
    assert all(
        set(one) == {"l1", *(("perceptual",) if weights[1] else ()), *(("discriminator",) if weights[2] else ())}
        for one in losses
    )
    trained = "perceptual" if weights[1] else "l1"
    assert losses[-1][trained] < 0.8 * losses[0][trained]
    changed = any(not torch.equal(a, b) for a, b in zip(before, trainee.discriminator.parameters(), strict=True))
    assert changed == bool(weights[2])


def test_a_discriminator_learns_to_tell_images_from_outputs():
    spec = GeneratorSpec(first_channels=8, most_channels=16)
    trainee = Trainee(0, spec, TrainingSpec(1, 0, 1, 3, 1e-3), 0, CPU)
    made = trainee.network(shapes()).detach()
    losses = [float(trainee._train_discriminator(shapes(), made).detach()) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    assert trainee.discriminator(shapes()).mean() > 0 > trainee.discriminator(made).mean()


def test_training_depends_on_seed_and_index_only_and_leaves_the_random_numbers():
    spec, training = GeneratorSpec("white_noise", 0.5, first_channels=2, most_channels=4, dropout=(1, 2)), None
    training = TrainingSpec(1, 0, 0.1, 1, 1e-3)

    def trained(index, seed, before):
        torch.manual_seed(before)
        trainee, state = Trainee(index, spec, training, seed, CPU), torch.get_rng_state()
        for _ in range(2):
            trainee.step(shapes(2), lambda x, y: x.sum())
        assert torch.equal(torch.get_rng_state(), state)
        return torch.cat([parameter.detach().flatten() for parameter in trainee.network.parameters()])

    first = trained(0, 0, before=1)
    assert torch.equal(trained(0, 0, before=2), first)
    assert not torch.equal(trained(1, 0, before=1), first) and not torch.equal(trained(0, 1, before=1), first)


def test_measured_are_distances_and_contrast():
    perceptual, images = PerceptualLoss("embedded", data_range=(0, 1)), shapes()
    net = DenoisingAutoencoder(GeneratorSpec()).eval()
    with torch.no_grad():
        made = net(images)
        distances = perceptual.net(made, images, data_range=(0, 1))
    found = measure(net, images, 0, perceptual)
    assert found["lpips"] == pytest.approx(float(distances.mean()), abs=1e-4)
    assert found["lpips_min"] == pytest.approx(float(distances.min()), abs=1e-4)
    assert found["l1"] == pytest.approx(float((made - images).abs().mean()), abs=1e-4)
    for one in net.decoder[0]:
        torch.nn.init.zeros_(one.weight) if hasattr(one, "weight") else None
    assert measure(net, images, 0, perceptual)["contrast"] < 1e-3


def test_a_network_that_gave_up_is_named(capsys):
    scores = {"lpips": 0.5, "lpips_min": 0.4, "lpips_max": 0.6, "contrast": 0.9}
    records = [{"generator": {"corruption": "null"}, "scores": {**scores, "contrast": c}} for c in (0.9, 0.01)]
    print_networks(records, "embedded")
    said = capsys.readouterr().out
    assert "Nearly one color whatever the image: cnn01; more --data.steps help" in said and "cnn00" in said


def test_a_run_writes_the_family_its_record_and_the_sheet(capsys):
    main([*FIT])
    said = capsys.readouterr().out
    assert "Training 3 networks; results go to outputs/cnn_distortions/version_0." in said
    assert "Next: lpips-lightning bapps make --folder images --out made --family both --cnn outputs/cnn_dist" in said
    family = family_of(0)
    record = family.record
    assert family.names == ["cnn00", "cnn01", "cnn02"] and record["steps"] == 3
    assert record["data"] == ["a", "b", "c", "d", "more/e"] and record["loss_net"] == "embedded"
    model = CNNDistortions(3, [2], [4])
    assert [family[name].spec for name in family.names] == [model.specs(index)[0] for index in range(3)]
    for network in record["networks"]:
        assert network["scores"]["lpips"] > 0 and network["training"]["lr"] > 0
    assert all(Path(f"outputs/cnn_distortions/version_0/family.{kind}").is_file() for kind in ("png", "pdf"))
    checkpoint = torch.load(last(0), weights_only=True)
    assert checkpoint["global_step"] == 9 and list(checkpoint["state_dict"]) == ["steps"]
    assert not any(isinstance(one, DenoisingAutoencoder) for one in CNNDistortions().modules())


def test_fewer_networks_are_the_first_ones_of_more():
    main([*FIT, "--trainer.max_epochs=2"])
    main([*FIT])
    two, three = family_of(0), family_of(1)
    assert two.names == three.names[:2]
    for name in two.names:
        assert all(torch.equal(a, b) for a, b in zip(two[name].parameters(), three[name].parameters(), strict=True))


@pytest.mark.parametrize("step", [4, 6], ids=["in a network", "between two"])
def test_an_interrupted_run_resumes_to_the_same_family(step, monkeypatch):
    main([*FIT])
    whole = family_of(0)
    original, at = Interruption.on_train_batch_start, {step}

    def interrupted(self, trainer, *args):
        original(self, trainer, *args)
        if trainer.global_step in at:
            at.clear()
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Interruption, "on_train_batch_start", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main([*FIT])
    assert stopped.value.code == 130 and not Path("outputs/cnn_distortions/version_1/family.safetensors").exists()
    main([*FIT, f"--ckpt_path={last(1)}"])
    resumed = family_of(1)
    assert resumed.sha256 == whole.sha256 and resumed.record == whole.record


def test_a_run_that_ends_in_a_network_keeps_it_for_later():
    often = "--checkpoint.every_n_train_steps=1"
    main([*FIT, "--trainer.max_steps=4", often])
    assert family_of(0).names == ["cnn00"]
    main([*FIT, often, f"--ckpt_path={last(0)}", "--file.path=later.safetensors"])
    main([*FIT])
    assert read_family("later.safetensors").sha256 == family_of(1).sha256


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.networks=0", "networks: expected at least 1, got 0"),
        ("--model.most_channels=[1]", r"most_channels: expected at least all of first_channels, got \[1\] and \[2\]"),
        ("--data.size=40", "size: expected at least 48, got 40"),
        ("--data.steps=0", "steps: expected at least 1, got 0"),
        ("--trainer.precision=64-true", "precision: expected 32-true or bf16-mixed, got 64-true"),
    ],
)
def test_wrong_options_are_refused(option, message):
    with pytest.raises((ValueError, MisconfigurationException), match=message):
        main([*FIT, option])
    assert [path.name for path in Path().iterdir()] == ["images"]


def test_batches_depend_on_seed_and_network_on_any_number_of_ranks():
    data = CNNDistortionsData("images", size=48, batch_size=2, steps=3, num_workers=0)
    data.setup("fit")
    loader = data.train_dataloader()
    networks = []
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        networks.append(torch.stack(list(loader)))
    assert len(loader) == 3 and networks[0].shape == (3, 2, 3, 48, 48)
    assert len({float(batch.sum()) for batch in torch.cat(networks)}) == 12
    from lpips_lightning.recipes.cnn_distortions_data import NetworkSampler

    for rank in range(2):
        sampler = NetworkSampler(3, 0, 2, rank)
        sampler.set_epoch(1)
        own = torch.stack([data.train_dataloader().dataset[index] for index in sampler])
        assert torch.equal(own, networks[2 + rank])
    uncached = CNNDistortionsData("images", size=48, batch_size=2, steps=3, cache=False)
    uncached.setup("fit")
    assert torch.equal(torch.stack(list(uncached.train_dataloader())), networks[0])


@pytest.mark.slow
def test_two_processes_train_the_family_of_one():
    main([*FIT])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = Path(__file__).parents[1] / "_helpers" / "recipe_jobs.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": port}
    line = [sys.executable, str(job), "cnn_distortions", *FIT, "--trainer.strategy=ddp", "--trainer.devices=2"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    one, two = family_of(0), family_of(1)
    assert one.sha256 == two.sha256 and one.record == two.record
