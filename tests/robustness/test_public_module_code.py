"""What public code does to the modules that hold a loss: copies, casts, walks, checkpoints, wrappers, processes."""

from __future__ import annotations

import copy
import functools
import importlib
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import jsonargparse
import pytest
import pytorch_lightning as pl
import subprocess_jobs as workers
import torch
import yaml
from lightning_fabric import Fabric
from packaging.version import Version
from public_code import Comparison, WithLoss, images, packages, steps, wrapped_steps
from references import peer_lpips, peer_torchmetrics, relative_distance
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss, compat

KINDS = {
    "compat": lambda: compat.LPIPS(net="embedded"),
    "loss": lambda: PerceptualLoss("embedded", data_range=(-1, 1)),
    "network": lambda: LPIPS("embedded"),
}


@pytest.fixture(scope="module")
def same(backbones, tmp_path_factory):
    return Comparison(*packages(backbones, tmp_path_factory.mktemp("backbones")))


@pytest.fixture(params=KINDS)
def model(request):
    return WithLoss(KINDS[request.param]())


def initialize(module):
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, 0, 0.02)
        nn.init.zeros_(module.bias)


def normalize_weights(model, norm):
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d):
            norm(module)


class LoRA(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base, self.down = base, nn.Conv2d(base.in_channels, 2, 1, base.stride, bias=False)
        self.up = nn.Conv2d(2, base.out_channels, 1, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def replace_convolutions(module):
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            setattr(module, name, LoRA(child))
        else:
            replace_convolutions(child)


def make_inplace(model):
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = True


TREATMENTS = {
    "init": lambda model: model.apply(initialize),
    "parameters initialized": lambda model: [nn.init.uniform_(parameter) for parameter in model.parameters()],
    "weight_norm": lambda model: normalize_weights(model, parametrizations.weight_norm),
    "spectral_norm": lambda model: normalize_weights(model, parametrizations.spectral_norm),
    "replaced convolutions": replace_convolutions,
    "sync batch norm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "inplace": make_inplace,
    "frozen": lambda model: model.requires_grad_(False),
    "trained": lambda model: model.train(),
    "evaluated": lambda model: model.eval(),
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "double": lambda model: model.double(),
    "cast": lambda model: model.to(device="cpu", dtype=torch.float16, non_blocking=True),
    "channels last": lambda model: model.to(memory_format=torch.channels_last),
    "shared memory": lambda model: model.share_memory(),
    "zeroed": lambda model: model.zero_grad(set_to_none=False),
    "on meta and back": lambda model: model.to("meta").to_empty(device="cpu"),
}


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_what_is_done_to_every_module_or_parameter_leaves_the_distance(model, treatment):
    x, y = images(), images(seed=1)
    expected = model.perceptual(x, y)
    TREATMENTS[treatment](model)
    assert torch.equal(model.perceptual(x, y), expected)
    assert not list(model.perceptual.parameters()) + list(model.perceptual.buffers())
    assert not [name for name in model.state_dict() if "perceptual" in name]


def copied(model):
    return copy.deepcopy(model)


def ema(model):
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    averaged.update_parameters(model)
    return averaged.module


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved_whole(model, folder):
    torch.save(model, folder / "model.pt")
    return torch.load(folder / "model.pt", weights_only=False)


@pytest.mark.parametrize("way", [copied, ema, pickled, saved_whole])
def test_copies_of_a_model_go_on_training(model, way, tmp_path):
    steps(model, [images(seed=3)])
    expected_start = copy.deepcopy(model.state_dict())
    twin = way(model, tmp_path) if way is saved_whole else way(model)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(value, expected_start[name])
    assert steps(twin, [images()] * 3) == pytest.approx(steps(model, [images()] * 3), rel=1e-5)


@pytest.mark.filterwarnings("ignore:in0. expected values on")  # evaluated without a gradient, an untrained network's
def test_ema_of_a_model_in_training(same):
    def train(lpips):
        model = WithLoss(lpips.LPIPS(net="alex").requires_grad_(False))
        averaged, log = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5)), []
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(images())
            loss.backward()
            optimizer.step()
            averaged.update_parameters(model)
            with torch.no_grad():
                log.append((loss, averaged(images())))
        return log

    same.training(train)


def note_shape(shapes, name, module, args, output):
    shapes[name] = output[0].shape if isinstance(output, tuple) else output.shape


def note_gradient(gradients, name, module, gradients_in, gradients_out):
    gradients[name] = float(gradients_in[0].norm())


def test_reports_on_parameters_and_gradients(model):
    """Counts, groups with and without decay by name, norms by name, hooks on every module."""
    shapes, gradients = {}, {}
    for name, module in model.named_modules():
        module.register_forward_hook(functools.partial(note_shape, shapes, name))
        module.register_full_backward_hook(functools.partial(note_gradient, gradients, name))
    decayed = [p for name, p in model.named_parameters() if p.requires_grad and p.dim() > 1]
    plain = [p for name, p in model.named_parameters() if p.requires_grad and p.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}])
    loss = model(images().requires_grad_())
    loss.backward()
    norms = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}
    total = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    assert float(total) == pytest.approx(sum(norm**2 for norm in norms.values()) ** 0.5, rel=1e-5)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == sum(parameter.numel() for parameter in model.network.parameters())
    assert shapes["network.conv_out"] == (2, 3, 48, 48) and "perceptual" in shapes
    assert gradients["perceptual"] > 0


@pytest.mark.parametrize("around", ["anomaly", "save_on_cpu", "functional_call", "enable_grad", "flops"])
def test_contexts_around_a_step_leave_its_gradient(model, around):
    x = images()
    model(x).backward()
    expected = model.network.conv_out.weight.grad.clone()
    model.zero_grad()
    if around == "anomaly":
        with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
            model(x).backward()
    elif around == "save_on_cpu":
        with torch.autograd.graph.save_on_cpu():
            model(x).backward()
    elif around == "functional_call":
        torch.func.functional_call(model, dict(model.named_parameters()), (x,)).backward()
    elif around == "enable_grad":
        with torch.no_grad(), torch.enable_grad():
            model(x).backward()
    else:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            model(x).backward()
        assert counter.get_total_flops() > 0
    assert relative_distance(model.network.conv_out.weight.grad, expected) < 1e-6


PEERS = {"lpips": (peer_lpips, "lin0"), "torchmetrics": (peer_torchmetrics, "net.lin0")}


@pytest.fixture(scope="module")
def old_states(backbones):
    """State dicts of a model whose loss was the peer's, as latent diffusion's and nerfstudio's checkpoints are."""
    return {name: WithLoss(build("alex", backbones["alex"])).state_dict() for name, (build, _) in PEERS.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "loss."])
@pytest.mark.parametrize("peer", PEERS)
def test_checkpoints_with_the_peers_network_load(model, old_states, peer, prefix):
    old = {f"{prefix}{name}": value for name, value in old_states[peer].items()}
    assert f"{prefix}perceptual.{PEERS[peer][1]}.model.1.weight" in old
    parent = nn.Module()
    parent.loss = model
    target = parent if prefix == "loss." else model
    stripped = {name if prefix == "loss." else name.removeprefix(prefix): value for name, value in old.items()}
    missing, unexpected = target.load_state_dict(dict(stripped), strict=False)
    assert not missing and not unexpected
    target.load_state_dict(stripped, strict=True)
    assert torch.equal(model.network.conv_out.weight, old[f"{prefix}network.conv_out.weight"])


class Held(pl.LightningModule):
    """A LightningModule that holds its loss and optimizes ``self.parameters()``."""

    def __init__(self, perceptual=None):
        super().__init__()
        self.model = WithLoss(perceptual or compat.LPIPS(net="embedded"))

    def training_step(self, batch, batch_idx):
        return self.model(batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def fit(module, folder, epochs, ckpt_path=None):
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=epochs, default_root_dir=folder, log_every_n_steps=1, **options)
    trainer.fit(module, DataLoader(images(4), batch_size=2), ckpt_path=ckpt_path)
    return trainer


# pytorch-lightning's advice on loaders, on the old network, and on the folder of the run that goes on.
@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*in eval mode at the start", "ignore:The dirpath has changed"
)
def test_lightning_resumes_and_reads_a_checkpoint_of_the_old_import(backbones, tmp_path):
    old = Held(peer_lpips("alex", backbones["alex"]))
    fit(old, tmp_path / "old", 1).save_checkpoint(tmp_path / "old.ckpt")
    read = Held.load_from_checkpoint(tmp_path / "old.ckpt")
    assert torch.equal(read.model.network.conv_out.weight, old.model.network.conv_out.weight)
    whole, half = Held(), Held()
    half.load_state_dict(whole.state_dict())
    fit(whole, tmp_path / "whole", 2)
    fit(half, tmp_path / "half", 1).save_checkpoint(tmp_path / "half.ckpt")
    assert (tmp_path / "half.ckpt").stat().st_size < 2**18  # the network alone is larger
    resumed = Held()
    fit(resumed, tmp_path / "resumed", 2, tmp_path / "half.ckpt")
    assert relative_distance(resumed.model.network.conv_out.weight, whole.model.network.conv_out.weight) < 1e-6


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("kind", ["compat", "loss"])
def test_fabric_sets_up_model_and_loss(kind, precision, tmp_path):
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    with fabric.init_module():
        model, perceptual = WithLoss(nn.Identity()).network, KINDS[kind]()
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.05))
    perceptual, (batches,) = fabric.setup_module(perceptual), (fabric.setup_dataloaders(DataLoader([*images(4)], 2)),)
    log = []
    for _ in range(3):
        for batch in batches:
            target = batch.to(next(model.parameters()).dtype)
            prediction = model(target)
            loss = perceptual(prediction, target).mean() + (prediction - target).abs().mean()
            optimizer.zero_grad()
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
        log.append(float(loss.detach()))
    assert log[-1] < log[0]
    fabric.save(tmp_path / "state.ckpt", {"model": model, "perceptual": perceptual})
    fabric.load(tmp_path / "state.ckpt", {"model": model, "perceptual": perceptual})


def instantiate(config):
    """What hydra does: ``_target_`` is imported and called with the other values."""
    if isinstance(config, list):
        return [instantiate(one) for one in config]
    if not isinstance(config, dict):
        return config
    values = {key: instantiate(value) for key, value in config.items() if key != "_target_"}
    if "_target_" not in config:
        return values
    module, name = config["_target_"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(**values)


CONFIGS = {
    "compat": "{_target_: lpips_lightning.compat.LPIPS, net: embedded, version: 0.1, spatial: false, verbose: false}",
    "loss": "{_target_: lpips_lightning.PerceptualLoss, net_type: embedded, data_range: [-1, 1], weight: 1}",
    "metric": "{_target_: lpips_lightning.LearnedPerceptualImagePatchSimilarity, net_type: embedded, normalize: no}",
    "network": "{_target_: lpips_lightning.LPIPS, net_type: embedded, version: 0.1, memory_budget: null}",
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_hydra_instantiates_from_yaml(kind):
    config = yaml.safe_load(f"losses:\n  - {CONFIGS[kind]}\n")
    (module,) = instantiate(config)["losses"]
    x, y = images(), images(seed=1)
    assert float(module(x, y).mean()) == pytest.approx(float(LPIPS("embedded")(x, y).mean()), rel=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_jsonargparse_builds_a_loss_from_class_path(kind):
    values = yaml.safe_load(CONFIGS[kind])
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=nn.Module)
    config = {"class_path": values.pop("_target_"), "init_args": values}
    module = parser.instantiate_classes(parser.parse_object({"loss": config})).loss
    x, y = images(), images(seed=1)
    assert float(module(x, y).mean()) == pytest.approx(float(LPIPS("embedded")(x, y).mean()), rel=1e-5)


def test_a_spawned_process_gets_losses_by_pickle():
    """As ray, submitit and torch.multiprocessing send modules and bound methods."""
    x, y = images(), images(seed=1)
    modules = [build() for build in KINDS.values()] + [LearnedPerceptualImagePatchSimilarity("embedded")]
    sent = [*modules, modules[0].forward]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(one, x, y) for one in sent]
        found = [job.result(timeout=workers.SECONDS).clone() for job in jobs]
    for one, result in zip(sent, found, strict=True):
        assert torch.equal(result, one(x, y))


def test_replicas_in_threads_as_data_parallel_makes_them(model):
    x = images(4)
    expected = [model(part) for part in x.split(2)]
    assert torch.equal(nn.DataParallel(model)(x), model(x))  # without a GPU it is the module

    def replica(module):
        made = module._replicate_for_data_parallel()
        for name, child in module._modules.items():
            made._modules[name] = replica(child)
        made._parameters = dict(module._parameters)
        return made

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda part: replica(model)(part), x.split(2)))
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-5, atol=0)
    sum(found).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


NEWER = pytest.mark.skipif(Version(torch.__version__) < Version("2.8"), reason="gloo has no reduce_scatter before 2.8")


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp", marks=NEWER)])
def test_data_parallel_processes_train_as_one(kind, tmp_path):
    """With ``find_unused_parameters=False``, the loss inside the wrapped module."""
    torch.manual_seed(0)
    model, x = WithLoss(KINDS["compat"]()), images(4)
    ranks = workers.run(wrapped_steps, 2, tmp_path, kind, model, x)
    expected = steps(model, [x] * 3)
    mean = [sum(losses) / 2 for losses in zip(*(log for log, _ in ranks), strict=True)]
    assert mean == pytest.approx(expected, rel=1e-4)
    for _, weight in ranks:
        assert relative_distance(weight, model.network.conv_out.weight) < 1e-4
