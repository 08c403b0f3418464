"""Image decoding: exact pixels for every supported file type, one error that names the file for all others."""

from __future__ import annotations

import io

import numpy as np
import pytest
from image_file_kinds import GRAY, GRAY_ALPHA, RGB, RGBA, chunk, deep_png, noise, saved, tiff
from PIL import Image, features

from lpips_lightning.io.image_decoding import Header, printable, read_header, read_pixels
from lpips_lightning.io.image_files import read_image
from lpips_lightning.io.image_formats import COMMON_FORMATS, has_hidden_depth

COLOR, ONE, DEEP, DEEP_ONE = noise(), noise(channels=1), noise(high=65536), noise(channels=1, high=65536)
CLEAR, DEEP_CLEAR = noise(channels=4), noise(channels=4, high=65536)
BITS = (ONE > 127).repeat(3, 2) * np.uint8(255)
PALETTE = Image.fromarray(COLOR).quantize(16)
SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6  # show rotated by 90 degrees clockwise
LATE = chunk(b"eXIf", SIDEWAYS.tobytes()[6:])  # without JPEG's "Exif\0\0"
TURNED, DEEP_TURNED = np.rot90(COLOR, -1), np.rot90(DEEP, -1)
LOSSY = saved(COLOR, "JPEG", quality=95)
JPEG = np.asarray(Image.open(io.BytesIO(LOSSY)))
FULL = f"P6 {36} {40} 65535\n".encode() + DEEP.astype(">u2").tobytes()
WEBP, JP2 = (features.check(name) for name in ("webp", "jpg_2000"))
Image.init()
AVIF = "AVIF" in Image.OPEN and features.check("avif")  # since Pillow 11.3
SEE_THROUGH = Image.new("P", (36, 40), 1)
SEE_THROUGH.putpalette([0, 0, 0, 10, 20, 30])
SEE_THROUGH.putpixel((0, 0), 0)
GIF_PIXELS = np.broadcast_to(np.uint8([10, 20, 30, 255]), (40, 36, 4)).copy()
GIF_PIXELS[0, 0] = 0

RIGHT = {  # bytes, pixels
    "RGB PNG": (saved(COLOR, "PNG"), COLOR),
    "RGB PNG, interlaced chunks of text": (saved(COLOR, "PNG", dpi=(300, 300)), COLOR),
    "RGB BMP": (saved(COLOR, "BMP"), COLOR),
    "RGB PPM": (saved(COLOR, "PPM"), COLOR),
    "RGB TIFF": (saved(COLOR, "TIFF"), COLOR),
    "RGB TIFF, LZW": (saved(COLOR, "TIFF", compression="tiff_lzw"), COLOR),
    "RGB TIFF, one plane a channel": (tiff(COLOR, 2, bits=8, planes=2), COLOR),
    "RGB WebP, lossless": (saved(COLOR, "WEBP", lossless=True) if WEBP else saved(COLOR, "PNG"), COLOR),
    "RGB JPEG": (LOSSY, JPEG),
    "gray PNG": (saved(ONE, "PNG"), ONE.repeat(3, 2)),
    "gray JPEG": (saved(np.full_like(ONE, 77), "JPEG"), np.full_like(COLOR, 77)),
    "gray TIFF, white is zero": (tiff(ONE, 0, bits=8), 255 - ONE.repeat(3, 2)),
    "one bit PNG": (saved(BITS[..., :1], "PNG", "1"), BITS),
    "palette PNG": (saved(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB"))),
    "palette GIF": (saved(PALETTE, "GIF"), np.asarray(PALETTE.convert("RGB"))),
    "RGBA PNG": (saved(CLEAR, "PNG"), CLEAR),
    "gray PNG with alpha": (
        saved(Image.merge("LA", [Image.fromarray(ONE[..., 0])] * 2), "PNG"),
        ONE.repeat(4, 2),
    ),
    "16-bit gray PNG": (deep_png(DEEP_ONE, GRAY), DEEP_ONE.repeat(3, 2)),
    "16-bit RGB PNG": (deep_png(DEEP, RGB), DEEP),
    "16-bit RGBA PNG": (deep_png(DEEP_CLEAR, RGBA), DEEP_CLEAR),
    "16-bit RGB PNG, turned": (deep_png(DEEP, RGB, before=LATE), DEEP_TURNED),
    "16-bit RGB PNG, turned by a chunk after the pixels": (deep_png(DEEP, RGB, after=LATE), DEEP_TURNED),
    "16-bit gray TIFF, Intel": (tiff(DEEP_ONE, 1), DEEP_ONE.repeat(3, 2)),
    "16-bit gray TIFF, Motorola": (tiff(DEEP_ONE, 1, order=">"), DEEP_ONE.repeat(3, 2)),
    "16-bit RGB TIFF, Intel": (tiff(DEEP, 2), DEEP),
    "16-bit RGB TIFF, Motorola": (tiff(DEEP, 2, order=">"), DEEP),
    "16-bit gray PGM": (b"P5 36 40 65535\n" + DEEP_ONE.astype(">u2").tobytes(), DEEP_ONE.repeat(3, 2)),
    "turned PNG": (saved(COLOR, "PNG", exif=SIDEWAYS), TURNED),
    "turned TIFF": (saved(COLOR, "TIFF", exif=SIDEWAYS), TURNED),
    "turned TIFF, LZW": (saved(COLOR, "TIFF", exif=SIDEWAYS, compression="tiff_lzw"), TURNED),
    "turned JPEG": (saved(COLOR, "JPEG", quality=95, exif=SIDEWAYS), np.rot90(JPEG, -1)),
}
RARE = {  # suffix, bytes, pixels: formats that a file is also known by its suffix for
    "RGB TGA": ("tga", saved(COLOR, "TGA"), COLOR),
    "RGBA TGA": ("tga", saved(CLEAR, "TGA"), CLEAR),
    "RGB PCX": ("pcx", saved(COLOR, "PCX"), COLOR),
    "RGB SGI": ("SGI", saved(COLOR, "SGI"), COLOR),
    "RGB DIB": ("dib", saved(COLOR, "DIB"), COLOR),
    "RGBA DDS": ("dds", saved(CLEAR, "DDS"), CLEAR),
    "RGB QOI": ("qoi", saved(COLOR, "QOI"), COLOR) if "QOI" in Image.SAVE else ("png", saved(COLOR, "PNG"), COLOR),
    "RGB icon": ("ico", saved(COLOR, "ICO", sizes=[(36, 40)]), COLOR),
    "one bit XBM": ("xbm", saved(BITS[..., :1], "XBM", "1"), BITS),
    "GIF with a transparent color": ("gif", saved(SEE_THROUGH, "GIF", transparency=0), GIF_PIXELS),
    "APNG of one frame": ("apng", saved(COLOR, "PNG"), COLOR),
    "JPEG, .jfif": ("jfif", LOSSY, JPEG),
    "JPEG, .JPE": ("JPE", LOSSY, JPEG),
}
if JP2:
    RARE |= {
        "RGB JPEG 2000": ("jp2", saved(COLOR, "JPEG2000"), COLOR),
        "16-bit gray JPEG 2000": ("j2k", saved(DEEP_ONE, "JPEG2000"), DEEP_ONE.repeat(3, 2)),
    }
if AVIF:
    AVIF_FILE = saved(np.full_like(COLOR, 77), "AVIF", quality=100)
    RARE |= {"RGB AVIF": ("avif", AVIF_FILE, np.full_like(COLOR, 77))}


def patched(data, after, value, offset=0):
    """`data` with the byte `offset` places behind the marker `after` replaced."""
    place = data.index(after) + len(after) + offset
    return data[:place] + bytes([value]) + data[place + 1 :]


HIDDEN_DEPTHS = {  # headers of deeper files, which Pillow decodes to 8 bits
    "16-bit SGI": ("sgi", saved(COLOR, "SGI", bpc=2)),
    **(
        {"16-bit RGB JPEG 2000": ("jp2", patched(saved(COLOR, "JPEG2000"), b"\xff\x4f\xff\x51", 15, 38))} if JP2 else {}
    ),
}
CUT = saved(COLOR, "PNG")
FLIPPED = bytearray(CUT)
FLIPPED[CUT.index(b"IDAT") + 60] ^= 1
IMAGES = [Image.fromarray(COLOR), Image.fromarray(255 - COLOR)]
ANIMATED = {"save_all": True, "append_images": IMAGES[1:]}
HUGE = chunk(b"IHDR", b"\0\0\x60\0\0\0\x60\0\x08\x02\0\0\0")
WRONG = {  # bytes, what the error says after the file's name
    "nothing": (b"", "expected a readable image, got an empty file"),
    "text": (b"not an image", "expected a readable image, got UnidentifiedImageError: none of BMP, GIF, JPEG, PNG"),
    "zeros": (bytes(5000), "got UnidentifiedImageError"),
    "CMYK JPEG": (saved(COLOR, "JPEG", "CMYK"), "got mode CMYK; convert it to RGB first"),
    "LAB TIFF": (saved(Image.new("LAB", (4, 4)), "TIFF"), "got mode LAB; convert it to RGB first"),
    "float TIFF": (
        saved(Image.new("F", (4, 4)), "TIFF"),
        "got a float TIFF (32-bit, values on no fixed range); convert it to PNG",
    ),
    "32-bit TIFF": (
        saved(Image.new("I", (4, 4)), "TIFF"),
        "got a signed integer TIFF (32-bit, values on no fixed range); convert it to PNG",
    ),
    "float RGB TIFF": (
        tiff(DEEP, 2, bits=32, sample_format=3),
        "expected a readable image, got a float TIFF (32-bit, values on no fixed range); convert it to PNG with 8 or 16"
        " bits per channel, or compare arrays in Python with data_range=",
    ),
    "half float gray TIFF": (tiff(DEEP_ONE, 1, sample_format=3), "got a float TIFF (16-bit, values on no fixed range)"),
    "32-bit integer RGB TIFF": (tiff(DEEP, 2, bits=32), "got an integer TIFF (32-bit, values on no fixed range)"),
    "signed 16-bit gray TIFF": (tiff(DEEP_ONE, 1, sample_format=2), "got a signed integer TIFF (16-bit, values on no"),
    "float PFM": (b"Pf 4 4 -1.0\n" + bytes(64), "got a float PFM (32-bit, values on no fixed range); convert it"),
    "float color PFM": (
        b"PF 4 4 -1.0\n" + bytes(192),
        "got a float PFM (32-bit, values on no fixed range); convert it",
    ),
    "OpenEXR": (b"\x76\x2f\x31\x01" + bytes(40), "got OpenEXR, high dynamic range, values on no fixed range; convert"),
    "Radiance": (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n", "got Radiance HDR, high dynamic range, values on no fixed"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(40), "got HEIC, convert it to PNG with 8 or 16 bits per channel"),
    "JPEG XL": (b"\xff\x0a" + bytes(40), "got JPEG XL, convert it to PNG"),
    "video": (b"\0\0\0\x18ftypisom" + bytes(40), "got a video"),
    "animated PNG": (
        saved(IMAGES[0], "PNG", **ANIMATED),
        "expected one image, got 2 frames; save each frame to its own file",
    ),
    "animated GIF": (
        saved(IMAGES[0], "GIF", **ANIMATED),
        "expected one image, got 2 frames; save each frame to its own file",
    ),
    "TIFF of two pages": (saved(IMAGES[0], "TIFF", **ANIMATED), "expected one image, got 2 frames"),
    "16-bit gray PNG with alpha": (deep_png(noise(channels=2, high=65536), GRAY_ALPHA), "got another layout"),
    "16-bit RGB PNG with a transparent color": (
        deep_png(DEEP, RGB, before=chunk(b"tRNS", bytes(6))),
        "another layout",
    ),
    "16-bit RGB PPM": (FULL, "expected 8 bits per channel, or 16 as PNG, got another layout; convert it to PNG first"),
    "16-bit gray TIFF, white is zero": (tiff(DEEP_ONE, 0), "got another layout; convert it to PNG first"),
    "16-bit RGB TIFF, one plane a channel": (tiff(DEEP, 2, planes=2), "got another layout"),
    "PNG cut in the middle": (CUT[: len(CUT) // 2], "got a truncated PNG"),
    "PNG without its end": (CUT[:-12], "got a truncated PNG"),
    "PNG with a flipped bit": (bytes(FLIPPED), "got a PNG whose IDAT fails its checksum"),
    "PNG of 604 million pixels": (CUT[:8] + HUGE + CUT[33:], "got DecompressionBombError"),
    "JPEG cut in the middle": (LOSSY[: len(LOSSY) // 2], "OSError: image file is truncated"),
    "BMP cut in the middle": (saved(COLOR, "BMP")[:2000], "got OSError"),
    "PPM cut in the middle": (saved(COLOR, "PPM")[:2000], "got OSError"),
    "GIF cut in the middle": (saved(PALETTE, "GIF")[:500], "got OSError"),
    "TIFF cut in the middle": (saved(COLOR, "TIFF")[:2000], "expected a readable image, got"),
    "EPS, which would start another program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of BMP"),
}
WHOLE_HEADERS = {"PNG with a flipped bit", "PNG cut in the middle", "PNG without its end"}
WHOLE_HEADERS |= {f"{kind} cut in the middle" for kind in ("JPEG", "BMP", "PPM", "GIF", "TIFF")}


@pytest.fixture
def file(tmp_path):
    """file(data): path of a file with these bytes."""

    def write(data):
        (tmp_path / "x.png").write_bytes(data)
        return tmp_path / "x.png"

    return write


@pytest.mark.parametrize("name", RIGHT)
def test_pixels_and_header_match_the_source_image(name, file):
    data, expected = RIGHT[name]
    found, header = read_pixels(file(data)), read_header(file(data))
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert np.array_equal(found, expected)
    assert header == Header(
        *expected.shape[:2],
        gray=any(word in name for word in ("gray", "one bit")),
        alpha=expected.shape[2] == 4,
        deep=expected.dtype == np.uint16,
    )
    eight = read_image(file(data)).permute(1, 2, 0).numpy()
    if header.deep and not header.alpha:
        assert np.array_equal(eight, (expected / 257).round())
    elif not header.alpha:
        assert np.array_equal(eight, expected)


@pytest.mark.parametrize("name", RARE)
def test_pixels_and_header_of_rare_formats_match_the_source_image(name, tmp_path):
    suffix, data, expected = RARE[name]
    file = tmp_path / f"x.{suffix}"
    file.write_bytes(data)
    found, header = read_pixels(file), read_header(file)
    assert found.dtype == expected.dtype and np.array_equal(found, expected)
    deep = expected.dtype == np.uint16
    gray = any(word in name for word in ("gray", "one bit"))
    assert header == Header(*expected.shape[:2], gray=gray, alpha=expected.shape[2] == 4, deep=deep)


@pytest.mark.parametrize("name", HIDDEN_DEPTHS)
@pytest.mark.parametrize("read", [read_header, read_pixels])
def test_files_that_pillow_would_round_to_eight_bits_are_refused(read, name, tmp_path):
    suffix, data = HIDDEN_DEPTHS[name]
    (tmp_path / f"x.{suffix}").write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.\w+: expected 8 bits per channel, or 16 as PNG, got another layout"):
        read(tmp_path / f"x.{suffix}")


@pytest.mark.skipif(not AVIF, reason="this Pillow has no AVIF")
def test_the_depth_of_an_avif_is_read_from_its_configuration():
    assert not has_hidden_depth(io.BytesIO(AVIF_FILE), "AVIF", False)
    assert has_hidden_depth(io.BytesIO(patched(AVIF_FILE, b"av1C", 0x40, 2)), "AVIF", False)


@pytest.mark.parametrize("read", [read_header, read_pixels])
def test_several_images_in_an_icon_or_a_stereo_file_are_refused(read, tmp_path):
    (tmp_path / "x.ico").write_bytes(saved(COLOR, "ICO", sizes=[(36, 40), (18, 20)]))
    with pytest.raises(
        ValueError, match=r"x\.ico: expected one image, got an icon of 2 sizes; save the one to compare"
    ):
        read(tmp_path / "x.ico")
    (tmp_path / "x.mpo").write_bytes(saved(IMAGES[0], "MPO", **ANIMATED))
    with pytest.raises(
        ValueError, match=r"x\.mpo: expected one image, got 2 frames; save each frame to its own file, and"
    ):
        read(tmp_path / "x.mpo")
    (tmp_path / "x.jpg").write_bytes(saved(IMAGES[0], "MPO", **ANIMATED))
    assert read(tmp_path / "x.jpg") is not None  # a camera's image with its preview


@pytest.mark.parametrize("read", [read_header, read_pixels])
def test_a_format_without_signature_is_read_by_its_suffix_only(read, tmp_path):
    (tmp_path / "x.png").write_bytes(saved(COLOR, "TGA"))
    with pytest.raises(ValueError, match=r"x\.png: expected a readable image, got UnidentifiedImageError"):
        read(tmp_path / "x.png")


@pytest.mark.parametrize("read", [read_header, read_pixels])
def test_an_avif_that_pillow_cannot_decode_is_named(read, tmp_path, monkeypatch):
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    monkeypatch.setattr(features, "check", lambda name: False)
    (tmp_path / "x.avif").write_bytes(b"\0\0\0\x1cftypavif" + bytes(40))
    with pytest.raises(ValueError, match=r"x\.avif: expected a readable image, got AVIF, which needs pillow>=11.3"):
        read(tmp_path / "x.avif")


@pytest.mark.parametrize("name", WRONG)
def test_unsupported_files_are_refused_by_name(name, file):
    data, said = WRONG[name]
    with pytest.raises(ValueError, match=r"x\.png: expected") as caught:
        read_pixels(file(data))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value) and "BytesIO" not in str(caught.value)
    if name in WHOLE_HEADERS:
        assert read_header(file(data)).height
    else:
        with pytest.raises(ValueError, match=r"x\.png: expected"):
            read_header(file(data))


def test_the_two_tables_are_long():
    assert len(RIGHT) >= 30 and len(WRONG) >= 25


@pytest.mark.parametrize("read", [read_header, read_pixels])
def test_missing_files_and_folders_are_refused_by_name(read, tmp_path):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(ValueError, match=r"x\.png: expected a readable image, got a folder"):
        read(tmp_path / "x.png")
    with pytest.raises(FileNotFoundError, match=r"y\.png: expected an image file, got no such file"):
        read(tmp_path / "y.png")


@pytest.mark.parametrize("kind", [name for name in COMMON_FORMATS if name != "WEBP" or WEBP])
def test_damaged_bytes_give_an_image_or_a_value_error(kind, file, tmp_path):
    data = saved(COLOR, kind)
    numbers = np.random.default_rng(0)
    errors = 0
    for _ in range(150):
        damaged = bytearray(data)
        for place in numbers.integers(0, len(data), 3):
            damaged[place] ^= 1 << int(numbers.integers(8))
        try:
            found = read_pixels(file(bytes(damaged[: int(numbers.integers(1, 2 * len(data)))])))
        except ValueError as error:
            errors += str(error).startswith(str(tmp_path / "x.png"))
            continue
        assert found.ndim == 3
        assert kind != "PNG" or np.array_equal(found, COLOR)  # its checksums see everything
    assert errors > 5


def test_printable_names_are_one_line_of_valid_utf8():
    assert printable("a/übung 1.png") == "a/übung 1.png"
    assert printable("a\nb\t\x1b[31m.png") == r"a\nb\t\x1b[31m.png"
    assert printable(b"caf\xe9.png".decode("utf-8", "surrogateescape")) == r"caf\xe9.png"


def test_names_in_errors_are_on_one_line(tmp_path):
    (tmp_path / "a\nb.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\\nb\.png: expected a readable image, got an empty file"):
        read_pixels(tmp_path / "a\nb.png")
