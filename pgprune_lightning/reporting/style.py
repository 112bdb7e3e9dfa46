"""How report and pictures look: light, dark and on paper; colours that the colour-blind can tell.

Lines have Okabe and Ito's colours. Heat maps go from pale to dark blue in light, and from dark to
pale in dark surroundings, so that much stands out against little in either.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

NUM_LINE_STYLES = 8
HEAT_LEVELS = 11

_LIGHT_LINES = ("0072B2", "D55E00", "008A62", "B4558C", "B27C00", "3D9BD1", "30343A", "8C6D31")
_DARK_LINES = ("56B4E9", "FF9350", "34C89F", "E59BC8", "F0C94A", "A9BEFF", "E4E8ED", "CBA86B")
# Columns of six digits: eleven colours a row.
_LIGHT_HEAT = re.findall(
    ".{6}", "F3F6FAE2EBF4CFDFEEB6D0E698BEDC77A9CF5591C03A78AE255F99154780082F63"
)
_DARK_HEAT = re.findall(
    ".{6}", "1B222B202E3D243B52284A692D5A82356C9B4580B25F97C582AFD6A8C8E5D2E4F5"
)


def _variables(prefix: str, colours: Sequence[str]) -> str:
    return "".join(f"--{prefix}{index}:#{colour};" for index, colour in enumerate(colours))


_LIGHT = (
    "--paper:#fff;--ink:#1b1f24;--soft:#59636e;--line:#d5dbe2;--panel:#f6f8fa;--mark:#b42318;"
    "--fine:#116329;" + _variables("s", _LIGHT_LINES) + _variables("h", _LIGHT_HEAT)
)
_DARK = (
    "--paper:#0f141a;--ink:#e4e8ed;--soft:#9aa6b2;--line:#313a45;--panel:#171d25;--mark:#ff8a80;"
    "--fine:#6fdd8b;" + _variables("s", _DARK_LINES) + _variables("h", _DARK_HEAT)
)

CHART_STYLE = (
    f":root{{color-scheme:light dark;{_LIGHT}}}"
    f"@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
    f"@media print{{:root{{color-scheme:light;{_LIGHT}}}}}"
    """
*{box-sizing:border-box}
body{margin:0;overflow-wrap:anywhere;background:var(--paper);color:var(--ink);
 font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
figure{margin:0;min-width:0;break-inside:avoid}
figcaption{font-weight:600;font-size:.95rem}
figure p{margin:.2rem 0;color:var(--soft);font-size:.85rem}
svg.chart{display:block;width:100%;max-width:560px;height:auto;margin:.3rem 0;
 print-color-adjust:exact;-webkit-print-color-adjust:exact}
svg.chart text{font-size:11.5px;fill:var(--soft);font-family:inherit}
svg.chart text.value{fill:var(--ink);font-weight:600;paint-order:stroke;stroke:var(--paper);
 stroke-width:4px;stroke-linejoin:round}
.grid{stroke:var(--line);stroke-width:1}
.axis{stroke:var(--soft);stroke-width:1}
.trace{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}
.dashed{stroke-dasharray:5 3}
.range{stroke:none;opacity:.18}
.spot{stroke:var(--paper);stroke-width:1.5}
.before{stroke:var(--ink);stroke-width:2}
.kept{fill:var(--paper);stroke:var(--ink);stroke-width:.8}
.touch{fill:transparent}
.touch:hover{fill:var(--ink);fill-opacity:.07}
.cell:hover{stroke:var(--ink)}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1rem;margin:0;padding:0;list-style:none;
 font-size:.85rem;color:var(--soft)}
.legend svg{width:22px;height:10px;vertical-align:middle;margin-right:.35rem;
 print-color-adjust:exact;-webkit-print-color-adjust:exact}
"""
    + "".join(
        f".s{index}{{stroke:var(--s{index})}}.f{index}{{fill:var(--s{index})}}"
        for index in range(NUM_LINE_STYLES)
    )
    + "".join(f".h{index}{{fill:var(--h{index})}}" for index in range(HEAT_LEVELS))
)

PAGE_STYLE = """
main,header,footer{max-width:1160px;margin:0 auto;padding:0 16px}
header{padding-top:1.4rem}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .2rem}
h2{font-size:1.3rem;margin:2.4rem 0 .4rem;padding-top:.8rem;border-top:2px solid var(--line)}
h3{font-size:1.05rem;margin:1.8rem 0 .5rem}
p{margin:.4rem 0}
a{color:var(--s0)}
.soft,footer{color:var(--soft);font-size:.9rem}
footer{padding-top:2rem;padding-bottom:2rem}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;padding:0;margin:.6rem 0;list-style:none}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:.6rem;
 margin:.8rem 0;padding:0}
.tile{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:.6rem .8rem;
 break-inside:avoid}
.tile b{display:block;font-size:1.5rem;line-height:1.2;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:.85rem}
.notes{border-left:4px solid var(--mark);background:var(--panel);margin:.8rem 0;
 padding:.5rem .8rem;border-radius:0 6px 6px 0}
.notes ul{margin:.2rem 0;padding-left:1.2rem}
.scroll{overflow-x:auto;margin:.5rem 0}
table{overflow-wrap:normal;border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:.28rem .7rem;border-bottom:1px solid var(--line);text-align:left;
 vertical-align:top}
th{color:var(--soft);font-weight:600}
tbody th{color:var(--ink);font-weight:500}
.number{text-align:right;white-space:nowrap}
tr.chosen td,tr.chosen th{font-weight:700}
.charts{display:grid;margin-top:.8rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));
 gap:1.6rem 2rem}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.15rem 1rem;margin:.5rem 0;
 font-size:.92rem}
dt{color:var(--soft)}
dd{margin:0}
details{margin:.4rem 0;font-size:.92rem}
summary{cursor:pointer;color:var(--soft)}
details[open]>summary{color:var(--ink)}
pre{white-space:pre-wrap;background:var(--panel);
 border:1px solid var(--line);border-radius:6px;padding:.6rem .8rem;font-size:.82rem;margin:.4rem 0}
code{font-size:.88em}
blockquote{margin:.5rem 0;padding:.1rem .9rem;border-left:4px solid var(--line);
 white-space:pre-wrap}
blockquote.first{border-color:var(--s0)}blockquote.second{border-color:var(--s1)}
.yes{color:var(--fine);font-weight:600}.no{color:var(--mark);font-weight:600}
@media (max-width:560px){
 dl{grid-template-columns:minmax(0,1fr);gap:0}dd{margin-bottom:.35rem}
 th,td{padding:.25rem .45rem}
 .tiles{grid-template-columns:repeat(2,minmax(0,1fr))}
 .tile b{font-size:1.25rem}tbody th{min-width:6.5rem}
}
@media print{body{font-size:11pt}details:not([open]){display:none}nav{display:none}
 .scroll{overflow:visible}table{font-size:8.5pt}th,td{overflow-wrap:anywhere;padding:.2rem .35rem}
.charts{grid-template-columns:1fr 1fr}h2{break-after:avoid}}
"""
