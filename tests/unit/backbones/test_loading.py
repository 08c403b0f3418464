"""Where weights are looked for, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from references import BUILDERS
from safetensors.torch import save_file
from torchvision import models

from lpips_lightning import LPIPS, weights
from lpips_lightning.backbones import fetch, loading
from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.backbones.extractor import random_backbone
from lpips_lightning.weights import BACKBONE_FILES, CALIBRATIONS, WeightsError, load, tensors_sha256


def digest(net):
    return net.specification.backbone_sha256


def get_backbone(seed, net="alex"):
    return random_backbone(BACKBONES[net], seed)


def cache_file(builder="alexnet"):
    path = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE_FILES[builder].file
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return cache_file()


def test_search_order_is_path_folder_cache_download(monkeypatch, tmp_path, empty_cache):
    monkeypatch.setattr(loading, "is_torchvision_file", lambda path, record: True)  # seeded weights stand in for them

    def download(url, target, report, timeout):
        assert url == record.url
        torch.save(get_backbone(4), target)

    record = BACKBONE_FILES["alexnet"]
    monkeypatch.setattr(fetch, "download", download)
    with pytest.raises(WeightsError, match=r"download failed: .* 7be5be79, got .*; the download was deleted"):
        LPIPS("alex")
    assert not list(empty_cache.parent.iterdir())
    monkeypatch.setattr(fetch, "file_sha256", lambda path: "7be5be79" + 56 * "0")
    assert digest(LPIPS("alex")) == tensors_sha256(get_backbone(4))
    assert list(empty_cache.parent.iterdir()) == [empty_cache]
    torch.save(get_backbone(3), empty_cache)
    assert digest(LPIPS("alex")) == tensors_sha256(get_backbone(3))
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(folder))
    assert digest(LPIPS("alex")) == tensors_sha256(get_backbone(3))
    for seed, name in ((2, "alexnet.pth"), (1, "alexnet.safetensors"), (0, "alexnet-owt-7be5be79.pth")):
        (save_file if name.endswith("safetensors") else torch.save)(get_backbone(seed), folder / name)
        assert digest(LPIPS("alex")) == tensors_sha256(get_backbone(seed))
    explicit = tmp_path / "mine.pth"
    torch.save(get_backbone(7), explicit)
    assert digest(LPIPS("alex", weights=explicit)) == tensors_sha256(get_backbone(7))
    assert digest(LPIPS("alex", weights=str(folder))) == tensors_sha256(get_backbone(0))


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_nothing_found_names_file_source_places_and_ways_out(monkeypatch, tmp_path, empty_cache, net):
    monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(tmp_path / "nowhere"))
    record = BACKBONE_FILES[BUILDERS[net]]
    with pytest.raises(WeightsError) as caught:
        LPIPS(net)
    message = str(caught.value)
    for part in (
        record.file,
        record.url,
        record.sha256_prefix,
        str(tmp_path / "nowhere" / f"{record.builder}.safetensors"),
        str(tmp_path / "nowhere" / f"{record.builder}.pth"),
        str(empty_cache.parent / record.file),
        "weights=DIR",
        "LPIPS_LIGHTNING_WEIGHTS",
        "the tests have no network",
    ):
        assert part in message
    with pytest.raises(WeightsError, match="expected a file, or a folder with one"):
        LPIPS(net, weights=tmp_path / "not_there.pth")


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_whole_files_and_features_only_files_give_one_network(tmp_path, net):
    whole = models.get_model(BUILDERS[net], weights=None).state_dict()
    features = {name: value for name, value in whole.items() if name.startswith("features.")}
    bare = {name.removeprefix("features."): value for name, value in features.items()}
    assert len(whole) > len(features)
    digests = set()
    for index, content in enumerate((whole, features, bare)):
        torch.save(content, tmp_path / f"{index}.pth")
        save_file(content, tmp_path / f"{index}.safetensors")
        digests |= {digest(LPIPS(net, weights=tmp_path / f"{index}{end}")) for end in (".pth", ".safetensors")}
    assert len(digests) == 1


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (without(get_backbone(0), "features.3.bias"), "missing: features.3.bias; unknown: none"),
        ({**get_backbone(0), "features.99.weight": torch.zeros(1)}, "missing: none; unknown: features.99.weight"),
        (get_backbone(0, "squeeze"), "expected the tensors of alexnet; missing: .* and 4 more; unknown: .*"),
        (
            {**get_backbone(0), "features.0.bias": torch.zeros(65)},
            r"features.0.bias: expected shape \(64,\), got \(65,\)",
        ),
        ({**get_backbone(0), "features.0.bias": torch.full((64,), float("nan"))}, "features.0.bias: expected finite"),
        (
            {**get_backbone(0), "features.0.bias": torch.zeros(64, dtype=torch.long)},
            "expected finite floating-point values",
        ),
        ({}, "missing: features.0.bias"),
    ],
)
def test_another_architecture_is_refused(content, message):
    with pytest.raises(WeightsError, match=message):
        LPIPS("alex", weights=content)


def test_damaged_files_are_refused(tmp_path, empty_cache):
    torch.save(get_backbone(0), empty_cache)
    whole = empty_cache.read_bytes()
    empty_cache.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        WeightsError,
        match="a whole file of tensors.*expected a sha256 that begins with 7be5be79, got [0-9a-f]{64}",
    ):
        LPIPS("alex")
    path = tmp_path / "alexnet.safetensors"
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(WeightsError, match="alexnet.safetensors: expected a whole file of tensors"):
        LPIPS("alex", weights=path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="expected a mapping of names to tensors, got list"):
        LPIPS("alex", weights=tmp_path / "list.pth")


class _Code:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_code_in_a_pickle_is_never_executed(tmp_path):
    torch.save({"features.0.weight": _Code()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="evil.pth: expected a whole file of tensors"):
        LPIPS("alex", weights=tmp_path / "evil.pth")


def test_every_shipped_calibration_is_what_its_record_says():
    assert len(CALIBRATIONS) >= 6
    for (net, _), record in CALIBRATIONS.items():
        tensors = {name.removeprefix("calibration."): tensor for name, tensor in load(record).items()}
        backbone = BACKBONES[net]
        assert {name: tensors[name].shape[0] for name in backbone.feature_layers} == dict(
            zip(backbone.feature_layers, backbone.channels, strict=True)
        )
        assert all(bool((tensors[name] >= 0).all()) for name in backbone.feature_layers)
        assert record.license
        assert record.source


def test_a_flipped_byte_of_a_shipped_file_is_refused(monkeypatch, tmp_path):
    record = CALIBRATIONS["alex", "0.1"]
    data = bytearray((weights.FOLDER / record.file).read_bytes())
    data[-7] ^= 1
    (tmp_path / record.file).write_bytes(data)
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    with pytest.raises(WeightsError, match=f"expected sha256 {record.sha256}, got "):
        LPIPS("alex", weights="random")
    (tmp_path / record.file).unlink()
    with pytest.raises(WeightsError, match=f"expected sha256 {record.sha256}, got a file that cannot be read"):
        LPIPS("alex", weights="random")


def test_own_calibrations_are_read_from_tensors_safetensors_and_lpips_files(tmp_path, pair):
    own = {name: tensor * 2 for name, tensor in load(CALIBRATIONS["alex", "0.1"]).items()}
    save_file(own, tmp_path / "own.safetensors")
    theirs = {f"lin{i}.model.1.weight": own[f"relu{i + 1}"].view(1, -1, 1, 1) for i in range(5)}
    torch.save(theirs, tmp_path / "theirs.pth")
    x, y = pair()
    backbone_tensors = get_backbone(0)
    official = LPIPS("alex", weights=backbone_tensors)(x, y)
    for calibration in (own, tmp_path / "own.safetensors", str(tmp_path / "theirs.pth")):
        doubled = LPIPS("alex", weights=backbone_tensors, calibration=calibration)
        assert torch.allclose(doubled(x, y), 2 * official)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relu1": -torch.ones(64)}, "relu1: expected finite weights >= 0"),
        ({"relu1": torch.full((64,), float("nan"))}, "relu1: expected finite weights >= 0"),
        ({"relu1": torch.ones(63)}, r"relu1: expected shape \(64,\), got \(63,\)"),
        ({"lin9": torch.ones(64)}, r"expected weights of the layers \['relu1'"),
    ],
)
def test_wrong_calibrations_are_refused(change, message):
    calibration = {**load(CALIBRATIONS["alex", "0.1"]), **change}
    with pytest.raises(WeightsError, match=message):
        LPIPS("alex", weights="random", calibration=calibration)


@pytest.mark.real
@pytest.mark.parametrize("net", BUILDERS)
def test_the_real_backbones_are_recognized_wherever_they_lie(real_weights, tmp_path, net):
    name = f"{BUILDERS[net]}.safetensors"
    shutil.copy(real_weights / name, tmp_path / "renamed.safetensors")
    assert "backbone IMAGENET1K_V1" in LPIPS(net, weights=tmp_path / "renamed.safetensors").fingerprint
