"""Colours of an SVG file for light and dark pages, also where CSS variables are not known.

Pictures name colours `var(--ink)`, and their style begins with the values, for light pages and for
dark ones. Viewers that know no variables would draw all of it black. So the values are put in:
first those for light pages, then, in a media query that such viewers skip, those for dark ones.
"""

import re

THEMES = re.compile(r"svg\{(.*?)\}\s*@media\(prefers-color-scheme:dark\)\{svg\{(.*?)\}\}\s*", re.S)
VARIABLE = re.compile(r"var\(--(\w+)\)")


def plain_colours(svg: str) -> str:
    """The same picture without variables."""
    themes = THEMES.search(svg)
    assert themes is not None
    light, dark = (
        dict(re.findall(r"--(\w+):([^;]+)", " ".join(t.split()))) for t in themes.groups()
    )
    head, rest = svg[: themes.start()], svg[themes.end() :]
    rules, body = rest.split("</style>", 1)
    used = sorted(set(re.findall(r'(fill|stroke)="var\(--(\w+)\)"', body)))
    at_night = [f'[{what}="{light[name]}"]{{{what}:{dark[name]}}}' for what, name in used]
    for selector, declarations in re.findall(r"([^{}]+)\{([^{}]*)\}", rules):
        changed = [text for text in declarations.split(";") if "var(" in text]
        if changed:
            at_night.append(f"{selector.strip()}{{{';'.join(text.strip() for text in changed)}}}")

    def filled(text: str, values: dict[str, str]) -> str:
        return VARIABLE.sub(lambda found: values[found[1]], text)

    night = filled("\n".join(at_night), dark)
    style = f"{filled(rules, light).rstrip()}\n@media(prefers-color-scheme:dark){{\n{night}}}"
    return f"{head}{style}</style>{filled(body, light)}"
