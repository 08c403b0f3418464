"""What an image batch is, and what is said when it is none."""

from __future__ import annotations

import pytest
import torch

from lpips_lightning import LPIPS
from lpips_lightning.backbones.extractor import FeatureExtractor
from lpips_lightning.images.ranges import RangeError, parse_range

GOOD = torch.zeros(2, 3, 64, 64)


@pytest.fixture(scope="module")
def net(backbones):
    return LPIPS("alex", weights=backbones["alex"])


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        ([[0.0]], GOOD, TypeError, r"x: expected a tensor \(N, 3, H, W\), got list"),
        (GOOD, None, TypeError, "y: expected a tensor .* got NoneType"),
        (GOOD[0], GOOD[0], ValueError, r"got \(3, 64, 64\); add the batch dimension"),
        (GOOD[None, None], GOOD[None, None], ValueError, r"or \(B, T, 3, H, W\), got \(1, 1, 2, 3, 64, 64\)"),
        (GOOD[None], GOOD, ValueError, r"y: expected the shape of x, \(1, 2, 3, 64, 64\), got \(2, 3, 64, 64\)"),
        (GOOD.permute(0, 2, 3, 1), GOOD, ValueError, "channels come second"),
        (GOOD[:, :1], GOOD[:, :1], ValueError, "gray images: say gray='repeat'"),
        (
            torch.zeros(2, 4, 64, 64),
            GOOD,
            ValueError,
            r"x: expected 3 channels .*, got shape \(2, 4, 64, 64\); alpha channels: say background='white'",
        ),
        (GOOD, torch.zeros(2, 3, 64, 66), ValueError, "y: expected the shape of x, .* nothing is broadcast or resized"),
        (GOOD, GOOD[:1], ValueError, "y: expected the shape of x"),
        (GOOD, GOOD.to("meta"), ValueError, "y: expected device cpu, that of x, got meta"),
        (GOOD.long(), GOOD, TypeError, "x: expected floating-point values, or uint8 .*, got torch.int64"),
        (GOOD.bool(), GOOD, TypeError, "got torch.bool"),
        (GOOD.to(torch.complex64), GOOD, TypeError, "got torch.complex64"),
        (GOOD.to_sparse(), GOOD, TypeError, "expected a dense tensor, got layout torch.sparse_coo"),
        (GOOD[..., :20], GOOD[..., :20], ValueError, "sides of at least 31 pixels for net_type 'alex', got 64x20"),
    ],
)
def test_what_is_no_pair_of_batches_is_refused(net, x, y, error, message):
    with pytest.raises(error, match=message):
        net(x, y)


@pytest.mark.parametrize(
    ("images", "data_range", "message"),
    [
        (GOOD + 200, (-1, 1), r"expected values on \[-1, 1\], got .* these look like \[0, 255\]"),
        (GOOD + 200, (0, 1), r"these look like \[0, 255\]"),
        (GOOD - 0.5, (0, 1), r"these look like \[-1, 1\]"),
        (GOOD - 0.5, 255, r"expected values on \[0, 255\]"),
        (GOOD - 3, (-1, 1), "2x - 1 was applied twice"),
        (torch.linspace(-2.1, 2.6, 64).expand(2, 3, 64, 64), (-1, 1), "ImageNet's mean"),
        (GOOD + 1.01, (-1, 1), "clamp the images to the range first"),
        (GOOD + 40, (-1, 1), "that is no overshoot to clamp: check how the images are scaled"),
        (GOOD + float("nan"), (-1, 1), "a NaN usually comes from"),
        (GOOD + float("inf"), (-1, 1), "got values from inf to inf"),
    ],
)
def test_values_off_the_range_are_refused_with_the_likely_mistake(net, images, data_range, message):
    with pytest.raises(RangeError, match=message):
        net(images, images, data_range=data_range)
    with pytest.raises(RangeError, match="images: "):
        net.encode(images, data_range=data_range)


def test_the_way_out_for_unequal_batches_is_about_what_differs(net):
    three = torch.zeros(3, 3, 64, 64)
    with pytest.raises(ValueError, match="nothing is broadcast or resized: crop or resize one to the other"):
        net(GOOD, three[..., :40])
    with pytest.raises(ValueError, match=r"resized: repeat images with \.expand to compare one with many"):
        net(GOOD, three)
    resized = LPIPS("alex", resize=64, weights="random")
    with pytest.raises(ValueError, match=r"repeat images with \.expand"):
        resized(GOOD, three[..., :40])


def test_rounding_is_forgiven_by_clamping(net, pair):
    x, y = pair()
    x[0, 0, 0, 0], y[0, 0, 0, 0] = 1, -1
    over = x.clone()
    over[0, 0, 0, 0] = 1 + 2e-7
    assert torch.equal(net(over, y), net(x, y))
    over[0, 0, 0, 0] = 1.0009
    assert torch.equal(net(over, y), net(x, y))
    over[0, 0, 0, 0] = 1.0011
    with pytest.raises(RangeError):
        net(over, y)


def test_half_precision_rounding_is_forgiven(net):
    x = torch.full((1, 3, 64, 64), 1.0, dtype=torch.bfloat16)
    x[0, 0, 0, 0] = 1.0078125  # the next bfloat16 above 1
    assert float(net(x, torch.ones_like(x))) == 0


def test_validate_args_switches_the_value_check_off(backbones, pair):
    x, y = pair()
    net = LPIPS("alex", weights=backbones["alex"], validate_args=False)
    assert bool(net(3 * x, y).isfinite().all())
    with pytest.raises(ValueError, match="expected the shape of x"):
        net(x, y[:1])


def test_memory_layouts_give_one_number(net, pair):
    x, y = pair(2, 64, 64)
    expected = net(x, y)
    strided = torch.empty(2, 3, 64, 128)[..., ::2].copy_(x)
    for other in (x.contiguous(memory_format=torch.channels_last), strided, x.permute(0, 1, 3, 2).contiguous().mT):
        assert torch.equal(net(other, y), expected)
    one = x[:1].expand(2, -1, -1, -1)
    assert torch.allclose(net(one, y)[0], expected[0])


@pytest.mark.parametrize(
    ("data_range", "error", "message"),
    [
        ("uint8", TypeError, "data_range: expected a pair"),
        (None, TypeError, "data_range: expected a pair"),
        (True, TypeError, "data_range: expected a pair"),
        ((0, 1, 2), TypeError, "data_range: expected a pair"),
        ((0, "1"), TypeError, "data_range: expected a pair"),
        ((1, 0), ValueError, "data_range: expected low < high"),
        (0, ValueError, "data_range: expected low < high"),
        ((0, float("inf")), ValueError, "both finite"),
        ((float("nan"), 1), ValueError, "expected low < high"),
    ],
)
def test_ranges_that_are_none(data_range, error, message):
    with pytest.raises(error, match=message):
        parse_range(data_range)


def _made(backbones, **options):
    return LPIPS("squeeze", weights=backbones["squeeze"], **options)


def test_gray_images_are_repeated_or_scored_channel_by_channel(backbones, pair):
    x, y = pair()
    plain = _made(backbones)
    gray_x, gray_y = x[:, :1], y[:, :1]
    expected = plain(gray_x.expand(-1, 3, -1, -1), gray_y.expand(-1, 3, -1, -1))
    assert torch.equal(_made(backbones, gray="repeat")(gray_x, gray_y), expected)
    assert torch.equal(_made(backbones, gray="repeat")(x, y), plain(x, y))
    each = _made(backbones, gray="per_channel", frame_chunk=3)
    assert torch.allclose(each(gray_x, gray_y), expected, rtol=1e-6)
    channels = [plain(*(image[:, [c] * 3] for image in (x, y)), per_layer=True) for c in (0, 1, 2, 0, 1)]
    found = each(*(image[:, [0, 1, 2, 0, 1]] for image in (x, y)), per_layer=True)
    for layer, term in found.items():
        assert torch.allclose(term, torch.stack([channel[layer] for channel in channels]).mean(0), rtol=1e-5)
    assert each(x, y, spatial=True).shape == (2, 1, 64, 64)
    assert torch.allclose(each.pairwise(x, y).diagonal(), each(x, y), rtol=1e-5)


@pytest.mark.parametrize(("background", "color"), [("white", (1, 1, 1)), ("black", (0, 0, 0)), ((0.2, 0.4, 1), None)])
@pytest.mark.parametrize("data_range", [(0, 1), (-1, 1), 255])
def test_alpha_is_laid_over_a_color(backbones, pair, background, color, data_range):
    low, high = parse_range(data_range)
    x, y = pair(1)
    alpha = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    color = torch.tensor(color or background).view(1, 3, 1, 1) * 2 - 1
    expected = _made(backbones)(alpha * x + (1 - alpha) * color, y)
    rgba = (torch.cat((x, 2 * alpha - 1), 1) + 1) / 2 * (high - low) + low
    rgb = (y + 1) / 2 * (high - low) + low
    net = _made(backbones, background=background)
    assert torch.allclose(net(rgba, rgb, data_range=data_range), expected, rtol=1e-4)
    opaque = torch.cat((rgb, torch.full_like(rgb[:, :1], high)), 1)
    assert torch.allclose(net(rgba, opaque, data_range=data_range), expected, rtol=1e-4)
    if data_range == 255:
        assert torch.allclose(net(rgba.round().to(torch.uint8), rgb.round().to(torch.uint8)), expected, rtol=0.05)


@pytest.mark.parametrize("chunk", [None, 1, 4, 100])
def test_videos_give_a_curve_and_chunks_the_same_number(backbones, pair, chunk, monkeypatch):
    x, y = pair(6, 40, 48)
    expected = _made(backbones)(x, y).view(2, 3)
    net = _made(backbones, frame_chunk=chunk)
    video_x, video_y = x.view(2, 3, 3, 40, 48), y.view(2, 3, 3, 40, 48)
    assert torch.allclose(net(video_x, video_y), expected, rtol=1e-5)
    assert net(video_x, video_y, spatial=True).shape == (2, 3, 1, 40, 48)
    assert net(video_x[:0], video_y[:0]).shape == (0, 3)
    assert torch.allclose(net.distance(net.encode(video_x), net.encode(video_y)), expected, rtol=1e-5)
    assert torch.allclose(net(video_x, net.encode(video_y)), expected, rtol=1e-5)
    sizes = []
    run = FeatureExtractor.forward
    monkeypatch.setattr(FeatureExtractor, "forward", lambda self, x: sizes.append(len(x)) or run(self, x))
    net(video_x, video_y)
    assert max(sizes) == min(chunk or 6, 6)


def test_resize_brings_both_to_one_size_and_is_in_the_fingerprint(backbones, pair):
    x, y = pair(1, 96, 64)
    net = _made(backbones, resize=(48, 40))

    def resized(image):
        return torch.nn.functional.interpolate(image, (48, 40), mode="bilinear", antialias=True)

    assert torch.allclose(net(x, y), _made(backbones)(resized(x), resized(y)), rtol=1e-6)
    assert torch.allclose(net(x, resized(y)), net(x, y), rtol=1e-6)
    assert net(x, y, spatial=True).shape == (1, 1, 48, 40)
    assert "resize 48x40 bilinear antialias" in net.fingerprint
    assert _made(backbones, resize=48).images.resize == (48, 48)
    assert bool(_made(backbones, resize=32)(x[..., :8, :8], y[..., :8, :8]).isfinite())
    with pytest.raises(ValueError, match="y: expected the shape of x"):
        net(x, torch.cat((y, y)))
    with pytest.raises(ValueError, match="got 10x10; enlarge both images alike with resize="):
        _made(backbones, resize=10)(x, y)


def test_images_as_they_come_are_named_in_the_fingerprint(backbones):
    assert "gray repeat, alpha over [1.0, 1.0, 1.0]" in _made(backbones, gray="repeat", background="white").fingerprint
    assert ", ," not in _made(backbones).fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gray": "mean"}, r"gray: expected None or one of \('repeat', 'per_channel'\), got 'mean'"),
        ({"background": "red"}, "background: expected 'white', 'black' or three numbers on .*, got 'red'"),
        ({"background": (0, 0, 255)}, "background: expected 'white'"),
        ({"background": (0, 0)}, "background: expected 'white'"),
        ({"resize": 0}, "resize: expected .*, got 0"),
        ({"resize": (1, 2, 3)}, "resize: expected"),
        ({"resize": (64.0, 64.0)}, "resize: expected"),
        ({"frame_chunk": 0}, "frame_chunk: expected a positive number of images, or None, got 0"),
    ],
)
def test_unknown_ways_with_images_are_refused(backbones, options, message):
    with pytest.raises(ValueError, match=message):
        _made(backbones, **options)


def test_features_of_another_preparation_are_refused(backbones, pair):
    x, y = pair()
    net = _made(backbones)
    for other in (
        _made(backbones, resize=64),
        _made(backbones, gray="repeat"),
        LPIPS("alex", weights=backbones["alex"]),
    ):
        with pytest.raises(ValueError, match="y: expected features of 'squeeze v0.1"):
            net(x, other.encode(y))
    with pytest.raises(ValueError, match="version|expected features of"):
        net(x, LPIPS("squeeze", weights=backbones["squeeze"], version="0.0").encode(y))
    with pytest.raises(ValueError, match=r"y: expected features of \(2,\) images of size \(64, 64\)"):
        net(x, net.encode(y[..., :48]))
    with torch.inference_mode():
        made = net.encode(y)
    with pytest.raises(ValueError, match="computed under torch.inference_mode; encode under torch.no_grad instead"):
        net(x.requires_grad_(), made)
