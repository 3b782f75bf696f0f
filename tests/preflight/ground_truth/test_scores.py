"""Scores of the ground truth that are undefined or too low."""

from mmengine.dataset import BaseDataset, ConcatDataset

from fcvit_mm.preflight.ground_truth.scores import Split, undefined_or_low
from fcvit_mm.preflight.limits import TimeLimit


class Names(BaseDataset):
    def load_data_list(self):
        return [dict(img_path='a'), dict(img_path='b')]


def test_entries_of_wrapped_data_sets_are_not_copied():
    leaf = Names(serialize_data=False)
    first, second = leaf.data_list
    infos = Split(ConcatDataset([leaf, leaf]), [leaf], {}, TimeLimit()).infos
    assert all(info is expected for info, expected in zip(infos, (first, second, first, second))) and len(infos) == 4
    assert leaf.get_data_info(1) == dict(img_path='b', sample_idx=1) and second == dict(img_path='b')


def test_undefined_and_low_scores():
    scores = {'a': 1.0, 'b': 0.9995, 'c': 0.5, 'd': -1.0, 'e': float('nan'), 'f': [0.0]}
    undefined, low = undefined_or_low(scores, 1.0)
    assert set(undefined) == {'d', 'e'} and low == {'c': 0.5}
