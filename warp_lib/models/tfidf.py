"""A judge that reads no meaning: logistic regression on TF-IDF of words and word pairs."""

from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from torch import Tensor

from ..runs.store import digest, memoise, save_tensors


class TfidfScorer:
    """The log-odds of logistic regression on hashed TF-IDF of words and word pairs."""

    def __init__(self, idf: np.ndarray, weight: np.ndarray, offset: float):
        from sklearn.feature_extraction.text import TfidfTransformer  # only now: it takes a second

        self.weight, self.offset = weight, offset
        self.identity = digest(torch.from_numpy(weight), torch.from_numpy(idf), offset)
        self.tfidf = TfidfTransformer(sublinear_tf=True)
        self.tfidf.idf_ = idf

    @staticmethod
    def counts(texts: Sequence[str]):
        """Sparse counts (n, 2¹⁸)."""
        from sklearn.feature_extraction.text import HashingVectorizer

        return HashingVectorizer(
            n_features=2**18,
            ngram_range=(1, 2),
            alternate_sign=False,
            norm=None,  # pyright: ignore
        ).transform(texts)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return torch.from_numpy(
            self.tfidf.transform(self.counts(texts)) @ self.weight + self.offset
        ).float()


def train_tfidf_scorer(reviews: datasets.Dataset) -> TfidfScorer:
    """Logistic regression on TF-IDF of whole reviews and of their openings, or the stored one."""
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    texts, labels = reviews["text"][:], reviews["label"][:]

    def make(folder: Path) -> dict:
        both = texts + [" ".join(text.split()[:50]) for text in texts]
        counts = TfidfScorer.counts(both)
        tfidf = TfidfTransformer(sublinear_tf=True).fit(counts)
        fitted = LogisticRegression(C=10.0, solver="liblinear").fit(
            tfidf.transform(counts), labels * 2
        )
        save_tensors(
            folder / "model.safetensors",
            {"idf": torch.from_numpy(tfidf.idf_), "weight": torch.from_numpy(fitted.coef_[0])},
        )
        return {"offset": fitted.intercept_.item()}

    entry = memoise("tfidf", {"texts": digest(texts, labels)}, make)
    tensors = entry.tensors("model")
    return TfidfScorer(tensors["idf"].numpy(), tensors["weight"].numpy(), entry.record["offset"])
