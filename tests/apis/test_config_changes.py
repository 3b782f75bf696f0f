"""Differences of two configs: their dotted names, and a child config that contains only the changes."""

from mmengine.config import Config

from fcvit_mm.apis.config_changes import differences, fragment

BEFORE = dict(model=dict(backbone=dict(type='A', depth=5), heads=[dict(a=1, b=2)], levels=[1, 2]), lr=1)


def test_differences_have_dotted_names():
    after = dict(model=dict(backbone=dict(type='B', depth=5), heads=[dict(a=1, b=3)], levels=[1, 3]), lr=1, new=2)
    expected = {'model.backbone.type': 'B', 'model.heads.0.b': 3, 'model.levels': [1, 3], 'new': 2}
    assert dict(differences(BEFORE, after)) == expected
    assert not list(differences(BEFORE, BEFORE))


def test_fragment_turns_one_config_into_the_other(tmp_path):
    """A backbone is replaced completely, and so is a dict from which a key is removed."""
    after = dict(model=dict(backbone=dict(type='B', arch='x'), heads=[dict(a=1)], levels=[1, 2]), lr=dict(value=2))
    (tmp_path / 'before.py').write_text(Config(BEFORE).pretty_text)
    text = fragment(Config(BEFORE), Config(after))
    assert 'levels' not in text
    (tmp_path / 'after.py').write_text("_base_ = 'before.py'\n" + text)
    assert Config.fromfile(tmp_path / 'after.py').to_dict() == after
