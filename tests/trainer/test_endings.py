"""How a run ends: what its audit compares with, what stops it, what it says and what it leaves."""

import pytest

from hf_unlearn import audit


def test_the_audit_of_a_run_has_the_original_that_was_measured_before_the_first_step(unlearn):
    trainer = unlearn(forget=10, unseen=10)
    original = {name: p.clone() for name, p in trainer.model.state_dict().items()}
    trainer.train()
    report = trainer.audit()
    trainer.model.load_state_dict(original)
    data = {"forget_ds": trainer.forget_ds, "retain_ds": trainer.retain_ds, "unseen_ds": trainer.unseen_ds}
    expected = audit(trainer.model, **data).metrics
    assert set(expected) <= set(report.metrics_by_model["original"])
    for name in (name for name in expected if not name.startswith("mia_")):  # ranks of almost equal losses may swap
        assert report.metrics_by_model["original"][name] == pytest.approx(expected[name], abs=1e-5), name


def test_statistics_of_other_samples_are_no_original(unlearn):
    trainer = unlearn(forget=10, unseen=10)
    trainer.train()
    statistics = trainer.unlearning_state.original_statistics
    data = {"forget_ds": trainer.forget_ds, "retain_ds": trainer.retain_ds, "unseen_ds": list(trainer.unseen_ds)[1:]}
    with pytest.raises(ValueError, match="original: holds statistics of 10 unseen samples, the audit measures 9"):
        audit(trainer.model, **data, original=statistics)


def test_a_second_run_is_compared_with_the_first_original(unlearn):
    trainer = unlearn(learning_rate=1e-2)
    trainer.train()
    before = trainer.unlearning_state
    trainer.train()
    after = trainer.unlearning_state
    assert after.metrics_before == before.metrics_before and after.original_statistics is before.original_statistics
