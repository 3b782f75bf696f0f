"""Detections are matched by label, box, score and mask."""

import pytest
import torch

from fcvit_mm.export.matching import match


def test_matches_have_equal_labels_and_similar_boxes_scores_and_masks():
    boxes = torch.tensor([[0.0, 0.0, 100.0, 100.0], [0.0, 0.0, 100.0, 100.0], [50.0, 50.0, 90.0, 90.0]])
    expected = boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 1])
    assert match(expected, expected) == (3, 3, 3, 0.0) and match(expected, expected).agree()
    near = boxes + torch.tensor([[0.0], [0.2], [2.0]]), expected[1] + torch.tensor([5e-4, 0, 0]), expected[2]
    matches = match(expected, near)
    assert matches.matched == 2 and matches.score == pytest.approx(5e-4, rel=1e-3) and not matches.agree()
    assert match(expected, (boxes, expected[1], expected[2].flip(0))).matched == 1
    assert match(expected, (boxes, expected[1] - 0.01, expected[2])).matched == 0
    assert match(expected, [x[:0] for x in expected]) == (3, 0, 0, 0.0)
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    others = masks.clone()
    others[0, 0, 0] = True
    assert match((*expected, masks), (*expected, others)).matched == 2
