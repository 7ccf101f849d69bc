"""TOFU: fictitious authors (Maini et al. 2024, arXiv 2401.06121), with open-unlearning's privacy and memorisation."""

from __future__ import annotations

import numpy as np

from hf_unlearn.auditing.metrics import exact_memorization, extraction_strength
from hf_unlearn.auditing.text_metrics import (
    answer_probability,
    choice_probability,
    forget_quality,
    model_utility,
    privacy_leakage,
    rouge_l_recall,
    truth_ratio,
    truth_ratios,
)
from hf_unlearn.benchmarks.examined import Examined, membership_auc, without_end
from hf_unlearn.benchmarks.loading import Part

SOURCE = "locuslab/TOFU"
FORGET = ("forget01", "forget05", "forget10")
MAX_NEW_TOKENS = 200
ANSWERS = ("question", "answer", "paraphrased_answer", "perturbed_answer")
FACTS = ("question", "answer", "perturbed_answer")


def parts(forget: str) -> dict[str, Part]:
    """The parts for one of `FORGET`."""
    return {
        "forget": Part(f"{forget}_perturbed", "train", ANSWERS),
        "retain": Part("retain_perturbed", "train", ANSWERS),
        "real_authors": Part("real_authors_perturbed", "train", FACTS),
        "world_facts": Part("world_facts_perturbed", "train", FACTS),
        "holdout": Part(forget.replace("forget", "holdout"), "train", ("question", "answer"), is_needed=False),
    }


def measure(examined: Examined, retain: Examined | None) -> dict[str, float]:
    """TOFU's metrics, each in [0, 1] but for `privacy_leakage`, in per cent.

    Of forget answers probability, ROUGE-L recall, truth ratio, extraction strength and exact memorisation; model
    utility with its nine scores; with a retain model forget quality; with samples held out `privacy_leakage` of
    Min-K %, beside chance where there is no retain model.
    """
    forget = examined.questions("forget")
    tokens = examined.tokens(forget, "forget answers")
    ends = [without_end(t) for t in tokens]
    true = [answer.truth[: len(t.losses)] for answer, t in zip(forget, ends, strict=True)]
    metrics = {
        "forget_probability": answer_probability([t.loss for t in tokens]),
        "forget_rouge_l_recall": _recall(examined, "forget"),
        "extraction_strength": extraction_strength([t.predictions for t in ends], true),
        "exact_memorization": exact_memorization([t.predictions for t in ends], true),
    }
    right, wrong = _ratio_losses(examined)
    metrics["forget_truth_ratio"] = truth_ratio(right, wrong, on="forget")
    if retain is not None:
        of_retain = truth_ratios(*_ratio_losses(retain))
        metrics["forget_quality"] = forget_quality(truth_ratios(right, wrong).tolist(), of_retain.tolist())
    nine_scores = {
        f"{part}_{metric}": score
        for part in ("retain", "real_authors", "world_facts")
        for metric, score in _utility(examined, part).items()
    }
    metrics |= {"model_utility": model_utility(list(nine_scores.values())), **nine_scores}
    if "holdout" in examined.parts:
        auc = membership_auc(tokens, examined.tokens(examined.questions("holdout"), "answers held out"))
        metrics |= {"min_k_auc": auc, "privacy_leakage": privacy_leakage(auc, _retain_auc(retain))}
    return metrics


def _ratio_losses(examined: Examined) -> tuple[list[float], np.ndarray]:
    """Losses of the paraphrased [n] and of the perturbed answers [n, answers] to forget questions."""
    return examined.losses("forget", "paraphrased_answer").tolist(), examined.losses("forget", "perturbed_answer")


def _retain_auc(retain: Examined | None) -> float:
    if retain is None:
        return 0.5
    members, others = (retain.tokens(retain.questions(part), f"{part} answers") for part in ("forget", "holdout"))
    return membership_auc(members, others)


def _utility(examined: Examined, part: str) -> dict[str, float]:
    """Probability, ROUGE-L recall and truth ratio; where there are no paraphrases, among options."""
    losses, wrong = examined.losses(part, "answer").tolist(), examined.losses(part, "perturbed_answer")
    is_retain = part == "retain"
    right = examined.losses(part, "paraphrased_answer").tolist() if is_retain else losses
    return {
        "probability": answer_probability(losses) if is_retain else choice_probability(losses, wrong),
        "rouge_l_recall": _recall(examined, part),
        "truth_ratio": truth_ratio(right, wrong),
    }


def _recall(examined: Examined, part: str) -> float:
    prompts = [answer.prompt for answer in examined.questions(part)]
    return rouge_l_recall(examined.written(prompts, MAX_NEW_TOKENS, part), examined.parts[part]["answer"][:])
