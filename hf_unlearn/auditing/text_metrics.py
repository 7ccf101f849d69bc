"""Metrics of texts and answers: pure functions of strings and arrays.

An answer's loss is the mean negative log-likelihood of its tokens given the question, in nats, so that `exp(-loss)` is
`P(answer | question) ** (1 / tokens)`. Where a benchmark's code differs from its paper, the code is followed; where a
function differs from that code, its docstring says so.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import hmean, ks_2samp

from hf_unlearn.auditing.metrics import check_losses, check_numbers, check_pairs
from hf_unlearn.auditing.transcription import word_error_rate

# What open-unlearning adds to denominators: a model to which every answer is impossible gets numbers, too.
GUARD = 1e-10


def wer(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Word error rate: word errors over reference words, over all samples. At least 0, lower is better (`jiwer.wer`).

    `(substitutions + deletions + insertions) / words`; above 1 where much is inserted. On the forget dataset best when
    equal to a retrained model's.

    Args:
        predictions: [n] transcripts.
        references: [n] true transcripts.

    Raises:
        ValueError: lengths differ or are 0.
        ImportError: when jiwer is not installed (`pip install hf-unlearn[speech]`).

    Examples:
        >>> wer(["the cat sat"], ["the cat sat down"])
        0.25
    """
    check_pairs(predictions, references)
    return word_error_rate(references, predictions)


def cer(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Character error rate: as `wer`, by characters, spaces included. At least 0, lower is better (`jiwer.cer`).

    Raises:
        ValueError: lengths differ or are 0.
        ImportError: when jiwer is not installed (`pip install hf-unlearn[speech]`).

    Examples:
        >>> cer(["abxd"], ["abcd"])
        0.25
    """
    check_pairs(predictions, references)
    import jiwer

    return float(jiwer.cer(list(references), list(predictions)))


def perplexity(losses: Sequence[ArrayLike]) -> float:
    """`exp` of the mean loss over all tokens: at least 1, lower is better.

    On the forget dataset best when equal to a retrained model's. The mean is over tokens, not over samples: long
    samples weigh more.

    Args:
        losses: negative log-likelihoods in nats of the labelled tokens, [tokens] or samples of them of any lengths.

    Raises:
        ValueError: there is no token, or a loss is negative or not finite.

    Examples:
        >>> perplexity([[0.0, np.log(4)], [np.log(2)]])
        2.0
    """
    tokens = np.concatenate([np.ravel(sample) for sample in losses]) if len(losses) else np.empty(0)
    with np.errstate(over="ignore"):  # a model that ascended far enough has an infinite perplexity
        return float(np.exp(check_losses("losses", tokens).mean()))


def answer_probability(losses: Sequence[float]) -> float:
    """TOFU's probability of the answers: mean over samples of `P(a|q) ** (1 / tokens)`. In [0, 1].

    Maini et al. 2024 (arXiv 2401.06121, section 2.2). Higher is better on retained data, lower on the forget dataset.

    Args:
        losses: [n] the loss of every answer (see the module).

    Raises:
        ValueError: there is no sample, or a loss is negative or not finite.

    Examples:
        >>> answer_probability([0.0, np.log(2)])
        0.75
    """
    return float(np.exp(-check_losses("losses", losses)).mean())


def choice_probability(correct_losses: Sequence[float], wrong_losses: ArrayLike) -> float:
    """TOFU's probability of the right answer among options, mean over samples. In [0, 1], higher is better.

    `P(a_1) / sum_i P(a_i)`, each `P` to the power of `1 / tokens` (Maini et al. 2024, arXiv 2401.06121, section 2.2;
    real authors and world facts), with open-unlearning's 1e-10 added to the sum.

    Args:
        correct_losses: [n] the loss of the right answer (see the module).
        wrong_losses: [n, options] the losses of the wrong ones.

    Raises:
        ValueError: lengths differ, or a loss is negative or not finite.

    Examples:
        >>> round(choice_probability([np.log(2)], [[np.log(4), np.log(4)]]), 6)
        0.5
    """
    correct, wrong = _answers("correct_losses", correct_losses, "wrong_losses", wrong_losses)
    right = np.exp(-correct)
    return float((right / (right + np.exp(-wrong).sum(axis=1) + GUARD)).mean())


def rouge_l_recall(predictions: Sequence[str], references: Sequence[str]) -> float:
    """ROUGE-L recall with stemming, mean over samples: TOFU's ROUGE. In [0, 1], higher is closer to the reference.

    Words of the longest common subsequence over words of the reference (Maini et al. 2024, arXiv 2401.06121, section
    2.2; `rouge_score`). Higher is better on retained data, lower on the forget dataset.

    Args:
        predictions: [n] generated answers.
        references: [n] true answers.

    Raises:
        ValueError: lengths differ or are 0.
        ImportError: when rouge-score is not installed (`pip install hf-unlearn[text]`).

    Examples:
        >>> rouge_l_recall(["the cat sat"], ["the cats sat down"])
        0.75
    """
    return float(np.mean([score.recall for score in _rouge_l(predictions, references, stem=True)]))


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Share of answers that are the reference, character by character but for blanks at the ends. In [0, 1].

    Higher is better on retained data; on the forget dataset best when equal to a retrained model's.

    Args:
        predictions: [n] generated answers.
        references: [n] true answers.

    Raises:
        ValueError: lengths differ or are 0.

    Examples:
        >>> exact_match(["Paris. ", "Rome"], ["Paris.", "rome"])
        0.5
    """
    check_pairs(predictions, references)
    return float(np.mean([p.strip() == r.strip() for p, r in zip(predictions, references, strict=True)]))


def privacy_leakage(auc: float, retrained_auc: float) -> float:
    """MUSE's PrivLeak: how far an attack's area is from a retrained model's, in per cent. 0 is best.

    `100 * (A - A_r) / A_r` with A the chance that an unseen sample scores higher (Shi et al. 2024, arXiv 2407.06460,
    section 3; the attack there is Min-K % of 40 %), with open-unlearning's 1e-10 in the denominator. Below 0 the
    forget samples are better known than to a retrained model, above 0 they stand out the other way.

    Args:
        auc: area under the ROC curve in [0, 1], 1 where all forget samples look more like training samples than the
            unseen ones, as in `audit`.
        retrained_auc: that of a retrained model; 0.5 where there is none.

    Raises:
        ValueError: an area is out of range.

    Examples:
        >>> round(privacy_leakage(0.9, 0.5), 6)
        -80.0
    """
    for name, value in (("auc", auc), ("retrained_auc", retrained_auc)):
        check_numbers(name, value, 0, 1, ndim=0)
    return 100 * (retrained_auc - auc) / (1 - retrained_auc + GUARD)


def verbatim_memorization(predictions: Sequence[str], references: Sequence[str]) -> float:
    """MUSE's VerbMem: ROUGE-L F1 of continuation and truth, mean over samples. In [0, 1].

    On the forget dataset lower is better. Shi et al. 2024 (arXiv 2407.06460; there times 100). As in MUSE's code words
    are not stemmed; open-unlearning stems them.

    Args:
        predictions: [n] greedy continuations of prefixes of forgotten texts.
        references: [n] true continuations, of the length that the model was allowed to generate.

    Raises:
        ValueError: lengths differ or are 0.
        ImportError: when rouge-score is not installed (`pip install hf-unlearn[text]`).

    Examples:
        >>> verbatim_memorization(["the cat sat", "no"], ["the cat sat", "yes"])
        0.5
    """
    return float(np.mean([score.fmeasure for score in _rouge_l(predictions, references, stem=False)]))


def truth_ratios(paraphrased_losses: Sequence[float], perturbed_losses: ArrayLike) -> np.ndarray:
    """TOFU's truth ratio R [n] of every sample, of wrong answers to a right one. In [0, 1e10].

    Maini et al. 2024 (arXiv 2401.06121, equation 1): the mean over perturbed answers of `P ** (1 / tokens)`, over that
    of the paraphrased answer. The mean is geometric, `exp(-mean perturbed loss) / (exp(-loss) + 1e-10)`, as in the
    code of open-unlearning and, but for the 1e-10, TOFU; the paper prints an arithmetic one. A model to which all
    answers are impossible gets 0.

    Args:
        paraphrased_losses: [n] the loss of the paraphrased answer (see the module); for real authors and world facts,
            which have none, the loss of the answer itself.
        perturbed_losses: [n, answers] the losses of the perturbed answers.

    Raises:
        ValueError: lengths differ, or a loss is negative or not finite.

    Examples:
        >>> truth_ratios([np.log(2)], [[np.log(2), np.log(8)]]).round(6)
        array([0.5])
    """
    right, wrong = _answers("paraphrased_losses", paraphrased_losses, "perturbed_losses", perturbed_losses)
    return np.exp(-wrong.mean(axis=1)) / (np.exp(-right) + GUARD)


def truth_ratio(
    paraphrased_losses: Sequence[float], perturbed_losses: ArrayLike, on: Literal["retain", "forget"] = "retain"
) -> float:
    """TOFU's truth ratios in one metric. In [0, 1], higher is better.

    Maini et al. 2024 (arXiv 2401.06121, section 2.2), as in open-unlearning. On retained data (retain dataset, real
    authors, world facts) the mean of `max(0, 1 - R)`: the right answer should be more likely. On the forget dataset
    the mean of `min(R, 1 / R)`: both should be equally likely.

    Args:
        paraphrased_losses: as in `truth_ratios`.
        perturbed_losses: as in `truth_ratios`.
        on: `"retain"` or `"forget"`.

    Raises:
        ValueError: as in `truth_ratios`, or `on` is neither of these.

    Examples:
        >>> round(truth_ratio([np.log(2), np.log(8)], [[np.log(8)], [np.log(2)]]), 6)
        0.375
        >>> round(truth_ratio([np.log(2), np.log(8)], [[np.log(8)], [np.log(2)]], on="forget"), 6)
        0.25
    """
    if on not in ("retain", "forget"):
        raise ValueError(f"on: must be 'retain' or 'forget', got {on!r}")
    ratios = truth_ratios(paraphrased_losses, perturbed_losses)
    if on == "retain":
        return float(np.maximum(0, 1 - ratios).mean())
    return float(np.minimum(ratios, 1 / (ratios + GUARD)).mean())


def forget_quality(predictions: Sequence[float], references: Sequence[float]) -> float:
    """TOFU's forget quality: the p value of "these are a retrained model's truth ratios". In [0, 1], higher is better.

    Two-sample Kolmogorov-Smirnov test (Maini et al. 2024, arXiv 2401.06121, section 2.2; `scipy.stats.ks_2samp`, two
    sides). TOFU's code tests 1 / R, open-unlearning R: the p value is the same. Below 0.05 the two can be told apart.
    Papers often print its logarithm to base 10.

    Args:
        predictions: [n] `truth_ratios` of the unlearned model on the forget dataset.
        references: [m] `truth_ratios` of a retrained model.

    Raises:
        ValueError: there is no ratio, or one is negative or NaN.

    Examples:
        >>> forget_quality([0.2, 0.4, 0.6], [0.2, 0.4, 0.6])
        1.0
    """
    unlearned, retrained = check_numbers("predictions", predictions, 0), check_numbers("references", references, 0)
    return float(ks_2samp(unlearned, retrained).pvalue)


def model_utility(scores: Sequence[float]) -> float:
    """TOFU's model utility: the harmonic mean of nine scores. In [0, 1], higher is better; 0 when one of them is.

    Maini et al. 2024 (arXiv 2401.06121, section 2.2): probability, ROUGE-L recall and truth ratio, each on the retain
    dataset (`answer_probability`), real authors and world facts (`choice_probability`).

    Args:
        scores: [9], in any order.

    Raises:
        ValueError: there are not nine, or one is outside [0, 1].

    Examples:
        >>> round(model_utility([0.5] * 8 + [0.25]), 12)
        0.45
    """
    nine_scores = check_numbers("scores", scores, 0, 1)
    if len(nine_scores) != 9:
        raise ValueError(f"scores: nine (three metrics on each of three datasets), got {len(nine_scores)}")
    return float(hmean(nine_scores))


def _answers(right_name: str, right: ArrayLike, wrong_name: str, wrong: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    right_losses, wrong_losses = check_losses(right_name, right), check_losses(wrong_name, wrong, ndim=2)
    if len(right_losses) != len(wrong_losses):
        raise ValueError(
            f"{wrong_name}: {len(wrong_losses)} samples, but {right_name} has {len(right_losses)}; pass one each"
        )
    return right_losses, wrong_losses


def _rouge_l(predictions: Sequence[str], references: Sequence[str], stem: bool) -> list[Any]:
    check_pairs(predictions, references)
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    scorer = RougeScorer(["rougeL"], tokenizer=_WordsOfAnyScript(DefaultTokenizer(stem)))
    pairs = zip(references, predictions, strict=True)
    return [scorer.score(reference, prediction)["rougeL"] for reference, prediction in pairs]


class _WordsOfAnyScript:
    """Words for ROUGE: of ASCII letters and digits as `rouge_score` has them, which drops all other scripts.

    Letters with accents are letters. Chinese, Japanese and Thai, which write no spaces, have one word a character.
    """

    UNSPACED = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")

    def __init__(self, ascii_words: Any):
        self.ascii_words = ascii_words

    def tokenize(self, text: str) -> list[str]:
        letters = (
            c if unicodedata.category(c)[0] in "LMN" else " " for c in unicodedata.normalize("NFC", text).lower()
        )
        words = self.UNSPACED.sub(lambda match: f" {match[0]} ", "".join(letters)).split()
        return [token for word in words for token in (self.ascii_words.tokenize(word) if word.isascii() else [word])]
