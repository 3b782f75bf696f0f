"""The table of published weights: it agrees with the networks, the configs and the published figures."""

import json
import re
from urllib.parse import urlparse

import pytest
import yaml
from harness import ROOT
from uninitialized import uninitialized
from weights_server import temporary_published

from fcvit_mm.apis.load import build_model
from fcvit_mm.checkpoints import (
    PUBLISHED,
    CheckpointError,
    PublishedWeights,
    find_published,
    is_published,
    published_classifier,
    register_published,
    with_scheme,
)
from fcvit_mm.engine.config import load_config
from fcvit_mm.errors import UserError
from fcvit_mm.models.variants import VARIANTS

FOLDERS = {'classifier': 'classification', 'detector': 'detection', 'segmentor': 'segmentation'}


@pytest.mark.parametrize('name', PUBLISHED)
def test_row_agrees_with_its_network_and_config(name):
    row = PUBLISHED[name]
    variant = VARIANTS[row.variant]
    assert row.name == name and (ROOT / row.config).is_file()
    assert row.config.startswith(f'configs/{FOLDERS[row.task]}/') and row.variant in row.config
    if row.task == 'classifier':
        assert row.config == variant.config and row.metrics == variant.metrics
        return
    entries = yaml.safe_load((ROOT / 'configs' / FOLDERS[row.task] / 'metafile.yml').read_text())['Models']
    (entry,) = [entry for entry in entries if entry['Config'] == row.config]
    figures = {key: value for result in entry['Results'] for key, value in result['Metrics'].items()}
    assert row.metrics == figures


#: Of each kind of network the variant that is built fastest.
SMALLEST = (
    'fcvit_tiny',
    'dwnet_tiny',
    'dynamic_dwnet_tiny',
    'attnscale_vit_small_12',
    'featscale_vit_small_12',
    'attnscale_cait_s24',
    'featscale_cait_s24',
)


@pytest.mark.parametrize('name', SMALLEST)
def test_key_of_a_row_exists_in_its_network(name):
    pytest.importorskip('timm')
    variant = VARIANTS[name]
    with uninitialized():
        names = variant.build().state_dict()
    assert variant.network.published_names.to_ours(PUBLISHED[name].keys) in names


def test_keys_of_all_rows_are_tested():
    built = {(VARIANTS[name].network, PUBLISHED[name].keys) for name in SMALLEST}
    for row in PUBLISHED.values():
        keys = row.keys if row.task == 'classifier' else row.keys.replace('backbone.', '', 1)
        assert (VARIANTS[row.variant].network, keys) in built
        assert (row.keys == keys) == (row.task == 'classifier')


#: Names and shapes of necks and heads as mmdet 2.28.2 and mmseg 0.30.0 build them from their own base configs, with the
#: changes of the publications' configs. Recorded once, in an environment of these versions.
OLD_NAMES = json.loads((ROOT / 'tests' / 'data' / 'openmmlab_2_names.json').read_text())


@pytest.mark.parametrize('name', [name for name in OLD_NAMES if name != 'versions'])
def test_heads_have_the_names_and_shapes_of_the_old_libraries(name):
    row = PUBLISHED[name]
    pytest.importorskip('mmdet' if row.task == 'detector' else 'mmseg')
    cfg = load_config(str(ROOT / row.config), {'pretrained': None})
    with uninitialized():
        state_dict = build_model(cfg).state_dict()
    ours = {key: list(value.shape) for key, value in state_dict.items() if not key.startswith('backbone.')}
    assert ours == OLD_NAMES[name]


def test_every_published_result_has_weights():
    """Each config with results in the metafiles has weights in the table."""
    configs = {row.config for row in PUBLISHED.values()}
    for folder in FOLDERS.values():
        for entry in yaml.safe_load((ROOT / 'configs' / folder / 'metafile.yml').read_text())['Models']:
            assert entry['Config'] in configs or not entry.get('Results'), entry['Name']


def test_addresses_are_files_with_unique_names():
    for row in PUBLISHED.values():
        assert urlparse(row.page).scheme == 'https'
        if row.address is None:
            assert row.page.startswith('https://drive.google.com/drive/folders/') and row.file == f'{row.name}.pth'
        else:
            assert re.fullmatch(r'https://.*\.pth', row.address) and row.address.endswith('/' + row.file)
    assert len({row.file for row in PUBLISHED.values()}) == len(PUBLISHED)
    assert [row.name for row in PUBLISHED.values() if row.address and not row.confirmed] == [
        *(f'{method}_vit_small_{depth}' for method, depth in (('attnscale', 24), ('featscale', 12), ('featscale', 24))),
        'attnscale_cait_s24',
        'featscale_cait_s24',
    ]
    assert sum(str(row.address).startswith('https://github.com/Atten4Vis/') for row in PUBLISHED.values()) == 12


@pytest.mark.parametrize(
    'given', ['dwnet_tiny', 'published:dwnet_tiny', 'dwnet_tiny_in1k', 'published:dwnet_tiny_in1k']
)
def test_row_is_found_by_its_name_and_its_configs(given):
    assert find_published(given) is PUBLISHED['dwnet_tiny']


def test_unknown_name_is_refused():
    with pytest.raises(
        CheckpointError, match=r"'dwnet_tyni' is not the name .* such as dwnet_tiny, .*download.py lists"
    ):
        find_published('published:dwnet_tyni')
    with pytest.raises(CheckpointError, match=r"'' is not the name .* such as fcvit_tiny, fcvit_b12, fcvit_b24;"):
        find_published('published:')


def test_name_without_scheme_means_weights_unless_a_file_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert with_scheme('dwnet_tiny') == 'published:dwnet_tiny' and is_published('published:x')
    assert with_scheme('dwnet_tiny.pth') == 'dwnet_tiny.pth' and not is_published('dwnet_tiny')
    (tmp_path / 'dwnet_tiny').touch()
    assert with_scheme('dwnet_tiny') == 'dwnet_tiny'


def test_published_classifier_of_a_variant():
    assert published_classifier(VARIANTS['fcvit_b12']) is PUBLISHED['fcvit_b12']
    assert published_classifier(VARIANTS['inhomogeneous_dwnet_tiny']) is None


def test_weights_of_another_package():
    row = PublishedWeights('mine', 'fcvit_tiny', 'classifier', 'mine.py', 'https://a.b', 'network.0.0.layer_scale_1')
    with temporary_published():
        assert register_published(row) is PUBLISHED['mine'] is register_published(row)
        with pytest.raises(
            UserError, match="'mine' of fcvit_tiny are already registered: register these under another"
        ):
            register_published(row._replace(variant='fcvit_b12'))
        with pytest.raises(UserError, match="unknown network 'none'"):
            register_published(row._replace(variant='none', name='other'))
    assert 'mine' not in PUBLISHED
