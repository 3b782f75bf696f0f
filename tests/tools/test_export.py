"""tools/export.py: export of a small backbone to TorchScript, and the report."""

import json

import pytest
import torch
from harness import load_tool, run_tool

from fcvit_mm.apis.load import load_network
from fcvit_mm.errors import UserError
from fcvit_mm.export.parts import random_images
from fcvit_mm.export.runtimes import load_exported

CONFIG = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['fcvit_mm'], allow_failed_imports=False)
model = dict(
    type='ImageClassifier', head=dict(type='LinearClsHead', num_classes=3, in_channels=16), backbone=dict(
        type='FCViT', arch=dict(depths=(1, 1, 1, 1), channels=(16, 24, 32, 40), mlp_ratios=(2, 2, 2, 2)),
        kernel_sizes=(5, ), layer_scale_init_value=0.5, out_indices=(0, )))
"""


def test_exports_a_backbone_and_writes_a_report(tmp_path):
    pytest.importorskip('mmpretrain')
    config, checkpoint = str(tmp_path / 'small.py'), str(tmp_path / 'small.pth')
    (tmp_path / 'small.py').write_text(CONFIG)
    torch.save(dict(state_dict=load_network(config).model.state_dict()), checkpoint)
    done = run_tool(
        'export.py',
        config,
        checkpoint,
        '--format',
        'torchscript',
        '--out',
        tmp_path / 'a.pt',
        '--part',
        'backbone',
        '--optimize',
        '--size',
        50,
        '30',
        '--rounds',
        1,
        '--json',
        tmp_path / 'a.json',
    )
    assert 'optimized for inference' in done.stdout and '50x30' in done.stdout
    report = json.loads((tmp_path / 'a.json').read_text())
    assert report['part'] == 'backbone' and report['speed']['size'] == [50, 30]
    with torch.no_grad():
        (found,) = load_exported(str(tmp_path / 'a.pt'), 'torchscript')(random_images((1, 3, 33, 34)))
    backbone = load_network(config, checkpoint).model.backbone
    with torch.no_grad():
        (expected,) = backbone(random_images((1, 3, 33, 34)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_path_of_the_report_is_checked_first(tmp_path):
    command = ['export.py', 'nowhere.py', 'nowhere.pth', '--format', 'torchscript', '--out', tmp_path / 'a.pt']
    done = run_tool(*command, '--json', tmp_path, check=False)
    assert f'{tmp_path} could not be written: Is a directory' in done.stdout and 'nowhere' not in done.stdout


@pytest.mark.parametrize('report', ['a.pt', 'a.py', 'a.pth', 'link.json', '../{folder}/a.pt'])
def test_report_does_not_overwrite_other_files(report, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'link.json').symlink_to('a.pth')
    report = report.format(folder=tmp_path.name)
    command = ['a.py', 'a.pth', '--format', 'torchscript', '--out', 'a.pt', '--json']
    with pytest.raises(UserError, match=f'--json is {report}, the name of another file of this command: give another'):
        load_tool('export.py').parse_args([*command, report])
    assert load_tool('export.py').parse_args([*command, 'a.json']).json == 'a.json'
