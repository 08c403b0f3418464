"""Results that exist: every command that writes refuses to replace them before any work, or writes a new version."""

import os
from pathlib import Path

import pytest

from lpips_lightning.cli.commands import COMMANDS
from lpips_lightning.cli.commands import main as run
from lpips_lightning.io.atomic import check_output_path, has_results, new_version
from lpips_lightning.recipes import tradeoff_rows
from tests._helpers.small_data import write_bapps, write_noise
from tests._helpers.small_recipes import RECIPES

OLD = b"old results"
COMPARE = ["compare", "images/a.png", "images/b.png", "--net", "embedded"]
FOLDERS = ["compare", "images", "images", "--net", "embedded"]
EVALUATE = ["bapps", "evaluate", "l2", "--root", "bapps", "--resamples", "5", "--size", "0"]
PAPER = ["--methods", "l2", "--resamples", "5", "--size", "0"]
FAST = ["calibration", "fast", "--root", "bapps", "--net", "embedded", "--sets", "cnn", "--size", "0"]
SMALL = ["--train", "2", "--val", "1", "--jnd", "0", "--size", "16", "--judge", "l2"]
KMEANS = ["kmeans", "--folder", "images", "--net", "embedded", "--crops", "3", "--crop-size", "31", "--iterations", "1"]

# Command line, its option, and the file that is in the way.
COMMAND_LINES = {
    "compare --csv": ([*COMPARE, "--csv", "out.csv"], "csv: out.csv", "out.csv"),
    "compare --json": ([*COMPARE, "--json", "out.json"], "json: out.json", "out.json"),
    "compare --map": ([*COMPARE, "--map", "out.png"], "map: out.png", "out.png"),
    "compare --map of folders": ([*FOLDERS, "--map", "maps"], "map: maps", "maps/a.png"),
    "compare --pairs": (["compare", "--pairs", "images", "--net", "embedded", "--csv", "m.csv"], "csv: m.csv", "m.csv"),
    "correlate": (["correlate", "mos.csv", "--net", "embedded", "--csv", "out.csv"], "csv: out.csv", "out.csv"),
    "bapps evaluate": ([*EVALUATE, "--out", "scores"], "out: scores/scores.csv", "scores/scores.csv"),
    "paper": (["paper", "--root", "bapps", *PAPER, "--out", "p"], "out: p/report.html", "p/report.html"),
    "judge rank": (["judge", "rank", "study.db", "--out", "r"], "out: r/ranking.csv", "r/ranking.csv"),
    "judge simulate": (["judge", "simulate", "study.db", "--out", "s.db"], "out: s.db", "s.db"),
    "bapps make": (["bapps", "make", "--images", "images", "--out", "made", *SMALL], "out: made", "made/made.json"),
    "bapps sheet": (["bapps", "sheet", "--images", "images", "--out", "s.png"], "out: s.png", "s.png"),
    "kmeans": ([*KMEANS, "--patches", "200", "--out", "k.safetensors"], "out: k.safetensors", "k.safetensors"),
    "export": (["export", "--net", "embedded", "--out", "net.pt"], "out: net.pt", "net.pt"),
    "calibration fast": ([*FAST, "--out", "f.safetensors"], "out: f.safetensors", "f.safetensors"),
    "demo": (["demo", "--out", "shown"], "out: shown/panel.png", "shown/panel.png"),
    "new": (["new", "puzzle", "mine"], "DIR: mine/puzzle.py", "mine/puzzle.py"),
    "superresolution predict": (["superresolution", "predict", "--images.out", "large"], "large", "large/a.png"),
    "colorization predict": (["colorization", "predict", "--images.out", "colored"], "colored", "colored/a.png"),
    "frame-interpolation predict": (["frame-interpolation", "predict", "--images.out", "new"], "new", "new/a.png"),
    "deblurring predict": (["deblurring", "predict", "--images.out", "sharp"], "sharp", "sharp/a.png"),
    "autoencoder predict": (["autoencoder", "predict", "--images.out", "new"], "new", "new/a.png"),
    "cnn-distortions fit": (
        ["cnn-distortions", "fit", "--file.path", "n.safetensors"],
        "n.safetensors",
        "n.safetensors",
    ),
    "distillation fit": (["distillation", "fit", "--file.path", "s.safetensors"], "s.safetensors", "s.safetensors"),
    "split-brain fit": (["split-brain", "fit", "--file.path", "b.safetensors"], "b.safetensors", "b.safetensors"),
    "puzzle fit": (["puzzle", "fit", "--file.path", "b.safetensors"], "b.safetensors", "b.safetensors"),
    "bigan fit": (["bigan", "fit", "--file.path", "b.safetensors"], "b.safetensors", "b.safetensors"),
    "calibration fit": (["calibration", "fit", "--file.path", "c.safetensors"], "c.safetensors", "c.safetensors"),
}
WITHOUT_OUTPUTS = {"completion", "weights"}  # fetch keeps complete files
QUICK = [
    name
    for name in COMMAND_LINES
    if COMMAND_LINES[name][0][0] in ("compare", "correlate", "bapps", "paper", "kmeans", "new")
]


@pytest.fixture(autouse=True)
def _data(tmp_path, monkeypatch):
    """Working folder with noise, BAPPS' layout and opinion scores."""
    monkeypatch.chdir(tmp_path)
    write_noise("images", height=31, width=31)
    write_bapps("bapps", {"2afc/train/cnn": 4, "2afc/val/cnn": 4}, size=31)
    names = ("a", "b", "c", "d", "more/e")
    rows = "".join(f"images/a.png,images/{name}.png,{score}\n" for score, name in enumerate(names))
    Path("mos.csv").write_text(f"reference,distorted,score\n{rows}")


def content(folder="."):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_every_command_that_writes_is_here():
    assert {line[0] for line, _, _ in COMMAND_LINES.values()} | WITHOUT_OUTPUTS == set(COMMANDS)


@pytest.mark.parametrize("name", COMMAND_LINES)
def test_existing_results_stay_and_the_sentence_names_the_way_out(name, capsys):
    line, said, file = COMMAND_LINES[name]
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_bytes(OLD)
    before = content()
    assert run(line) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{said} exists; --force replaces " in error
    assert content() == before


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("bapps sheet", "compare --map of folders", "kmeans")))
        for name in QUICK
    ],
)
def test_force_replaces_them(name, capsys):
    line, _, file = COMMAND_LINES[name]
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_bytes(OLD)
    assert run([*line, "--force"]) == 0, capsys.readouterr().err
    assert Path(file).read_bytes() not in (OLD, b"")


@pytest.mark.parametrize("name", [name for name in QUICK if COMMAND_LINES[name][2] in COMMAND_LINES[name][0]][:2])
def test_empty_files_and_streams_are_no_results(name, capsys):
    line, _, file = COMMAND_LINES[name]
    Path(file).touch()  # mktemp
    assert run(line) == 0, capsys.readouterr().err
    assert Path(file).stat().st_size
    assert run([os.devnull if word == file else word for word in line]) == 0


def test_make_replaces_no_folder_that_it_did_not_make(capsys):
    line, _, _ = COMMAND_LINES["bapps make"]
    Path("made").mkdir()
    Path("made/precious.txt").write_bytes(OLD)
    assert run([*line, "--force"]) == 2
    assert "expected a new or empty folder, got 'made', which is not empty" in capsys.readouterr().err
    assert content("made") == {Path("made/precious.txt"): OLD}


def test_make_replaces_the_whole_data_set(capsys):
    line, _, _ = COMMAND_LINES["bapps make"]
    assert run(line) == 0
    assert run([*line, "--force", "--set", "other"]) == 0, capsys.readouterr().err
    assert not Path("made/2afc/train/traditional").exists() and Path("made/2afc/train/other").is_dir()
    assert not [path for path in Path().iterdir() if path.name.startswith(".made")]


@pytest.mark.parametrize(
    ("line", "default", "new"),
    [(EVALUATE, "evaluation", "evaluation-2"), (["paper", "--root", "bapps", *PAPER], "paper", "paper-2")],
)
def test_default_outputs_get_a_new_version(line, default, new, capsys):
    for _ in range(2):
        assert run(line) == 0
    assert f"outputs/{new}" in capsys.readouterr().out
    first, second = content(f"outputs/{default}"), content(f"outputs/{new}")
    assert first and {path.name for path in first} == {path.name for path in second}
    before = content()
    assert run([*line, "--force"]) == 0
    assert content().keys() == before.keys()


def test_fast_writes_a_new_version_of_its_default_file(capsys):
    assert run(FAST) == run(FAST) == 0
    assert {path.name for path in Path("outputs/calibration").glob("*.safetensors")} == {
        "fast.safetensors",
        "fast-2.safetensors",
    }
    assert "outputs/calibration/fast-2.safetensors" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.predict. was called|.*no.*checkpoint")
def test_predict_writes_new_versions_of_its_default_folder(capsys):
    recipe = RECIPES[0]._replace(options=RECIPES[0].options.replace("=32", "=28"))
    for more in ([], [], ["--force"]):
        recipe.run("predict", "--trainer.logger=false", "--without=checkpoint", *more)
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["superresolved", "superresolved-2"]
    assert "outputs/superresolved exists: writing to outputs/superresolved-2" in capsys.readouterr().out
    written = {str(path.relative_to("outputs/superresolved")) for path in content("outputs/superresolved")}
    assert written == {"c.png", "d.png", "more/e.png"}


def test_a_trade_off_table_with_other_options_gets_a_folder_of_its_own(tmp_path):
    out = tmp_path / "tradeoff"
    assert tradeoff_rows.first_with_options(out, ["--model.lr=1"]) == out
    out.mkdir()
    (out / "settings.json").write_text('{"options": ["--model.lr=1"]}')
    (out / "pixel_seed0.ckpt").write_bytes(OLD)
    (out / "mine.txt").write_bytes(OLD)
    assert tradeoff_rows.first_with_options(out, ["--model.lr=1"]) == out  # resumes
    assert tradeoff_rows.first_with_options(out, []) == out.with_name("tradeoff-2")
    tradeoff_rows.discard(out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    tradeoff_rows.discard(tmp_path)
    assert (tmp_path / "images").is_dir()


def test_new_versions_keep_suffixes_and_take_the_first_free_number(tmp_path):
    assert new_version(tmp_path / "x.csv") == tmp_path / "x.csv"
    for name in ("x.csv", "x-2.csv", "x-4.csv"):
        (tmp_path / name).write_bytes(OLD)
    assert new_version(tmp_path / "x.csv") == tmp_path / "x-3.csv"
    assert not has_results(tmp_path / "missing") and not has_results("/dev/stdout") and has_results(tmp_path)
    with pytest.raises(FileExistsError, match=r"csv: .*x.csv exists; --force replaces it"):
        check_output_path(tmp_path / "x.csv", "csv", replace=False)
    check_output_path(tmp_path / "x.csv", "csv")
