"""The demonstration, in a few steps with random backbones."""

import io
import math

import pytest
import torch
from _helpers.figure_layout import HOSTILE_NAMES, saved_faults
from PIL import Image
from rich.console import Console

from lpips_lightning.recipes import demo
from lpips_lightning.recipes.panel import Column, most_detailed, save_panel
from lpips_lightning.recipes.superresolution import SuperResolution

# 2026-11-21, pytorch_lightning/loops/fit_loop.py: the progress bar of three steps.
pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval")


@pytest.fixture(autouse=True)
def _as_many_threads_as_before():
    """The demonstration takes as many as are fastest on the machine."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=100)


def test_few_steps_give_scores_a_figure_and_a_model(tmp_path, console):
    result = demo.run_demo(
        tmp_path,
        held_out="chelsea",
        loss_net="squeeze",
        metric_net="alex",
        loss_weights="random",
        metric_weights="random",
        minutes=60,  # on a slow machine, too
        max_steps=3,
        console=console,
    )
    assert result.steps == 3
    assert list(result.scores) == ["bicubic", "before", "after"]
    assert result.scores["before"] == result.scores["bicubic"]  # an untrained network adds nothing
    assert result.scores["after"] != result.scores["bicubic"]
    assert result.scores["bicubic"].psnr == pytest.approx(29.9, abs=1.0)
    with Image.open(result.panel) as image:
        assert image.width > image.height > 500
    model = SuperResolution.load_from_checkpoint(result.checkpoint, weights_only=True)
    assert model.hparams["loss_net"] == "squeeze"
    said = console.file.getvalue()
    assert "Loss: L1 + 0.05 LPIPS(squeeze). Metric: LPIPS(alex)." in said
    for words in ("bicubic", "before training", "after training", str(result.panel), "backbone random"):
        assert words in said


def test_metric_net_is_alex_if_its_weights_are_here_else_one_that_the_loss_does_not_use(tmp_path, console, monkeypatch):
    assert demo.choose_metric_net("vgg", "embedded", console) == "vgg"
    assert demo.choose_metric_net("auto", "embedded", console) == "embedded-vgg"
    assert "'alex' are not on this machine: the metric uses 'embedded-vgg'" in console.file.getvalue()
    (tmp_path / "alexnet.safetensors").write_bytes(b"")
    monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(tmp_path))
    assert demo.choose_metric_net("auto", "embedded", console) == "alex"


def test_table_notes_a_network_shared_by_loss_and_metric(console):
    scores = {
        name: demo.Scores(25.0, 0.8, lpips) for name, lpips in (("bicubic", 0.4), ("before", 0.4), ("after", 0.3))
    }
    console.print(demo.scores_table(scores, "chelsea", "LPIPS(alex)", same_network=True))
    said = console.file.getvalue()
    assert "-25.0%" in said
    assert "Loss and metric share a network" in said


def test_bad_arguments_are_refused(tmp_path, console):
    with pytest.raises(ValueError, match="minutes: expected more than 0, got 0"):
        demo.run_demo(tmp_path, minutes=0, console=console)
    with pytest.raises(ValueError, match=r"held_out: expected names among astronaut, .*, got 'nobody'"):
        demo.run_demo(tmp_path, held_out="nobody", metric_net="alex", metric_weights="random", console=console)


def test_detail_is_found_where_the_image_is_busy():
    image = torch.zeros(3, 96, 128)
    image[:, 40:72, 80:112] = torch.rand(3, 32, 32)
    top, left = most_detailed(image, 32)
    assert abs(top - 40) <= 4
    assert abs(left - 80) <= 4


def test_the_detail_keeps_away_from_the_border():
    image = torch.full((3, 256, 256), 0.5)
    image[:, :20] = torch.rand(3, 20, 256)  # the most detail is at the top
    assert most_detailed(image, 64)[0] == 32
    assert most_detailed(torch.rand(3, 64, 64), 64) == (0, 0)


@pytest.mark.parametrize("side", [(80, 40), (16, 300)])
@pytest.mark.parametrize("count", [1, 6, 13])
def test_panels_are_readable(tmp_path, side, count):
    names = [HOSTILE_NAMES[index % len(HOSTILE_NAMES)] for index in range(count)]
    columns = [Column(name, "PSNR 25.39 dB\nLPIPS 0.308", torch.rand(3, *side)) for name in names]
    columns += [Column("a map", "local LPIPS\n", torch.full(side, math.nan))] if count > 1 else []

    def draw(path):
        return save_panel(columns, path, HOSTILE_NAMES[-1], 32, note=HOSTILE_NAMES[-1])

    assert saved_faults(draw, tmp_path / "new" / "panel.png") == []


def test_panel_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("lpips_lightning.io.figures.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lpips_lightning\[recipes\]"'):
        save_panel([Column("a", "b", torch.rand(3, 40, 40))], tmp_path / "panel.png", "heading")


def test_the_table_of_the_longest_network_fits_80_characters():
    scores = {name: demo.Scores(25.0, 0.8, 0.3) for name in ("bicubic", "before", "after")}
    narrow = Console(file=io.StringIO(), width=80)
    narrow.print(demo.scores_table(scores, "astronaut", "LPIPS(embedded-vgg)", same_network=False))
    shown = narrow.file.getvalue()
    assert "LPIPS(embedded-vgg) \u2193" in shown and "vs. bicubic" in shown and "\u2026" not in shown
