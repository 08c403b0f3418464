"""What an image batch is, and what is said when it is none."""

from __future__ import annotations

import pytest
import torch

from lpips_lightning import LPIPS
from lpips_lightning.images import RangeError, parse_range

GOOD = torch.zeros(2, 3, 64, 64)


@pytest.fixture(scope="module")
def net(trunks):
    return LPIPS("alex", weights=trunks["alex"])


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        ([[0.0]], GOOD, TypeError, r"x: expected a tensor \(N, 3, H, W\), got list"),
        (GOOD, None, TypeError, "y: expected a tensor .* got NoneType"),
        (GOOD[0], GOOD[0], ValueError, r"got \(3, 64, 64\); add the batch dimension"),
        (GOOD[None], GOOD[None], ValueError, r"expected shape \(N, 3, H, W\), got \(1, 2, 3, 64, 64\)"),
        (GOOD.permute(0, 2, 3, 1), GOOD, ValueError, "channels come second"),
        (GOOD[:, :1], GOOD[:, :1], ValueError, "repeat gray images"),
        (torch.zeros(2, 4, 64, 64), GOOD, ValueError, r"x: expected 3 channels .*, got shape \(2, 4, 64, 64\)"),
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
        (GOOD + float("nan"), (-1, 1), "a NaN usually comes from"),
        (GOOD + float("inf"), (-1, 1), "got values from inf to inf"),
    ],
)
def test_values_off_the_range_are_refused_with_the_likely_mistake(net, images, data_range, message):
    with pytest.raises(RangeError, match=message):
        net(images, images, data_range=data_range)
    with pytest.raises(RangeError, match="images: "):
        net.encode(images, data_range=data_range)


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


def test_validate_args_switches_the_value_check_off(trunks, pair):
    x, y = pair()
    net = LPIPS("alex", weights=trunks["alex"], validate_args=False)
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
