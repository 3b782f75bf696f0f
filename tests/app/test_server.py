"""The server of the page: its port, and the requests that it refuses."""

import json
import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest

from fcvit_mm.app.server import open_port
from fcvit_mm.errors import UserError


def test_port_in_use_is_reported():
    with open_port('127.0.0.1', 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f'cannot listen on 127.0.0.1, port {port} .* --host and --port'):
            open_port('127.0.0.1', port)
    with pytest.raises(UserError, match='cannot listen on 192.0.2.1'):
        open_port('192.0.2.1', None)


def test_page_requests_no_other_hosts(served):
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(served, timeout=20) as answer:
        assert "default-src 'self'" in answer.headers['Content-Security-Policy']
        assert b'api.gradio.app' not in answer.read()


def test_only_uploaded_files_are_opened(served, tmp_path):
    """A forged request that names a file of the machine instead of an upload."""
    cv2.imwrite(str(tmp_path / 'private.png'), np.zeros((9, 9, 3), np.uint8))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    upload = dict(path=str(tmp_path / 'private.png'), meta={'_type': 'gradio.FileData'})
    body = dict(data=['fcvit_tiny_shapes', upload], fn_index=0, session_hash='a')
    opener.open(
        urllib.request.Request(
            f'{served}gradio_api/queue/join', json.dumps(body).encode(), {'Content-Type': 'application/json'}
        ),
        timeout=20,
    ).close()
    with opener.open(f'{served}gradio_api/queue/data?session_hash=a', timeout=60) as answers:
        answer = next(line for line in answers if b'process_completed' in line)
    assert json.loads(answer[len('data: ') :])['success'] is False
    shown = urllib.request.Request(f'{served}gradio_api/file={tmp_path}/private.png')
    with pytest.raises(urllib.error.HTTPError, match='403'):
        opener.open(shown, timeout=20)
