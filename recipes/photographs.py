"""Photographs to train and to show on: those inside the scikit-image wheel, by name."""

from importlib.util import find_spec
from pathlib import Path

from lpips_lightning.io.image_files import find_images

# The color photographs that lie inside the wheel of scikit-image 0.26; skimage.data would download all others.
# The right view of the motorcycle is left out: it shows the scene of the left one and would give it away if held out.
_BUNDLED = {
    "astronaut": "astronaut.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "motorcycle": "motorcycle_left.png",
    "rocket": "rocket.jpg",
}


def bundled_photographs() -> dict[str, Path]:
    """Name and file of each color photograph that comes inside the installed scikit-image; nothing is downloaded.

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
            f"the installed scikit-image lacks {', '.join(missing)} in {folder}: install its wheel afresh,"
            " or name a folder of images of your own"
        )
    return found


def scikit_image_folder() -> Path:
    """The folder of images inside the installed scikit-image, which is not imported.

    Raises:
        ModuleNotFoundError: If scikit-image is not installed.
    """
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the example photographs come with scikit-image, which is not installed: "
            'pip install "lpips_lightning[recipes]", or name a folder of images of your own'
        )
    return Path(spec.origin).parent / "data"


def select_images(images: dict[str, Path], names: list[str], argument: str) -> dict[str, Path]:
    """The entries of `images` called `names`; `argument` is the name to use in the error.

    Raises:
        ValueError: If a name is not among the images.
    """
    for name in names:
        if name not in images:
            known = ", ".join(list(images)[:8]) + (", ..." if len(images) > 8 else "")
            raise ValueError(f"{argument}: expected names among {known}, got '{name}'")
    return {name: images[name] for name in names}


def split_images(
    folder: str | None, held_out: list[str] | None, val_folder: str | None, bundled_held_out: str
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Names and files of the images to train on and of those to validate on.

    Args:
        folder: To train on; None takes scikit-image's photographs.
        held_out: Names in it to validate on.
        val_folder: To validate on, in their place.
        bundled_held_out: Name of the photograph to hold out where neither says more and `folder` is None.

    Raises:
        ValueError: If nothing is left to train or to validate on, or both ways are used.
    """
    images = bundled_photographs() if folder is None else find_images(folder)
    if val_folder is not None:
        if held_out is not None:
            raise ValueError("held_out: expected None beside val_folder, which holds out images already")
        return images, find_images(val_folder)
    names = [bundled_held_out] if held_out is None and folder is None else held_out
    if not names:
        raise ValueError(
            f"held_out: expected names of images in '{folder}' to validate on, or a val_folder, got neither"
        )
    chosen = select_images(images, names, "held_out")
    train = {name: file for name, file in images.items() if name not in chosen}
    if not train:
        raise ValueError(f"held_out: expected to leave images to train on, got all {len(images)} names")
    return train, chosen
