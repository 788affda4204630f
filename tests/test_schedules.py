import pytest
import torch

from w2wpp.common.schedules import held_then_falling, one_cycle


@pytest.mark.parametrize("rise", [0.1, 0.05, 0.04])
@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 20, 25, 30])
def test_a_cycle_of_any_length_is_gone_through_to_its_end(steps: int, rise: float) -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, rates = one_cycle(optimiser, 0.5, steps, rise), []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    assert all(0 < rate <= 0.5 for rate in rates)
    if steps >= 9:
        assert max(rates) > 0.4 and rates[-1] < 0.05


def test_a_rate_is_held_and_then_falls_to_nothing():
    assert held_then_falling(0) == 0 and held_then_falling(0.01) == 0.5
    assert held_then_falling(0.02) == held_then_falling(0.49) == 1
    assert abs(held_then_falling(0.75) - 0.5) < 1e-9 and held_then_falling(1.5) < 1e-9
    assert held_then_falling(0, rise=0) == 1
