"""Frames of video files as upright RGB, decoded one at a time with PyAV (extra ``video``).

FFmpeg's swscale converts to RGB by the matrix and range in the file's tags; without tags, by BT.601 and limited range.
More than 8 bits per channel become 16, rotation metadata is applied. High dynamic range (PQ, HLG) is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lpips_lightning.io.image_decoding import Header, Pixels, printable

_FORMATS = {(False, False): "rgb24", (False, True): "rgba", (True, False): "rgb48le", (True, True): "rgba64le"}
_HIGH_RANGE = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273


def read_frames(path: str | Path) -> Iterator[tuple[Header, Pixels]]:
    """Decode a video frame by frame.

    Args:
        path: The video file; of several streams the main one is read.

    Yields:
        Properties and pixels of a frame, as `read_pixels` returns them: shape ``(H, W, 3)``, or ``(H, W, 4)`` with an
        alpha channel; uint8, or uint16 for more than 8 bits per channel.

    Raises:
        ModuleNotFoundError: If PyAV is not installed.
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not a video, is damaged, or is not supported.
    """
    name, av = printable(path), _import_av(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{name}: expected a video file, got no such file")
    count = declared = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{name}: expected a video, got a file without video stream")
            stream = container.streams.best("video")
            stream.thread_type = "AUTO"
            declared = stream.frames
            _check_transfer(stream.codec_context, name)
            for frame in container.decode(stream):
                _check_transfer(frame, name)
                yield _upright(frame, name)
                count += 1
    except av.FFmpegError as error:
        raise ValueError(
            f"{name}: expected a readable video, got {type(error).__name__}: {printable(error)}"
        ) from error
    if not count:
        raise ValueError(f"{name}: expected a readable video, got no frame")
    if count < declared:
        warnings.warn(f"{name}: {count} frames were decoded, but the file declares {declared}", stacklevel=2)


def _import_av(path: str | Path) -> ModuleType:
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{printable(path)}: expected the package av for video files, got none; pip install"
            ' "lpips_lightning[video]", or compare folders of frames'
        ) from error
    return av


def _check_transfer(tagged: Any, name: str) -> None:
    """Raise if the tags of a stream or frame say high dynamic range."""
    transfer = int(getattr(tagged, "color_trc", 0) or 0)
    if transfer in _HIGH_RANGE:
        raise ValueError(
            f"{name}: expected a video of standard dynamic range, got {_HIGH_RANGE[transfer]} (high dynamic range);"
            " tone-map it first"
        )


def _upright(frame: Any, name: str) -> tuple[Header, Pixels]:
    """Properties and pixels of a decoded frame."""
    parts = frame.format.components
    bits = max((part.bits for part in parts), default=8)
    if frame.is_corrupt:
        raise ValueError(f"{name}: expected a readable video, got a damaged frame")
    if bits > 16:
        raise ValueError(f"{name}: expected at most 16 bits per channel, got {frame.format.name}; convert the video")
    palette = bool(getattr(frame.format, "has_palette", False))
    alpha = palette or any(part.is_alpha for part in parts)
    pixels = frame.to_ndarray(format=_FORMATS[bits > 8, alpha])
    turns, rest = divmod(int(getattr(frame, "rotation", 0)), 90)
    if rest:
        raise ValueError(f"{name}: expected a rotation by quarter turns, got {frame.rotation} degrees")
    pixels = np.ascontiguousarray(np.rot90(pixels, turns))  # counter-clockwise, as the display matrix says
    gray = not palette and sum(not part.is_alpha for part in parts) == 1
    height, width = pixels.shape[:2]
    return Header(height, width, gray, alpha, deep=bits > 8), pixels
