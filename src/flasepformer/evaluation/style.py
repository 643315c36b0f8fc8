"""How the report looks, in a light and in a dark page."""

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1c1e21; --soft: #5a6169; --line: #d9dde1; --page: #ffffff; --panel: #f4f5f7;
  --bar: #3b73b9; --worse: #c4533a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e7e9ec; --soft: #a5acb4; --line: #3a3f45; --page: #16181b; --panel: #1f2226;
    --bar: #6ea3e3; --worse: #e58a73;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 60rem;
  background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .25rem; }
p { margin: .25rem 0 .75rem; }
.soft, figcaption { color: var(--soft); }
.scroll { overflow-x: auto; margin-bottom: 1.25rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .3rem 0 .3rem 1.5rem; text-align: right; border-bottom: 1px solid var(--line); }
th, td { white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td small { color: var(--soft); }
table.facts th, table.facts td { text-align: left; white-space: normal; vertical-align: top; }
table.facts td:not(:last-child) { white-space: nowrap; }
table.facts td:last-child { overflow-wrap: anywhere; min-width: 16rem; }
svg {
  display: block; width: 100%; max-width: 44rem; height: auto; margin-bottom: 1.25rem;
  font: 12px system-ui, sans-serif;
}
.tick { fill: var(--soft); }
.grid { stroke: var(--line); }
.bar, .dot { fill: var(--bar); }
.worse { fill: var(--worse); }
.dot { fill-opacity: .6; }
.mean { stroke: var(--ink); stroke-dasharray: 4 3; }
article { background: var(--panel); border-radius: .5rem; padding: 1rem; margin: 0 0 1.25rem; }
.tracks {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .75rem 1rem;
  margin-top: .75rem;
}
figure { margin: 0; }
figcaption { font-size: .875rem; }
figure img { display: block; width: 100%; height: 7rem; background: #000; }
audio { display: block; width: 100%; height: 2.25rem; margin-top: .35rem; }
"""
