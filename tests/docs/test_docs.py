"""The documentation: built without a warning, whole, and with nothing in it that leads nowhere."""

import html.parser
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import phone, serving

import hf_unlearn

pytest.importorskip("pdoc")
ROOT = Path(__file__).parents[2]
MODULES = ["hf_unlearn", *(info.name for info in pkgutil.walk_packages(hf_unlearn.__path__, "hf_unlearn."))]
MODULES = [name for name in MODULES if not name.endswith("__main__")]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


class Page(html.parser.HTMLParser):
    """The ids of a page, its links, what it fetches when it is opened, its text and its source."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.fetched, self.text = [], [], [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name == "href" and tag == "a":
                self.links.append(value)
            elif name in ("src", "href", "srcset", "data", "poster", "action"):
                self.fetched.append(value)

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site; here, as in every test, a warning is an error."""
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        importlib.import_module("build").build(folder)
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


def page_of(name):
    return f"{name.replace('.', '/')}.html"


def squeezed(text):
    return re.sub(r"\s+", " ", text.replace("`", ""))


def test_one_page_a_module_and_an_example(pages):
    wanted = {*map(page_of, MODULES), *(f"tutorial-{name}.html" for name in EXAMPLES), "index.html"}
    assert set(pages) == wanted and len(MODULES) > 80 and len(EXAMPLES) == 6


# One test for all pages: tests of one file are shared by workers, and every worker would build the site.
def test_every_public_name_is_documented(pages):
    for name in MODULES:
        module, page = importlib.import_module(name), pages[page_of(name)]
        made = {n: v for n, v in vars(module).items() if inspect.isroutine(v) or inspect.isclass(v)}
        own = [n for n, value in made.items() if value.__module__ == name and not n.startswith("_")]
        public = getattr(module, "__all__", own)
        assert set(public) <= set(page.ids), name
        text = squeezed(page.text)
        for value in (module, *(made[n] for n in public if n in made)):
            assert " ".join(squeezed(value.__doc__).split()[:3]) in text, value
        members = [part for part in page.ids if "." in part]
        assert len(members) == len(set(members)), name
        assert not [part for part in page.ids if re.search(r"(^|\.)_(?!_init__$|_version__$)", part)], name
        assert "[<code>" not in page.source and " object at 0x" not in page.text, name


def test_a_tutorial_has_all_of_its_example(pages):
    for name in EXAMPLES:
        source = (ROOT / "examples" / f"{name}.py").read_text()
        text = squeezed(pages[f"tutorial-{name}.html"].text)
        for line in source.partition("if __name__")[0].replace('"""', "").splitlines():
            assert squeezed(line).strip().removesuffix(".") in text, line


def test_links_resolve_and_nothing_is_fetched(pages, site):
    count = 0
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme == "https" and not parts.netloc.startswith("127."), (name, link)
                continue
            target = (site / name).parent.joinpath(unquote(parts.path)).resolve() if parts.path else site / name
            found = pages[target.relative_to(site.resolve() if parts.path else site).as_posix()]
            assert not parts.fragment or unquote(parts.fragment) in found.ids, (name, link)
            count += 1
        for link in page.fetched:
            assert link.startswith("data:") or (site / link).is_file(), (name, link)
    assert count > 1000
    index = pages["index.html"]
    assert set(index.links) >= {page_of(name) for name in MODULES} | {f"tutorial-{name}.html" for name in EXAMPLES}


def test_a_browser_shows_the_pages(site, tmp_path):
    shown = ["index.html", "hf_unlearn.html", "hf_unlearn/losses.html", "tutorial-whisper.html"]
    (site / "phone.htm").write_text(phone(*shown))
    with serving(site, tmp_path / "profile") as visit:
        dom, console, asked = visit("phone.htm")
        assert 'data-excess="0"' in dom and console == []
        assert {*asked} - {"/favicon.ico"} == {"/phone.htm", "/demo.png", *(f"/{name}" for name in shown)}
        dom, _, asked = visit("index.html?search=split_forget_retain")
        assert 'href="hf_unlearn.html#split_forget_retain"' in dom and "/search.js" in asked
