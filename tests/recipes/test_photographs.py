"""The photographs inside the scikit-image wheel, and the choice of images by name."""

import importlib.util

import pytest
import torch

from lpips_lightning.io.image_files import image_size, read_image
from lpips_lightning.recipes.photographs import bundled_photographs


def test_bundled_photographs_are_five_large_color_images():
    photographs = bundled_photographs()
    assert list(photographs) == ["astronaut", "chelsea", "coffee", "motorcycle", "rocket"]
    for path in photographs.values():
        image = read_image(path)
        assert image.dtype == torch.uint8
        assert tuple(image.shape) == (3, *image_size(path))
        assert min(image.shape[1:]) >= 300
        assert (image[0].float() - image[2].float()).abs().mean() > 5  # not gray


def test_more_photographs_add_the_portrait_of_matplotlib():
    photographs = bundled_photographs(more=True)
    assert list(photographs) == [*bundled_photographs(), "hopper"]
    image = read_image(photographs["hopper"])
    assert min(image.shape[1:]) >= 500
    assert (image[0].float() - image[2].float()).abs().mean() > 5


@pytest.mark.parametrize("installed", [False, True])
def test_a_missing_portrait_is_left_out(monkeypatch, tmp_path, installed):
    without_data = importlib.util.spec_from_file_location("matplotlib", tmp_path / "__init__.py") if installed else None
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "lpips_lightning.recipes.photographs.find_spec",
        lambda name: without_data if name == "matplotlib" else find(name),
    )
    assert bundled_photographs(more=True) == bundled_photographs()


def test_without_scikit_image_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr("lpips_lightning.recipes.photographs.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lpips_lightning\[recipes\]"'):
        bundled_photographs()


def test_scikit_image_without_its_images_is_reported(monkeypatch, tmp_path):
    empty = importlib.util.spec_from_file_location("skimage", tmp_path / "__init__.py")
    monkeypatch.setattr("lpips_lightning.recipes.photographs.find_spec", lambda name: empty)
    with pytest.raises(FileNotFoundError, match=r"the installed scikit-image lacks astronaut.png, .*rocket.jpg in"):
        bundled_photographs()
