"""Chance of images and of seeds, against numbers worked out by hand or by scipy."""

import numpy as np
import pytest
from scipy import stats

from polyp.metrics.difference import holm, seed_margin, seed_noise, seed_p, sign_flip_p


def test_holm_by_hand() -> None:
    # Sorted: .01 x 4, .02 x 3, .03 x 2 (raised to .06), .5 x 1
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_sign_flips_are_those_of_the_exact_test() -> None:
    differences = np.array([0.1, 0.2, 0.3, 0.4, -0.05])
    exact = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip_p(differences[:, None])[0] == pytest.approx(exact, abs=0.01)


def test_a_single_image_and_equal_scores_tell_nothing() -> None:
    assert sign_flip_p(np.array([[0.3]]))[0] == 1
    assert sign_flip_p(np.zeros((20, 1)))[0] == 1


def test_under_the_null_five_percent_are_below_five_percent() -> None:
    differences = np.random.default_rng(0).normal(0, 0.1, (40, 2000))
    assert 0.035 < (sign_flip_p(differences, flips=2000) < 0.05).mean() < 0.065


def test_seed_noise_by_hand() -> None:
    # Squares around the means: .0002 with 1 degree of freedom, .0002 with 2; the single seed tells nothing.
    noise = seed_noise([[0.80, 0.82], [0.70, 0.71, 0.72], [0.5]])
    assert noise is not None and noise[1] == 3
    assert noise[0] == pytest.approx((0.0004 / 3) ** 0.5)
    assert seed_noise([[0.8], [0.7]]) is None


def test_the_margin_is_where_the_p_value_is_five_percent() -> None:
    noise = (0.01, 4)
    assert seed_margin(noise, 1, 1) == pytest.approx(2.7764 * 0.01 * 2**0.5, rel=1e-4)  # t with 4 degrees of freedom
    assert seed_p(seed_margin(noise, 3, 2), noise, 3, 2) == pytest.approx(0.05)
    assert seed_p(0.1, (0.0, 1), 1, 2) == 0 and seed_p(0.0, (0.0, 1), 1, 2) == 1
