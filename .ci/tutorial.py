"""Runs recipes/tutorial.ipynb in an empty folder and stores its outputs: ``make tutorial``."""

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "recipes/tutorial.ipynb"


def main() -> None:
    """Replace the outputs of the notebook by those of a new run."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, record_timing=False, resources={"metadata": {"path": folder}}).execute()
    notebook.metadata.language_info = {"name": "python"}  # and no version of Python
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
