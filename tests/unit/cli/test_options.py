"""Network options of compare and correlate: equal to each other and to the library's."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from lpips_lightning import LPIPS
from lpips_lightning.cli import commands as cli
from lpips_lightning.cli import compare, correlate
from lpips_lightning.cli.options import network_options
from lpips_lightning.options import DEFAULTS

GIVEN = {  # command-line option: (name, value) in the library
    "--version=0.0": ("version", "0.0"),
    "--baseline": ("calibrated", False),
    "--weights=file": ("weights", "file"),
    "--calibration=file": ("calibration", "file"),
    "--distance=lpips+0.5*style": ("distance", "lpips+0.5*style"),
    "--convention=3dgs --net=vgg": ("convention", "3dgs"),
    "--precision=bf16": ("precision", "bf16"),
    "--gray": ("gray", "repeat"),
    "--background=white": ("background", "white"),
    "--background=0,0.5,1": ("background", [0, 0.5, 1]),
    "--resize=256": ("resize", (256, 256)),
    "--resize=40x44": ("resize", (40, 44)),
    "--frame-chunk=2": ("frame_chunk", 2),
    "--memory-budget=1000": ("memory_budget", 1000),
    "--memory-budget=512k": ("memory_budget", 2**19),
    "--memory-budget=3M": ("memory_budget", 3 * 2**20),
    "--memory-budget=2G": ("memory_budget", 2**31),
}
REFUSED = {
    "--convention=3dgs": "convention: expected --net vgg with this option, got --net alex",
    "--convention=3dgs --net=vgg --baseline": "convention: expected no --baseline with this option, got both",
    "--resize=a": "resize: expected a number of pixels, or HEIGHTxWIDTH, got 'a'",
    "--background=red": "background: expected white, black, or R,G,B on",
    "--frame-chunk=0": "frame-chunk: expected a positive number, got 0",
    "--memory-budget=0": "memory-budget: expected a number of bytes, or one with K, M or G, got '0'",
    "--memory-budget=1.5G": "memory-budget: expected a number of bytes",
}
COMMANDS = {"compare": (compare.parser, ["a", "b"]), "correlate": (correlate.parser, ["file.csv"])}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_take_the_networks_options(command):
    parser, rest = COMMANDS[command]
    usual = network_options(parser().parse_args(rest))
    assert usual == {name: value for name, value in DEFAULTS.items() if name != "validate_args"}
    assert {name for name, _ in GIVEN.values()} == set(usual)
    for text, (name, value) in GIVEN.items():
        assert network_options(parser().parse_args([*rest, *text.split()])) == {**usual, name: value}, text
    for text, message in REFUSED.items():
        with pytest.raises(ValueError, match=f"^{message}"):
            network_options(parser().parse_args([*rest, *text.split()]))


@pytest.fixture
def rated(tmp_path):
    """A CSV of a transparent reference and six versions of it in gray, whose last is larger."""
    numbers = np.random.default_rng(0)
    image = np.kron(numbers.integers(60, 200, (5, 5)), np.ones((8, 8)))
    alpha = np.kron(numbers.integers(0, 256, (5, 5)), np.ones((8, 8)))
    Image.fromarray(np.stack([image, image, image, alpha], 2).astype(np.uint8)).save(tmp_path / "reference.png")
    rows = []
    for level in range(6):
        noisy = Image.fromarray((image + 9 * level * numbers.standard_normal((40, 40))).clip(0, 255).astype(np.uint8))
        (noisy if level < 5 else noisy.resize((48, 52))).save(tmp_path / f"{level}.png")
        rows.append(["reference.png", f"{level}.png", 5 - 0.7 * level])
    with (tmp_path / "rated.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["reference", "distorted", "score"], *rows])
    return tmp_path / "rated.csv"


@pytest.mark.parametrize("memory", [[], ["--memory-budget=4M"]])
def test_correlate_applies_the_network_options(rated, tmp_path, capsys, memory):
    out = tmp_path / "frames.csv"
    command = ["correlate", str(rated), "--net=embedded", f"--csv={out}", *memory]
    assert cli.main(command) == 2
    assert "5.png: expected the size of" in capsys.readouterr().err
    given = ["--background=0,0.5,1", "--resize=36x44", "--gray", "--frame-chunk=1"]
    assert cli.main([*command, *given]) == 0
    net = LPIPS("embedded", background=(0, 0.5, 1), resize=(36, 44), gray="repeat")
    assert net.fingerprint in capsys.readouterr().out

    def read(name):
        return torch.from_numpy(np.array(Image.open(tmp_path / name)))

    reference = read("reference.png").permute(2, 0, 1)[None]
    with out.open(newline="") as file:
        found = {row["frame"]: float(row["lpips"]) for row in csv.DictReader(file)}
    assert len(found) == 6
    for name, distance in found.items():
        assert distance == pytest.approx(float(net(reference, read(name)[None, None])), rel=1e-4, abs=1e-7)


def test_an_unknown_network_is_code_two(rated, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["correlate", str(rated), "--net=resnet"])
    assert exit_.value.code == 2 and "--net: expected one of alex, vgg, squeeze, embedded" in capsys.readouterr().err
