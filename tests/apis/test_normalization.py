"""The normalization of images in the config that a checkpoint contains."""

import pytest
from mmengine.config import Config

from fcvit_mm.apis import normalization
from fcvit_mm.apis.normalization import Normalization, is_same, normalization_of, other_normalization, read_literals

RGB = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


def content(text):
    return dict(meta=dict(cfg=text))


def test_configs_of_different_libraries_are_compared():
    """A classifier that a detector starts from has other names for the same settings."""
    classifier = Config(dict(data_preprocessor=dict(RGB, num_classes=5, to_rgb=True), model=dict(type='A')))
    detector = Config(dict(model=dict(data_preprocessor=dict(RGB, type='DetDataPreprocessor', bgr_to_rgb=True))))
    student = Config(dict(model=dict(type='SoftTeacher', detector=dict(detector.model, backbone=dict(type='A')))))
    for cfg in (classifier, detector, student):
        assert normalization_of(cfg) == Normalization(tuple(RGB['mean']), tuple(RGB['std']), True)
        assert other_normalization(detector, content(cfg.pretty_text), 'a.pth') == ''
    detector.model.data_preprocessor.update(mean=[103.53, 116.28, 123.675], std=[1.0] * 3, bgr_to_rgb=False)
    assert (
        'a.pth was trained on images with mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], RGB, but the '
        'config has mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], BGR in data_preprocessor'
    ) in other_normalization(detector, content(classifier.pretty_text), 'a.pth')


def test_checkpoints_without_a_config():
    cfg = Config(dict(data_preprocessor=dict(RGB)))
    huge = f'data_preprocessor = dict(mean=[1{"0" * 400}])'
    for text in (
        huge,
        'model = 3',
        'model = dict(detector=[1])',
        None,
        {},
        '',
        'model = (',
        '(' * 10000,
        'data_preprocessor = 3',
        'data_preprocessor = dict(mean="a")',
    ):
        assert other_normalization(cfg, content(text), 'a.pth') == ''
    assert other_normalization(cfg, {}, 'a.pth') == other_normalization(cfg, dict(meta=None), 'a.pth') == ''
    assert other_normalization(Config(), content(cfg.pretty_text), 'a.pth') == ''


def test_texts_of_configs_are_not_run(tmp_path):
    text = f"a = dict(b=open('{tmp_path}/written', 'w'), c={{'d': [1, -2.5]}}, **e)\nimport os\nf = 'g'"
    assert read_literals(text) == dict(a={'b': None, 'c': {'d': [1, -2.5]}, None: None}, f='g')
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    'other, same',
    [
        (Normalization((128.0,), (60.0,), True), True),  # one value for all channels
        (Normalization((128.0,) * 3, (60.2,) * 3, True), True),
        (Normalization((128.0,) * 3, (60.0,) * 3, False), False),
        (Normalization((), (), True), False),
        (Normalization((128.0,) * 4, (60.0,) * 4, True), False),
    ],
)
def test_equal_normalizations(other, same):
    assert is_same(Normalization((128.0,) * 3, (60.0,) * 3, True), other) == same


def test_difference_is_logged(monkeypatch):
    logged = []
    monkeypatch.setattr(normalization, 'print_log', lambda text, **options: logged.append(text))
    cfg = Config(dict(data_preprocessor=dict(RGB)))
    for given in (cfg, Config(dict(data_preprocessor=dict(RGB, to_rgb=True)))):
        normalization.report_other_normalization(given, content(cfg.pretty_text), 'a.pth')
    assert [text.partition(' on')[0] for text in logged] == ['a.pth was trained']
