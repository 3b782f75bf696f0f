import pytest
from mmengine.registry import DATASETS, HOOKS, TRANSFORMS, DefaultScope

from fcvit_mm.preflight.messages import name_values, near_registered, registered_names, short_message


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (dict(type='EmaHook'), "EmaHook is not in the mmengine::hook registry; did you mean 'EMAHook'?"),
        (
            dict(type='LoggerHook', intervall=1),
            "LoggerHook.__init__() got an unexpected keyword argument 'intervall'; did you mean 'interval'?",
        ),
        (dict(type='LoggerHook', xyzzy=1), "LoggerHook.__init__() got an unexpected keyword argument 'xyzzy'"),
        (dict(type='LoggerHook', interval=0), 'interval must be greater than 0'),
    ],
)
def test_messages_for_objects_that_cannot_be_built(config, message):
    with DefaultScope.overwrite_default_scope('mmengine'), pytest.raises(Exception) as caught:
        HOOKS.build(config)
    found = short_message(caught.value)
    assert found == message or found == message.replace('mmengine::', '')


@pytest.mark.parametrize(
    ('registry', 'config', 'message'),
    [
        (DATASETS, dict(type='CocoDataset', classes=('cat',)), "'classes'; since OpenMMLab 2.0 it is metainfo="),
        (DATASETS, dict(type='CocoDataset', img_prefix='a'), "'img_prefix'; since OpenMMLab 2.0 it is data_prefix="),
        (TRANSFORMS, dict(type='Resize', img_scale=(9, 9)), "'img_scale'; since OpenMMLab 2.0 it is scale"),
        (TRANSFORMS, dict(type='Mosaic', scale=(9, 9)), "'scale'; did you mean 'img_scale'?"),
    ],
)
def test_arguments_of_older_versions(registry, config, message):
    pytest.importorskip('mmdet.datasets')
    with DefaultScope.overwrite_default_scope('mmdet'), pytest.raises(TypeError) as caught:
        registry.build(config)
    assert message in short_message(caught.value)


def test_registered_names_of_all_libraries():
    names = registered_names('hook')
    assert {'EMAHook', 'AtomicCheckpointHook'} <= set(names) and registered_names('nothing') == []


def test_suggestion_of_a_similar_name():
    pytest.importorskip('mmpretrain.models')
    assert near_registered('LinearClsHead', 'model') == "; did you mean 'mmpretrain.LinearClsHead'?"
    assert near_registered('LinearClsHed', 'model') == "; did you mean 'LinearClsHead'?"
    assert near_registered('Rezise', 'transform') == "; did you mean 'Resize'?"
    assert near_registered('Xyzzy', 'model') == ''
    # Names of one's own, which only share their ending with registered ones.
    assert [near_registered(f'{name}Dataset', 'dataset') for name in ('XRay', 'Road', 'RailSem', 'Landcover')] == [
        ''
    ] * 4


@pytest.mark.parametrize(
    ('error', 'named'),
    [
        (TypeError("'<=' not supported between instances of 'float' and 'NoneType'"), ' (b=None)'),
        (TypeError('expected str, bytes or os.PathLike object, not int'), ' (a=1)'),
        (TypeError("'int' object is not iterable"), ' (a=1)'),
        (TypeError('f() takes no arguments'), ''),
        (ValueError("not a valid 'int'"), ''),
    ],
)
def test_settings_of_the_type_in_an_error_are_named(error, named):
    assert name_values(error, [dict(type='A', a=1, b=None, c='d'), dict(type='B', e=[dict(type='C')])]) == named
