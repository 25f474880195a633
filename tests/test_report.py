"""The report on two toy notebooks: one page that fetches nothing, notebooks fit to commit, and
refusals in one sentence.
"""

import json
import os
import re
import time
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest
import torch
from nbformat import v4

from warp_lib.__main__ import main
from warp_lib.fast import machine
from warp_lib.report import publish, run
from warp_lib.report.page import write_page
from warp_lib.report.rendering import can_draw, export_figure
from warp_lib.runs import paths
from warp_lib.runs.errors import Explained
from warp_lib.runs.jobs import MEMORY, Ended, Job, run_here
from warp_lib.settings import Settings

SETTINGS = (
    "from warp_lib.settings import Settings\n\nsettings ="
    " Settings.from_notebook(globals())\nsettings"
)
FIGURE = """
import os

import plotly.graph_objects as go
import plotly.io as pio

memory = os.environ["GLIBC_TUNABLES"]
{renderer}
go.Figure(go.Scatter(y=[1, 3, 2], name="</script><script>alert(1)</script>")).show()
print("<script>alert('generated')</script>", settings.name, settings.beta, memory)
"""
NAMES = ("01_first.ipynb", "02_second.ipynb")
PLAIN = FIGURE.format(renderer='pio.renderers.default = "plotly_mimetype"')
STILL = FIGURE.format(renderer="from warp_lib.report.rendering import use_renderer\nuse_renderer()")
LIVE = """
from warp_lib.interactive.live import live

print("before", flush=True)
await live(lambda progress: sum(progress.track(range(4), "run 1")), title="WARP")
"""


def notebook(title: str, *sources: str) -> nbformat.NotebookNode:
    cells = [
        v4.new_markdown_cell(f"# {title}\n\nGo to [the second](02_second.ipynb)."),
        v4.new_code_cell('profile = "laptop"'),
    ]
    cells[1].metadata["tags"] = ["parameters"]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(
        cells=[*cells, *map(v4.new_code_cell, [SETTINGS, *sources])], metadata={"kernelspec": spec}
    )


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A project of two notebooks in a folder of its own, its report made once."""
    root = tmp_path_factory.mktemp("toy")
    (root / "notebooks").mkdir()
    nbformat.write(notebook("The `reward` & <b>", STILL), root / "notebooks" / "01_first.ipynb")
    nbformat.write(notebook("Training", PLAIN, LIVE), root / "notebooks" / "02_second.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "NOTEBOOKS", root / "notebooks")
        patch.setattr(paths, "FIGURES", root / "figures")
        patch.setattr(paths, "RUNS", root / "runs")
        patch.delenv("GLIBC_TUNABLES", raising=False)  # `make test` has it, and would hand it on
        patch.setenv("JPY_SESSION_NAME", "started from a notebook")  # whose front end is not theirs
        assert main(["report", "--profile", "smoke", "--name", "toy", "--beta", "0.25"]) == 0
        yield root


def test_a_still_image_stands_beside_a_figure(toy):
    """Guards: figures that viewers without JavaScript do not see, as on GitHub."""
    kept = [(toy / "runs" / "toy" / "notebooks" / name).read_text() for name in NAMES]
    assert [text.count('"image/png"') for text in kept] == [1 if can_draw() else 0, 0]


def test_a_figure_is_the_same_file_twice(tmp_path):
    """Guards: an SVG that differs by plotly.js's random names, and so in every commit; a PNG that
    nobody asked for.
    """
    if not can_draw():
        pytest.skip("there is no browser")
    drawn = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        export_figure(go.Figure(go.Scatter(y=[1, 3, 2], fill="tozeroy")), folder, "front")
        assert {file.suffix for file in folder.iterdir()} == {".html", ".svg", ".js"}
        drawn.append((folder / "front.svg").read_text())
    assert drawn[0] == drawn[1] and "<svg" in drawn[0]


@pytest.fixture
def page(toy):
    return (toy / "runs" / "toy" / "report.html").read_text(encoding="utf-8")


class Links(HTMLParser):
    """Everything the page would fetch, the ids in it, and where its links go."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched, self.ids, self.anchors = [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.append(attributes.get("id"))
        if tag == "a":
            self.anchors.append(attributes["href"])
        else:
            urls = [
                attributes.get(name)
                for name in ("src", "href", "data", "srcset", "poster", "action")
            ]
            self.fetched += [url for url in urls if url and not url.startswith("data:")]


def test_page_has_every_figure_once_and_plotly_once(page):
    links = Links()
    links.feed(page)
    figures = [name for name in links.ids if name and name.startswith("figure-")]
    assert sorted(figures) == ["figure-01_first-0", "figure-02_second-0"]
    drawn = re.findall(r'<script type="application/json">(.*?)</script></figure>', page)
    assert [json.loads(text)["data"][0]["y"] for text in drawn] == [[1, 3, 2]] * 2
    assert len(re.findall(r"plotly\.js v\d", page)) == 1
    assert "image/png" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def test_page_fetches_nothing(page):
    links = Links()
    links.feed(page)
    assert links.fetched == []
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"url\(|@import|https?://", outside)
    assert "default-src 'none'" in page


def test_page_reads_in_order(page):
    links = Links()
    links.feed(page)
    assert "<title>WARP, checked: toy</title>" in page and "The reward &amp; &lt;b&gt;</a>" in page
    first, second = (
        f'<details class="part" id="{stem}" open>' for stem in ("01_first", "02_second")
    )
    assert page.index(first) < page.index(second)
    assert links.anchors.count("#02_second") == 3  # the navigation, and the link in each notebook
    assert "profile = " not in page and "# Parameters" not in page
    assert page.count('<details class="code"><summary>code') == 5
    assert page.count('<details class="code"><summary>printed') == 3


def test_generated_text_is_escaped(page):
    assert "&lt;script&gt;alert(" in page
    assert "<script>alert(" not in page


def test_parameters_and_the_memory_setting_reach_the_notebooks(toy):
    kept = nbformat.read(toy / "runs" / "toy" / "notebooks" / "01_first.ipynb", 4)
    assert f"toy 0.25 {MEMORY['GLIBC_TUNABLES']}" in "".join(
        output.get("text", "") for output in kept.cells[-1].outputs
    )
    trained = nbformat.read(toy / "runs" / "toy" / "notebooks" / "02_second.ipynb", 4)
    assert (
        "run 1: 4/4" in "".join(output.get("text", "") for output in trained.cells[-1].outputs)
        and "widgets" not in trained.metadata
    )


def test_publish_strips(toy, capsys):
    figures = toy / "runs" / "toy" / "figures"
    figures.mkdir(exist_ok=True)
    (figures / "front.svg").write_text("<svg/>")
    before = {file.name: nbformat.read(file, 4) for file in (toy / "notebooks").iterdir()}
    assert main(["publish", "--name", "toy"]) == 0
    assert "beta=0.25" in capsys.readouterr().out
    assert (toy / "figures" / "front.svg").read_text() == "<svg/>"
    for name, old in before.items():
        text = (toy / "notebooks" / name).read_text(encoding="utf-8")
        new = nbformat.reads(text, 4)
        nbformat.validate(new)
        assert [cell.id for cell in new.cells] == [cell.id for cell in old.cells]
        assert [cell.source for cell in new.cells] == [cell.source for cell in old.cells]
        assert not re.search(r"papermill|start_time|iopub|injected|widget|2\d\d\d-\d\d-\d\d", text)
        assert str(toy) not in text and new.metadata.kernelspec.name == "python3"
        assert all(cell.execution_count for cell in new.cells if cell.cell_type == "code")
        assert [output.output_type for output in new.cells[-1].outputs] in (
            ["display_data", "stream"],
            ["stream", "execute_result"],
        )


@pytest.mark.parametrize(
    "shown",
    [
        "kept in {root}/runs/toy",
        "/ho" + "me/someone/model",
        "see '/t" + "mp/x.txt'",
        r"C:\Users\me",
    ],
)
def test_publish_refuses_paths(toy, capsys, shown):
    file = toy / "runs" / "toy" / "notebooks" / "02_second.ipynb"
    kept = file.read_text(encoding="utf-8")
    published = (toy / "notebooks" / "01_first.ipynb").read_text(encoding="utf-8")
    broken = nbformat.reads(kept, 4)
    broken.cells[-1].outputs.append(
        v4.new_output("display_data", {"text/html": f"<p>{shown.format(root=toy)}</p>"})
    )
    try:
        nbformat.write(broken, file)
        assert main(["publish", "--name", "toy"]) == 1
    finally:
        file.write_text(kept, encoding="utf-8")
    assert re.fullmatch(r"02_second shows the path \S+ in an output; .+\n", capsys.readouterr().err)
    assert (toy / "notebooks" / "01_first.ipynb").read_text(encoding="utf-8") == published


def test_text_that_only_looks_like_paths_is_published(toy):
    """Reviews are full of slashes, and figures of base64."""
    shown = v4.new_output(
        "display_data",
        {"text/html": "8/10, and/or <br /><br />a/b/c </td></tr>", "image/png": "aa+/home/a+/tmp/"},
    )
    publish._refuse_paths(v4.new_notebook(cells=[v4.new_code_cell("1", outputs=[shown])]), "x")


def test_publish_refuses_what_did_not_run(toy, capsys):
    assert main(["publish", "--name", "nowhere"]) == 1
    assert "runs/nowhere has not run" in capsys.readouterr().err


def test_publish_keeps_later_edits(toy, capsys):
    file = toy / "notebooks" / "02_second.ipynb"
    kept = file.read_text(encoding="utf-8")
    edited = kept.replace("Training", "Training, better said")
    try:
        file.write_text(edited, encoding="utf-8")
        assert main(["publish", "--name", "toy"]) == 1
        assert file.read_text(encoding="utf-8") == edited
    finally:
        file.write_text(kept, encoding="utf-8")
    assert "02_second was edited since" in capsys.readouterr().err


def test_failing_notebook_is_one_sentence(toy, monkeypatch, tmp_path, capsys):
    """The settings cell's refusal of an unknown parameter reaches the terminal; what ran is kept;
    nothing goes on.
    """
    (tmp_path / "01_only.ipynb").write_text(
        (toy / "notebooks" / "01_first.ipynb").read_text(encoding="utf-8"), encoding="utf-8"
    )
    (tmp_path / "02_after.ipynb").write_text(
        (toy / "notebooks" / "01_first.ipynb").read_text(encoding="utf-8"), encoding="utf-8"
    )
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    settings = Settings.profile("smoke", name="misspelt")
    with pytest.raises(
        Explained,
        match="^01_only: there is no setting 'iteration'; did you mean 'iterations'[?]$",
    ):
        run.run_report(settings, "smoke", {"name": "misspelt", "iteration": 9})
    folder = toy / "runs" / "misspelt"
    kept = json.loads((folder / "notebooks" / "01_only.ipynb").read_text(encoding="utf-8"))
    assert any(
        output["output_type"] == "error"
        for cell in kept["cells"]
        for output in cell.get("outputs", [])
    )
    assert (
        not (folder / "notebooks" / "02_after.ipynb").exists()
        and not (folder / "report.html").exists()
    )
    assert main(["publish", "--name", "misspelt"]) == 1 and "02_after" in capsys.readouterr().err


MEET = """
import os, time
from pathlib import Path

here = Path({folder!r})
(here / {mine!r}).touch()
until = time.monotonic() + 60
while not (here / {other!r}).exists() and time.monotonic() < until:
    time.sleep(0.1)
print((here / {other!r}).exists(), os.environ["OMP_NUM_THREADS"])
"""


def side_by_side(tmp_path, monkeypatch, **cells: str) -> None:
    """A project of these notebooks, on four threads."""
    for name, cell in cells.items():
        nbformat.write(notebook(name, cell), tmp_path / f"{name[1:]}.ipynb")
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)


@pytest.mark.skipif(machine.device().type != "cpu", reason="an accelerator is not shared out")
def test_notebooks_run_side_by_side(toy, tmp_path, monkeypatch, capsys):
    """The first alone on all threads, then two at once on half of them; what waits for another
    comes after it. Terminal lines are named.
    """
    meet = [
        MEET.format(folder=str(tmp_path), mine=mine, other=other)
        for mine, other in (("a", "b"), ("b", "a"))
    ]
    first = f"print(os.environ['OMP_NUM_THREADS'], os.listdir({str(tmp_path)!r}).count('a'))"
    meet[1] += "\ntime.sleep(3)\n(here / 'end').touch()"
    last = f"print(os.path.exists({str(tmp_path / 'end')!r}))"
    side_by_side(
        tmp_path,
        monkeypatch,
        _01_first=f"import os\n{first}",
        _02_last=f"import os\n{last}",
        _03_one=meet[0],
        _04_other=meet[1],
    )
    monkeypatch.setattr(run, "AFTER", {"02_last": ("03_one", "04_other")})
    run.run_report(Settings.profile("smoke", name="lanes"), "smoke", {"name": "lanes"})
    said = capsys.readouterr().out.splitlines()
    for line in ("01_first: 4 0", "02_last: True", "03_one: True 2", "04_other: True 2"):
        assert said.count(line) == 1
    ended = [
        re.match(r"\[(\d)/4\] (\w+): finished", line).groups()
        for line in said
        if line.startswith("[")
    ]
    assert [number for number, _ in ended] == list("1234") and (ended[0][1], ended[3][1]) == (
        "01_first",
        "02_last",
    )


@pytest.mark.skipif(machine.device().type != "cpu", reason="an accelerator is not shared out")
def test_a_failing_notebook_ends_the_one_beside_it(toy, tmp_path, monkeypatch):
    """Guards: a person who waits minutes for a report that has failed; the wrong one of the two
    named.
    """
    sleep = f"import time\nopen({str(tmp_path / 'sleeps')!r}, 'w').close()\ntime.sleep(600)"
    fail = (
        f"import os, time\nwhile not os.path.exists({str(tmp_path / 'sleeps')!r}):\n   "
        " time.sleep(0.1)\nfrom warp_lib.runs.errors import Explained\nraise Explained('no')"
    )
    side_by_side(
        tmp_path, monkeypatch, _01_first="1", _02_sleeps=sleep, _03_fails=fail, _04_never="1"
    )
    began = time.monotonic()
    with pytest.raises(Explained, match="^03_fails: no$"):
        run.run_report(Settings.profile("smoke", name="failing"), "smoke", {"name": "failing"})
    assert time.monotonic() - began < 120
    assert not (toy / "runs" / "failing" / "notebooks" / "04_never.ipynb").exists()


def test_who_runs_the_notebooks_is_handed_all_that_it_needs(store, monkeypatch):
    """Guards: a notebook that does not wait for what it reads; words that only this process can
    pass on."""
    monkeypatch.setattr(paths, "NOTEBOOKS", paths.ROOT / "notebooks")
    asked = []

    def elsewhere(jobs, tell, at_once, threads):
        assert at_once == 2 or machine.device().type != "cpu"
        asked.extend(Job(**json.loads(json.dumps(asdict(job), default=str))) for job in jobs)
        tell(Ended(jobs[3], -9, "exit code -9"))

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    given = {"name": "elsewhere", "beta": 0.5}
    with pytest.raises(Explained, match="^04_reinforce_baseline: its kernel was ended, by hand "):
        run.run_report(Settings.profile("smoke", **given), "smoke", given, elsewhere)
    after = {job.title: job.after for job in asked}
    first, *others = after
    assert not after[first] and all(first in after[other] for other in others)
    assert others[-1] == "05_pareto" and {"03_warp", "04_reinforce_baseline"} < set(
        after["05_pareto"]
    )
    assert all({"-p", "beta", "0.5"} < set(job.words) for job in asked)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("Explained('mend it')", "mend it"),
        ("ValueError('first\\nlast')", "ValueError: last (what ran, and the traceback: {file})"),
    ],
)
def test_why_a_notebook_failed(tmp_path, error, says):
    """One sentence; where its traceback is, if there is one. Guards: an error that explains nothing
    shown without its kind."""
    cell = f"from warp_lib.runs.errors import Explained\n1\nraise {error}"
    nbformat.write(notebook("Bad", cell), tmp_path / "bad.ipynb")
    ended, file = [], tmp_path / "out.ipynb"
    run_here([run.notebook_job("bad", tmp_path / "bad.ipynb", file, {})], ended.append, 1, 1)
    assert ended[0].code == 1 and run.why(ended[0], file) == says.format(file=file)


@pytest.mark.skipif(os.name != "posix", reason="elsewhere kernels use ports")
def test_kernels_side_by_side_share_no_port(tmp_path, monkeypatch):
    """Guards: a kernel that dies because another process bound its port first; sockets that
    are left behind, or whose path is too long in TMPDIR.
    """
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("long" * 25)))
    (tmp_path / ("long" * 25)).mkdir()
    cell = "from ipykernel.connect import get_connection_info\nprint(get_connection_info())"
    nbformat.write(notebook("Where", cell), source := tmp_path / "where.ipynb")
    jobs = [
        run.notebook_job(name, source, tmp_path / name, {}, tmp_path / f"{name}.log")
        for name in ("one.ipynb", "two.ipynb")
    ]
    run_here(jobs, [].append, 2, 2)
    places = set()
    for job in jobs:
        said = job.log.read_text()
        where = json.loads(said[said.index("{") : said.rindex("}") + 1])
        assert where["transport"] == "ipc"
        places.add(Path(where["ip"]).parent)
    assert len(places) == 2 and not any(place.exists() for place in places)


def test_unfinished_notebook_is_not_published():
    failed = v4.new_output("error", ename="ValueError", evalue="", traceback=[])
    for cell in (v4.new_code_cell("1", execution_count=1, outputs=[failed]), v4.new_code_cell("1")):
        with pytest.raises(Explained, match="did not run to its end"):
            publish._refuse_unfinished(v4.new_notebook(cells=[cell]), "x")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--steps", "many"], "steps must be a whole number of at least 1, not 'many'."),
        (["--beta", "-1"], "beta must be a number of at least 0, not -1."),
        (
            ["--batch_size=9", "--completions-per-prompt=2"],
            "completions_per_prompt must divide batch_size (9), and 2 does not.",
        ),
        (["--iteration", "9"], "Unknown option: --iteration. Did you mean --iterations? "),
        (["--merge", "mean"], "merge must be slerp or lerp, not 'mean'."),
        (["--profile", "huge"], "profile must be one of "),
        (["laptop"], "One word too many: laptop. "),
    ],
)
def test_bad_option_is_one_sentence(monkeypatch, capsys, options, sentence):
    monkeypatch.setattr(run, "run_report", lambda *_: pytest.fail("it must not start"))
    assert main(["report", *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(sentence) and captured.err.count("\n") == 1 and not captured.out


def test_given_options_are_the_overrides(monkeypatch):
    seen = []
    monkeypatch.setattr(run, "run_report", lambda *arguments: seen.extend(arguments))
    assert (
        main(["report", "--profile", "smoke", "--learning-rate", "3e-5", "--test_prompts", "10"])
        == 0
    )
    settings, profile, overrides, runner = seen
    assert runner is run_here and (profile, overrides) == (
        "smoke",
        {"learning_rate": 3e-5, "test_prompts": 10},
    )
    assert settings.learning_rate == 3e-5 and settings.name == "smoke"


def test_every_setting_is_an_option(capsys):
    with pytest.raises(SystemExit) as done:
        main(["report", "--help"])
    text = capsys.readouterr().out
    assert done.value.code == 0 and all(f"--{name}" in text for name in Settings().asdict())


def test_atomic_page(tmp_path):
    write_page([], tmp_path / "report.html", "WARP: <none>")
    assert [file.name for file in Path(tmp_path).iterdir()] == ["report.html"]
    assert (
        "WARP: &lt;none&gt;" in (tmp_path / "report.html").read_text()
        and "plotly.js v" not in (tmp_path / "report.html").read_text()
    )
