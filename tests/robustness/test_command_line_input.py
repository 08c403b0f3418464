"""Bad input on the command line, by name: code 2 and one sentence that names the culprit, or the right number.

No case may end in a traceback from a dependency, in a number that is wrong, or with something half-written.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from image_file_kinds import GRAY, GRAY_ALPHA, RGB, RGBA, chunk, deep_png, noise, saved, tiff
from PIL import Image

from lpips_lightning.cli import commands as cli

COLOR, ONE, DEEP, CLEAR = noise(), noise(channels=1), noise(high=65536), noise(channels=4)
OPAQUE = np.concatenate([COLOR, np.full_like(COLOR[..., :1], 255)], 2)
SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6
FRAMES = {"save_all": True, "append_images": [Image.fromarray(255 - COLOR)]}
WHOLE = saved(COLOR, "PNG")
PALETTE = Image.fromarray(COLOR // 64 * 64).quantize(64)
COMPARE = ("compare", "--net", "embedded")
SAME, OTHER = "0", "other"  # what is printed: distance 0, or another number

IMAGES = {  # the file x.png beside the color image same.png: what is printed, or what is said
    "RGB PNG": (WHOLE, [], SAME),
    "RGB BMP by the name of a PNG": (saved(COLOR, "BMP"), [], SAME),
    "lossless TIFF": (saved(COLOR, "TIFF", compression="tiff_lzw"), [], SAME),
    "JPEG": (saved(COLOR, "JPEG"), [], OTHER),
    "16-bit RGB PNG of equal values": (deep_png(COLOR.astype(np.uint16) * 257, RGB), [], SAME),
    "16-bit RGB PNG": (deep_png(DEEP, RGB), [], OTHER),
    "16-bit RGB TIFF of equal values": (tiff(COLOR.astype(np.uint16) * 257, 2), [], SAME),
    "opaque RGBA PNG": (saved(OPAQUE, "PNG"), [], SAME),
    "opaque RGBA PNG over black": (saved(OPAQUE, "PNG"), ["--background", "black"], SAME),
    "16-bit opaque RGBA PNG": (deep_png(OPAQUE.astype(np.uint16) * 257, RGBA), [], SAME),
    "transparent RGBA PNG": (saved(CLEAR, "PNG"), [], "x.png: expected an opaque image, got transparent pixels"),
    "transparent RGBA PNG over white": (saved(CLEAR, "PNG"), ["--background", "white"], OTHER),
    "palette PNG": (saved(PALETTE, "PNG"), [], OTHER),
    "palette GIF": (saved(PALETTE, "GIF"), [], OTHER),
    "gray PNG": (saved(ONE, "PNG"), [], "x.png: expected a color image, got a gray one; --gray"),
    "gray PNG, asked for": (saved(ONE, "PNG"), ["--gray"], OTHER),
    "16-bit gray PNG": (deep_png(noise(channels=1, high=65536), GRAY), [], "got a gray one; --gray"),
    "16-bit gray PNG, asked for": (deep_png(noise(channels=1, high=65536), GRAY), ["--gray"], OTHER),
    "one bit PNG": (saved(ONE, "PNG", "1"), [], "got a gray one; --gray"),
    "gray PNG with alpha": (saved(ONE, "PNG", "LA"), ["--gray"], OTHER),
    "16-bit gray PNG with alpha": (deep_png(noise(channels=2, high=65536), GRAY_ALPHA), [], "got another layout"),
    "CMYK JPEG": (saved(COLOR, "JPEG", "CMYK"), [], "x.png: expected an RGB, gray, palette or 16-bit image, got mode"),
    "turned by EXIF": (saved(np.rot90(COLOR, 1).copy(), "PNG", exif=SIDEWAYS), [], SAME),
    "turned by EXIF to another size": (saved(COLOR, "PNG", exif=SIDEWAYS), [], "got 36x40; --resize resizes all"),
    "animated PNG": (saved(Image.fromarray(COLOR), "PNG", **FRAMES), [], "x.png: expected one image, got 2 frames"),
    "animated GIF": (saved(Image.fromarray(COLOR), "GIF", **FRAMES), [], "x.png: expected one image, got 2 frames"),
    "two pages": (saved(Image.fromarray(COLOR), "TIFF", **FRAMES), [], "x.png: expected one image, got 2 frames"),
    "cut off": (WHOLE[: len(WHOLE) // 2], [], "x.png: expected a readable image, got a truncated PNG"),
    "one bit flipped": (WHOLE[:80] + bytes([WHOLE[80] ^ 4]) + WHOLE[81:], [], "whose IDAT fails its checksum"),
    "bomb": (WHOLE[:8] + chunk(b"IHDR", b"\0\0\x60\0\0\0\x60\0\x08\x02\0\0\0") + WHOLE[33:], [], "DecompressionBomb"),
    "no bytes": (b"", [], "x.png: expected a readable image, got an empty file"),
    "text": (b"<html>not found</html>", [], "x.png: expected a readable image, got UnidentifiedImageError"),
    "another size": (saved(noise(40, 40), "PNG"), [], "x.png: expected the size of 'same.png', 40x36 (height x width)"),
    "another size, resized": (saved(noise(40, 40), "PNG"), ["--resize", "48"], OTHER),
    "too small": (saved(noise(12, 12), "PNG"), [], "x.png: expected sides of at least 31 pixels for net embedded, got"),
    "palette PNG with a transparent color": (
        saved(PALETTE, "PNG", transparency=3),
        [],
        "x.png: expected an opaque image, got transparent pixels",
    ),
    "palette GIF, cut off": (saved(PALETTE, "GIF")[:300], [], "x.png: expected a readable image, got"),
    "JPEG, cut off": (
        saved(COLOR, "JPEG")[:700],
        [],
        "x.png: expected a readable image, got OSError: image file is t",
    ),
    "TIFF, cut off": (saved(COLOR, "TIFF")[:3000], [], "x.png: expected a readable image, got"),
    "a header of no pixels": (
        WHOLE[:8] + chunk(b"IHDR", b"\0\0\0\0\0\0\0\x28\x08\x02\0\0\0") + WHOLE[33:],
        [],
        "x.png: expected a readable image, got",
    ),
    "colors of Lab": (
        saved(Image.new("LAB", (36, 40)), "TIFF"),
        [],
        "x.png: expected an RGB, gray, palette or 16-bit",
    ),
    "floats": (
        saved(Image.new("F", (36, 40)), "TIFF"),
        [],
        "x.png: expected an RGB, gray, palette or 16-bit image, got",
    ),
    "two images one after the other": (WHOLE + WHOLE, [], SAME),
    "a folder": (
        None,
        [],
        "paths: expected two images, two videos, two folders, or --pairs and one folder, two, or two and a CSV, got a"
        " file, a folder",
    ),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: same.png, folders a and b with five images each, and CSVs about them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "same.png").write_bytes(WHOLE)
    for side in "ab":
        (tmp_path / side).mkdir()
        for number in range(5):
            image = np.random.default_rng(number + 10 * (side == "b")).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / side / f"{number}.png")
    return tmp_path


@pytest.fixture
def run(capsys):
    """run(arguments): exit code, standard output, standard error."""

    def call(arguments):
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stopped:  # argparse
            code = stopped.code
        return code, *capsys.readouterr()

    return call


def sentence_of(err):
    """The error, without the progress bars before it."""
    return err[err.rindex("lpips-lightning: ") :]


def everything_in(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("name", IMAGES)
def test_images(name, folder, run):
    data, options, expected = IMAGES[name]
    if data is None:
        (folder / "x.png").mkdir()
    else:
        (folder / "x.png").write_bytes(data)
    code, out, err = run([*COMPARE, *options, "same.png", "x.png"])
    if expected in (SAME, OTHER):
        number = float(out.splitlines()[0])
        assert (code, err) == (0, "")
        assert (number < 1e-12) == (expected == SAME) and 0 <= number < 3
    else:
        assert (code, out) == (2, "")
        assert expected in err and err.startswith("lpips-lightning: ") and err.count("\n") == 1


PATHS = {  # arguments after `compare --net embedded`: what is said
    "nothing there": (["same.png", "gone.png"], "gone.png: expected an image, a video or a folder, got no such file"),
    "a pipe twice": (["-", "-"], "paths: expected '/dev/stdin' for one image, got it for both"),
    "one image": (
        ["same.png"],
        "paths: expected two images, two videos, two folders, or --pairs and one folder, two, or",
    ),
    "three images": (["same.png"] * 3, "got a file, a file, a file"),
    "an image and a folder": (["same.png", "a"], "got a file, a folder"),
    "one folder": (["a"], "--pairs and one folder, two, or two and a CSV, got a folder"),
    "pairs of a folder and an image": (["a", "same.png", "--pairs"], "got a folder, a file"),
    "pairs of three folders": (["a", "b", "a", "--pairs"], "got a folder, a folder, a folder"),
    "a list of pairs without --pairs": (["a", "b", "same.png"], "got a folder, a folder, a file"),
    "a list of pairs that is no table": (["a", "b", "--pairs", "same.png"], "same.png: expected UTF-8 text, got byte"),
    "a video and an image": (["clip.mp4", "same.png"], "got a video, a file"),
    "eroded without mask": (["a", "b", "--erode"], "erode: expected --mask with this option, got none"),
    "eroded and resized": (
        ["a", "b", "--mask", "same.png", "--erode", "--resize", "64"],
        "erode: expected no --resize",
    ),
    "mask of all pairs": (["a", "--pairs", "--mask", "same.png"], "mask: expected two images, videos or folders with"),
    "mask of colors": (["a", "b", "--mask", "a/0.png"], "a/0.png: expected a gray mask (white counts, black does not)"),
    "mask of another size": (
        ["a", "b", "--mask", "gray.png"],
        "gray.png: expected a mask of the size of 'a/0.png', 40x",
    ),
    "mask missing": (["a", "b", "--mask", "gone"], "mask: expected an image or a folder, got no such file: 'gone'"),
    "masks of other names": (
        ["a", "b", "--mask", "lonely"],
        "of each pair, got none for 5 of 5 pairs ('0', '1', '2'",
    ),
    "csv over the mask": (["a", "b", "--mask", "same.png", "--csv", "same.png"], "csv: expected a path other than the"),
    "pairs of an image": (["same.png", "--pairs"], "got a file"),
    "an empty folder": (["a", "empty"], "folder: expected images (.bmp .jpeg"),
    "one image's pairs": (["lonely", "--pairs"], "pairs: expected two images or more in 'lonely', got 1"),
    "two of a name": (["a", "double"], "folder: expected one file per name, got 'double/x.bmp' and 'double/x.png'"),
    "other names": (["a", "lonely"], "5 missing ('0', '1', '2', ...) and 1 unexpected ('x'); rename the files"),
    "a name on two lines": (
        ["same.png", "line\nbreak.png"],
        r"line\nbreak.png: expected a readable image, got an empty",
    ),
    "a name in other letters": (["same.png", "größe.png"], "größe.png: expected a readable image, got an empty file"),
    "a name of other bytes": (["same.png", os.fsdecode(b"\xe9.png")], r"\xe9.png: expected a readable image, got an"),
    "a name with markup": (["same.png", "[red]x[/b] :x:.png"], "[red]x[/b] :x:.png: expected a readable image"),
    "a damaged name in a folder": (["a", "bad"], "bad/3.png: expected a readable image, got an empty file (and 1 more"),
    "net unknown": (
        ["same.png", "same.png", "--net", "resnet"],
        "--net: expected one of alex, vgg, squeeze, embed",
    ),
    "version unknown": (["same.png", "same.png", "--version", "0.2"], "--version: expected one of 0.1, 0.0, got '0.2'"),
    "version not of the net": (["same.png", "same.png", "--version", "0.0"], "version: expected one of '0.1' for net"),
    "no weights": (["same.png", "same.png", "--net", "vgg", "--weights", "a"], "looked for a/vgg16-397923af.pth"),
    "weights are an image": (["same.png", "same.png", "--weights", "same.png"], "same.png: expected a whole file of"),
    "calibration is an image": (["same.png", "same.png", "--calibration", "same.png"], "same.png: expected a whole"),
    "calibration and baseline": (
        ["same.png", "same.png", "--calibration", "same.png", "--baseline"],
        "calibration: expected no --baseline with this option, got both ('same.png')",
    ),
    "device unknown": (
        ["same.png", "same.png", "--device", "tpu0"],
        "device: expected auto, cpu, cuda or another ava",
    ),
    "device without memory": (
        ["same.png", "same.png", "--device", "meta"],
        "device: expected auto, cpu, cuda or anoth",
    ),
    "resize is no size": (
        ["same.png", "same.png", "--resize", "40*40"],
        "resize: expected a number of pixels, or HEIGHT",
    ),
    "resize is negative": (["same.png", "same.png", "--resize=-64"], "resize: expected a number of pixels, or HEIGHTx"),
    "resize is too small": (
        ["same.png", "same.png", "--resize", "40x20"],
        "resize: expected sides of at least 31 pixels",
    ),
    "background unknown": (["same.png", "same.png", "--background", "gray"], "background: expected white, black, or R"),
    "background is nan": (["same.png", "same.png", "--background", "0,0,nan"], "background: expected white, black, or"),
    "batch of none": (["a", "b", "--batch-size", "0"], "batch-size: expected a positive number, got 0"),
    "batch of words": (["a", "b", "--batch-size", "x"], "--batch-size: expected an integer, got 'x'"),
    "map-max is nan": (["a", "b", "--map-max", "nan"], "map-max: expected a positive distance, got nan"),
    "SSIM of a mask": (["a", "b", "--mask", "same.png", "--ssim"], "ssim: expected no --mask with this option"),
    "PSNR of all pairs": (["a", "--pairs", "--psnr"], "psnr: expected two images, videos or folders with this option"),
    "a heatmap over the figure": (
        ["same.png", "same.png", "--map", "x.png", "--map-raw", "x.png"],
        "expected a path that no other option uses, got 'x.png'",
    ),
    "a table over the figure's PDF": (
        ["same.png", "same.png", "--map", "x.png", "--csv", "x.pdf"],
        "csv: expected a path that no other option uses, got 'x.pdf'",
    ),
    "csv is a folder": (["a", "b", "--csv", "a"], "csv: expected a file to write, got 'a', which is a folder"),
    "csv below a file": (["a", "b", "--csv", "same.png/x.csv"], "csv: expected a file to write, got 'same.png/x.csv'"),
    "csv over an image": (
        ["same.png", "a/1.png", "--csv", "a/1.png"],
        "csv: expected a path other than the input images",
    ),
    "csv over an image in a folder": (["a", "b", "--csv", "a/1.png"], "csv: expected a path other than that of an"),
    "json over a mask": (
        ["a", "b", "--mask", "b", "--json", "b/1.png"],
        "json: expected a path other than",
    ),
    "maps over masks": (["a", "b", "--mask", "lonely", "--map", "lonely"], "map: expected a folder outside 'lonely'"),
    "csv and json in one": (
        ["a", "b", "--csv", "x", "--json", "./x"],
        "expected a path that no other option uses, got",
    ),
    "map of two images is a folder": (
        ["same.png", "same.png", "--map", "a"],
        "map: expected a file to write, got 'a'",
    ),
    "map is no PNG": (
        ["same.png", "same.png", "--map", "x.jpg"],
        "map: expected a file that ends in .png, got 'x.jpg'",
    ),
    "maps are a file": (["a", "b", "--map", "same.png"], "map: expected a folder to write, got 'same.png', which is a"),
    "maps over the images": (["a", "b", "--map", "b"], "map: expected a folder outside 'b', got 'b'"),
    "maps of all pairs": (
        ["a", "--pairs", "--map", "maps"],
        "map: expected two images, videos or folders with this option",
    ),
    "common names of images": (["same.png", "same.png", "--common"], "common: expected two folders with this option"),
    "common and in order": (["a", "b", "--common", "--in-order"], "--in-order: expected this option without --common"),
    "long without pairs": (["a", "b", "--long"], "long: expected one or two folders and --pairs with this option, got"),
}


@pytest.mark.parametrize("name", PATHS)
def test_paths_and_options(name, folder, run):
    (folder / "empty").mkdir()
    for file in ("lonely/x.png", "double/x.png", "double/x.bmp", *(f"bad/{number}.png" for number in range(5))):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes((folder / "a/0.png").read_bytes())
    for file in ("line\nbreak.png", "größe.png", os.fsdecode(b"\xe9.png"), "bad/3.png", "bad/4.png"):
        (folder / file).write_bytes(b"")
    (folder / "[red]x[").mkdir()
    (folder / "[red]x[/b] :x:.png").write_bytes(b"")
    (folder / "clip.mp4").write_bytes(b"")
    Image.new("L", (36, 40)).save(folder / "gray.png")
    arguments, said = PATHS[name]
    before = everything_in(folder)
    code, out, err = run([*COMPARE, *arguments])
    assert (code, out) == (2, "")
    assert said in err
    assert sentence_of(err).count("\n") == 1
    assert everything_in(folder) == before


SCORED = "reference,distorted,score\n" + "".join(f"a/{n}.png,b/{n}.png,{n}\n" for n in range(5))
JUDGED = "ref,p0,p1,judge\n" + "".join(f"0.png,{n}.png,{(n + 1) % 5}.png,{n % 2}\n" for n in range(5))
OPINIONS, TRIPLETS = "correlate", "bapps evaluate"
RIGHT = "right"

CSVS = {  # the file x.csv: for which command, what is said, or that all goes well
    "as it should be": (OPINIONS, SCORED.encode(), RIGHT),
    "byte-order mark, semicolons and Windows lines": (
        OPINIONS,
        b"\xef\xbb\xbf" + SCORED.replace(",", ";").replace("\n", "\r\n").encode(),
        RIGHT,
    ),
    "quotes and spaces": (OPINIONS, SCORED.replace("a/1.png,", '"a/1.png" , ').encode(), "line 3: expected a CSV row"),
    "quoted cells and empty lines": (
        OPINIONS,
        SCORED.replace("a/1.png,", '"a/1.png",').replace("\n", "\n\n").encode(),
        RIGHT,
    ),
    "a quote that never ends": (
        OPINIONS,
        SCORED.replace("a/2", '"a/2').encode(),
        "x.csv, line 6: expected a CSV row, got",
    ),
    "nothing": (OPINIONS, b"", "x.csv: expected a header and rows, got an empty file"),
    "a header alone": (
        OPINIONS,
        b"reference,distorted,score\n",
        "x.csv: expected a header and rows, got only a header",
    ),
    "without a column": (OPINIONS, SCORED.replace("score", "mos").encode(), "x.csv, line 1: expected the columns"),
    "two columns of a name": (
        OPINIONS,
        SCORED.replace("distorted", "score").encode(),
        "x.csv, line 1: expected unique column names",
    ),
    "a value too few": (
        OPINIONS,
        (SCORED + "a/1.png,b/1.png\n").encode(),
        "x.csv, line 7: expected 3 values as in the",
    ),
    "Latin letters": (OPINIONS, (SCORED + "é,b,1\n").encode("latin-1"), "x.csv: expected UTF-8 text, got byte 0xe9"),
    "UTF-16, as Excel's Unicode text": (OPINIONS, SCORED.encode("utf-16"), "x.csv: expected UTF-8 text, got byte 0xff"),
    "a zero byte": (
        OPINIONS,
        (SCORED + "a/\0.png,b/1.png,1\n").encode(),
        r"expected an image, or a folder of frames, in",
    ),
    "colors for the terminal": (OPINIONS, (SCORED + "\x1b[31m,b/1.png,1\n").encode(), r"in '.', got '\x1b[31m'"),
    "an image": (OPINIONS, WHOLE, "x.csv: expected UTF-8 text, got byte 0x89 at 0"),
    "a folder": (OPINIONS, None, "x.csv: expected a CSV file, got a folder"),
    "a score that is nan": (
        OPINIONS,
        SCORED.replace(",3\n", ",nan\n").encode(),
        "line 5: score: expected a number, got 'n",
    ),
    "a score that is inf": (
        OPINIONS,
        SCORED.replace(",3\n", ",-inf\n").encode(),
        "line 5: score: expected a number, got '-",
    ),
    "a score in words": (
        OPINIONS,
        SCORED.replace(",3\n", ",good\n").encode(),
        "line 5: score: expected a number, got 'good'",
    ),
    "equal scores": (
        OPINIONS,
        b"reference,distorted,score\n" + b"a/1.png,b/1.png,1\n" * 6,
        "different values",
    ),
    "too few scores": (OPINIONS, "".join(SCORED.splitlines(True)[:4]).encode(), "scores: expected at least 5, got 3"),
    "an image that is not there": (
        OPINIONS,
        SCORED.replace("a/2", "a/9").encode(),
        "line 4: reference: expected an image",
    ),
    "an image that is damaged": (
        OPINIONS,
        SCORED.replace("a/2.png", "bad.png").encode(),
        "line 4: bad.png: expected a rea",
    ),
    "an image of another size": (
        OPINIONS,
        SCORED.replace("a/2.png", "same.png").encode(),
        "line 4: b/2.png: expected the",
    ),
    "a path out of length": (OPINIONS, (SCORED + "a" * 300 + ",b/1.png,1\n").encode(), "File name too long"),
    "a cell on two lines": (OPINIONS, SCORED.replace("a/2.png", '"a/2\n.png"').encode(), "reference: expected"),
    "a header on two lines": (
        OPINIONS,
        SCORED.replace("score", '"sc\nore"').encode(),
        "x.csv, line 1: expected",
    ),
    "bars between the cells": (OPINIONS, SCORED.replace(",", "|").encode(), "line 1: expected the columns"),
    "spaces between the cells": (OPINIONS, SCORED.replace(",", " ").encode(), "line 1: expected the columns"),
    "lines of old Macs": (OPINIONS, SCORED.replace("\n", "\r").encode(), RIGHT),
    "no line at the end": (OPINIONS, SCORED.rstrip("\n").encode(), RIGHT),
    "columns in another order": (
        OPINIONS,
        b"score,distorted,reference\n" + "".join(f"{n},b/{n}.png,a/{n}.png\n" for n in range(5)).encode(),
        RIGHT,
    ),
    "columns beyond the needed": (
        OPINIONS,
        "".join(f"{line},{n}\n" for n, line in enumerate(SCORED.split())).replace("score,0", "score,more").encode(),
        RIGHT,
    ),
    "a value too many": (
        OPINIONS,
        (SCORED + "a/1.png,b/1.png,1,2\n").encode(),
        "line 7: expected 3 values as in",
    ),
    "decimal commas": (
        OPINIONS,
        SCORED.replace(",3\n", ',"3,5"\n').encode(),
        "score: expected a number, got '3,5'",
    ),
    "a score beyond all": (
        OPINIONS,
        SCORED.replace(",3\n", ",1e400\n").encode(),
        "score: expected a number, got '1",
    ),
    "no score": (OPINIONS, SCORED.replace(",3\n", ",\n").encode(), "line 5: score: expected a number, got ''"),
    "no image": (OPINIONS, SCORED.replace("a/2.png,", ",").encode(), "line 4: reference: expected an image"),
    "an address for an image": (
        OPINIONS,
        SCORED.replace("a/2.png", "https://x.invalid/a.png").encode(),
        "line 4: reference: expected an image",
    ),
    "byte-order mark twice": (OPINIONS, b"\xef\xbb\xbf" * 2 + SCORED.encode(), "x.csv, line 1: expected the columns"),
    "judged": (TRIPLETS, JUDGED.encode(), RIGHT),
    "judged, in quotes": (TRIPLETS, JUDGED.replace("0.png", '"0.png"').encode(), RIGHT),
    "judged, without a column": (TRIPLETS, JUDGED.replace("p1", "p2").encode(), "x.csv, line 1: expected the columns"),
    "judged, a value too few": (
        TRIPLETS,
        (JUDGED + "0.png,1.png\n").encode(),
        "line 7: expected 4 values as in",
    ),
    "judged, an image that is damaged": (
        TRIPLETS,
        JUDGED.replace("2.png", "../bad.png").encode(),
        "bad.png: expe",
    ),
    "judged, byte-order mark and tabs": (TRIPLETS, b"\xef\xbb\xbf" + JUDGED.replace(",", "\t").encode(), RIGHT),
    "judged by nobody": (
        TRIPLETS,
        JUDGED.replace(",0\n", ",\n").replace(",1\n", ",\n").encode(),
        "rows without a judgment",
    ),
    "judged beyond 1": (
        TRIPLETS,
        JUDGED.replace(",1\n", ",7\n").encode(),
        "judge: expected a fraction in [0, 1], got 7",
    ),
    "judged nan": (TRIPLETS, JUDGED.replace(",1\n", ",nan\n").encode(), "judge: expected a number, got 'nan'"),
    "without judge": (TRIPLETS, JUDGED.replace("judge", "who").encode(), "without votes_p0, votes_p1"),
    "a ref that is not there": (
        TRIPLETS,
        JUDGED.replace("\n0.png", "\ngone.png").encode(),
        "line 2: ref: expected a file in",
    ),
}


@pytest.mark.parametrize("name", CSVS)
def test_csv_files(name, folder, run):
    command, data, said = CSVS[name]
    (folder / "bad.png").write_bytes(b"")
    if data is None:
        (folder / "x.csv").mkdir()
    else:
        (folder / "x.csv").write_bytes(data)
    triplets = ["bapps", "evaluate", "embedded", "--csv", "x.csv", "--images", "a", "--resamples", "5"]
    before = everything_in(folder)
    code, out, err = run(
        triplets if command == TRIPLETS else ["correlate", "x.csv", "--net", "embedded", "--csv", "y.csv"]
    )
    if said == RIGHT:
        assert code == 0 and "embedded" in out
        return
    assert (code, out) == (2, "")
    sentence = sentence_of(err)
    assert said in sentence and sentence.count("\n") == 1
    assert everything_in(folder) == before


FAST = ["calibration", "fast", "--csv", "j.csv", "--images", "a", "--net", "embedded"]
EVALUATE = ["bapps", "evaluate", "embedded", "--csv", "j.csv", "--images", "a", "--resamples", "5"]
KMEANS = ["kmeans", "--images", "a", "--net", "embedded", "--out", "k.safetensors"]
OTHERS = {  # arguments: what is said
    "kmeans without folder": (
        [*KMEANS, "--images", "gone"],
        "--images: expected an existing folder of images, got 'gone'",
    ),
    "kmeans into an image": ([*KMEANS, "--out", "same.png"], "out: expected a file that ends in .safetensors"),
    "kmeans below a file": ([*KMEANS, "--out", "same.png/k.safetensors"], "out: expected a file to write, got"),
    "kmeans of no crops": ([*KMEANS, "--crops", "0"], "crops: expected at least 1, got 0"),
    "kmeans of small crops": ([*KMEANS, "--crop-size", "8"], "crop-size: expected at least 31, got 8"),
    "kmeans without iterations": ([*KMEANS, "--iterations", "0"], "iterations: expected at least 1, got 0"),
    "kmeans of squeeze": ([*KMEANS, "--net", "squeeze"], "net: expected a plain chain of convolutions such as alex"),
    "fast without images": ([*FAST, "--images", "gone"], "--images: expected an existing folder of images, got 'gone'"),
    "fast without CSV": ([*FAST, "--csv", "gone.csv"], "gone.csv: expected a CSV file, got no such file"),
    "fast into a folder": ([*FAST, "--out", "a"], "out: expected a file that ends in .safetensors, got 'a'"),
    "fast below a file": ([*FAST, "--out", "same.png/x.safetensors"], "out: expected a file to write, got"),
    "fast on BAPPS that is not there": (
        ["calibration", "fast", "--root", "gone", "--net", "embedded"],
        "--root: expected the",
    ),
    "evaluate nobody": (
        [*EVALUATE[:2], "resnet", *EVALUATE[3:]],
        "method: expected one of alex, vgg, squeeze, embedded, embedded-vgg, alex-st, vgg-st,",
    ),
    "evaluate in batches of none": ([*EVALUATE, "--batch-size", "0"], "batch-size: expected at least 1, got 0"),
    "evaluate without resamples": ([*EVALUATE, "--resamples", "0"], "resamples: expected at least 1, got 0"),
    "evaluate with -1 workers": ([*EVALUATE, "--workers", "-1"], "workers: expected at least 0, got -1"),
    "evaluate at no size": ([*EVALUATE, "--size", "-3"], "size: expected at least 1 or None, got -3"),
    "evaluate too small": ([*EVALUATE, "--size", "8"], "expected sides of at least 31 pixels for net_type 'embedded'"),
    "evaluate into a file": ([*EVALUATE, "--out", "same.png"], "out: expected a folder to write, got 'same.png'"),
    "evaluate on the moon": (
        [*EVALUATE, "--device", "moon"],
        "device: expected auto, cpu, cuda or another available device",
    ),
    "evaluate a pickle": (
        [*EVALUATE[:2], "embedded:weights=same.png", *EVALUATE[3:]],
        "same.png: expected a whole file of tensors, got a dam",
    ),
    "evaluate nothing": (
        ["bapps", "evaluate", "--root", "a"],
        "--root: expected sets in 2afc/val or jnd/val of 'a', got none",
    ),
    "distances without name": (["bapps", "evaluate", "--distances", "x"], "distances: expected NAME=FILE, got 'x'"),
    "distances that are not there": (
        ["bapps", "evaluate", "--distances", "x=y.csv"],
        "y.csv: expected a CSV file, got no",
    ),
    "correlate to a folder": (
        ["correlate", "j.csv", "--csv", "a"],
        "csv: expected a file to write, got 'a', which is a",
    ),
    "correlate with two columns": (
        ["correlate", "j.csv", "--columns", "a,b"],
        "columns: expected 3 names, of reference",
    ),
    "sheet below a file": (
        ["bapps", "sheet", "--images", "a", "--out", "same.png/s.png"],
        "out: expected a file to write",
    ),
    "make of nothing": (
        ["bapps", "make", "--images", "gone", "--out", "m"],
        "--images: expected an existing folder of images",
    ),
    "weights to a file": (["weights", "fetch", "--to", "same.png"], "to: expected a folder to write, got 'same.png'"),
    "weights of nobody": (["weights", "fetch", "--to", "w", "--net", "x"], "net: expected some of alex, vgg, squeeze"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_commands(name, folder, run):
    arguments, said = OTHERS[name]
    (folder / "j.csv").write_text(JUDGED)
    before = everything_in(folder)
    code, _, err = run([*arguments, *(["--net", "embedded"] if arguments[0] == "correlate" else [])])
    sentence = sentence_of(err)
    assert code == 2 and said in sentence and sentence.count("\n") == 1
    assert everything_in(folder) == before


def test_the_tables_are_long():
    assert len(IMAGES) + len(PATHS) + len(CSVS) + len(OTHERS) >= 140


def test_standard_output_of_another_encoding_gets_what_it_can_show(folder, monkeypatch):
    import io
    import sys

    for side in "ab":
        (folder / side / "4.png").rename(folder / side / "ü.png")
        (folder / side / "ü.png").write_bytes(WHOLE)
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    assert cli.main([*COMPARE, "a", "b"]) == 0
    assert b"min\t0\t\\xfc\n" in raw.getvalue()
