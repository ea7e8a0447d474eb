"""The example's own arithmetic: were the gradient wrong, nothing that the demo shows would mean much."""

from __future__ import annotations

import numpy as np
import pytest

from procguard.demo.train_digits import Digits, Model

SMALL = 1e-6


def loss(model: Model, pixels: np.ndarray, digits: np.ndarray) -> float:
    odds = model.forward(pixels)[1]
    return float(-np.log(odds[np.arange(len(digits)), digits]).mean())


@pytest.mark.parametrize("name", ["w1", "b1", "w2", "b2"])
def test_the_gradient_is_the_slope_of_the_loss(name: str) -> None:
    model, batch = Model(1), Digits().batch(0, 0)
    gradient = model.gradients(*batch)[name]
    place = np.unravel_index(np.abs(gradient).argmax(), gradient.shape)
    model.weights[name][place] += SMALL
    above = loss(model, *batch)
    model.weights[name][place] -= 2 * SMALL
    below = loss(model, *batch)
    assert gradient[place] == pytest.approx((above - below) / (2 * SMALL), rel=1e-4)


def test_replicas_learn_from_different_images() -> None:
    digits = Digits()
    (one, _), (again, _), (other, _) = digits.batch(3, 0), digits.batch(3, 0), digits.batch(3, 1)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_images_are_learnt_from_or_tested_with_not_both() -> None:
    digits = Digits()
    assert len(digits.train[0]) + len(digits.test[0]) == 1797
    assert len(digits.test[0]) == 360


def test_the_digest_tells_weights_apart() -> None:
    model, same = Model(1), Model(1)
    assert model.digest() == same.digest()
    same.weights["w1"][0, 0] = np.nextafter(same.weights["w1"][0, 0], 1)
    assert model.digest() != same.digest()


def test_weights_are_taken_over_as_copies() -> None:
    model, healed = Model(1), Model(2)
    healed.load(model.weights)
    assert healed.digest() == model.digest()
    healed.weights["b1"][0] = 1.0
    assert healed.digest() != model.digest()
