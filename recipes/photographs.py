"""Photographs to train and to show on: those inside the scikit-image wheel, by name."""

from importlib.util import find_spec
from pathlib import Path

__all__ = ["bundled_photographs", "scikit_image_folder", "select_images"]

# The colour photographs that lie inside the wheel of scikit-image 0.26; skimage.data would download all others.
# The right view of the motorcycle is left out: it shows the scene of the left one and would give it away if held out.
_BUNDLED = {
    "astronaut": "astronaut.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "motorcycle": "motorcycle_left.png",
    "rocket": "rocket.jpg",
}


def bundled_photographs() -> dict[str, Path]:
    """Name and file of each colour photograph that comes inside the installed scikit-image; nothing is downloaded.

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
    """The folder of pictures inside the installed scikit-image, which is not imported.

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
