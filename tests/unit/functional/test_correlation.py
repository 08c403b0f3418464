"""Correlation with mean opinion scores: closed forms, SciPy as reference, and the command on images and videos."""

import csv
import math

import numpy as np
import pytest
import torch
from frozen_networks import frozen_network
from PIL import Image

from lpips_lightning import LPIPS
from lpips_lightning.cli import commands as cli
from lpips_lightning.evaluation.opinion_scores import measure, read_opinion_scores
from lpips_lightning.functional.correlation import (
    Correlations,
    by_group,
    check_scores,
    correlate,
    fit_logistic,
    mean_over_groups,
)

D = torch.tensor([0.05, 0.1, 0.2, 0.35, 0.5, 0.8], dtype=torch.float64)


@pytest.mark.parametrize("monotone", [lambda d: 5 - 4 * d, lambda d: -(d**3), lambda d: 1 / d, lambda d: -d.exp()])
def test_any_falling_relation_of_mos_has_rank_correlation_one(monotone):
    found = correlate(D, monotone(D), "mos")
    assert (found.srcc, found.krcc) == (pytest.approx(1), pytest.approx(1))
    assert 0.97 < found.plcc <= 1 + 1e-12
    assert found.count == 6
    against = correlate(D, monotone(D), "dmos")
    assert (against.srcc, against.krcc, against.plcc) == pytest.approx((-found.srcc, -found.krcc, -found.plcc))


def test_the_sign_follows_the_direction_of_the_scores():
    generator = torch.Generator().manual_seed(0)
    d = torch.rand(40, generator=generator)
    dmos = d + 0.3 * torch.randn(40, generator=generator)
    worse, better = correlate(d, dmos, "dmos"), correlate(d, 100 - dmos, "mos")
    assert 0.3 < worse.srcc < 0.95
    for name in ("srcc", "plcc", "krcc"):
        assert getattr(worse, name) == pytest.approx(getattr(better, name), abs=1e-6)


def test_pearson_is_one_after_the_logistic_of_a_logistic():
    x = torch.linspace(0, 1, 50, dtype=torch.float64)
    y = 1 + 4 * torch.sigmoid((0.4 - x) / 0.07)
    found = correlate(x, y)
    assert found.plcc == pytest.approx(1, abs=1e-9)
    fitted = fit_logistic(x, y)
    assert (fitted.low, fitted.high, fitted.center, fitted.width) == pytest.approx((5, 1, 0.4, 0.07), abs=1e-4)
    assert torch.allclose(fitted(x), y, atol=1e-5)


@pytest.mark.parametrize(("count", "noise"), [(8, 0.3), (40, 1.0), (200, 0.3), (400, 2.0)])
def test_correlations_match_scipy(count, noise):
    stats, optimize = (pytest.importorskip(f"scipy.{name}") for name in ("stats", "optimize"))
    generator = torch.Generator().manual_seed(count)
    x = torch.rand(count, generator=generator, dtype=torch.float64) ** 2
    y = 4 * torch.sigmoid((0.3 - x) / 0.1) + noise * torch.randn(count, generator=generator, dtype=torch.float64)
    y = (y * 10).round() / 10  # with ties
    found = correlate(x, y)
    assert found.srcc == pytest.approx(stats.spearmanr(-x, y).statistic, abs=1e-6)
    assert found.krcc == pytest.approx(stats.kendalltau(-x, y).statistic, abs=1e-6)

    def curve(t, high, low, center, width):
        return low + (high - low) / (1 + np.exp(-(t - center) / np.abs(width)))

    start = [float(y.max()), float(y.min()), -0.3, 0.1]
    place, _ = optimize.curve_fit(curve, (-x).numpy(), y.numpy(), p0=start, maxfev=20000)
    theirs = stats.pearsonr(curve((-x).numpy(), *place), y.numpy()).statistic
    assert found.plcc == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize(("shift", "scale"), [(0, 1), (1000, 1), (0, 1e-4), (-5, 300)])
def test_shift_and_scale_do_not_matter(shift, scale):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(30, generator=generator, dtype=torch.float64)
    y = -x + 0.2 * torch.randn(30, generator=generator, dtype=torch.float64)
    plain, moved = correlate(x, y), correlate(x * scale + shift, y / 7 - 3)
    assert moved.plcc == pytest.approx(plain.plcc, abs=1e-6)
    assert moved.srcc == pytest.approx(plain.srcc, abs=1e-6)


def test_the_logistic_is_no_worse_than_a_line():
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        x, noise = torch.rand(2, 25, generator=generator, dtype=torch.float64)
        y = noise - x
        line = -float(torch.corrcoef(torch.stack((x, y)))[0, 1])
        assert correlate(x, y).plcc > line - 1e-3


def test_groups_are_correlated_separately_and_averaged():
    d = torch.cat((D, D))
    mos = torch.cat((5 - D, 50 + D))  # within the second group people prefer what is farther away
    groups = by_group(d, mos, ["a"] * 6 + ["b"] * 6)
    assert list(groups) == ["a", "b"]
    assert groups["a"].srcc == pytest.approx(1) and groups["b"].srcc == pytest.approx(-1)
    plain = mean_over_groups(groups)
    assert (plain.srcc, plain.plcc, plain.krcc, plain.count) == pytest.approx((0, 0, 0, 12), abs=1e-6)
    unequal = {"a": Correlations(0.5, 0.6, 0.2, 10), "b": Correlations(0.9, 0.6, 0.4, 30)}
    assert mean_over_groups(unequal).srcc == pytest.approx(0.7)
    weighted = mean_over_groups(unequal, fisher=True)
    assert weighted.srcc == pytest.approx(math.tanh((10 * math.atanh(0.5) + 30 * math.atanh(0.9)) / 40))
    assert weighted.plcc == pytest.approx(0.6) and weighted.count == 40
    with pytest.raises(ValueError, match="correlations: expected at least one group"):
        mean_over_groups({})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((D[:4], D[:4]), "scores: expected at least 5, got 4"),
        ((D, D[:5]), r"scores: expected one score per distance, shapes \(M,\), got \(6,\) and \(5,\)"),
        ((D, D * math.nan), "scores: expected finite values, got nan"),
        ((D, D * 0 + 3), "scores: expected different values, got 3 for all 6"),
        ((D * 0, D), "distances: expected different values, got 0 for all 6"),
        ((D, D, "MOS"), r"score: expected one of \('mos', 'dmos'\), got 'MOS'"),
    ],
)
def test_invalid_inputs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        correlate(*arguments)


def test_scores_are_checked_by_group_before_measuring():
    check_scores(D, ["a"] * 6)
    with pytest.raises(ValueError, match="group 'b': scores: expected at least 5, got 2"):
        check_scores(torch.cat((D, D[:2])), ["a"] * 6 + ["b"] * 2)
    with pytest.raises(ValueError, match="group 'b': scores: expected at least 5, got 1"):
        by_group(torch.cat((D, D[:1])), torch.cat((D, D[:1])), ["a"] * 6 + ["b"])


@pytest.fixture
def rated(tmp_path):
    """A CSV of two references with six noisy versions each, and its folder."""
    numbers = np.random.default_rng(0)
    rows = []
    for name in ("one", "two"):
        image = np.kron(numbers.integers(60, 200, (4, 4, 3)), np.ones((8, 8, 1)))
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / f"{name}.png")
        for level in range(6):
            noisy = image + (3 + 9 * level) * numbers.standard_normal(image.shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{name}_{level}.png")
            rows.append([f"{name}.png", f"{name}_{level}.png", 5 - 0.7 * level, name])
    with (tmp_path / "rated.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["reference", "distorted", "score", "content"], *rows])
    return tmp_path / "rated.csv"


def test_distances_equal_the_networks_and_each_reference_is_encoded_once(rated, monkeypatch):
    net = LPIPS("embedded")
    opinions = read_opinion_scores(rated)
    passes = []
    encode = net.encode
    monkeypatch.setattr(net, "encode", lambda images, *given: passes.append(len(images)) or encode(images, *given))
    distances, frames = measure([opinions[index] for index in (0, 6, 1, 7)], net)
    assert len(passes) == 2 + 4
    assert [frame.distorted for frame in frames] == ["one_0.png", "two_0.png", "one_1.png", "two_1.png"]
    for opinion, distance in zip((opinions[index] for index in (0, 6, 1, 7)), distances, strict=True):
        x, y = (
            torch.from_numpy(np.array(Image.open(rated.parent / file))).permute(2, 0, 1)[None]
            for file in (opinion.reference, opinion.distorted)
        )
        assert float(distance) == pytest.approx(float(net(x, y)), rel=1e-5)


@pytest.fixture
def videos(tmp_path):
    """A CSV of one video with five versions, whose frames lie in folders, numbered without leading zeros."""
    numbers = np.random.default_rng(1)
    rows = []
    for version in range(6):
        (tmp_path / f"v{version}").mkdir()
    for frame in range(11):
        image = np.kron(numbers.integers(60, 200, (4, 4, 3)), np.ones((8, 8, 1)))
        for version in range(6):
            noisy = image + 8 * version * numbers.standard_normal(image.shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(tmp_path / f"v{version}" / f"frame{frame}.png")
    rows = [["v0", f"v{version}", 10 * version] for version in range(1, 6)]
    with (tmp_path / "videos.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["ref", "dist", "dmos"], *rows])
    return tmp_path / "videos.csv"


def test_a_videos_distance_is_the_mean_over_its_numerically_ordered_frames(videos, monkeypatch):
    from lpips_lightning.evaluation import opinion_scores as module

    net = LPIPS("embedded")
    rows = read_opinion_scores(videos, columns=("ref", "dist", "dmos"))
    assert [pair[1].name for pair in rows[0].frames] == [f"frame{number}.png" for number in range(11)]
    distances, frames = measure(rows, net)
    by_video = torch.tensor([frame.distance for frame in frames], dtype=torch.float64).view(5, 11)
    assert torch.allclose(distances, by_video.mean(1))
    assert by_video.std(1).min() > 0
    monkeypatch.setattr(module, "_MAX_PIXELS", 1)  # one frame a pass
    assert torch.allclose(measure(rows, net)[0], distances, rtol=1e-5)


def test_command_prints_groups_and_means(rated, capsys, tmp_path):
    command = ["correlate", str(rated), "--net=embedded", "--group=content", f"--csv={tmp_path / 'out/frames.csv'}"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    for name in ("one", "two", "mean over groups", "mean by Fisher's z and size", "all together"):
        assert name in said
    line = next(line for line in said.splitlines() if "one" in line.split())
    assert "1.0000" in line and " 6 " in line
    assert "LPIPS embedded v0.1, lin sha256:" in said and "Negative" not in said
    with (tmp_path / "out/frames.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == 12 and written[3]["frame"] == "one_3.png" and float(written[3]["lpips"]) > 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["frames.csv"]


def test_command_takes_videos_and_columns_and_warns_of_a_wrong_direction(videos, capsys):
    command = ["correlate", str(videos), "--net=embedded", "--columns=ref,dist,dmos"]
    assert cli.main([*command, "--score=dmos"]) == 0
    said = capsys.readouterr().out
    assert "1.0000" in said and "higher is worse" in said and "Negative" not in said
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "-1.0000" in said and "Negative SRCC: if these scores are dmos, use --score dmos." in said


def test_command_takes_a_custom_calibration(rated, capsys, tmp_path):
    from safetensors.torch import save_file

    net = LPIPS("embedded")
    network = frozen_network(net)
    save_file(
        {layer: torch.ones_like(weight) for layer, weight in network.calibration.items()}, tmp_path / "c.safetensors"
    )
    assert cli.main(["correlate", str(rated), "--net=embedded", f"--calibration={tmp_path / 'c.safetensors'}"]) == 0
    assert net.fingerprint not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            "reference,score\na,1\n",
            ValueError,
            "rated.csv, line 1: expected the columns reference, distorted, score, got",
        ),
        (
            "reference,distorted,score\none.png,gone.png,1\n",
            FileNotFoundError,
            "line 2: distorted: expected an image, or",
        ),
        (
            "reference,distorted,score\none.png,one_0.png,high\n",
            ValueError,
            "line 2: score: expected a number, got 'high'",
        ),
        (
            "reference,distorted,score\none.png,folder,1\n",
            ValueError,
            "line 2: expected 1 frames in 'folder', as in 'one.png', got",
        ),
        ("reference,distorted,score\none.png,empty,1\n", FileNotFoundError, "folder: expected images"),
    ],
)
def test_errors_in_the_table_name_the_line(rated, text, error, message):
    (rated.parent / "folder").mkdir()
    (rated.parent / "empty").mkdir()
    for index in range(2):
        Image.new("RGB", (32, 32)).save(rated.parent / "folder" / f"{index}.png")
    rated.write_text(text)
    with pytest.raises(error, match=message):
        read_opinion_scores(rated)


def test_a_missing_group_column_and_a_missing_root_are_named(rated):
    with pytest.raises(ValueError, match="line 1: expected the columns reference, distorted, score, video, got"):
        read_opinion_scores(rated, group="video")
    with pytest.raises(FileNotFoundError, match="root: expected an existing folder, got 'gone'"):
        read_opinion_scores(rated, "gone")
    with pytest.raises(ValueError, match="columns: expected 3 names, of reference, distorted and score, got a, b"):
        read_opinion_scores(rated, columns=("a", "b"))


def test_errors_of_images_name_the_line(rated):
    Image.new("RGB", (32, 40)).save(rated.parent / "one_2.png")
    with pytest.raises(
        ValueError, match=r"rated.csv, line 4: .*one_2.png: expected the size of .*one.png, 32x32 .*, got 40x32"
    ):
        measure(read_opinion_scores(rated), LPIPS("embedded"))


def test_command_refuses_too_few_rows_before_it_measures(rated, capsys):
    lines = rated.read_text().splitlines()
    rated.write_text("\n".join(lines[:4]) + "\n")
    assert cli.main(["correlate", str(rated), "--net=embedded"]) == 2
    assert capsys.readouterr().err == "lpips-lightning: scores: expected at least 5, got 3\n"
