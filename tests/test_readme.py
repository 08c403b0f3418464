"""README is true: its snippets run, its commands exist, its sha256 are the records'."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from references import BUILDERS
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from lpips_lightning.cli import COMMANDS
from lpips_lightning.weights import CALIBRATIONS, TRUNK_FILES

TEXT = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path, trunks):
    """Seeded trunks where ImageNet's are looked for."""
    for net, tensors in trunks.items():
        save_file(tensors, tmp_path / f"{BUILDERS[net]}.safetensors")
        record = TRUNK_FILES[BUILDERS[net]]
        monkeypatch.setitem(TRUNK_FILES, record.builder, replace(record, convolutions_sha256=None))
    monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(tmp_path))


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippets_run(number):
    exec(compile(SNIPPETS[number], f"README.md, snippet {number + 1}", "exec"), {})


# 2026-11-21, pytorch_lightning/trainer/connectors/data_connector.py: its advice on loaders.
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_first_snippet_trains_and_its_checkpoint_holds_the_network_alone(tmp_path):
    names = {}
    exec(SNIPPETS[0], names)
    model = names["Restoration"](torch.nn.Conv2d(3, 3, 1))
    loader = DataLoader(TensorDataset(*torch.rand(2, 4, 3, 32, 32)), batch_size=3)
    for _ in range(2):
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        trainer.fit(model, loader, loader)
    assert 0 < float(trainer.callback_metrics["val/lpips"]) < 10
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    state = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    assert sorted(state) == ["network.bias", "network.weight"]


def test_the_first_snippet_comes_before_line_15():
    assert TEXT[: TEXT.index("```python")].count("\n") < 15


def test_commands_exist():
    commands = re.findall(r"^lpips-lightning (\S+)|`lpips-lightning (\S+?)[ `]", TEXT, re.MULTILINE)
    named = {first or second for first, second in commands}
    assert len(named) >= 3
    assert named <= set(COMMANDS)


def test_every_calibration_is_listed_with_its_sha256():
    for record in CALIBRATIONS.values():
        assert f"`{record.sha256}`" in TEXT


def test_links_to_files_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)]+)\)", TEXT)
    assert links
    for link in links:
        assert (Path(__file__).parents[1] / link).exists(), link
