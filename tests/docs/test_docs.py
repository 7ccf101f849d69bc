"""The documentation: built without a warning, whole, its code run, and nothing in it that leads nowhere."""

import dataclasses
import html.parser
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import tiny_data
import yaml
from blocks import ROOT, blocks, check, commands, run
from browser import phone, serving
from filelock import FileLock
from hub_server import TOKEN
from peft import LoraConfig, get_peft_model

import hf_unlearn.demo
from hf_unlearn.comparing import Comparison
from hf_unlearn.methods import METHODS

pytest.importorskip("sphinx")
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if "site" not in path.parts)
TEXTS = {name: (DOCS / name).read_text(encoding="utf-8") for name in PAGES}
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py") if path.stem not in ("_tiny", "common"))


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
            elif name in ("src", "href", "srcset", "data", "poster"):
                self.fetched.append(value)

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built once for all workers; a warning is an error."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "site"
    with FileLock(f"{folder}.lock"):
        if not (folder / "index.html").exists():
            command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", f"{folder}-doctrees"]
            done = subprocess.run([*command, DOCS, folder], capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {
        path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html") if "_static" not in path.parts
    }


def squeezed(text):
    return re.sub(r"\s+", " ", text.replace("`", ""))


def extension(name):
    """A module of docs/_ext."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "_ext"))
        return importlib.import_module(name)


# ---- what is on the pages ---------------------------------------------------------------------------------------


def test_every_page_is_there(pages):
    assert {name.replace(".md", ".html") for name in PAGES} | {"genindex.html", "search.html"} <= set(pages)
    assert {f"tutorials/{name}.html" for name in EXAMPLES} <= set(pages) and len(EXAMPLES) == 6


def test_every_public_name_is_documented_once(pages):
    modules = extension("modules")
    ids = [part for name, page in pages.items() if name.startswith("reference/") for part in page.ids]
    assert len(modules.module_names()) > 80
    for module in modules.module_names():
        assert ids.count(f"module-{module}") == 1, module
        for name, value in modules.public(module).items():
            home = modules.homes().get(id(value), module)
            public = name if home == module else next(n for n, v in modules.public(home).items() if v is value)
            assert ids.count(f"{home}.{public}") == 1, (module, name)


def test_docstrings_are_shown(pages):
    shown = "".join(page.text for name, page in pages.items() if name.startswith("reference/"))
    text = squeezed(shown.replace("*", ""))
    modules = extension("modules")
    for module in modules.module_names():
        for value in (importlib.import_module(module), *modules.public(module).values()):
            if inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value):
                assert " ".join(squeezed(value.__doc__.replace("*", "")).split()[:3]) in text, value
    assert " object at 0x" not in shown


def test_no_mark_is_left_as_text(pages):
    for name, page in pages.items():
        assert not re.search(":py:obj:|``", page.text), name


def test_the_constructor_of_the_trainer_has_its_own_types(pages):
    text = squeezed(pages["reference/public.html"].text)
    assert "model (PreTrainedModel | PeftModel | str | None) -- a model of transformers" in text


def test_the_example_of_a_class_is_code(pages):
    code = re.findall(r'<div class="highlight-python.*?</div>', pages["reference/public.html"].source, re.DOTALL)
    for call in ("trainer.train", "report.to_html"):
        assert any(call in re.sub("<[^>]+>", "", block) for block in code), call


def test_every_method_is_in_the_catalogue(pages):
    page = pages["methods.html"]
    for name, method in METHODS.items():
        assert f"method-{name.replace('_', '-')}" in page.ids, name
        assert f'UnlearningArguments(method="{name}")' in page.text and method.paper.strip("-") in page.text, name
        for field in dataclasses.fields(method.hyperparameters):
            assert f"{field.name}{field.default}{field.metadata['help']}" in re.sub(r"\s*\n\s*", "", page.text), name
    assert len(re.findall(r"BibTeX\s*@", page.text)) == sum(method.paper != "-" for method in METHODS.values())


def test_a_method_without_its_entry_is_refused():
    catalogue = extension("catalogue")
    lacking = type("Lacking", (METHODS["npo"],), {"bibtex": ""})
    with pytest.raises(ValueError, match=r"^Lacking\.bibtex: is missing; give the entry of Zhang et al\. 2024"):
        catalogue.bibtex(lacking)


def test_a_tutorial_has_all_of_its_example(pages):
    for name in EXAMPLES:
        source = (ROOT / "examples" / f"{name}.py").read_text()
        text = squeezed(pages[f"tutorials/{name}.html"].text)
        for line in source.partition("if __name__")[0].replace('"""', "").splitlines():
            assert squeezed(line).strip().removesuffix(".") in text, line


def test_docstrings_are_converted():
    convert = extension("docstrings").convert
    lines = [
        "Of `x` and `Head`.",
        "`Head`s, `x`s.",
        "- one",
        "",
        "> Settings",
        "",
        "| a | b |",
        "|---|---|",
        "| `c` | d_ |",
        "",
        "    x = 1",
    ]
    assert convert(lines) == [
        "Of ``x`` and :py:obj:`Head`.", r":py:obj:`Head`\ s, ``x``\ s.", "", "- one", "", "**Settings**", "", "",
        ".. list-table::", "   :header-rows: 1", "", "   * - a", "     - b", "   * - ``c``", r"     - d\_", "", "",
        ".. code-block:: python", "", "    x = 1", "",
    ]  # fmt: skip


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
            path = urlsplit(link).path
            assert link.startswith("data:") or (site / name).parent.joinpath(unquote(path)).exists(), (name, link)
    assert count > 1000


def test_a_browser_shows_the_pages(site, tmp_path):
    shown = ["index.html", "methods.html", "reference/public.html", "reference/losses.html", "tutorials/whisper.html"]
    (site / "phone.htm").write_text(phone(*shown))
    with serving(site, tmp_path / "profile") as visit:
        dom, console, asked = visit("phone.htm")
        assert 'data-excess="0"' in dom
        assert all("INFO" in line for line in console), console
        assert {f"/{name}" for name in shown} <= {*asked}
        dom, _, _ = visit("search.html?q=split_forget_retain")
        assert "reference/public.html" in dom


# ---- code and commands of the pages ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder where `me/...` are tiny models and datasets, as a page's names on the Hub."""
    folder = tmp_path_factory.mktemp("pages")

    def save(name, model, processor=None):
        for part in filter(None, (model, processor)):
            part.save_pretrained(folder / "me" / name)

    def data(name, samples, change=lambda samples, split: samples):
        (folder / "me" / name).mkdir(parents=True)
        for seed, (split, size) in enumerate({"train": 48, "validation": 30, "test": 36}.items()):
            part = change(samples(size, np.random.default_rng(seed)), split)
            part.to_parquet(folder / "me" / name / f"{split}.parquet")

    def authors(samples, split):
        first = {"train": 186, "validation": 100, "test": 50}[split]
        return samples.add_column("author_id", [first + number % 6 for number in range(len(samples))])

    make, samples = tiny_data.HUB["vit"]
    model, processor = make()
    save("vit", model, processor)
    save("adapter", get_peft_model(model, LoraConfig(target_modules="all-linear")))
    data("images", samples)
    make, samples = tiny_data.HUB["text_classification"]
    for name in ("bert", "bert-that-forgot", "bert-retrained"):
        save(name, *make())
    data("messages", samples)
    make, samples = tiny_data.HUB["text"]
    save("llama", *make())
    data("books", samples, authors)
    make, samples = tiny_data.HUB["whisper"]
    for name in ("whisper", "whisper-without-84"):
        save(name, *make())
    data("recordings", samples)
    for content in (content for text in TEXTS.values() for language, content in blocks(text) if language == "yaml"):
        if name := re.match(r"# (\w+\.yaml)\n", content):
            (folder / name[1]).write_text(content)
    (folder / "released").mkdir()
    return folder


@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")
@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if re.search("^```py", text, re.MULTILINE)])
def test_the_code_of_a_page_runs(name, folder, hub, cache, monkeypatch):
    for package in ("optuna", "tensorboard"):
        if f'="{package}"' in TEXTS[name]:
            pytest.importorskip(package)
    monkeypatch.chdir(folder)
    shutil.rmtree("out", ignore_errors=True)  # another page's run
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("hf_unlearn.trainer.defaults.default_steps", lambda *sizes: 2)
    monkeypatch.setitem(hf_unlearn.demo.TRAINING, "num_train_epochs", 1)
    known = dict(METHODS)
    try:
        run(TEXTS[name], name, {"__name__": "__main__"})
    finally:  # methods that a page adds
        METHODS.clear()
        METHODS.update(known)


def test_every_command_of_a_page_is_one(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "out").mkdir(exist_ok=True)
    (folder / "out" / "unlearning.json").touch()
    seen = {check(words) for text in TEXTS.values() for words in commands(text)}
    assert seen >= {"run", "audit", "verify", "push", "compare", "benchmark", "demo", "accelerate", "make", "pip"}


def test_the_comparison_of_a_page_is_one():
    (content,) = [content for language, content in blocks(TEXTS["howto/compare_methods.md"]) if language == "yaml"]
    comparison = Comparison.from_dict(yaml.safe_load(content))
    assert set(comparison.methods) == {"nabla_tau", "orthograd", "published"} and comparison.retrained == 2


def test_the_glossary_maps_metrics_that_exist():
    from hf_unlearn.auditing.evaluate_metrics import METRICS

    table = TEXTS["glossary.md"].partition("## Names in papers")[2]
    for name in ("unlearning_impact_score", "tug_of_war", "forget_quality", "model_utility", "truth_ratio",
                 "verbatim_memorization", "extraction_strength", "run_time_ratio", "gap"):  # fmt: skip
        assert f"`{name}`" in table and name in METRICS
