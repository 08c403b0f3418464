"""The pages are true: snippets run, commands and options exist, links and names lead somewhere, the docs build."""

from __future__ import annotations

import math
import os
import re
import shlex
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache
from importlib import import_module
from io import StringIO
from pathlib import Path
from shutil import copyfile

import forked_python
import pytest
import pytorch_lightning as pl
import torch
import yaml
from method_study import write_methods
from references import BUILDERS
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from untrained import UNet, kaiming_cnn

from lpips_lightning import LPIPS
from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.calibration import TrainableLPIPS, write_calibration
from lpips_lightning.callbacks import PerceptualScores
from lpips_lightning.cli.commands import COMMANDS, main
from lpips_lightning.io import write_image
from lpips_lightning.judge import Design, random_selector, simulate, study_from_methods, study_from_photographs
from lpips_lightning.recipes.help_pages import LIGHTNING
from lpips_lightning.weights import BACKBONE_FILES, CALIBRATIONS, DISTS, tensors_sha256

ROOT = Path(__file__).parents[1]
# Python snippets by page.
PAGES = {
    "README.md": 3,
    "CHANGELOG.md": 0,
    "callbacks/README.md": 5,
    "recipes/DISTANCES.md": 1,
    "recipes/GUIDE.md": 0,
    "recipes/JUDGE.md": 1,
    "recipes/README.md": 1,
    "recipes/SCALE.md": 0,
    "tests/README.md": 0,
    "weights/README.md": 2,
}
RECORDS = dict(BACKBONE_FILES)
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", TEXTS[page], re.DOTALL)


SNIPPETS = [(page, number) for page in PAGES for number in range(len(blocks(page, "python")))]


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """An empty folder; no weights, no network (see conftest.py)."""
    assert "LPIPS_LIGHTNING_WEIGHTS" not in os.environ and not list(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)


@cache
def shown(page, number):
    """What a snippet prints, and its names."""
    names, out = {}, StringIO()
    with warnings.catch_warnings(), redirect_stdout(out):
        warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec)")  # Lightning's, 2026-11-28
        if (page, number) == ("README.md", 1):  # the page says that it warns
            warnings.filterwarnings("ignore", "net_type: expected another network than that of the loss")
        exec(compile(blocks(page, "python")[number], f"{page}, snippet {number + 1}", "exec"), names)
    return out.getvalue(), names


def run(page, number):
    return dict(shown(page, number)[1])


def test_every_page_is_tested():
    pages = {path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/*.md")]}
    assert pages == set(PAGES)
    assert {page: len(blocks(page, "python")) for page in PAGES} == PAGES


@pytest.mark.parametrize(("page", "number"), SNIPPETS[1:])
def test_snippets_run(page, number):
    run(page, number)


def test_the_first_snippet_shows_how_training_lowers_lpips():
    printed, _ = shown("README.md", 0)
    blurred, restored = map(
        float, re.fullmatch(r"LPIPS\(embedded\): (\S+) blurred, (\S+) restored\n", printed).groups()
    )
    assert blurred == 0.18  # as the comment beside it says
    assert restored < 0.12


def test_the_second_snippet_trains_in_lightning_and_ends_with_scores():
    printed, names = shown("README.md", 1)
    scores = {name: float(score) for name, score in re.findall(r"'(val/\w+)': ([\d.]+)", printed.splitlines()[-1])}
    assert set(scores) == {"val/lpips", "val/psnr", "val/ssim"}
    assert scores["val/lpips"] < 0.1  # as the comment beside it says
    assert names["trainer"].global_step == 64


def test_the_second_snippet_says_that_its_loss_judges():
    (loss,) = re.findall(r'PerceptualLoss\("(\w+)"', blocks("README.md", "python")[1])
    (scores,) = re.findall(r'PerceptualScores\("(\w+)"', blocks("README.md", "python")[1])
    assert loss == scores and "It warns that the network of the loss also judges here" in README


# 2026-11-21, pytorch_lightning/trainer/connectors/data_connector.py: its advice on loaders.
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:net_type. expected another network")
@pytest.mark.filterwarnings("ignore:pred. expected values on .*clamp=True")  # an untrained network leaves the range
@pytest.mark.parametrize("kind", ["U-Net", "kaiming CNN", "small"])
def test_an_ordinary_untrained_network_trains_in_the_second_snippet(kind):
    torch.manual_seed(0)
    network = {
        "U-Net": lambda: UNet(3, scale=1),
        "kaiming CNN": lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 1), kaiming_cnn()),
        "small": lambda: nn.Conv2d(3, 3, 3, padding=1),
    }[kind]()
    names = run("README.md", 1)
    loader = DataLoader(TensorDataset(*torch.rand(2, 12, 3, 32, 32)), batch_size=3)
    callbacks = [made for made in names["trainer"].callbacks if isinstance(made, PerceptualScores)]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=3, callbacks=callbacks, **quiet)
    trainer.fit(names["Restoration"](network), loader, loader)
    assert trainer.global_step == 12
    assert math.isfinite(float(trainer.callback_metrics["val/lpips"]))


# 2026-11-21, pytorch_lightning/trainer/connectors/data_connector.py: its advice on loaders.
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:net_type. expected another network")
@pytest.mark.parametrize(("page", "number"), [("README.md", 1), ("callbacks/README.md", 4)])
def test_modules_of_snippets_train_and_their_checkpoints_hold_the_network_alone(page, number, tmp_path):
    names = run(page, number)
    model = names["Restoration"](torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.Sigmoid()))
    loader = DataLoader(TensorDataset(*torch.rand(2, 4, 3, 32, 32)), batch_size=3)
    callbacks = [
        made for made in getattr(names.get("trainer"), "callbacks", []) if "lpips_lightning" in type(made).__module__
    ]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=1, callbacks=callbacks, **quiet)
    trainer.fit(model, loader, loader) if callbacks else trainer.validate(model, loader, verbose=False)
    assert 0 < float(trainer.callback_metrics["val/lpips"]) < 10
    assert sorted(trainer.strategy.lightning_module_state_dict()) == ["network.0.bias", "network.0.weight"]


def test_snippets_have_one_convention_for_ranges():
    code = [block for page in PAGES for block in blocks(page, "python")]
    assert sum("data_range" in block for block in code) >= 7
    assert not [block for block in code if re.search(r"normalize ?=", re.sub("#.*", "", block))]


def test_configurations_name_classes_and_their_arguments():
    tested = 0
    for page in PAGES:
        for block in blocks(page, "yaml"):
            for entry in yaml.safe_load(block)["trainer"]["callbacks"]:
                module, _, name = entry["class_path"].rpartition(".")
                options = entry["init_args"]
                if isinstance(given := options.get("net_type"), dict):
                    home, _, network = given["class_path"].rpartition(".")
                    options["net_type"] = getattr(import_module(home), network)(**given["init_args"])
                assert isinstance(getattr(import_module(module), name)(**options), pl.Callback)
                tested += 1
    assert tested == 3


def test_the_root_page_is_short_and_begins_with_a_snippet():
    assert README.count("\n") <= 150
    assert README[: README.index("```python")].count("\n") < 15
    assert {"PerceptualLoss", "LearnedPerceptualImagePatchSimilarity"} <= set(
        re.findall(r"\w+", blocks("README.md", "python")[0])
    )
    assert "PerceptualScores" in blocks("README.md", "python")[1]


def command_lines():
    """Command lines in blocks and in running text."""
    found = []
    for text in TEXTS.values():
        plain = [block for language, block in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL) if not language]
        found += [line for block in plain for line in block.splitlines() if line.startswith("lpips-lightning ")]
        found += re.findall(r"`(lpips-lightning [^`]+)`", text)
    return [line for line in found if line.split()[1] != "--help"]


def options_in(text):
    return re.findall(r"(?<![\w-])--[a-z][\w.-]*", text)


def test_commands_and_their_options_exist(capsys):
    lines = command_lines()
    assert len(lines) >= 30
    assert {line.split()[1] for line in lines} == set(COMMANDS)
    shown = {}

    def options_of(call):
        """Everything that ``--help`` names after some words, which must be a command."""
        if call not in shown:
            in_full = call[1:] and call[1] in LIGHTNING
            with pytest.raises(SystemExit) as end:
                main([*call, "--help=all" if in_full else "--help"])
            assert not end.value.code, call
            shown[call] = set(options_in(capsys.readouterr().out))
            if call[0] == "compare":
                with pytest.raises(SystemExit):
                    main([*call, "--help=runs"])
                shown[call] |= set(options_in(capsys.readouterr().out))
        return shown[call]

    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        call = tuple(words[: next((index for index, word in enumerate(words) if word.startswith("-")), len(words))])
        known = options_of(call)
        if call[1:] == ("tradeoff",):  # it takes those of its recipe too
            known = known | options_of((call[0], "fit"))
        assert set(options_in(line)) <= known, line
    running = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", "".join(TEXTS.values()), flags=re.DOTALL))
    named = {option for code in running if not code.startswith("pip ") for option in options_in(code)}
    assert len(named) >= 10
    assert named <= {"--help"}.union(*shown.values())


PICTURES = {  # files and folders of the commands below
    "a.png": 1,
    "b.png": 1,
    "restored": 2,
    "truth": 2,
    "faces": 2,
    "samples": 3,
    "photographs": 3,
}
RUN = ("compare ", "correlate ", "weights list", "completion bash", "bapps sheet")
RUN += tuple(f"judge {action} " for action in ("simulate", "report", "calibrate", "export", "rank"))


@pytest.fixture
def files(tmp_path, monkeypatch, backbones):
    """What the commands of the pages read: images, tables, and seeded backbones where ImageNet's are looked for."""
    (tmp_path / "weights").mkdir()
    for net, tensors in backbones.items():
        save_file(tensors, tmp_path / "weights" / f"{BUILDERS[net]}.safetensors")
        record = replace(BACKBONE_FILES[BUILDERS[net]], convolutions_sha256=tensors_sha256(tensors))
        monkeypatch.setitem(BACKBONE_FILES, record.builder, record)
    monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(tmp_path / "weights"))
    for name, count in PICTURES.items():
        for number in range(count):
            path = tmp_path / name if name.endswith(".png") else tmp_path / name / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            white = torch.ones(3, 256, 256)
            write_image(white if name == "faces" else white * torch.rand(3, 256, 256), path)
    (tmp_path / "list.csv").write_text("a,b\n0.png,1.png\n1.png,0.png\n")


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Files of studies, answered by simulated observers; their images lie beside them."""
    folder = tmp_path_factory.mktemp("studies")
    write_methods(folder / "outputs", references=5, side=64)
    for number in range(6):
        write_image(torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(number)), folder / f"p/{number}.png")
    few = {"trials": 20, "sentinels": 2, "pass_mark": 0, "practice": 0, "repeats": 2}
    made = {
        "study": study_from_photographs(folder / "study.db", folder / "p", design=Design(**few), count=24, size=64),
        "jnd": study_from_photographs(folder / "jnd.db", folder / "p", design=Design("jnd", **few), count=12, size=64),
        "methods": study_from_methods(folder / "methods.db", folder / "outputs", "reference", design=Design(**few)),
    }
    for study in made.values():
        distances = {item: (0.1 + 0.01 * item, 0.2) for item in study.items("judged")}
        simulate(study, distances, random_selector, observers=5)
        study.close()
    copyfile(folder / "study.db", folder / "simulated.db")
    return folder


@pytest.fixture
def answered(studies, tmp_path, backbones):
    """The studies that the commands of the pages read, and a calibration."""
    for path in studies.glob("*.db"):
        copyfile(path, tmp_path / path.name)
    path = tmp_path / "outputs/judge/calibration.safetensors"
    write_calibration(path, TrainableLPIPS("alex", init="official"), 1.0, {"net_type": "alex", "mode": "lin"})


OTHER = r"[|]|mp4|\.\.\.|\{\d|--help|--devices|--benchmark"


def short_lines():
    """Lines of the pages that take seconds; those with another program, videos, a mirror, shards, several
    devices or help are left out."""
    lines = [line.partition("#")[0].strip().removeprefix("lpips-lightning ") for line in command_lines()]
    return sorted({line for line in lines if f"{line} ".startswith(RUN) and " " in line and not re.search(OTHER, line)})


LONG = ("judge calibrate", "judge report study")  # about 15 seconds each


@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=[pytest.mark.slow] if line.startswith(LONG) else []) for line in short_lines()]
)
def test_short_commands_run_as_the_pages_have_them(line, files, capsys, request):
    if "judge" in line:
        request.getfixturevalue("answered")
        if line.startswith("judge simulate"):
            Path("simulated.db").unlink()  # which it makes
    if line.startswith("correlate"):
        rows = [f"truth/{one % 2}.png,samples/{one % 3}.png,{one},{one % 2}" for one in range(12)]
        Path("scores.csv").write_text("\n".join(["reference,distorted,score,video", *rows]))
    assert main(shlex.split(line)) == 0, capsys.readouterr().err
    assert all(Path(name).exists() for name in re.findall(r"--(?:out|csv|map) (\S+)", line))


def test_many_commands_are_run():
    assert len(short_lines()) >= 18
    assert sum(line.startswith("judge") for line in short_lines()) >= 9


def test_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = {
        target for text in TEXTS.values() for target in re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.MULTILINE)
    }
    assert {"demo", "test", "bench", "docs"} <= named
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named)


def test_every_calibration_is_listed_with_its_sha256():
    page = TEXTS["weights/README.md"]
    assert all(f"`{record.sha256}`" in page for record in (*CALIBRATIONS.values(), DISTS))
    dists = LPIPS("vgg", distance="dists", weights="random").fingerprint.split(", ")[1]
    assert dists == f"alpha beta sha256:{DISTS.calibration_sha256[:12]}" and f"`{dists}`" in page
    for (net, version), record in CALIBRATIONS.items():
        found = LPIPS(net, version=version, weights=None if record.backbone_sha256 else "random")
        shown = found.fingerprint.split(", ")[1]
        assert shown == f"lin sha256:{record.calibration_sha256[:12]}"
        assert f"`{shown}`" in page
        if record.backbone_sha256:
            assert found.specification.backbone_sha256 == record.backbone_sha256
            assert f"backbone `{record.backbone_sha256[:12]}`" in page
    shown = [record.convolutions_sha256 for record in RECORDS.values()]
    assert len(shown) == 5 and all(f"`{digest[:12]}`" in page for digest in shown)


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", TEXTS[page]):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]


def test_names_in_pages_and_docstrings_of_packages_exist():
    texts = [*TEXTS.values()]
    for path in [*ROOT.glob("*/__init__.py"), *ROOT.glob("lpips_lightning/*/__init__.py")]:
        texts.append(path.read_text(encoding="utf-8"))
    named = {name for text in texts for name in re.findall(r"\blpips_lightning(?:\.[A-Za-z_]\w*)+", text)}
    named -= {name for name in named if name.endswith((".html", ".py"))}
    assert len(named) >= 25
    assert [name for name in sorted(named) if not exists(name)] == []


def exists(name):
    module, names = name, []
    while module:
        try:
            found = import_module(module)
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            names.insert(0, last)
        else:
            for part in names:
                found = getattr(found, part, None)
            return found is not None
    return False


def test_the_engine_tells_of_each_of_its_files():
    told = import_module("lpips_lightning.engine").__doc__
    files = [path.stem for path in (ROOT / "lpips_lightning" / "engine").glob("*.py") if path.stem != "__init__"]
    assert len(files) >= 10
    assert [name for name in files if f"\n**{name}** " not in told] == []


@pytest.mark.slow
def test_the_docs_build_without_warnings(tmp_path):
    built = forked_python.run([ROOT / ".ci" / "docs.py", tmp_path], capture_output=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "tests.html").is_file()
    pages = ["lpips_lightning", "lpips_lightning/engine", "lpips_lightning/callbacks"]
    pages += [f"lpips_lightning/{path.parent.name}" for path in (ROOT / "lpips_lightning").glob("*/__init__.py")]
    for page in pages:
        content = (tmp_path / f"{page}.html").read_text(encoding="utf-8")
        names = getattr(import_module(page.replace("/", ".")), "__all__", [])
        assert [name for name in names if f'id="{name}"' not in content] == []


def test_the_guide_quotes_messages_that_exist():
    guide = TEXTS["recipes/GUIDE.md"]
    quoted = re.findall(r"^\| \*(.+?)\*", guide.partition("## What an error means")[2], re.MULTILINE)
    code = [path.read_text(encoding="utf-8") for path in (ROOT / "lpips_lightning").rglob("*.py")]
    source = re.sub(r'"\s*\n\s*f?"', "", "\n".join(code))  # strings that continue on the next line
    assert len(quoted) >= 8
    for message in quoted:
        for part in message.split(" ... "):
            assert part in source, message


def test_the_guide_names_the_smallest_sides():
    sides = re.search(
        r"(\d+) pixels for alex and embedded, (\d+) for vgg, (\d+) for squeeze and embedded-vgg, (\d+) for alex-st,"
        r" (\d+) for vgg-st",
        TEXTS["recipes/GUIDE.md"],
    )
    assert sides is not None
    wanted = [BACKBONES[net].smallest_side for net in ("alex", "vgg", "squeeze", "alex-st", "vgg-st")]
    assert [*map(int, sides.groups())] == wanted and BACKBONES["embedded"].smallest_side == wanted[0]
    assert BACKBONES["embedded-vgg"].smallest_side == wanted[2]
