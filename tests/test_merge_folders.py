"""`python -m warp_lib merge`: folders merged layer by layer give what merging in memory gives; or
one sentence, and nothing written.
"""

import gc
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import tiny_policy
from warp_lib.__main__ import main
from warp_lib.merging import Weights, geometry, interpolate, layer_of, lerp, slerp
from warp_lib.models import hub
from warp_lib.runs.progress import Progress
from warp_lib.tools import merge_folders as module
from warp_lib.tools.merge_folders import INDEX, SINGLE, RoundingWarning, merge_folders

NAMES = ["base", "a", "b", "c"]


def folder_of(weights: Weights, like: Path, to: Path) -> Path:
    """The folder `like` with other weights in one file."""
    shutil.copytree(like, to, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    save_file(weights, to / SINGLE, {"format": "pt"})
    return to


def weights_in(folder: Path) -> Weights:
    return {
        name: t
        for file in sorted(folder.glob("*.safetensors"))
        for name, t in load_file(file).items()
    }


def near(a: Weights, b: Weights, atol: float = 1e-6) -> bool:
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and torch.allclose(a[n], b[n], rtol=0, atol=atol) for n in a
    )


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folders(request, tmp_path_factory) -> dict[str, Path]:
    """A base and three runs of it, of different lengths and angles; GPT-2's output layer is tied,
    Llama's is not.
    """
    at, policies = tmp_path_factory.mktemp(request.param), {}
    for seed, name in enumerate(NAMES):
        policies[name] = tiny_policy(request.param, seed=seed)
        with torch.no_grad():
            for p, began in zip(
                policies[name].model.parameters(), policies["base"].model.parameters(), strict=True
            ):
                p.copy_(began + (p - began) * 0.1 * seed)
        policies[name].model.save_pretrained(at / name)
        policies[name].tokenizer.save_pretrained(at / name)
    return {name: at / name for name in NAMES}


def merged(folders: dict[str, Path], out: Path, runs: str = "ab", **options) -> Weights:
    merge_folders(str(folders["base"]), [str(folders[run]) for run in runs], out, **options)
    return weights_in(out)


def merged_folder(folders: dict[str, Path], out: Path, runs: str = "ab", **options) -> Path:
    merged(folders, out, runs, **options)
    return out


def in_memory(
    folders: dict[str, Path],
    runs: str = "ab",
    eta: float = 1.0,
    merge: str = "slerp",
    per: str = "layer",
) -> Weights:
    base, *tuned = (weights_in(folders[name]) for name in ("base", *runs))
    return interpolate(
        base, lerp(base, tuned) if merge == "lerp" else slerp(base, tuned, per=per), eta
    )


# --- the same numbers as in memory ----------------------------------------------------------------


@pytest.mark.parametrize("runs", ["ab", "bca"])
@pytest.mark.parametrize(
    "options", [{"per": per} for per in ("layer", "tensor", "model")] + [{"merge": "lerp"}], ids=str
)
@pytest.mark.parametrize("eta", [0.3, 1.5])
def test_what_merging_in_memory_gives(folders, tmp_path, runs, options, eta):
    """Guards: an angle over other tensors than `per` says, runs in another order, tensors written
    at another's place.
    """
    result, expected = (
        of(folders, *to, runs=runs, eta=eta, **options)
        for of, to in ((merged, [tmp_path / "out"]), (in_memory, []))
    )
    assert near(result, expected)
    other = {"per": "tensor" if options.get("per") == "layer" else "layer"}
    assert not near(result, in_memory(folders, runs=runs, eta=eta, **other))


def test_one_run_is_interpolated_and_both_ends_are_exact(folders, tmp_path):
    assert near(
        merged(folders, tmp_path / "half", "a", eta=0.5),
        interpolate(weights_in(folders["base"]), weights_in(folders["a"]), 0.5),
    )
    for eta, end in ((0, "base"), (1, "a")):
        result = merged(folders, tmp_path / end, "a", eta=eta, per="model")
        expected = weights_in(folders[end])
        assert all(torch.equal(result[n], expected[n]) for n in expected)


def test_the_report_is_merging_geometry(folders, tmp_path):
    """Every layer and pair, and the whole model, whose angle is put together from those of the
    layers.
    """
    base, *tuned = (weights_in(folders[name]) for name in NAMES)
    expected = {(row["layer"], row["a"], row["b"]): row for row in geometry(base, tuned)}
    for per in ("layer", "model"):
        rows = merge_folders(
            str(folders["base"]), [str(folders[run]) for run in "abc"], tmp_path / per, per=per
        )
        assert {(row["layer"], row["a"], row["b"]) for row in rows} == expected.keys() and len(
            rows
        ) == len(expected)
        for row in rows:
            numbers = ("degrees", "norm_a", "norm_b")
            assert [row[n] for n in numbers] == pytest.approx(
                [expected[row["layer"], row["a"], row["b"]][n] for n in numbers], rel=1e-9
            )
        assert [row["layer"] for row in rows[-3:]] == ["model"] * 3
        record = json.loads((tmp_path / per / "merge.json").read_text())
        assert record["geometry"] == rows and (record["eta"], record["merge"], record["per"]) == (
            1,
            "slerp",
            per,
        )
        assert [run["name"] for run in record["runs"]] == [str(folders[run]) for run in "abc"]


@pytest.mark.parametrize("per", ["layer", "model"])
def test_a_run_that_did_not_move(folders, tmp_path, per):
    """LERP where there is no angle; JSON has no nan."""
    same = folder_of(weights_in(folders["base"]), folders["base"], tmp_path / "same")
    assert near(
        merged(folders | {"b": same}, tmp_path / "out", per=per),
        in_memory(folders, merge="lerp", runs="a", eta=0.5),
    )
    text = (tmp_path / "out" / "merge.json").read_text()
    assert "NaN" not in text and json.loads(text)["geometry"][-1]["degrees"] is None


# --- dtypes ---------------------------------------------------------------------------------------


def narrow(
    folders: dict[str, Path], to: Path, names: list[str], dtype: torch.dtype = torch.bfloat16
) -> dict[str, Path]:
    """The folders, those called `names` as transformers saves them in a narrower dtype, in
    shards.
    """
    for name in names:
        AutoModelForCausalLM.from_pretrained(folders[name]).to(dtype).save_pretrained(
            to / name, max_shard_size="4KB"
        )
        AutoTokenizer.from_pretrained(folders[name]).save_pretrained(to / name)
    return folders | {name: to / name for name in names}


def trained(folders: dict[str, Path], to: Path) -> dict[str, Path]:
    """A base in bfloat16, and float32 runs from it whose task vectors are within a bfloat16
    spacing, as RL's are; a tensor is frozen.
    """
    folders = narrow(folders, to, ["base"])
    base = {n: t.float() for n, t in weights_in(folders["base"]).items()}
    draw = torch.Generator().manual_seed(0)
    for run in "ab":
        moved = {
            n: t + t.abs() * 2**-9 * torch.randn(t.shape, generator=draw) for n, t in base.items()
        }
        folders[run] = folder_of(
            moved | dict([max(base.items(), key=lambda item: item[0])]), folders[run], to / run
        )
    return folders


def said_dtype(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["dtype"]


def test_a_bfloat16_base_with_float32_runs_gives_float32(folders, tmp_path, capsys):
    """To the bit what merging in memory in float32 gives. Guards: the base's dtype taken, and 65%
    of an RL task vector with it.
    """
    small = trained(folders, tmp_path)
    base, a, b = (
        {n: t.float() for n, t in weights_in(small[name]).items()} for name in ("base", "a", "b")
    )
    command = [
        "merge",
        *(str(small[name]) for name in ("base", "a", "b")),
        "--eta",
        "0.3",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 0 and "Warning" not in capsys.readouterr().err
    result, expected = weights_in(tmp_path / "out"), interpolate(base, slerp(base, [a, b]), 0.3)
    assert result.keys() == expected.keys() and all(
        torch.equal(result[n], expected[n]) for n in expected
    )
    assert (
        all(t.dtype == torch.float32 for t in result.values())
        and said_dtype(tmp_path / "out") == "float32"
    )
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["dtype"] is None and record["rounding"] == {"error": 0, "unmoved": 0}


def test_a_dtype_that_is_asked_for_is_rounded_to_once_and_its_cost_is_told(
    folders, tmp_path, capsys
):
    """Guards: merged in bfloat16, which rounds at every step; numbers that are not those of the
    weights written.
    """
    small = trained(folders, tmp_path)
    wide = weights_in(merged_folder(small, tmp_path / "wide", eta=0.3))
    base = weights_in(small["base"])
    command = [
        "merge",
        *(str(small[name]) for name in ("base", "a", "b")),
        "--eta",
        "0.3",
        "--dtype",
        "bfloat16",
    ]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    result = weights_in(tmp_path / "out")
    assert (
        all(torch.equal(result[n], wide[n].bfloat16()) for n in wide)
        and said_dtype(tmp_path / "out") == "bfloat16"
    )

    was, exact, rounded = (
        torch.cat([w[n].double().flatten() for n in wide]) for w in (base, wide, result)
    )
    error = ((rounded - exact).norm() / (exact - was).norm()).item()
    unmoved = (rounded == was)[exact != was].double().mean().item()
    assert error > 0.5 and unmoved > 0.5
    said = capsys.readouterr().err
    assert f"Warning: rounding to bfloat16 costs {error:.1%} of the task vector (" in said
    assert (
        f", and {unmoved:.1%} of the weights that the merge moves stay the base's; --dtype float32"
        " keeps it.\n" in said
    )
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["rounding"] == pytest.approx(
        {"error": error, "unmoved": unmoved}
    )


def test_a_merge_of_bfloat16_weights_warns_of_what_it_rounds_away(folders, tmp_path):
    """Nothing was asked for and nothing promoted, and yet the merge lies between bfloat16 numbers;
    float32, asked for, keeps it.
    """
    low = narrow(folders, tmp_path, ["base", "a", "b"])
    with pytest.warns(
        RoundingWarning, match="rounding to bfloat16 costs .* --dtype float32 keeps it"
    ):
        assert all(
            t.dtype == torch.bfloat16
            for t in weights_in(merged_folder(low, tmp_path / "out", eta=0.3)).values()
        )
    with warnings.catch_warnings(action="error"):
        wide = weights_in(merged_folder(low, tmp_path / "wide", eta=0.3, dtype="float32"))
    base, a, b = (
        {n: t.float() for n, t in weights_in(low[name]).items()} for name in ("base", "a", "b")
    )
    assert (
        near(wide, interpolate(base, slerp(base, [a, b]), 0.3))
        and said_dtype(tmp_path / "wide") == "float32"
    )


def test_no_run_is_narrowed(folders, tmp_path):
    """Float64 runs are merged and written as such; a float16 run on a bfloat16 base needs float32,
    which holds both.
    """
    low = narrow(folders, tmp_path, ["base"])
    double = folder_of(
        {n: t.double() / 3 for n, t in weights_in(folders["a"]).items()},
        folders["a"],
        tmp_path / "double",
    )
    result = weights_in(merged_folder(low | {"a": double}, tmp_path / "out", "a"))
    assert (
        all(torch.equal(result[n], t) for n, t in weights_in(double).items())
        and said_dtype(tmp_path / "out") == "float64"
    )
    half = narrow(folders, tmp_path / "half", ["a"], torch.float16)["a"]
    assert all(
        t.dtype == torch.float32
        for t in weights_in(merged_folder(low | {"a": half}, tmp_path / "both")).values()
    )
    with pytest.warns(RoundingWarning, match="without --dtype nothing is rounded"):
        merged_folder(low | {"a": double}, tmp_path / "less", "a", dtype="float32")


@pytest.mark.parametrize("options", [{}, {"dtype": "float16"}], ids=["promoted", "asked for"])
@pytest.mark.filterwarnings("ignore::warp_lib.tools.merge_folders.RoundingWarning")
def test_files_of_another_dtype_than_the_bases_are_whole(folders, tmp_path, options):
    """Headers, index, config and file sizes fit the numbers written. Guards: the base's offsets
    under numbers twice as wide.
    """
    low = narrow(folders, tmp_path, ["base"])
    config = json.loads((low["base"] / "config.json").read_text())
    old = {k: v for k, v in config.items() if k != "dtype"} | {
        "torch_dtype": "bfloat16",
        "inner": {"dtype": "bfloat16"},
    }
    (low["base"] / "config.json").write_text(json.dumps(old))
    out, width = merged_folder(low, tmp_path / "out", **options), 2 if options else 4
    name = "float16" if options else "float32"
    told = json.loads((out / "config.json").read_text())
    assert told == old | {"torch_dtype": name, "inner": {"dtype": name}}

    index, sizes = json.loads((out / INDEX).read_text()), []
    for file in sorted(set(index["weight_map"].values())):
        tensors = load_file(out / file)
        sizes.append(sum(t.nbytes for t in tensors.values()))
        with safe_open(out / file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
        head = int.from_bytes((out / file).read_bytes()[:8], "little")
        assert head % 8 == 0 and (out / file).stat().st_size == 8 + head + sizes[-1]
        assert {n for n, f in index["weight_map"].items() if f == file} == tensors.keys()
    assert (
        index["metadata"]["total_size"]
        == sum(sizes)
        == width * sum(t.numel() for t in weights_in(low["base"]).values())
    )
    assert (
        index["metadata"].keys() == json.loads((low["base"] / INDEX).read_text())["metadata"].keys()
    )
    model, loaded = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert (
        model.dtype == getattr(torch, name)
        and not loaded["missing_keys"]
        and not loaded["unexpected_keys"]
    )
    assert all(torch.equal(model.state_dict()[n], t) for n, t in weights_in(out).items())
    head = AutoTokenizer.from_pretrained(out)("w4 w7", return_tensors="pt")
    assert model(**{k: head[k] for k in ("input_ids", "attention_mask")}).logits.isfinite().all()


def test_tensors_of_several_dtypes(folders, tmp_path):
    """Each is promoted by itself and begins at a multiple of its numbers' size; the config names
    the dtype that opens all unrounded.
    """
    odd = {"h.0.mask": torch.tensor([True, False, True]), "h.0.steps": torch.tensor([7])}
    changed = {}
    for name in ("base", "a"):
        weights = weights_in(folders[name])
        first = sorted(weights)[0]
        as_saved = {
            n: t if name == "a" and n == first else t.bfloat16() for n, t in weights.items()
        }
        changed[name] = folder_of(as_saved | odd, folders[name], tmp_path / name)
    result = weights_in(merged_folder(changed, tmp_path / "out", "a"))
    assert {n for n, t in result.items() if t.dtype == torch.float32} == {first}
    assert {t.dtype for n, t in result.items() if n != first} == {
        torch.bfloat16,
        torch.bool,
        torch.int64,
    }
    assert (
        all(torch.equal(result[n], t) for n, t in odd.items())
        and said_dtype(tmp_path / "out") == "float32"
    )
    whole = (tmp_path / "out" / SINGLE).read_bytes()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    assert not [n for n, t in result.items() if header[n]["data_offsets"][0] % t.itemsize]


def test_weights_beyond_the_range_of_the_dtype(folders, tmp_path, capsys):
    """Guards: an infinity written where a weight was."""
    name = "a.w"
    big = {
        n: folder_of(weights_in(folders[n]) | {name: torch.tensor([7e4])}, folders[n], tmp_path / n)
        for n in ("base", "a")
    }
    says = f"{name} does not fit into float16, whose largest number is 65504."
    there = sorted(tmp_path.iterdir())
    assert (
        main(
            [
                "merge",
                str(big["base"]),
                str(big["a"]),
                "--dtype",
                "float16",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
    assert capsys.readouterr().err.endswith(f"\n{says}\n") and sorted(tmp_path.iterdir()) == there


# --- buffers --------------------------------------------------------------------------------------


def test_buffers_that_are_not_floating_point_stay_the_bases(folders, tmp_path):
    """Guards: whole numbers averaged, and a scalar or an empty tensor that cannot be written."""
    changed = {}
    for name, value in (("base", 3), ("a", 4), ("b", 5)):
        odd = {
            "steps": torch.tensor(value),
            "h.0.mask": torch.tensor([value > 3, True]),
            "h.0.none": torch.zeros(0, 4),
        }
        changed[name] = folder_of(weights_in(folders[name]) | odd, folders[name], tmp_path / name)
    result = merged(changed, tmp_path / "out")
    assert (
        result["steps"] == 3
        and result["h.0.mask"].tolist() == [False, True]
        and result["h.0.none"].shape == (0, 4)
    )


# --- files ----------------------------------------------------------------------------------------


def sharded(folder: Path, to: Path) -> Path:
    """The same model in several files, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(to, max_shard_size="4KB")
    assert len(list(to.glob("model-*.safetensors"))) > 2
    AutoTokenizer.from_pretrained(folder).save_pretrained(to)
    return to


def test_shards_equal_one_file(folders, tmp_path):
    """Guards: a layer whose tensors lie in two shards; a merged folder with the index of other
    files than it has.
    """
    expected = merged(folders, tmp_path / "single")
    shards = {name: sharded(folders[name], tmp_path / f"{name}-shards") for name in ("base", "b")}
    assert near(merged(folders | {"b": shards["b"]}, tmp_path / "out-1"), expected)
    assert near(merged(folders | shards, tmp_path / "out-2", per="layer"), expected)
    assert (tmp_path / "out-1" / SINGLE).is_file() and not (tmp_path / "out-1" / INDEX).exists()
    files = {file.name for file in (tmp_path / "out-2").glob("*.safetensors")}
    assert (
        files == set(json.loads((tmp_path / "out-2" / INDEX).read_text())["weight_map"].values())
        and SINGLE not in files
    )


@pytest.mark.parametrize("shards", [False, True], ids=["single", "shards"])
def test_transformers_opens_the_result(folders, tmp_path, shards):
    """Weights, ties, tokenizer and generation config; nothing else of the base's folder."""
    base = (
        sharded(folders["base"], tmp_path / "base")
        if shards
        else shutil.copytree(folders["base"], tmp_path / "base")
    )
    (base / "optimizer.pt").write_text("pickle")
    expected = merged(folders | {"base": base}, tmp_path / "out")
    model, loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert (
        not loaded["missing_keys"]
        and not loaded["unexpected_keys"]
        and not loaded["mismatched_keys"]
    )
    assert all(torch.equal(model.state_dict()[n], t) for n, t in expected.items())
    assert model.generation_config.eos_token_id == 3
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("w4 w7").input_ids == [4, 7]
    assert not (tmp_path / "out" / "optimizer.pt").exists()


def test_templates_and_code_of_its_own_go_along(folders, tmp_path, capsys):
    """Guards: chat templates lost; a folder that needs code, without it. Code is copied and not
    run; links inside are copied as files.
    """
    base = shutil.copytree(folders["base"], tmp_path / "base")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (base / "own.py").write_text("raise SystemExit('I was run')")
    (base / "chat_template.jinja").symlink_to("additional_chat_templates/tools.jinja")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "own.Own"}, "model_type": "own"})
    )
    merge_folders(str(base), [str(folders["a"])], tmp_path / "out")
    assert (
        tmp_path / "out" / "additional_chat_templates" / "tools.jinja"
    ).read_text() == "{{ tools }}"
    assert (tmp_path / "out" / "own.py").read_text() == (base / "own.py").read_text()
    template = tmp_path / "out" / "chat_template.jinja"
    assert template.read_text() == "{{ tools }}" and not template.is_symlink()


@pytest.mark.parametrize(
    "options", [{"per": "layer"}, {"per": "model"}, {"merge": "lerp"}], ids=str
)
def test_one_layer_is_in_memory_at_a_time(folders, tmp_path, monkeypatch, options):
    """Guards: models read whole, or results kept. When a layer is first asked for, no tensor of the
    merge is alive.
    """
    asked: list[str] = []

    def tensors() -> list[Tensor]:
        gc.collect()
        return [o for o in gc.get_objects() if issubclass(type(o), Tensor)]

    class Watched:
        def __init__(self, file: Path, framework: str) -> None:
            self.opened = safe_open(file, framework=framework)

        def __enter__(self) -> "Watched":
            self.opened.__enter__()
            return self

        def __exit__(self, *error) -> None:
            self.opened.__exit__(*error)

        def metadata(self) -> dict[str, str]:
            return self.opened.metadata()

        def get_tensor(self, name: str) -> Tensor:
            if not asked or asked[-1] != layer_of(name):
                assert not tensors()
                asked.append(layer_of(name))
            return self.opened.get_tensor(name)

    safe_open = module.safe_open
    monkeypatch.setattr(module, "safe_open", Watched)
    gc.collect()
    gc.freeze()  # what other tests left is not looked at
    try:
        merge_folders(
            str(folders["base"]), [str(folders[run]) for run in "abc"], tmp_path / "out", **options
        )
    finally:
        gc.unfreeze()
    passes = 2 if options.get("per") == "model" else 1
    assert len(asked) == passes * len(set(asked)) and len(set(asked)) >= 5


# --- what is refused ------------------------------------------------------------------------------


def refused(capsys, says: str, command: list, out: Path) -> None:
    """One sentence, exit code 2, and nothing written."""
    there = sorted(out.parent.rglob("*"))
    capsys.readouterr()  # what making the folders said
    assert main(["merge", *map(str, command), "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert (
        says in said.err and said.err.count("\n") == 1 and said.err.endswith(".\n") and not said.out
    )
    assert sorted(out.parent.rglob("*")) == there


@pytest.mark.parametrize(
    "options, says",
    [
        (["--eta", "half"], "eta must be a finite number, not 'half'."),
        (["--eta", "nan"], "eta must be a finite number, not nan."),
        (["--eta", "inf"], "eta must be a finite number, not inf."),
        (["--merge", "ties"], "merge must be slerp or lerp, not 'ties'."),
        (["--per", "block"], "per must be layer or tensor or model, not 'block'."),
        (["--dtype", "int8"], "dtype must be float32, bfloat16, float16 or left out, not 'int8'."),
        (["--seed", "3"], "Unknown option: --seed."),
    ],
)
def test_bad_options(folders, tmp_path, capsys, options, says):
    refused(capsys, says, [folders["base"], folders["a"], *options], tmp_path / "out")


def test_models_that_do_not_fit_together(folders, tmp_path, capsys):
    weights = weights_in(folders["a"])
    name = next(n for n, t in weights.items() if t.dim() == 2)
    less = folder_of(
        {n: t for n, t in weights.items() if n != name}, folders["a"], tmp_path / "less"
    )
    refused(
        capsys,
        f"{name} is in '{folders['base']}' and not in '{less}'; a merge",
        [folders["base"], folders["b"], less],
        tmp_path / "out",
    )
    refused(
        capsys,
        f"{name} is in '{folders['a']}' and not in '{less}'; a merge",
        [less, folders["a"]],
        tmp_path / "out",
    )
    flat = folder_of(weights | {name: weights[name].flatten()}, folders["a"], tmp_path / "flat")
    shapes = tuple(weights[name].shape), (weights[name].numel(),)
    says = f"{name} has shape {shapes[0]} in '{folders['base']}' and {shapes[1]} in '{flat}'."
    refused(capsys, says, [folders["base"], flat], tmp_path / "out")


def test_folders_that_hold_no_plain_safetensors(folders, tmp_path, capsys):
    """Guards: a pickle opened; a file outside the folder read or written because an index names it;
    damage found half-way through.
    """

    def says(sentence: str, folder: Path) -> None:
        refused(capsys, sentence, [folders["base"], folder], tmp_path / "out")
        refused(capsys, sentence, [folder, folders["a"]], tmp_path / "out")

    pickled = shutil.copytree(folders["a"], tmp_path / "pickled")
    (pickled / SINGLE).rename(pickled / "pytorch_model.bin")
    says(
        f"'{pickled}' has no {SINGLE}, only pytorch_model.bin (.bin files can run code when"
        " opened)",
        pickled,
    )

    bare = shutil.copytree(folders["a"], tmp_path / "bare")
    (bare / "config.json").unlink()
    says(f"'{bare}' has no config.json", bare)

    cut = shutil.copytree(folders["a"], tmp_path / "cut")
    with (cut / SINGLE).open("r+b") as file:
        file.truncate(2000)
    says(f"'{cut}' has a damaged or incomplete {SINGLE}, ", cut)

    shards = sharded(folders["a"], tmp_path / "shards")
    index = json.loads((shards / INDEX).read_text())
    name, file = next(iter(index["weight_map"].items()))
    for places, sentence in (
        (
            index["weight_map"] | {name: "../elsewhere.safetensors"},
            (
                f"has a damaged {INDEX}: it names '../elsewhere.safetensors', which is not a"
                " safetensors"
            ),
        ),
        (
            index["weight_map"] | {"ghost": file},
            "has an index and weights that do not agree on ghost.",
        ),
        ({}, f"has a damaged {INDEX}: it has no weight_map."),
    ):
        (shards / INDEX).write_text(json.dumps({"weight_map": places}))
        says(sentence, shards)
    (shards / INDEX).write_text(json.dumps(index))
    (shards / file).unlink()
    says(f"'{shards}' lacks {file}, one of ", shards)


def test_quantised_weights(folders, tmp_path, capsys):
    """Guards: packed or scaled numbers averaged as if they were weights."""
    weights = weights_in(folders["a"])
    name = next(iter(weights))
    small = folder_of(
        weights | {name: weights[name].to(torch.float8_e4m3fn)}, folders["a"], tmp_path / "small"
    )
    refused(
        capsys,
        f"'{small}' is quantised ({name} is F8_E4M3): give the weights",
        [folders["base"], small],
        tmp_path / "out",
    )
    packed = shutil.copytree(folders["a"], tmp_path / "packed")
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq"}})
    )
    refused(
        capsys,
        f"'{packed}' is quantised (gptq): give the weights",
        [folders["base"], packed],
        tmp_path / "out",
    )


def test_a_folder_that_is_there_stays_as_it_is(folders, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    merge_folders(str(folders["base"]), [str(folders["a"])], out)  # an empty one will do
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    refused(
        capsys,
        f"{out} is there already and is not an empty folder; name another.",
        [folders["base"], folders["b"]],
        out,
    )
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    other = tmp_path / "other"
    other.with_name("other.part").mkdir()
    refused(
        capsys,
        f"{other}.part is there: either another merge",
        [folders["base"], folders["b"]],
        other,
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space left")])
def test_nothing_half_written_stays(folders, tmp_path, monkeypatch, capsys, error):
    """Stopped or out of space at its third layer, a merge leaves no folder, and says so in a
    sentence.
    """
    steps = []

    def fails(*args) -> Weights:
        steps.append(list((tmp_path / "out.part").iterdir()))
        if len(steps) == 3:
            raise error
        return interpolate(*args)

    monkeypatch.setattr(module, "interpolate", fails)
    assert (
        main(["merge", str(folders["base"]), str(folders["a"]), "--out", str(tmp_path / "out")])
        == 1
    )
    assert steps[0] and not list(tmp_path.iterdir())
    assert capsys.readouterr().err.endswith(
        f"\nNothing was written: {'stopped' if error is KeyboardInterrupt else error}.\n"
    )


# --- the command and the hub ----------------------------------------------------------------------


def test_the_command(folders, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    command = ["merge", str(folders["base"]), str(folders["a"]), str(folders["b"])]
    assert main([*command, "--eta", "0.5", "--per", "tensor", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert near(weights_in(out), in_memory(folders, eta=0.5, per="tensor"))
    lines = said.out.split("\n")
    assert (
        lines[0].split() == ["layer", "a", "b", "degrees", "norm_a", "norm_b"]
        and "merge: 100%" in said.err
    )
    whole = json.loads((out / "merge.json").read_text())["geometry"][-1]
    assert lines[-3].split()[:4] == ["model", "1", "2", f"{whole['degrees']:.4g}"]
    assert main([*command[:3], "--out", str(tmp_path / "one")]) == 0
    assert capsys.readouterr().out.startswith("One run: there is no angle to report.")


def test_layers_are_told_of_in_their_order(folders, tmp_path):
    """Guards: layer 10 before layer 2, the order of a file's names."""
    base = weights_in(folders["base"]) | {f"h.{i}.w": torch.randn(2) for i in (10, 2)}
    changed = {
        name: folder_of({n: t + k for n, t in base.items()}, folders["base"], tmp_path / name)
        for k, name in enumerate(NAMES)
    }
    titles = []

    class Told(Progress):
        def begin(self, title: str, done: int, total: int) -> None:
            titles.append((title, total))

    rows = merge_folders(
        str(changed["base"]),
        [str(changed["a"]), str(changed["b"])],
        tmp_path / "out",
        per="model",
        progress=Told(),
    )
    assert [row["layer"] for row in rows if row["layer"] in ("h.2", "h.10")] == ["h.2", "h.10"]
    assert titles == [("angles", len(rows) - 1), ("merge", len(rows) - 1)]


def test_hub_ids(folders, tmp_path, monkeypatch, capsys):
    """A hub id is downloaded without pickles, and refused at once when the hub is not there."""
    patterns = []

    def download(
        name: str, allow_patterns: list[str], local_files_only: bool = False, revision: str = "main"
    ) -> str:
        if local_files_only:
            raise FileNotFoundError
        patterns.extend(allow_patterns)
        return str(folders[name.removeprefix("lab/")])

    monkeypatch.setattr(hub, "unreachable", lambda: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "snapshot_download", download)
    merge_folders("lab/base", ["lab/a", str(folders["b"])], tmp_path / "out")
    assert near(weights_in(tmp_path / "out"), in_memory(folders))
    assert {SINGLE, INDEX, "config.json"} <= set(patterns) and not [
        p for p in patterns if "bin" in p or p in ("*", "*.pt")
    ]
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["base"] == {"name": "lab/base", "folder": str(folders["base"])}

    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name, says in (
        ("lab/absent", "'lab/absent' is neither"),
        ("no such/folder", "'no such/folder' is not there: no such folder."),
    ):
        refused(capsys, says, [folders["base"], name], tmp_path / "other")
