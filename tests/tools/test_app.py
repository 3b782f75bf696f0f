"""tools/app.py: its arguments."""

import pytest
from harness import call_tool, load_tool

from fcvit_mm.errors import UserError


@pytest.fixture(scope='module')
def tool():
    return load_tool('app.py')


def test_arguments(tool):
    assert tool.parse_args([]).host == '127.0.0.1'
    with pytest.raises(UserError, match='--max-megapixels is 0, expected more than 0'):
        tool.parse_args(['--max-megapixels', '0'])
    with pytest.raises(UserError, match='--device banana cannot be used here'):
        call_tool(tool, ['--device', 'banana'])
    pytest.importorskip('gradio')
    with pytest.raises(UserError, match='config nowhere.py does not exist'):
        call_tool(tool, ['nowhere.py', 'nowhere.pth'])
