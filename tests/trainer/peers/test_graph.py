from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.peers.graph import Edge, edges, mixing_matrix

SITES = st.sets(st.sampled_from("abcdefghij"), min_size=1)
DENSITY = st.one_of(st.just(0.0), st.floats(0, 1))
SEED = st.integers(0, 2**31 - 1)


def reached(sites: set[str], graph: frozenset[Edge]) -> set[str]:
    found, new = set[str](), {min(sites)}
    while new:
        found |= new
        new = {b for edge in graph for a, b in (edge, edge[::-1]) if a in new} - found
    return found


@given(sites=SITES, density=DENSITY, seed=SEED)
def test_a_mixing_matrix_is_doubly_stochastic_symmetric_and_follows_the_graph(
    sites: set[str], density: float, seed: int
) -> None:
    graph = edges(sites, density, seed)
    matrix = mixing_matrix(sites, graph)
    assert np.allclose(matrix.sum(axis=0), 1)
    assert np.allclose(matrix.sum(axis=1), 1)
    assert np.array_equal(matrix, matrix.T)
    assert (matrix >= 0).all()
    assert (np.diag(matrix) > 0).all()
    names = sorted(sites)
    for i, a in enumerate(names):
        for j, b in enumerate(names[i + 1 :], i + 1):
            assert bool(matrix[i, j] > 0) is ((a, b) in graph)


@given(sites=SITES, density=DENSITY, seed=SEED)
def test_everybody_hears_of_everybody_in_the_end(sites: set[str], density: float, seed: int) -> None:
    graph = edges(sites, density, seed)
    assert reached(sites, graph) == sites
    mixed = np.linalg.matrix_power(mixing_matrix(sites, graph), 400)
    assert np.allclose(mixed, 1 / len(sites), atol=1e-3)


@given(sites=SITES, density=DENSITY, seed=SEED, order=st.randoms(use_true_random=False))
def test_the_order_in_which_sites_are_named_makes_no_other_graph(
    sites: set[str], density: float, seed: int, order: st.DataObject
) -> None:
    shuffled = sorted(sites)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert edges(shuffled, density, seed) == edges(sites, density, seed)


def test_a_ring_closes_over_those_who_are_away() -> None:
    assert edges("abcd", 0, 7) == {("a", "b"), ("b", "c"), ("c", "d"), ("a", "d")}
    assert edges("acd", 0, 7) == {("a", "c"), ("c", "d"), ("a", "d")}
    assert edges("ac", 0, 7) == {("a", "c")}
    assert edges("a", 0, 7) == set()
    assert mixing_matrix("a", edges("a", 0, 7)).tolist() == [[1.0]]
    assert mixing_matrix("ab", edges("ab", 0, 7)).tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_a_denser_graph_has_more_pairs_up_to_all_and_another_seed_other_ones() -> None:
    sites = [f"s{i}" for i in range(20)]
    sparse, dense = edges(sites, 0.1, 3), edges(sites, 0.5, 3)
    assert 20 <= len(sparse) < len(dense) < 190
    assert sparse < dense
    assert len(edges(sites, 1, 3)) == 190
    assert edges(sites, 0.1, 4) != sparse == edges(sites, 0.1, 3)
