"""The component of a config that an error comes from."""

from fcvit_mm.apis.failing_part import named_in_config


def test_components_are_named_as_in_the_config():
    model = dict(type='Net', roi_head=dict(type='RoI', shared_head=[dict(type='ResLayer', channels=[1, 2])]))
    for name, expected in {
        '': ('model', 'Net'),
        'roi_head.shared_head.0.layer4.1': ('model.roi_head.shared_head.0', 'ResLayer'),
        'roi_head.shared_head.0.channels.1': ('model.roi_head.shared_head.0', 'ResLayer'),
        'roi_head.other': ('model.roi_head', 'RoI'),
    }.items():
        assert named_in_config(model, name) == expected
