"""Tests of stock configs with other backbones: the rows, the table in the docs, and failures."""

import importlib
import sys

import pytest
from harness import ROOT
from mmengine.config import Config
from mmengine.structures import BaseDataElement

from fcvit_mm.apis.stock import find_stock
from fcvit_mm.errors import UserError

#: Processes of the command import the module by its name.
sys.path.append(str(ROOT / 'dev'))
stock = importlib.import_module('check_stock_configs')

METHODS = {
    'mmdet': 'Faster R-CNN, RetinaNet, FCOS, ATSS, TOOD, RTMDet, RTMDet-Ins, YOLOX, DINO, Deformable DETR, '
    'Conditional DETR, DDQ, Mask2Former, Panoptic FPN, HTC, CondInst, CenterNet',
    'mmseg': 'PSPNet, DeepLabV3+, SegFormer, Mask2Former, OCRNet, K-Net',
}


@pytest.mark.parametrize('library', METHODS)
def test_rows_cover_these_methods(library):
    pytest.importorskip(library)
    rows = [row for row in stock.ROWS if row.config.startswith(f'{library}::')]
    for method in METHODS[library].split(', '):
        assert any(row.method.startswith(method) for row in rows), method
    for config in {row.config for row in rows}:
        find_stock(config)


def test_documentation_has_every_row():
    page = (ROOT / 'docs' / 'stock_configs.md').read_text()
    lines = [line.split(' | ') for line in page.splitlines() if line.startswith('| ')]
    for row in stock.ROWS:
        (line,) = (line for line in lines if line[:3] == [f'| {row.method}', f'`{row.config}`', row.network])
        assert line[5] == stock.NOT_TRIED or line[5].startswith('yes, ') and line[6].strip(' |'), line
    tried = sum(' | yes, ' in line for line in page.splitlines())
    assert tried + page.count(f' | {stock.NOT_TRIED} | ') == len(stock.ROWS) and tried > len(stock.ROWS) / 3


def test_table_is_updated():
    """Lines of tested rows are replaced, other lines are kept, and lines without a row are removed."""
    first, second, third = stock.ROWS[:3]
    page = f'before\n{stock.BEGIN}{stock.begin_of(second)}old |\n| gone |\n{stock.END}after'
    results = [
        stock.Result(first, '(1, 2)', 'neck (FPN) [8, 16]', 3, 'boxes'),
        stock.Result(third, error='of two\n lines | and a bar'),
    ]
    lines = stock.fill(page, results).splitlines()
    assert lines[0] == 'before' and lines[-1] == 'after' and 'gone' not in str(lines)
    lines = [line for line in lines if line.startswith('| ')][1:]
    assert len(lines) == len(stock.ROWS)
    assert lines[0] == (
        f'| {first.method} | `{first.config}` | fcvit_tiny | (1, 2) | neck (FPN) [8, 16] | yes, 3 losses | boxes |'
    )
    assert lines[1].endswith('| old |') and lines[2].endswith('no: of two lines / and a bar |  |')
    assert lines[3].startswith(stock.begin_of(stock.ROWS[3])) and stock.NOT_TRIED in lines[3]
    with pytest.raises(UserError, match='has no .*table stock configs.*add it'):
        stock.fill('nothing', results)


def test_unknown_row_is_refused():
    with pytest.raises(UserError, match='--only Nothing matches no row; the methods are Faster R-CNN, '):
        stock.main(['--only', 'Nothing'])


def test_failure_is_a_result(tmp_path):
    found = stock.check(stock.Row('None', 'mmdet::no/config'), tmp_path)
    assert 'is not a config of the installed mmdet' in found.error and not found.predicts


def sample_of(**fields):
    sample = BaseDataElement()
    for name, value in fields.items():
        setattr(sample, name, value)
    return sample


def test_predictions_are_described():
    sample = sample_of(pred_instances=dict(masks=1), pred_panoptic_seg=1)
    assert stock.described(sample) == 'masks, panoptic map'
    assert stock.described(sample_of(pred_instances={})) == 'boxes'
    assert stock.described(sample_of(pred_sem_seg=1)) == 'map of labels'
    with pytest.raises(UserError, match='expected instances or segmentation maps'):
        stock.described(sample_of())
    cfg = Config(dict(model=dict(backbone=dict(out_indices=[1, 2], output_stride=16))))
    assert stock.describe_outputs(cfg) == '(1, 2), output_stride 16'


@pytest.mark.parametrize('indices, in_index', [((2,), 0), ((1, 2), 1)])
def test_training_with_two_processes(tmp_path, indices, in_index):
    """With an unused output, the second step fails."""
    pytest.importorskip('mmseg')
    pytest.importorskip('mmdet')
    cfg = Config(
        dict(
            default_scope='mmseg',
            custom_imports=dict(imports=['fcvit_mm'], allow_failed_imports=False),
            model=dict(
                type='EncoderDecoder',
                data_preprocessor=dict(type='SegDataPreProcessor', size=(512, 512)),
                backbone=dict(
                    type='FCViT',
                    arch=dict(depths=(1, 1, 1, 1), channels=(8, 16, 24, 32), mlp_ratios=(1, 1, 1, 1)),
                    out_indices=indices,
                ),
                decode_head=dict(
                    type='FCNHead', in_channels=24, in_index=in_index, channels=8, num_classes=3, num_convs=1
                ),
                train_cfg=dict(),
                test_cfg=dict(mode='whole'),
            ),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01)),
        )
    )
    path = tmp_path / 'config.py'
    path.write_text(cfg.pretty_text)
    found = stock.run_processes(str(path))
    if in_index:
        assert 'Expected to have finished reduction' in found['error']
    else:
        assert found == dict(losses=1, predicts='map of labels')
