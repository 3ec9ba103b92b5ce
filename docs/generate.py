"""Writes what is made from the source: `docs/reference/`, and the picture in `docs/architecture.md`.

    python docs/generate.py

`make docs` runs it, and a test compares its pages with the committed ones. It reads the source as text, so
that signatures stand on a page as they were written.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PACKAGES = ("ufm_jax", "nets", "experiments")
SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Example", "Reference")
MADE = "<!-- Made from the source by `make docs`: change the docstrings instead. -->"


class Name(NamedTuple):
    """A public name: how it is defined, as written, what its docstring says, and the names inside it."""

    head: str
    docstring: str
    members: dict[str, "Name"]


def main() -> None:
    """Writes all pages, and removes those of modules that are gone."""
    pages = all_pages()
    REFERENCE.mkdir(exist_ok=True)
    for path in set(REFERENCE.glob("*.md")) - set(pages):
        path.unlink()
    for path, text in pages.items():
        path.write_text(text)


def all_pages() -> dict[Path, str]:
    """The path and the text of every page that is made."""
    pages = {REFERENCE / f"{module}.md": page(module) for module in public_modules()}
    drawn = re.sub(
        r"(?<=```mermaid\n).*?(?=```)", lambda _: picture(), ARCHITECTURE.read_text(), flags=re.S
    )
    return pages | {REFERENCE / "README.md": contents(), ARCHITECTURE: drawn}


def public_modules() -> list[str]:
    """The modules that have a page: those of the library, as a person imports them, and the networks."""
    names = {path.stem for path in (ROOT / "ufm_jax").glob("[!_]*") if path.suffix in ("", ".py")}
    # Of the solvers' package each module has a page; `solvers` only gives their classes shorter names.
    parts = {path.stem for path in (ROOT / "ufm_jax" / "riemannian").glob("[!_]*.py")} - {"solvers"}
    names = names - {"riemannian"} | {f"riemannian.{part}" for part in parts}
    return [*sorted(f"ufm_jax.{name}" for name in names), "nets"]


def surface(module: str) -> dict[str, Name]:
    """The public names of `module`, in the order of the source.

    They are those of `__all__` where a package has one, and else all that is defined there under a name
    without a leading underscore.
    """
    source = _file(module).read_text()
    exported = re.search(r"^__all__ = (\[.*?\])", source, re.M | re.S)
    if exported is None:
        return _names(ast.parse(source).body, source)
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
    modules = [str(node.module) for node in imports if str(node.module).startswith(("ufm_jax.", "nets."))]
    everything = {name: found for other in modules for name, found in surface(other).items()}
    everything |= _names(ast.parse(source).body, source)
    return {name: everything[name] for name in ast.literal_eval(exported[1])}


def page(module: str) -> str:
    """The reference page of a module."""
    docstring = ast.get_docstring(ast.parse(_file(module).read_text())) or ""
    parts = [f"# {module}", MADE, markdown(docstring)]
    for name, found in surface(module).items():
        parts += [f"## {name}", f"```py\n{found.head}\n```", markdown(found.docstring)]
        for member, method in found.members.items():
            parts += [f"### {name}.{member}", f"```py\n{method.head}\n```", markdown(method.docstring)]
    return "\n\n".join(parts) + "\n"


def contents() -> str:
    """The page that lists the others, and says where each name of `import ufm_jax as ufm` is described."""
    modules = ["| module | |", "| --- | --- |"]
    for module in public_modules():
        docstring = ast.get_docstring(ast.parse(_file(module).read_text())) or ""
        modules.append(f"| [{module}]({module}.md) | {_summary(docstring)} |")
    names = ["| name | |", "| --- | --- |"]
    for node in ast.parse(_file("ufm_jax").read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module in public_modules():
            for name in (alias.name for alias in node.names):
                summary = _summary(surface(node.module)[name].docstring)
                names.append(f"| [ufm.{name}]({node.module}.md#{name.lower()}) | {summary} |")
    what = "The public modules, each with a page made from its docstrings:"
    root = "Beside the modules, `import ufm_jax as ufm` gives these names themselves:"
    return "\n\n".join(["# Reference", MADE, what, "\n".join(modules), root, "\n".join(names)]) + "\n"


def markdown(docstring: str) -> str:
    """A docstring as Markdown: sections get a heading and lists, and examples become code."""
    text, *rest = re.split(rf"^({'|'.join(SECTIONS)}):\s", docstring, flags=re.M)
    parts = [text]
    for section, body in zip(rest[::2], rest[1::2], strict=True):
        lines = body.rstrip().splitlines()
        # A section is what is indented; a reference is one paragraph.
        ends = (
            i
            for i, line in enumerate(lines)
            if i and (not line if section == "Reference" else line[:1].strip())
        )
        end = next(ends, len(lines))
        inside, after = textwrap.dedent("\n".join(lines[:end])), "\n".join(lines[end:])
        if section in ("Args", "Attributes", "Raises"):
            inside = re.sub(r"^(\w+):", r"- `\1`:", inside, flags=re.M)
        parts += [f"**{section}**", inside, after]
    examples = re.compile(r"((?:^>>> .*\n?)(?:^(?!\n).+\n?)*)", re.M)
    text = "\n\n".join(part.strip("\n") for part in parts if part.strip())
    return examples.sub(lambda found: f"```pycon\n{found[1].rstrip()}\n```\n", text).rstrip()


def _summary(docstring: str) -> str:
    """The first line of a docstring, for a cell of a table."""
    return docstring.split("\n")[0].replace("|", "\\|")


def _file(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _names(body: list[ast.stmt], source: str) -> dict[str, Name]:
    return {name: found for name, found in _definitions(body, source) if not name.startswith("_")}


def _definitions(body: list[ast.stmt], source: str) -> Iterator[tuple[str, Name]]:
    for node, following in zip(body, [*body[1:], None], strict=True):
        code = ast.get_source_segment(source, node) or ""
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            docstring = ast.get_docstring(node) or ""
            members = dict(_definitions(node.body, source)) if isinstance(node, ast.ClassDef) else {}
            methods = {name: m for name, m in members.items() if "def " in m.head and m.docstring}
            methods = {name: m for name, m in methods.items() if not re.match("_[^_]", name)}
            fields = [
                textwrap.indent(m.head + (f'\n"""{m.docstring}"""' if m.docstring else ""), "    ")
                for name, m in members.items()
                if "def " not in m.head and not name.startswith("_")
            ]
            head = textwrap.dedent(" " * node.col_offset + code.split('"""')[0]).rstrip().removesuffix(":")
            if any(ast.unparse(decorator) == "property" for decorator in node.decorator_list):
                head = "@property\n" + head
            yield node.name, Name("\n".join([head, *fields]), docstring, methods)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            is_said = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            docstring = str(ast.literal_eval(following.value)) if is_said else ""
            yield ast.unparse(target), Name(code, docstring, {})


def imports() -> dict[str, set[str]]:
    """For each module of the three packages the modules of them that it imports."""
    files = {path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files
    }
    found: dict[str, set[str]] = {}
    for name in sorted(names):
        found[name] = set()
        for node in ast.walk(ast.parse(_file(name).read_text())):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names} & names
            elif isinstance(node, ast.ImportFrom):
                said = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= said & names or {str(node.module)} & names
    return found


def picture() -> str:
    """Which module imports which, in Mermaid; arrows between packages end at the package.

    Left out: modules that begin with an underscore, what packages re-export, and arrows that others imply.
    """
    arrows: dict[str, set[str]] = {}
    for module, others in imports().items():
        if start := box(module):
            ends = {box(other) or other.split(".")[0] for other in others} - {start}
            package = start.split(".")[0]
            own = {end for end in ends if end.startswith(f"{package}.")}
            foreign = {end.split(".")[0] for end in ends} - {package}
            arrows.setdefault(start, set()).update(own | foreign)
    lines = ["graph TD"]
    for package in reversed(PACKAGES):
        members = [name for name in arrows if name.startswith(f"{package}.")]
        nodes = [f"    {name}[{name.removeprefix(package + '.')}]" for name in members]
        lines += [f"  subgraph {package}", *nodes, "  end"]
    for start, ends in arrows.items():
        for end in sorted(ends):
            if not any(end in _reached(arrows, other) for other in ends - {end}):
                lines.append(f"  {start} --> {end}")
    return "\n".join(lines) + "\n"


def box(module: str) -> str | None:
    """Where the picture shows `module`: as itself, in the package above it, or among the figures."""
    package, *rest = module.split(".")
    if not rest or rest[0].startswith("_"):
        return None
    if package == "experiments" and re.search(r"^EXPERIMENT = ", _file(module).read_text(), re.M):
        return "experiments.figures"
    return f"{package}.{rest[0]}"


def _reached(arrows: dict[str, set[str]], start: str) -> set[str]:
    """What arrows lead to from `start`."""
    found: set[str] = set()
    new = set(arrows.get(start, ()))
    while new:
        found |= new
        new = {end for name in new for end in arrows.get(name, ())} - found
    return found


if __name__ == "__main__":
    main()
