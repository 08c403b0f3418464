"""The paper's figures and tables in one page: numbers, groups, figures, resuming, and the page itself."""

from __future__ import annotations

import base64
import csv
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from _helpers.figure_layout import HOSTILE_NAMES, saved_faults
from safetensors.torch import save_file

from lpips_lightning import LPIPS
from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.backbones.extractor import random_backbone
from lpips_lightning.cli import commands as cli
from lpips_lightning.data.bapps import JNDDataset, TwoAFCDataset
from lpips_lightning.data.bapps_download import ARCHIVES
from lpips_lightning.evaluation import paper_distances
from lpips_lightning.evaluation.benchmark import HUMAN, Score
from lpips_lightning.evaluation.methods import OTHERS, Method
from lpips_lightning.evaluation.paper_distances import measure_or_read
from lpips_lightning.evaluation.paper_figures import mean_score, panels, points_of, save_bars, save_scatter
from lpips_lightning.evaluation.paper_methods import DEFAULT_METHODS, GROUPS, PaperMethod, choose, load, mark_judge
from lpips_lightning.evaluation.paper_tasks import PAPER_TABLE_4, PASCAL, PRINTED_2AFC, correlation, task_correlations
from lpips_lightning.evaluation.table5 import PAPER_SETS, TABLE_5
from lpips_lightning.io.figures import _STYLE
from lpips_lightning.io.tensor_files import write_tensors
from tests._helpers.small_data import write_bapps, write_noise


def test_table_4_is_recomputed_from_the_numbers_that_the_paper_prints():
    rows = {row.tasks: row for row in task_correlations({}, {})}
    assert rows.keys() == PAPER_TABLE_4.keys()
    found = {tasks: None if row.printed is None else round(row.printed, 3) for tasks, row in rows.items()}
    assert found["2AFC", "classification"] == 0.707
    assert found["2AFC", "detection"] == 0.592
    assert found["classification", "detection"] == 0.842
    assert sum(value is None for value in found.values()) == 3  # those with JND
    assert all(row.ours is None and row.count == 0 for row in rows.values())
    for name, value in PRINTED_2AFC.items():
        assert name in PASCAL and abs(sum(TABLE_5[name][:2]) / 2 - value) < 0.0501 + 1e-9


def test_table_4_of_our_scores_takes_the_networks_that_were_measured():
    names = ["AlexNet", "Gaussian", "Audio", "Puzzle"]
    two_afc, jnd = dict(zip(names, (80.0, 60.0, 71.0, 75.0), strict=True)), {"AlexNet": 50.0, "Puzzle": 40.0}
    rows = {row.tasks: row for row in task_correlations(two_afc, jnd)}
    classes = np.corrcoef(list(two_afc.values()), [PASCAL[name][0] for name in names])[0, 1]
    assert rows["2AFC", "classification"].ours == pytest.approx(classes)
    assert rows["2AFC", "classification"].count == 4
    with_detection = [name for name in names if name != "Audio"]
    detected = np.corrcoef([two_afc[name] for name in with_detection], [PASCAL[name][1] for name in with_detection])
    assert rows["2AFC", "detection"].ours == pytest.approx(detected[0, 1])
    assert (rows["2AFC", "JND"].ours, rows["2AFC", "JND"].count) == (None, 2)


def test_the_correlation_of_methods_has_an_interval_and_needs_three():
    first = dict(zip("abcdefgh", np.arange(8.0), strict=True))
    other = {name: value + (value == 3) for name, value in first.items()}
    found = correlation(first, other, resamples=200)
    assert found.count == 8
    assert found.pearson[1] <= found.pearson[0] <= found.pearson[2] <= 1
    assert found.pearson[0] == pytest.approx(np.corrcoef(list(first.values()), list(other.values()))[0, 1])
    assert correlation(first, dict.fromkeys(first, 1.0)) is None
    assert correlation(first, {"a": 1.0, "b": 2.0}) is None


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Backbone files: of k-means and of BiGAN, with a record; and one that says nothing."""
    folder = tmp_path_factory.mktemp("backbones")
    small, large = (random_backbone(BACKBONES[net], 1) for net in ("embedded", "alex"))
    write_tensors(folder / "kmeans.safetensors", small, {"mode": "kmeans"}, net_type="embedded")
    write_tensors(folder / "bigan.safetensors", large, {"mode": "bigan"}, net_type="alex")
    save_file(small, folder / "plain.safetensors")
    return folder


@pytest.mark.parametrize(
    ("text", "name", "group", "paper"),
    [
        ("l2", "l2", "low-level", "L2"),
        ("alex:random", "alex:random", "random and unsupervised", "Gaussian"),
        ("embedded:baseline", "embedded:baseline", "supervised", None),
        ("embedded", "embedded", "LPIPS", None),
        ("mine=embedded", "mine", "LPIPS", None),
        ("{}/kmeans.safetensors", "kmeans", "random and unsupervised", None),
        ("embedded:kmeans={}/kmeans.safetensors", "embedded:kmeans=kmeans", "random and unsupervised", None),
        ("{}/bigan.safetensors", "bigan", "self-supervised", "BiGAN"),
        ("alex:weights={}/bigan.safetensors", "alex:weights=bigan", "self-supervised", "BiGAN"),
        ("puzzle=embedded:weights={}/plain.safetensors", "puzzle", "self-supervised", "Puzzle"),
        ("embedded:weights={}/plain.safetensors", "embedded:weights=plain", "other weights", None),
    ],
)
def test_methods_stand_in_the_papers_groups(files, text, name, group, paper):
    ((one,), left_out) = load([choose(text.format(files))])
    assert (one.name, one.group, one.method.paper, left_out) == (name, group, paper, [])
    assert one.fingerprint.startswith("LPIPS " if isinstance(one.method.distance, LPIPS) else "l2: mean squared")


def test_every_classical_metric_says_what_it_computes():
    found, _ = load([choose(name) for name in OTHERS])
    assert len(found) == len(OTHERS)
    assert all(re.fullmatch(rf"{one.name}: .* [a-z]+ [\d.]+\S*", one.fingerprint) for one in found)


def test_a_group_can_be_given_and_methods_are_sorted_by_it(files):
    texts = ["embedded", "embedded:baseline", "l2"]
    found, _ = load([*map(choose, texts), choose(f"x=embedded:weights={files}/plain.safetensors", "self-supervised")])
    assert [one.name for one in found] == ["l2", "x", "embedded:baseline", "embedded"]
    assert [GROUPS.index(one.group) for one in found] == [0, 2, 3, 4]
    marked = mark_judge(found, found[3].fingerprint)
    assert [one.label for one in marked] == ["l2", "x", "embedded:baseline", "embedded (the judge)"]


def test_methods_without_weights_are_left_out_with_the_command_that_fetches_them(monkeypatch):
    monkeypatch.setattr("lpips_lightning.evaluation.paper_methods.find_spec", lambda name: None)
    found, left_out = load([choose(name) for name in DEFAULT_METHODS])
    assert {one.name for one in found} == {"l2", "ssim", "embedded", "embedded-vgg"} | {
        f"{net}:random" for net in ("alex", "vgg", "squeeze")
    }
    assert len(left_out) == len(DEFAULT_METHODS) - len(found) == 7
    commands = {one.name: one.command for one in left_out}
    assert commands["vgg:baseline"].startswith("lpips-lightning weights fetch --net vgg --to DIR")
    assert commands["fsim"] == 'pip install "lpips_lightning[piq]"'
    with pytest.raises(ValueError, match="methods: expected one that this machine can measure, got none; lpips-light"):
        load([choose("alex"), choose("alex:baseline")])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["l3"], "method: expected one of alex, .* got 'l3'"),
        (["x=l2", "x=ssim"], "methods: expected different names, got 'x' twice"),
        (["human=l2"], "methods: expected a name that is not one of judges, got 'human'"),
        (["{}/plain.safetensors"], r"expected a file that says its architecture, .* write NET:weights=.*plain.safet"),
        (["missing.safetensors"], "missing.safetensors"),
    ],
)
def test_wrong_methods_are_refused(files, texts, message):
    with pytest.raises(Exception, match=message) as error:
        load([choose(text.format(files)) for text in texts])
    assert type(error.value).__name__ in ("ValueError", "WeightsError")


def cells(names, sets=PAPER_SETS, judge=HUMAN):
    """Scores of methods on sets of triplets and on two of pairs."""
    values = [(name, kind, one) for name in (judge, *names) for kind in ("2afc", "jnd") for one in sets]
    return [
        Score(name, one, kind, 60 + 3.7 * (at % 9), 57 + 3.7 * (at % 9), 64 + 3.7 * (at % 9), 100, None, judge)
        for at, (name, kind, one) in enumerate(values)
        if kind == "2afc" or (one in ("traditional", "cnn") and name != judge)
    ]


def test_points_are_means_over_the_sets_that_were_judged_both_ways():
    values = {("2afc", "cnn"): 80, ("2afc", "color"): 60, ("jnd", "cnn"): 50}
    scores = [Score("a", one, kind, value, value, value, 9, None) for (kind, one), value in values.items()]
    assert points_of(scores) == {"a": (80, 50)}
    assert points_of([scores[1], scores[2]]) == {"a": (60, 50)}
    assert points_of(scores[:2]) == {}


def members(names, judge=None):
    return [
        PaperMethod(Method(name, lambda x, y: x, None), group, name, name == judge)
        for name, group in sorted(zip(names, GROUPS * len(names), strict=False), key=lambda one: GROUPS.index(one[1]))
    ]


def test_a_bar_is_the_mean_of_its_sets():
    scores = [
        Score("a", "cnn", "2afc", 70.0, 67.0, 72.0, 9, None),
        Score("a", "traditional", "2afc", 80.0, 76.0, 81.0, 9, None),
    ]
    bar = mean_score(scores, "a", ["traditional", "cnn"])
    assert (bar.value, bar.low, bar.high) == pytest.approx((75, 75 - 2.5, 75 + np.sqrt(5) / 2))
    assert mean_score(scores, "a", ["cnn", "deblur"]) is None and mean_score(scores, "b", ["cnn"]) is None
    found = panels(["traditional", "mine", "color", "cnn"])
    assert found == {"distortions": ["traditional", "cnn"], "real algorithms": ["color"], "other sets": ["mine"]}


SHORT = ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("names", "sets"),
    [(SHORT, ("traditional",)), (SHORT, (*PAPER_SETS, "mine")), (HOSTILE_NAMES, ("traditional", "color"))],
)
def test_figures_have_no_faults(names, sets, tmp_path):
    judge = HUMAN if sets[2:] else "simulated: LPIPS embedded-vgg v0.1, baseline"
    scores, methods = cells(names, sets, judge), members(names, judge=names[1])
    assert saved_faults(lambda path: save_bars(scores, methods, path), tmp_path / "bars.png") == []
    note = "Pearson -0.12, Spearman 0.93, n = 30"
    assert saved_faults(lambda path: save_scatter(scores, methods, path, note), tmp_path / "scatter.png") == []


def test_distances_are_kept_for_equal_methods_and_unchanged_files(tmp_path, monkeypatch):
    root = write_bapps(tmp_path / "bapps", {"2afc/val/cnn": 3, "jnd/val/cnn": 2}, size=31)
    sets = {"cnn": TwoAFCDataset(root, "val", ("cnn",), None), "jnd/cnn": JNDDataset(root, ("cnn",), None)}
    seen = []

    def measured(methods, data, *more):
        seen.append((*data, *(one.name for one in methods)))
        return original(methods, data, *more)

    original = paper_distances.measure
    monkeypatch.setattr(paper_distances, "measure", measured)
    (l2, net), _ = load([choose("l2"), choose("embedded")])
    first = measure_or_read([l2], sets, tmp_path / "kept")
    both = measure_or_read([l2, net], sets, tmp_path / "kept")
    assert seen == [("cnn", "l2"), ("jnd/cnn", "l2"), ("cnn", "embedded"), ("jnd/cnn", "embedded")]
    again = measure_or_read([l2, net], sets, tmp_path / "kept")
    assert len(seen) == 4
    for name in sets:
        assert torch.equal(first["l2"][name].distances, again["l2"][name].distances)
        assert torch.equal(both["embedded"][name].distances, again["embedded"][name].distances)
        assert again["l2"][name].kind == ("jnd" if name == "jnd/cnn" else "2afc")
    np.save(root / "2afc/val/cnn/judge/000000.npy", np.float64(0.125))
    (damaged,) = (tmp_path / "kept/jnd_cnn").glob("l2*")
    damaged.write_bytes(b"damaged")
    changed = measure_or_read([l2, net], sets, tmp_path / "kept")
    assert seen[4:] == [("cnn", "l2", "embedded"), ("jnd/cnn", "l2")]
    assert float(changed["l2"]["cnn"].shares[0]) == 0.125


class Page(HTMLParser):
    """Texts, pictures and links of a page; raises unless its tags are balanced."""

    VOID = ("meta", "img", "br")

    def __init__(self, path):
        super().__init__()
        self.open, self.pictures, self.addresses, self.text = [], [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.addresses += [found[name] for name in ("src", "href") if name in found]
        if tag == "img":
            assert found["alt"]
            self.pictures.append(base64.b64decode(found["src"].removeprefix("data:image/png;base64,"), validate=True))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and data.strip():
            self.text += " ".join(data.split()) + " "


MADE = ["--val=12", "--jnd=12", "--size=32", "--judge=embedded", "--noise=1", "--resamples=20"]
METHODS = ["l2", "ssim", "alex:random", "vgg:baseline", "<script>alert(1)</script>=embedded:baseline", "embedded"]


@pytest.fixture(autouse=True)
def _small_figures(monkeypatch):
    monkeypatch.setitem(_STYLE, "savefig.dpi", 60)


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_noise(tmp_path / "photographs")


def test_generated_data_give_a_page_that_says_who_judged(photographs, tmp_path, capsys):
    command = ["paper", f"--photographs={photographs}", *MADE, "--methods", *METHODS]
    assert cli.main([*command, "--out=p"]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "Left out: vgg:baseline, since the ImageNet weights of vgg are not on this machine" in shown
    out = tmp_path / "p"
    page = Page(out / "report.html")
    assert page.pictures == [(out / f"figure{number}.png").read_bytes() for number in (4, 5, 6)]
    assert all(address.startswith("data:image/png") for address in page.addresses)
    assert all((out / f"figure{number}.pdf").stat().st_size for number in (4, 5, 6))
    for text in (
        "Judged by LPIPS embedded v0.1 with votes of simulated observers (noise 1, lapse 0.02, threshold",
        "how near a method is to this metric, not how near it is to people.",
        "12 triplets, judges: simulated: LPIPS embedded v0.1",
        "5 photographs: a, b, c, d, more/e",
        "embedded (the judge)",
        "<script>alert(1)</script>",
        "lpips-lightning weights fetch --net vgg --to DIR",
        "0.707 - 1 2AFC, detection 0.363 0.592 - 1",
        "Over 4 methods, without the judge: Pearson",
        LPIPS("embedded").fingerprint,
        f"torch {torch.__version__.partition('+')[0]}",
        "MiB",
    ):
        assert text in page.text, text
    assert "alert" not in "".join(re.findall("<script.*?</script>", (out / "report.html").read_text()))
    table = list(csv.DictReader((out / "scores.csv").read_text(encoding="utf-8").splitlines()))
    assert {(row["method"], row["kind"]) for row in table if row["method"] != "simulated: LPIPS embedded v0.1"} == {
        (choose(name).name, kind) for name in METHODS if not name.startswith("vgg") for kind in ("2afc", "jnd")
    }
    fractions = [float(np.load(file)) for file in (out / "data/jnd/val/traditional/same").iterdir()]
    assert any(0 < value < 1 for value in fractions)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_stopped(photographs, tmp_path, monkeypatch, capsys):
    command = ["paper", f"--photographs={photographs}", *MADE, "--methods", "l2", "embedded"]

    def stop(*args):
        raise KeyboardInterrupt

    def refuse(*args, **kwargs):
        raise AssertionError("done before")

    with monkeypatch.context() as patch:
        patch.setattr("lpips_lightning.evaluation.paper_figures.save_bars", stop)
        assert cli.main(command) == 130
    with monkeypatch.context() as patch:
        patch.setattr("lpips_lightning.data.bapps_generate.make_bapps", refuse)
        patch.setattr(paper_distances, "measure", refuse)
        assert cli.main([*command, "--out=outputs/paper", "--seed=1"]) == 2
        assert "out: outputs/paper has an incomplete run with other data; --force" in capsys.readouterr().err
        assert cli.main(command) == 0, capsys.readouterr().err
    assert (tmp_path / "outputs/paper/report.html").is_file()
    assert cli.main(command) == 0
    scores = [(tmp_path / f"outputs/{name}/scores.csv").read_bytes() for name in ("paper", "paper-2")]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_bapps_has_the_papers_values_and_no_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("traditional", "color"):
        monkeypatch.setitem(ARCHIVES["2afc/val"].counts, name, (6, 6))
    monkeypatch.setitem(ARCHIVES["jnd/val"].counts, "traditional", (6, 6))
    write_bapps("bapps", dict.fromkeys(("2afc/val/traditional", "2afc/val/color", "jnd/val/traditional"), 6), size=31)
    methods = ["--methods", "l2", "Context=embedded:baseline", "embedded"]
    command = ["paper", "--folder=bapps", *methods, "--size=0", "--resamples=10", "--limit=4"]
    assert cli.main(command) == 0, capsys.readouterr().err
    page = Page(tmp_path / "outputs/paper/report.html")
    assert "Judged by" not in page.text and "(80.8)" in page.text and "(63.5)" in page.text
    assert "color 4 triplets, judges: human" in page.text and len(page.pictures) == 3
    assert "Over 3 methods: Pearson" in page.text
    assert "Context supervised Context LPIPS embedded" in page.text  # a network that Table 5 lacks


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--folder=bapps", "--judge=l2"], "--judge: expected no --folder with this option"),
        (["--folder=gone"], "expected sets in 2afc/val or jnd/val of 'gone', got none"),
        (["--folder=bapps", "--sets", "x"], "sets: expected some of cnn in 'bapps/2afc/val', got 'x'"),
        (["--limit=3"], "--limit: expected --folder DIR with this option, got none"),
        (["--photographs=gone"], "--photographs: expected an existing folder of images, got 'gone'"),
        (["--photographs=small", "--judge=l2", "--methods=l2"], "--photographs: expected sides of at least 64 pixels"),
        (["--noise=-1"], "--noise: expected at least 0, got -1.0"),
        (["--val=0"], "--val: expected at least 1, got 0"),
        (["--methods", "l3"], "expected one of alex, vgg"),
        (
            ["--folder=bapps", "--methods", "l2", "--disagree", "l2", "ssim"],
            "--disagree: expected two of l2, got 'ssim'",
        ),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_written(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_bapps("bapps", {"2afc/val/cnn": 2}, size=31)
    write_noise("small", height=20, width=20)
    assert cli.main(["paper", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"bapps", "small"}
