"""Conventions of the code: directions of imports, a test file for each module, atomic writes, error reports, terms."""

import ast
import re
import subprocess
from functools import lru_cache
from pathlib import Path

import fast
import pytest
from harness import ROOT

#: Layers of subpackages, the lowest first. A module may import from lower layers and from its own subpackage.
LAYERS = [
    {'errors', 'options', 'version', 'registry', 'dependencies', 'files', 'images', 'deprecation'},
    {'ops'},
    {'models', 'datasets', 'mmcv_ext'},
    {'checkpoints', 'inference'},
    {'engine', 'apis', 'timm', 'mmpretrain'},
    {'analysis', 'export', 'publishing', 'preflight'},
    {'app'},
]
#: Allowed imports between subpackages of the same layer: (importing, imported).
SAME_LAYER = {
    ('dependencies', 'errors'),
    ('options', 'errors'),
    ('options', 'dependencies'),
    ('files', 'errors'),
    ('images', 'errors'),
    ('images', 'dependencies'),
    ('apis', 'engine'),
    ('apis', 'timm'),
}
#: The package itself, whose import registers the types of configs.
PACKAGE = 'fcvit_mm'

#: Modules whose tests are in another file.
TESTED_ELSEWHERE = {
    'fcvit_mm/version.py': 'tests/test_package.py',
    'fcvit_mm/checkpoints/errors.py': 'tests/checkpoints/test_safe_load.py',
    'fcvit_mm/export/detectors/one_stage.py': 'tests/export/detectors/test_detections.py',
    'fcvit_mm/export/detectors/replacements.py': 'tests/export/detectors/test_detections.py',
    'fcvit_mm/export/detectors/two_stage.py': 'tests/export/detectors/test_detections.py',
    'fcvit_mm/models/dwnet_names.py': 'tests/models/test_dwnet.py',
    'fcvit_mm/models/fcvit_packed.py': 'tests/ops/native/test_block.py',
    'fcvit_mm/models/timm_classifier.py': 'tests/test_timm.py',
    'fcvit_mm/models/transformer_names.py': 'tests/models/test_transformer.py',
    'fcvit_mm/ops/triton/add_scaled_kernels.py': 'tests/ops/triton/test_add_scaled.py',
    'fcvit_mm/ops/triton/depthwise_conv_kernels.py': 'tests/ops/triton/test_depthwise_conv.py',
    'fcvit_mm/ops/triton/global_context_kernels.py': 'tests/ops/triton/test_global_context.py',
    'fcvit_mm/ops/triton/group_norm_kernels.py': 'tests/ops/triton/test_group_norm.py',
}
#: Modules that may write without ``fcvit_mm.files``, and the reason.
WRITERS = {
    'fcvit_mm/files.py': 'the writer',
    'fcvit_mm/datasets/shapes.py': 'swaps complete folders',
    'dev/check_resume.py': 'replaces the writer by one that fails',
    'dev/benchmark/measure.py': 'resets a counter under /proc',
}
COMMANDS = [
    path
    for folder in ('tools', 'dev')
    for path in sorted((ROOT / folder).rglob('*.py'))
    if '__main__' in path.read_text()
]
#: Terms that are not used, and their replacements.
WORDS = {
    r'pictures?': 'image',
    r'remed(y|ies)': 'method',
    r'plain definitions?': 'reference',
    r'plain layouts?': 'contiguous',
    r'plain (ViT|CaiT|Swin|DeiT|transformer)s?': 'unmodified',
    r'[Ss]caled (ViT|CaiT|Swin)s?': 'ViT, CaiT, Swin',
    r'go(es|ing)? on': 'resume, continue',
    r'(samples?|images?|files?)( that)? (is|are|was|were) left out|passed over': 'skipped',
    r'(broken|bad|damaged) (file|image|sample|checkpoint)s?': 'corrupt',
    r'go(es|ing|ne)? bad': 'corrupt',
    r'in words': 'as text',
    r'looks? at (the|a|an|each|every) (config|data|dataset|file|folder|annotation|checkpoint)s?': 'check',
}
#: Exceptions: patterns of files and lines, and the reason.
ALLOWED = [
    (r'fcvit_mm/deprecation\.py|CHANGELOG\.md', r'.', 'list the old names'),
    (r'.', r"deprecated_class\(|deprecated name|dict\(remedies=|'remedies'|DEPRECATED_", 'old names that are kept'),
    (r'.', r'A Close Look at', "the paper's title"),
    (r'.', r'https?://|\]\([^)]*\)', 'addresses'),
]


def sources(*folders):
    """Return the Python files in folders, relative to the root of the project."""
    return [path.relative_to(ROOT) for folder in folders for path in sorted((ROOT / folder).rglob('*.py'))]


MODULES = sources('fcvit_mm')
MODULES = [path for path in MODULES if '.mim' not in path.parts]


def module_name(path):
    parts = path.with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


NAMES = {module_name(path) for path in MODULES}


@lru_cache(maxsize=None)
def tree_of(path):
    return ast.parse((ROOT / path).read_text())


def imports_of(path, at_import=False):
    """Return the modules of this package that a file imports; with ``at_import``, without those inside functions."""
    package = module_name(path).split('.')
    if path.name != '__init__.py':
        package = package[:-1]
    waiting, found = list(tree_of(path).body), set()
    while waiting:
        node = waiting.pop()
        if at_import and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test):
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = '.'.join([*above, *filter(None, [node.module])])
            inner = {f'{base}.{alias.name}' for alias in node.names}
            found |= (inner & NAMES) or {base}
            if not inner <= NAMES:
                found.add(base)
    return {name for name in found if name in NAMES}


def subpackage_of(name):
    """Return the first part of a module's name after that of the package."""
    parts = name.split('.')
    return parts[1] if len(parts) > 1 else PACKAGE


LAYER = {subpackage: number for number, layer in enumerate(LAYERS) for subpackage in layer}


def test_every_subpackage_has_a_layer():
    subpackages = {subpackage_of(name) for name in NAMES} - {PACKAGE}
    assert subpackages == set(LAYER)


@pytest.mark.parametrize('path', MODULES, ids=str)
def test_imports_are_from_lower_layers(path):
    subpackage = subpackage_of(module_name(path))
    if subpackage == PACKAGE:
        return
    for name in imports_of(path):
        other = subpackage_of(name)
        if other in (subpackage, PACKAGE):
            continue
        assert LAYER[other] < LAYER[subpackage] or (subpackage, other) in SAME_LAYER, (
            f'{subpackage} must not import {name}'
        )


def test_modules_do_not_import_the_package_itself():
    """``from .. import X`` in a subpackage would import higher layers."""
    for path in MODULES:
        if subpackage_of(module_name(path)) in (PACKAGE, 'timm', 'mmpretrain'):
            continue
        assert (
            PACKAGE not in imports_of(path, at_import=True)
            or subpackage_of(module_name(path)) in LAYERS[-1] | LAYERS[-2]
        ), path


def test_there_are_no_circular_imports():
    """Also not inside functions. The ``__init__`` files of packages collect names and are not checked."""
    edges = {module_name(path): imports_of(path) for path in MODULES if path.name != '__init__.py'}
    done, under_way = set(), []

    def visit(name):
        assert name not in under_way, ' -> '.join([*under_way[under_way.index(name) :], name])
        if name in done or name not in edges:
            return
        under_way.append(name)
        for other in sorted(edges[name]):
            visit(other)
        under_way.pop()
        done.add(name)

    for name in sorted(edges):
        visit(name)


def test_package_and_tools_do_not_import_dev_or_tests():
    for path in [*MODULES, *sources('tools')]:
        for node in ast.walk(tree_of(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ''] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not any(name.split('.')[0] in ('dev', 'tests') for name in names), path


def mirrored(path):
    """Return the default path of the tests of a module."""
    parts = path.parts[1:] if path.parts[0] == PACKAGE else path.parts
    name = '_'.join(filter(None, path.stem.split('_')))
    return Path('tests', *parts[:-1], f'test_{name}.py')


@pytest.mark.parametrize(
    'path', [path for path in [*MODULES, *sources('tools', 'dev')] if path.name != '__init__.py'], ids=str
)
def test_every_module_has_its_tests_at_the_mirrored_path(path):
    expected = TESTED_ELSEWHERE.get(path.as_posix(), mirrored(path))
    assert (ROOT / expected).is_file(), f'{path} needs {expected}'


def test_listed_exceptions_exist():
    for table in (TESTED_ELSEWHERE, WRITERS):
        assert all((ROOT / path).is_file() for path in table)
    for module in fast.EXCEPTIONS:
        assert (fast.TESTS / module).is_file(), f'tests/fast.py names {module}'


def writes(node):
    """Return whether a call writes a file."""
    if not isinstance(node, ast.Call):
        return False
    called = ast.unparse(node.func)
    if called in ('os.replace', 'os.rename', 'shutil.move', 'torch.save', 'mmengine.dump', 'np.save', 'np.savez'):
        return True
    if called.endswith(('.write_text', '.write_bytes')):
        return True
    if called in ('open', 'io.open') or called.endswith('.open'):
        mode = next((keyword.value for keyword in node.keywords if keyword.arg == 'mode'), None)
        mode = mode or (node.args[1] if called in ('open', 'io.open') and len(node.args) > 1 else None)
        return isinstance(mode, ast.Constant) and isinstance(mode.value, str) and bool(set(mode.value) & set('wx+'))
    return False


@pytest.mark.parametrize('path', [*MODULES, *sources('tools', 'dev')], ids=str)
def test_files_are_written_through_fcvit_mm_files(path):
    if path.as_posix() in WRITERS:
        return
    found = [f'{path}:{node.lineno}: {ast.unparse(node)[:80]}' for node in ast.walk(tree_of(path)) if writes(node)]
    # Writing to memory, or to a temporary path of fcvit_mm.files, is allowed.
    found = [line for line in found if not re.search(r'torch\.save\(.*(buffer|file|stream|temporary)', line)]
    assert not found, 'not written through fcvit_mm.files: ' + '; '.join(found)


@pytest.mark.parametrize('path', COMMANDS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_uses_run_command_and_command_parser(path):
    tree = ast.parse(path.read_text())
    main = tree.body[-1]
    assert isinstance(main, ast.If) and '__main__' in ast.unparse(main.test)
    assert re.search(r'\brun_command\(', ast.unparse(main)), f'{path.name} does not end in run_command(main)'
    text = path.read_text()
    assert 'ArgumentParser(' not in text, f'{path.name}: command_parser has --debug'
    assert not re.search(r'traceback\.print_exc|sys\.stderr\.write|file=sys\.stderr', text)


def texts():
    """Return code, configs and documentation."""
    listed = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip('not a git checkout')
    folders = ('fcvit_mm/', 'tools/', 'configs/', 'docs/', 'dev/')
    pages = ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')
    return [
        path
        for path in filter(None, listed.stdout.split('\0'))
        if (path.startswith(folders) or path in pages) and path.endswith(('.py', '.md', '.yml', '.sh', '.cpp', '.h'))
        if (ROOT / path).is_file()
    ]


@pytest.mark.parametrize('word', WORDS)
def test_replaced_terms_are_not_used(word):
    found = []
    for path in texts():
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1):
            if not re.search(rf'(?<![A-Za-z])({word})(?![A-Za-z])', line):
                continue
            if any(re.search(files, path) and re.search(lines, line) for files, lines, _ in ALLOWED):
                continue
            found.append(f'{path}:{number}: {line.strip()[:100]}')
    assert not found, f'{len(found)} lines, say {WORDS[word]}:\n' + '\n'.join(found)


@pytest.mark.parametrize('path', [*MODULES, *sources('tools', 'dev')], ids=str)
def test_docstrings_do_not_begin_with_what_or_whether(path):
    """They begin with an imperative verb or a noun phrase."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            first = (ast.get_docstring(node) or '').split('\n')[0]
            assert not re.match(r'(What|Whether)\b', first), f'{path}:{node.lineno}: {first}'
