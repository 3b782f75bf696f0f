"""The command report.py."""

import pytest

from fcvit_mm.analysis import report
from fcvit_mm.errors import UserError


def test_report_is_written(tmp_path, command, image_folder, classifier, classifier_checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(report, 'SECTIONS', [section for section in report.SECTIONS if section[0] == 'Network'])
    command('report')(
        [classifier, classifier_checkpoint, str(image_folder), '--size', '32', '--out', str(tmp_path / 'out')]
    )
    path = tmp_path / 'out' / 'report_fcvit_tiny_in1k.html'
    assert capsys.readouterr().out.split() == [str(path)]
    page = path.read_text()
    assert '<title>Analysis of fcvit_tiny_in1k</title>' in page and '32 x 32 pixels (height x width)' in page
    assert classifier_checkpoint in page and '2 images' in page


def test_corrupt_images_are_refused(tmp_path, command, image_folder, classifier, classifier_checkpoint):
    corrupt = image_folder / 'corrupt.png'
    corrupt.write_bytes((image_folder / '0.png').read_bytes()[:100])
    with pytest.raises(UserError, match='corrupt.png cannot be decoded'):
        command('report')([classifier, classifier_checkpoint, str(corrupt), '--out', str(tmp_path / 'out')])
    assert not (tmp_path / 'out').exists()
