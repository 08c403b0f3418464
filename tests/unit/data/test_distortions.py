"""The 20 distortions: identity at strength 0, damage that grows with strength, reproducible by seed."""

import forked_python
import pytest
import torch

from lpips_lightning.data.distortions import DISTORTIONS, distort, ordered_pairs

STRENGTHS = (0.0, 0.1, 0.3, 0.6, 1.0)
NOT_EXACT_AT_ZERO = {"gaussian_blur": 1e-4, "bilateral": 1e-3}  # a kernel of one pixel, up to rounding


@pytest.fixture(scope="module")
def images():
    """Smooth colored shapes with some texture, sides unequal and no multiple of 16."""
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(4, 3, 6, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(56, 72), mode="bicubic")
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).clamp(0.05, 0.95)


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def damage(images, distorted):
    return (distorted - images).square().mean((1, 2, 3)).sqrt()


def test_there_are_the_papers_twenty_and_their_ordered_pairs():
    assert len(DISTORTIONS) == 20
    assert len(set(ordered_pairs())) == 380
    assert all(first != second for first, second in ordered_pairs())


@pytest.mark.parametrize("name", DISTORTIONS)
def test_strength_zero_changes_nothing_and_damage_grows_with_strength(name, images):
    ladder = torch.stack([damage(images, distort(images, name, strength, seeded())) for strength in STRENGTHS])
    assert ladder[0].max() <= NOT_EXACT_AT_ZERO.get(name, 1e-5)
    assert (ladder[1] > 1e-4).all()
    rising = ladder.diff(dim=0) > 0
    assert rising.float().mean() >= 0.9, ladder  # geometry may bring a pattern back onto itself
    assert (ladder[-1] > 2 * ladder[1]).all()


@pytest.mark.parametrize("name", DISTORTIONS)
def test_output_keeps_shape_dtype_and_range_and_the_input_is_left_alone(name, images):
    before = images.clone()
    distorted = distort(images, name, torch.tensor([0.0, 0.4, 0.8, 1.0]), seeded())
    assert distorted.shape == images.shape
    assert distorted.dtype == images.dtype
    assert distorted.isfinite().all()
    assert distorted.min() >= 0 and distorted.max() <= 1
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_the_seed_decides_and_every_sample_has_its_own_strength(name, images):
    strength = torch.tensor([0.0, 0.3, 0.6, 0.9])
    once = distort(images, name, strength, seeded())
    assert torch.equal(once, distort(images, name, strength, seeded()))
    for row, value in enumerate(strength):
        alike = distort(images, name, value, seeded())
        assert torch.allclose(once[row], alike[row], atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(DISTORTIONS) - {"gaussian_blur", "bilateral", "jpeg"}))
def test_another_seed_gives_another_image(name, images):
    first, second = (
        torch.stack([distort(images, name, 0.5, seeded(seed)) for seed in seeds]) for seeds in ([1, 2], [3, 4])
    )
    assert not torch.allclose(first, second, atol=1e-3)


def test_colors_of_noise_have_their_spectra():
    gray = torch.full((8, 3, 64, 64), 0.5)
    radius = torch.hypot(torch.fft.fftfreq(64)[:, None], torch.fft.fftfreq(64)[None, :])

    def slope(name):
        power = torch.fft.fft2(distort(gray, name, 0.2, seeded()) - gray).abs().square().mean((0, 1))
        low, high = power[(radius > 0.05) & (radius < 0.1)].mean(), power[(radius > 0.35) & (radius < 0.45)].mean()
        return float((high / low).log() / torch.tensor(0.4 / 0.075).log())

    assert slope("gaussian_noise") == pytest.approx(0, abs=0.15)
    assert slope("uniform_noise") == pytest.approx(0, abs=0.15)
    assert slope("pink_noise") == pytest.approx(-1, abs=0.2)
    assert slope("blue_noise") == pytest.approx(1, abs=0.2)


def test_shift_moves_by_six_pixels_at_full_strength():
    image = torch.zeros(1, 3, 48, 48)
    image[..., 24, 24] = 1
    moved = distort(image, "shift", 1.0, seeded())[0, 0]
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    center = torch.stack([(moved * rows).sum(), (moved * columns).sum()]) / moved.sum()
    assert float((center - 24).norm()) == pytest.approx(6, abs=0.05)


def test_order_matters_in_a_pair_and_each_step_can_have_its_own_strength(images):
    strength = torch.tensor([[0.8] * 4, [0.0] * 4])
    first_only = distort(images, ("gaussian_blur", "jpeg"), strength, seeded())
    assert torch.allclose(first_only, distort(images, "gaussian_blur", 0.8, seeded()))
    blurred_noise = distort(images, ("gaussian_noise", "gaussian_blur"), 0.5, seeded())
    noisy_blur = distort(images, ("gaussian_blur", "gaussian_noise"), 0.5, seeded())
    assert noisy_blur.diff(dim=-1).abs().mean() > 2 * blurred_noise.diff(dim=-1).abs().mean()


def test_gradients_reach_the_image_through_jpeg(images):
    leaf = images.clone().requires_grad_()
    distort(leaf, "jpeg", 0.5, seeded()).sum().backward()
    assert leaf.grad.isfinite().all()
    assert leaf.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.rand(1, 3, 32, 32), "sepia", 0.5), "names: expected some of lightness, .*, got sepia"),
        ((torch.rand(1, 1, 32, 32), "jpeg", 0.5), r"images: expected floats \(N, 3, H, W\).*\(1, 1, 32, 32\)"),
        ((torch.rand(1, 3, 8, 32), "jpeg", 0.5), "images: expected .* at least 16"),
        ((torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "jpeg", 0.5), "images: expected floats"),
        (
            (torch.rand(2, 3, 32, 32), "jpeg", torch.rand(3)),
            r"strength: expected one, \(2,\) or \(1, 2\), got \(3,\)",
        ),
    ],
)
def test_wrong_arguments_are_refused_with_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        distort(*arguments, seeded())


def test_kornia_is_imported_only_when_it_is_needed():
    code = "import sys, lpips_lightning.data.distortions; sys.exit('kornia' in sys.modules)"
    assert forked_python.run(["-c", code]).returncode == 0
