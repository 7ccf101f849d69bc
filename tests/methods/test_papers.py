"""The papers of the methods: BibTeX entries that agree with what `paper` says."""

import re

import pytest

from hf_unlearn.methods import METHODS

PUBLISHED = [name for name, method in METHODS.items() if method.paper != "-"]


def fields(entry):
    """The fields of one BibTeX entry."""
    return dict(re.findall(r"^  (\w+) = \{(.*?)\},$", entry, re.MULTILINE | re.DOTALL))


def key(entry):
    return re.match(r"@\w+\{(\w+),\n", entry).group(1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_entry_is_whole(name):
    entry = METHODS[name].bibtex
    assert entry.count("{") == entry.count("}") and entry.endswith("\n}")
    assert {"title", "author", "year"} <= fields(entry).keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_entry_agrees_with_the_paper(name):
    method, entry = METHODS[name], fields(METHODS[name].bibtex)
    author, year = re.search(r"(\w+)(?: et al\.)? (\d{4}),", method.paper).groups()
    assert entry["year"] == year
    assert entry["author"].split(",")[0] == author
    assert ("et al." in method.paper) == (" and " in " ".join(entry["author"].split()))
    arxiv = re.search(r"arXiv (\d{4}\.\d{5})", method.paper)
    assert entry.get("eprint") == (arxiv and arxiv.group(1))
    assert entry.get("archivePrefix") == (arxiv and "arXiv")


def test_a_key_names_one_paper():
    entries = {METHODS[name].bibtex for name in PUBLISHED}
    assert len({key(entry) for entry in entries}) == len(entries)


def test_methods_of_one_paper_share_its_entry():
    by_paper = {}
    for name in PUBLISHED:
        paper = METHODS[name].paper.removeprefix("proposed here, after ")
        by_paper.setdefault(paper, set()).add(METHODS[name].bibtex)
    assert all(len(entries) == 1 for entries in by_paper.values())


def test_only_fine_tuning_has_no_paper():
    assert set(METHODS) - set(PUBLISHED) == {"finetune"} and METHODS["finetune"].bibtex == ""
