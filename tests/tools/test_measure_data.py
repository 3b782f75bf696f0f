"""tools/measure_data.py: times of data loading and model, and errors."""

import pytest
from harness import run_tool, write_config


@pytest.mark.parametrize('task', ['classification', 'detection', 'segmentation'])
def test_measures_data_of_each_task(task, tmp_path, shapes):
    config = write_config(task, tmp_path, shapes(task))
    done = run_tool('measure_data.py', config, '--samples', '4', cwd=tmp_path)
    assert f'{config}\n' in done.stdout and 'one sample' in done.stdout and 'images/s per core' in done.stdout
    assert 'LoadImageFromFile' in done.stdout and 'Pack' in done.stdout
    assert 'one step' in done.stdout and 'up with the model' in done.stdout and 'num_workers=0' in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == [config.name]


def test_errors_are_reported(tmp_path, shapes):
    done = run_tool('measure_data.py', 'gone.py', cwd=tmp_path, check=False)
    assert done.returncode == 1 and 'measure_data.py:' in done.stdout and 'gone.py' in done.stdout
    done = run_tool('measure_data.py', 'gone.py', '--processes', '0', cwd=tmp_path, check=False)
    assert done.returncode == 1 and '--processes is 0, expected at least 1' in done.stdout
    config = write_config('classification', tmp_path, shapes('classification'))
    options = ['--step-seconds', '1', '--cfg-options', 'train_dataloader.dataset.data_root=lost']
    done = run_tool('measure_data.py', config, *options, cwd=tmp_path, check=False)
    assert done.returncode == 1 and 'Traceback' not in done.stdout
    assert f'measure_data.py: measuring {config} failed' in done.stdout and 'lost' in done.stdout
