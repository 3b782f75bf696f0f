"""Finding and loading the models of the page."""

import numpy as np
import pytest
import torch
from harness import write_config

from fcvit_mm.app.models import Model, Predictor, find_models, shrink
from fcvit_mm.checkpoints import CheckpointError
from fcvit_mm.errors import UserError


def test_models_are_found_in_pairs_and_runs(tmp_path):
    for name in ('first', 'second', 'no_checkpoint'):
        (tmp_path / name).mkdir()
        (tmp_path / name / f'{name}.py').touch()
    for path in ('first/epoch_1.pth', 'first/best_accuracy_top1_epoch_1.pth', 'first/epoch_2.pth', 'second/iter_4.pth'):
        (tmp_path / path).touch()
    found = find_models([], str(tmp_path))
    assert list(found) == ['first', 'second']
    assert found['first'].checkpoint.endswith('best_accuracy_top1_epoch_1.pth')
    pair = [str(tmp_path / 'first/first.py'), str(tmp_path / 'first/epoch_1.pth')]
    # Models of the same name get different names; a link to a run is not listed again.
    assert list(find_models([*pair, *pair, *pair])) == ['first', 'first, epoch_1.pth', 'first, epoch_1.pth (2)']
    (tmp_path / 'latest').symlink_to('second')
    found = find_models(pair, str(tmp_path))
    assert list(found) == ['first', 'first, best_accuracy_top1_epoch_1.pth', 'second']
    assert found['first'].checkpoint == pair[1]
    assert find_models([pair[0], 'published:fcvit_b12'])['first'].checkpoint == 'published:fcvit_b12'
    for pairs, runs, message in [
        ([], None, 'no model given: give a config and a checkpoint, or --runs'),
        (pair[:1], None, 'first.py has no checkpoint: give pairs'),
        (['nowhere.py', pair[1]], None, 'config nowhere.py does not exist'),
        ([pair[0], 'nowhere.pth'], None, 'checkpoint nowhere.pth does not exist'),
        ([], 'nowhere', '--runs nowhere is not a folder'),
        ([], str(tmp_path / 'no_checkpoint'), 'no run in .*no_checkpoint, expected work directories of tools/train.py'),
    ]:
        with pytest.raises(UserError, match=message):
            find_models(pairs, runs)


def test_invalid_models_are_refused(tmp_path):
    pytest.importorskip('mmpretrain')
    config = write_config('classification', tmp_path, tmp_path)
    (tmp_path / 'a.pth').write_text('no checkpoint at all')
    predictor = Predictor({'corrupt': Model(str(config), str(tmp_path / 'a.pth'))}, 'cpu')
    with pytest.raises(CheckpointError, match='a.pth is text that begins with'):
        predictor.load('corrupt')
    with pytest.raises(UserError, match="unknown model 'other', expected one of corrupt"):
        predictor.load('other')
    # MMEngine would only log a warning, and predict with random weights.
    torch.save(dict(state_dict={'backbone.stem.proj.weight': torch.ones(1)}), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='a.pth does not fit the config'):
        Predictor(predictor.models, 'cpu').load('corrupt')


def test_large_images_are_resized():
    image = np.zeros((30, 40, 3), np.uint8)
    assert shrink(image) is image
    assert shrink(image, 20).shape == (15, 20, 3)
    assert shrink(np.zeros((1, 4000, 3), np.uint8), 100).shape == (1, 100, 3)
