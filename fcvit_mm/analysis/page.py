"""A self-contained HTML page: images inside it, no scripts, nothing fetched. All text is escaped."""

import base64
from typing import List, NamedTuple, Optional, Sequence

#: With ``default-src 'none'``, a browser fetches nothing.
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f5f7; color: #1d232b; font: 16px/1.55 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.8rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 0 0 10px; }
.lead { margin: 0 0 20px; color: #55606d; }
nav { margin: 20px 0; padding: 12px 20px; background: #fff; border: 1px solid #dfe3e8; border-radius: 8px; }
nav ol { margin: 0; padding-left: 1.4em; columns: 2; }
nav a { color: #0059a3; }
nav .absent { color: #6b7480; }
section { margin: 20px 0; padding: 20px 24px 22px; background: #fff; border: 1px solid #dfe3e8; border-radius: 8px; }
p { margin: 0 0 10px; max-width: 88ch; }
.finding { padding: 8px 14px; background: #eef5fb; border-left: 4px solid #0072b2; border-radius: 0 4px 4px 0; }
.reason { padding: 8px 14px; background: #faf5e9; border-left: 4px solid #e69f00; border-radius: 0 4px 4px 0; }
figure { margin: 18px 0 8px; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { margin-top: 6px; color: #55606d; font-size: 0.9rem; text-align: center; }
.scroll { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #55606d; padding-bottom: 4px; }
th, td { padding: 4px 14px 4px 0; text-align: right; border-bottom: 1px solid #e6e9ed; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.properties th, .properties td { text-align: left; vertical-align: top; }
.properties td { white-space: normal; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid #b9c1cb; }
tbody th { font-weight: normal; }
details { margin: 10px 0; }
summary { cursor: pointer; color: #0059a3; }
.source { font-size: 0.87rem; color: #55606d; }
@media (max-width: 640px) { nav ol { columns: 1; } section { padding: 16px; } }
@media print { body { background: #fff; } section { border: 0; padding: 0; } nav { display: none; } }
</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
<nav aria-label="Contents"><ol>
{% for section in sections %}
<li><a href="#section-{{ loop.index }}">{{ section.title }}</a>{% if section.reason %} <span class="absent">(not
shown)</span>{% endif %}</li>
{% endfor %}
</ol></nav>
{% for section in sections %}
<section id="section-{{ loop.index }}">
<h2>{{ loop.index }}. {{ section.title }}</h2>
{% if section.reason %}
<p class="reason">Not shown: {{ section.reason }}</p>
{% else %}
{% for text in section.explanation %}<p>{{ text }}</p>
{% endfor %}
{% for text in section.findings %}<p class="finding">{{ text }}</p>
{% endfor %}
{% for figure in section.figures %}
<figure><img src="{{ figure.png | data_uri }}" alt="{{ figure.caption }}">
<figcaption>{{ figure.caption }}</figcaption></figure>
{% endfor %}
{% for table in section.tables %}
{% set collapsed = table.header and table.rows | length > 8 %}
{% if collapsed %}<details><summary>{{ table.caption }}: {{ table.rows | length }} rows</summary>
{% endif %}
<div class="scroll"><table{% if not table.header %} class="properties"{% endif %}>
{% if not collapsed and table.caption %}<caption>{{ table.caption }}</caption>
{% endif %}
{% if table.header %}<thead><tr>{% for cell in table.header %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
{% endif %}
<tbody>
{% for row in table.rows %}<tr>{% for cell in row %}{% if loop.first %}<th scope="row">{{ cell }}</th>{% else %}\
<td>{{ cell }}</td>{% endif %}{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% if collapsed %}</details>
{% endif %}
{% endfor %}
{% if section.source %}<p class="source">Source: {{ section.source }}</p>{% endif %}
{% endif %}
</section>
{% endfor %}
</main>
</body>
</html>
"""


class Image(NamedTuple):
    """The bytes of a PNG file, and a caption, which is also the alternative text."""

    png: bytes
    caption: str


class Table(NamedTuple):
    """Rows of text; the first cell of a row is its header. Without a header row it is a list of properties."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Section(NamedTuple):
    """A section of the page.

    Attributes:
        title (str): Heading.
        explanation (Sequence[str]): Paragraphs: what is shown and how to read it.
        findings (Sequence[str]): Paragraphs: the results for this network.
        figures (Sequence[Image]): Figures, in order.
        tables (Sequence[Table]): Below the figures; long ones are collapsed.
        source (str, optional): Source of the method.
        reason (str, optional): Why the section is not shown, in place of all but the title.
    """

    title: str
    explanation: Sequence[str] = ()
    findings: Sequence[str] = ()
    figures: Sequence[Image] = ()
    tables: Sequence[Table] = ()
    source: Optional[str] = None
    reason: Optional[str] = None


def data_uri(png: bytes) -> str:
    """Return a PNG file's bytes as a data URI."""
    return 'data:image/png;base64,' + base64.b64encode(png).decode('ascii')


def render(title: str, lead: str, sections: List[Section]) -> str:
    """Render the page.

    Args:
        title (str): Title of the page and its main heading.
        lead (str): One paragraph below it.
        sections (list[Section]): Sections, in order; they are numbered.

    Returns:
        str: HTML.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters['data_uri'] = data_uri
    page: str = environment.from_string(PAGE).render(title=title, lead=lead, sections=sections)
    return page
