"""Vision transformers as backbones: timm's, torchvision's, and modules of the user's own."""

from __future__ import annotations

import copy
import pickle
import sys

import pytest
import torch
from boring_module import fit
from frozen_networks import frozen_network
from jsonargparse import ArgumentParser
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss
from lpips_lightning.backbones.custom import from_module, from_torchvision
from lpips_lightning.backbones.timm_models import from_timm
from lpips_lightning.backbones.tokens import Tokens, mean_calibration
from lpips_lightning.callbacks import PerceptualScores
from lpips_lightning.weights import WeightsError

timm = pytest.importorskip("timm")
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 32}
VIT = "vit_tiny_patch16_224.augreg_in21k"


def small(layers=(0, 1), name=VIT, **options):
    given = {
        key: options.pop(key)
        for key in ("norm", "mean", "std", "tokens", "smallest_side", "pretrained")
        if key in options
    }
    return from_timm(name, list(layers), **given, **{**SMALL, **options})


def network(backbone=None, **options):
    torch.manual_seed(0)
    return LPIPS(backbone or small(), **{"weights": "random", "calibrated": False, **options})


def of_timm(weights=None, **options):
    model = timm.create_model(VIT, num_classes=0, **{**SMALL, "dynamic_img_size": True, **options}).eval()
    if weights is not None:
        model.load_state_dict(weights)
    return model


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("options", [{}, {"reg_tokens": 4}, {"class_token": False, "global_pool": "avg"}])
def test_features_are_those_of_timm(options, norm):
    net = network(small(norm=norm, **options))
    extractor = frozen_network(net).extractor
    model = of_timm(extractor.graph.state_dict(), **options)
    images = torch.randn(2, 3, 40, 24)
    expected = model.forward_intermediates(images, norm=norm, intermediates_only=True)
    found = extractor(images)
    assert list(found) == ["blocks.0", "blocks.1"]
    for one, other in zip(found.values(), expected, strict=True):
        assert one.shape == (2, 24, 5, 3)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    if not norm:
        own = from_module(model, ["blocks.0", "blocks.1"], tokens=True)
        found = frozen_network(LPIPS(own, calibrated=False)).extractor(images)
        for one, other in zip(found.values(), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_features_are_those_of_torchvision():
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=48).eval()
    seen = {}
    model.encoder.layers.encoder_layer_1.register_forward_hook(lambda *call: seen.update(tokens=call[2]))
    images = torch.randn(2, 3, 32, 32)
    model(images)
    backbone = from_module(model, {"last": "encoder.layers.encoder_layer_1"}, tokens=True)
    (found,) = frozen_network(LPIPS(backbone, calibrated=False)).extractor(images).values()
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), seen["tokens"][:, 1:], rtol=1e-5, atol=1e-6)
    whole = from_torchvision("vit_b_16", ["encoder.layers.encoder_layer_3"], tokens=True)
    assert whole.channels == (768,) and "patch 16x16 without 1 prefix token, resize 224x224" in whole.description


def test_images_are_brought_to_the_nearest_multiple_of_the_patch(pair):
    net = network()
    x, y = pair(1, 37, 43)
    fitted = [F.interpolate(images, (40, 40), mode="bilinear", antialias=True) for images in (x, y)]
    assert torch.equal(net(x, y), net(*fitted))
    assert torch.equal(net(x, x), torch.zeros(1))
    assert (
        "patch 8x8 without 1 prefix token, resize to the nearest multiple bilinear antialias, fp32" in net.fingerprint
    )
    assert [Tokens(8).fitting(*size) for size in ((8, 11), (12, 100), (3, 1))] == [(8, 8), (16, 104), (8, 8)]
    assert net.smallest_side == 8
    with pytest.raises(ValueError, match="expected sides of at least 8 pixels for net_type 'vit_tiny"):
        net(x[..., :7], y[..., :7])


def test_a_model_with_fixed_positions_gets_its_own_size(pair):
    x, y = pair(3, 37, 43)
    net = network(small(dynamic_img_size=False))
    fitted = [F.interpolate(images, (32, 32), mode="bilinear", antialias=True) for images in (x, y)]
    torch.testing.assert_close(net(x, y), net(*fitted), rtol=1e-5, atol=0)
    assert "resize 32x32 bilinear antialias" in net.fingerprint
    # Its memory does not grow with the images, but with their number.
    sizes = [net.plan((count, 3, side, side)).size for count, side in ((1, 64), (8, 64), (8, 65))]
    assert sizes[1] > 2 * sizes[0]
    assert sizes[2] - sizes[1] < sizes[1] / 2


def test_maps_masks_layers_features_and_all_pairs_agree(pair):
    net = network()
    x, y = pair(2, 40, 24)
    expected = net(x, y)
    torch.testing.assert_close(sum(net(x, y, per_layer=True).values()), expected)
    assert net(x, y, spatial=True).shape == (2, 1, 40, 24)
    torch.testing.assert_close(net(x, y, mask=torch.ones(2, 40, 24)), expected)
    torch.testing.assert_close(net.distance(net.encode(x), net.encode(y)), expected)
    torch.testing.assert_close(net.pairwise(x, y).diagonal(), expected)
    torch.testing.assert_close(network(frame_chunk=1)(x, y), expected)
    left = torch.zeros(2, 40, 24)
    left[..., :8] = 1
    by_hand = net.frozen_network().distance.maps(net.encode(x).layers, net.encode(y).layers, None)
    torch.testing.assert_close(net(x, y, mask=left), sum(m[..., 0].mean((1, 2)) for m in by_hand.values()))
    message = "erode: the receptive fields of this backbone are unknown: expected convolutions, got VisionTransformer"
    with pytest.raises(ValueError, match=message):
        net(x, y, mask=left, erode=True)


def test_a_memory_budget_splits_the_batch(pair):
    x, y = pair(4, 64, 64)
    whole = network().plan((4, 3, 64, 64), gradient=True).size
    one, four = network(memory_budget=whole // 3), network()
    assert one.plan((4, 3, 64, 64), gradient=True).images in (1, 2)
    gradients = []
    for net in (one, four):
        leaf = x.clone().requires_grad_()
        net(leaf, y).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
    with pytest.warns(UserWarning, match="memory_budget: .* cannot be evaluated in strips or tiles|memory_budget: "):
        network(memory_budget=1000).plan((4, 3, 64, 64))


def test_the_estimate_of_attention_is_that_of_the_fused_one():
    net = network(small((1,)))
    small_side, large_side = (net.plan((1, 3, side, side)).size for side in (128, 512))
    assert large_side < 20 * small_side  # 16 times the tokens, 256 times the pairs of tokens


def test_what_weights_do_not_tell_apart_specification_and_fingerprint_do():
    backbones = [
        small(),
        small(num_heads=3),
        small(norm=True),
        small((1,)),
        small(dynamic_img_size=False),
        small(std=(0.1, 0.1, 0.1)),
        small(tokens=Tokens(8, prefix=1, size=32)),
    ]
    weights = network().frozen_network().extractor.graph.state_dict()
    nets = [network(backbone, weights=weights) for backbone in backbones]
    assert len({net.specification for net in nets}) == len(nets)
    assert len({net.specification.backbone_sha256 for net in nets}) == 1
    assert len({net.source for net in nets}) == len({net.fingerprint for net in nets}) == len(nets)
    two, three = (
        from_module(VisionTransformer(32, 8, 1, heads, 24, 48), ["encoder.layers.encoder_layer_0"], tokens=True)
        for heads in (2, 3)
    )
    weights = two.build().state_dict()
    assert (
        LPIPS(two, weights=weights, calibrated=False).specification
        != LPIPS(three, weights=weights, calibrated=False).specification
    )


def test_gradients_are_right_in_float64():
    net = network()
    x, y = torch.rand(2, 1, 3, 11, 13, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda images: net(images, y, data_range=(0, 1)), x.requires_grad_(), fast_mode=True
    )
    assert torch.autograd.gradcheck(lambda images: net(images, y, data_range=(0, 1), spatial=True), x, fast_mode=True)


def test_a_penalty_on_the_gradient_has_one_too(pair):
    x, y = pair(1, 16, 16, torch.float64)
    net = network(small(depth=1, layers=(0,)))

    def gradient(images):
        return torch.autograd.grad(net(images, y).sum(), images, create_graph=True)[0]

    assert torch.autograd.gradcheck(gradient, x.requires_grad_(), fast_mode=True)


def test_half_precision_and_autocast_are_near(pair):
    x, y = pair(2, 40, 24)
    expected = network()(x, y)
    torch.testing.assert_close(network(precision="bf16")(x, y), expected, rtol=0.05, atol=0)
    with torch.autocast("cpu"):
        torch.testing.assert_close(network()(x, y), expected)
        torch.testing.assert_close(network(precision="autocast")(x, y), expected, rtol=0.05, atol=0)


def test_copies_metric_and_loss_take_it(pair):
    x, y = pair(2, 40, 24)
    backbone = small()
    weights = network(backbone).frozen_network().extractor.graph.state_dict()
    net = network(backbone, weights=weights)
    expected = net(x, y)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(copied(x, y), expected)
    assert len(pickle.dumps(backbone)) < 2000
    options = {"weights": weights, "calibrated": False}
    metric = LearnedPerceptualImagePatchSimilarity(backbone, **options)
    metric.update(x, y)
    torch.testing.assert_close(metric.compute(), expected.mean())
    loss = PerceptualLoss(backbone, data_range=(-1, 1), **options)
    torch.testing.assert_close(loss(x, y), expected.mean())
    assert not [*loss.state_dict(), *net.state_dict()]


def test_it_compiles_without_a_break(pair):
    x, y = pair(1, 20, 24)
    net = network(small((0,), depth=1))
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, y), net(x, y))


def dinov2(model):
    """The tensors of a model with registers as DINOv2's authors name them."""
    tensors = dict(model.state_dict())
    tensors["register_tokens"] = tensors.pop("reg_token")
    tensors["pos_embed"] = torch.cat([torch.zeros(1, 1, 24), tensors["pos_embed"]], 1)
    return {**tensors, "mask_token": torch.zeros(1, 24)}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "kind", ["timm", "with a classifier", "dino", "dinov2", "module", "both", "state_dict", "larger"]
)
def test_files_of_every_layout_give_the_same_network(kind, suffix, tmp_path, pair):
    torch.manual_seed(0)
    options = {"reg_tokens": 4, "no_embed_class": True} if kind == "dinov2" else {}
    model = of_timm(**options)
    nn.init.normal_(model.pos_embed)
    tensors = dict(model.state_dict())
    if kind == "with a classifier":
        tensors |= {"head.weight": torch.zeros(7, 24), "head.bias": torch.zeros(7)}
    elif kind == "dino":
        tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
        tensors["head.mlp.0.weight"] = torch.zeros(5, 24)
    elif kind == "dinov2":
        tensors = dinov2(model)
    elif kind == "module":
        tensors = {f"module.{name}": tensor for name, tensor in tensors.items()}
    elif kind == "both":
        others = {f"student.backbone.{name}": torch.zeros_like(tensor) for name, tensor in tensors.items()}
        tensors = others | {f"teacher.backbone.{name}": tensor for name, tensor in tensors.items()}
        tensors["teacher.head.mlp.0.weight"] = torch.zeros(5, 24)
    elif kind == "larger":
        tensors = dict(of_timm(img_size=64).state_dict())
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        torch.save(
            {"teacher": tensors} if kind == "dino" else {kind: tensors} if kind == "state_dict" else tensors, path
        )
    net = LPIPS(small(**options), weights=path, calibrated=False)
    assert "backbone custom sha256:" in net.fingerprint
    if kind != "larger":
        expected = LPIPS(from_module(model, ["blocks.0", "blocks.1"], tokens=True), calibrated=False)
        x, y = pair(1, 40, 24)
        torch.testing.assert_close(net(x, y), expected(x, y), rtol=1e-5, atol=0)
    assert torch.equal(pickle.loads(pickle.dumps(net))(*pair(1, 40, 24)), net(*pair(1, 40, 24)))


def test_files_of_other_models_are_refused(tmp_path, monkeypatch):
    weights = dict(of_timm().state_dict())
    with pytest.raises(WeightsError, match="missing: blocks.1.attn.proj.bias"):
        LPIPS(small(), weights={k: v for k, v in weights.items() if k != "blocks.1.attn.proj.bias"}, calibrated=False)
    with pytest.raises(WeightsError, match="unknown: blocks.2.attn.proj.bias"):
        LPIPS(small(), weights={**weights, "blocks.2.attn.proj.bias": torch.zeros(24)}, calibrated=False)
    with pytest.raises(WeightsError, match=r"weights: cls_token: expected shape \(1, 1, 48\), got"):
        LPIPS(small(embed_dim=48), weights={**weights, "pos_embed": torch.zeros(1, 17, 48)}, calibrated=False)
    with pytest.raises(WeightsError, match="converting them failed"):
        LPIPS(small(), weights={**weights, "pos_embed": torch.zeros(24)}, calibrated=False)
    monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(tmp_path))
    with pytest.raises(
        WeightsError, match=rf"(?s)'timm/{VIT}' was not found.*pretrained=True.* as timm/{VIT}.safetens"
    ):
        LPIPS(small(), calibrated=False)
    (tmp_path / "timm").mkdir()
    torch.save(weights, tmp_path / "timm" / f"{VIT}.pth")
    assert LPIPS(small(), calibrated=False).specification.backbone == "custom"


def test_weights_of_timm_come_when_asked_for(monkeypatch, pair):
    create = timm.create_model
    asked = []

    def downloaded(name, pretrained=False, **options):
        asked.append(pretrained)
        if pretrained and "num_classes" in options:
            raise AssertionError("timm tolerates missing tensors when the classifier is left out")
        torch.manual_seed(3)
        return create(name, **options)

    before = torch.get_rng_state()
    monkeypatch.setattr(timm, "create_model", downloaded)
    backbone = small(pretrained=True)
    assert not any(asked) and backbone.is_available
    net = LPIPS(backbone, calibrated=False)
    assert asked.count(True) == 1
    assert torch.equal(before, torch.get_rng_state())
    model = create(VIT, num_classes=0, **SMALL)
    assert net.frozen_network().extractor.graph.state_dict().keys() == model.state_dict().keys()

    def offline(name, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(
        timm, "create_model", lambda n, pretrained=False, **o: (offline if pretrained else create)(n, **o)
    )
    with pytest.raises(WeightsError, match=r"no route to host.*pretrained=False\) and weights=FILE"):
        LPIPS(backbone, calibrated=False)


@pytest.mark.parametrize(
    ("name", "layers", "channels"),
    [("eva02_tiny_patch14_224", (0, -1), (24, 24)), ("resnet10t", (1, "layer2"), (64, 128))],
)
def test_other_families_work(name, layers, channels, pair):
    options = {**SMALL, "patch_size": 7, "img_size": 28} if "eva" in name else {}
    backbone = from_timm(name, layers, **options)
    assert backbone.channels == channels
    x, y = pair(2, 37, 43)
    net = network(backbone)
    assert bool((net(x, y) > 0).all()) and float(net(x, x).sum()) == 0


def test_models_of_four_channels_take_the_weights_of_rgb(pair):
    weights = of_timm().state_dict()
    net = LPIPS(small(in_chans=4), weights=weights, calibrated=False)
    colors = pair(1, 32, 32)[0]
    images = torch.cat([colors, colors[:, :1]], 1)
    assert net.encode(images).layers["blocks.0"].shape == (1, 24, 4, 4)
    filters = net.frozen_network().extractor.graph.state_dict()["patch_embed.proj.weight"]
    torch.testing.assert_close(filters[:, 3], 0.75 * weights["patch_embed.proj.weight"][:, 0])


def test_a_callback_scores_by_it_and_its_checkpoint_holds_none_of_it(tmp_path):
    options = {"weights": "random", "calibrated": False, "data_range": (0, 1), "metrics": ["lpips"]}
    trainer = fit(tmp_path, [PerceptualScores(small((0,)), **options)], max_epochs=1, enable_checkpointing=True)
    assert float(trainer.callback_metrics["val/lpips"]) > 0
    (file,) = tmp_path.rglob("*.ckpt")
    assert list(torch.load(file, weights_only=True)["state_dict"]) == ["scale"]


def test_a_config_file_names_it():
    parser = ArgumentParser()
    parser.add_class_arguments(PerceptualScores, "scores")
    net = {
        "class_path": "lpips_lightning.backbones.from_timm",
        "init_args": {"name": VIT, "feature_layers": [1]},
        "dict_kwargs": SMALL,
    }
    options = {"net_type": net, "weights": "random", "calibrated": False, "data_range": [0, 1]}
    scores = parser.instantiate_classes(parser.parse_object({"scores": options})).scores
    assert f"{VIT} [blocks.1] v0.1, baseline" in scores.fingerprint


class Own(nn.Module):
    """Tokens (L, N, C) in tuples, behind two tokens for the whole image."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, stride=4)
        self.block = Tuple()

    def forward(self, images):
        tokens = self.patches(images).flatten(2).permute(2, 0, 1)
        return self.block(torch.cat([tokens[:2] * 0, tokens]))


class Tuple(nn.Module):
    def forward(self, tokens):
        return tokens.tanh(), None


def test_a_module_of_your_own_says_its_tokens(pair):
    torch.manual_seed(0)
    module = Own()
    backbone = from_module(module, ["block"], tokens=Tokens(4, prefix=2, batch_first=False))
    images = pair(2, 16, 12)[0]
    (found,) = frozen_network(LPIPS(backbone, calibrated=False)).extractor(images).values()
    torch.testing.assert_close(found, module.patches(images).tanh())


def test_the_mean_over_layers_is_a_calibration(pair):
    backbone = small()
    net = network(backbone)
    weights = net.frozen_network().extractor.graph.state_dict()
    x, y = pair(2, 40, 24)
    expected = net(x, y)
    for over_channels, divisor in ((False, 2), (True, 48)):
        constant = mean_calibration(backbone, over_channels=over_channels)
        mean = LPIPS(backbone, weights=weights, calibration=constant)
        torch.testing.assert_close(mean(x, y), expected / divisor)
        assert "lin custom" in mean.fingerprint


def test_the_number_is_the_mean_over_tokens_channels_and_layers_of_unit_tokens(pair):
    backbone = small()
    x, y = pair(2, 32, 32)
    net = network(backbone, calibrated=True, calibration=mean_calibration(backbone, over_channels=True))
    model = of_timm(net.frozen_network().extractor.graph.state_dict())
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))

    def unit_tokens(images):
        maps = model.forward_intermediates(((images + 1) / 2 - mean) / std, intermediates_only=True, output_fmt="NLC")
        return [F.normalize(tokens, dim=-1) for tokens in maps]

    layers = zip(unit_tokens(x), unit_tokens(y), strict=True)
    expected = torch.stack([(one - other).square().mean((1, 2)) for one, other in layers]).mean(0)
    torch.testing.assert_close(net(x, y), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: from_timm("vit_tiny_patch16_225", [0]), "name: expected a model of timm.*did you mean one of"),
        (lambda: from_timm("dino_vits16", [0]), r"name: expected a model of timm.*timm.list_pretrained\('\*dino\*'\)"),
        (
            lambda: from_timm("vit_small_patch16_224.dion", [0]),
            r"name: expected a tag of weights that timm knows, such as in \[.*'vit_small_patch16_224.dino'",
        ),
        (lambda: from_timm(VIT, 11), "feature_layers: expected numbers or names of layers of .* in a list, got 11"),
        (lambda: small((2,)), "numbers from 0 to 1 for 'vit_tiny"),
        (lambda: small((1, 0)), "layers in their order"),
        (lambda: small((1, -1)), "every layer once"),
        (lambda: small(()), "feature_layers: expected numbers or names"),
        (lambda: small(("blocks.7",)), r"feature layers: expected names of parts of vit_tiny.*did you mean"),
        (lambda: small(("blocks.0.mlp",), norm=True), "norm: expected numbers of blocks"),
        (lambda: from_timm("resnet10t", [1], norm=True), "norm: expected False for 'resnet10t'"),
        (
            lambda: small(("blocks.0.mlp",), tokens=Tokens(8)),
            r"tokens: expected 0 \+ 4x4 of them at 'blocks.0.mlp' for 32x32 .*, \(N, 16, C\), got \(1, 17, 24\)",
        ),
        (lambda: from_module(Own(), ["block"], tokens=True), r"tokens: expected Tokens\(patch, prefix\) for a Own"),
        (lambda: from_module(Own(), ["block"], tokens=8), r"tokens: expected True, False or Tokens"),
        (lambda: from_module(of_timm(), ["blocks.0"]), r"got \(1, 1025, 24\); of tokens \(N, L, C\), say tokens="),
        (
            lambda: from_torchvision("swin_t", ["features.1"]),
            r"second dimension changes with the size of the images, such as \(N, h, w, C\); from_timm takes Swin",
        ),
        (lambda: Tokens(0), "patch: expected a positive number"),
        (lambda: Tokens(8, prefix=-1), "prefix: expected a number of tokens"),
        (lambda: Tokens(8, size=30), r"size: expected a multiple of the patch, \(8, 8\), got \(30, 30\)"),
    ],
)
def test_what_is_no_token_model_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_without_timm_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lpips_lightning\[timm\]"'):
        small()


def test_a_patch_may_be_one_number():
    net = network(from_timm("xcit_nano_12_p16_224", [0, -1], depth=2))
    x, y = torch.rand(2, 1, 3, 40, 24)
    assert "patch 16x16" in net.fingerprint
    assert net(x, y, data_range=(0, 1)) > 0


def test_an_empty_batch_gives_no_distances():
    net, images = network(), torch.rand(0, 3, 20, 12, requires_grad=True)
    assert net(images, images.detach(), data_range=(0, 1)).shape == (0,)
    assert net(images, images.detach(), data_range=(0, 1), spatial=True).shape == (0, 1, 20, 12)
    net(images, images.detach(), data_range=(0, 1)).sum().backward()
    assert images.grad.shape == images.shape
