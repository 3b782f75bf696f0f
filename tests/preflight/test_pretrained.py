import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from fcvit_mm.apis.load import build_model
from fcvit_mm.preflight.checks import check_training
from fcvit_mm.preflight.pretrained import pretrained_problems, report_frozen_random_weights


@pytest.fixture
def stock(make_config, tmp_path):
    """Return a function that makes a detector with a stock backbone and its checkpoint, with changed weights."""

    def get(change, **init):
        cfg, _ = make_config('detection')
        cfg.model.backbone = dict(type='ResNet', depth=18, base_channels=8)
        cfg.model.neck.in_channels = [8, 16, 32, 64]
        path = tmp_path / 'weights.pth'
        torch.save({'state_dict': change(build_model(cfg).backbone.state_dict())}, path)
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path), **init)
        return cfg, path

    return get


def renamed(prefix):
    return lambda weights: {f'{prefix}{name}': value for name, value in weights.items()}


def only_problem(cfg):
    (problem,) = pretrained_problems(cfg)
    return problem


def test_matching_checkpoints_are_accepted(stock, logged):
    assert pretrained_problems(stock(dict)[0]) == []
    assert pretrained_problems(stock(renamed('backbone.'), prefix='backbone.')[0]) == []
    # Weights of the classifier's head are ignored.
    assert pretrained_problems(stock(lambda weights: {**weights, 'fc.weight': torch.zeros(3)})[0]) == []
    assert logged == []


def test_checkpoint_of_another_network(stock):
    cfg, path = stock(lambda weights: {'encoder.layer.0.weight': torch.zeros(3), 'encoder.layer.1.weight': 1})
    assert only_problem(cfg) == (
        f'model.backbone.init_cfg: none of the 100 values of ResNet are in {path}, whose names are '
        'encoder.layer.0.weight, encoder.layer.1.weight; expected conv1.weight, bn1.weight, bn1.bias and 97 more. '
        'Another file: --cfg-options pretrained=PATH; from scratch: --cfg-options pretrained=None'
    )


def test_missing_prefix_is_suggested(stock):
    cfg, _ = stock(renamed('backbone.'))
    assert ". Add prefix='backbone.' to this init_cfg. Another file" in only_problem(cfg)


def test_wrong_prefix(stock):
    cfg, path = stock(renamed('backbone.'), prefix='model.')
    assert only_problem(cfg).startswith(
        f'model.backbone.init_cfg: {path} cannot be loaded (model. is not in the pretrained model): its names are '
        'backbone.conv1.weight, backbone.bn1.weight, '
    )


def test_checkpoint_with_few_matching_weights_is_a_warning(stock, logged):
    cfg, path = stock(lambda weights: {name: value for name, value in weights.items() if not name.startswith('layer')})
    assert pretrained_problems(cfg) == []
    (text,) = logged
    assert text.startswith(f'model.backbone.init_cfg: 5 of the 100 values of ResNet are in {path}, whose names are ')


def test_checkpoint_with_other_shapes(stock):
    cfg, _ = stock(lambda weights: {name: torch.zeros(*value.shape, 2) for name, value in weights.items()})
    assert 'none of the 100 values of ResNet' in only_problem(cfg)


def test_checkpoints_of_necks_and_complete_models(make_config, tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save({'a': torch.zeros(3)}, path)
    for key, name in (('model.neck.init_cfg', 'FPN'), ('model.init_cfg', 'MaskRCNN')):
        cfg, _ = make_config('detection', {key: dict(type='Pretrained', checkpoint=str(path))})
        problem = only_problem(cfg)
        assert (
            problem.startswith(f'{key}: none of the ')
            and f'values of {name} are in {path}, whose names are a' in problem
        )
        assert problem.endswith('. Give another checkpoint, or init_cfg=None for random weights')


def test_own_networks_reject_other_files(make_config, tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save({'conv1.weight': torch.zeros(3)}, path)
    cfg, _ = make_config('segmentation', {'pretrained': str(path)})
    assert only_problem(cfg).startswith(f'model.backbone.init_cfg: {path} ')


def test_modules_with_their_own_init_weights_are_not_checked(make_config, tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save({'a': torch.zeros(3)}, path)

    @MODELS.register_module(name='OwnLoading', force=True)
    class OwnLoading(MODELS.get('mmdet.FPN')):
        def init_weights(self):
            torch.load(self.init_cfg['checkpoint'])

    cfg, _ = make_config('detection', {'model.neck.type': 'OwnLoading'})
    cfg.model.neck.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    try:
        assert pretrained_problems(cfg) == []
    finally:
        MODELS.module_dict.pop('OwnLoading')


def test_code_in_a_checkpoint_is_not_run(stock):
    class Code:
        def __reduce__(self):
            return pytest.fail, ('code was run',)

    cfg, path = stock(lambda weights: {**weights, 'code': Code()})
    assert only_problem(cfg).startswith(f'pretrained: {path} needs ')


def test_missing_files_of_the_backbone_and_of_the_complete_model(stock):
    """pretrained=PATH sets the file of the backbone only."""
    cfg, _ = stock(dict)
    missing = dict(type='Pretrained', checkpoint='nowhere.pth')
    cfg.model.backbone.init_cfg = missing
    assert only_problem(cfg).endswith(
        '. Another file: --cfg-options pretrained=PATH; from scratch: --cfg-options pretrained=None'
    )
    cfg.model.backbone.init_cfg, cfg.model.init_cfg = None, missing
    assert only_problem(cfg).endswith('. Give another checkpoint, or init_cfg=None for random weights')


@pytest.mark.parametrize('place', ['', 'detector'])
def test_frozen_stages_with_random_weights(make_config, logged, place):
    cfg, _ = make_config('detection', {'model.backbone.frozen_stages': 0})
    backbone = cfg.model.backbone
    if place:
        cfg.model = dict(type='SoftTeacher', detector=cfg.model)
        backbone = cfg.model.detector.backbone
    report_frozen_random_weights(cfg)
    assert len(logged) == 1 and 'backbone.frozen_stages is 0, but the backbone has no pretrained weights' in logged[0]
    cfg.load_from = 'a.pth'
    report_frozen_random_weights(cfg)
    cfg.load_from, backbone.init_cfg = None, dict(type='Pretrained', checkpoint='a.pth')
    report_frozen_random_weights(cfg)
    backbone.update(init_cfg=None, frozen_stages=-1)
    report_frozen_random_weights(cfg)
    assert len(logged) == 1


def test_backbones_that_freeze_nothing_with_frozen_stages_0(logged):
    pytest.importorskip('mmpretrain')
    backbone = dict(type='ConvNeXt', arch='atto', frozen_stages=0)
    cfg = Config(dict(default_scope='mmpretrain', model=dict(type='ImageClassifier', backbone=backbone)))
    report_frozen_random_weights(cfg)
    assert not logged
    cfg.model.backbone.frozen_stages = 1
    report_frozen_random_weights(cfg)
    assert len(logged) == 1


def test_training_reports_frozen_random_weights(make_config, logged):
    check_training(make_config('classification', {'model.backbone.frozen_stages': 2})[0])
    assert any('model.backbone.frozen_stages is 2, but' in text for text in logged)
