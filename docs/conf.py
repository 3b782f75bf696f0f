"""Settings of the documentation site: Sphinx, MyST and Furo. `make docs` builds it, without network.

The pages are the Markdown files of this folder and, under the names of PAGES, other Markdown files of the repository.
The API reference is generated from the docstrings by every build (docs/api).
"""

import importlib
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmcv.transforms.utils import cache_randomness  # noqa: E402

from fcvit_mm import __version__  # noqa: E402

project = 'fcvit_mm'
author = 'the authors of fcvit_mm'
release = version = __version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
source_suffix = {'.md': 'markdown', '.rst': 'restructuredtext'}
exclude_patterns = ['_build']

# Every link to a heading is checked, up to this depth.
myst_heading_anchors = 4
myst_enable_extensions = ['colon_fence']

autodoc_default_options = {'members': True, 'show-inheritance': True, 'ignore-module-all': True}
# mmcv's decorator of transforms' methods refuses to be read from the class, as documenting it does.
_read = cache_randomness.__get__
cache_randomness.__get__ = lambda self, instance, owner=None: self if instance is None else _read(self, instance, owner)
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'  # the docstrings have them, with shapes
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = 'furo'
html_title = f'fcvit_mm {version}'
html_theme_options = dict(navigation_with_keys=True)
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
toc_object_entries_show_parents = 'hide'

#: Page of the site -> file of the repository that it shows.
PAGES = {
    'start': 'README.md',
    'contributing': 'CONTRIBUTING.md',
    'changelog': 'CHANGELOG.md',
    'classification': 'configs/classification/README.md',
    'detection': 'configs/detection/README.md',
    'segmentation': 'configs/segmentation/README.md',
}
START = 'index'
HIDDEN = '\0'
LINK = re.compile(r'(?P<image>!?)\[(?P<text>[^][]*)\]\((?P<target>[^)#\s]*)(?P<anchor>#[^)\s]*)?\)')


def write_api(app):
    """Write a page for each subpackage: its public names, and the docstrings of its modules."""
    folder = Path(app.srcdir) / 'api'
    folder.mkdir(exist_ok=True)
    names = find_modules()
    modules = {'fcvit_mm': [name for name in names if name.count('.') < 2 and not is_package(name)]}
    for package in find_subpackages(names):
        modules[package] = [name for name in names if (name + '.').startswith(package + '.')]
    pages = {f'{package}.rst': api_page(package, listed) for package, listed in modules.items()}
    for path in folder.iterdir():
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:  # Sphinx reads again what is newer
            path.write_text(text)


def is_package(name):
    return (ROOT / Path(*name.split('.')) / '__init__.py').exists()


def find_modules():
    """Return the names of the package's modules, each package before its modules."""
    paths = [path.relative_to(ROOT) for path in (ROOT / 'fcvit_mm').rglob('*.py') if '.mim' not in path.parts]
    names = ['.'.join(path.with_suffix('').parts).removesuffix('.__init__') for path in paths]
    return sorted(name for name in names if not name.endswith('.__main__'))


def find_subpackages(names):
    return [name for name in names if name.count('.') == 1 and is_package(name)]


def api_page(package, modules):
    """Return the text of the page of a subpackage."""
    lines = [package, '=' * len(package), '']
    for name in dict.fromkeys([package, *modules]):
        if name != package:
            lines += [name, '-' * len(name), '']
        lines += [f'.. automodule:: {name}', '']
        offered = [f':py:obj:`~{path}`' for path in offered_by(name)]
        if offered:
            lines += ['Offers ' + ', '.join(offered) + '.', '']
    return '\n'.join(lines)


def offered_by(name):
    """Yield the modules that define the names which a package exports."""
    package = importlib.import_module(name)
    for offered in getattr(package, '__all__', ()) if hasattr(package, '__path__') else ():
        value = getattr(package, offered)
        home = getattr(value, '__module__', '')
        if home.startswith(f'{name}.') and not (value.__doc__ or '').startswith('Deprecated'):
            yield f'{home}.{value.__qualname__}'


def page_of(path):
    """Return the page that shows a file or folder of the repository, or None."""
    shown = {ROOT / file: page for page, file in PAGES.items()}
    if path.is_dir():
        path = path / 'README.md'
    if path in shown:
        return START if shown[path] == 'start' else shown[path]
    if path.parent == ROOT / 'docs' and path.suffix == '.md' and path.exists():
        return path.stem
    return None


def relink(text, file):
    """Change the links of a Markdown file of the repository to pages of the site.

    Links to files that are no page (configs, sources) become their names.
    """

    def replace(match):
        target, anchor = match['target'], match['anchor'] or ''
        if not target or re.match(r'[a-z]+:', target):
            return match[0]
        path = (file.parent / target).resolve()
        if not path.exists():
            raise FileNotFoundError(f'{file.relative_to(ROOT)} links to {target}, which does not exist')
        if match['image']:
            return f'![{match["text"]}]({os.path.relpath(path, ROOT / "docs")})'
        page = page_of(path)
        if page is not None:
            return f'[{match["text"]}]({page}.md{anchor})'
        return match['text'] if '`' in match['text'] else f'`{match["text"]}`'

    return LINK.sub(replace, text)


def read_page(app, docname, source):
    """Give the pages of PAGES their text; relink the Markdown pages."""
    if docname == START:
        start, contents = ROOT / PAGES['start'], ROOT / 'docs' / f'{START}.md'
        source[0] = relink(start.read_text(), start) + '\n' + relink(source[0], contents)
        app.env.note_dependency(str(ROOT / PAGES['start']))
    elif docname in PAGES:
        source[0] = relink((ROOT / PAGES[docname]).read_text(), ROOT / PAGES[docname])
        app.env.note_dependency(str(ROOT / PAGES[docname]))
    elif app.env.doc2path(docname).suffix == '.md':
        source[0] = relink(source[0], ROOT / 'docs' / f'{docname}.md')


def hide_colon(app, what, name, obj, options, lines):
    """Keep Napoleon from reading "A table: of x" above a variable as "TYPE: description"."""
    if what in ('data', 'attribute') and lines:
        lines[0] = lines[0].replace(':', HIDDEN)


def show_colon(app, what, name, obj, options, lines):
    lines[:] = [line.replace(HIDDEN, ':') for line in lines]


def setup(app):
    app.connect('autodoc-process-docstring', hide_colon, priority=400)  # Napoleon: 500
    app.connect('autodoc-process-docstring', show_colon, priority=600)
    app.connect('builder-inited', write_api)
    app.connect('source-read', read_page)
