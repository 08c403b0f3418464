"""Images or clips held out for validation: chosen by name, recorded in a checkpoint, or an automatic split."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lpips_lightning.io.console import Console
from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.image_files import image_size

Part = TypeVar("Part")

_ONE_IN = 10  # one in ten images or scenes
_MOST = 20  # images to validate on: more cost time in every epoch
_MANY_FOLDERS = 10  # fewer could be data sets side by side, not scenes

_announced: set[str] = set()  # a trade-off table makes many data modules of the same images


class HeldOut:
    """Splits images, or clips, into those to train on and those held out for validation and test.

    A split that nobody chose is automatic: about a tenth of the images, 1 to 20, whose hashes of the name are the
    smallest. It does not depend on the order of files, and changes little when files are added. Images of one scene
    (see `scenes`) stay together. Data modules store it in checkpoints, so that a resumed run and ``test`` use the split
    of the training.

    Args:
        chosen: Names given by the user; None for the recorded or automatic split.

    Attributes:
        names: Names held out by the last `split`.
    """

    def __init__(self, chosen: Sequence[str] | None) -> None:
        self.chosen = None if chosen is None else list(chosen)
        self.names: list[str] = []
        self._excluded: list[str] = []
        self._recorded: dict[str, list[str]] = {}
        self._notice = ""

    def split(
        self,
        parts: dict[str, Part],
        folder: str | Sequence[str],
        what: str = "images",
        candidates: dict[str, Part] | None = None,
    ) -> tuple[dict[str, Part], dict[str, Part]]:
        """Parts to train on, and parts held out.

        Args:
            parts: Images or clips by name: paths of images, or anything else for clips.
            folder: Where they are, for error messages.
            what: What they are, for messages.
            candidates: Those that an automatic split may hold out; None for all.

        Raises:
            ValueError: If a chosen name is not among the parts, or nothing is left to train or to validate on.
        """
        if self.chosen is not None:
            self.names, self._excluded = list(select(parts, self.chosen, "held_out")), []
            if not self.names:
                wanted = f"names of {what} in {_text(folder)} to validate on, or a val_folder"
                raise ValueError(f"held_out: expected {wanted}, got neither")
        elif recorded := [name for name in self._recorded.get("names", []) if name in parts]:
            self.names, self._excluded = recorded, self._recorded["excluded"]
            self._notice = self._describe(parts, folder, what, "as in the checkpoint")
        else:
            self._split_automatically(candidates or parts, folder, what)
        training = parts.keys() - {*self.names, *self._excluded}
        if not training:
            raise ValueError(
                f"held_out: expected to leave {what} to train on, got all {len(parts)} names; pass a val_folder"
            )
        train = {name: part for name, part in parts.items() if name in training}
        return train, {name: parts[name] for name in self.names}

    def announce(self, trainer: Any) -> None:
        """Print a split that the user did not choose, once and on rank 0.

        Args:
            trainer: The Trainer; None outside of one.
        """
        announce_once(self._notice, trainer)

    def state_dict(self) -> dict[str, list[str]]:
        """Names held out, for a checkpoint; empty before `split`."""
        return {"names": self.names, "excluded": self._excluded} if self.names else {}

    def load_state_dict(self, state: dict[str, list[str]]) -> bool:
        """Use the split of a checkpoint, unless the user chose another.

        Returns:
            Whether it differs from the current one, so that `split` is to be called again.
        """
        self._recorded = state
        return self.chosen is None and bool(self.names) and state != self.state_dict()

    def _split_automatically(self, parts: dict[str, Part], folder: str | Sequence[str], what: str) -> None:
        if len(parts) < 2:
            raise ValueError(
                f"folder: expected at least two {what} in {_text(folder)}, one of them to validate on, got"
                f" {len(parts)}; add some, or pass a val_folder"
            )
        held_out, names = automatic_split(parts)
        self.names = names
        self._excluded = [name for name in held_out if name not in names]
        more = f" ({len(held_out) - len(names)} more of the same scenes are left out)" if self._excluded else ""
        self._notice = self._describe(parts, folder, what, f"choose with --data.held_out{more}")

    def _describe(self, parts: dict[str, Part], folder: str | Sequence[str], what: str, how: str) -> str:
        count, names = f"{len(self.names)} of {len(parts)} {what}", ", ".join(self.names)
        return f"Held out for validation: {count} in {_text(folder)}: {names}; {how}"


def announce_once(notice: str, trainer: Any) -> None:
    """Print a notice that was not printed before, on rank 0.

    Args:
        notice: The text; nothing is printed if it is empty.
        trainer: The Trainer; None outside of one.
    """
    if notice and notice not in _announced and (trainer is None or trainer.is_global_zero):
        _announced.add(notice)
        Console().print(printable(notice), soft_wrap=True, highlight=False, markup=False, emoji=False)


def select(parts: dict[str, Part], names: Iterable[str], argument: str) -> dict[str, Part]:
    """Select `names` from `parts`; errors name `argument`.

    Raises:
        ValueError: If a name is not among the parts.
    """
    chosen = list(names)
    for name in chosen:
        if name not in parts:
            known = ", ".join(list(parts)[:8]) + (", ..." if len(parts) > 8 else "")
            raise ValueError(f"{argument}: expected names among {known}, got '{name}'")
    return {name: parts[name] for name in chosen}


def automatic_split(parts: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Names that are not trained on, and those of them to validate on: at most 20, evenly spaced.

    Args:
        parts: Two images or clips or more, by name.
    """
    grouped = scenes(parts)
    wanted = min(-(-len(parts) // _ONE_IN), _MOST)
    held_out: list[str] = []
    for scene in sorted(grouped, key=_hash):
        if len(held_out) + len(grouped[scene]) <= wanted:
            held_out += grouped[scene]
    held_out = held_out or min(grouped.values(), key=lambda names: len(names))
    held_out.sort(key=list(parts).index)
    count = min(len(held_out), _MOST)
    return held_out, [held_out[index * len(held_out) // count] for index in range(count)]


def scenes(parts: dict[str, Any]) -> dict[str, list[str]]:
    """Names by scene; a part that belongs to no scene is one of its own.

    The images of a subfolder are a scene if they are numbered frames of one size, or if there are many subfolders with
    few images each.

    Args:
        parts: Paths of images by name, or clips, each of which is a scene.
    """
    folders: dict[str, list[str]] = {}
    for name, part in parts.items():
        if isinstance(part, Path) and "/" in name:
            folders.setdefault(name.rpartition("/")[0], []).append(name)
    many = len(folders) >= _MANY_FOLDERS
    together = {
        folder
        for folder, names in folders.items()
        if (many and len(names) <= _MOST) or _are_frames([name.rpartition("/")[2] for name in names], names, parts)
    }
    grouped: dict[str, list[str]] = {}
    for name in parts:
        folder = name.rpartition("/")[0]
        grouped.setdefault(f"{folder}/" if folder in together else name, []).append(name)
    return grouped if len(grouped) > 1 else {name: [name] for name in parts}


def _are_frames(stems: Sequence[str], names: Sequence[str], parts: dict[str, Path]) -> bool:
    """Whether the names differ in a consecutive number only, and the images have one size."""
    split = [re.fullmatch(r"(.*?)(\d+)(\D*)", stem) for stem in stems]
    found = [match for match in split if match is not None]
    if len(names) < 2 or len(found) < len(names) or len({(match[1], match[3]) for match in found}) > 1:
        return False
    numbers = sorted(int(match[2]) for match in found)
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        return False
    size = image_size(parts[names[0]])
    return all(image_size(parts[name]) == size for name in names)


def _text(folder: str | Sequence[str]) -> str:
    return f"'{folder}'" if isinstance(folder, str) else ", ".join(f"'{one}'" for one in folder)


def _hash(scene: str) -> bytes:
    return hashlib.sha256(scene.encode("utf-8", "surrogateescape")).digest()
