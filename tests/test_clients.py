"""The examples of docs/clients.md with other libraries, each run if the library is installed."""

import re

import pytest
import torch
import torch.distributed as dist
from harness import ROOT, write_config

PAGE = (ROOT / 'docs' / 'clients.md').read_text()
#: Title -> its example.
EXAMPLES = dict(re.findall(r'^## (\S+)\n(?:(?!^## ).)*?```python\n(.*?)```', PAGE, re.DOTALL | re.MULTILINE))
PACKAGES = {'FSDP2': 'torch'}


@pytest.fixture
def names(tmp_path, shapes):
    """Return a function that makes the files of an example, for a small detector with random weights."""

    def make():
        pytest.importorskip('mmdet')

        from fcvit_mm.apis.load import build_model
        from fcvit_mm.engine.config import load_config

        data = shapes('detection')
        config = write_config('detection', tmp_path, data, '\nmodel["test_cfg"]["rcnn"]["score_thr"] = 0.0\n')
        torch.manual_seed(0)
        model = build_model(load_config(str(config)))
        meta = {'dataset_meta': {'classes': ('circle', 'cross', 'square', 'star', 'triangle')}}
        torch.save({'state_dict': model.state_dict(), 'meta': meta}, tmp_path / 'a.pth')
        image = sorted((data / 'val2017').iterdir())[0]
        return dict(CONFIG=str(config), CHECKPOINT=str(tmp_path / 'a.pth'), IMAGE=str(image))

    return make


@pytest.fixture
def one_process(tmp_path):
    """A group of one process, as torchrun makes it."""
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/meet', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize('title', EXAMPLES)
def test_example(title, names, request, tmp_path, monkeypatch):
    pytest.importorskip('timm')
    pytest.importorskip(PACKAGES.get(title, title))
    monkeypatch.chdir(tmp_path)
    if title == 'FSDP2':
        if torch.__version__ < '2.6':
            pytest.skip('torch.distributed.fsdp.fully_shard came with 2.6')
        request.getfixturevalue('one_process')
    code = EXAMPLES[title]
    given = names() if 'CHECKPOINT' in code else {}
    exec(compile(code, f'docs/clients.md {title}', 'exec'), dict(given, __name__='__main__'))


def test_there_are_examples():
    assert {'peft', 'captum', 'sahi', 'supervision', 'openvino', 'torchao', 'lightning', 'FSDP2'} <= set(EXAMPLES)


def test_openvino_computes_in_float32():
    """Otherwise OpenVINO uses bfloat16 where the CPU supports it, and detections differ."""
    calls = [
        line
        for page in (ROOT / 'docs').glob('*.md')
        for line in page.read_text().splitlines()
        if 'compile_model(' in line
    ]
    assert len(calls) >= 2 and all("'INFERENCE_PRECISION_HINT': 'f32'" in line for line in calls)
