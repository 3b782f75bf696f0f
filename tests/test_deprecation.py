"""Old public names still work, and warn of their end with the new name."""

import importlib

import pytest

from fcvit_mm import deprecation


@pytest.mark.parametrize('old, new', deprecation.MOVED_MODULES.items())
def test_moved_modules_are_found_under_their_old_names(old, new):
    target = importlib.import_module(new)
    found = importlib.import_module(old)
    name = next(name for name in vars(target) if not name.startswith('_'))
    assert getattr(found, name) is getattr(target, name)
    assert importlib.util.find_spec(f'{old}_of_no_module') is None


def test_a_deprecated_class_builds_the_new_one_and_takes_the_old_arguments():
    class New:
        def __init__(self, size, methods=()):
            self.size, self.methods = size, methods

    old = deprecation.deprecated_class('Old', New, __name__, dict(remedies='methods'))
    with pytest.warns(DeprecationWarning, match=r'Old is deprecated and goes in fcvit_mm 0\.\d+: use New'):
        found = old(3, remedies=('attn_scale',))
    assert type(found) is New and (found.size, found.methods) == (3, ('attn_scale',))
    assert issubclass(old, New) and old.__name__ == 'Old' and 'New' in old.__doc__


def test_the_finder_is_installed_once():
    import sys

    deprecation.install()
    assert sum(isinstance(finder, deprecation.MovedModules) for finder in sys.meta_path) == 1
