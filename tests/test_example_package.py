"""A network of another package (tests/example_package: one file, one config) works with all functions and commands."""

import importlib
import importlib.util
import sys

import pytest
import torch
from harness import ROOT, Trained, run_tool
from models.test_family import *  # noqa: F403 (the common tests, which use the fixture ``network`` below)
from networks import Network, images
from plain_net import temporary_variants

from fcvit_mm.checkpoints import convert_checkpoint, load_pretrained
from fcvit_mm.engine.optim.layer_decay import BackboneLayerDecayConstructor
from fcvit_mm.models.variants import find_variant, register_variant

FOLDER = str(ROOT / 'tests/example_package')
sys.path.append(FOLDER)
# Import these modules before the row is registered, because temporary_variants() restores the state afterwards.
for library in ('timm', 'mmpretrain'):
    if importlib.util.find_spec(library):
        importlib.import_module(f'fcvit_mm.{library}')
with temporary_variants():
    from example_net import VARIANT, ExampleNet
CONFIG = VARIANT.config


@pytest.fixture(autouse=True, scope='module')
def row():
    """Register the variant for this module only, because other tests count the variants."""
    with temporary_variants():
        yield register_variant(VARIANT)


@pytest.fixture
def network() -> Network:
    return Network(ExampleNet, {}, variant='example_net')


def run(tool, *arguments, **options):
    """Run a command with the package tests/example_package in the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', FOLDER)
        return run_tool(tool, *arguments, **options).stdout


@pytest.fixture(scope='session')
def example(tmp_path_factory, shapes) -> Trained:
    """A training run of one epoch with the config of tests/example_package."""
    pytest.importorskip('mmpretrain')
    folder, data = tmp_path_factory.mktemp('example'), shapes('classification')
    (folder / 'data').symlink_to(data)
    output = run('train.py', CONFIG, '--work-dir', folder / 'work', cwd=folder)
    return Trained(CONFIG, str(folder / 'work/epoch_1.pth'), data, folder / 'work', output)


def test_training_and_testing(example):
    assert 'Epoch(val) [1]' in example.output and 'accuracy/top1' in example.output
    folder = example.work_dir.parent
    assert 'accuracy/top1' in run('test.py', CONFIG, example.checkpoint, '--work-dir', folder / 'test', cwd=folder)


def test_checkpoint_is_loaded_and_converted(example, tmp_path):
    expected = {
        key[len('backbone.') :]: value
        for key, value in torch.load(example.checkpoint, weights_only=False)['state_dict'].items()
        if key.startswith('backbone.')
    }
    by_command, by_function = tmp_path / 'command.pth', tmp_path / 'function.pth'
    printed = run('convert_checkpoint.py', example.checkpoint, by_command, '--import', 'example_net')
    assert 'ExampleNet' in printed
    convert_checkpoint(example.checkpoint, str(by_function))
    for file in (example.checkpoint, by_command, by_function):
        model = ExampleNet(init_cfg=dict(type='Pretrained', checkpoint=str(file)), out_indices=3)
        model.init_weights()
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    twin = ExampleNet(out_indices=3)
    load_pretrained(twin, str(by_command))
    assert torch.equal(twin.norm3.weight, expected['norm3.weight'])


def test_layer_decay_and_frozen_stages():
    model = torch.nn.Module()
    model.backbone, model.head = ExampleNet(frozen_stages=1, out_indices=3), torch.nn.Linear(20, 5)
    wrapper = dict(optimizer=dict(type='AdamW', lr=1.0))
    groups = BackboneLayerDecayConstructor(wrapper, dict(layer_decay_rate=0.5))(model).optimizer.param_groups
    assert {group['lr'] for group in groups} >= {1.0, 0.5, 0.25}
    assert not any(p.requires_grad for p in model.backbone.stages[0].parameters())


def test_timm_model_and_features(example, tmp_path):
    timm = pytest.importorskip('timm')
    pytest.importorskip('fcvit_mm.timm')
    weights = tmp_path / 'weights.pth'  # without the run's log, which timm refuses to read
    convert_checkpoint(example.checkpoint, str(weights))
    model = timm.create_model('example_net', num_classes=5, checkpoint_path=str(weights)).eval()
    assert model(images(64, 64)).shape == (2, 5)
    features = timm.create_model('example_net', features_only=True)
    assert [x.shape[1] for x in features(images(64, 64))] == features.feature_info.channels() == [8, 12, 16, 20]


def test_mmpretrain_model(example):
    mmpretrain = pytest.importorskip('mmpretrain')
    pytest.importorskip('fcvit_mm.mmpretrain')
    assert 'example_net_in1k' in mmpretrain.list_models()
    model = mmpretrain.get_model('example_net_in1k', pretrained=example.checkpoint).eval()
    assert model(images(64, 64)).shape == (2, 5)
    assert find_variant('example_net_in1k').network is ExampleNet


@pytest.mark.parametrize('kind, name', [('onnx', 'net.onnx'), ('torchscript', 'net.pt')])
def test_export(example, tmp_path, kind, name):
    from fcvit_mm.export.formats import FORMATS

    if kind != 'torchscript':
        for package in FORMATS[kind].packages:
            pytest.importorskip(package)
    run(
        'export.py',
        CONFIG,
        example.checkpoint,
        '--format',
        kind,
        '--out',
        tmp_path / name,
        '--size',
        64,
        '--rounds',
        0,
    )
    assert (tmp_path / name).stat().st_size > 1000


def test_model_card(example, tmp_path):
    run('publish_model.py', example.checkpoint, tmp_path / 'net.pth', '--config', CONFIG, '--shape', 64)
    (card,), (entry,) = tmp_path.glob('*.md'), tmp_path.glob('*.yml')
    assert 'ExampleNet' in card.read_text() and 'In Collection: ExampleNet' in entry.read_text()


def test_benchmark(tmp_path):
    numbers = ('--batch', 1, '--size', 64, '--rounds', 1, '--warmup', 0)
    names = ('--networks', 'example_net', 'example_net_reference', '--import', 'example_net')
    run('benchmark/speed.py', *names, *numbers, '--no-memory', '--no-ceilings', '--out', tmp_path)
    assert 'example_net' in (tmp_path / 'table.md').read_text()


def test_analysis(example, tmp_path):
    pytest.importorskip('matplotlib')
    image = next(example.data.glob('val/*/*'))
    for tool in ('receptive_field', 'oversmoothing'):
        run(f'analysis/{tool}.py', f'{CONFIG}@{example.checkpoint}', '--images', image, '--out', tmp_path)
    pytest.importorskip('pytorch_grad_cam')
    for tool in ('cam', 'report'):
        run(f'analysis/{tool}.py', CONFIG, example.checkpoint, image, '--out', tmp_path)
    assert (tmp_path / 'receptive_field.json').exists() and (tmp_path / 'cam.json').exists()
    (page,) = tmp_path.glob('report_*.html')
    assert 'Not shown: ' in page.read_text(), 'no attention'


def test_missing_module_is_reported(tmp_path):
    done = run_tool('convert_checkpoint.py', 'a.pth', tmp_path / 'b.pth', '--import', 'strangest', check=False)
    assert done.returncode == 1 and '--import strangest' in done.stdout and 'PYTHONPATH' in done.stdout
