"""Writes who owns the repository into all files that say so: `make address OWNER=name`.

As long as the owner is OWNER, there is no address, and the README shows no badges that would lead nowhere.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "pyproject.toml", ROOT / "README.md", *sorted(ROOT.glob("notebooks/*.ipynb"))]
COLAB = "https://colab.research.google.com"


def owned(text: str, owner: str) -> str:
    """The text of one of the files, with `owner` in its addresses, and badges beside links to notebooks.

    Args:
        text: the file as it is.
        owner: a name on GitHub; "OWNER" means that there is none yet.

    Returns:
        The file as it should be.
    """
    text = re.sub(r"(https://github\.com)/[\w-]+/ufm-jax", rf"\1/{owner}/ufm-jax", text)
    text = re.sub(rf" \[!\[Open in Colab\]\({COLAB}\S+\)\]\({COLAB}\S+\)", "", text)
    if owner == "OWNER":
        return text
    badge = f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{owner}/ufm-jax/blob/main"
    return re.sub(r"(^\| \[\w+\]\((notebooks/\w+\.ipynb)\))", rf"\1 {badge}/\2)", text, flags=re.M)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not re.fullmatch(r"[\w-]+", sys.argv[1]):
        sys.exit("error: name the owner of the repository on GitHub, as in `make address OWNER=name`.")
    for file in FILES:
        file.write_text(owned(file.read_text(encoding="utf-8"), sys.argv[1]), encoding="utf-8")
