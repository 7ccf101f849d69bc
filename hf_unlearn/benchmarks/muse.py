"""MUSE: news and books (Shi et al. 2024, arXiv 2407.06460)."""

from __future__ import annotations

from collections.abc import Sequence

from hf_unlearn.auditing.text_metrics import privacy_leakage, verbatim_memorization
from hf_unlearn.benchmarks.examined import Examined, membership_auc
from hf_unlearn.benchmarks.loading import Part

SOURCES = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
CONTINUED_TOKENS, ANSWER_TOKENS = 128, 32
# What a base model goes on with, once it has answered.
STOPS = ("\n\n", "\nQuestion", "Question:")
QUESTIONS = ("question", "answer")

PARTS = {
    "verbmem": Part("verbmem", "forget", ("prompt", "gt")),
    "forget": Part("knowmem", "forget_qa", QUESTIONS),
    "forget_examples": Part("knowmem", "forget_qa_icl", QUESTIONS),
    "retain": Part("knowmem", "retain_qa", QUESTIONS),
    "retain_examples": Part("knowmem", "retain_qa_icl", QUESTIONS),
    "members": Part("privleak", "forget", ("text",)),
    "holdout": Part("privleak", "holdout", ("text",)),
}
# Parts that are examples in a prompt, which no limit shortens.
EXAMPLES = ("forget_examples", "retain_examples")


def measure(examined: Examined, retain: Examined | None) -> dict[str, float]:
    """VerbMem and KnowMem in [0, 1] (MUSE prints them times 100), and PrivLeak in per cent, 0 is best.

    ROUGE-L F1 without stemming, as MUSE computes it. PrivLeak is beside the retain model's attack, or beside chance
    where there is none.
    """
    auc = _auc(examined)
    return {
        "verbatim_memorization": _verbatim(examined),
        "forget_knowledge": _knowledge(examined, "forget"),
        "retain_knowledge": _knowledge(examined, "retain"),
        "min_k_auc": auc,
        "privacy_leakage": privacy_leakage(auc, 0.5 if retain is None else _auc(retain)),
    }


def _verbatim(examined: Examined) -> float:
    """What follows the beginnings of forgotten texts, beside as many tokens of the truth."""
    samples, tokenizer = examined.parts["verbmem"], examined.tokenizer
    prompts = [examined.prompt_tokens(text) for text in samples["prompt"]]
    true = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in samples["gt"]]
    texts = [str(tokenizer.decode(ids[:CONTINUED_TOKENS], skip_special_tokens=True)) for ids in true]
    return verbatim_memorization(examined.written(prompts, CONTINUED_TOKENS, "beginnings"), texts)


def _knowledge(examined: Examined, part: str) -> float:
    """Answers to questions that follow some questions with answers."""
    samples, examples = examined.parts[part], examined.parts[f"{part}_examples"]
    shown = "".join(
        f"Question: {q}\nAnswer: {a}\n\n" for q, a in zip(examples["question"], examples["answer"], strict=True)
    )
    prompts = [examined.prompt_tokens(f"{shown}Question: {question}\nAnswer: ") for question in samples["question"]]
    answers = [cut(text, STOPS) for text in examined.written(prompts, ANSWER_TOKENS, f"{part} questions")]
    return verbatim_memorization(answers, samples["answer"][:])


def cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of the stops."""
    for stop in stops:
        text = text.split(stop)[0]
    return text.strip()


def _auc(examined: Examined) -> float:
    members, others = (examined.tokens(examined.texts(part), f"{part} texts") for part in ("members", "holdout"))
    return membership_auc(members, others)
