"""Results, table and plot of a run."""

import pytest

from fcvit_mm.files import WriteError

pytest.importorskip('matplotlib')


def test_rows_contain_time_per_image_share_of_the_ceiling_and_ratios(load):
    rows = [
        dict(label='reference', times=[0.4, 0.4], multiply_adds=1e9, matrix_ceiling=4e10),
        dict(label='ours', times=[0.1, 0.3]),
    ]
    load('report').summarize(rows, batch=8, baselines=['reference'])
    assert rows[0]['ms_per_image'] == dict(median=50, low=50, high=50)
    assert rows[0]['images_per_second'] == pytest.approx(20)
    assert rows[0]['matrix_share'] == pytest.approx(0.5)
    assert rows[1]['ms_per_image']['high'] == pytest.approx(31.25)
    faster = rows[1]['times_faster_than']['reference']
    assert faster['ratio_of_medians'] == pytest.approx(2)
    assert faster['median_of_ratios'] == pytest.approx((4 + 4 / 3) / 2)


def test_report_is_written_atomically(load, tmp_path, monkeypatch):
    report = load('report')
    row = dict(label='ours', kind='ours', dtype='float32', params=1, times=[0.1, 0.2])
    report.summarize([row], batch=1, baselines=['ours'])
    machine = dict(cpu='a CPU', gpu=None, threads=1, instructions='AVX2')
    found = dict(
        title='Inference', command='speed.py', date='2026-11-25', rounds=2, baselines=['ours'], machine=machine
    )
    found.update(code=dict(commit=None, modified=[]), versions=dict(torch='2', timm='1'), rows=[row])
    table = report.write_report(found, tmp_path / 'out')
    assert '| ours | float32 | - |' not in table and '| ours | float32 |' in table
    before = {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}
    assert sorted(before) == ['plot.png', 'results.json', 'table.md'] and before['table.md'].decode() == table

    monkeypatch.setattr('fcvit_mm.files.os.replace', lambda *names: (_ for _ in ()).throw(OSError(28, 'No space left')))
    with pytest.raises(WriteError, match='could not be written'):
        report.write_report(dict(found, title='Training'), tmp_path / 'out')
    assert {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()} == before
