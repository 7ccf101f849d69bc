"""What metrics and attacks are called in the HTML report, and what they mean."""

from __future__ import annotations

import re

DATASETS = {
    "forget": "the forget samples",
    "retain": "the retain samples",
    "unseen": "samples that no model was trained on",
}
# What a model knows beside its training data: measured, and no column of the tables of samples.
MEASURED = DATASETS | {"general": "samples of general ability"}
MEASURES = {
    "accuracy": "Share of correct predictions on {}.",
    "loss": "Mean loss on {}{}.",
    "wer": "Word errors per word on {}; 0 is perfect.",
    "rouge_l_recall": "Words of the true answer in the model's own, in order, on {}; 1 is all (ROUGE-L recall).",
    "exact_match": "Share of {} whose answer the model gives word for word.",
    "extraction_strength": "Share of the answer that the model completes without an error, on {}.",
    "exact_memorization": "Share of the answer's tokens that are the most likely ones, on {}.",
    "perplexity": "exp of the loss on {}; at least 1.",
}
# The end of the name of a membership inference metric to its meaning.
RATES = {
    "balanced_accuracy": "Forget samples told from unseen ones at the best threshold; 50 % is chance.",
    "accuracy": "Forget samples told from unseen ones by a classifier of the loss; 50 % is chance.",
    "auc": "Probability that a forget sample scores higher than an unseen one; 0.5 is chance, 1 tells all apart.",
    "tpr_at_1pct_fpr": "Share of forget samples found while 1 % of the unseen are taken for them; 1 % is chance.",
    "tpr_at_01pct_fpr": "Share of forget samples found while 0.1 % of the unseen are taken for them; 0.1 % is chance.",
}
# Attack to its name and the score by which it tells a forget sample from an unseen one.
ATTACKS = {
    "loss": ("loss", "a lower loss"),
    "margin": ("margin", "a larger distance of the label from the most likely other class"),
    "entropy": ("entropy", "a surer prediction, whether right or wrong"),
    "min_k": ("Min-K %", "the fifth of its tokens that the model finds least likely is more likely"),
    "min_k_plus_plus": ("Min-K %++", "the same, compared with the other tokens that could have stood there"),
    "zlib": ("zlib", "a lower loss than the compressed size of its text lets expect"),
    "reference": ("reference-model attack", "a lower loss than the retrained model has on the same sample"),
    "population": (
        "population",
        "a lower loss than one half of the unseen samples; the other half is attacked",
    ),
    "lira": ("LiRA", "a loss more like that of shadow models that were trained on it"),
    "rmia": ("RMIA", "a loss lower, beside that of the shadow models, than that of more unseen samples"),
}
# What was done to a copy before its forget samples were measured again.
RECOVERIES = {
    "finetuned": "after further training on retain samples",
    "relearned": "while a few of them are trained on (the others, mean over the steps)",
    "int8": "with weights rounded to 8 bits",
    "int4": "with weights rounded to 4 bits",
    "without_adapter": "with the adapter dropped",
}
PROBE = "Correct predictions of a new linear head on the model's features, on {}; compare with the retrained model."
OTHERS = {
    "probe_detectable": "By how much the probe's accuracy would have to be above the retrained models' to be found "
    "with a power of 80 % at the level of 5 %, in points; less may be there.",
    "one_offset": "Samples of other classes that are lost when one number is added to the output of the forgotten "
    "class, so that 90 % of its samples come back; compare with the retrained model. 0 %: the class is only masked.",
    "depth": "What the most successful attempt to bring the data back finds beyond a retrained model, in deviations "
    "of retrained models; up to 2 or 3 nothing.",
    "gap": "Average gap to the retrained model, in points; 0 is best.",
    "tug_of_war": "Closeness to the retrained model's accuracies on all datasets; 1 is best.",
    "unlearning_impact_score": "Accuracy lost on unseen samples, and what is left to forget; 0 is best.",
    "forget_js_divergence": "Distance of predictions on forget samples from the retrained model's; "
    "0 equal, 0.69 disjoint.",
    "unseen_js_divergence": "Distance of predictions on unseen samples from the retrained model's; "
    "0 equal, 0.69 disjoint.",
    "extraction_advantage": "How much more of the true answers on forget samples the model gives than the retrained "
    "models (ROUGE-L recall); 0 or less is best.",
    "relearn_loss_advantage": "How much lower than the retrained model's the forget loss is while relearning{}; "
    "0 or less is best.",
    "relearn_accuracy_advantage": "How much higher than the retrained model's the forget accuracy is while "
    "relearning, in points; 0 or less is best.",
}
LABELS = {
    "mia_accuracy": "logistic regression",
    "one_offset": "one-offset test",
    "gap": "average gap",
    "tug_of_war": "tug of war",
    "relearn_loss_advantage": "loss advantage while relearning",
    "relearn_accuracy_advantage": "accuracy advantage while relearning",
}
MEASURE_LABELS = {
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
    "tpr_at_1pct_fpr": "TPR at 1 % FPR",
    "tpr_at_01pct_fpr": "TPR at 0.1 % FPR",
}


def meaning(name: str, unit: str = "nats") -> str:
    """The meaning of a metric in one line; empty for an unknown metric.

    Args:
        name: of the metric.
        unit: of the losses; empty where they have none.

    Examples:
        >>> meaning("forget_accuracy")
        'Share of correct predictions on the forget samples.'
        >>> meaning("forget_loss"), meaning("forget_loss", unit="")
        ('Mean loss on the forget samples, in nats.', 'Mean loss on the forget samples.')
    """
    in_unit = f", in {unit}" if unit else ""
    first, _, rest = name.partition("_")
    if first in MEASURED and rest in MEASURES:
        return MEASURES[rest].format(MEASURED[first], in_unit)
    if first == "mia":
        return next((text for end, text in RATES.items() if name.endswith(end)), "")
    if first == "probe" and (dataset := rest.removesuffix("_accuracy")) in DATASETS:
        return PROBE.format(DATASETS[dataset])
    if first == "depth" and rest:
        return "What this attempt to bring the data back finds beyond a retrained model, in deviations of these."
    recovery, separator, measure = name.partition("_forget_")
    if separator and recovery in RECOVERIES:
        return MEASURES[measure].format(DATASETS["forget"], in_unit).removesuffix(".") + f", {RECOVERIES[recovery]}."
    return OTHERS.get(name, "").format(in_unit)


def metric_label(name: str) -> str:
    """What a metric is called, in words.

    Examples:
        >>> metric_label("mia_loss_auc"), metric_label("mia_reference_tpr_at_01pct_fpr"), metric_label("retain_wer")
        ('loss AUC', 'reference-model attack TPR at 0.1 % FPR', 'retain WER')
    """
    if name in LABELS:
        return LABELS[name]
    for measure, label in MEASURE_LABELS.items():
        if name.startswith("mia_") and name.endswith(f"_{measure}"):
            return f"{attack_label(name.removeprefix('mia_').removesuffix(f'_{measure}'))} {label}"
    name = name.replace("rouge_l", "ROUGE-L").replace("_", " ")
    return re.sub(r"\b(auc|wer|js)\b", lambda word: word[0].upper(), name)


def attack_label(name: str) -> str:
    """What an attack is called, in words; its own name where it is unknown."""
    return ATTACKS[name][0] if name in ATTACKS else name
