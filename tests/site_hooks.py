"""What mkdocs needs to build the book so that it reads from file://, without a network (mkdocs.yml)."""

import base64
import html
import io
import re
from configparser import ConfigParser
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    "The page without scripts from elsewhere, its formulas drawn, its links leading to pages of the site."
    content = re.sub(
        r"<!-- Load mathjax -->.*?<!-- End of mathjax configuration -->", "", content, flags=re.S
    )
    content = re.sub(r'<script type="module">(?:(?!</script>).)*mermaid.*?</script>', "", content, flags=re.S)
    content = re.sub(r"<(p|li)\b[^>]*>.*?</\1>", lambda m: _with_formulas(m[0], page), content, flags=re.S)
    content = re.sub(r'href="(\w+)\.ipynb(#[^"]*)?"', r'href="\1.html\2"', content)
    return content.replace('href="../', f'href="{_repository()}/')


def _with_formulas(text: str, page: Any) -> str:
    "`$...$` and `$$...$$` of a paragraph, outside its code, as pictures."

    def draw(match: re.Match[str]) -> str:
        if match["code"]:
            return match[0]
        try:
            return _formula(html.unescape(match["display"] or match["inline"]), bool(match["display"]))
        except ValueError as e:
            raise PluginError(f"{page.file.src_path}: {match[0]}: {e}") from None

    formulas = r"\$\$(?P<display>[^$<]+)\$\$|\$(?P<inline>[^\s$<]|[^\s$<][^$<]*[^\s$<])\$(?!\d)"
    return re.sub(r"(?P<code><code.*?</code>)|" + formulas, draw, text, flags=re.S)


def _formula(tex: str, display: bool) -> str:
    "An SVG image; matplotlib draws it, and raises ValueError for what it cannot draw."
    from matplotlib import font_manager, mathtext

    tex = " ".join(tex.split())  # a paragraph's line may end in a formula
    svg, font = io.BytesIO(), font_manager.FontProperties(size=12)
    depth = mathtext.math_to_image(f"${tex}$", svg, prop=font, format="svg", dpi=72)
    place = "display: block; margin: auto" if display else f"vertical-align: {-depth:.1f}pt"
    data = base64.b64encode(svg.getvalue()).decode()
    return f'<img alt="{html.escape(tex)}" style="{place}" src="data:image/svg+xml;base64,{data}">'


def _repository() -> str:
    "Where files of the repository that are no pages of the site can be seen."
    settings = ConfigParser(delimiters=["="])
    settings.read("settings.ini", encoding="utf-8")
    return f"{settings['DEFAULT']['git_url']}/blob/{settings['DEFAULT']['branch']}"


def on_post_build(config: Any) -> None:
    "Fails when a page fetches anything, or links to what is not there."
    site = Path(config.site_dir)
    problems = [f"{p.name}: {problem}" for p in sorted(site.glob("*.html")) for problem in _problems(p)]
    if problems:
        raise PluginError("the site cannot be read offline:\n" + "\n".join(problems))


def _problems(page: Path) -> list[str]:
    text = re.sub(r"<pre.*?</pre>", "", page.read_text(encoding="utf-8"), flags=re.S)
    loads = r'<(?:script|img|iframe|source)\b[^>]*?\bsrc="([^"]*)"|<link\b[^>]*?\bhref="([^"]*)"'
    loaded = [a or b for a, b in re.findall(loads, text)]
    fetched = [u for u in loaded if re.match(r"(https?:)?//", u)] + re.findall(r'import\("(http[^"]+)', text)
    fetched += re.findall(r"url\(['\"]?https?:[^)]+\)|@import[^;]*https?:[^;]*", text)
    links = [
        u for u in loaded + re.findall(r'<a\b[^>]*?\bhref="([^"#]+)', text) if not re.match(r"\w+:|//", u)
    ]
    gone = {u for u in links if not (page.parent / u.split("#")[0].removeprefix("/")).exists()}
    return [f"fetches {u}" for u in fetched] + [f"links to {u}, which is not there" for u in sorted(gone)]
