"""PU21: values of the published parameters, inverse, gradients, and luminance off its range."""

from __future__ import annotations

import warnings

import pytest
import torch

from lpips_lightning import LPIPS, PerceptualLoss
from lpips_lightning.images import hdr
from lpips_lightning.images.hdr import pu21_decode, pu21_encode, pu21_range

KINDS = ("banding", "banding_glare", "peaks", "peaks_glare")
# At 0.005 and 10,000 cd/m^2, as printed in FFmpeg's port of the authors' encoder (pu21_min_values, pu21_max_values).
ENDS = {
    "banding": (-1.5580e-07, 520.4673),
    "banding_glare": (5.4705e-10, 595.3939),
    "peaks": (1.3674e-07, 380.9853),
    "peaks_glare": (-9.7360e-08, 407.5066),
}


def luminances(count=400, dtype=torch.float64):
    return torch.logspace(torch.tensor(0.005).log10().item(), 4, count, dtype=torch.float64).clamp(0.005, 1e4).to(dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_are_those_published(kind):
    low, high = pu21_encode(torch.tensor([0.005, 1e4], dtype=torch.float64), kind).tolist()
    assert low == pytest.approx(ENDS[kind][0], abs=1e-10) and high == pytest.approx(ENDS[kind][1], abs=5e-5)
    assert pu21_range(kind=kind) == (0.0, high)


def test_the_white_of_an_ordinary_display_is_about_256():
    assert pu21_encode(torch.tensor(100.0)) == pytest.approx(256.38, abs=0.01)  # "0 to 256 for up to 100 cd/m^2"
    assert pu21_range(100)[1] == pytest.approx(256.38, abs=0.01)
    assert pu21_range(0.5)[1] == pytest.approx(22.21, abs=0.01)  # a peak is no data: no warning


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float64, 1e-9)])
def test_it_increases_and_decodes(kind, dtype, tolerance):
    values = luminances(dtype=dtype)
    encoded = pu21_encode(values, kind)
    assert encoded.dtype == dtype and bool((encoded.diff() > 0).all())
    error = (pu21_decode(encoded, kind) / values - 1).abs()
    assert error[values > 0.1].max() < tolerance  # below, a digit of the encoding is much luminance
    assert pu21_decode(encoded, kind).dtype == dtype


def test_half_precision_becomes_float32():
    values = torch.tensor([1.0, 100.0], dtype=torch.bfloat16)
    assert torch.equal(pu21_encode(values), pu21_encode(values.float()))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences_off_the_range_too(kind):
    values = torch.tensor([-0.02, 0.002, 0.006, 0.5, 100.0, 9_999.0, 12_000.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: pu21_encode(x, kind), (values,), eps=1e-7, rtol=1e-3)
    assert bool((pu21_encode(values, kind).diff() > 0).all())


@pytest.mark.parametrize("end", [0.005, 1e4])
def test_the_gradient_at_the_ends_is_the_slope_there(end):
    value = torch.tensor(end, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(pu21_encode(value), value)
    inside = torch.tensor(end + (1e-6 if end < 1 else -1e-6), dtype=torch.float64, requires_grad=True)
    (near,) = torch.autograd.grad(pu21_encode(inside), inside)
    assert slope == pytest.approx(near.item(), rel=1e-3)


def test_data_is_clamped_and_zeros_are_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(pu21_encode(torch.tensor([0.0, 50.0])), pu21_encode(torch.tensor([0.005, 50.0])))
        pu21_encode(torch.zeros(0))
        pu21_encode(torch.tensor([-1.0, 2e4]), validate_args=False)
    with pytest.warns(UserWarning, match=r"negative values, and values above 10000 cd/m\^2, are clamped"):
        assert torch.equal(pu21_encode(torch.tensor([-1.0, 2e4])), pu21_encode(torch.tensor([0.005, 1e4])))


def test_relative_values_get_a_warning():
    with pytest.warns(UserWarning, match="got none above 1; multiply relative values"):
        pu21_encode(torch.rand(3, 8, 8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_data_must_be_finite_and_a_prediction_need_not(bad):
    values = torch.tensor([bad, 100.0])
    with pytest.raises(ValueError, match=r"luminance: expected finite values in cd/m\^2"):
        pu21_encode(values)
    assert not pu21_encode(values.requires_grad_())[0].isfinite()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"kind: expected one of \('banding', .*got 'glare'"):
        pu21_encode(torch.ones(1), "glare")
    with pytest.raises(TypeError, match=r"luminance: expected a floating-point tensor, got torch.uint8"):
        pu21_encode(torch.ones(1, dtype=torch.uint8))
    with pytest.raises(TypeError, match="encoded: expected a floating-point tensor, got float"):
        pu21_decode(1.0)
    with pytest.raises(ValueError, match=r"peak: expected a luminance on \(0.005, 10000\]"):
        pu21_range(0)


def test_networks_measure_encoded_images_and_train_on_them():
    numbers = torch.Generator().manual_seed(0)
    x, y = 1000 * torch.rand(2, 1, 3, 40, 40, generator=numbers)
    span = pu21_range(1000)
    assert LPIPS("embedded")(pu21_encode(x), pu21_encode(y), span) > 0.01
    prediction = (x * 1.5 - 100).requires_grad_()
    PerceptualLoss("embedded", data_range=span)(pu21_encode(prediction), pu21_encode(y)).backward()
    assert prediction.grad.isfinite().all() and prediction.grad[x < 50].abs().sum() > 0  # below 0 cd/m^2 too


def test_it_maps_over_batches_and_compiles_to_its_values():
    values = luminances(12, torch.float32).view(3, 4)
    assert torch.equal(torch.vmap(pu21_encode)(values), pu21_encode(values))
    exported = torch.export.export(_Encoder(), (values,)).module()
    assert torch.equal(exported(values), pu21_encode(values))


class _Encoder(torch.nn.Module):
    def forward(self, x):
        return pu21_encode(x)


def test_parity_with_the_encoder_of_colorvideovdp():
    utils = pytest.importorskip("pycvvdp.utils", reason="the extra `cvvdp` is not installed")
    for kind in KINDS:
        values = luminances()
        assert torch.allclose(pu21_encode(values, kind), utils.PU(type=kind)._encode_direct(values), rtol=1e-12)
    assert set(KINDS) == set(hdr._PARAMETERS)
