from __future__ import annotations

import pytest

from lpips_lightning import LPIPS
from lpips_lightning.cli import commands as cli


@pytest.fixture(scope="module")
def net():
    return LPIPS("embedded")


@pytest.fixture
def run(capsys):
    """run(*arguments): exit code, lines of standard output, standard error."""

    def call(*arguments, net="embedded"):
        code = cli.main(["compare", *(["--net", net] if net else []), *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return call
