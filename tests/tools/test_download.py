"""tools/download.py; what it calls is tested beside fcvit_mm/checkpoints/published_files.py."""

import os
from functools import partial

import pytest
import torch
from harness import call_tool, load_tool, run_tool
from plain_net import own_rows
from reference import arguments, published
from weights_server import own_weights, running

import fcvit_mm
from fcvit_mm.checkpoints import PUBLISHED, CheckpointError, PublishedWeights, register_published
from fcvit_mm.errors import UserError
from fcvit_mm.models.variants import Variant, register_variant

main = partial(call_tool, load_tool('download.py'))


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    torch.save({'state_dict': published()}, tmp_path / 'a')
    with running() as server, own_rows(), own_weights():
        register_variant(
            Variant('micro', fcvit_mm.FCViT, dict(arguments(), out_indices=(3,)), 0.9, 'arXiv:0', 'Others')
        )
        server.files['/tiny_224.pth'] = (tmp_path / 'a').read_bytes()
        address = f'{server.address}/tiny_224.pth'
        row = PublishedWeights('tiny', 'micro', 'classifier', 'tiny.py', 'https://a.b', 'network.0.0.layer_scale_1')
        register_published(row._replace(address=address))
        register_published(row._replace(name='lost', address=address.replace('tiny', 'lost')))
        yield server


def test_names_are_listed(capsys):
    main([])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 + len(PUBLISHED)
    row = next(line.split() for line in said if line.startswith('cascade_mask_rcnn_dwnet_tiny '))
    assert row[1:3] == ['detector', 'configs/detection/cascade_mask_rcnn_dwnet_tiny_3x_coco.py']
    assert ' '.join(row[3:]) == 'box AP 49.9, mask AP 43.4 downloads'
    assert next(line for line in said if line.startswith('fcvit_b12 ')).split()[-3:] == ['80.9', 'by', 'hand']
    assert next(line for line in said if line.startswith('attnscale_vit_small_12 ')).split()[-2:] == ['-', 'downloads']

    # As in a script whose variable of the names is empty.
    with pytest.raises(UserError, match='--to weights has no effect without a name: add the names'):
        main(['--to', 'weights'])


def test_a_folder_is_filled(server, tmp_path, capsys):
    folder = tmp_path / 'weights'
    main(['tiny', '--to', str(folder)])
    said = capsys.readouterr().out
    assert 'tiny: downloaded\n' in said and f'{folder}/tiny_224.pth' in said
    assert (folder / 'tiny_224.pth.sha256').read_text().split()[0] in said
    main(['tiny', '--to', str(folder)])
    assert 'tiny: found\n' in capsys.readouterr().out and len(server.asked) == 1


def test_what_fails_does_not_keep_the_others(server, tmp_path, capsys):
    with pytest.raises(
        UserError, match=r"not all weights are available:\n  - .*lost_224.pth .* 404 .*\n  - 'none' is not the name"
    ):
        main(['lost', 'none', 'tiny', '--to', str(tmp_path / 'weights')])
    assert 'tiny: downloaded' in capsys.readouterr().out
    with pytest.raises(UserError, match="^'none' is not the name"):
        main(['none'])


def test_a_hash_that_cannot_be_remembered_is_told_all_the_same(server, tmp_path, capsys):
    main(['tiny'])
    before = capsys.readouterr().out
    folder = tmp_path / 'home' / 'hub' / 'checkpoints'
    assert 'not remembered' not in before and str(folder) in before
    os.remove(folder / 'tiny_224.pth.sha256')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('fcvit_mm.files.os.replace', _refuse)
        main(['tiny'])
    said = capsys.readouterr().out
    assert f'(not remembered: {folder} cannot be written)' in said
    assert before.splitlines()[-1].strip() in said


def _refuse(*args):
    raise PermissionError(13, 'Permission denied')


def test_as_a_command(tmp_path):
    done = run_tool('download.py', 'fcvit_tiny', '--to', tmp_path, cwd=tmp_path, check=False)
    assert done.returncode == 1 and 'Traceback' not in done.stdout and not os.listdir(tmp_path)
    assert done.stdout.startswith('download.py: fcvit_tiny must be downloaded by hand: open https://drive')
    assert f'save it as {tmp_path}/fcvit_tiny.pth (or as fcvit_tiny.pth in the folder' in done.stdout


def test_a_network_of_another_package(server, tmp_path, monkeypatch):
    (tmp_path / 'my_weights.py').write_text(
        'from fcvit_mm.checkpoints import PUBLISHED, register_published\n'
        "register_published(PUBLISHED['tiny']._replace(name='mine'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    main(['mine', '--import', 'my_weights', '--to', str(tmp_path / 'weights')])
    assert (tmp_path / 'weights' / 'tiny_224.pth').is_file()
    with pytest.raises(CheckpointError, match='has changed'):
        (tmp_path / 'weights' / 'tiny_224.pth.sha256').write_text('0  tiny_224.pth\n')
        fcvit_mm.checkpoints.fetch_published('mine', str(tmp_path / 'weights'))
