"""Data sets on remote storage are not checked."""

from fcvit_mm.preflight.checks import data_problems


def test_annotations_on_remote_storage_are_not_checked(make_config):
    cfg, _ = make_config('detection', {'train_dataloader.dataset.ann_file': 'http://host/a.json'})
    assert data_problems(cfg, ['train_dataloader']) == []
    cfg.train_dataloader.dataset.update(ann_file='a.json', data_root='bucket/', backend_args=dict(backend='http'))
    assert data_problems(cfg, ['train_dataloader']) == []
