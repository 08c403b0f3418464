"""tLP in `compare`: of frame folders and videos, as the function computes it."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from lpips_lightning import LPIPS, compare
from lpips_lightning.functional.temporal import temporal_lpips


def frames(count, seed, height=40, width=36):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def save(folder, pixels, names=None):
    folder.mkdir(parents=True)
    for index, frame in enumerate(pixels):
        Image.fromarray(frame).save(folder / f"{(names or range(len(pixels)))[index]}.png")
    return folder


def expected(a, b, net="embedded"):
    x, y = (torch.from_numpy(side).permute(0, 3, 1, 2)[None] for side in (a, b))
    return temporal_lpips(x, y, net, "none")[0].tolist()


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "options", [(), ("--batch-size", 3), ("--batch-size", 1), ("--psnr", "--per-layer"), ("--memory-budget", "1G")]
)
def test_frame_folders_have_the_tlp_of_the_function_in_natural_order(run, tmp_path, options):
    a, b = frames(11, 0), frames(11, 1)  # names from 0 to 10: sorted as text, 10 would follow 1
    save(tmp_path / "a", a)
    save(tmp_path / "b", b)
    files = ["--csv", tmp_path / "x.csv", "--json", tmp_path / "x.json"]
    code, lines, err = run(tmp_path / "a", tmp_path / "b", "--tlp", *options, *files)
    assert code == 0, err
    cells = [row["tlp"] for row in rows_of(tmp_path / "x.csv")]
    assert cells[0] == "" and [float(cell) for cell in cells[1:]] == pytest.approx(expected(a, b), rel=1e-4)
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["pairs"][0]["tlp"] is None and written["mean_tlp"] == pytest.approx(
        np.mean(expected(a, b)), rel=1e-4
    )
    assert f"tlp\t{written['mean_tlp']:.9g}" in lines and "tLP: mean absolute difference" in lines[-1]


def test_each_folder_is_a_video_and_a_pair_across_two_does_not_count(run, tmp_path):
    clips = {
        "one": (frames(3, 0), frames(3, 1)),
        "two": (frames(2, 2, 48), frames(2, 3, 48)),
        "still": (frames(1, 4),) * 2,
    }
    for name, (a, b) in clips.items():
        save(tmp_path / "a" / name, a)
        save(tmp_path / "b" / name, b)
    code, _, err = run(tmp_path / "a", tmp_path / "b", "--tlp", "--csv", tmp_path / "x.csv", "--batch-size", 4)
    assert code == 0, err
    found = {row["a"].split("/a/")[1]: row["tlp"] for row in rows_of(tmp_path / "x.csv")}
    assert [name for name, cell in found.items() if not cell] == ["one/0.png", "still/0.png", "two/0.png"]
    for name in ("one", "two"):
        values = [float(found[f"{name}/{index}.png"]) for index in range(1, len(clips[name][0]))]
        assert values == pytest.approx(expected(*clips[name]), rel=1e-4)


def test_a_damaged_frame_takes_its_two_pairs_with_it(run, tmp_path):
    a, b = frames(5, 0), frames(5, 1)
    save(tmp_path / "a", a)
    save(tmp_path / "b", b)
    damaged = tmp_path / "a" / "2.png"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    code, _, _ = run(tmp_path / "a", tmp_path / "b", "--tlp", "--csv", tmp_path / "x.csv")
    cells = [row["tlp"] for row in rows_of(tmp_path / "x.csv")]
    assert code == 2 and [bool(cell) for cell in cells] == [False, True, False, False, True]
    whole = expected(a, b)
    assert [float(cells[1]), float(cells[4])] == pytest.approx([whole[0], whole[3]], rel=1e-4)


def test_maps_and_tlp_of_one_call(run, tmp_path):
    save(tmp_path / "a", frames(3, 0))
    save(tmp_path / "b", frames(3, 1))
    files = ["--map-raw", tmp_path / "maps", "--map", tmp_path / "figures"]
    code, lines, err = run(tmp_path / "a", tmp_path / "b", "--tlp", *files, "--batch-size", 2)
    assert code == 0, err
    assert len([*(tmp_path / "maps").iterdir()]) == 3 and any(line.startswith("tlp\t") for line in lines)
    assert len([*(tmp_path / "figures").glob("*.png")]) == 3


def test_videos_have_the_tlp_of_their_frames(run, tmp_path):
    av = pytest.importorskip("av", reason="the extra `video` is not installed")
    sides = {"a": frames(5, 1), "b": frames(5, 2)}
    for side, pixels in sides.items():
        with av.open(str(tmp_path / f"{side}.mkv"), "w") as container:
            stream = container.add_stream("ffv1", rate=5)
            stream.height, stream.width, stream.pix_fmt = *pixels.shape[1:3], "bgr0"
            for frame in pixels:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    code, _, err = run(tmp_path / "a.mkv", tmp_path / "b.mkv", "--tlp", "--csv", tmp_path / "x.csv", "--batch-size", 2)
    assert code == 0, err
    cells = [row["tlp"] for row in rows_of(tmp_path / "x.csv")]
    assert cells[0] == "" and [float(cell) for cell in cells[1:]] == pytest.approx(expected(**sides), rel=1e-4)


def test_the_function_has_the_values_of_the_command(tmp_path):
    a, b = frames(3, 0), frames(3, 1)
    found = compare(save(tmp_path / "a", a), save(tmp_path / "b", b), LPIPS("embedded"), metrics=["tlp"])
    assert math.isnan(found.tlp[0]) and found.tlp[1:] == pytest.approx(expected(a, b), rel=1e-4)
    assert found.mean_tlp == pytest.approx(np.mean(expected(a, b)), rel=1e-4)
    assert math.isnan(compare(tmp_path / "a", tmp_path / "b", LPIPS("embedded"), metrics=["psnr"]).mean_tlp)
    with pytest.raises(
        ValueError, match=r"metrics: expected two videos or two folders of frames with 'tlp'.*temporal_lpips"
    ):
        compare(a[0], b[0], LPIPS("embedded"), metrics=["tlp"])
    with pytest.raises(ValueError, match="metrics: expected no 'tlp' with common=True.*; remove the frames"):
        compare(tmp_path / "a", tmp_path / "b", LPIPS("embedded"), metrics=["tlp"], common=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--mask", "{a}/0.png"], "tlp: expected no --mask with this option"),
        (["--common"], "tlp: expected no --common with this option: it compares whole"),
    ],
)
def test_tlp_of_parts_of_frames_or_of_videos_is_refused(run, tmp_path, options, said):
    folder = save(tmp_path / "a", frames(2, 0))
    code, _, err = run(folder, folder, "--tlp", *[option.format(a=folder) for option in options])
    assert code == 2 and said in err


def test_images_that_are_no_video_are_refused(run, tmp_path):
    mixed = save(tmp_path / "mixed", [*frames(1, 0), *frames(1, 1, 48)])
    code, _, err = run(mixed, mixed, "--tlp")
    assert code == 2 and "tlp: expected the frames of a video in" in err and "leave --tlp out" in err
    single = save(tmp_path / "single", frames(1, 0))
    code, _, err = run(single, single, "--tlp")
    assert code == 2 and "tlp: expected videos of two frames or more" in err
    code, _, err = run(single / "0.png", single / "0.png", "--tlp")
    assert code == 2 and "tlp: expected two videos, or two folders of frames with this option, got two images" in err
