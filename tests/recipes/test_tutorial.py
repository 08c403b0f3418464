"""recipes/tutorial.ipynb: its code runs as it stands, and the outputs that are stored are those of a clean run."""

from __future__ import annotations

import logging
import os
import re
import warnings
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
PATH = ROOT / "recipes/tutorial.ipynb"
SMALL = "SEED, EPOCHS, STEPS, TRIPLETS = 0, 1, 8, 24"


@pytest.fixture
def notebook():
    """The notebook, with the values of its first cell shrunk."""
    found = nbformat.read(PATH, as_version=4)
    (parameters,) = [cell for cell in found.cells if "parameters" in cell.metadata.get("tags", [])]
    assert set(re.findall(r"\b[A-Z]{3,}\b", parameters.source.replace("CPU", ""))) == {*re.findall("[A-Z]{3,}", SMALL)}
    parameters.source = SMALL
    return found


@pytest.fixture
def _clean(tmp_path, monkeypatch):
    """An empty folder; log levels, the seed and the backend of figures are restored."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.mark.usefixtures("_clean")
def test_the_code_runs_without_a_warning(notebook, capsys):
    import matplotlib as mpl

    mpl.use("Agg")
    names = {"__name__": "tutorial"}
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        exec(compile(cell.source, cell.id, "exec"), names)
    assert len(cells) >= 12
    said = capsys.readouterr()
    assert "agrees with" in said.out and "Tip" not in said.out + said.err and "GPU" not in said.out + said.err
    assert set(names["models"]) == {"L1", "L1 + LPIPS"}
    assert names["models"]["L1"].perceptual.weight == 0 < names["models"]["L1 + LPIPS"].perceptual.weight
    assert not [one for one in names["models"]["L1 + LPIPS"].state_dict() if not one.startswith("network.")]
    assert len(names["logged"](names["trainers"]["L1"], "val/lpips")) == 1
    assert "custom mine.safetensors" in names["metric"].fingerprint
    assert Path("outputs/tutorial/mine.safetensors").is_file()
    written = {path.parts[0] for path in Path().iterdir()}
    assert written == {"outputs"}


def test_stored_outputs_are_those_of_one_clean_run():
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"stream", "display_data"}
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert all(output.name == "stdout" for output in outputs if output.output_type == "stream")
    assert not re.search(r"(?i)warning|/(tmp|home|root|work|usr)/|it/s|error:", text)
    pictures = [output.data["image/jpeg"] for output in outputs if output.output_type == "display_data"]
    assert len(pictures) >= 3 and sum(map(len, pictures)) * 3 / 4 < 150_000
    assert PATH.stat().st_size < 400_000


def test_stored_scores_tell_what_the_text_says():
    notebook = nbformat.read(PATH, as_version=4)
    text = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    own = {name: float(one) for name, one in re.findall(r"(?m)^(L1 \+ LPIPS|L1) .* LPIPS\(embedded\) ([\d.]+)", text)}
    assert own["L1 + LPIPS"] < 0.75 * own["L1"]  # "by a third"
    psnr = {name: float(one) for name, one in re.findall(r"(?m)^(L1 \+ LPIPS|L1) .* PSNR ([\d.]+)", text)}
    assert psnr["L1 + LPIPS"] < psnr["L1"]  # "PSNR fell"
    agree = {name: int(percent) for name, percent in re.findall(r"(\w+) +agrees with (\d+) %", text)}
    assert agree["mine"] >= agree["published"] > 60


def test_links_lead_to_files():
    links = re.findall(r"\]\(([^)#]+)\)", PATH.read_text(encoding="utf-8"))
    assert len(links) >= 3 and all((PATH.parent / link).is_file() for link in links)


@pytest.mark.slow
def test_it_runs_in_a_kernel(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pyzmq and jupyter_client
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"stream", "display_data"}
    assert all(output.get("name", "stdout") == "stdout" for output in outputs), outputs
