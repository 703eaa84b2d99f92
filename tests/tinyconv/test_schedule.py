"""Schedules: when they drop, what they remember."""

import json

import pytest

from tinyconv.schedule import Plateau, Schedule, Steps


def scales(schedule, errors):
    """The factor of each epoch, when the epochs end with these validation errors."""
    seen = []
    for epoch, error in enumerate(errors, start=1):
        seen.append(schedule.scale(epoch))
        schedule.update(error)
    return seen


def test_constant_stays():
    schedule = Schedule()
    assert scales(schedule, [0.9, 0.9, 0.9]) == [1, 1, 1]
    assert not schedule.last_stage(100)


def test_steps_drop_before_the_named_epochs():
    schedule = Steps([2, 4])
    assert scales(schedule, [0.5] * 5) == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])
    assert [schedule.last_stage(epoch) for epoch in (1, 3, 4, 9)] == [False, False, True, True]


def test_without_steps_there_is_no_last_stage():
    assert not Steps([]).last_stage(5)


@pytest.mark.parametrize("epochs", [[0], [3, 3], [5, 2], [-1, 4]])
def test_steps_must_rise(epochs):
    with pytest.raises(ValueError, match="increasing numbers from 1"):
        Steps(epochs)


def test_plateau_drops_after_patience_epochs_without_a_new_best_three_times_in_all():
    schedule = Plateau(patience=2, total=3)
    #         best best same worse | best    same same | same same |  same same
    errors = [0.9, 0.8, 0.8, 0.85, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7]
    expected = [0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert scales(schedule, errors) == pytest.approx([0.1**drops for drops in expected])
    assert schedule.last_stage(13)


def test_an_equal_error_is_no_improvement_and_a_drop_starts_the_count_again():
    schedule = Plateau(patience=3)
    assert scales(schedule, [0.5] * 8) == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01])


def test_a_plateau_goes_on_from_its_state():
    errors = [0.9, 0.8, 0.8, 0.85, 0.7, 0.7, 0.7, 0.7, 0.7]
    whole = scales(Plateau(2), errors)
    for cut in range(len(errors)):
        first, second = Plateau(2), Plateau(2)
        begun = scales(first, errors[:cut])
        second.state = json.loads(json.dumps(first.state))
        assert begun + scales(second, errors[cut:]) == whole


@pytest.mark.parametrize("arguments", [(0, 3), (5, 0)])
def test_plateau_refuses_nonsense(arguments):
    with pytest.raises(ValueError, match="at least 1"):
        Plateau(*arguments)


def test_descriptions_differ_where_the_rule_differs():
    described = [s.describe() for s in (Schedule(), Steps([3]), Steps([4]), Plateau(5), Plateau(6))]
    assert all(a != b for i, a in enumerate(described) for b in described[:i])
    assert json.loads(json.dumps(described)) == described
