"""The power that an audit states holds: by simulation, and in what a reader sees."""

import math

import numpy as np
import pytest
import tiny
from scipy import stats

from hf_unlearn import audit
from hf_unlearn.auditing.depth import Z, advantage
from hf_unlearn.auditing.estimates import flat, share_estimate
from hf_unlearn.auditing.power import POWER, detectable_difference
from hf_unlearn.report.meanings import meaning

PROBE = "probe_forget_accuracy"


def measured(right, samples):
    return flat({PROBE: share_estimate(right / samples, samples)})


@pytest.mark.parametrize("samples", [15, 60, 400])
@pytest.mark.parametrize("shares", [(0.2,), (0.6,), (0.55, 0.6, 0.7)])
def test_the_stated_power_holds(samples, shares):
    """Of models with just this advantage four of five are found; of retrained ones no more than 2.5 %, and noise."""
    retrained = [measured(round(share * samples), samples) for share in shares]
    difference = detectable_difference(PROBE, retrained, samples)
    mean = np.mean([of_model[PROBE] for of_model in retrained])
    generator, draws = np.random.default_rng(samples), 4000

    def found(accuracy):
        counts, times = np.unique(generator.binomial(samples, accuracy, draws), return_counts=True)
        return sum(
            int(n) for x, n in zip(counts, times, strict=True) if advantage(PROBE, measured(x, samples), retrained) > Z
        ) / draws  # fmt: skip

    print(samples, shares, difference, found(mean + difference), found(mean + difference / 2), found(mean))
    noise = 4 * math.sqrt(POWER * (1 - POWER) / draws)
    assert abs(found(mean + difference) - POWER) < noise
    assert found(mean + difference / 2) < 0.5 and found(mean) < 0.03


def test_by_hand():
    """Ten samples, a retrained model with an exact 0.2: the least count beyond the line, and the beta quantile."""
    retrained = [{PROBE: 0.2}]
    least = next(x for x in range(11) if advantage(PROBE, measured(x, 10), retrained) >= Z)
    accuracy = 0.2 + detectable_difference(PROBE, retrained, 10)
    assert stats.binom.sf(least - 1, 10, accuracy) == pytest.approx(0.8)
    assert math.isnan(detectable_difference(PROBE, [{PROBE: 0.9}], 10))


def test_retrained_models_that_differ_hide_more():
    alike, apart = [{PROBE: 0.6}, {PROBE: 0.6}], [{PROBE: 0.4}, {PROBE: 0.8}]
    assert detectable_difference(PROBE, alike, 200) < detectable_difference(PROBE, apart, 200) / 1.5


def test_the_report_says_what_the_probe_could_have_found(tmp_path):
    """Of one retrained model that the probe gets a share of right, and of one of which it gets everything right."""
    samples = tiny.samples(tiny.make("vit")[1](160))
    datasets_by_name = {"forget_ds": samples[:60], "retain_ds": samples[60:120], "unseen_ds": samples[120:]}
    model = tiny.make("vit")[0]
    settings = {"relearning": True, "resamples": 10, "training_passes": 50, **datasets_by_name}
    report = audit(model, retrained=tiny.make("vit")[0], **settings)
    expected = 100 * detectable_difference(PROBE, [report.metrics_by_model["retrained"]], 30)
    assert report.metrics["probe_detectable"] == pytest.approx(expected)
    note = next(note for note in report.notes if note.startswith("The probe was tested on 30 forget samples"))
    assert f"would have found {expected:.0f} points more" in note and "power of 80 % at the level of 5 %" in note
    html = report.to_html(tmp_path / "audit.html").read_text()
    assert "The probe was tested on 30 forget samples" in html and meaning("probe_detectable")[:40] in html.replace(
        "&#39;", "'"
    )
    report.print()
    plain = [{**sample, "pixel_values": 0.01 * sample["pixel_values"] + 3 * sample["labels"]} for sample in samples]
    settings |= {"forget_ds": plain[:60], "retain_ds": plain[60:120]}
    right = audit(model, retrained=tiny.make("vit")[0], **settings)
    assert right.metrics_by_model["retrained"]["probe_forget_accuracy"] == 1
    assert "probe_detectable" not in right.metrics
    assert any(
        "it could not have found any advantage over the retrained models' 100 %" in note for note in right.notes
    )
    alone = audit(model, **settings)
    assert "probe_detectable" not in alone.metrics and not any("The probe was tested" in note for note in alone.notes)
