"""The metadata is in setup.cfg. This adds configs, tools and model-index.yml to the package, where `mim` looks."""
import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SHIPPED = ('configs', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    """Put what mim needs under ``fcvit_mm/.mim``: copies in a wheel, links in an editable install."""

    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False):
            self.link(ROOT / 'fcvit_mm' / '.mim')
        else:
            self.copy(Path(self.build_lib) / 'fcvit_mm' / '.mim')

    @staticmethod
    def link(target):
        target.mkdir(exist_ok=True)
        for name in SHIPPED:
            link = target / name
            if not link.is_symlink() and not link.exists():
                link.symlink_to(os.path.relpath(ROOT / name, target))

    @staticmethod
    def copy(target):
        for name in SHIPPED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, target / name, dirs_exist_ok=True,
                                ignore=shutil.ignore_patterns('__pycache__', '*.pyc'))
            else:
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target / name)


setup(cmdclass={'build_py': BuildWithMim})
