from fcvit_mm.preflight.log import shorten, unique


def test_shorten_and_unique():
    assert shorten([1, 2, 3], 2) == '1, 2, ...' and shorten('ab') == 'a, b'
    assert unique(['b', 'a', 'b']) == ['b', 'a']
