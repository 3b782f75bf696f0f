"""Build of the files other than Python modules: configs, tools, CPU kernels. The metadata is in setup.cfg.

Configs, tools and model-index.yml are placed where `mim` looks for them. The CPU kernels are compiled if this
environment has torch (pip's --no-build-isolation) and a compiler, unless FCVIT_MM_NATIVE=0 is set.
"""

import os
import platform
import re
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SHIPPED = ('configs', 'tools', 'model-index.yml')
NATIVE = 'fcvit_mm/ops/native'
#: Operators, the functions that divide their work among threads, and the kernels for each instruction set.
SOURCES = (
    'operators',
    'gradient_operators',
    'meta_operators',
    'convolutions',
    'products',
    'maps',
    'blocks',
    'kernels',
    'avx2',
    'avx512',
    'avx512_bf16',
)


class BuildWithMim(build_py):
    """Build step for mim's files under ``fcvit_mm/.mim``: copies in a wheel, links in an editable install."""

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
                shutil.copytree(
                    source, target / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns('__pycache__', '*.pyc')
                )
            else:
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target / name)


def native_kernels():
    """Return the arguments of ``setup`` that build the CPU kernels; none if they cannot run here or are disabled."""
    wanted = os.environ.get('FCVIT_MM_NATIVE', '1') != '0'
    if not wanted or sys.platform != 'linux' or platform.machine() != 'x86_64':
        return {}
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        return {}

    class BuildKernels(BuildExtension):
        def build_extensions(self):
            try:
                super().build_extensions()
            except Exception as error:  # no compiler, no headers, ...: the package works without the kernels
                print(
                    f'fcvit_mm: installed without compiled CPU kernels ({type(error).__name__}: {error})',
                    file=sys.stderr,
                )

    # The name contains the version of torch: see name_of_library in fcvit_mm/ops/native.
    version = re.sub(r'\W', '_', torch.__version__.split('+')[0])
    # -fopenmp only as a compiler option, for at::parallel_for: the threads must be those of torch's own OpenMP library.
    kernels = CppExtension(
        f'{NATIVE.replace("/", ".")}.kernels_for_torch_{version}',
        [f'{NATIVE}/{name}.cpp' for name in SOURCES],
        depends=[str(header) for header in sorted(Path(NATIVE).glob('*.h'))],
        extra_compile_args=['-O3', '-g0', '-fno-predictive-commoning', '-fopenmp', '-fvisibility=hidden'],
        optional=True,
    )
    build_ext = BuildKernels.with_options(no_python_abi_suffix=True)
    return dict(ext_modules=[kernels], cmdclass=dict(build_ext=build_ext))


native = native_kernels()
setup(ext_modules=native.get('ext_modules', []), cmdclass={'build_py': BuildWithMim, **native.get('cmdclass', {})})
