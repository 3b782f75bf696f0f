"""dev/fill_tables.py writes the tables from the variants and metafiles, and reports outdated tables."""

import re
import runpy
import shutil
from pathlib import Path

import pytest

from fcvit_mm.checkpoints import PUBLISHED
from fcvit_mm.errors import UserError
from fcvit_mm.models.variants import VARIANTS

ROOT = Path(__file__).resolve().parents[2]
tool = runpy.run_path(str(ROOT / 'dev' / 'fill_tables.py'))
main, fill, Table = tool['main'], tool['fill'], tool['Table']


@pytest.fixture
def checkout(tmp_path):
    """A copy of the files that contain the tables, and of their sources."""
    for task in ('detection', 'segmentation'):
        (tmp_path / 'configs' / task).mkdir(parents=True)
        for name in ('README.md', 'metafile.yml'):
            shutil.copy(ROOT / 'configs' / task / name, tmp_path / 'configs' / task)
    # These files are not changed; the configs are then read only once.
    (tmp_path / 'configs' / 'classification').symlink_to(ROOT / 'configs' / 'classification')
    shutil.copy(ROOT / 'README.md', tmp_path)
    (tmp_path / 'docs').mkdir()
    shutil.copy(ROOT / 'docs' / 'weights.md', tmp_path / 'docs')
    return tmp_path


def test_outdated_table_is_reported_and_updated(checkout, capsys):
    readme, metafile = checkout / 'README.md', checkout / 'configs' / 'detection' / 'metafile.yml'
    before = readme.read_text()
    readme.write_text(before.replace('14,701,832', '14'))
    metafile.write_text(metafile.read_text().replace('box AP: 42.3', 'box AP: 40.0'))
    with pytest.raises(UserError, match=r'out of date in configs/detection/README.md, README.md: run python dev/fill'):
        main(['--check'], checkout)
    assert '| 14 |' in readme.read_text()
    main([], checkout)
    assert readme.read_text() == before.replace('42.3 box AP', '40.0 box AP')
    assert '| 40.0, 64.2, 46.2 |' in (checkout / 'configs' / 'detection' / 'README.md').read_text()
    assert 'written: configs/detection/README.md, README.md' in capsys.readouterr().out


def test_published_weights_are_listed_with_their_urls():
    table = tool['weights_table'](ROOT)
    assert table.count('\n') == 2 + len(PUBLISHED)
    assert '| 49.9 box AP, 43.4 mask AP | `cascade_mask_rcnn_dwnet_tiny.pth` | [download](https://github.com/' in table
    assert '| 80.9 top-1 | `fcvit_b12.pth` | [by hand](https://drive.google.com/' in table
    assert '| *`featscale_vit_small_12`* |' in table and '| `attnscale_vit_small_12` |' in table


def test_weights_of_detectors_and_segmentors_are_written(checkout):
    metafile = checkout / 'configs' / 'segmentation' / 'metafile.yml'
    before = metafile.read_text()
    first, second, *_ = re.findall(r'^    Weights: .*\n', before, re.MULTILINE)
    metafile.write_text(before.replace(first, '').replace(second, '    Weights: https://example.org/a.pth\n'))
    with pytest.raises(UserError, match='out of date in configs/segmentation/metafile.yml: run python dev/fill'):
        main(['--check'], checkout)
    main([], checkout)
    assert metafile.read_text() == before


def test_missing_marker_is_reported():
    table = Table('README.md', 'networks', lambda root: 'x\n')
    with pytest.raises(UserError, match="README.md has no '<!-- table networks -->' closed by '<!-- end of table -->'"):
        fill('# Title\n', table, ROOT)
    text = '# Title\n\n<!-- table networks -->\n\nold\n\n<!-- end of table -->\nend\n'
    assert fill(text, table, ROOT) == text.replace('old', 'x')


def test_every_classifier_with_a_config_has_an_entry():
    entries = tool['classifier_entries'](ROOT)
    for variant in VARIANTS.values():
        if variant.config is not None and not Path(variant.config).is_absolute():
            assert f'Config: {variant.config}\n' in entries
            assert f'Parameters: {variant.parameters}\n' in entries
