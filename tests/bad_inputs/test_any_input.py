"""Any text, any value: what is parsed is right, what is refused is so in one line that begins with its name."""

import copy

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unlearn import split_forget_retain
from hf_unlearn.comparing import Comparison
from hf_unlearn.data.loading import parse_forget
from hf_unlearn.hub.record_schema import RULES, check_record

TABLE = datasets.Dataset.from_dict({"label": [0, 1, 2] * 4, "says": list("abcd") * 3})
RECORD = {
    "schema_version": 3, "request": {"id": None, "kind": "samples", "samples": 1, "columns": ["x"]}, "method": {},
    "settings": {}, "weights": {"kind": "model", "before": None, "after": "0" * 64}, "audit": None, "salt": "0" * 32,
    "sample_hashes": ["0" * 32], "files": {},
}  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
FEW = settings(max_examples=60, deadline=None, derandomize=True)


def refusal(call, name):
    """What a call returns, or None where it refuses in one line."""
    try:
        return call()
    except (ValueError, TypeError) as error:
        assert type(error) in (ValueError, TypeError) and str(error).startswith(f"{name}: ")
        assert len(str(error).splitlines()) == 1
        return None


@FEW
@given(st.text(max_size=20) | st.from_regex(r"(label|says|samples|fraction)=[\w.,%-]{1,8}", fullmatch=True))
def test_forget_requests(text):
    keywords = refusal(lambda: parse_forget(text, TABLE), "forget")
    assert keywords is None or keywords.keys() <= {"column", "values", "fraction", "indices"}


@FEW
@given(st.sets(st.integers(0, 11), min_size=1, max_size=11))
def test_splits_lose_and_double_nothing(indices):
    numbered = TABLE.add_column("number", list(range(12)))
    forget_ds, retain_ds = split_forget_retain(numbered, indices=list(indices))
    assert set(forget_ds["number"]) == indices and set(retain_ds["number"]) == set(range(12)) - indices
    assert len(forget_ds) + len(retain_ds) == 12


@FEW
@given(st.floats(0.01, 0.99), st.integers(0, 99))
def test_a_share_is_that_share(fraction, seed):
    count = max(1, round(fraction * 12))
    if count < 12:
        assert len(split_forget_retain(TABLE, fraction=fraction, seed=seed)[0]) == count


@FEW
@given(st.sampled_from([field for field, _, _ in RULES]), VALUES)
def test_records(field, value):
    record = inner = copy.deepcopy(RECORD)
    *parents, name = field.split(".")
    for parent in parents:
        inner = inner[parent]
    inner[name] = value
    assert refusal(lambda: check_record(record), "record") in (None, record)


def test_the_record_that_is_changed_is_one():
    assert check_record(RECORD) == RECORD


@FEW
@given(
    st.sampled_from(
        ["requests", "methods", "seeds", "budget", "retrained", "relearning", "options", "original", "task"]
    ),
    VALUES,
)
def test_configurations(key, value):
    good = {"name": "n", "requests": {"a": {"forget": "10%"}}, "methods": ["npo"], "seeds": [0, 1]}
    comparison = refusal(lambda: Comparison.from_dict({**good, key: value}), "config")
    assert comparison is None or isinstance(comparison, Comparison)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_budget_without_end_is_none(value):
    good = {"name": "n", "requests": {"a": {"forget": "10%"}}, "methods": ["npo"]}
    with pytest.raises(ValueError, match=r"^config: budget: seconds must be a number above 0"):
        Comparison.from_dict({**good, "budget": {"seconds": value}})
