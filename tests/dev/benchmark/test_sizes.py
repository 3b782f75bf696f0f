"""Networks are timed at several image and batch sizes."""

import pytest

from fcvit_mm.errors import UserError

pytest.importorskip('timm')
pytest.importorskip('matplotlib')


def test_each_size_is_timed_and_plotted(load, results, tmp_path, capsys):
    load('sizes').main(
        ['--networks', 'fcvit_tiny', 'fcvit_tiny_reference_best', '--sizes', '64', '32', '--batches', '1', '2']
        + ['--rounds', '4', '--warmup', '0', '--threads', '1', '--trial-pixels', '2048', '--out', str(tmp_path)]
    )
    found = results(tmp_path)
    assert [(point['size'], point['batch'], point['rounds']) for point in found['points']] == [
        (32, 1, 4),
        (64, 1, 3),
        (32, 2, 4),
    ]
    for point in found['points']:
        assert {label: len(times) for label, times in point['times'].items()} == dict.fromkeys(
            ('fcvit_tiny', 'fcvit_tiny_reference_best'), point['rounds']
        )
        assert point['layouts']['fcvit_tiny'] == 'channels_last'
    table = (tmp_path / 'table.md').read_text()
    assert table.count('\n') == 5 and table.startswith('| size | batch | fcvit_tiny | fcvit_tiny_reference_best |')
    assert table in capsys.readouterr().out


def test_table_has_milliseconds_per_image_and_ratios(load):
    points = [dict(size=224, batch=2, times=dict(ours=[0.02, 0.02, 0.5], peer=[0.03, 0.03, 0.03]))]
    assert '| 224 | 2 | 10.0 | 15.0; 1.50 |' in load('sizes').format_table(['ours', 'peer'], points)


@pytest.mark.parametrize('option', ['sizes', 'batches'])
def test_refuses_numbers_below_one(load, tmp_path, option):
    with pytest.raises(UserError, match=f'--{option} is 0, expected at least 1'):
        load('sizes').main(['--networks', 'fcvit_tiny', f'--{option}', '0', '--out', str(tmp_path)])
