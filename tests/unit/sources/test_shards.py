"""Pairs in tar shards: names, order, damage; every pair that can be read is there, and no other."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import pickle
import re
import tarfile

import numpy as np
import pytest
import torch
from file_servers import web_server
from PIL import Image

from lpips_lightning.comparison.file_pairs import InputNeeds
from lpips_lightning.images.preprocessing import ImagePolicy
from lpips_lightning.runs.reading import PairReader
from lpips_lightning.sources import storage
from lpips_lightning.sources.listed import ListedPairs
from lpips_lightning.sources.shards import ShardPairs, expand_shards

pytest.importorskip("webdataset")
BLOCK = tarfile.BLOCKSIZE


def tar_of(files):
    """A tar archive of names and bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def samples(count, sides="ab", suffix="png"):
    """Files of samples, whose content is one of a kind and fills a block each."""
    return [
        (f"{number:03d}.{side}.{suffix}", f"{side}{number} ".encode() * 60) for number in range(count) for side in sides
    ]


def written(path, files):
    path.write_bytes(tar_of(files))
    return str(path)


def read(source, index=0):
    found = list(source.unit(index))
    assert all((pair.contents is None) == bool(pair.error) for pair in found)
    return found


def keys_of(pairs):
    return [pair.a.rpartition("/")[2] for pair in pairs if not pair.error]


def errors(pairs):
    return [pair.error for pair in pairs if pair.error]


def test_both_images_of_a_sample(tmp_path):
    files = samples(3)
    shard = written(tmp_path / "x.tar", [*files[:1], ("000.json", b"{}"), *files[1:], ("README", b"no sample")])
    found = read(ShardPairs(shard))
    assert [(pair.a, pair.b) for pair in found] == [(f"{shard}/00{n}.a.png", f"{shard}/00{n}.b.png") for n in range(3)]
    assert [pair.contents for pair in found] == [(files[2 * n][1], files[2 * n + 1][1]) for n in range(3)]


def test_other_names_of_the_images(tmp_path):
    files = [("in/1.Original.PNG", b"x"), ("in/1.decoded.jpg", b"y"), ("in/1.a.png", b"z")]
    (found,) = read(ShardPairs(written(tmp_path / "x.tar", files), keys=("original", "decoded")))
    assert found.contents == (b"x", b"y")
    assert found.a.endswith("x.tar/in/1.Original.PNG")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed_shards(tmp_path, pack):
    plain, packed = tmp_path / "x.tar", tmp_path / "y.tar"
    written(plain, samples(5))
    packed.write_bytes(pack(plain.read_bytes()))
    contents = [[pair.contents for pair in read(ShardPairs(str(path)))] for path in (plain, packed)]
    assert contents[0] == contents[1]
    assert len(contents[0]) == 5
    packed.write_bytes(packed.read_bytes()[:-30])
    assert "y.tar: expected a whole tar shard, got " in errors(read(ShardPairs(str(packed))))[-1]


def test_two_sets_of_shards(tmp_path):
    for number in (0, 1):
        written(tmp_path / f"a-{number}.tar", samples(4 + number, "x"))
        written(
            tmp_path / f"b-{number}.tar",
            [file for name in samples(4 + number, "x") for file in (name, ("000.t", b""))][:-1],
        )
    written(tmp_path / "b-0.tar", [(name.replace("x.png", "y.jpg"), name.encode()) for name, _ in samples(4, "x")])
    source = ShardPairs(f"{tmp_path}/a-{{0..1}}.tar", f"{tmp_path}/b-{{0..1}}.tar")
    assert len(source) == 2
    assert source.pairs is None
    found = read(source)
    assert [pair.contents[1].decode() for pair in found] == keys_of(found)
    assert found[3].b == f"{tmp_path}/b-0.tar/003.y.jpg"


@pytest.mark.parametrize("missing", [[0], [3], [9], [2, 3, 4], [0, 9]])
@pytest.mark.parametrize("side", [0, 1])
def test_missing_partners_are_named_and_the_rest_goes_on(tmp_path, missing, side):
    files = samples(10, "x")
    fewer = [file for number, file in enumerate(files) if number not in missing]
    sets = [fewer, files] if side == 0 else [files, fewer]
    found = read(ShardPairs(*(written(tmp_path / f"{name}.tar", one) for name, one in zip("ab", sets, strict=True))))
    assert keys_of(found) == [name for name, _ in fewer]
    assert all(pair.contents[0] == pair.contents[1] for pair in found if pair.contents)
    assert len(errors(found)) == len(missing)
    for number, error in zip(missing, errors(found), strict=True):
        assert f"{'ba'[side]}.tar/{number:03d}: expected a sample of this key in" in error


def test_shards_in_another_order_are_never_paired_wrongly(tmp_path):
    files = samples(90, "x")
    a, b = (written(tmp_path / f"{name}.tar", one) for name, one in (("a", files), ("b", files[::-1])))
    found = read(ShardPairs(a, b))
    assert all(pair.contents[0] == pair.contents[1] for pair in found if pair.contents)
    assert 2 * len(keys_of(found)) + len(errors(found)) == 180
    assert len(errors(found)) > 100


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("1.a.png", b"x")], "x.tar/1: expected one image 1.b.* in this sample, got 1.a.png"),
        ([("1.a.png", b"x"), ("1.a.jpg", b"x"), ("1.b.png", b"x")], "expected one image 1.a.*"),
        ([("1.a.png", b"x"), ("1.a.png", b"x"), ("1.b.png", b"x")], "duplicate file name"),
        ([("1.5.a.png", b"x"), ("1.5.b.png", b"x")], "x.tar/1: expected one image 1.a.*"),
    ],
)
def test_samples_that_are_no_pair(tmp_path, files, message):
    found = read(ShardPairs(written(tmp_path / "x.tar", [*files, *samples(1)])))
    assert message in found[0].error
    assert keys_of(found) == ["000.a.png"]


STEP = 2 * BLOCK  # of a file


@pytest.mark.parametrize("at", [0, 100, BLOCK, BLOCK + 100])
def test_a_shard_that_is_cut_off(tmp_path, at):
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of(samples(6))[: 7 * STEP + at])
    found = read(ShardPairs(str(path)))
    assert keys_of(found) == ["000.a.png", "001.a.png", "002.a.png"]
    alone, shard = errors(found)
    assert "x.tar/003: expected one image 003.b.*" in alone
    assert "x.tar: expected a whole tar shard, got" in shard
    assert shard.endswith("; 4 samples read")


def test_a_damaged_header_costs_one_sample(tmp_path):
    path = tmp_path / "x.tar"
    content = bytearray(tar_of(samples(6)))
    content[4 * STEP + 3] ^= 255
    path.write_bytes(content)
    found = read(ShardPairs(str(path)))
    assert keys_of(found) == [f"00{number}.a.png" for number in (0, 1, 3, 4, 5)]
    assert f"got damage at byte {4 * STEP}; 6 samples read" in errors(found)[-1]


def test_a_damaged_byte_in_a_packed_shard_is_found(tmp_path):
    path = tmp_path / "x.tar.gz"
    content = bytearray(gzip.compress(tar_of(samples(6)), 0))
    content[2000] ^= 1  # in an image: tar itself has no checksum for it
    path.write_bytes(content)
    assert "CRC check failed" in errors(read(ShardPairs(str(path))))[-1]


def test_joined_archives_are_read_to_the_end(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of(samples(3)[:4]) + tar_of(samples(3)[4:]))
    assert keys_of(read(ShardPairs(str(path)))) == ["000.a.png", "001.a.png", "002.a.png"]


@pytest.mark.parametrize("content", [b"", b"text " * 1000, tar_of([]), b"\x28\xb5\x2f\xfd1234", tar_of([("x", b"")])])
def test_files_without_samples(tmp_path, content):
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    (error,) = errors(read(ShardPairs(str(path))))
    assert "x.tar: expected a whole tar shard, got " in error


def test_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x-00.tar", "x-01.tar", "x-02.tar", "{odd}.tar"):
        written(tmp_path / name, samples(1))
    assert expand_shards("x-{00..01}.tar") == ["x-00.tar", "x-01.tar"]
    assert expand_shards("x-*.tar") == ["x-00.tar", "x-01.tar", "x-02.tar"]
    assert expand_shards(["{odd}.tar", "x-0[02].tar"]) == ["{odd}.tar", "x-00.tar", "x-02.tar"]
    assert expand_shards("s3://bucket/x-{8..10}.tar") == [f"s3://bucket/x-{number}.tar" for number in (8, 9, 10)]
    with pytest.raises(FileNotFoundError, match=r"expected files that fit 'y-\*.tar'"):
        expand_shards("y-*.tar")
    with pytest.raises(ValueError, match="expected balanced braces"):
        expand_shards("y-{0..3.tar")
    with pytest.raises(FileNotFoundError, match="x-03.tar: expected a tar shard, got no such file"):
        ShardPairs("x-{02..03}.tar")
    with pytest.raises(ValueError, match="expected equally many shards of both images, got 2 and 1"):
        ShardPairs("x-{00..01}.tar", "x-02.tar")


def test_another_content_is_another_source(tmp_path):
    shard = written(tmp_path / "x.tar", samples(2))
    source = ShardPairs(shard)
    assert ShardPairs(shard).describe() == source.describe()
    assert pickle.loads(pickle.dumps(source)).describe() == source.describe()
    written(tmp_path / "x.tar", samples(40))
    assert ShardPairs(shard).describe() != source.describe()


def test_shards_behind_a_url():
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for number in range(2):
        system.pipe(f"/shards/x-{number}.tar", tar_of(samples(2 + number)))
    source = ShardPairs("memory://shards/x-*.tar")
    assert [len(read(source, index)) for index in range(len(source))] == [2, 3]
    with pytest.raises(FileNotFoundError, match="memory://shards/y.tar: expected a tar shard, got no such file"):
        ShardPairs("memory://shards/y.tar")


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "streams"])
def test_a_shard_goes_on_where_its_connection_broke(tmp_path, monkeypatch, ranges):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(storage, "_WAITS", (0.0, 0.0, 0.0))
    files = [(f"{index}.{side}.png", os.urandom(300_000)) for index in range(20) for side in "ab"]
    packed, breaks = tar_of(files), [2_000_000, 9_000_000]

    def answer(handler):
        asked = re.match(r"bytes=(\d+)-(\d*)", handler.headers.get("Range") or "") if ranges else None
        start, end = (int(asked[1]), int(asked[2] or len(packed) - 1) + 1) if asked else (0, len(packed))
        end = min(end, len(packed))
        handler.send_response(206 if asked else 200)
        handler.send_header("Content-Length", str(end - start))
        if ranges:
            handler.send_header("Accept-Ranges", "bytes")
            handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(packed)}")
        handler.end_headers()
        handler.close_connection = True
        if handler.command == "GET":
            broken = breaks and start <= breaks[0] < end
            with contextlib.suppress(ConnectionError):
                handler.wfile.write(packed[start : breaks.pop(0) if broken else end])
        return True

    with web_server(tmp_path, answer) as (web, _):
        pairs = read(ShardPairs(f"{web}/x.tar?X-Amz-Signature=1f"))
    assert not breaks
    assert not [pair.error for pair in pairs if pair.error]
    assert [content for pair in pairs for content in pair.contents] == [content for _, content in files]
    assert pairs[0].a == f"{web}/x.tar?X-Amz-Signature=***/0.a.png"


def test_shards_give_the_batches_of_files(tmp_path):
    packed, names = [], []
    for index in range(10):
        for side in "ab":
            pixels = np.random.default_rng([index, side == "a"]).integers(
                0, 256, (16 + 8 * (index % 2), 16, 3), np.uint8
            )
            path = tmp_path / f"{index}.{side}.png"
            Image.fromarray(pixels).save(path)
            packed.append((path.name, path.read_bytes()[: 99 if index == 4 else None]))
            path.write_bytes(packed[-1][1])
        names.append((str(tmp_path / f"{index}.a.png"), str(path)))
    needs = InputNeeds(ImagePolicy(), 8, "alex")
    sources = ShardPairs(written(tmp_path / "x.tar", packed)), ListedPairs(names, 10, "files")
    of_shard, of_files = (list(PairReader([0], source, needs, 3)) for source in sources)
    assert [batch.rows for batch in of_shard] == [batch.rows for batch in of_files]
    assert all(
        torch.equal(x.x, y.x) and torch.equal(x.y, y.y) for x, y in zip(of_shard, of_files, strict=True) if x.rows
    )
    assert sum(len(batch.rows) for batch in of_shard) == 9
    ((error,),) = [batch.errors.values() for batch in of_shard if batch.errors]
    assert error.startswith(f"{tmp_path}/x.tar/4.a.png: expected a readable image")
