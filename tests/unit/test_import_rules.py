"""Import rules: layers from bottom to top, no cycles, and Lightning in few modules."""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = """weights < io adversarial distances batch distributed tracing transforms callers < kernels images sources
    < data backbones < options < engine < perceptual_distance < network < ensembles weighted_sum temporal
    < functional comparison export < compat metrics loss evaluation < calibration < runs < judge < callbacks
    < recipes"""
FLOOR = {part: number for number, floor in enumerate(FLOORS.split("<")) for part in floor.split()}
WITH_LIGHTNING = ("data.datamodules", "io.checkpoint_io", "calibration.module", "runs", "callbacks", "recipes")
LIGHTNING = {"pytorch_lightning", "lightning_fabric", "lightning", "_lightning"}
OPTION_GROUPS = {"cli.launch", "cli.loggers"}  # of several commands, among them one of the recipes
ALWAYS = {"__version__", "_lazy"}  # of the package itself, which imports nothing


@cache
def modules():
    """Name without ``lpips_lightning.`` -> file, of every module."""
    files = [*(ROOT / "lpips_lightning").rglob("*.py"), *(p for part in _BESIDE for p in (ROOT / part).rglob("*.py"))]
    names = [path.relative_to(ROOT).with_suffix("").parts for path in files]
    names = [".".join(parts[parts[0] == "lpips_lightning" :]).removesuffix(".__init__") for parts in names]
    return dict(zip(names, files, strict=True))


_BESIDE = ("callbacks", "recipes", "weights")


def imported(node, when="import"):
    """``(module, when, line)`` of each import below a node; `when` is "import", "call" (in a function) or "typing"."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, when, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, f"line {child.lineno}: imports are absolute here"
            for alias in child.names:
                full = f"{child.module}.{alias.name}"
                is_module = full.removeprefix("lpips_lightning.") in {*modules(), *ALWAYS}
                yield full if is_module else child.module, when, child.lineno
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from imported(ast.Module(child.body, []), "typing")
            yield from imported(ast.Module(child.orelse, []), when)
        else:
            in_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imported(child, "call" if in_function and when == "import" else when)


def broken_rule(module, target, when):
    """The rule that `module` breaks when it imports `target`; empty if none."""
    part, own = module.partition(".")[0], target.removeprefix("lpips_lightning.")
    below = own.partition(".")[0]
    if below in LIGHTNING:
        allowed = when == "typing" or any(f"{module}.".startswith(f"{place}.") for place in WITH_LIGHTNING)
        return "" if allowed else f"Lightning is imported in {', '.join(WITH_LIGHTNING)} only"
    if own == target != "lpips_lightning" or own in ALWAYS:  # of others
        return ""
    if module == "__init__" or (modules()[module].name == "__init__.py" and when == "typing"):
        return ""  # what a package names
    if part != "recipes" and modules().get(own, modules()["__init__"]).name == "__init__.py" and own != "weights":
        return "import a name from the module that defines it, not from a package"
    if part in ("cli", "__main__"):
        lazy = when != "import" or below in ("cli", "io")
        return "" if lazy else "`cli` imports all but `io` inside functions: its --help does without torch"
    if target == "lpips_lightning":
        return ""
    if part == "recipes" and own in OPTION_GROUPS:
        return ""
    if not {part, below} <= set(FLOOR):
        return "nobody imports `cli`" if below == "cli" else f"give `{part}` and `{below}` a place in FLOORS"
    return "" if below == part or FLOOR[below] < FLOOR[part] else f"`{part}` stands below `{below}`, or beside it"


def trees():
    for module, path in modules().items():
        yield module, path, ast.parse(path.read_text(encoding="utf-8"))


def test_every_import_follows_the_rules():
    broken = [
        f"{path.relative_to(ROOT)}:{line} imports {target}: {rule}"
        for module, path, tree in trees()
        for target, when, line in imported(tree)
        if (rule := broken_rule(module, target, when))
    ]
    assert not broken, "\n" + "\n".join(broken)
    assert len(modules()) >= 130
    assert {module.partition(".")[0] for module in modules()} >= {*FLOOR, "cli"} - {"options"}


def test_there_are_no_import_cycles():
    graph = {
        module: {
            own
            for target, when, _ in imported(tree)
            if when == "import" and (own := target.removeprefix("lpips_lightning.")) in modules() and own != module
        }
        for module, _, tree in trees()
    }
    try:
        assert len([*TopologicalSorter(graph).static_order()]) == len(modules())
    except CycleError as error:
        pytest.fail(f"modules that import each other: {' -> '.join(error.args[1])}")
    assert sum(map(len, graph.values())) > 300


@pytest.mark.parametrize(
    ("module", "target", "when", "rule"),
    [
        ("engine.graph", "lpips_lightning.network", "call", "`engine` stands below `network`, or beside it"),
        ("data.bapps", "lpips_lightning.backbones.frozen", "typing", "`data` stands below `backbones`, or beside it"),
        ("metrics.lpips", "pytorch_lightning", "import", "Lightning is imported in data.datamodules, .* only"),
        ("cli.commands", "lpips_lightning.network", "import", "`cli` imports all but `io` inside functions"),
        ("loss", "lpips_lightning.cli.commands", "call", "nobody imports `cli`"),
        ("loss", "lpips_lightning.functional", "call", "import a name from the module that defines it"),
        ("recipes.demo", "lpips_lightning.functional", "import", "^$"),
        ("recipes.demo", "lpips_lightning.cli.compare", "import", "nobody imports `cli`"),
        ("recipes.demo", "lpips_lightning.cli.launch", "import", "^$"),
        ("cli.commands", "lpips_lightning.network", "call", "^$"),
    ],
)
def test_a_broken_rule_is_named(module, target, when, rule):
    assert re.match(rule, broken_rule(module, target, when))
