#!/usr/bin/env bash
# A notebook opened alone, with the versions that Colab ships: it must fetch the course, add only what is missing, change
# no installed package, and show its first pictures.  Usage: bash tests/colab.sh [python [notebook]]   (Python 3.13)
set -euo pipefail
course=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
name=${2:-01_baseline_gan}
trap 'rm -rf "$work"' EXIT
"${1:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check -c "$course/requirements-colab.txt" \
  torch torchvision numpy pandas pooch tensorboard setuptools matplotlib scikit-learn ipython ipykernel ipywidgets nbclient nbformat
"$work/venv/bin/pip" list --format freeze | sort > "$work/before"
mkdir "$work/alone"
cp "$course/notebooks/$name.ipynb" "$work/alone/notebook.ipynb"
address=$(sed -n 's/^Repository = "\(.*\)"/\1/p' "$course/pyproject.toml")
export GIT_CONFIG_COUNT=2 AD_PROFILE=smoke
export GIT_CONFIG_KEY_0="url.file://$course.insteadOf" GIT_CONFIG_VALUE_0="$address"
export GIT_CONFIG_KEY_1=safe.directory GIT_CONFIG_VALUE_1='*'
cd "$work/alone"
"$work/venv/bin/python" - <<'PY'
import nbformat, time
from nbclient import NotebookClient
book, first = nbformat.read("notebook.ipynb", 4), []
client = NotebookClient(book, timeout=600, kernel_name="python3")
start = time.monotonic()
def shown(cell, cell_index, execute_reply):
    if not first and any({"image/png", "image/jpeg"} & set(output.get("data", {})) for output in cell.get("outputs", [])):
        first.append(time.monotonic() - start)
client.on_cell_executed = shown
for cell in book.cells:
    cell.pop("outputs", None) if cell.cell_type == "markdown" else cell.update(outputs=[])
client.execute()
print(f"first picture after {first[0]:.0f} s (packages added and course fetched), all cells after {time.monotonic() - start:.0f} s")
PY
"$work/venv/bin/pip" list --format freeze | sort > "$work/after"
if changed=$(comm -23 "$work/before" "$work/after") && [ -n "$changed" ]; then
  echo "changed or removed: $changed" >&2
  exit 1
fi
echo "added: $(comm -13 "$work/before" "$work/after" | tr '\n' ' ')"
