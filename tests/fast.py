"""Which tests ``make test-fast`` runs: the essential questions, in at most 90 seconds on 2 cores.

The rule needs no upkeep: of each module the first case of each of its first test functions, so a module begins with
what matters most. Modules for which that is too slow, or too little, are the rows of :data:`EXCEPTIONS`.
"""

from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
#: Functions of a module of which the first case is taken.
FUNCTIONS = 3
#: Module -> patterns of the names of tests (after the module's path in their ids) that are taken in place of the first.
EXCEPTIONS = {}


def module_of(item):
    return item.path.relative_to(TESTS).as_posix()


def name_of(item):
    return item.nodeid.partition('::')[2]


def mark(items):
    """Give the tests that are taken the marker ``fast``."""
    for module, group in groupby(items, module_of):
        of_module = list(group)
        taken = [item for item in of_module if any(fnmatch(name_of(item), p) for p in EXCEPTIONS.get(module, ()))]
        if module not in EXCEPTIONS:
            functions = {name_of(item).partition('[')[0]: item for item in reversed(of_module)}
            taken = list(functions.values())[::-1][:FUNCTIONS]
        for item in taken:
            item.add_marker(pytest.mark.fast)
