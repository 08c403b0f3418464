"""Photographs bundled with scikit-image and matplotlib, and the split of images into training and held-out ones."""

from importlib.util import find_spec
from pathlib import Path

from lpips_lightning.io.image_files import find_images
from lpips_lightning.recipes.held_out import HeldOut

# Color photographs inside the wheel of scikit-image 0.26; skimage.data downloads the others. The right view of the
# motorcycle is excluded: it shows the same scene as the left one, which could be held out.
_BUNDLED = {
    "astronaut": "astronaut.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "motorcycle": "motorcycle_left.png",
    "rocket": "rocket.jpg",
}
# A portrait inside the wheel of matplotlib, in the public domain. The other color images in both wheels are drawings,
# or of microscopes, telescopes and eyes: without objects of everyday colors.
_PORTRAIT = ("matplotlib", "hopper", "mpl-data/sample_data/grace_hopper.jpg")


def bundled_photographs(more: bool = False) -> dict[str, Path]:
    """Names and files of the color photographs in the installed scikit-image, without a download.

    Args:
        more: Add "hopper", matplotlib's, if that is installed with its sample data, which some distributions leave out.

    Returns:
        ``{"astronaut": path, "chelsea": path, "coffee": path, "motorcycle": path, "rocket": path}``.

    Raises:
        ModuleNotFoundError: If scikit-image is not installed.
        FileNotFoundError: If the installed scikit-image lacks one of the files.
    """
    folder = scikit_image_folder()
    found = {name: folder / file for name, file in _BUNDLED.items()}
    missing = [path.name for path in found.values() if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"the installed scikit-image lacks {', '.join(missing)} in {folder}: reinstall it, or pass a"
            " folder of your own images"
        )
    package, name, file = _PORTRAIT
    spec = find_spec(package) if more else None
    if spec is not None and spec.origin is not None and (path := Path(spec.origin).parent / file).is_file():
        found[name] = path
    return found


def scikit_image_folder() -> Path:
    """Image folder of the installed scikit-image, without importing it.

    Raises:
        ModuleNotFoundError: If scikit-image is not installed.
    """
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the example photographs come with scikit-image, which is not installed: "
            'pip install "lpips_lightning[recipes]", or pass a folder of your own images'
        )
    return Path(spec.origin).parent / "data"


def split_images(
    folder: str | None, held_out: HeldOut, val_folder: str | None, bundled_held_out: str, more: bool = False
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Split images into names and files for training and for validation.

    Args:
        folder: Folder of training images; None for scikit-image's photographs.
        held_out: Which images in `folder` are for validation.
        val_folder: Folder of validation images, instead of `held_out`.
        bundled_held_out: Held-out photograph if `folder` is None and none is chosen.
        more: See `bundled_photographs`.

    Raises:
        ValueError: If no image is left for training or validation, or both `held_out` and `val_folder` are given.
    """
    images = bundled_photographs(more) if folder is None else find_images(folder)
    if val_folder is not None:
        if held_out.chosen is not None:
            raise ValueError("held_out: expected None with val_folder, which already holds the validation images")
        return images, find_images(val_folder)
    if folder is None and held_out.chosen is None:
        held_out = HeldOut([bundled_held_out])
    return held_out.split(images, folder or ("scikit-image and matplotlib" if more else "scikit-image"))
