"""The sheet as one HTML page that needs nothing else: style and charts stand in it."""

from __future__ import annotations

from html import escape

from gateway.tco.charts import FONT
from gateway.tco.sheet import Sheet, Table

_STYLE = f"""
:root {{ color-scheme: light; }}
body {{ margin: 0; background: #f1f5f9; color: #1f2933; font: 14px/1.5 {FONT}; }}
main {{ max-width: 1180px; margin: 24px auto; padding: 32px 40px; background: #fff;
  box-shadow: 0 1px 4px #0002; }}
h1 {{ font-size: 26px; margin: 0 0 4px; }}
h2 {{ font-size: 15px; margin: 26px 0 6px; }}
.faint {{ color: #64748b; margin: 0; }}
.verdict {{ font-size: 17px; margin: 18px 0; padding: 12px 16px; background: #eef4f9;
  border-left: 4px solid #2f5d8a; }}
.tiles {{ display: grid; grid-template-columns: repeat(6, 1fr); gap: 10px; }}
.tile {{ border: 1px solid #e2e8f0; padding: 10px 12px; }}
.tile b {{ display: block; font-size: 19px; white-space: nowrap; }}
.tile span {{ font-size: 12px; color: #64748b; display: block; }}
.charts {{ display: grid; grid-template-columns: 1fr 1fr; gap: 26px 36px; margin-top: 26px; }}
.charts svg {{ width: 100%; height: auto; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: 13px; }}
th, td {{ padding: 4px 8px; text-align: right; border-bottom: 1px solid #e2e8f0;
  font-variant-numeric: tabular-nums; }}
th {{ color: #64748b; font-weight: 600; }}
th:first-child, td:first-child, .words td, .words th {{ text-align: left; }}
.two {{ display: grid; grid-template-columns: 2fr 3fr; gap: 0 36px; align-items: start; }}
ul {{ padding-left: 18px; margin: 6px 0; }}
@media (max-width: 900px) {{ .tiles {{ grid-template-columns: 1fr 1fr; }}
  .charts, .two {{ grid-template-columns: 1fr; }} main {{ padding: 16px; }} }}
@media print {{ body {{ background: #fff; }} main {{ box-shadow: none; margin: 0; padding: 0; }}
  .charts > *, table {{ break-inside: avoid; }} }}
"""


def html(sheet: Sheet) -> str:
    """The page as text. Every word in it is escaped; it holds no script and loads nothing."""
    tiles = "".join(
        f'<div class="tile"><span>{escape(what)}</span><b>{escape(figure)}</b>'
        f"<span>{escape(beside)}</span></div>"
        for what, figure, beside in sheet.tiles
    )
    servers, all_local, books, assumed = sheet.tables
    notes = "".join(f"<li>{escape(note)}</li>" for note in sheet.notes)
    return f"""<!DOCTYPE html>
<html lang="{escape(sheet.lang, quote=True)}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(sheet.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(sheet.title)}</h1>
<p class="faint">{escape(sheet.period)}</p>
<p class="faint">{escape(sheet.made)}</p>
<p class="verdict">{escape(sheet.verdict)}</p>
<div class="tiles">{tiles}</div>
<div class="charts">{"".join(f"<div>{chart}</div>" for chart in sheet.charts)}</div>
{_table(servers)}
{_table(all_local)}
<div class="two"><div>{_table(books)}</div><div>{_table(assumed, words=True)}</div></div>
<h2>{escape(sheet.notes_title)}</h2>
<ul>{notes}</ul>
</main>
</body>
</html>
"""


def _table(table: Table, *, words: bool = False) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    kind = ' class="words"' if words else ""
    return (
        f"<h2>{escape(table.title)}</h2>"
        f'<div class="wide"><table{kind}><tr>{head}</tr>{rows}</table></div>'
    )
