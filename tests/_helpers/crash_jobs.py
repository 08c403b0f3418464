"""Jobs that tests kill while they write, and checks of the files they leave; see test_crashes.py."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import boring_module as boring
import numpy as np
import subprocess_jobs as workers
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors import safe_open
from small_data import write_noise

from lpips_lightning.backbones.fetch import fetch_backbone
from lpips_lightning.calibration.export import write_calibration
from lpips_lightning.calibration.model import TrainableLPIPS
from lpips_lightning.calibration.pooled import cached_pool
from lpips_lightning.callbacks._loggers import write_png
from lpips_lightning.comparison.file_pairs import Pair
from lpips_lightning.comparison.measure import PairResult
from lpips_lightning.comparison.report import write_csv, write_json
from lpips_lightning.data.triplets import Triplet, TripletDataset
from lpips_lightning.io.checkpoint_io import AtomicCheckpointIO
from lpips_lightning.weights import BackboneFile

BACKBONE = bytes(range(256)) * 4000  # a megabyte
MOMENTS = "moments"
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.chmod"}  # and files that are opened to be written


def calibrating(folder: Path, ckpt_path: Path | None = None) -> dict:
    """`PerceptualCalibration`, three epochs of five steps, a checkpoint after each."""
    return workers.calibrate(folder, "lin", ckpt_path=ckpt_path, every=1)


class Heavy(boring.Boring):
    """A model with slow checkpoints, so that a kill hits the write."""

    def __init__(self):
        super().__init__(loss="embedded")
        self.register_buffer("ballast", torch.arange(1 << 20, dtype=torch.float32))


def training(folder: Path, ckpt_path: Path | None = None) -> dict:
    """Pixels and `PerceptualLoss`, twelve epochs of a step, a checkpoint after each."""
    checkpoint = ModelCheckpoint(folder, save_last=True, save_top_k=-1, filename="{epoch}")
    options = {"max_epochs": 12, "enable_checkpointing": True, "plugins": [AtomicCheckpointIO()]}
    trainer = boring.trainer(folder, [checkpoint], **options)
    model = Heavy()
    trainer.fit(model, boring.loader(2), ckpt_path=ckpt_path)
    return workers.learned(trainer, model)


def exporting(folder: Path, ckpt_path: Path | None = None, rounds: int = 12) -> dict:
    """A calibration, a cache, a report, tables and a fetched backbone, repeatedly; returns their final content."""
    network = TrainableLPIPS("embedded", init="official")
    (folder / "mirror").mkdir(parents=True, exist_ok=True)
    record = backbone_record()
    if not (folder / "mirror" / record.file).exists():
        (folder / "mirror" / record.file).write_bytes(BACKBONE)
    pixels = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    pairs = [Pair(f"{number}", Path(f"a{number}.png"), Path(f"b{number}.png")) for number in range(2000)]
    compared = [PairResult(pair, number / 7) for number, pair in enumerate(pairs)]
    data = written_triplets(folder / "images")
    for number in range(rounds):
        write_calibration(folder / "calibration.safetensors", network, 1.0 + number, {"round": number})
        write_png(folder / "val" / "report.png", pixels)
        write_csv(folder / "pairs.csv", compared)
        write_json(folder / "pairs.json", compared, "LPIPS")
        fetch_backbone(record, folder / "fetched", str(folder / "mirror"))
        found = cached_pool(network, data, folder / "cache")
        if number < rounds - 1:
            for file in [*(folder / "cache").glob("*.safetensors"), folder / "fetched" / record.file]:
                file.unlink()
    return {"cache": found.mean, "fetched": torch.tensor(list((folder / "fetched" / record.file).read_bytes()[:999]))}


def backbone_record() -> BackboneFile:
    """Of a file that is no backbone, but has the sha256 that its name promises."""
    return BackboneFile("t", f"https://nowhere.invalid/t-{hashlib.sha256(BACKBONE).hexdigest()[:8]}.pth", None)


def written_triplets(folder: Path) -> TripletDataset:
    """Six triplets of four images of noise."""
    if not (folder / "d.png").exists():
        write_noise(folder, "abcd", 32, 32)
    chosen = ("abc", "bcd", "cda", "dab", "acd", "bda")
    return TripletDataset([Triplet(*(f"{name}.png" for name in names), 0.5) for names in chosen], folder, size=32)


WORK = {"calibrating": calibrating, "training": training, "exporting": exporting}


def at_work(
    kind: str, folder: Path, elsewhere: Path, kill_at: int | None = None, kill_after_bytes: int | None = None
) -> None:
    """Work, and say how often anything changed in the folder; or be killed at one of these moments.

    Moments are counted, not timed, so that they are the same on every machine.

    Args:
        kind: Of `WORK`.
        folder: Where.
        elsewhere: The system's folder of temporary files: another file system, where there is one.
        kill_at: Just before the change of this number.
        kill_after_bytes: Not yet then, but in the middle of the first file that grows longer afterwards.
    """
    tempfile.tempdir = str(elsewhere)
    folder.mkdir(parents=True)
    seen: list[str] = []

    def watch(event: str, args: tuple) -> None:
        if _changes(event, args, folder):
            seen.append(event)
            if len(seen) - 1 == kill_at:
                _kill(kill_after_bytes)

    sys.addaudithook(watch)
    torch.save(WORK[kind](folder), folder / "result.pt")
    (folder / MOMENTS).write_text(str(len(seen)))


def _changes(event: str, args: tuple, folder: Path) -> bool:
    if event == "open":
        is_written = isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR))
    else:
        is_written = event in CHANGES
    return is_written and isinstance(args[0], str | Path) and str(args[0]).startswith(str(folder))


def _kill(after_bytes: int | None) -> None:
    """Of this process: at once, or by the system, while it writes a file that grows longer than so many bytes."""
    import resource

    if after_bytes is None:
        os.kill(os.getpid(), signal.SIGKILL)
    with contextlib.suppress(ValueError):  # signals are the main thread's
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, and raises
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after_bytes, hard))


def check_whole(folder: Path) -> int:
    """Load every file that has its final name; how many there are."""
    count = 0
    for path in folder.rglob("*"):
        if path.name.startswith(".") or not path.is_file():
            continue
        check = CHECKS.get(path.suffix)
        if check is not None and "images" not in path.parts:
            check(path)
            count += 1
    return count


def _check_checkpoint(path: Path) -> None:
    assert {"state_dict", "optimizer_states", "global_step"} <= set(torch.load(path, weights_only=True))


def _check_tensors(path: Path) -> None:
    with safe_open(path, "pt") as file:
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118
        assert file.metadata()["record"]


def _check_image(path: Path) -> None:
    with Image.open(path) as image:
        assert np.asarray(image).shape == (400, 600, 3)


def _check_table(path: Path) -> None:
    with path.open(newline="") as file:
        assert [len(row) for row in csv.reader(file)] == [3] * 2001


def _check_object(path: Path) -> None:
    assert len(json.loads(path.read_text())["pairs"]) == 2000


def _check_backbone(path: Path) -> None:
    assert path.read_bytes() == BACKBONE


CHECKS = {
    ".ckpt": _check_checkpoint,
    ".safetensors": _check_tensors,
    ".png": _check_image,
    ".csv": _check_table,
    ".json": _check_object,
    ".pth": _check_backbone,
}
