"""Executes the notebooks of this folder and keeps what they print and draw: `make notebooks`.

`python notebooks/execute.py ufm_on_tpu` executes one. A notebook runs from the project's root, in a kernel
of the Python that runs this file.
"""

import base64
import hashlib
import io
import sys
from pathlib import Path

import nbclient
import nbformat
from PIL import Image

FOLDER = Path(__file__).parent
NAMES = ("ufm_on_tpu", "networks_on_gpu")


def read(name: str) -> nbformat.NotebookNode:
    """The notebook as it is committed."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def execute(notebook: nbformat.NotebookNode, **parameters: object) -> nbformat.NotebookNode:
    """The notebook with fresh outputs; `parameters` replace those of its cell tagged "parameters".

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised an error.
    """
    assignments = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    filled = nbformat.from_dict(notebook)
    (cell,) = (cell for cell in filled.cells if "parameters" in cell.metadata.get("tags", []))
    cell.source += f"\n{assignments}" if assignments else ""
    client = nbclient.NotebookClient(
        filled,
        timeout=1800,
        coalesce_streams=True,  # A progress bar leaves its last line alone.
        record_timing=False,
        resources={"metadata": {"path": str(FOLDER.parent)}},
    )
    return client.execute()


def digest(notebook: nbformat.NotebookNode) -> str:
    """A fingerprint of all code outside the parameters: what the committed outputs belong to."""
    code = [
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", [])
    ]
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()[:16]


def smaller(picture: str) -> str:
    """A PNG in base64 with 128 colours instead of millions; of a plot it takes a third of the space."""
    file = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    image.quantize(128).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def main(names: list[str]) -> None:
    """Executes notebooks as they stand, all if none is named, and writes them back with their outputs."""
    for name in names or NAMES:
        notebook = execute(read(name))
        # What differs from machine to machine tells a reader nothing.
        notebook.metadata.pop("language_info", None)
        notebook.metadata["executed_code"] = digest(notebook)
        for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")
        print(f"{name}: {(FOLDER / f'{name}.ipynb').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
