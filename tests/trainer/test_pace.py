"""When a run has arrived, and how its learning rate is found: by the losses of its steps."""

import math

import pytest
import torch

from hf_unlearn.targets import DistributionTarget, MaskedClassTarget
from hf_unlearn.trainer.draws import draw_counts
from hf_unlearn.trainer.pace import FIRST, HIGHEST, LAST, Observation, Pace, planned_steps

UNSEEN = torch.linspace(0.0, 2.0, 101)


def pace(**settings):
    defaults = {
        "target": DistributionTarget(UNSEEN), "need": 1.0, "retain_before": (0.1, 0.01),
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
    watched.observe(1, seen(1, spread))
    assert watched.arrived is None and watched.last_step == 100  # half of the pass is as it was
    watched.observe(2, seen(2, spread))
    assert watched.arrived == 2 and watched.last_step == 4


def test_the_mean_alone_is_no_arrival():
    watched = pace()
    for step in range(4):
        watched.observe(step, seen(step, torch.full((10,), 1.0)))
    assert watched.arrived is None


def test_retain_samples_have_to_be_back_and_get_smaller_steps_until_they_are():
    watched, spread = pace(factor=1.0), torch.linspace(0.1, 1.9, 10)
    for step in range(5):
        watched.observe(step, seen(step, spread, retain=0.5))
    assert watched.arrived is None and watched.factor < 0.7
    for step in range(5, 7):
        watched.observe(step, seen(step, spread))
    assert watched.arrived == 6


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
    assert [watched.rate(step) for step in range(15)] == [1.0] * 15
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


def test_samples_are_looked_at_again_until_it_is_known_how_fast_they_move():
    unknown = torch.full((60,), torch.nan)
    watched = pace(first_losses=unknown.clone())
    assert not watched.wants_second_look  # there is no step yet
    watched.observe(0, seen(0, torch.zeros(10)))
    assert watched.wants_second_look
    watched.look_again(1, torch.full((10,), 0.6))
    assert watched.held and not watched.wants_second_look
    assert not pace(first_losses=unknown, need=-0.5, window=watched.window).wants_second_look
    assert not pace(window=watched.window).wants_second_look  # all original losses are known


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


def test_what_is_measured_follows_the_length_of_the_run():
    assert planned_steps(1) == 15 and planned_steps(20) == 30
    for passes in (2000, 20000):
        counts = draw_counts(passes, sets_target=True)
        counted = sum(before + after for name, (before, after) in counts.items() if name != "general")
        assert counted <= 0.11 * passes
