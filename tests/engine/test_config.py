import importlib.util
import os
import re
from types import SimpleNamespace

import pytest
from harness import ROOT
from mmengine.config import Config, ConfigDict
from mmengine.config.lazy import LazyObject
from mmengine.hooks import CheckpointHook
from mmengine.model.weight_init import PretrainedInit
from torch import nn

from fcvit_mm.engine.config import (
    ConfigError,
    leaf_datasets,
    library_of,
    load_config,
    task_of,
    task_or_library,
    type_name,
)
from fcvit_mm.engine.hooks import NonFiniteHook
from fcvit_mm.errors import LibraryError

UPERNET = ROOT / 'configs/segmentation/upernet_fcvit_tiny_ade20k.py'
MASK_RCNN = ROOT / 'configs/detection/mask_rcnn_fcvit_b12_coco.py'


def test_work_dir_is_named_after_the_config(write):
    path = write("default_scope = 'mmseg'")
    assert load_config(path).work_dir == './work_dirs/mine'
    assert load_config(path, work_dir='w').work_dir == 'w'
    assert load_config(path, work_dir='~/w').work_dir == os.path.expanduser('~/w')
    assert load_config(write("default_scope = 'mmseg'\nwork_dir = 'v'")).work_dir == 'v'


def test_pretrained_option_sets_init_cfg():
    pytest.importorskip('mmdet')
    assert load_config(MASK_RCNN).model.backbone.init_cfg.checkpoint == 'checkpoints/fcvit_b12_in1k.pth'
    cfg = load_config(MASK_RCNN, {'pretrained': 'other.pth'})
    assert cfg.model.backbone.init_cfg == {'type': 'Pretrained', 'checkpoint': 'other.pth'}
    assert load_config(MASK_RCNN, {'pretrained': None}).model.backbone.init_cfg is None
    cfg = load_config(MASK_RCNN, {'pretrained': 'fcvit_b12'})
    assert cfg.model.backbone.init_cfg.checkpoint == cfg.pretrained == 'published:fcvit_b12'
    # Without `pretrained`, options of the model itself apply.
    cfg = load_config(MASK_RCNN, {'model.backbone.init_cfg.checkpoint': 'third.pth'})
    assert cfg.model.backbone.init_cfg.checkpoint == 'third.pth'


@pytest.mark.parametrize(
    'option, message',
    [
        ('data_root', r'is a variable.*into: train_dataloader.dataset.data_root, val_dataloader.*data_root$'),
        ('train_pipeline.3.scale', r'into: train_dataloader.dataset.pipeline.3.scale$'),
        ('train_dataloder.batch_size', 'is not part of the config. Use train_dataloader.batch_size$'),
        ('max_epochs', 'Use train_cfg.max_epochs$'),
        ('optimizer.lr', 'Use optim_wrapper.optimizer$'),
        ('data.samples_per_gpu', 'Use train_dataloader, val_dataloader'),
        ('xyz', 'xyz is not part of the config, expected one of activation_checkpointing, '),
    ],
)
def test_options_without_an_effect_are_refused(option, message):
    pytest.importorskip('mmseg')
    with pytest.raises(ConfigError, match=f'--cfg-options {option} has no effect: .*?{message}'):
        load_config(UPERNET, {option: 3})


def test_options_that_only_the_runner_reads(write, capsys):
    """A variable that the config does not use gives only a warning, because code of the config may read it."""
    path = write("default_scope = 'mmseg'\nmine = 7")
    cfg = load_config(path, {'load_from': 'a.pth', 'randomness.seed': 1, 'find_unused_parameters': True, 'mine': 8})
    assert cfg.load_from == 'a.pth' and cfg.randomness.seed == 1 and cfg.mine == 8
    assert '--cfg-options mine has no effect: mine is a variable' in capsys.readouterr().out


@pytest.mark.parametrize(
    'text, message',
    [
        (
            "data_root = 'mine/'",
            'sets data_root, which nothing reads: .* Set train_dataloader.dataset.data_root, val_dataloader.* instead',
        ),
        ('train_pipeline = []', 'sets train_pipeline, .* Set train_dataloader.dataset.pipeline instead'),
        ("pretrained = 'a.pth'", 'sets pretrained, .* Set model.backbone.init_cfg instead'),
        ('num_classes = 3', r'sets num_classes, .* Set model.decode_head.num_classes, model.auxiliary_head.num_cl'),
        ("dataset_type = 'A'", r'sets dataset_type, .* Set train_dataloader.dataset.type, val_dataloader'),
        (
            'batch_size = 1',
            'sets batch_size, which nothing reads: .* Set train_dataloader.batch_size, val_data',
        ),
        ('mine = 3\nyours = 4', 'mine.py sets mine, yours, which nothing reads$'),
        ('param_schedulers = []', r'sets param_schedulers, which nothing reads\. Did you mean param_scheduler\?$'),
        (
            'data = dict(samples_per_gpu=2)\nlr_config = dict()\nmine = 3',
            r'sets keys of OpenMMLab 1.x \(MMDetection 2.x, .*\), which nothing reads. Today: data is train_data.*'
            'test_dataloader, lr_config is param_scheduler\n.* sets mine, which nothing reads$',
        ),
        ("fp16 = dict(loss_scale='dynamic')", r'which nothing reads. Today: fp16 is --amp, or optim_wrapper.type='),
        ("data_root = 'mine/'\ntrain_dataloader = dict(dataset=dict(data_root=data_root))", ''),
        ("dataset_type = 'ADE20KDataset'", ''),  # the inherited value
        ("load_from = 'a.pth'\nrandomness = dict(seed=1)\ncustom_imports = dict(imports=['fcvit_mm'])", ''),
    ],
)
def test_variables_of_inherited_files(write, capsys, text, message):
    load_config(write(f'_base_ = {str(UPERNET)!r}\n{text}'))
    output = ''.join(capsys.readouterr())
    assert re.search(message, output, re.MULTILINE) if message else 'which nothing reads' not in output


def test_list_of_data_sets_beside_a_variable_of_an_inherited_file(write):
    path = write(f'_base_ = {str(UPERNET)!r}\ntrain_pipeline = []\ntrain_dataloader = dict(dataset=[dict(type="A")])')
    with pytest.raises(ConfigError, match=r'train_dataloader.dataset is .*, expected a dict'):
        load_config(path)


def test_variables_of_a_file_that_inherits_nothing(write, capsys):
    load_config(write("default_scope = 'mmseg'\ndata_root = 'mine/'"))
    assert 'which nothing reads' not in ''.join(capsys.readouterr())


def test_missing_config():
    with pytest.raises(ConfigError, match='config nowhere.py does not exist: the configs are in'):
        load_config('nowhere.py')


def test_config_without_a_scope_is_refused(write):
    with pytest.raises(ConfigError, match=r"default_scope=None, expected one of \['mmpretrain', 'mmdet', 'mmseg'\]"):
        load_config(write('x = 1'))


def test_pure_python_config_that_replaces_the_inherited_model(write):
    """As in Python: ``model.update`` would change it."""
    write("model = dict(type='FCOS')", 'base.py')
    path = write(
        'from mmengine.config import read_base\n\nwith read_base():\n    from .base import *\nmodel = dict(neck=1)'
    )
    with pytest.raises(ConfigError, match=r'default_scope=None.*model has no type.*model.update\('):
        load_config(path)


@pytest.mark.parametrize('scope', ['', "default_scope = 'mmseg'\n"])
def test_config_of_openmmlab_1_is_refused(write, scope):
    text = 'model = dict()\ndata = dict(samples_per_gpu=2)\nrunner = dict(max_epochs=1)\nevaluation = dict()\n'
    with pytest.raises(ConfigError, match=r'config of OpenMMLab 1.x \(MMD.*evaluation is val_.* runner is train_cfg'):
        load_config(write(text + scope))
    # MMDetection up to 2.8 had train_cfg outside of the model.
    with pytest.raises(ConfigError, match='config of OpenMMLab 1.x'):
        load_config(write(f'{text}train_cfg = dict(rpn=dict())\n{scope}'))
    # Variables of these names are none.
    load_config(write("default_scope = 'mmseg'\ndata = {}\noptimizer = {}\noptim_wrapper = dict(optimizer=optimizer)"))


def test_base_of_a_library_that_mmengine_does_not_find(write, monkeypatch):
    monkeypatch.setattr('mmengine.config.config.is_installed', lambda name: False)
    with pytest.raises(ConfigError, match=r"mmseg::...' only with .* _base_ = '.*mmseg/.mim/configs/FOLDER/NAME.py'"):
        load_config(write("_base_ = 'mmseg::pspnet/a.py'"))


@pytest.mark.parametrize('package, extra', [('mmpretrain', 'cls'), ('mmdet', 'det'), ('mmseg', 'seg')])
def test_missing_package_names_the_extra(write, monkeypatch, package, extra):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == package else find_spec(name))
    with pytest.raises(ImportError, match=rf'{package} is not installed.*\.\[{extra}\]'):
        load_config(write(f"default_scope = '{package}'"))


@pytest.mark.parametrize(
    'node, name',
    [
        (dict(type='CheckpointHook'), 'CheckpointHook'),
        (dict(type='mmdet.CocoDataset'), 'CocoDataset'),
        (dict(type=CheckpointHook), 'CheckpointHook'),
        (ConfigDict(type=LazyObject('mmengine.hooks', 'CheckpointHook')), 'CheckpointHook'),
        (dict(type=LazyObject('mmengine.hooks', 'CheckpointHook')), 'CheckpointHook'),
        (CheckpointHook, 'CheckpointHook'),
        (NonFiniteHook(), 'NonFiniteHook'),
        # Registered under other names than the class's.
        (dict(type=PretrainedInit), 'Pretrained'),
        (dict(type=nn.SyncBatchNorm), 'SyncBN'),
        # Deprecated names.
        (dict(type='WholeCheckpointHook'), 'AtomicCheckpointHook'),
        (dict(type='BrokenPictureHook'), 'SkipCorruptSamplesHook'),
        (dict(type=dict), 'dict'),
        (dict(lr=1), ''),
        (None, ''),
    ],
)
def test_type_name_in_all_notations(node, name):
    assert type_name(node) == name


def test_leaf_datasets_of_configs_and_of_objects():
    a, b = dict(type='A'), dict(type='B')
    assert list(leaf_datasets(a)) == [a]
    nested = dict(type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=[a, dict(dataset=b)]))
    assert list(leaf_datasets(nested)) == [a, b]
    first, second = SimpleNamespace(name=1), SimpleNamespace(name=2, dataset=None)
    built = SimpleNamespace(dataset=SimpleNamespace(datasets=[first, SimpleNamespace(dataset=second)]))
    assert list(leaf_datasets(built)) == [first, second]


def test_library_of_a_class():
    model = pytest.importorskip('mmseg.models').EncoderDecoder
    assert library_of(Config(dict(model=dict(type=model)))) == 'mmseg'
    for model in (dict(type='EncoderDecoder'), dict(type=nn.Linear), None):
        assert library_of(Config(dict(model=model))) is None


def test_library_of_a_model_in_a_library_built_on_another():
    pytest.importorskip('mmdet')
    pytest.importorskip('mmseg')
    for kind, task in {'OtherDetector': 'detection', 'mmseg.EncoderDecoder': 'segmentation'}.items():
        cfg = Config(dict(default_scope='otherlab', model=dict(type=kind)))
        assert library_of(cfg) == ('mmdet' if task == 'detection' else 'mmseg') and task_of(cfg) == task
    cfg = Config(dict(default_scope='otherlab', model=dict(type='OtherThing')))
    assert library_of(cfg) is None
    with pytest.raises(
        ConfigError,
        match=r'^the config: the model OtherThing of otherlab does not predict as a classifier, '
        r'detector or segmentor of mmpretrain, mmdet, mmseg, which this needs: use the tools of otherlab. Supported '
        r'for it: tools/train.py, test.py, .*, and export.py with --part backbone or neck$',
    ):
        task_of(cfg)
    assert task_or_library(cfg) == 'otherlab'
    with pytest.raises(ConfigError, match="the config has default_scope='otherlab', expected one of"):
        task_or_library(Config(dict(default_scope='otherlab')))


def test_model_that_names_its_scope():
    """As in configs of MMRazor, which have the scope of the models that they distill."""
    pytest.importorskip('mmdet')
    for model in (dict(_scope_='otherlab', type='OtherThing'), dict(type='otherlab.OtherThing')):
        cfg = Config(dict(default_scope='mmdet', model=model))
        assert library_of(cfg) is None and task_or_library(cfg) == 'otherlab'
    for kind, library in {'otherlab.OtherDetector': 'mmdet', 'mmseg.EncoderDecoder': 'mmdet'}.items():
        assert library_of(Config(dict(default_scope='mmdet', model=dict(type=kind)))) == library


def test_detector_with_other_predictions_is_not_of_mmdet():
    pytest.importorskip('mmdet')
    cfg = Config(dict(default_scope='otherlab', model=dict(type='OtherBox3D')))
    assert library_of(cfg) is None and task_or_library(cfg) == 'otherlab'


def test_library_that_cannot_be_imported(monkeypatch, tmp_path):
    """As MMRotate and MMYOLO, which assert that other libraries have the versions that they were made for."""
    (tmp_path / 'oldlab').mkdir()
    (tmp_path / 'oldlab/__init__.py').write_text("assert False, 'MMCV==2.3.6 is used but incompatible'")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        LibraryError, match='importing oldlab.*MMCV==2.3.6 is used but incompatible.*versions that oldlab'
    ):
        library_of(Config(dict(default_scope='oldlab', model=dict(type='Net'))))


def test_config_of_a_library_built_on_another(tmp_path):
    path = tmp_path / 'net.py'
    path.write_text("default_scope = 'otherlab'\nmodel = dict(type='OtherDetector')")
    assert load_config(str(path)).default_scope == 'otherlab'
    path.write_text("default_scope = 'nolab'\nmodel = dict(type='OtherDetector')")
    with pytest.raises(ConfigError, match="default_scope='nolab', expected one of .* or an installed library"):
        load_config(str(path))


@pytest.mark.parametrize(
    'text, message',
    [
        ('model = dict(', r'SyntaxError: .*was never closed \(raised in ast\)\. Correct the config'),
        ('model = undefined', "NameError: name 'undefined' is not defined"),
        ("text = open('gone.txt').read()", r'FileNotFoundError: .*gone.txt'),
    ],
)
def test_config_that_cannot_be_read(write, monkeypatch, tmp_path, text, message):
    """The message has the line, and the file if it is one that the config inherits from."""
    path = write(f'seed = 1\n{text}')
    with pytest.raises(LibraryError, match=rf'(?s)^reading {path} \(line 2\) failed: {message}'):
        load_config(path)
    monkeypatch.chdir(tmp_path)
    pure = 'from mmengine.config import read_base\n\nwith read_base():\n    from .mine import *\n'
    for name, child in {'child.py': "_base_ = './mine.py'", 'pure.py': pure}.items():
        path = write(child, name)
        with pytest.raises(LibraryError, match=rf'(?s)^reading {path} \(mine.py, line 2\) failed: {message}'):
            load_config(path)


def test_pure_python_configs_that_a_run_wrote_have_their_types_again(write):
    """The libraries do not find all of them as text. Other names stay, and the text when it is written again."""
    pytest.importorskip('mmdet')
    from mmcv.ops import RoIAlign
    from mmdet.models.losses import L1Loss

    text = (
        "default_scope = 'mmdet'\nmodel = dict(\n    head=dict(type='mmdet.models.losses.smooth_l1_loss.L1Loss'),\n"
        "    layers=[\n        dict(type='mmcv.ops.RoIAlign'),\n        dict(type='mmdet.L1Loss'),\n"
        "        dict(type='mmdet.models.NobodysNet'),\n    ])\n"
    )
    cfg = load_config(write(text))
    assert cfg.model.head.type is L1Loss
    assert [each.type for each in cfg.model.layers] == [RoIAlign, 'mmdet.L1Loss', 'mmdet.models.NobodysNet']
    assert "type='mmdet.models.losses.smooth_l1_loss.L1Loss'" in cfg.pretty_text


@pytest.mark.parametrize(('base', 'hint'), [('my.py', "; did you mean 'mine.py'?"), ('other/folder/gone.py', '.')])
def test_missing_base_config_is_reported(write, base, hint):
    path = write(f'_base_ = {base!r}')
    missing = os.path.join(os.path.dirname(path), base)
    message = f'{path} inherits from {missing}, which does not exist{hint} Correct _base_, whose paths are relative'
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(path)


def test_pretrained_without_a_backbone(write):
    with pytest.raises(ConfigError, match='has no model.backbone'):
        load_config(write("default_scope = 'mmseg'"), {'pretrained': 'a.pth'})


def test_options_that_do_not_fit_the_config(write):
    with pytest.raises(LibraryError, match='changing .* by --cfg-options failed: TypeError: .*Correct the names'):
        load_config(write("default_scope = 'mmseg'\nmodel = 3"), {'model.backbone.depth': 3})
