"""Chance of images and of seeds, against numbers worked out by hand or by scipy."""

import numpy as np
import pytest
from scipy import stats

from polyp.metrics.difference import SignFlip, min_images, seed_margin, seed_noise, seed_p, sign_flip_tests


def test_sign_flips_agree_with_the_exact_test() -> None:
    differences = np.array([0.1, 0.2, 0.3, 0.4, -0.05, 0.1, 0.2])
    exact = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    (test,) = sign_flip_tests(differences[:, None])
    assert test.p == pytest.approx(exact)
    assert test.value == pytest.approx(differences.mean())
    # By hand: (1 + c) / 64 is below .05 for c = 0, 1, 2, so the third of the sorted means of subsets is the
    # end: of the lowest -.05; then .025, of -.05 with either .1. From the top .4, .35, and .3 alone.
    assert test.interval == pytest.approx((0.025, 0.3))
    three = sign_flip_tests(np.repeat(differences[:, None], 3, axis=1))
    assert [sign_flip.p for sign_flip in three] == pytest.approx([3 * exact] * 3)
    assert all(sign_flip.interval == pytest.approx((-0.05, 0.4)) for sign_flip in three)


def test_interval_of_many_images_is_normal() -> None:
    differences = np.random.default_rng(0).normal(0.02, 0.1, (400, 1))
    (test,) = sign_flip_tests(differences)
    error = differences.std() / 20
    assert test.interval == pytest.approx(
        (test.value - 1.96 * error, test.value + 1.96 * error), abs=0.15 * error
    )


@pytest.mark.parametrize("images", [2, 4, 5, 6, 7, 9, 15, 16, 40])
def test_interval_excludes_0_exactly_if_p_is_below_the_level(images: int) -> None:
    random = np.random.default_rng(images)
    verdicts = set()
    for comparisons in (1, 3):
        for shift in (0, 0.5, 1, 2):
            differences = random.normal(shift, 1, (images, comparisons)).round(1)  # with zeros and ties
            for test in sign_flip_tests(differences):
                is_significant = test.p < 0.05
                verdicts.add(is_significant)
                assert (test.interval is None) == (images < min_images(comparisons))
                if test.interval is None:
                    assert not is_significant
                else:
                    low, high = test.interval
                    assert low <= test.value <= high
                    assert is_significant == (low > 0 or high < 0)
    assert verdicts == ({True, False} if images > 5 else {False})


def test_min_images_by_hand() -> None:
    assert min_images(1) == 6  # 2 / 2^6 = .031, 2 / 2^5 = .063
    assert min_images(3) == 7  # 6 / 2^7 = .047


def test_single_image_and_equal_scores_have_p_1() -> None:
    assert sign_flip_tests(np.array([[0.3]])) == [SignFlip(0.3, None, 1.0)]
    assert sign_flip_tests(np.zeros((20, 1))) == [SignFlip(0.0, (0.0, 0.0), 1.0)]


def test_p_values_are_uniform_without_a_difference() -> None:
    differences = np.random.default_rng(0).normal(0, 0.1, (12, 2000))
    is_significant = [sign_flip_tests(differences[:, [place]])[0].p < 0.05 for place in range(2000)]
    assert 0.035 < np.mean(is_significant) < 0.065


def test_seed_noise_by_hand() -> None:
    # Squares around the means: .0002 with 1 degree of freedom, .0002 with 2; the single seed tells nothing.
    noise = seed_noise([[0.80, 0.82], [0.70, 0.71, 0.72], [0.5]])
    assert noise is not None and noise[1] == 3
    assert noise[0] == pytest.approx((0.0004 / 3) ** 0.5)
    assert seed_noise([[0.8], [0.7]]) is None


def test_seed_margin_has_a_p_value_of_5_percent() -> None:
    noise = (0.01, 4)
    assert seed_margin(noise, 1, 1) == pytest.approx(
        2.7764 * 0.01 * 2**0.5, rel=1e-4
    )  # t with 4 degrees of freedom
    assert seed_p(seed_margin(noise, 3, 2), noise, 3, 2) == pytest.approx(0.05)
    assert seed_p(0.1, (0.0, 1), 1, 2) == 0 and seed_p(0.0, (0.0, 1), 1, 2) == 1
