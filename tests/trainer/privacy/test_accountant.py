from __future__ import annotations

import math

import pytest

from trainer.privacy.accountant import ORDERS, Release, epsilon, renyi


def test_the_moments_of_abadi_2016_give_its_epsilon() -> None:
    """Section 3.2: q = 0.01, sigma = 4, delta = 1e-5 and 10 000 steps cost 1.26 by the conversion of then."""
    cost = min(10_000 * renyi(4.0, 0.01, order) - math.log(1e-5) / (order - 1) for order in ORDERS)

    assert round(cost, 2) == 1.26


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "delta", "expected"),
    [
        (256 / 60_000, 1.1, 14_062, 1e-5, 2.5966),
        (256 / 60_000, 1.12, 14_063, 1e-5, 2.5187),
        (0.01, 4.0, 10_000, 1e-5, 1.0355),
        (1.0, 2.0, 10, 1e-5, 8.0794),
        (0.1, 1.0, 60, 1e-4, 5.3925),
    ],
)
def test_epsilon_is_that_of_opacus_and_never_less(
    rate: float, noise: float, steps: int, delta: float, expected: float
) -> None:
    """Retyped from Opacus 1.6.0 (compute_rdp, get_privacy_spent), whose orders are finer below 11."""
    found = epsilon([Release(noise, rate, steps)], delta)

    assert expected - 1e-4 <= found <= expected * 1.031


@pytest.mark.parametrize(
    ("releases", "delta", "same_orders", "exact"),
    [
        ([(1.1, 256 / 60_000, 14_062)], 1e-5, 2.596981, 2.381686),
        ([(4.0, 0.01, 10_000)], 1e-5, 1.035490, 0.946999),
        ([(1.0, 1.0, 1)], 1e-5, 4.752728, 4.377178),
        ([(1.5, 0.02, 400), (3.0, 1.0, 4)], 1e-5, 3.331532, 3.071844),
        ([(1.1, 0.05, 200), (2.0, 0.1, 60), (5.0, 1.0, 10)], 1e-6, 6.507432, 5.914122),
        ([(0.6, 0.2, 5), (0.8, 1.0, 1)], 1e-3, 9.444374, 7.752973),
    ],
    ids=["mnist", "abadi", "one-gaussian", "two-mechanisms", "three-mechanisms", "little-noise"],
)
def test_epsilon_of_mixed_mechanisms_is_that_of_dp_accounting(
    releases: list[tuple[float, float, int]], delta: float, same_orders: float, exact: float
) -> None:
    """Retyped from dp-accounting 0.6.0: RdpAccountant(ORDERS), and PLDAccountant for the tight figure."""
    found = epsilon([Release(*one) for one in releases], delta)

    assert abs(found - same_orders) < 1e-5
    assert exact < found < exact * 1.25


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("exact", [0.25, 1.0, 4.0])
def test_the_gaussian_mechanism_never_costs_less_than_its_exact_epsilon(noise: float, exact: float) -> None:
    """Balle and Wang, Improving the Gaussian Mechanism, ICML 2018, theorem 8."""

    def phi(t: float) -> float:
        return math.erfc(-t / math.sqrt(2)) / 2

    a, b = 1 / (2 * noise), exact * noise
    delta = phi(a - b) - math.exp(exact) * phi(-a - b)

    assert epsilon([Release(noise, 1.0, 1)], delta) >= exact


def test_costs_add_up_whatever_their_order_and_mechanism() -> None:
    a, b = Release(1.5, 0.02, 40), Release(3.0, 1.0, 1)

    assert epsilon([a, b], 1e-5) == epsilon([b, a], 1e-5)
    assert epsilon([a, a], 1e-5) == epsilon([Release(1.5, 0.02, 80)], 1e-5)
    assert max(epsilon([a], 1e-5), epsilon([b], 1e-5)) < epsilon([a, b], 1e-5)
    assert epsilon([a, b], 1e-5) <= epsilon([a], 5e-6) + epsilon([b], 5e-6)
    assert epsilon([], 1e-5) == 0


@pytest.mark.parametrize(
    "values", [(0.0, 0.1, 1), (1.0, 0.0, 1), (1.0, 1.1, 1), (1.0, 0.1, 0), (math.inf, 1.0, 1)]
)
def test_a_release_without_a_finite_cost_is_refused(values: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="release"):
        Release(*values)
