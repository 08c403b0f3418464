"""The class of the reference package, and checkpoints that contain other LPIPS modules."""

from __future__ import annotations

import inspect

import pytest
import torch
from conftest import NETS
from references import BUILDERS, peer_lpips, peer_torchmetrics, relative_difference
from safetensors.torch import save_file
from torch import nn

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss, compat


def test_arguments_and_their_order_match_the_reference():
    import lpips

    ours = inspect.signature(compat.LPIPS.__init__).parameters
    theirs = inspect.signature(lpips.LPIPS.__init__).parameters
    assert [(p.name, p.default) for p in ours.values()][:-1] == [(p.name, p.default) for p in theirs.values()]
    ours, theirs = (inspect.signature(cls.forward).parameters for cls in (compat.LPIPS, lpips.LPIPS))
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


@pytest.mark.parametrize("options", [{}, {"version": "0.0"}, {"lpips": False}, {"spatial": True}])
@pytest.mark.parametrize("net", NETS)
def test_values_and_shapes_match_the_reference(backbones, pair, tmp_path, net, options):
    save_file(backbones[net], tmp_path / f"{BUILDERS[net]}.safetensors")
    peer, ours = peer_lpips(net, backbones[net], **options), compat.LPIPS(net=net, weights=tmp_path, **options)
    x, y = pair(2, 64, 40)
    for normalize, (a, b) in ((False, (x, y)), (True, ((x + 1) / 2, (y + 1) / 2))):
        total, layers = ours(a, b, retPerLayer=True, normalize=normalize)
        peer_total, peer_layers = peer(a, b, retPerLayer=True, normalize=normalize)
        assert total.shape == peer_total.shape
        assert relative_difference(total, peer_total) < 1e-5
        assert [layer.shape for layer in layers] == [layer.shape for layer in peer_layers]
        assert torch.equal(ours(a, b, normalize=normalize), total)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrained": False}, "pretrained: expected True, got False; for the backbone alone pass lpips=False"),
        ({"pnet_tune": True}, "pnet_tune: expected False, got True; this module is frozen"),
        ({"eval_mode": False}, "eval_mode: expected True, got False; this module is frozen"),
        ({"weights": "backbone.pth"}, "weights: expected None with pnet_rand=True"),
    ],
)
def test_training_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        compat.LPIPS(**{"pnet_rand": True, **options})


def model(lpips):
    parent = nn.Module()
    parent.head = nn.Linear(2, 2)
    parent.lpips = lpips
    return parent


@pytest.mark.parametrize("net", NETS)
def test_checkpoints_written_with_peers_inside_load_strictly(backbones, net):
    tensors = backbones[net]
    ours = {
        "network": LPIPS(net, weights=tensors),
        "loss": PerceptualLoss(net, data_range=1, weights=tensors),
        "metric": LearnedPerceptualImagePatchSimilarity(net, weights=tensors),
        "compat": compat.LPIPS(net=net, pnet_rand=True),
    }
    peers = {"lpips": peer_lpips(net, tensors), "torchmetrics": peer_torchmetrics(net, tensors)}
    for peer in peers.values():
        old = model(peer).state_dict()
        assert len(old) > 10
        for name, module in ours.items():
            new = model(module)
            new.load_state_dict(old, strict=True)
            assert torch.equal(new.head.weight, old["head.weight"]), name


def test_other_unknown_keys_stay_errors(backbones):
    new = model(PerceptualLoss("alex", data_range=1, weights=backbones["alex"]))
    for key in ("lpips.lin0.weight", "lpips.net.slice.weight", "lpips.other", "lpips.net.other.weight"):
        with pytest.raises(RuntimeError, match="Unexpected key"):
            new.load_state_dict({**new.state_dict(), key: torch.zeros(1)}, strict=True)
