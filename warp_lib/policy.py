"""The policy π_θ: loaded by name, sampled from, and scored on exactly the distribution it was
sampled from.

One distribution everywhere: softmax(logits / τ) with the end-of-sequence tokens masked, no top-k,
no top-p. Sampling, the policy gradient, the anchor and every KL use it, or the gradient would be
off-policy and the KL of something else.
"""

import copy
import gc
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import NewGELUActivation

from .fast import cuda_graphs, machine
from .fast.decoding import NextToken, decoder_of, left_padded, positions, sample_token
from .fast.dense import multiply_in_parts
from .fast.log_probs import ChosenLogProbs, masked
from .merging import Weights
from .models import converted, hub, loading
from .models.model_files import said_of
from .prompts import PROMPT_TOKENS, prompts
from .runs.checkpoint import load, weights_of
from .runs.errors import Explained
from .runs.identities import config_of, tokenizer_identity
from .runs.paths import ROOT
from .runs.progress import Progress
from .runs.store import digest

NAMES = ("reviews-gpt2", "smollm2-imdb", "smollm2")  # that need no folder
BUNDLED = ROOT / "data" / "policy"
GRAPHS = 4  # that a policy keeps on a GPU: each holds the memory that its work takes
WIDTHS = 16  # prompts are padded to a multiple of it where what has one shape is captured


@dataclass(frozen=True)
class Rollouts:
    """Prompts and their completions, a row each.

    tokens: (n, prompt + new) ids, prompts padded on the left; mask: the same shape, False on
    padding; new: tokens in a completion.
    """

    tokens: Tensor
    mask: Tensor
    new: int

    @property
    def completions(self) -> Tensor:
        """The sampled ids, (n, new)."""
        return self.tokens[:, -self.new :]

    def split(self, size: int) -> list["Rollouts"]:
        """The same rollouts, at most `size` at a time."""
        return [
            Rollouts(t, m, self.new)
            for t, m in zip(self.tokens.split(size), self.mask.split(size), strict=True)
        ]

    def rows(self, chosen: Tensor) -> "Rollouts":
        """Some of them, by number."""
        return Rollouts(self.tokens[chosen], self.mask[chosen], self.new)

    def to(self, device: torch.device) -> "Rollouts":
        """The same rollouts on a device."""
        return Rollouts(self.tokens.to(device), self.mask.to(device), self.new)


def pad_and_concat(parts: Sequence[Rollouts]) -> Rollouts:
    """Rollouts of completions of one length as one, those of shorter prompts padded on the left."""
    widest = max(part.tokens.shape[1] for part in parts)
    tokens, mask = (
        torch.cat(
            [F.pad(getattr(part, name), (widest - part.tokens.shape[1], 0)) for part in parts]
        )
        for name in ("tokens", "mask")
    )
    return Rollouts(tokens, mask, parts[0].new)


class Policy:
    """A causal language model with its tokenizer, on the machine's device. Its weights are float32
    and can be exchanged with `load`.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        nn.Module.to(model.float().eval(), machine.device())  # its own `to` has no types
        self.model = model
        self.tokenizer = tokenizer
        self._graphs: dict[tuple, Callable] = {}
        if machine.device().type == "cpu":
            # at a review's length its backward is faster there than the fused kernel's
            model.set_attn_implementation("eager")
        multiply_in_parts(model)
        # GPT-2's activation is written out in eight operations; this is the same in one
        for module in model.modules():
            if isinstance(getattr(module, "act", None), NewGELUActivation):
                module.act = nn.GELU(approximate="tanh")
        ends = model.generation_config.eos_token_id
        ends = (
            ends if isinstance(ends, list) else [tokenizer.eos_token_id if ends is None else ends]
        )
        self.eos_ids = sorted({e for e in [*ends, tokenizer.eos_token_id] if e is not None})
        self.bos_ids = _before_a_text(tokenizer)

    @classmethod
    def from_name(cls, name: str) -> "Policy":
        """The policy called `name`: one of `NAMES`, a local folder or a hub id.

        Raises ValueError in one sentence: what is not there, does not fit together, is not finite,
        or cannot be sampled in batches.
        """
        with said_of(f"policy={name!r}"):
            policy = cls(*loading.open_policy(_folder(name), PROMPT_TOKENS[1]))
            loading.check_decoding(policy.model)
        return policy

    def __reduce__(self) -> tuple:
        """To another process it goes as architecture, tokenizer and weights."""
        m = self.model
        return _arrived, (type(m), m.config, m.generation_config, self.tokenizer, self.weights())

    # Weights

    def weights(self) -> Weights:
        """A copy of θ on the CPU; tied tensors stand once, under one name."""
        return weights_of(self.model)

    def load(self, weights: Weights) -> "Policy":
        """Take over θ, in place."""
        load(self.model, weights)
        return self

    def clone(self) -> "Policy":
        """Another policy of the same architecture and weights that shares no memory with this
        one.
        """
        return Policy(copy.deepcopy(self.model), self.tokenizer)

    def holding(self, weights: Weights) -> "Policy":
        """Another policy of the same architecture that holds these weights, which are not copied
        where they are on its device, and so not to be changed.
        """
        other = self.clone()
        for name, p in other.model.named_parameters():
            p.data = weights[name].to(p.device)
        return other

    # Prompts and text

    def prompts(self, reviews: Sequence[str], *role: str | int) -> dict[int, list[int]]:
        """The place of each review in the sequence → its first 5 to 15 tokens (see
        `prompts.prompts`).
        """
        return prompts(
            reviews,
            lambda texts: self.tokenizer(texts, add_special_tokens=False)["input_ids"],
            *role,
        )

    def openings(self, reviews: Sequence[str], tokens: int) -> list[list[int]]:
        """The first `tokens` tokens of reviews; shorter ones are left out."""
        cut = [review[: 40 * tokens] for review in reviews]
        rows = self.tokenizer(cut, add_special_tokens=False)["input_ids"]
        return [ids[:tokens] for ids in rows if len(ids) >= tokens]

    def texts(self, rollouts: Rollouts) -> list[str]:
        """Prompt and completion of each rollout as text, without BOS."""
        rows = [
            tokens[mask][len(self.bos_ids) :].tolist()
            for tokens, mask in zip(rollouts.tokens.cpu(), rollouts.mask.cpu(), strict=True)
        ]
        return self.tokenizer.batch_decode(rows)

    # Sampling

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        new: int,
        temperature: float,
        generator: torch.Generator,
        progress: Progress | None = None,
        kept: Tensor | None = None,
    ) -> Rollouts:
        """One completion of exactly `new` tokens for each prompt, from softmax(logits /
        temperature) with EOS masked. A model that was trained behind BOS is given it.

        kept: a buffer that takes the logits of the first rows, which `logits` would compute again,
        (rows, new, vocabulary).

        Raises ValueError when prompt and completion do not fit the model's context; and Stopped
        between two tokens, once `progress` is asked to stop.
        """
        prompts = [[*self.bos_ids, *prompt] for prompt in prompts]
        longest = max(map(len, prompts))
        context = getattr(self.model.config, "max_position_embeddings", None)
        if context and longest + new > context:
            raise Explained(
                f"max_new_tokens={new} after a prompt of {longest} does not fit the policy's"
                f" context of {context} tokens."
            )
        device = machine.device()
        if cuda_graphs.can_capture(self.model):  # one length for most batches
            longest = min(-(-longest // WIDTHS) * WIDTHS, (context or sys.maxsize) - new)
        tokens, mask = left_padded(prompts, longest, device)
        places = iter(range(new))

        def next_token(logits: Tensor) -> Tensor:
            if progress:
                progress.check()
            if kept is not None:
                kept[:, next(places)] = logits[: len(kept)]
            return sample_token(masked(logits, temperature, self.eos_ids), generator)

        completions = self._complete(tokens, mask, new, next_token)
        mask = torch.cat([mask, torch.ones_like(completions, dtype=torch.bool)], 1)
        return Rollouts(torch.cat([tokens, completions], 1), mask, new)

    def _complete(self, tokens: Tensor, mask: Tensor, new: int, next_token: NextToken) -> Tensor:
        """Completions of padded prompts, (n, new), as fast as is known here."""
        if cuda_graphs.can_capture(self.model):
            shape = (*tokens.shape, new)
            key = ("completion", *shape, machine.dtype_here(tokens.device), machine.parts())
            n, prompt = tokens.shape
            complete = self._captured(
                key, lambda: cuda_graphs.Completion(self.model, n, prompt, new)
            )
            return complete(tokens, mask, next_token)
        return decoder_of(self.model)(self.model, tokens, mask, new, next_token)

    def _captured(self, key: tuple, capture: Callable[[], Callable]) -> Callable:
        """What was captured under this key, or is now. The oldest makes room."""
        if key not in self._graphs:
            while len(self._graphs) >= GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            # it and the graphs of finished runs, which hold themselves and much memory
            gc.collect()
            self._graphs[key] = capture()
        return self._graphs[key]

    # Scoring

    def logits(self, rollouts: Rollouts) -> Tensor:
        """What the model says before each token of the completions, neither divided by τ nor
        masked: (n, new, vocabulary).
        """
        return self.model(
            rollouts.tokens[:, :-1],
            attention_mask=rollouts.mask[:, :-1].long(),
            position_ids=positions(rollouts.mask[:, :-1]),
            logits_to_keep=rollouts.new,
            use_cache=False,
        ).logits

    def log_probs(self, rollouts: Rollouts, temperature: float) -> Tensor:
        """log π(y_s | x, y_<s) of each sampled token: (n, new)."""
        logits, chosen = self.logits(rollouts), rollouts.completions
        return ChosenLogProbs.apply(
            logits.flatten(0, 1), chosen.flatten(), temperature, self.eos_ids
        ).view_as(chosen)

    def step_log_probs(self, rollouts: Rollouts, temperature: float) -> Tensor:
        """`log_probs` in a training step, as fast as is known here. A call's backward, and clearing
        its gradients, come before the next.
        """
        if not cuda_graphs.can_capture(self.model):
            return self.log_probs(rollouts, temperature)
        batch = (rollouts.tokens, rollouts.mask)

        def log_probs(tokens: Tensor, mask: Tensor) -> Tensor:
            return self.log_probs(Rollouts(tokens, mask, rollouts.new), temperature)

        mode = (torch.is_grad_enabled(), machine.dtype_here(batch[0].device), machine.parts())
        key = ("log_probs", *batch[0].shape, rollouts.new, temperature, *mode)
        return self._captured(key, lambda: cuda_graphs.scoring(self.model, log_probs, *batch))(
            *batch
        )

    def log_distribution(self, logits: Tensor, temperature: float) -> Tensor:
        """log π(· | x, y_<s) over the whole vocabulary, from what `logits` gave: the same shape,
        float32. It has no gradient.
        """
        out = masked(logits, temperature, self.eos_ids)
        out -= out.amax(-1, keepdim=True)
        # in the memory it has: twice as fast as log_softmax on a processor
        return out.sub_(out.exp().sum(-1, keepdim=True).log_())

    @cached_property
    def identity(self) -> str:
        """A digest of architecture and tokenizer, for keys; the weights have their own."""
        # BOS is said where there is one: what is stored of other policies keeps its name
        bos = [self.bos_ids] if self.bos_ids else []
        return digest(config_of(self.model), tokenizer_identity(self.tokenizer), self.eos_ids, *bos)


def _folder(name: str) -> Path:
    """Where the policy called `name` lies. Raises Unfit."""
    match name:
        case "reviews-gpt2":
            return BUNDLED
        case "smollm2":
            return converted.smollm2()
        case "smollm2-imdb":
            return converted.smollm2_imdb()
    return hub.model_folder(name, NAMES)


def bundled_card() -> dict[str, Any]:
    """How the bundled policy was trained: tokens seen, validation loss, history (`pretrain` wrote
    it).
    """
    return json.loads((BUNDLED / "training.json").read_text())


def _before_a_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that a tokenizer itself puts before a text: BOS, of models that were trained behind
    it (Llama, Gemma, OPT), and else nothing.
    """
    text, whole = (tokenizer("a", add_special_tokens=each)["input_ids"] for each in (False, True))
    places = range(len(whole) - len(text) + 1)
    begin = next((k for k in places if whole[k : k + len(text)] == text), 0)
    return whole[:begin]


def _arrived(kind, config, generation, tokenizer, weights: Weights) -> Policy:
    """The policy that another process sent."""
    model = kind(config)
    model.generation_config = generation
    return Policy(model, tokenizer).load(weights)
