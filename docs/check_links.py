"""Checks the built pages: links lead somewhere, nothing is loaded from elsewhere.

    python docs/check_links.py build/docs

Every relative link has its file, and its anchor there. Scripts, styles, fonts and
pictures are the site's own. External links are listed in `external-links.txt` beside
the pages, by page, and not fetched.
"""

import collections
import html.parser
import pathlib
import sys
import urllib.parse

LOADED = {"script": "src", "img": "src", "link": "href", "source": "src"}


class Page(html.parser.HTMLParser):
    """The links of a page, the files that it loads, and its anchors."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.anchors |= {found[x] for x in ("id", "name") if x in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if found.get(where := LOADED.get(tag, "")):
            self.loads.append(found[where])


def problems(folder: pathlib.Path) -> tuple[list[str], dict[str, set[str]]]:
    """Returns what is wrong, and the external links with the pages that have them."""
    paths = [x for x in folder.rglob("*.html") if "_static" not in x.parts]
    pages = {path.resolve(): Page(path) for path in paths}
    wrong, external = [], collections.defaultdict(set)
    for path, page in pages.items():
        name = str(path.relative_to(folder.resolve()))
        for link in [*page.links, *page.loads]:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme in ("http", "https") or parts.netloc:
                external[link].add(name)
                if link in page.loads:
                    wrong.append(f"{name} loads {link}")
            elif parts.scheme in ("", "file"):
                inside = urllib.parse.unquote(parts.path)
                target = (path.parent / inside).resolve() if inside else path
                anchor = urllib.parse.unquote(parts.fragment)
                if not target.exists():
                    wrong.append(f"{name}: {link} leads nowhere")
                elif anchor and target in pages and anchor not in pages[target].anchors:
                    wrong.append(f"{name}: {link} has no such anchor")
    return wrong, external


def main() -> int:
    folder = pathlib.Path(sys.argv[1])
    wrong, external = problems(folder)
    lines = [f"{x}  ({', '.join(sorted(y))})" for x, y in sorted(external.items())]
    (folder / "external-links.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
