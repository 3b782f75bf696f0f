"""The HTML page escapes all text and needs no other files."""

import struct
import zlib

from fcvit_mm.analysis.page import Image, Section, Table, data_uri, render


def tiny_png():
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', 1, 1, 8, 2, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(b'\0\0\0\xff'))
        + chunk(b'IEND', b'')
    )


def test_all_text_is_escaped(parse_page):
    nasty = '<script>alert("x")</script> & \'quotes\''
    table = Table(nasty, [nasty], [[nasty, nasty]] * 9)
    page = render(
        nasty,
        nasty,
        [Section(nasty, [nasty], [nasty], [Image(tiny_png(), nasty)], [table], nasty), Section(nasty, reason=nasty)],
    )
    found = parse_page(page)  # asserts that there are no scripts
    assert '<script' not in page and found.alts == [nasty]
    assert [address[:10] for address in found.addresses] == ['data:,', '#section-1', '#section-2', 'data:image']


def test_page_has_sections_tables_and_reasons(parse_page):
    short, long = (Table(f'{count} numbers', ['a', 'b'], [['x', str(i)] for i in range(count)]) for count in (8, 9))
    properties = Table('', (), [('task', 'detection')])
    page = render(
        'Title',
        'Lead',
        [
            Section(
                'First', ['Explained'], ['Found'], [Image(tiny_png(), 'Caption')], [properties, short, long], 'Paper'
            ),
            Section('Second', ['Explained twice'], reason='No attention.'),
        ],
    )
    found = parse_page(page)
    assert found.headings == ['First', 'Second'] and data_uri(tiny_png()) in found.addresses
    assert page.count('<details>') == 1 and '<summary>9 numbers: 9 rows</summary>' in page
    assert '<caption>8 numbers</caption>' in page and page.count('<caption>') == 1
    assert 'Not shown: No attention.' in page and 'Explained twice' not in page
    assert (
        page.index('Explained') < page.index('Found') < page.index('figcaption>Caption') < page.index('Source: Paper')
    )
