"""What a path or URL names, by its suffix: a list of pairs, tar shards, or else a folder."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from lpips_lightning.sources.storage import is_url

LIST_SUFFIXES = (".csv", ".tsv", ".parquet")
"""Suffixes of lists of pairs."""

_SHARDS = re.compile(r"\.(tar|tgz|tar\.(gz|bz2|xz))$|\{\d+\.\.\d+\}")


def is_list(path: str) -> bool:
    """Whether a path or URL names a list of pairs."""
    return suffix(path) in LIST_SUFFIXES


def is_shards(path: str) -> bool:
    """Whether a path or URL names tar shards.

    Example:
        >>> is_shards("s3://bucket/x-{000..099}.tar"), is_shards("x.tar/images")
        (True, False)
    """
    return _SHARDS.search(_without_query(path)) is not None


def suffix(path: str) -> str:
    """The suffix of a file, in lower case."""
    return PurePosixPath(_without_query(path)).suffix.lower()


def _without_query(path: str) -> str:
    """The path of the file itself: of a chain that of its first link."""
    return next(link for link in path.split("::") if "://" in link).partition("?")[0] if is_url(path) else path
