"""How the repository becomes a site: MkDocs calls the functions here, and Griffe the class.

Readers of the repository follow links between its files. On the site the pages of the root stand beside
those of `docs/`, and in place of a module of the library stands its page of the reference.
"""

import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

import griffe
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files outside `docs/` that are pages of the site, and as which."""
PAGES |= {
    f"notebooks/{path.name}": f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")
}


def repository() -> str | None:
    """The address in pyproject.toml; None as long as no owner is named there."""
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"].get("Repository", "")
    return address if address and "OWNER" not in address else None


def modules() -> dict[str, str]:
    """The source files that docs/reference.md names, and the module of each."""
    files = re.findall(r"\]\(\.\./(\S+?\.py)\)", (ROOT / "docs" / "reference.md").read_text())
    return {file: file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files}


def on_config(config: Any) -> Any:
    """Names the repository, if it has an address, and puts the modules into the navigation."""
    if address := repository():
        config.repo_url, config.repo_name, config.edit_uri = address, "GitHub", ""
    pages = [{name.removeprefix("ufm_jax."): f"reference/{name}.md"} for name in modules().values()]
    (reference,) = (entry for entry in config.nav if "Reference" in entry)
    reference["Reference"] = ["reference.md", *pages]
    return config


@event_priority(100)  # Before the plugin that renders the notebooks looks for them.
def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are not in `docs/`."""
    for source, page in PAGES.items():
        if page.endswith(".ipynb"):
            file = File(page, str(ROOT), config.site_dir, config.use_directory_urls)
        else:
            lone = "---\nhide: [navigation]\n---\n" if page == "index.md" else ""  # It has no neighbours.
            file = File.generated(config, page, content=lone + (ROOT / source).read_text())
        files.append(file)
    for name in modules().values():
        files.append(File.generated(config, f"reference/{name}.md", content=f"# {name}\n\n::: {name}\n"))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lets links lead to where files of the repository are on the site."""
    sources = {place: source for source, place in PAGES.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    places = PAGES | {file: f"reference/{name}.md" for file, name in modules().items()}

    def moved(link: re.Match) -> str:
        text, path, anchor = link.groups(default="")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        place = places.get(target, target.removeprefix("docs/"))
        if target in places or (target.startswith("docs/") and (ROOT / target).is_file()):
            return f"[{text}]({posixpath.relpath(place, posixpath.dirname(page.file.src_uri))}{anchor})"
        address = repository()
        return f"[{text}]({address}/blob/main/{target}{anchor})" if address else text

    return re.sub(r"\[((?:[^][]|\[[^]]*\])*)\]\(([^):#\s]+)(#[^)\s]*)?\)", moved, markdown)


class Docstrings(griffe.Extension):
    """Tells Griffe which sections our docstrings have."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Renames the section of examples, and sets off the reference."""
        if obj.docstring:
            text = re.sub(r"^Example:", "Examples:", obj.docstring.value, flags=re.M)
            obj.docstring.value = re.sub(r"^Reference:", "**Reference:**", text, flags=re.M)
