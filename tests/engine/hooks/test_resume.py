import pytest
import torch
from mmengine.config import Config
from small_run import train

from fcvit_mm.engine.hooks.resume import (
    find_resume_point,
    is_complete,
    load_samples,
    make_resumable,
    select_resume_point,
)
from fcvit_mm.errors import LibraryError


def assert_resumes(tmp_path, start, end, **options):
    """A run that ends before iteration ``end`` resumes at ``start``, as one that does not end."""
    expected, whole = train(tmp_path / 'whole', **options)
    seen, _ = train(tmp_path / 'cut', end=end, **options)
    more, runner = train(tmp_path / 'cut', resume=True, **options)
    assert sorted(more) == list(range(start, max(expected) + 1)) and runner.iter == whole.iter
    for iteration, batch in {**seen, **more}.items():
        assert torch.equal(batch, expected[iteration]), iteration
    assert torch.equal(runner.model.fc.weight, whole.model.fc.weight)
    return expected


@pytest.mark.parametrize(
    'by_epoch, sampler, start, workers',
    [(True, 'DefaultSampler', 4, 2), (False, 'InfiniteSampler', 4, 2), (False, 'DefaultSampler', 4, 0)],
)
def test_same_images_augmented_alike(by_epoch, sampler, start, workers, tmp_path):
    expected = assert_resumes(tmp_path, start, 6, by_epoch=by_epoch, sampler=sampler, workers=workers)
    assert len(torch.cat(list(expected.values()))[:, 1:].unique()) == 3 * 3 * len(expected)  # no number twice


@pytest.mark.parametrize('by_epoch', [True, False])
def test_sigterm_resumes_inside_an_epoch(by_epoch, tmp_path):
    assert_resumes(tmp_path, 7, 6, by_epoch=by_epoch, how='SIGTERM')
    # Regular checkpoints have taken its place.
    assert not (tmp_path / 'cut' / 'interrupted.pth').exists()


def test_workers_make_no_difference(tmp_path):
    runs = [train(tmp_path / str(workers), by_epoch=True, workers=workers)[0] for workers in (0, 2)]
    for other in runs[1:]:
        assert all(torch.equal(batch, other[iteration]) for iteration, batch in runs[0].items())


def test_a_seed_that_nobody_set_is_kept(tmp_path):
    first, _ = train(tmp_path, by_epoch=True, end=6, seed=None)
    more, _ = train(tmp_path, by_epoch=True, resume=True, seed=None)
    assert torch.equal(more[4], first[4]) and torch.equal(more[5], first[5])
    other, _ = train(tmp_path / 'other', by_epoch=True, end=6, seed=None)
    assert not torch.equal(other[4], first[4])


def test_resume_point(tmp_path):
    assert find_resume_point(str(tmp_path)) is None and find_resume_point(str(tmp_path / 'none')) is None
    for name in ('epoch_1', 'epoch_2', 'best_acc_epoch_3'):
        torch.save({'a': torch.ones(1000)}, tmp_path / f'{name}.pth')
    first, second = str(tmp_path / 'epoch_1.pth'), str(tmp_path / 'epoch_2.pth')
    pointer = tmp_path / 'last_checkpoint'
    pointer.write_text(first)
    assert find_resume_point(str(tmp_path)) == first
    pointer.write_text('/moved/from/epoch_1.pth')
    assert find_resume_point(str(tmp_path)) == first
    for content in (b'', b'\xff\xfe', b'gone.pth'):
        pointer.write_bytes(content)
        assert find_resume_point(str(tmp_path)) == second
    with open(second, 'r+b') as file:
        file.truncate(1500)
    pointer.write_text(second)
    assert not is_complete(second) and find_resume_point(str(tmp_path)) == first
    pointer.write_text('s3://bucket/epoch_9.pth')
    assert find_resume_point(str(tmp_path)) == 's3://bucket/epoch_9.pth'


def test_config_keeps_its_batch_sampler():
    cfg = Config(dict(train_dataloader=dict(batch_size=2, drop_last=True, sampler=dict(type='DefaultSampler'))))
    make_resumable(cfg)
    expected = dict(type='ResumableBatchSampler', batch_sampler=dict(type='BatchSampler', drop_last=True))
    assert cfg.train_dataloader.batch_sampler == expected and 'drop_last' not in cfg.train_dataloader
    make_resumable(cfg)
    assert cfg.train_dataloader.batch_sampler == expected
    cfg = Config(dict(train_dataloader=dict(sampler=dict(type='A'), batch_sampler=dict(type='ByAspectRatio'))))
    make_resumable(cfg)
    assert cfg.train_dataloader.batch_sampler.batch_sampler.type == 'ByAspectRatio'


def test_resume_point_of_a_config(tmp_path):
    def make(**options):
        init_cfg = dict(type='Pretrained', checkpoint='a.pth')
        return Config(dict(work_dir=str(tmp_path), model=dict(backbone=dict(init_cfg=init_cfg)), **options))

    fresh = make(load_from='weights.pth')
    select_resume_point(fresh)
    assert fresh.load_from == 'weights.pth' and fresh.model.backbone.init_cfg
    nothing = make(resume=True)
    select_resume_point(nothing)
    assert nothing.resume is False and nothing.load_from is None and nothing.model.backbone.init_cfg
    torch.save({}, tmp_path / 'epoch_1.pth')
    for given, chosen in ((None, str(tmp_path / 'epoch_1.pth')), ('mine.pth', 'mine.pth')):
        cfg = make(resume=True, load_from=given)
        select_resume_point(cfg)
        # The pretrained file is not needed any more. A second time changes nothing.
        assert cfg.load_from == chosen and cfg.resume and cfg.model.backbone.init_cfg is None
        before = cfg.to_dict()
        select_resume_point(cfg)
        assert cfg.to_dict() == before


def test_a_sample_that_fails_is_named():
    class Rows:
        def __getitem__(self, index):
            return [0, 1][index]

    with pytest.raises(LibraryError, match=r'loading sample 7 of Rows failed: IndexError: list index out of range'):
        load_samples(Rows(), [0, 7])
