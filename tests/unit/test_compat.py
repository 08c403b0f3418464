"""The class of the reference package, and checkpoints that contain other LPIPS modules."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from conftest import NETS
from references import BUILDERS, peer_lpips, peer_torchmetrics, relative_difference
from safetensors.torch import save_file
from torch import nn

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss, compat
from lpips_lightning.images.ranges import RangeError


def test_arguments_and_their_order_match_the_reference():
    import lpips

    ours = inspect.signature(compat.LPIPS.__init__).parameters
    theirs = inspect.signature(lpips.LPIPS.__init__).parameters
    assert [(p.name, p.default) for p in ours.values()][:-2] == [(p.name, p.default) for p in theirs.values()]
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


def test_as_a_loss_it_gives_the_references_number_and_gradient_off_the_range_too(backbones, pair, tmp_path):
    save_file(backbones["alex"], tmp_path / f"{BUILDERS['alex']}.safetensors")
    peer, ours = peer_lpips("alex", backbones["alex"]), compat.LPIPS(net="alex", weights=tmp_path)
    x, y = pair(2, 64, 40)
    for scale in (1.05, 3.0):
        for swapped in (False, True):
            leaf, theirs = (scale * x).requires_grad_(), (scale * x).requires_grad_()
            found, expected = (
                net(*((y, one) if swapped else (one, y))).mean() for net, one in ((ours, leaf), (peer, theirs))
            )
            found.backward()
            expected.backward()
            assert relative_difference(found.detach(), expected.detach()) < 1e-5
            assert float((leaf.grad - theirs.grad).norm() / theirs.grad.norm()) < 1e-5
    nan = ours((x * math.nan).requires_grad_(), y)
    assert bool(nan.isnan().all())
    with pytest.raises(RangeError, match="in1: expected values on"):
        ours(x.requires_grad_(), 2 * y)


def test_without_gradients_a_small_overshoot_warns_once_and_another_range_is_an_error(backbones, pair, tmp_path):
    save_file(backbones["alex"], tmp_path / f"{BUILDERS['alex']}.safetensors")
    peer, ours = peer_lpips("alex", backbones["alex"]), compat.LPIPS(net="alex", weights=tmp_path)
    x, y = pair(2, 64, 40)
    with pytest.warns(UserWarning, match="in0: expected values on .*; they are measured as they are") as caught:
        found = ours(1.2 * x, 1.2 * y)
    assert len(caught) == 1
    assert relative_difference(found, peer(1.2 * x, 1.2 * y)) < 1e-5
    assert torch.equal(ours(1.2 * x, 1.2 * y), found)
    for change, normalize in (
        (lambda t: 2 * t - 1, False),
        (lambda t: 127.5 * (t + 1), False),
        (lambda t: t, True),
        (lambda t: t * math.nan, False),
    ):
        with pytest.raises(RangeError, match="in0: expected values on"):
            ours(change(x), change(y), normalize=normalize)
    unchecked = compat.LPIPS(net="alex", weights=tmp_path, validate_args=False)
    assert relative_difference(unchecked(127.5 * (x + 1), y), peer(127.5 * (x + 1), y)) < 1e-5


def test_without_gradients_either_batch_may_be_a_prediction(backbones, pair, tmp_path):
    save_file(backbones["alex"], tmp_path / f"{BUILDERS['alex']}.safetensors")
    peer = peer_lpips("alex", backbones["alex"])
    x, y = pair(2, 64, 40)
    for name, swap in (("in0", False), ("in1", True)):
        ours = compat.LPIPS(net="alex", weights=tmp_path)
        wild = (y, 4 * x) if swap else (4 * x, y)
        with pytest.warns(UserWarning, match=f"{name}: expected values on .* since the other images are on the range"):
            found = ours(*wild)
        assert relative_difference(found, peer(*wild)) < 1e-5
        assert torch.equal(ours(*wild), found)
        nan = (y, x * math.nan) if swap else (x * math.nan, y)
        assert bool(ours(*nan).isnan().all())


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
