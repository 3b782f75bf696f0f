"""The arguments of tools/app.py."""

import pytest
from harness import call_tool, load_tool

from fcvit_mm.errors import UserError


@pytest.fixture(scope='module')
def tool():
    return load_tool('app.py')


def test_invalid_arguments_are_refused(tool):
    assert tool.parse_args([]).host == '127.0.0.1'
    for option, value in ('megapixels', '0'), ('megabytes', 'inf'), ('megabytes', 'nan'):
        with pytest.raises(UserError, match=f'--max-{option} is {value}, expected a number above 0'):
            tool.parse_args([f'--max-{option}', value])
    with pytest.raises(UserError, match='--device banana cannot be used here'):
        call_tool(tool, ['--device', 'banana'])
    pytest.importorskip('gradio')
    with pytest.raises(UserError, match='config nowhere.py does not exist'):
        call_tool(tool, ['nowhere.py', 'nowhere.pth'])
