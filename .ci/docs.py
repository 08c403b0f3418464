"""Build the API pages from docstrings and README files; warnings and dead links are errors.

    python .ci/docs.py [FOLDER]        # build/docs by default

Every package of `lpips_lightning` has a page with the names in its ``__all__``. The page of a package with a README.md
begins with it; the README.md of the root begins the first page; the guide and the README.md of tests/ have pages of
their own.
"""

from __future__ import annotations

import html
import pkgutil
import posixpath
import re
import shutil
import sys
import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import pdoc
import pdoc.docstrings

ROOT = Path(__file__).parents[1]
FOLDERS = ("callbacks", "recipes", "weights")  # of packages that lie at the root
PAGES = {"guide": "recipes/GUIDE.md", "people": "recipes/JUDGE.md", "tests": "tests/README.md"}  # without a package


def main() -> int:
    """Write the pages.

    Returns:
        The exit code: 1 if a link leads nowhere.
    """
    out = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "build" / "docs"
    sys.path.insert(0, str(ROOT))
    modules = {name: import_module(name) for name in _names()}
    for module in modules.values():
        for public in vars(module).setdefault("__all__", []):  # without one, pdoc would import every file
            value = getattr(module, public)  # some are imported when they are first asked for
            if hasattr(value, "_fields"):  # named tuples keep strings, which pdoc looks up in another module
                value.__new__.__annotations__ = get_type_hints(value)
    modules |= {name: ModuleType(name) for name in PAGES}
    warnings.simplefilter("error")
    _write(modules, out)
    dead = _dead_links(out)
    pages = sum(1 for _ in out.rglob("*.html"))
    sys.stdout.write("".join(f"{line}\n" for line in [*dead, f"{pages} pages in {out}"]))
    return int(bool(dead))


def _names() -> list[str]:
    package = import_module("lpips_lightning")
    # In a checkout the root is on the package's path as well, and the package itself lies there.
    found = (module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg)
    packages = {f"lpips_lightning.{name}" for name in found if name != "lpips_lightning"}
    return ["lpips_lightning", *sorted(packages)]


def _write(modules: dict[str, ModuleType], out: Path) -> None:
    for name, path in _readmes().items():
        _, _, rest = (modules[name].__doc__ or "").partition("\n")
        modules[name].__doc__ = f"{_markdown(path, name)}\n{rest}"
    pdoc.render.configure(docformat="google", footer_text="lpips_lightning")
    pdoc.doc.Class.own_members = property(_members_of_ours)  # type: ignore[assignment,method-assign]
    documents = {name: pdoc.doc.Module(module) for name, module in modules.items()}
    shutil.rmtree(out, ignore_errors=True)
    for name, document in documents.items():
        page = out / _page(name)
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(_without_empty_links(pdoc.render.html_module(document, documents)), encoding="utf-8")
    (out / "index.html").write_text('<meta http-equiv="refresh" content="0; url=lpips_lightning.html">')
    (out / "search.js").write_text(pdoc.render.search_index(documents), encoding="utf-8")


def _members_of_ours(documented: pdoc.doc.Class) -> list[pdoc.doc.Doc[Any]]:
    """Members of a class and of its base classes in this package, which have no page themselves."""
    return [member for member in documented.members.values() if member.taken_from[0].startswith("lpips_lightning")]


def _without_empty_links(content: str) -> str:
    """Without pdoc's links to members that it does not show, such as the inherited `forward` of a metric."""
    ids = set(re.findall(r'\bid="([^"]+)"', content))
    link = r'<code><a href="#([^"]+)">([^<]*)</a></code>'
    return re.sub(link, lambda match: match[0] if match[1] in ids else f"<code>{match[2]}</code>", content)


def _readmes() -> dict[str, Path]:
    """README files, and others, by the module whose page begins with them."""
    named = {"lpips_lightning": "README.md", **PAGES}
    named |= {f"lpips_lightning.{folder}": f"{folder}/README.md" for folder in FOLDERS}
    return {name: ROOT / path for name, path in named.items()}


def _page(name: str) -> str:
    return f"{name.replace('.', '/')}.html"


def _markdown(path: Path, name: str) -> str:
    """A README with its images inside and its links to other README files turned into links to their pages."""
    pages = {readme.resolve(): _page(module) for module, readme in _readmes().items()}

    def relink(match: re.Match[str]) -> str:
        text, target, anchor = match["text"], match["target"], match["anchor"] or ""
        if not target:
            return match[0]
        page = pages.get((path.parent / target).resolve())
        if page is None:  # a file of the repository that has no page
            return f"{text} (`{posixpath.normpath(posixpath.join(path.parent.relative_to(ROOT).as_posix(), target))}`)"
        return f"[{text}]({posixpath.relpath(page, posixpath.dirname(_page(name)) or '.')}{anchor})"

    content = pdoc.docstrings.embed_images(path.read_text(encoding="utf-8"), path)
    link = r"(?<!!)\[(?P<text>[^\]]*)\]\((?!https?:)(?P<target>[^)#]*)(?P<anchor>#[^)]*)?\)"
    return re.sub(link, relink, content)


def _dead_links(out: Path) -> list[str]:
    scripts = re.compile("<script.*?</script>", re.DOTALL)
    contents = {page: scripts.sub("", page.read_text(encoding="utf-8")) for page in out.rglob("*.html")}
    ids = {page: set(re.findall(r'\bid="([^"]+)"', content)) for page, content in contents.items()}
    dead = []
    for page, content in contents.items():
        for link in map(html.unescape, re.findall(r'<a\b[^>]*\bhref="([^"]*)"', content)):
            if re.match(r"https?:", link):
                continue
            target, _, anchor = link.partition("#")
            place = (page.parent / target).resolve() if target else page
            if not place.exists() or (anchor and anchor not in ids[place]):
                dead.append(f"{page.relative_to(out)}: a link leads nowhere: {link}")
    return dead


if __name__ == "__main__":
    sys.exit(main())
