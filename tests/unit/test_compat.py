"""The class of the reference package, and checkpoints that contain other LPIPS modules."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from conftest import NETS
from references import peer_lpips, peer_torchmetrics, relative_difference
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
def test_values_and_shapes_match_the_reference(backbones, pair, backbone_files, net, options):
    peer, ours = peer_lpips(net, backbones[net], **options), compat.LPIPS(net=net, weights=backbone_files, **options)
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


def test_as_a_loss_it_gives_the_references_number_and_gradient_off_the_range_too(backbones, pair, backbone_files):
    peer, ours = peer_lpips("alex", backbones["alex"]), compat.LPIPS(net="alex", weights=backbone_files)
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
        ours(x.requires_grad_(), 100 * y)
    with pytest.raises(RangeError, match="in1: expected values on .* a NaN usually comes from"):
        ours(x, math.nan * y)


def test_without_gradients_a_small_overshoot_warns_once_and_another_range_is_an_error(backbones, pair, backbone_files):
    peer, ours = peer_lpips("alex", backbones["alex"]), compat.LPIPS(net="alex", weights=backbone_files)
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
    unchecked = compat.LPIPS(net="alex", weights=backbone_files, validate_args=False)
    assert relative_difference(unchecked(127.5 * (x + 1), y), peer(127.5 * (x + 1), y)) < 1e-5


def test_without_gradients_either_batch_may_be_a_prediction(backbones, pair, backbone_files):
    peer = peer_lpips("alex", backbones["alex"])
    x, y = pair(2, 64, 40)
    for name, swap in (("in0", False), ("in1", True)):
        ours = compat.LPIPS(net="alex", weights=backbone_files)
        wild = (y, 4 * x) if swap else (4 * x, y)
        with pytest.warns(UserWarning, match=f"{name}: expected values on .* since the other images are on the range"):
            found = ours(*wild)
        assert relative_difference(found, peer(*wild)) < 1e-5
        assert torch.equal(ours(*wild), found)
        nan = (y, x * math.nan) if swap else (x * math.nan, y)
        with pytest.warns(UserWarning, match=f"{name}: expected values on .* a NaN usually comes from"):
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


def test_attributes_are_those_of_the_reference(backbones, backbone_files):
    for net in NETS:
        for options in ({}, {"version": "0.0"}, {"lpips": False}):
            peer = peer_lpips(net, backbones[net], **options)
            ours = compat.LPIPS(net=net, weights=backbone_files, **options)
            for name in ("version", "lpips", "L", "chns", "pnet_type", "pnet_tune", "spatial"):
                assert getattr(ours, name) == getattr(peer, name), name
            for name in ("shift", "scale"):
                assert torch.equal(getattr(ours.scaling_layer, name), getattr(peer.scaling_layer, name))
            assert [hasattr(ours, f"lin{k}") for k in range(9)] == [hasattr(peer, f"lin{k}") for k in range(9)]
            assert hasattr(ours, "lins") == hasattr(peer, "lins")
            for k in range(ours.L if ours.lpips else 0):
                mine, theirs = getattr(ours, f"lin{k}"), getattr(peer, f"lin{k}")
                assert torch.equal(mine.model[-1].weight, theirs.model[-1].weight)
                features = torch.rand(2, ours.chns[k], 3, 4)
                assert relative_difference(ours.lins[k](features), theirs.eval()(features)) < 1e-5


def test_a_view_of_the_calibration_registers_nothing_and_changes_nothing(pair):
    net = compat.LPIPS(net="embedded")
    x, y = pair(1, 32, 32)
    before = net(x, y)
    net.lin0.model[-1].weight.zero_()
    assert torch.equal(net(x, y), before)
    with pytest.raises(ValueError, match="lin: expected no weights for a copy, got some; pass model_path= to LPIPS"):
        net.lin0.load_state_dict(net.lin0.state_dict())
    assert not net.state_dict() and [type(module) for module in net.modules()] == [compat.LPIPS, LPIPS]
    for name in ("version", "lpips", "L", "chns", "lins", "scaling_layer"):
        with pytest.raises(AttributeError):
            setattr(net, name, None)


OWNERS = {
    "compat": lambda: compat.LPIPS(net="embedded"),
    "network": lambda: LPIPS("embedded"),
    "loss": lambda: PerceptualLoss("embedded", data_range=1),
    "metric": lambda: LearnedPerceptualImagePatchSimilarity("embedded"),
}


@pytest.mark.parametrize("owner", OWNERS)
def test_there_are_no_parameters_and_next_says_so(owner):
    module = OWNERS[owner]()
    with pytest.raises(StopIteration, match=r"no parameters: .* write images.device for next\(net.parameters\(\)\)"):
        _ = next(module.parameters()).device
    with pytest.raises(StopIteration):
        next(module.parameters(recurse=False))
    assert next(module.parameters(), None) is None
    assert list(module.parameters()) == list(module.named_parameters()) == []
    assert sum(one.numel() for one in module.parameters()) == 0
    assert not any(one.requires_grad for one in module.parameters())
    for one in module.requires_grad_(False).parameters():
        one.requires_grad = True
    with pytest.raises(ValueError, match="empty parameter list"):
        torch.optim.SGD(module.parameters(), 0.1)
    parent = model(module)
    assert [tuple(one.shape) for one in parent.parameters()] == [(2, 2), (2,)]


def test_a_module_with_own_parameters_gives_them():
    class Both(PerceptualLoss):
        def __init__(self):
            super().__init__("embedded", data_range=1)
            self.gain = nn.Parameter(torch.ones(()))

    both = Both()
    assert list(both.parameters()) == [both.gain]
    parameters = both.parameters()
    assert next(parameters) is both.gain
    with pytest.raises(StopIteration) as caught:
        next(parameters)
    assert caught.value.value is None


def test_a_number_as_version_and_an_unknown_net(pair):
    x, y = pair(1, 64, 64)
    torch.manual_seed(0)
    old = compat.LPIPS(net="alex", version="0.0", pnet_rand=True)(x, y)
    torch.manual_seed(0)
    assert torch.equal(compat.LPIPS(net="alex", version=0.0, pnet_rand=True)(x, y), old)
    assert compat.LPIPS(net="embedded", version=0.1).version == "0.1"
    for options, said in (({"version": 0.2}, "version: expected one of"), ({"net": "resnet"}, "net: expected one of")):
        with pytest.raises(ValueError, match=f"^{said}"):
            compat.LPIPS(**{"pnet_rand": True, **options})


@pytest.mark.parametrize("version", ["0.1", "0.0"])
def test_one_channel_is_what_it_is_to_the_reference(backbones, pair, backbone_files, version):
    ours = compat.LPIPS(net="alex", version=version, weights=backbone_files)
    x, y = (one[:, :1] for one in pair(2, 64, 64))
    if version == "0.0":
        with pytest.raises(ValueError, match=r"gray images: repeat the channel with .expand\(-1, 3, -1, -1\)"):
            ours(x, y)
        x, y = (one.expand(-1, 3, -1, -1) for one in (x, y))
    expected = peer_lpips("alex", backbones["alex"], version=version)(x, y)
    assert relative_difference(ours(x, y), expected) < 1e-5


@pytest.mark.parametrize("name", ["BCERankingLoss", "pretrained_networks", "tensorlab2tensor", "anything"])
def test_a_name_without_a_place_says_what_to_use_instead(name):
    said = f"module 'lpips_lightning.compat' has no attribute '{name}'" + ("; " if name != "anything" else "$")
    with pytest.raises(AttributeError, match=said):
        getattr(compat, name)


def test_one_image_needs_no_batch_dimension_and_is_compared_with_each_of_a_batch():
    net = compat.LPIPS(net="embedded")
    x, y = torch.rand(2, 3, 3, 64, 64, dtype=torch.float64) * 2 - 1
    pairs = net(x, y)
    assert torch.equal(net(x[0], y[0]), net(x[:1], y[:1]))
    against_one = torch.cat([net(x[:1], one[None]) for one in y])
    torch.testing.assert_close(net(x[0], y), against_one, rtol=1e-10, atol=0)
    torch.testing.assert_close(net(y, x[:1]), against_one, rtol=1e-10, atol=0)
    assert net(x[:0], y[:1]).shape == (0, 1, 1, 1)
    assert not torch.allclose(pairs[1:], against_one[1:])
    with pytest.raises(
        ValueError, match="expected the shape of in0, .* only a batch of one image is compared with many"
    ):
        net(x, y[:2])


def test_an_uncalibrated_network_says_why_it_has_no_layers_of_a_calibration():
    net = compat.LPIPS(net="embedded", lpips=False)
    for name in ("lins", "lin0"):
        with pytest.raises(AttributeError, match=f"^{name}: expected a calibrated network, got one with lpips=False"):
            getattr(net, name)
    assert not hasattr(net, "lin")


def test_the_way_out_for_one_image_with_channels_last_fits_what_was_given():
    net = compat.LPIPS(net="embedded")
    image = torch.rand(40, 48, 3)
    with pytest.raises(
        ValueError, match=r"got \(40, 48, 3\); add the batch dimension with .permute\(2, 0, 1\)"
    ) as caught:
        net(image, image)
    assert str(caught.value).endswith(".permute(2, 0, 1).unsqueeze(0)")
    assert net(image.permute(2, 0, 1), image.permute(2, 0, 1).unsqueeze(0), normalize=True).shape == (1, 1, 1, 1)
    alpha = torch.rand(4, 40, 48)
    with pytest.raises(ValueError, match=r"drop the alpha channel with \[\.\.\., :3, :, :\]"):
        net(alpha, alpha)
    assert net(alpha[..., :3, :, :], alpha[..., :3, :, :], normalize=True).shape == (1, 1, 1, 1)


def test_an_overshoot_that_was_warned_of_does_not_hide_a_wrong_range_later_on():
    net = compat.LPIPS(net="embedded")
    x, y = torch.rand(2, 1, 3, 40, 40)
    with pytest.warns(UserWarning, match="in0: expected values on .* clamp the images"):
        net(1.2 * x, y, normalize=True)
    leaf = x.requires_grad_()
    for other, said in ((2 * y - 1, r"these look like \[-1, 1\]"), ((y - 0.45) / 0.225, "look normalized by ImageNet")):
        with pytest.warns(UserWarning, match=f"in1: expected values on .* {said}"):
            net(leaf, other, normalize=True)
        net(leaf, other, normalize=True)  # warns of nothing, else this test fails
