import json
import re

import pytest
from harness import run_tool


def test_checks_are_timed_on_a_generated_data_set(tmp_path):
    pytest.importorskip('mmdet')
    done = run_tool('time_preflight.py', tmp_path / 'd', '--images', 12, 40, cwd=tmp_path)
    found = re.search(r'12 \+ 40 images: ([0-9.]+) s, ([0-9.]+) s of them for building .* ([0-9.]+) s for', done.stdout)
    seconds, building, checks = map(float, found.groups())
    assert 0 <= building <= seconds < 60 and checks == pytest.approx(seconds - building, abs=0.11)
    content = json.loads((tmp_path / 'd' / 'annotations' / 'instances_val2017.json').read_text())
    assert len(content['images']) == 40 and 200 < len(content['annotations']) < 400
    before = (tmp_path / 'd' / 'annotations' / 'instances_val2017.json').stat().st_mtime_ns
    run_tool('time_preflight.py', tmp_path / 'd', '--images', 12, 40, cwd=tmp_path)
    assert (tmp_path / 'd' / 'annotations' / 'instances_val2017.json').stat().st_mtime_ns == before
