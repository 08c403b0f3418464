"""What is installed, what is imported, and which names are public."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import forked_python
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def python(code, folder=None):
    return subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True).stdout


def python_with_torch(code, folder=None):
    """As `python`, where torch, torchvision and torchmetrics have been imported before."""
    return forked_python.run(["-c", code], cwd=folder, check=True, capture_output=True).stdout


def test_the_core_imports_neither_lightning_nor_kornia_nor_the_rest():
    heavy = "pytorch_lightning lightning kornia wandb jsonargparse rich skimage"
    # torchmetrics takes what it finds of matplotlib; nothing of ours may add to what it brings.
    code = f"""
import sys, torch, torchvision, torchmetrics
before = set(sys.modules)
import lpips_lightning.data
from lpips_lightning import *
from lpips_lightning.backbones import *
from lpips_lightning.compat import *
from lpips_lightning.data import TwoAFCDataset
from lpips_lightning.functional import *
from lpips_lightning.images import *
from lpips_lightning.io import read_image
from lpips_lightning.metrics import *
from lpips_lightning.weights import *
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(sorted(new & set("{heavy} matplotlib".split())), sorted(set(sys.modules) & set("{heavy}".split())))
"""
    assert python_with_torch(code, ROOT).strip() == "[] []"


def test_the_package_itself_imports_nothing_until_a_name_is_asked_for():
    code = """
import sys, lpips_lightning, {}
print("torch" in sys.modules, sorted(set(lpips_lightning.__all__) - set(dir(lpips_lightning))))
try:
    lpips_lightning.Lpips
except AttributeError as error:
    print(error)
"""
    said = python(code.format(", ".join(sorted(PACKAGES))), ROOT)
    assert said == "False []\nmodule 'lpips_lightning' has no attribute 'Lpips'\n"
    code = """
import sys, lpips_lightning
print("lpips_lightning.network" in sys.modules)
print(lpips_lightning.LPIPS is sys.modules["lpips_lightning.network"].LPIPS)
"""
    assert python_with_torch(code, ROOT) == "False\nTrue\n"


def test_the_import_draws_no_random_numbers():
    code = """
import torch
torch.manual_seed(0)
before = torch.get_rng_state()
from lpips_lightning import *
print(torch.equal(before, torch.get_rng_state()))
"""
    assert python_with_torch(code, ROOT).strip() == "True"


@pytest.mark.slow
def test_neither_the_import_nor_a_training_touches_the_network(tmp_path):
    code = f"""
import socket, sys, warnings
asked = []
class Shut(socket.socket):
    def connect(self, address):
        asked.append(address)
        raise OSError("no network")
    connect_ex = connect
def refuse(*args, **kwargs):
    asked.append(args)
    raise OSError("no network")
socket.socket, socket.create_connection, socket.getaddrinfo = Shut, refuse, refuse
warnings.simplefilter("ignore")
sys.path.insert(0, {str(ROOT / "tests" / "_helpers")!r})
from lpips_lightning import *
import lpips_lightning.callbacks, lpips_lightning.cli, lpips_lightning.recipes.superresolution
import boring_module as boring
from lpips_lightning.callbacks import PerceptualScores
boring.fit({str(tmp_path)!r}, [PerceptualScores("embedded", data_range=(0, 1))], boring.Boring(loss="embedded"))
print(asked, "wandb" in sys.modules and sys.modules["wandb"].run)
"""
    assert python(code, tmp_path).splitlines()[-1] in ("[] False", "[] None")


def test_the_import_does_little_beyond_its_dependencies():
    # Counted, not timed. 198,000 calls in Python 3.11, 113,000 in 3.13, most of them importlib's: a tenth of a second.
    code = """
import sys, torch, torchvision, torchmetrics
sys.dont_write_bytecode = True
before, opened, calls = set(sys.modules), [], 0
def count(frame, event, arg):
    global calls
    calls += event in ("call", "c_call")
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
sys.setprofile(count)
from lpips_lightning import *
sys.setprofile(None)
print(sorted(name for name in set(sys.modules) - before if not name.startswith("lpips_lightning")))
print([path for path in opened if not path.endswith((".py", ".pyc"))])
print(len(opened), calls)
"""
    others, files, counts = python_with_torch(code, ROOT).splitlines()
    assert (others, files) == ("[]", "[]")  # no further module, and no weights
    opened, calls = map(int, counts.split())
    assert 0 < opened < 200 and 0 < calls < 400_000


def all_modules():
    """Module name -> file, of every module that is installed. In a checkout pkgutil would find the folder in itself."""
    for folder in ("lpips_lightning", "callbacks", "recipes", "weights"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts if folder == "lpips_lightning" else ("lpips_lightning", *parts))
            yield name.removesuffix(".__init__"), path


PACKAGES = {name for name, path in all_modules() if path.name == "__init__.py"}


def public_names():
    """Module -> its ``__all__``, of every module that has one."""
    return {
        name: sorted(ast.literal_eval(statement.value))
        for name, path in all_modules()
        for statement in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
    }


def test_public_names_are_those_of_api_json():
    listed = json.loads((ROOT / "tests" / "api.json").read_text())
    found = public_names()
    for module in sorted({*listed, *found}):
        old, new = set(listed.get(module, ())), set(found.get(module, ()))
        assert new <= old, (
            f"{module} names {sorted(new - old)} in its __all__, tests/api.json does not: add a public name to both and"
            " to the CHANGELOG; a module that is no public place carries no __all__."
        )
        assert old <= new, (
            f"{module} no longer names {sorted(old - new)}, which tests/api.json lists: removing a public name breaks"
            " users. Put it back into __all__, or take it out of tests/api.json and say so in the CHANGELOG."
        )
    assert all(names == sorted(set(names)) for names in listed.values()), "tests/api.json: sort the names of a module"
    assert (len(listed), sum(map(len, listed.values()))) == (14, 144), "say the new totals here when names move"


def test_public_places_are_packages_and_every_name_resolves():
    listed = json.loads((ROOT / "tests" / "api.json").read_text())
    assert len(PACKAGES) == 23
    internal = {
        f"lpips_lightning.{name}"
        for name in (
            "cli",
            "comparison",
            "distances",
            "engine",
            "judge.results",
            "judge.server",
            "kernels",
            "runs",
            "sources",
        )
    }
    assert set(listed) == PACKAGES - internal
    for name, names in listed.items():
        module = import_module(name)
        assert not [one for one in names if not hasattr(module, one)], name
        assert set(names) <= set(dir(module)), name
        assert module.__doc__ and all(f"`{one}`" in module.__doc__ for one in names), f"{name}: say what each name is"


def test_what_type_checkers_see_is_what_is_imported():
    lazy = 0
    for name in sorted(PACKAGES):
        module = import_module(name)
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        for block in (node for node in tree.body if isinstance(node, ast.If) and node.orelse):
            (call,) = (node.value for node in block.orelse)
            homes = {f"{name}.{home}": names for home, names in ast.literal_eval(call.args[1]).items()}
            seen = {node.module: [alias.name for alias in node.names] for node in block.body}
            assert homes == seen, f"{name}: the names under TYPE_CHECKING are not those of lazy_names"
            assert sorted(one for names in homes.values() for one in names) == sorted(module.__all__)
            assert all(
                getattr(import_module(home), one) is getattr(module, one) for home in homes for one in homes[home]
            )
            lazy += 1
    assert lazy == 13


def test_every_package_folder_is_mapped_and_its_data_listed():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(setup["package-dir"].values()) == {"callbacks", "recipes", "weights"}
    assert set(setup["packages"]) == PACKAGES, "pyproject.toml: list every package, or it is not installed"
    suffixes = {pattern.removeprefix("*") for pattern in setup["package-data"]["*"]}
    for folder in ("lpips_lightning", "callbacks", "recipes", "weights"):
        assert (ROOT / folder / "__init__.py").is_file()
        not_data = (".py", ".pyc", ".jpg", ".md", ".ipynb")  # of the repository: their links lead out of the package
        tracked = [p for p in (ROOT / folder).iterdir() if p.is_file() and p.suffix not in not_data]
        for path in tracked:
            assert path.suffix in suffixes or path.name in suffixes, f"{path} would not be installed"


def test_every_file_inside_a_package_is_code_or_listed_data():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packages = {Path(*name.split(".")): [*data["*"], *data.get(name, [])] for name in PACKAGES}
    tracked = subprocess.run(["git", "ls-files", "lpips_lightning"], cwd=ROOT, capture_output=True, text=True)
    files = [Path(line) for line in tracked.stdout.splitlines() if Path(line).suffix not in (".py", ".md")]
    if not files:
        pytest.skip("no git checkout")
    for file in files:
        home = next(parent for parent in file.parents if parent in packages)
        assert any(file.relative_to(home).match(pattern) for pattern in packages[home]), (
            f"{file} would not be installed"
        )
    assert {path.suffix for path in files if "page" in path.parts} == {".html", ".js", ".css"}


def test_the_lowest_versions_are_those_that_are_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tested_extras = [
        "recipes",
        "piq",
        "timm",
        "onnx",
        "video",
        "remote",
        "s3",
        "shards",
        "parquet",
        "judge",
        "completion",
        "docs",
        "test",
    ]
    listed = [
        *project["dependencies"],
        *(name for extra in tested_extras for name in extras[extra]),
    ]
    lowest = {}
    for requirement in map(Requirement, listed):
        if requirement.name != "lpips_lightning":
            (bound,) = requirement.specifier
            lowest[requirement.name] = Version(bound.version)
    tested = [line for line in (ROOT / "tests" / "lowest.txt").read_text().splitlines() if not line.startswith("#")]
    tested = {name: Version(version) for name, version in (line.split("==") for line in tested)}
    assert {name: tested.get(name) for name in lowest} == lowest


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    tops = {p.name for p in site.iterdir() if p.suffix != ".dist-info"} - {"bin"}
    assert tops == {"lpips_lightning"}
    code = f"""
import sys; sys.path.insert(0, {str(site)!r})
import torch, lpips_lightning
from lpips_lightning import LPIPS, callbacks, recipes, weights
assert lpips_lightning.__file__.startswith({str(site)!r})
x = torch.zeros(1, 3, 64, 64)
print(float(LPIPS("alex", weights="random")(x, x)))
"""
    assert python(code, tmp_path).strip() == "0.0"
    assert any(site.glob("*.dist-info/licenses/NOTICE"))
    assert (site / "lpips_lightning" / "py.typed").is_file()
    page = site / "lpips_lightning" / "judge" / "server" / "page"
    assert {path.name for path in page.iterdir()} == {"index.html", "judge.css", "judge.js"}
