import pytest
from harness import run_tool, write_config

SMALL = """
model.update(backbone=dict(init_cfg=None, arch=dict(
    _delete_=True, depths=(1, 1, 1, 1), channels=(8, 16, 24, 32), mlp_ratios=(1, 1, 1, 1))))
model['head'].update(in_channels=32)
"""


@pytest.fixture
def config(tmp_path, shapes):
    pytest.importorskip('mmpretrain')
    return write_config('classification', tmp_path, shapes('classification'), SMALL)


def test_reports_a_trial_and_writes_no_files(config, tmp_path):
    done = run_tool('check.py', config, '--resume', '--work-dir', tmp_path / 'w', cwd=tmp_path)
    assert 'data, checkpoints and classes are in order' in done.stdout
    assert 'trainable' in done.stdout and done.stdout.endswith('No problems found.\n')
    assert [path.name for path in tmp_path.iterdir()] == [config.name]


def test_problems_give_exit_status_1(config, tmp_path):
    options = ['pretrained=gone.pth', 'train_dataloader.dataset.data_root=lost']
    done = run_tool('check.py', config, '--quick', '--cfg-options', *options, cwd=tmp_path, check=False)
    assert done.returncode == 1 and 'check.py: 2 problems found before the start:' in done.stdout


def test_error_of_a_library_names_the_config(config, tmp_path):
    done = run_tool('check.py', config, '--cfg-options', 'model.head.type=NoHead', cwd=tmp_path, check=False)
    assert done.returncode == 1 and 'Traceback' not in done.stdout
    assert f'check.py: trying {config} failed: KeyError: NoHead is not in the' in done.stdout
    assert 'custom_imports' in done.stdout
