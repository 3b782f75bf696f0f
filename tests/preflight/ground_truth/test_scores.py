"""Scores of the ground truth that are undefined or too low."""

from fcvit_mm.preflight.ground_truth.scores import undefined_or_low


def test_undefined_and_low_scores():
    scores = {'a': 1.0, 'b': 0.9995, 'c': 0.5, 'd': -1.0, 'e': float('nan'), 'f': [0.0]}
    undefined, low = undefined_or_low(scores, 1.0)
    assert set(undefined) == {'d', 'e'} and low == {'c': 0.5}
