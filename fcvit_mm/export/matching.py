"""Agreement of two lists of detections."""

from typing import List, NamedTuple, Sequence

from torch import Tensor

#: Minimum IoU and maximum difference of scores of two detections that count as equal.
SAME_IOU, SAME_SCORE = 0.99, 1e-3
#: Boxes also count as equal, whatever their overlap, if no side differs by more than this many pixels.
SAME_PLACE = 0.01
#: Share of detections that may have no match: rounding decides between nearly equal scores, and at thresholds.
UNMATCHED = 0.01


class Matches(NamedTuple):
    """Agreement of two lists of detections.

    Attributes:
        expected, found (int): Lengths of the lists.
        matched (int): Pairs of the same label, an overlap of at least ``iou``, of masks too, and scores that differ by
            at most ``score``.
        score (float): Largest difference of scores within the pairs.
    """

    expected: int
    found: int
    matched: int
    score: float

    def agree(self, spare: int = 0) -> bool:
        """Check whether all but a fraction of :data:`UNMATCHED`, or ``spare`` detections, are matched."""
        most = max(self.expected, self.found)
        return most - self.matched <= max(spare, UNMATCHED * most)


def match(
    expected: Sequence[Tensor], found: Sequence[Tensor], iou: float = SAME_IOU, score: float = SAME_SCORE
) -> Matches:
    """Match detections of the same object, preferring the nearest score.

    Args:
        expected, found (Sequence[Tensor]): Boxes ``(N, 4)``, scores and labels ``(N,)``, and optionally masks
            ``(N, H, W)`` bool.
        iou (float): Minimum IoU of a pair.
        score (float): Largest difference of their scores.
    """
    from torchvision.ops import box_iou

    counts = len(expected[0]), len(found[0])
    if not min(counts):
        return Matches(*counts, 0, 0.0)
    apart = (expected[1][:, None] - found[1]).abs()
    same = box_iou(expected[0].double(), found[0].double()) >= iou
    # Boxes outside the image are clipped to lines, which have no area and therefore no overlap.
    same |= (expected[0][:, None] - found[0]).abs().amax(2) <= SAME_PLACE
    same &= apart <= score
    same &= expected[2][:, None] == found[2]
    differences: List[float] = []
    for row in range(counts[0]):
        partners = same[row].nonzero()[:, 0]
        if len(partners):
            partner = partners[apart[row, partners].argmin()]
            same[:, partner] = False
            if len(expected) > 3:
                want, have = expected[3][row], found[3][partner]
                if (want & have).sum() < iou * (want | have).sum():
                    continue
            differences.append(apart[row, partner].item())
    return Matches(*counts, len(differences), max(differences, default=0.0))
