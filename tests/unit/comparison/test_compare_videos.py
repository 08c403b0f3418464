"""`lpips-lightning compare` of two videos: the numbers of folders of their frames."""

from __future__ import annotations

import csv
import json
import sys
import threading

import numpy as np
import pytest
import torch
from image_file_kinds import RGB, deep_png
from PIL import Image

from lpips_lightning import LPIPS
from lpips_lightning.comparison import videos
from lpips_lightning.io.video_files import read_frames

IDENTITY = b"\0\1\0\0" + bytes(12) + b"\0\1\0\0" + bytes(12) + b"\x40\0\0\0"
CLOCKWISE = bytes(4) + b"\0\1\0\0" + bytes(4) + b"\xff\xff\0\0" + bytes(8) + b"\0\x28\0\0" + bytes(4) + b"\x40\0\0\0"


@pytest.fixture(scope="module")
def av():
    return pytest.importorskip("av", reason="the extra `video` is not installed")


@pytest.fixture
def film(av, tmp_path):
    """film(name, frames, codec, stored, given): path of a video; both default codecs are lossless."""

    def write(name, frames, codec="ffv1", stored="bgr0", given="rgb24", **tags):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=5)
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], stored
            for tag, value in tags.items():
                setattr(stream.codec_context, tag, value)
            for pixels in frames:
                frame = av.VideoFrame.from_ndarray(pixels, format=given)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return tmp_path / name

    return write


def frames(count, seed=0, height=40, width=36, channels=3, high=256):
    numbers = np.random.default_rng(seed)
    return numbers.integers(0, high, (count, height, width, channels), dtype=np.uint8 if high == 256 else np.uint16)


def pixels_of(path):
    return np.stack([pixels for _, pixels in read_frames(path)])


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_videos_have_the_numbers_of_their_frames_in_folders(run, film, tmp_path):
    sides = {"a": frames(7, 1), "b": frames(7, 2)}
    for side, pixels in sides.items():
        film(f"{side}.mkv", pixels)
        (tmp_path / side).mkdir()
        for index, frame in enumerate(pixels):
            Image.fromarray(frame).save(tmp_path / side / f"{index:06d}.png")
    options = ["--per-layer", "--batch-size", 3]
    files = ["--csv", tmp_path / "x.csv", "--json", tmp_path / "x.json", "--map-raw", tmp_path / "maps"]
    code, lines, _ = run(tmp_path / "a.mkv", tmp_path / "b.mkv", *options, *files)
    of_folders = ["--csv", tmp_path / "y.csv", "--map-raw", tmp_path / "maps2"]
    assert run(tmp_path / "a", tmp_path / "b", *options, *of_folders)[0] == 0
    assert code == 0
    header, *rows = rows_of(tmp_path / "x.csv")
    other_header, *other_rows = rows_of(tmp_path / "y.csv")
    assert header == [*other_header, "frame"]
    assert [row[-1] for row in rows] == [str(index) for index in range(7)]
    assert {tuple(row[:2]) for row in rows} == {(str(tmp_path / "a.mkv"), str(tmp_path / "b.mkv"))}
    found = np.array([[float(cell) for cell in row[2:-1]] for row in rows])
    assert np.allclose(found, [[float(cell) for cell in row[2:]] for row in other_rows], rtol=1e-5)
    assert lines[0].startswith("mean\t") and float(lines[0][5:]) == pytest.approx(found[:, 0].mean(), rel=1e-6)
    assert "n\t7" in lines and len(lines) == 6 + len(header) - 4
    written = json.loads((tmp_path / "x.json").read_text())
    assert [pair["frame"] for pair in written["pairs"]] == list(range(7))
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert names == [f"{index:06d}.png" for index in range(7)]
    for name in names:
        maps = [np.asarray(Image.open(tmp_path / folder / name)) for folder in ("maps", "maps2")]
        assert np.array_equal(*maps)


@pytest.mark.parametrize(("first", "second"), [(4, 7), (7, 4)])
def test_videos_of_other_lengths_are_an_error_that_counts(run, film, first, second):
    a, b = film("a.mkv", frames(first)), film("b.mkv", frames(second))
    code, lines, err = run(a, b, "--batch-size", 2)
    assert (code, lines) == (2, [])
    assert f"{b}: expected {first} frames, as in '{a}', got {second}; cut the videos to the same frames" in err


def test_few_frames_are_in_memory_at_once(run, film, monkeypatch):
    a = film("a.mkv", frames(18))
    alive, most, lock = [0], [0], threading.Lock()
    read, measure_read = videos.read_frames, videos.measure_read

    def counted_read(path):
        for frame in read(path):
            with lock:
                alive[0] += 1
                most[0] = max(most[0], alive[0])
            yield frame

    def counted_measure(pairs, *args):
        with lock:
            alive[0] -= 2 * len(pairs)
        return measure_read(pairs, *args)

    monkeypatch.setattr(videos, "read_frames", counted_read)
    monkeypatch.setattr(videos, "measure_read", counted_measure)
    code, lines, _ = run(a, a, "--batch-size", 4)
    assert code == 0 and "n\t18" in lines and lines[0] == "mean\t0"
    assert most[0] == 8


def test_a_mask_counts_for_every_frame(run, film, tmp_path):
    mask = np.zeros((40, 36), np.uint8)
    mask[:, :20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    x, y = frames(3, 1), frames(3, 2)
    options = ["--mask", tmp_path / "mask.png", "--csv", tmp_path / "x.csv"]
    assert run(film("a.mkv", x), film("b.mkv", y), *options)[0] == 0
    batches = [torch.from_numpy(one).permute(0, 3, 1, 2) for one in (x, y)]
    with torch.inference_mode():
        expected = LPIPS("embedded")(*batches, mask=torch.from_numpy(mask > 0).expand(3, -1, -1))
    found = rows_of(tmp_path / "x.csv")
    assert found[0] == ["a", "b", "lpips", "frame", "mask", "erode"]
    assert [float(row[2]) for row in found[1:]] == pytest.approx(expected.tolist(), rel=1e-5)


def test_videos_need_what_images_need(run, film):
    plain = film("plain.mkv", frames(2))
    code, _, err = run(plain, film("large.mkv", frames(2, height=48)))
    assert code == 2 and "large.mkv: expected the size of" in err and "--resize" in err
    code, _, err = run(plain, film("small.mkv", frames(2, height=20)))
    assert code == 2 and "small.mkv: expected sides of at least 31 pixels" in err
    gray = film("gray.mkv", frames(2, channels=1)[..., 0], stored="gray", given="gray")
    code, _, err = run(plain, gray)
    assert code == 2 and "gray.mkv: expected a color image, got a gray one; --gray" in err
    assert run(plain, gray, "--gray")[0] == 0


def test_alpha_needs_a_background(run, film):
    clear = film("clear.mov", frames(2, channels=4), "png", "rgba", "rgba")
    plain = film("plain.mov", frames(2), "png", "rgb24")
    code, _, err = run(plain, clear)
    assert code == 2 and "clear.mov: expected an opaque image, got transparent pixels; --background" in err
    assert run(plain, clear, "--background", "white")[0] == 0
    assert np.array_equal(pixels_of(clear), frames(2, channels=4))


def test_sixteen_bits_per_channel_are_kept(run, film, tmp_path):
    deep, low = frames(1, high=65536), frames(1, 5)
    video = film("deep.mov", deep, "png", "rgb48be", "rgb48le")
    assert np.array_equal(pixels_of(video), deep)
    (tmp_path / "deep.png").write_bytes(deep_png(deep[0], RGB))
    Image.fromarray(low[0]).save(tmp_path / "low.png")
    found = run(video, film("low.mov", low, "png", "rgb24"))[1]
    assert found[0] == f"mean\t{run(tmp_path / 'deep.png', tmp_path / 'low.png')[1][0]}"


def test_rotation_metadata_is_applied(film, tmp_path):
    pixels = frames(1)
    data = film("a.mov", pixels, "png", "rgb24").read_bytes()
    track = data.index(IDENTITY, data.index(b"tkhd"))
    turned = tmp_path / "turned.mov"
    turned.write_bytes(data[:track] + CLOCKWISE + data[track + len(IDENTITY) :])
    assert np.array_equal(pixels_of(turned)[0], np.rot90(pixels[0], -1))
    header = next(read_frames(turned))[0]
    assert header.size == (36, 40)


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_high_dynamic_range_is_refused(film, transfer, name):
    video = film("x.mkv", frames(1), color_trc=transfer)
    with pytest.raises(ValueError, match=rf"x.mkv: expected a video of standard dynamic range, got {name} .* tone-map"):
        list(read_frames(video))


def test_files_that_are_no_videos_are_named(av, run, film, tmp_path):
    good = film("good.mkv", frames(2))
    for name, data in {"text.mp4": b"text", "empty.mkv": b"", "cut.mkv": good.read_bytes()[:300]}.items():
        (tmp_path / name).write_bytes(data)
        code, lines, err = run(good, tmp_path / name)
        assert (code, lines) == (2, []) and f"{name}: expected a readable video, got" in err
    with pytest.raises(FileNotFoundError, match="gone.mp4: expected a video file, got no such file"):
        next(read_frames(tmp_path / "gone.mp4"))


def test_without_av_the_error_says_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for name in ("a.mp4", "b.MKV"):
        (tmp_path / name).write_bytes(b"")
    code, lines, err = run(tmp_path / "a.mp4", tmp_path / "b.MKV")
    assert (code, lines) == (2, [])
    assert 'a.mp4: expected the package av for video files, got none; pip install "lpips_lightning[video]", or' in err
