import os

import pytest
import torch
from harness import run_ranks, run_tool, start_tool, write_config

SAME = """
model = dict(
    head=dict(num_classes=5, in_channels=32),
    # Without batch statistics and random numbers, only the sum of gradients differs.
    backbone=dict(drop_path_rate=0., norm_eval=True, arch=dict(
        _delete_=True, depths=(1, 1, 1, 1), channels=(8, 16, 24, 32), mlp_ratios=(1, 1, 1, 1))),
    train_cfg=dict(_delete_=True))
data_preprocessor = dict(_delete_=True, num_classes=5, mean=[123., 116., 103.], std=[58., 57., 57.], to_rgb=True)
optim_wrapper = dict(_delete_=True, optimizer=dict(type='SGD', lr=0.1, momentum=0.9))
param_scheduler = []
randomness = dict(seed=0)
val_cfg = val_dataloader = val_evaluator = None
train_dataloader = dict(**dict(data, batch_size=int('{{$BATCH:4}}')), dataset=dict(
    type='CustomDataset', data_root='DATA', data_prefix='train', pipeline=pipeline))
"""


@pytest.fixture
def config(tmp_path, shapes):
    pytest.importorskip('mmpretrain')
    data = shapes('classification')
    return write_config('classification', tmp_path, data, SAME.replace('DATA', str(data)))


def weights(folder):
    return torch.load(folder / 'epoch_1.pth', map_location='cpu', weights_only=False)['state_dict']


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f'{key}: {text}')


def test_two_nodes_with_half_the_batch_train_the_same_weights(config, tmp_path):
    run_tool('train.py', config, '--work-dir', tmp_path / 'one')
    expected = weights(tmp_path / 'one')
    start = torch.load(tmp_path / 'one' / 'epoch_1.pth', map_location='cpu', weights_only=False)
    assert start['meta']['iter'] == 2

    env = {'NNODES': '2', 'MASTER_ADDR': '127.0.0.1', 'PORT': str(20000 + os.getpid() % 20000), 'BATCH': '2'}
    nodes = [
        start_tool(*('dist_train.sh', config, 1, '--work-dir', tmp_path / 'nodes'), env={**env, 'NODE_RANK': str(rank)})
        for rank in range(2)
    ]
    done = [node.wait(120) for node in nodes]
    assert [node.returncode for node in done] == [0, 0], '\n'.join(node.stdout for node in done)
    assert '2 CPU processes joined over gloo' in done[0].stdout
    assert_same(weights(tmp_path / 'nodes'), expected)


def test_two_processes_test_all_samples(trained, tmp_path):
    result = trained('classification')
    done = run_ranks(
        2,
        'test.py',
        result.config,
        result.checkpoint,
        '--work-dir',
        tmp_path / 'w',
        '--show-dir',
        'shown',
        cwd=tmp_path,
    )
    # The libraries draw only in the first process, which has every second image.
    assert len(list((tmp_path / 'shown').iterdir())) == 3
    assert '2 CPU processes joined over gloo' in done[0].stdout and 'accuracy/top1' in done[0].stdout
    assert 'accuracy/top1' not in done[1].stdout


def test_problems_are_reported_once_and_end_all_processes(config, tmp_path):
    lost = 'train_dataloader.dataset.data_root=lost'
    done = run_tool(*('dist_train.sh', config, 2, '--work-dir', tmp_path / 'w', '--cfg-options', lost), check=False)
    found, _, cause = done.stdout.partition('Root Cause (first observed failure)')
    assert done.returncode != 0 and found.count('/lost does not exist') == 1
    assert '/lost does not exist' in cause, 'torchrun does not report the cause'


FAILS = """
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

@METRICS.register_module()
class Fails(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return dict(accuracy={}['categories'])
"""


def test_error_in_the_first_process_ends_all_processes(trained, tmp_path, monkeypatch):
    """The first process computes the metrics, while the others wait."""
    result = trained('classification')
    (tmp_path / 'fails.py').write_text(FAILS)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    more = """
custom_imports = dict(imports=['fcvit_mm', 'fails'], allow_failed_imports=False)
test_evaluator = dict(_delete_=True, type='Fails')
"""
    config = write_config('classification', tmp_path, result.data, more)
    done = run_tool(
        'dist_test.sh', config, result.checkpoint, 2, '--work-dir', tmp_path / 'w', check=False, timeout=120
    )
    assert done.returncode != 0 and '2 CPU processes joined over gloo' in done.stdout
    assert f"test.py: testing {result.checkpoint} with {config} failed: KeyError: 'categories'" in done.stdout
