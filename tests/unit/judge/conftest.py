"""Files of studies that do not wait for the disk: thousands of answers in seconds."""

from __future__ import annotations

import pytest

from lpips_lightning.judge import store


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    connect = store._connect

    def quick(path):
        connection = connect(path)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    monkeypatch.setattr(store, "_connect", quick)
