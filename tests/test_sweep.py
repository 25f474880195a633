"""Sweeps: every combination once, past failures, resumed, in one table; refused at once where
something is wrong.
"""

import json
import os
from dataclasses import replace

import nbformat
import pandas as pd
import pytest

from warp_lib.__main__ import main
from warp_lib.report.sweep import _finished, plan
from warp_lib.runs import paths

SOURCE = """
import os
from warp_lib.runs.results import write_results
from warp_lib.settings import Settings
settings = Settings.from_notebook(globals())
with open(f"{trace}", "a") as file:
    file.write(f"{settings.runs} {settings.eta}\\n")
if settings.runs == broken and settings.eta == 1:
    os.kill(os.getpid(), 9)
if settings.runs == broken:
    raise RuntimeError("broken here")
row = {"method": "sft", "runs": settings.runs, "reward": settings.runs * settings.eta}
write_results(settings.name, "toy", [row], {}, [], {})
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A notebook that writes down that it ran, and fails for as many runs as the file `broken`
    says.
    """
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    monkeypatch.setenv("WARP_RUNS", str(tmp_path / "runs"))
    (tmp_path / "broken").write_text("0")
    head = (
        f"trace, broken = {str(tmp_path / 'trace')!r},"
        f" int(open({str(tmp_path / 'broken')!r}).read())"
    )
    cells = [
        nbformat.v4.new_code_cell('profile = "smoke"', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(head + SOURCE),
    ]
    file = tmp_path / "toy.ipynb"
    file.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=cells)))
    return file


def ran(toy) -> list[str]:
    """What ran since the last call."""
    trace = toy.with_name("trace")
    lines = trace.read_text().split("\n")[:-1] if trace.exists() else []
    trace.unlink(missing_ok=True)
    return sorted(lines)


def test_a_sweep_fails_resumes_and_collects(toy, tmp_path, capsys, monkeypatch):
    """Guards: a failure or a killed kernel that ends the sweep or is taken for done; finished jobs
    run again; rows lost or mixed up.
    """
    command = [
        "sweep",
        str(toy),
        "-g",
        "runs=1,2",
        "-g",
        "eta=0.25,1",
        "-p",
        "profile=smoke",
        "--name",
        "grid",
        "--jobs",
        "2",
    ]
    toy.with_name("broken").write_text("2")
    assert main(command) == 1
    said = capsys.readouterr()
    assert ran(toy) == ["1 0.25", "1 1.0", "2 0.25", "2 1.0"]
    assert (
        said.err.startswith("2 failed: runs = 2, eta = 0.25 (")
        and said.out.count("FAILED") == 2
        and "4/4" in said.out
    )
    assert (
        "broken here"
        in (tmp_path / "runs" / "grid" / "sweep" / "toy" / "runs-2-eta-0.25.log").read_text()
    )
    table = pd.read_csv(tmp_path / "runs" / "grid" / "toy.csv")
    assert table[["sweep_runs", "sweep_eta", "reward"]].values.tolist() == [
        [1, 0.25, 0.25],
        [1, 1, 1],
    ]

    toy.with_name("broken").write_text("0")
    assert main(command) == 0 and ran(toy) == ["2 0.25", "2 1.0"]
    table = pd.read_csv(tmp_path / "runs" / "grid" / "toy.csv")
    assert table["reward"].tolist() == [0.25, 1, 0.5, 2] and table["sweep_runs"].tolist() == [
        1,
        1,
        2,
        2,
    ]
    assert (
        main(command) == 0
        and ran(toy) == []
        and "4 jobs, 4 of them done before" in capsys.readouterr().out
    )

    damaged = tmp_path / "runs" / "grid" / "sweep" / "toy" / "runs-1-eta-1.ipynb"
    damaged.write_text(damaged.read_text()[:200])
    assert main(command) == 0 and ran(toy) == ["1 1.0"]
    jobs = plan(toy, "grid", {"runs": [1, 2], "eta": [0.25, 1]}, {"profile": "smoke"})
    assert all(_finished(job, toy) for job in jobs)
    os.utime(damaged, (0, 0))  # older than the library
    assert [job.executed for job in jobs if not _finished(job, toy)] == [damaged]
    os.utime(damaged)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edited").touch()
    os.utime(tmp_path / "edited", (2**31, 2**31))  # beside it, and nothing of it
    job = plan(toy, "grid", {"runs": [1]}, {"policy": str(tmp_path / "own")})[0]
    done = nbformat.read(tmp_path / "runs" / "grid" / "sweep" / "toy" / "runs-1-eta-1.ipynb", 4)
    done.metadata["papermill"]["parameters"] = job.parameters
    nbformat.write(done, job.executed)
    (tmp_path / "own").mkdir()
    assert _finished(job, toy)
    (tmp_path / "own" / "model.safetensors").touch()
    os.utime(tmp_path / "own" / "model.safetensors", (2**31, 2**31))  # trained again in place
    assert not _finished(job, toy)
    other = replace(job, parameters={n: v for n, v in job.parameters.items() if n != "policy"})
    done.metadata["papermill"]["parameters"] = other.parameters
    nbformat.write(done, other.executed)
    assert _finished(other, toy)
    assert all(_finished(job, toy) for job in jobs)
    notebook = json.loads(toy.read_text())
    notebook["cells"][1]["source"] += "\n# edited"
    toy.write_text(json.dumps(notebook))
    assert not any(_finished(job, toy) for job in jobs)


@pytest.mark.parametrize(
    "options, says",
    [
        ([], "sweep needs at least one -g NAME=VALUE,VALUE,… to vary."),
        (["-g", "runs=0,1"], "runs must be a whole number of at least 1, not 0."),
        (["-g", "rums=1"], "there is no setting 'rums'; did you mean 'runs'?"),
        (["-g", "runs"], "'runs' is not of the form -g NAME=VALUE,VALUE,…"),
        (["-g", "runs=1", "-g", "runs=2"], "runs is given twice."),
        (
            ["-g", "runs=1,1"],
            "two combinations of the grid are called runs-1; leave one of them out.",
        ),
        (
            ["-g", "runs=1", "-p", "runs=2"],
            "runs is set by the sweep itself and cannot be given to it again.",
        ),
        (["-g", "name=a,b"], "name is set by the sweep itself and cannot be given to it again."),
        (["-g", "runs=1", "--jobs", "0"], "--jobs must be a whole number of at least 1, not 0."),
        (["-g", "runs=1", "--name", "../x"], "name must be a plain folder name"),
        (["-g", "runs=1", "--name", "store"], "name must be a plain folder name"),
        (
            ["-g", "runs=1", "--profile", "smoke"],
            "Unknown option: --profile. `python -m warp_lib sweep --help` says what it takes.",
        ),
    ],
)
def test_refused(toy, capsys, options, says):
    """One sentence, before anything runs."""
    assert main(["sweep", str(toy), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith(says) and said.count("\n") == 1 and ran(toy) == []


def test_another_sweep_of_the_same_name_is_refused(toy, tmp_path, capsys):
    """Guards: two sweeps with other fixed parameters that mix their rows in the same folders."""
    command = ["sweep", str(toy), "-g", "runs=1", "-p", "profile=smoke", "--name", "grid"]
    assert main([*command, "-p", "beta=0.5"]) == 0 and main([*command, "-p", "beta=0.5"]) == 0
    before = {file: file.read_bytes() for file in (tmp_path / "runs").rglob("*") if file.is_file()}
    capsys.readouterr()
    for other in ([], ["-p", "beta=0.7"]):
        assert main([*command, *other]) == 2
        assert capsys.readouterr().err.startswith(
            "the sweep 'grid' was begun with profile=smoke, beta=0.5; give this one another --name"
        )
    assert {
        file: file.read_bytes() for file in (tmp_path / "runs").rglob("*") if file.is_file()
    } == before


def test_a_notebook_that_is_not_there(tmp_path, capsys):
    assert main(["sweep", str(tmp_path / "no.ipynb"), "-g", "runs=1"]) == 2
    assert capsys.readouterr().err.startswith("sweep needs a notebook that is there, and ")


def test_jobs_have_names_of_their_own(toy):
    """Guards: two combinations that write into one folder."""
    jobs = plan(toy, "grid", {"policy": ["a/b", "a.b"], "runs": [1, 2]}, {})
    assert len({job.parameters["name"] for job in jobs}) == len({job.executed for job in jobs}) == 4
