"""When a run has arrived, and how its learning rate is found: by the losses of its steps."""

import math

import pytest
import torch

from hf_unlearn.targets import DistributionTarget, MaskedClassTarget
from hf_unlearn.trainer.draws import draw_counts
from hf_unlearn.trainer.loss_step import others_by_now
from hf_unlearn.trainer.pace import (
    EARLY,
    FIRST,
    HIGHEST,
    LAST,
    LOWEST,
    MIN_WINDOW,
    WARM_UP,
    Observation,
    Pace,
    planned_steps,
)

UNSEEN = torch.linspace(0.0, 2.0, 101)


def pace(**settings):
    defaults = {
        "target": DistributionTarget(UNSEEN), "need": 1.0, "retain_before": torch.tensor([0.08, 0.12]),
        "first_losses": torch.zeros(20), "forget_per_step": 10, "max_steps": 100, "converges": True,
        "calibrates": True, "stops": True, "factor": FIRST,
    }  # fmt: skip
    return Pace(**{**defaults, **settings})


def seen(step, losses, retain=0.1):
    numbers = torch.arange(10) + 10 * (step % 2)
    return Observation(losses, losses, numbers, torch.full((10,), retain))


def test_a_run_arrives_where_the_losses_of_a_pass_are_those_of_unseen_samples():
    watched, spread = pace(), torch.linspace(0.1, 1.9, 10)
    watched.observe(0, seen(0, torch.zeros(10)))
    for step in range(1, MIN_WINDOW):
        watched.observe(step, seen(step, spread))
        assert watched.arrived is None and watched.last_step == 100  # some are as they were
    watched.observe(MIN_WINDOW, seen(MIN_WINDOW, spread))
    assert watched.arrived == MIN_WINDOW and watched.last_step == MIN_WINDOW + 2


def test_losses_that_chance_allows_but_that_are_all_on_the_low_side_are_no_arrival():
    """Of losses with a heavy tail a mean of half the target is within chance, where a run comes from below."""
    heavy = torch.linspace(-6.0, 1.5, 200).exp()
    target, few = DistributionTarget(heavy), torch.linspace(-6.0, 1.5, 40).exp()
    low = few * torch.where(few > 1.0, 0.7, 1.0)
    assert target._distance(low.double()) < target._chance(40)
    assert target.is_met(few) and not target.is_met(low)


def test_the_rate_warms_up():
    watched = pace(factor=1.0, calibrates=False)
    rates = [watched.rate(step) for step in range(WARM_UP + 1)]
    assert rates == pytest.approx([*(torch.arange(1, WARM_UP + 1) / WARM_UP).tolist(), 1.0])


def test_the_rate_falls_as_soon_as_the_target_is_reached_and_then_once_a_window():
    watched, factors = pace(factor=1.0, stops=False, max_steps=1000), []
    for step in range(12):
        watched.observe(step, seen(step, torch.full((10,), 0.0 if step < 2 else 3.0)))
        factors.append(watched.factor)
    assert factors[1] == 1.0 > factors[2] == factors[6] > factors[7] == factors[11]


def test_the_mean_alone_is_no_arrival():
    watched = pace()
    for step in range(4):
        watched.observe(step, seen(step, torch.full((10,), 1.0)))
    assert watched.arrived is None


def test_retain_samples_have_to_be_back_and_get_smaller_steps_until_they_are():
    watched, spread = pace(factor=1.0), torch.linspace(0.1, 1.9, 10)
    for step in range(7):
        watched.observe(step, seen(step, spread, retain=0.1 if step < EARLY else 0.5))
    assert watched.arrived is None and watched.factor < 0.7
    for step in range(7, 12):
        watched.observe(step, seen(step, spread))
    assert watched.arrived == 11


@pytest.mark.parametrize(("moves", "side"), [(0.0, 1), (5.0, -1)])
def test_the_rate_is_raised_where_nothing_moves_and_lowered_beyond_the_target(moves, side):
    watched = pace(stops=False)
    for step in range(40):
        watched.observe(step, seen(step, torch.full((10,), moves)))
    assert math.log(watched.factor / FIRST) * side > 0 and watched.factor <= HIGHEST


def test_a_rate_that_is_given_is_kept_until_it_falls_at_the_end():
    watched = pace(calibrates=False, stops=False, factor=1.0, max_steps=20)
    for step in range(20):
        watched.observe(step, seen(step, torch.zeros(10)))
    assert [watched.rate(step) for step in range(WARM_UP - 1, 15)] == [1.0] * (16 - WARM_UP)
    assert 1.0 == watched.rate(15) > watched.rate(19) > LAST and watched.rate(20) == pytest.approx(LAST)


def test_ascent_ends_when_it_is_there_and_does_not_go_on_to_decay():
    watched = pace(converges=False)
    for step in range(3):
        watched.observe(step, seen(step, torch.full((10,), 0.6 * step)))
    assert watched.arrived is None
    watched.observe(3, seen(3, torch.full((10,), 1.8)))
    assert watched.arrived == watched.last_step == 3


def test_nothing_is_raised_where_the_forget_losses_are_beyond_the_target_from_the_start():
    watched = pace(need=-0.5)
    watched.observe(0, seen(0, torch.full((10,), 3.0)))
    watched.observe(1, seen(1, torch.full((10,), 3.0)))
    assert watched.factor == FIRST


def test_a_class_is_there_once_half_of_it_costs_what_the_surest_tenth_of_others_does():
    others = torch.stack([torch.linspace(-4.0, -8.0, 50), torch.zeros(50)], dim=1)
    target = MaskedClassTarget(torch.zeros(4, 2).log_softmax(1), [0], others)
    assert not target.is_reached(torch.full((4,), 4.0)) and target.is_reached(torch.full((4,), 4.5))


def test_a_run_that_comes_no_nearer_ends_as_near_as_it_is():
    """A balance with retain samples may hold the forget losses below a target that is too high by chance."""
    for end, arrives in ((0.8, True), (0.3, False)):  # most of the way, or not
        watched = pace()
        for step in range(60):
            watched.observe(step, seen(step, torch.full((10,), min(end, 0.1 * step))))
        assert (watched.arrived is not None) == arrives
        assert not arrives or watched.arrived >= planned_steps(2)


def test_a_run_that_is_there_ends_where_retain_samples_do_not_come_back():
    watched, spread = pace(), torch.linspace(0.1, 1.9, 10)
    for step in range(40):
        watched.observe(step, seen(step, spread, retain=0.1 if step < EARLY else 0.5))
        assert watched.arrived is None or step >= planned_steps(2)
    assert watched.arrived == 20  # two windows alike, after the planned steps


@pytest.mark.parametrize("depth", [None, "retrained"])
@pytest.mark.parametrize("much", [True, False])
def test_a_run_with_little_to_forget_says_so_and_begins_slowly(unlearn, caplog, much, depth):
    """A model as it was initialised is as unsure of forget samples as of others; a deep run has as little to do."""
    settings = {"forget_target": [5.0, 5.1, 5.2]} if much else {}
    trainer = unlearn(logging_steps=1, depth=depth, reset=0.0, **settings)
    trainer.train()
    assert ("there is little to forget" in caplog.text) == (not much)
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    first = 1.0 if depth else FIRST
    assert rates[0] == pytest.approx(3e-4 / WARM_UP * (first if much else LOWEST))


@pytest.mark.parametrize(("calibrates", "counted"), [(True, EARLY), (False, 1)])
def test_losses_of_the_first_steps_are_those_of_the_original_where_these_steps_are_small(calibrates, counted):
    watched = pace(calibrates=calibrates)
    for step in range(5):
        watched.observe(step, seen(step, torch.zeros(10)))
    assert len(watched.retain_before) == 2 + 10 * counted
    again = pace(begins_with_original=False)
    again.observe(0, seen(0, torch.zeros(10)))
    assert len(again.retain_before) == 2


@pytest.mark.parametrize("settings", [{"calibrates": False}, {"need": -0.5}])
def test_a_rate_that_is_not_chosen_here_does_not_keep_a_run_from_ending(settings):
    watched, spread = pace(**settings), torch.linspace(0.1, 1.9, 10)
    for step in range(40):
        watched.observe(step, seen(step, spread, retain=0.1 if step < EARLY else 0.5))
    assert watched.arrived == 20


def test_a_resumed_pace_goes_on():
    watched, again = pace(first_losses=torch.full((20,), torch.nan)), pace()
    for step in range(3):
        watched.observe(step, seen(step, torch.full((10,), 0.1 * step)))
    again.load_state_dict(watched.state_dict())
    for one in (watched, again):
        one.observe(3, seen(3, torch.full((10,), 0.2)))
    assert again.factor == watched.factor and torch.equal(again.first_losses, watched.first_losses)
    assert again.rate(4) == watched.rate(4)


def test_ranks_are_those_among_all_forget_samples():
    """Ten samples of high loss by chance are the top of the forget dataset, not the whole of it."""
    target, others = DistributionTarget(UNSEEN), torch.linspace(0.0, 1.0, 10)
    high = torch.linspace(1.1, 2.0, 10)
    assert target.combine(high, others) < 0.1 < 0.5 < target.combine(high)


def test_samples_that_move_together_are_not_ranked_among_what_the_others_were():
    """All samples rise by one nat a step: those of a step are no higher than the others are by now."""
    target, now = DistributionTarget(UNSEEN), torch.linspace(0.05, 1.95, 20)
    ages = (torch.arange(20) % 5).float()
    latest, step = now - ages - 1.0, torch.arange(0, 20, 7)
    is_other = torch.isin(torch.arange(20), step, invert=True)
    others = others_by_now(latest, ages, now[step], step)
    assert torch.allclose(others, now[is_other])
    assert target.combine(now[step], others) < 0.01 < 0.5 < target.combine(now[step], latest[is_other])


def test_what_is_measured_follows_the_length_of_the_run():
    assert planned_steps(1) == 16 and planned_steps(20) == 20
    for passes in (2000, 20000):
        counts = draw_counts(passes, sets_target=True)
        counted = sum(before + after for name, (before, after) in counts.items() if name != "general")
        assert counted <= 0.11 * passes
