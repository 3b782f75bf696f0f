"""Examples of docstrings, commands, links and Python blocks in the docs are valid. Nothing is trained here."""

import argparse
import ast
import configparser
import doctest
import importlib
import re
import runpy
import shlex
import shutil
import sys
import textwrap
from functools import lru_cache
from pathlib import Path

import pytest
from harness import ROOT, path_of

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ('*.md', 'docs/**/*.md', 'configs/*/README.md', 'configs/*/*/README.md', '.github/**/*.md')
    for path in ROOT.glob(pattern)
)
#: Modules with examples. Examples that need data or take long are marked with ``# doctest: +SKIP``.
WITH_EXAMPLES = sorted(
    path.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.').replace('.__init__', '')
    for path in (ROOT / 'fcvit_mm').rglob('*.py')
    if '>>> ' in path.read_text() and '.mim' not in path.parts
)
FOLDERS = ('tools/', 'dev/', 'configs/', 'docs/', 'requirements/', 'tests/', '.ci/', 'fcvit_mm/')
OPTIONAL = (
    *('mmpretrain', 'mmdet', 'mmseg', 'timm', 'gradio', 'onnx', 'onnxruntime', 'selenium'),
    *('captum', 'lightning', 'openvino', 'peft', 'sahi', 'segmentation_models_pytorch', 'supervision', 'torchao'),
    'transformers',
)


@pytest.mark.parametrize('module', WITH_EXAMPLES)
def test_examples_of_docstrings_run(module):
    pytest.importorskip('timm')
    with_output = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert not with_output.failed


def blocks(page, language):
    """Return the code blocks of a language."""
    found = re.findall(rf'^( *)```{language}\n(.*?)^ *```', (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(body) for _, body in found]


def commands(page):
    """Return the commands in the shell blocks of a page as lists of words; variables that it sets are replaced."""
    variables, found = {}, []
    for block in blocks(page, '(?:bash|shell|sh|console)'):
        for line in block.replace('\\\n', ' ').splitlines():
            for part in re.split(r'\s(?:&&|;|\|)\s', line):
                part = re.sub(r'\$\{(\w+)%[^}]*\}', r'$\1', part.lstrip('$ '))
                part = re.sub(r'\$(\w+)', lambda match: variables.get(match[1], match[0]), part)
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r'[A-Z]\w*=.*', words[0]):
                    name, _, value = words.pop(0).partition('=')
                    variables[name] = value
                if words:
                    found.append(words)
    return found


class Found(Exception):
    """Exception that passes the parser of a command out of its ``main``."""


@lru_cache(maxsize=None)
def parser_of(tool):
    """Return the argument parser of a command."""

    def stop(self, *args, **kwargs):
        raise Found(self)

    path = path_of(tool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, 'parse_args', stop)
        patch.setattr(argparse.ArgumentParser, 'parse_known_args', stop)
        patch.setattr(sys, 'argv', [str(path)])
        patch.syspath_prepend(str(path.parent))
        before = set(sys.modules)
        try:
            runpy.run_path(str(path), run_name='__main__')
        except Found as found:
            return found.args[0]
        finally:
            # tools/analysis and dev/benchmark have modules with the same names.
            for name in set(sys.modules) - before:
                if Path(getattr(sys.modules[name], '__file__', None) or '').parent == path.parent:
                    del sys.modules[name]
    raise AssertionError(f'{tool} parses no arguments')


def tool_of(words):
    """Return the Python file in tools or dev that a command starts, without the folder, and its arguments, or None."""
    for index, word in enumerate(words[:2]):
        match = re.fullmatch(r'(?:tools|dev)/(.*\.py)', word)
        if match and (index == 0 or 'python' in words[0]):
            return match[1], words[index + 1 :]
    return None


def check_command(words, complete):
    """Check that the files and options of a command exist; if it is ``complete``, also parse its arguments."""
    for word in words:
        for path in word.split('@'):
            name = path.split('/')[-1]
            if path.startswith(FOLDERS) and not re.search(r'[*$<{]|[A-Z]{3}', name) and not name.startswith('my_'):
                exists = (ROOT / path).exists() or '--out' in ' '.join(words) and path.startswith('docs/')
                assert exists, f'{path} of "{shlex.join(words)}" does not exist'
    if words[0] == 'make':
        targets = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
        for word in words[1:]:
            assert '=' in word or word in targets, f'make has no target {word}'
    for extras in re.findall(r'(?:fcvit_mm|\.)\[([\w,-]+)\]', ' '.join(words)):
        setup = configparser.ConfigParser()
        setup.read(ROOT / 'setup.cfg')
        assert set(extras.split(',')) <= set(setup['options.extras_require']), f'no such extra: {extras}'
    if tool_of(words):
        tool, arguments = tool_of(words)
        parser = parser_of(tool)
        options = [word.partition('=')[0] for word in arguments if word.startswith('--')]
        known = {name for action in parser._actions for name in action.option_strings}
        assert set(options) <= known, f'{tool} has no {sorted(set(options) - known)}'
        if complete:
            try:
                parser.parse_args(arguments)
            except SystemExit as error:
                raise AssertionError(f'"{shlex.join(words)}" does not parse') from error


@pytest.mark.parametrize('page', PAGES)
def test_commands_can_be_parsed(page):
    for words in commands(page):
        # Commands such as ``python tools/x.py ... --option`` are abbreviated.
        check_command(words, complete='...' not in words)


def test_configs_of_the_training_page_can_be_loaded(tmp_path):
    for library in ('mmpretrain', 'mmdet', 'mmseg'):
        pytest.importorskip(library)
    from fcvit_mm.engine.config import load_config

    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    text = (ROOT / 'docs/training.md').read_text()
    found = re.findall(r'^`(configs/\w+/my_\w+\.py)`.*?```python\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
    for path, config in found:
        (tmp_path / path).write_text(config)
    heads = {Path(path).stem: load_config(str(tmp_path / path)).model for path, _ in found}
    assert sorted(heads) == ['my_classes', 'my_finetuning', 'my_masks', 'my_objects']
    assert heads['my_classes'].head.num_classes == 5 and heads['my_masks'].decode_head.num_classes == 6
    assert heads['my_finetuning'].roi_head.mask_head.num_classes == 5


@pytest.mark.parametrize('page', PAGES)
def test_commands_within_the_text_name_existing_files_and_options(page):
    text = re.sub(r'^ *```.*?^ *```', '', (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r'`([^`\n]+)`', text):
        if re.match(r'(python |make |pip install |(tools|dev|configs|docs|requirements|tests)/)', code):
            try:
                words = shlex.split(code, comments=True)
            except ValueError:
                continue
            check_command(words, complete=False)


def anchors(path):
    """Return the anchors that GitHub generates for the headings of a page."""
    text = re.sub(r'^ *```.*?^ *```', '', path.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = set()
    for heading in re.findall(r'^#+ (.*)$', text, re.MULTILINE):
        heading = re.sub(r'\]\([^)]*\)|[`*\[]', '', heading).strip().lower()
        found.add(re.sub(r'[^\w\- ]', '', heading).replace(' ', '-'))
    return found


@pytest.mark.parametrize('page', PAGES)
def test_links_resolve(page):
    text = re.sub(r'^ *```.*?^ *```', '', (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
        if re.match(r'\w+:', link):
            continue
        name, _, anchor = link.partition('#')
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), f'{link} leads nowhere'
        if anchor and target.suffix == '.md':
            assert anchor in anchors(target), f'{target.name} has no heading #{anchor}'


@pytest.mark.parametrize('page', [page for page in PAGES if blocks(page, 'python')])
def test_python_compiles_and_its_imports_resolve(page):
    for block in blocks(page, 'python'):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                names = [(alias.name, None) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module, alias.name) for alias in node.names]
            else:
                continue
            for module, name in names:
                if module.split('.')[0] in OPTIONAL:
                    pytest.importorskip(module.split('.')[0])
                if module.split('.')[0].startswith('my'):  # a module of the user
                    continue
                imported = importlib.import_module(module)
                assert name is None or hasattr(imported, name), f'{module} has no {name}'
