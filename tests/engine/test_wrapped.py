from mmengine.config import Config

from fcvit_mm.engine.config import set_pretrained
from fcvit_mm.engine.hooks.resume import select_resume_point
from fcvit_mm.engine.wrapped import find_inner_model, unwrap_model
from fcvit_mm.preflight.checks import head_classes

DETECTOR = dict(type='FasterRCNN', backbone=dict(type='FCViT', init_cfg=None), bbox_head=dict(num_classes=5))


def wrapped():
    return Config(dict(model=dict(type='SoftTeacher', detector=DETECTOR, semi_train_cfg=dict(freeze_teacher=True))))


def test_the_outermost_model_with_a_backbone_is_found():
    assert find_inner_model(DETECTOR) == ('model', DETECTOR)
    assert find_inner_model(wrapped().model) == ('model.detector', DETECTOR)
    distilled = dict(type='Distilled', architecture=DETECTOR, teacher=dict(DETECTOR, bbox_head=None))
    assert find_inner_model(dict(algorithm=distilled)) == ('model.algorithm.architecture', DETECTOR)
    nested = dict(DETECTOR, backbone=dict(type='Pretrained', backbone=dict(type='FCViT')))
    assert find_inner_model(nested) == ('model', nested)
    without = dict(type='GAN', generator=dict(type='G'))
    assert find_inner_model(without) == ('model', without)


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
    assert dict(head_classes(cfg)) == {'model.detector.bbox_head': 5}
    cfg.merge_from_dict(dict(resume=True, load_from='b.pth', work_dir=str(tmp_path)))
    select_resume_point(cfg)
    assert cfg.model.detector.backbone.init_cfg is None
