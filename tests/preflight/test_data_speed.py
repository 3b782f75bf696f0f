"""Measurements of data loading and model, and the number of workers computed from them."""

import re

import pytest
import torch
from harness import write_config
from mmengine.config import Config

from fcvit_mm.engine.config import load_config
from fcvit_mm.errors import LibraryError, UserError
from fcvit_mm.preflight import data_speed
from fcvit_mm.preflight.data_speed import DataSpeed, format_data_speed, measure_data

SMALL = """
model.update(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='gone.pth'), arch=dict(
    _delete_=True, depths=(1, 1, 1, 1), channels=(8, 16, 24, 32), mlp_ratios=(1, 1, 1, 1))))
model['head'].update(in_channels=32)
train_dataloader['num_workers'] = 3
"""

SPEED = DataSpeed(
    dataset='ImageNet',
    length=1_281_167,
    measured=256,
    seconds=0.004,
    waiting=0.0,
    transforms=[('LoadImageFromFile', 0.002), ('PackInputs', 0.0001)],
    batch=128,
    step_seconds=0.2,
    device='cuda:0',
    workers=1,
    cores=16,
)


@pytest.fixture
def config(tmp_path, shapes):
    pytest.importorskip('mmpretrain')
    return lambda more='': load_config(
        str(write_config('classification', tmp_path, shapes('classification'), SMALL + more)), {}
    )


def test_measures_data_loading_and_training_step(config, tmp_path):
    threads = torch.get_num_threads()
    cfg = config()
    before = cfg.pretty_text
    found = measure_data(cfg, 10)
    assert found.dataset == 'CustomDataset' and found.length == 8 and found.measured >= 10
    assert [name for name, _ in found.transforms] == ['LoadImageFromFile', 'Resize', 'PackInputs']
    assert 0 < sum(seconds for _, seconds in found.transforms) <= found.seconds < 1
    assert found.batch == 4 and found.step_seconds > 0 and found.workers == 3 and found.cores >= 1
    assert found.device in ('cpu', 'cuda:0')
    assert cfg.pretty_text == before and torch.get_num_threads() == threads
    assert not (tmp_path / 'work_dirs').exists()


def test_given_step_time_builds_no_model(config):
    found = measure_data(config("model['backbone']['type'] = 'NoSuchBackbone'"), 4, step_seconds=0.5)
    assert found.step_seconds == 0.5 and found.device == 'given' and found.length == 8
    assert '0.500 s for 4 images as given: 8 images/s' in format_data_speed(found)


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(samples=0), '--samples 0: expected at least 1'),
        (dict(step_seconds=0.0), '--step-seconds 0.0: expected more than 0'),
        (dict(step_seconds=float('nan')), '--step-seconds nan: expected more than 0'),
    ],
)
def test_numbers_out_of_range_are_refused(options, words):
    with pytest.raises(UserError, match=re.escape(words)):
        measure_data(Config(dict(train_dataloader=dict(num_workers=1))), **options)


def test_config_without_train_dataloader_is_refused():
    with pytest.raises(UserError, match='has no train_dataloader: give the config of a training run'):
        measure_data(Config(dict(model=dict(type='X'))))


def test_errors_of_the_data_set_are_reported(config):
    with pytest.raises(LibraryError, match='measuring .* failed: .*nowhere'):
        measure_data(config("train_dataloader['dataset']['data_root'] = 'nowhere'"), 4, step_seconds=1.0)


@pytest.mark.parametrize('step_seconds', [1.0, None])
def test_batch_larger_than_the_data_set_has_all_of_it(config, step_seconds):
    assert measure_data(config('train_dataloader.update(batch_size=100)'), 4, step_seconds).batch == 8


@pytest.mark.parametrize('step_seconds', [1.0, None])
def test_loader_without_a_batch_is_named(config, step_seconds):
    more = 'train_dataloader.update(batch_size=100, drop_last=True)'
    with pytest.raises(UserError, match='yields no batch: the data set is smaller than batch_size and drop_last=True'):
        measure_data(config(more), 4, step_seconds)


def test_transforms_are_restored(config, monkeypatch):
    class Pipeline:
        def __init__(self):
            self.transforms = [str, str, int]

    class Data:
        pipeline = Pipeline()

    with data_speed.timed_transforms(Data()) as times:
        assert Data.pipeline.transforms[2]('7') == 7
        Data.pipeline.transforms[1](7)
    assert Data.pipeline.transforms == [str, str, int]
    assert list(times) == ['type 3', 'type 2'] and min(times.values()) > 0


def test_number_of_workers():
    # 128 samples of 4 ms take 0.512 s of one core; a step takes 0.2 s.
    assert SPEED.needed == 3
    assert SPEED.rate(0) == pytest.approx(128 / 0.712)
    assert SPEED.rate(1) == pytest.approx(250) and SPEED.rate(2) == pytest.approx(500)
    assert SPEED.rate(3) == SPEED.rate(8) == pytest.approx(640)


@pytest.mark.parametrize(
    'change, processes, words',
    [
        (
            {},
            1,
            [
                '3 workers keep up with',
                'num_workers=1: 250 images/s, 39% of what',
                'set train_dataloader.num_workers=3',
            ],
        ),
        (dict(workers=3), 1, ['num_workers=3: 640 images/s, 100% of what']),
        (dict(workers=0), 1, ['num_workers=0: 180 images/s, 28% of what']),
        (dict(cores=2), 1, ['this machine has 2 cores: with 2 workers about 500 images/s, 78% of what']),
        (
            {},
            8,
            [
                '3 workers of each of 8 processes',
                '16 cores: with 2 workers of each of 8 processes about 500 images/s, 78%',
            ],
        ),
        (dict(cores=4), 8, ['4 cores: with 1 worker of each of 8 processes about 250 images/s']),
        (dict(step_seconds=9.0), 1, ['1 worker keeps up']),
        (dict(device='cpu'), 1, ['the model shares its cores with the workers']),
        (dict(waiting=0.003), 1, ['for 3.00 ms of these the process waited, for files or for a core used by others']),
    ],
)
def test_report(change, processes, words):
    text = format_data_speed(SPEED._replace(**change), processes)
    assert 'ImageNet, 1,281,167 samples; 256 of them timed on one core' in text
    assert 'one sample   4.00 ms: 250 images/s per core' in text
    assert re.search(r'LoadImageFromFile +2\.00 ms\n', text) and re.search(r'data set, checks, batch +1\.90 ms\n', text)
    for each in words:
        assert each in text, text


def test_small_data_set_is_read_several_times():
    assert '20 samples; 256 reads of them timed on one core' in format_data_speed(SPEED._replace(length=20))


def test_no_advice_if_the_workers_suffice():
    assert 'set train' in format_data_speed(SPEED)
    enough = format_data_speed(SPEED._replace(workers=3))
    assert 'set train' not in enough and 'cores' not in enough and 'waited' not in enough
