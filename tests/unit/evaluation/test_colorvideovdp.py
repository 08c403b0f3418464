"""ColorVideoVDP as a method: values of the package itself, and what is said without it."""

from __future__ import annotations

import argparse
import csv

import pytest
import torch
from PIL import Image

from lpips_lightning.cli import commands as cli
from lpips_lightning.cli import correlate as correlate_cli
from lpips_lightning.cli.evaluate import add_arguments, run
from lpips_lightning.evaluation.methods import Method, parse_method
from lpips_lightning.evaluation.opinion_scores import measure as measure_opinions
from lpips_lightning.evaluation.opinion_scores import read_opinion_scores


@pytest.fixture(scope="module")
def package():
    return pytest.importorskip("pycvvdp", reason="the extra `cvvdp` is not installed")


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    """A CSV of two references with five noisy copies each, rated by their noise."""
    folder = tmp_path_factory.mktemp("rated")
    numbers = torch.Generator().manual_seed(0)
    rows = ["reference,distorted,score,content"]
    for name in ("one", "two"):
        image = torch.rand(3, 8, 8, generator=numbers)
        image = torch.nn.functional.interpolate(image[None], (64, 64), mode="bilinear")[0]
        for level in range(6):
            noisy = (image + 0.05 * level * torch.randn(3, 64, 64, generator=numbers)).clamp(0, 1)
            pixels = (255 * noisy).round().to(torch.uint8).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / f"{name}_{level}.png")
            rows += [f"{name}_0.png,{name}_{level}.png,{6 - level},{name}"] if level else []
    (folder / "rated.csv").write_text("\n".join(rows) + "\n")
    return folder / "rated.csv"


def test_its_distance_is_10_minus_the_jod_of_the_package(package, pair):
    x, y = pair(3, 64, 64)
    y = x + 0.1 * (y - x)
    method = parse_method("cvvdp")
    metric = package.cvvdp(display_name="standard_4k", device=torch.device("cpu"), quiet=True)
    single = [metric.predict((b + 1) / 2, (a + 1) / 2, dim_order="CHW")[0] for a, b in zip(x, y, strict=True)]
    assert torch.allclose(method.distance(x, y), 10 - torch.stack(single), atol=1e-4)
    assert method.distance(x[:1], y[:1]).shape == (1,)
    assert torch.equal(method.distance(x, x), torch.zeros(3))
    assert method.paper is None
    said = f"cvvdp: 10 - JOD of still images, ColorVideoVDP v{metric.version}, 75.4"
    assert method.note.startswith(said) and "(standard_4k)" in method.note and "10.1145/3658144" in method.note


def test_another_display_gives_another_distance(package, pair):
    x, y = pair(2, 64, 64)
    near, far = parse_method("cvvdp:standard_fhd"), parse_method("cvvdp")
    assert not torch.allclose(near.distance(x, y), far.distance(x, y), rtol=1e-2)
    assert near.name == "cvvdp:standard_fhd" and "(standard_fhd)" in near.note


@pytest.mark.parametrize("display", ["none", "standard_hdr_pq", "standard_hdr_linear"])
def test_displays_that_are_unknown_or_take_hdr_are_refused(package, display):
    with pytest.raises(ValueError, match=f"cvvdp: expected a display model .*got '{display}'"):
        parse_method(f"cvvdp:{display}")


def test_the_commands_say_what_it_is(package, rated, tmp_path, capsys):
    table = tmp_path / "triplets.csv"
    rows = [f"{n}_0.png,{n}_{a}.png,{n}_{b}.png,1" for n in ("one", "two") for a, b in ((3, 1), (4, 2))]
    table.write_text("\n".join(["ref,p0,p1,judge", *rows]) + "\n")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = ["--csv", str(table), "--folder", str(rated.parent), "--out", str(tmp_path / "out"), "--resamples", "10"]
    run(parser.parse_args(["cvvdp", "l2", *options, "--device", "cpu"]))
    out = capsys.readouterr().out
    written = (tmp_path / "out" / "scores.md").read_text()
    with (tmp_path / "out" / "scores.csv").open() as file:
        scores = {row["method"]: float(row["value"]) for row in csv.DictReader(file)}
    assert scores["cvvdp"] == 100 and "| cvvdp |" in written
    assert "cvvdp: 10 - JOD of still images, ColorVideoVDP" in out and "(standard_4k)" in written
    assert cli.main(["correlate", str(rated), "--net=embedded", "--also=cvvdp", "--device=cpu"]) == 0
    assert "cvvdp: 10 - JOD of still images, ColorVideoVDP" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cvvdp", "cvvdp:standard_fhd"])
def test_without_the_package_its_extra_is_named(monkeypatch, name):
    monkeypatch.setattr("lpips_lightning.evaluation.colorvideovdp.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'cvvdp: expected the package cvvdp, .* "lpips_lightning\[cvvdp\]"'):
        parse_method(name)


def test_a_method_has_a_row_of_correlate_with_its_own_distances(rated, tmp_path, capsys):
    out = tmp_path / "frames.csv"
    command = ["correlate", str(rated), "--net=embedded", "--also=l2", "--also=embedded:baseline", "--also=l2"]
    assert cli.main([*command, f"--csv={out}", "--group=content", "--device=cpu"]) == 0
    said = capsys.readouterr().out
    for row in ("l2: all together", "l2: mean over groups", "embedded:baseline: all together"):
        assert said.count(row) == 1
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["reference", "distorted", "frame", "lpips", "l2", "embedded:baseline"]
    opinions = read_opinion_scores(rated)
    for name in ("l2", "embedded:baseline"):
        method = parse_method(name)
        values, frames = measure_opinions(opinions, method)
        assert [float(row[name]) for row in rows] == pytest.approx(values.tolist(), rel=1e-6)
        assert [frame.distance for frame in frames] == values.tolist()
    assert correlate_cli.parser().parse_args(["x.csv"]).also == []


def test_methods_without_a_name_that_is_known_are_refused_by_correlate(rated, capsys):
    assert cli.main(["correlate", str(rated), "--net=embedded", "--also=lpipz"]) == 2
    said = capsys.readouterr().err
    assert "--also: expected one of alex" in said and "caffe-alexnet:weights=FILE, got 'lpipz'" in said


def test_methods_get_images_on_their_range_in_batches_of_one_size(rated):
    seen = []

    def distance(x, y):
        seen.append((x.min().item(), x.max().item(), x.shape))
        return (x - y).abs().mean((1, 2, 3))

    values, _ = measure_opinions(read_opinion_scores(rated), Method("own", distance, None))
    assert len(values) == 10 and all(-1 <= low < 0 < high <= 1 for low, high, _ in seen)
