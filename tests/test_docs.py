"""The README and docs/: short, their links lead somewhere, the walkthrough runs."""

import re
import shlex

import pytest

from warp_lib.__main__ import main
from warp_lib.runs.paths import ROOT

PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{f.name}" for f in (ROOT / "docs").glob("*.md"))]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not ((ROOT / page).parent / link).exists()] == []


def test_the_walkthrough_runs(folders, store, tmp_path, monkeypatch, capsys):
    """docs/your-own.md, its Python in one go and its merge from the command line."""
    text = (ROOT / "docs" / "your-own.md").read_text()
    for name, folder in folders.items():
        (tmp_path / f"my-{name.removesuffix('s') if name != 'reviews' else name}").symlink_to(
            folder
        )
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    assert len(names["results"]) and (store / "mine" / "models" / "warp" / "config.json").exists()
    for run in ("my-run-1", "my-run-2"):
        (tmp_path / run).symlink_to(store / "mine" / "models" / "warp")
    (command,) = re.findall(r"^python -m warp_lib (merge .+)$", text, re.MULTILINE)
    assert main(shlex.split(command)) == 0 and (tmp_path / "merged" / "config.json").exists()
