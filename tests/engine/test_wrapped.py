import pytest
from mmengine.config import Config

from fcvit_mm.engine.config import ConfigError, set_pretrained
from fcvit_mm.engine.resume_point import select_resume_point
from fcvit_mm.engine.run import is_overwritten
from fcvit_mm.engine.structure import structure_problems
from fcvit_mm.engine.wrapped import backbone_config, find_inner_model, unwrap_model
from fcvit_mm.preflight.classes import class_numbers
from fcvit_mm.preflight.model import channel_problems
from fcvit_mm.preflight.pretrained import pretrained_problems

DETECTOR = dict(type='FasterRCNN', backbone=dict(type='FCViT', init_cfg=None), bbox_head=dict(num_classes=5))


def wrapped():
    return Config(dict(model=dict(type='SoftTeacher', detector=DETECTOR, semi_train_cfg=dict(freeze_teacher=True))))


def test_outermost_model_with_a_backbone_is_found():
    assert find_inner_model(DETECTOR) == ('model', DETECTOR)
    assert find_inner_model(wrapped().model) == ('model.detector', DETECTOR)
    distilled = dict(type='Distilled', architecture=DETECTOR, teacher=dict(DETECTOR, bbox_head=None))
    assert find_inner_model(dict(algorithm=distilled)) == ('model.algorithm.architecture', DETECTOR)
    nested = dict(DETECTOR, backbone=dict(type='Pretrained', backbone=dict(type='FCViT')))
    assert find_inner_model(nested) == ('model', nested)
    without = dict(type='GAN', generator=dict(type='G'))
    assert find_inner_model(without) == ('model', without)


def test_backbone_given_as_text_is_left_to_the_model(tmp_path):
    """As a model of one's own may take it, such as the name of a network of timm."""
    cfg = Config(dict(model=dict(type='Mine', backbone='resnet18'), default_scope='mmpretrain', work_dir=str(tmp_path)))
    assert list(structure_problems(cfg)) == [] and backbone_config(cfg.model) == {} == backbone_config(None)
    assert channel_problems(cfg) == [] and pretrained_problems(cfg) == []
    with pytest.raises(ConfigError, match='has no model.backbone with a type: omit pretrained'):
        set_pretrained(cfg, 'a.pth')
    cfg.merge_from_dict(dict(resume=True, load_from='b.pth'))
    select_resume_point(cfg)
    assert not is_overwritten(cfg) and cfg.model.backbone == 'resnet18'


def test_unwrap_model():
    cfg = wrapped()
    assert unwrap_model(cfg).model == DETECTOR and cfg.model.type == 'SoftTeacher'
    plain = Config(dict(model=DETECTOR))
    assert unwrap_model(plain) is plain
    empty = Config(dict(a=1))
    assert unwrap_model(empty) is empty


def test_pretrained_files_and_classes_of_a_wrapped_model(tmp_path):
    cfg = wrapped()
    set_pretrained(cfg, 'a.pth')
    assert cfg.model.detector.backbone.init_cfg == dict(type='Pretrained', checkpoint='a.pth')
    assert [each[:2] for each in class_numbers(cfg)] == [('model.detector.bbox_head.num_classes', 5)]
    cfg.merge_from_dict(dict(resume=True, load_from='b.pth', work_dir=str(tmp_path)))
    select_resume_point(cfg)
    assert cfg.model.detector.backbone.init_cfg is None
