"""tools/download.py; tests/checkpoints/test_published_files.py tests the downloads."""

import os
from functools import partial

import pytest
import torch
from harness import call_tool, load_tool, run_tool
from plain_net import temporary_variants
from reference import arguments, published
from weights_server import running, temporary_published

import fcvit_mm
from fcvit_mm.checkpoints import PUBLISHED, CheckpointError, PublishedWeights, register_published
from fcvit_mm.errors import UserError
from fcvit_mm.models.variants import Variant, register_variant

main = partial(call_tool, load_tool('download.py'))


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    torch.save({'state_dict': published()}, tmp_path / 'a')
    with running() as server, temporary_variants(), temporary_published():
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
    output = capsys.readouterr().out.splitlines()
    assert len(output) == 1 + len(PUBLISHED)
    row = next(line.split() for line in output if line.startswith('cascade_mask_rcnn_dwnet_tiny '))
    assert row[1:3] == ['detector', 'configs/detection/cascade_mask_rcnn_dwnet_tiny_3x_coco.py']
    assert ' '.join(row[3:]) == 'box AP 49.9, mask AP 43.4 downloads'
    assert next(line for line in output if line.startswith('fcvit_b12 ')).split()[-3:] == ['80.9', 'by', 'hand']
    assert next(line for line in output if line.startswith('attnscale_vit_small_12 ')).split()[-2:] == [
        '-',
        'downloads',
    ]

    # For example in a script with an empty variable instead of names.
    with pytest.raises(UserError, match='--to weights has no effect without a name: add the names'):
        main(['--to', 'weights'])


def test_weights_are_downloaded_once(server, tmp_path, capsys):
    folder = tmp_path / 'weights'
    main(['tiny', '--to', str(folder)])
    output = capsys.readouterr().out
    assert 'tiny: downloaded\n' in output and f'{folder}/tiny_224.pth' in output
    assert (folder / 'tiny_224.pth.sha256').read_text().split()[0] in output
    main(['tiny', '--to', str(folder)])
    assert 'tiny: found\n' in capsys.readouterr().out and len(server.asked) == 1


def test_failed_download_does_not_prevent_others(server, tmp_path, capsys):
    with pytest.raises(
        UserError, match=r"not all weights are available:\n  - .*lost_224.pth .* 404 .*\n  - 'none' is not the name"
    ):
        main(['lost', 'none', 'tiny', '--to', str(tmp_path / 'weights')])
    assert 'tiny: downloaded' in capsys.readouterr().out
    with pytest.raises(UserError, match="^'none' is not the name"):
        main(['none'])


def test_hash_is_printed_if_it_cannot_be_saved(server, tmp_path, capsys):
    main(['tiny'])
    before = capsys.readouterr().out
    folder = tmp_path / 'home' / 'hub' / 'checkpoints'
    assert 'not remembered' not in before and str(folder) in before
    os.remove(folder / 'tiny_224.pth.sha256')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('fcvit_mm.files.os.replace', _refuse)
        main(['tiny'])
    output = capsys.readouterr().out
    assert f'(not remembered: {folder} cannot be written)' in output
    assert before.splitlines()[-1].strip() in output


def _refuse(*args):
    raise PermissionError(13, 'Permission denied')


def test_command_has_exit_status_and_message(tmp_path):
    done = run_tool('download.py', 'fcvit_tiny', '--to', tmp_path, cwd=tmp_path, check=False)
    assert done.returncode == 1 and 'Traceback' not in done.stdout and not os.listdir(tmp_path)
    assert done.stdout.startswith('download.py: fcvit_tiny must be downloaded by hand: open https://drive')
    assert f'save it as {tmp_path}/fcvit_tiny.pth (or as fcvit_tiny.pth in the folder' in done.stdout


def test_weights_of_another_package(server, tmp_path, monkeypatch):
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
