"""The style sheet of all pages: colours as variables for light and dark screens, from phones up.

Other colours than the variables occur nowhere, so that their contrast can be checked.
"""

#: Text in every one of these has a contrast of WCAG AA (4.5) on every ground of these.
TEXTS = ("ink", "faint", "good", "bad", "accent")
GROUNDS = ("paper", "ground", "accent-ground")

_LIGHT = {
    "paper": "#ffffff",
    "ground": "#f4f5f8",
    "accent-ground": "#e8f1fc",
    "ink": "#1b2433",
    "faint": "#566072",
    "good": "#0b6b33",
    "bad": "#b91c1c",
    "accent": "#0a5cbb",
    "bar": "#75839a",
    "line": "#dfe3ea",
    # Behind pictures that are drawn on white.
    "white": "#ffffff",
}
_DARK = {
    "paper": "#1b2130",
    "ground": "#11151e",
    "accent-ground": "#1f3352",
    "ink": "#e4e8ef",
    "faint": "#a7b1c2",
    "good": "#4cc97f",
    "bad": "#ff8f8f",
    "accent": "#6cb2ff",
    "bar": "#8494ad",
    "line": "#323a4b",
    "white": "#ffffff",
}
#: By the value of the media feature prefers-color-scheme.
COLOURS = {"light": _LIGHT, "dark": _DARK}

RULES = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans",
  "DejaVu Sans", sans-serif; }
main { max-width: 1320px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
header { margin-bottom: 1.75rem; }
h1 { font-size: clamp(1.5rem, 1.1rem + 2vw, 2.2rem); line-height: 1.2; margin: 0 0 .5rem;
  letter-spacing: -.015em; text-wrap: balance; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .75rem; letter-spacing: -.005em; }
h3 { font-size: 1.05rem; line-height: 1.35; margin: 1.75rem 0 .5rem; }
h4 { font-size: 1rem; line-height: 1.35; margin: 0 0 .15rem; }
p { margin: 0 0 .9rem; max-width: 46rem; overflow-wrap: anywhere; }
p:last-child { margin-bottom: 0; }
.faint { color: var(--faint); }
.note { color: var(--faint); font-size: .875rem; margin-top: .9rem; }
.lead { font-size: 1.1rem; }
.warning { border-left: 4px solid var(--bad); padding-left: .75rem; margin-top: .9rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 12px;
  padding: 1.5rem; margin: 0 0 1.25rem; }
.points { margin: 0 0 1rem; padding-left: 1.2rem; max-width: 50rem; }
.points li { margin-bottom: .45rem; }
.scroll { overflow-x: auto; }
.scroll + .scroll, .scroll + p { margin-top: 1rem; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .75rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); vertical-align: baseline; }
th:first-child { text-align: left; padding-left: .25rem; position: sticky; left: 0;
  background: var(--paper); }
thead th { font-size: .8125rem; font-weight: 600; color: var(--faint); }
tbody th { font-weight: 600; }
tbody tr:last-child > * { border-bottom: 0; }
tr.strong > * { background: var(--accent-ground); }
td small { display: block; font-size: .8125rem; line-height: 1.3; color: var(--faint); }
.bars { display: grid; grid-template-columns: max-content 1fr; gap: .5rem .9rem;
  align-items: center; margin: 1.25rem 0 1.5rem; }
.bars > div { display: flex; align-items: center; gap: .6rem; font-weight: 600;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.bars i { display: block; height: 1.1rem; background: var(--bar); border-radius: 3px;
  min-width: 2px; max-width: calc(100% - 4.2rem); }
.bars .strong i { background: var(--accent); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr));
  gap: 1rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr));
  gap: 1.25rem 2.5rem; }
.pair > .scroll { margin-top: 0; }
.pair td { white-space: normal; overflow-wrap: anywhere; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; border-radius: 4px; }
.card { background: var(--white); border: 1px solid var(--line); border-radius: 8px;
  padding: 4px; }
ol, ul { list-style: none; margin: 0; padding: 0; }
.points { list-style: disc; }
.missing { background: var(--ground); color: var(--faint); border-radius: 4px; margin: 0;
  padding: 2rem .75rem; font-size: .875rem; }
li > div { min-width: 0; }
li > div > b, li span { display: block; overflow-wrap: anywhere; }
li > div i { font-style: normal; }
.hits { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr));
  gap: 1rem; }
.hits > li { border: 1px solid var(--line); border-radius: 8px; padding: .6rem; display: grid;
  grid-template-columns: minmax(4.5rem, max-content) 1fr; gap: .6rem .9rem;
  align-content: start; font-size: .9rem; }
.hits > li > :first-child { grid-column: 1 / -1; }
.hits img + img { width: auto; height: 9.5rem; max-width: 9rem; object-fit: contain;
  object-position: left top; }
.thumbnails { display: flex; flex-wrap: wrap; gap: .75rem; margin-bottom: 1rem; }
.thumbnails > li { width: 7.5rem; font-size: .875rem; line-height: 1.35; }
.thumbnails img, .thumbnails .missing { height: 10rem; object-fit: contain;
  object-position: left bottom; }
.scenes { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr));
  gap: 1.25rem; font-size: .9rem; }
.scale { max-width: 430px; margin-bottom: 1rem; }
article { border-top: 1px solid var(--line); margin-top: 1.75rem; }
article h3 { margin-top: 1.25rem; }
.wanted > li, .ranks > li { display: grid; gap: .3rem .7rem; align-items: start; }
.wanted > li { grid-template-columns: minmax(0, 24rem) minmax(0, 7.5rem); margin-bottom: 1.25rem; }
.wanted img + img { max-height: 18rem; object-fit: contain; object-position: left top; }
.ranks > li { grid-template-columns: minmax(0, 3.4fr) minmax(0, 1fr) 8.1rem;
  padding: .5rem 0; border-top: 1px solid var(--line); font-size: .875rem; line-height: 1.4; }
.ranks img + img { max-height: 9rem; object-fit: contain; object-position: left top; }
.models { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr));
  gap: 1.5rem 1.75rem; }
.models > div > p { margin-bottom: .5rem; font-size: .9rem; }
@media (max-width: 640px) { main { padding: 1.5rem .75rem 3rem; } section { padding: 1.1rem; }
  th, td { padding: .45rem .5rem; } tbody th:first-child { white-space: normal; }
  .ranks > li { grid-template-columns: minmax(0, 3.4fr) minmax(0, 1fr) 6.4rem; }
  .bars { grid-template-columns: 1fr; gap: .1rem; } .bars > div { margin-bottom: .5rem; } }
@media print { body { background: var(--white); } section, li { break-inside: avoid; } }
"""


def colour_variables() -> str:
    """The colours as variables of a sheet."""
    light, dark = (
        " ".join(f"--{name}: {value};" for name, value in COLOURS[scheme].items())
        for scheme in ("light", "dark")
    )
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    )


def style_sheet() -> str:
    """The whole sheet."""
    return colour_variables().rstrip("\n") + RULES
