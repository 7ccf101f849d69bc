"""Every metric against an independent computation, or a case worked by hand; and the same through evaluate."""

import socket
import string

import evaluate
import jiwer
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, hmean, ks_2samp
from sklearn.metrics import accuracy_score

from hf_unlearn.auditing import measuring as runner
from hf_unlearn.auditing import metrics as m
from hf_unlearn.auditing import text_metrics as t
from hf_unlearn.auditing.evaluate_metrics import METRICS, load

TEXTS = (
    ["the cats are sitting", "a quick brown fox jumps", "wholly different words here"],
    ["the cat is sitting down", "the quick brown fox jumped high", "nothing in common"],
)


def near(value):
    return pytest.approx(value, rel=1e-9, abs=1e-12)


def distributions(seed, samples=7, classes=5):
    return np.random.default_rng(seed).dirichlet(np.ones(classes), samples)


def test_accuracy():
    generator = np.random.default_rng(0)
    predictions, references = generator.integers(0, 3, (2, 40))
    assert (
        m.accuracy(predictions, references)
        == near(accuracy_score(references, predictions))
        == near((predictions == references).sum() / 40)
    )


def test_unlearning_impact_score_by_hand():
    # |0.80 - 0.72| / 0.80 = 0.1; random samples |0.80 - 0.60| / 0.80 = 0.25; a class 0.60 / 0.80 = 0.75.
    assert m.unlearning_impact_score(0.80, 0.72, 0.60) == near(0.175)
    assert m.unlearning_impact_score(0.80, 0.72, 0.60, request="group") == near(0.175)
    assert m.unlearning_impact_score(0.80, 0.72, 0.60, request="class") == near(0.425)
    # The ideal of either request; over-forgetting random samples costs as much as keeping a class.
    assert m.unlearning_impact_score(0.8, 0.8, 0.8) == m.unlearning_impact_score(0.8, 0.8, 0.0, "class") == 0
    assert m.unlearning_impact_score(0.8, 0.8, 0.0) == m.unlearning_impact_score(0.8, 0.8, 0.8, "class") == 0.5


def test_tug_of_war_by_hand():
    # (1 - 0.5) (1 - 0.2) (1 - 0.1)
    assert m.tug_of_war([1.0, 0.7, 0.6], [0.5, 0.9, 0.7]) == near(0.36)
    assert m.tug_of_war([0.5, 0.9, 0.7], [0.5, 0.9, 0.7]) == 1
    assert m.tug_of_war([1.0, 0.9, 0.7], [0.0, 0.9, 0.7]) == 0


def test_kl_divergence():
    predictions, references = distributions(0), distributions(1)
    assert m.kl_divergence(predictions, references) == near(entropy(references, predictions, axis=1).mean())
    assert m.kl_divergence(predictions, references) != near(m.kl_divergence(references, predictions))
    assert m.kl_divergence(predictions, predictions) == near(0)
    assert m.kl_divergence(np.log(predictions), references) == near(m.kl_divergence(predictions, references))
    # By hand: 3/4 log((3/4) / (1/2)) + 1/4 log((1/4) / (1/2))
    assert m.kl_divergence([[0.5, 0.5]], [[0.75, 0.25]]) == near(0.75 * np.log(1.5) - 0.25 * np.log(2))
    # What the reference excludes does not count, what only the model excludes is infinite.
    assert m.kl_divergence([[0.25, 0.75]], [[0.0, 1.0]]) == near(np.log(4 / 3))
    assert m.kl_divergence([[0.0, 1.0]], [[0.25, 0.75]]) == np.inf
    # Probabilities too small for a float: torch's own divergence of logarithms.
    logits = torch.tensor([[0.0, -2000.0, 3.0], [-900.0, 0.0, 1.0]], dtype=torch.double)
    log_found, log_wanted = logits.log_softmax(1), logits.flip(1).log_softmax(1)
    expected = torch.nn.functional.kl_div(log_found, log_wanted, reduction="batchmean", log_target=True)
    assert m.kl_divergence(log_found, log_wanted) == near(float(expected))


def test_js_divergence():
    predictions, references = distributions(2), distributions(3)
    assert m.js_divergence(predictions, references) == near(
        (jensenshannon(predictions, references, axis=1) ** 2).mean()
    )
    assert m.js_divergence(predictions, references) == near(m.js_divergence(np.log(references), predictions))
    assert m.js_divergence([[1.0, 0.0, 0.0]], [[0.0, 0.5, 0.5]]) == near(np.log(2))
    assert m.js_divergence([[0.0, 0.0, 1.0]], [[0.0, 0.5, 0.5]]) == near(jensenshannon([0, 0, 1], [0, 0.5, 0.5]) ** 2)


def test_rows_of_float32_are_distributions():
    logits = torch.randn(4, 50_000, generator=torch.Generator().manual_seed(0))
    exact = logits.double().softmax(1)
    assert m.kl_divergence(logits.log_softmax(1), exact) == pytest.approx(0, abs=1e-6)
    assert m.kl_divergence(logits.softmax(1), exact) == pytest.approx(0, abs=1e-6)
    # What rounding left of the sum does not count: scipy, too, divides by it.
    rounded = np.array([[0.5, 0.3, 0.1995]])
    assert m.kl_divergence(rounded, [[0.2, 0.3, 0.5]]) == near(entropy([0.2, 0.3, 0.5], rounded[0]))


def test_error_rates():
    assert t.wer(*TEXTS) == near(jiwer.wer(reference=TEXTS[1], hypothesis=TEXTS[0]))
    assert t.cer(*TEXTS) == near(jiwer.cer(reference=TEXTS[1], hypothesis=TEXTS[0]))
    # Of reference words: 1 of 5 dropped, 2 of 2 wrong.
    assert t.wer(["a b c d", "x y"], ["a b c d e", "u v"]) == near(3 / 7)
    # Of reference characters: 1 of 3 wrong, 1 inserted.
    assert t.cer(["axcd"], ["abc"]) == near(2 / 3)


def test_perplexity():
    samples = [torch.randn(n, 11, generator=torch.Generator().manual_seed(n)).double() for n in (3, 1, 8)]
    labels = [torch.arange(len(sample)) for sample in samples]
    losses = [
        torch.nn.functional.cross_entropy(sample, label, reduction="none")
        for sample, label in zip(samples, labels, strict=True)
    ]
    expected = torch.nn.functional.cross_entropy(torch.cat(samples), torch.cat(labels)).exp()
    assert t.perplexity(losses) == t.perplexity(torch.cat(losses)) == near(float(expected))
    assert t.perplexity([5000.0]) == np.inf


def test_tofu_probabilities_by_hand():
    # Answers of 2 and 3 tokens with token probabilities (1/2, 1/8) and (1/3, 1/3, 1/3): 1/4 and 1/3.
    assert t.answer_probability([np.log(16) / 2, np.log(3)]) == near((1 / 4 + 1 / 3) / 2)
    # 0.5 / (0.5 + 0.2 + 0.1) and 0.1 / (0.1 + 0.6 + 0.2)
    correct, wrong = -np.log([0.5, 0.1]), -np.log([[0.2, 0.1], [0.6, 0.2]])
    guarded = (0.5 / (0.8 + 1e-10) + 0.1 / (0.9 + 1e-10)) / 2  # as open-unlearning computes it
    assert t.choice_probability(correct, wrong) == near(guarded) == pytest.approx((0.625 + 1 / 9) / 2, rel=1e-8)
    # A model that finds every option next to impossible.
    assert t.choice_probability(correct + 2000, wrong + 2000) == 0


def longest_common_subsequence(a, b):
    """By the recursion over prefixes."""
    lengths = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            lengths[i + 1, j + 1] = lengths[i, j] + 1 if x == y else max(lengths[i, j + 1], lengths[i + 1, j])
    return lengths[-1, -1]


def test_rouge_l_recall_and_verbatim_memorization():
    stemming, plain = RougeScorer(["rougeL"], use_stemmer=True), RougeScorer(["rougeL"], use_stemmer=False)
    pairs = list(zip(*TEXTS, strict=True))
    assert t.rouge_l_recall(*TEXTS) == near(np.mean([stemming.score(r, p)["rougeL"].recall for p, r in pairs]))
    assert t.verbatim_memorization(*TEXTS) == near(np.mean([plain.score(r, p)["rougeL"].fmeasure for p, r in pairs]))
    # By hand. Stems: the cat sit | quick brown fox jump | none, of 5, 6 and 3 words of the reference.
    assert t.rouge_l_recall(*TEXTS) == near((3 / 5 + 4 / 6 + 0) / 3)
    # Words as they are; F1 is twice the common ones over all words of both.
    words = [(p.split(), r.split()) for p, r in pairs]
    shared = [longest_common_subsequence(*pair) for pair in words]
    assert shared == [2, 3, 0]
    scores = [2 * s / (len(p) + len(r)) for s, (p, r) in zip(shared, words, strict=True)]
    assert t.verbatim_memorization(*TEXTS) == near(np.mean(scores)) == near((4 / 9 + 6 / 11 + 0) / 3)


def test_truth_ratios_by_hand():
    # Sample 1: geometric mean of 1/2 and 1/8 is 1/4, against 1/2: R = 1/2. Sample 2: 1/2 against 1/8: R = 4.
    paraphrased, perturbed = -np.log([1 / 2, 1 / 8]), -np.log([[1 / 2, 1 / 8], [1 / 2, 1 / 2]])
    guard = {"rel": 1e-8}  # 1e-10 against probabilities above 0.01
    assert t.truth_ratios(paraphrased, perturbed) == pytest.approx([0.5, 4.0], **guard)
    assert t.truth_ratio(paraphrased, perturbed) == pytest.approx((0.5 + 0) / 2, **guard)
    assert t.truth_ratio(paraphrased, perturbed, on="forget") == pytest.approx((0.5 + 0.25) / 2, **guard)
    # Where a model has lost both answers, as in open-unlearning, and where one is beyond a float.
    assert t.truth_ratios(paraphrased + 100, perturbed + 100) == pytest.approx([0, 0], abs=1e-30)
    assert t.truth_ratios([2000.0, 0.0], [[0.0], [2000.0]]) == near([1e10, 0.0])
    assert t.truth_ratio([2000.0, 0.0], [[0.0], [2000.0]]) == 0.5
    assert t.truth_ratio([2000.0, 0.0], [[0.0], [2000.0]], on="forget") == near(0.5e-10)


def answers(seed, samples=60, shift=0.0):
    generator = np.random.default_rng(seed)
    return generator.gamma(2, 0.5, samples) + shift, generator.gamma(3, 0.5, (samples, 5))


def open_unlearning_truth_ratios(paraphrased, perturbed):
    """The definition of locuslab/open-unlearning, with its guard against a division by zero."""
    return np.exp(-perturbed.mean(axis=1)) / (np.exp(-paraphrased) + 1e-10)


def test_forget_quality_and_truth_ratio_are_open_unlearnings():
    unlearned, retrained, original = answers(0), answers(1), answers(2, shift=1.5)
    for one, other in ((unlearned, retrained), (original, retrained)):
        ratios = open_unlearning_truth_ratios(*one), open_unlearning_truth_ratios(*other)
        p_value = t.forget_quality(t.truth_ratios(*one), t.truth_ratios(*other))
        assert p_value == near(ks_2samp(*ratios).pvalue)
        # TOFU's own code tests the inverse.
        assert p_value == near(ks_2samp(*(1 / r for r in ratios)).pvalue)
        assert t.truth_ratio(*one) == near(np.mean(np.maximum(0, 1 - ratios[0])))
        closer_to_1 = np.mean(np.minimum(ratios[0], 1 / (ratios[0] + 1e-10)))
        assert t.truth_ratio(*one, on="forget") == near(closer_to_1)
    same = t.forget_quality(t.truth_ratios(*unlearned), t.truth_ratios(*retrained))
    assert same > 0.05 > 1e-4 > t.forget_quality(t.truth_ratios(*original), t.truth_ratios(*retrained))


def test_forget_quality_by_hand():
    # Three against three, no overlap: D = 1, and 2 of the 20 ways to part six numbers are as extreme.
    assert t.forget_quality([1, 2, 3], [4, 5, 6]) == near(2 / 20)
    assert t.forget_quality([1, 3, 5], [1, 3, 5]) == 1
    # Two against four: 2 of 15.
    assert t.forget_quality([1, 2], [4, 5, 6, np.inf]) == near(2 / 15)


def test_model_utility_by_hand():
    # 9 / (3 / 0.9 + 3 / 0.6 + 3 / 0.5) = 9 / (10/3 + 5 + 6) = 27/43
    scores = [0.9, 0.6, 0.5] * 3
    assert t.model_utility(scores) == near(27 / 43) == near(hmean(scores))
    assert t.model_utility([1.0] * 9) == 1
    assert t.model_utility([1.0] * 8 + [0.0]) == 0


def test_exact_memorization_and_extraction_strength_by_hand():
    references = [[1, 2, 3, 4], [5, 6, 7], [8, 9], [1, 2]]
    predictions = [[1, 0, 3, 4], [5, 6, 7], [8, 0], [0, 0]]
    assert m.exact_memorization(predictions, references) == near((3 / 4 + 1 + 1 / 2 + 0) / 4)
    # k = 2 of 4, 0 of 3, 1 of 2 (the last token is wrong), 1 of 2
    assert m.extraction_strength(predictions, references) == near((1 / 2 + 1 + 1 / 2 + 1 / 2) / 4)
    assert m.extraction_strength([[0]], [[1]]) == 0 and m.extraction_strength([[1]], [[1]]) == 1
    # Against the definition, k tried one by one, on samples with many right ends.
    generator = np.random.default_rng(0)
    references = [generator.integers(0, 2, n) for n in generator.integers(1, 9, 50)]
    predictions = [np.where(generator.random(len(sample)) < 0.8, sample, 1 - sample) for sample in references]

    def strength(p, r):
        """As open-unlearning has it: the last k that is tried counts where none fits."""
        if len(r) == 1:
            return float(p[0] == r[0])
        return 1 - next((k for k in range(len(r)) if (p[k:] == r[k:]).all()), len(r) - 1) / len(r)

    expected = np.mean([strength(p, r) for p, r in zip(predictions, references, strict=True)])
    assert m.extraction_strength(predictions, references) == near(expected)
    matched = [
        sum(x == y for x, y in zip(p, r, strict=True)) / len(r) for p, r in zip(predictions, references, strict=True)
    ]
    assert m.exact_memorization(predictions, references) == near(np.mean(matched))


def test_run_time_ratio():
    assert m.run_time_ratio(90, 3600) == near(0.025)


LOSSES = answers(3, samples=4)
LISTS = {"wrong_losses": LOSSES[1].tolist(), "correct_losses": LOSSES[0].tolist()}
TOKENS = {"predictions": [[1, 2, 3], [4, 0]], "references": [[1, 0, 3], [4, 4]]}
ACCURACIES = {"predictions": [0.7, 0.9, 0.8], "references": [0.5, 1.0, 0.85]}
ROWS = {"predictions": distributions(0).tolist(), "references": np.log(distributions(1)).tolist()}
STRINGS = dict(zip(("predictions", "references"), TEXTS, strict=True))
# Name to columns and what the function says of them.
CASES = {
    "accuracy": ({"predictions": [0, 1, 2], "references": [0, 2, 2]}, 2 / 3),
    "tug_of_war": (ACCURACIES, m.tug_of_war(**ACCURACIES)),
    "gap": (
        ACCURACIES,
        runner.average_gap(
            {"forget_accuracy": 0.7, "retain_accuracy": 0.9, "unseen_accuracy": 0.8},
            {"forget_accuracy": 0.5, "retain_accuracy": 1.0, "unseen_accuracy": 0.85},
        ),
    ),
    "kl_divergence": (ROWS, m.kl_divergence(**ROWS)),
    "js_divergence": (ROWS, m.js_divergence(**ROWS)),
    "wer": (STRINGS, t.wer(**STRINGS)),
    "cer": (STRINGS, t.cer(**STRINGS)),
    "rouge_l_recall": (STRINGS, t.rouge_l_recall(**STRINGS)),
    "verbatim_memorization": (STRINGS, t.verbatim_memorization(**STRINGS)),
    "exact_match": ({"predictions": ["a b ", "a"], "references": ["a b", "b"]}, 0.5),
    "exact_memorization": (TOKENS, m.exact_memorization(**TOKENS)),
    "extraction_strength": (TOKENS, m.extraction_strength(**TOKENS)),
    "forget_quality": (ACCURACIES, t.forget_quality(**ACCURACIES)),
    "perplexity": ({"losses": [[0.5, 1.0], [2.0]]}, t.perplexity([0.5, 1.0, 2.0])),
    "answer_probability": ({"losses": [0.5, 2.0]}, t.answer_probability([0.5, 2.0])),
    "choice_probability": (LISTS, t.choice_probability(**LISTS)),
    "truth_ratio": (
        {"paraphrased_losses": LOSSES[0].tolist(), "perturbed_losses": LOSSES[1].tolist()},
        t.truth_ratio(*LOSSES),
    ),
    "model_utility": ({"scores": [0.9, 0.6, 0.5] * 3}, 27 / 43),
    "unlearning_impact_score": (
        {"original_test": [0.8, 0.8], "unlearned_test": [0.72, 0.8], "unlearned_forget": [0.6, 0.8]},
        0.175 / 2,
    ),
    "privacy_leakage": ({"auc": [0.9, 0.5], "retrained_auc": [0.5, 0.5]}, -80 / 2 / (1 + 2e-10)),
    "run_time_ratio": ({"unlearn_seconds": [30.0], "retrain_seconds": [600.0]}, 0.05),
}


@pytest.fixture
def no_network_no_disk(monkeypatch, tmp_path):
    """A connection is an error, and evaluate's cache is a folder of the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", METRICS)
def test_evaluate_computes_the_same_and_leaves_nothing_behind(name, no_network_no_disk):
    columns, expected = CASES[name]
    metric = load(name)
    assert (
        isinstance(metric, evaluate.Metric) and metric.name == name and metric.description == METRICS[name][0].__doc__
    )
    assert metric.compute(**columns) == {name: near(expected)}
    # Batch by batch, with the same instance once more.
    length = len(next(iter(columns.values())))
    for i in range(length):
        metric.add_batch(**{column: values[i : i + 1] for column, values in columns.items()})
    assert metric.compute() == {name: near(expected)}


def test_evaluate_passes_options_on(no_network_no_disk):
    columns = CASES["truth_ratio"][0]
    computed = load("truth_ratio").compute(**columns, on="forget")
    assert (
        computed
        == {"truth_ratio": near(t.truth_ratio(*LOSSES, on="forget"))}
        != load("truth_ratio").compute(**columns)
    )
    columns = {"original_test": [0.8], "unlearned_test": [0.72], "unlearned_forget": [0.6]}
    computed = load("unlearning_impact_score").compute(**columns, request="class")
    assert computed == {"unlearning_impact_score": near(0.425)}


@pytest.mark.parametrize(
    "names",
    [
        ["wer", "cer", "rouge_l_recall", "verbatim_memorization"],
        ["kl_divergence", "js_divergence"],
        ["exact_memorization", "extraction_strength"],
        ["tug_of_war", "gap", "forget_quality"],
    ],
)
def test_metrics_of_the_same_columns_combine(names, no_network_no_disk):
    columns = CASES[names[0]][0]
    expected = {name: near(CASES[name][1]) for name in names}
    assert evaluate.combine([load(name) for name in names]).compute(**columns) == expected
    prefixed = evaluate.combine([load(name) for name in names], force_prefix=True).compute(**columns)
    assert prefixed == {f"{name}_{name}": value for name, value in expected.items()}


WRONG = {
    "predictions: 2 samples, but references has 1": lambda: m.accuracy([1, 2], [1]),
    "predictions: no samples": lambda: t.wer([], []),
    "predictions: 1 samples, but references has 2": lambda: t.rouge_l_recall(["a"], ["a", "b"]),
    "predictions: three accuracies": lambda: m.tug_of_war([0.5] * 4, [0.5] * 4),
    r"references: must be in \[0, 1\], got 0.5 to 50": lambda: m.tug_of_war([0.5] * 3, [0.5, 50, 0.5]),
    r"unlearned_forget: must be in \[0, 1\], got 60": lambda: m.unlearning_impact_score(0.8, 0.7, 60),
    r"unlearned_test: must be in \[0, 1\], got nan": lambda: m.unlearning_impact_score(0.8, np.nan, 0.6),
    "original_test: is 0": lambda: m.unlearning_impact_score(0.0, 0.7, 0.6),
    "request: must be one of samples, class, group, got 'random'": lambda: m.unlearning_impact_score(
        1, 1, 1, "random"
    ),
    "predictions: 2 classes, but references has 3": lambda: m.kl_divergence([[0.5, 0.5]], [[0.2, 0.3, 0.5]]),
    "references: the probabilities of a sample sum to 0.9,": lambda: m.kl_divergence([[0.5, 0.5]], [[0.5, 0.4]]),
    "predictions: the probabilities of a sample sum to 2,": lambda: m.js_divergence([[0.0, 0.0]], [[0.5, 0.5]]),
    r"predictions: must be in \[-inf, 1\]": lambda: m.js_divergence([[2.0, -1.0]], [[0.5, 0.5]]),
    r"predictions: must be in \[0, 1\], got -0.5 to 1": lambda: m.js_divergence([[1.0, -0.5]], [[0.5, 0.5]]),
    "predictions: needs 2 dimensions": lambda: m.js_divergence([0.5, 0.5], [0.5, 0.5]),
    "retrain_seconds: must be positive": lambda: m.run_time_ratio(1, 0),
    "unlearn_seconds: must be positive and finite": lambda: m.run_time_ratio(float("nan"), 1),
    "losses: must be in": lambda: t.perplexity([[0.1], [-0.1]]),
    "losses: needs 1 dimensions and at least one": lambda: t.perplexity([]),
    "losses: must be finite": lambda: t.answer_probability([0.1, np.inf]),
    "wrong_losses: 1 samples, but correct_losses has 2": lambda: t.choice_probability([0.1, 0.2], [[0.1, 0.2]]),
    "wrong_losses: setting an array element": lambda: t.choice_probability([0.1, 0.2], [[0.1, 0.2], [0.3]]),
    "perturbed_losses: needs 2 dimensions": lambda: t.truth_ratio([0.1], [0.1]),
    "on: must be 'retain' or 'forget', got 'test'": lambda: t.truth_ratio([0.1], [[0.1]], on="test"),
    "references: needs 1 dimensions and at least one": lambda: t.forget_quality([0.1], []),
    r"predictions: must be in \[0, inf\], got nan": lambda: t.forget_quality([np.nan], [0.1]),
    "scores: nine": lambda: t.model_utility([0.5] * 3),
    "scores: must be in": lambda: t.model_utility([50.0] * 9),
    "predictions: sample 1 has 2 tokens, its reference 1": lambda: m.exact_memorization([[1], [1, 2]], [[1], [1]]),
    "predictions: sample 0 has 0 tokens": lambda: m.extraction_strength([[]], [[]]),
    "predictions: at most forget_accuracy": lambda: load("gap").compute(predictions=[1.0] * 5, references=[1.0] * 5),
    "name: must be one of accuracy": lambda: load("bleu"),
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_name_the_argument_in_one_line(message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        WRONG[message]()
    assert "\n" not in str(error.value)


def test_a_metric_goes_on_after_an_error(no_network_no_disk):
    metric = load("tug_of_war")
    with pytest.raises(ValueError, match="three accuracies"):
        metric.compute(predictions=[0.5], references=[0.5])
    assert metric.compute(**ACCURACIES) == {"tug_of_war": near(CASES["tug_of_war"][1])}


SCRIPTS = {
    "Cyrillic": "Анна живёт в Риме",
    "Greek": "Άννα ζει στη Ρώμη",
    "Hindi": "अन्ना रोम में रहती है",
    "Arabic": "آنا تعيش في روما",
    "Chinese": "安娜住在罗马",
    "Japanese": "アンナはローマに住んでいる",
    "Thai": "แอนนาอยู่ที่โรม",
    "Polish": "Żółć łąką",
    "Korean": "안나는 로마에 산다",
    "English": "Anna lives in Rome",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_rouge_of_a_copy_is_one_in_every_script(script):
    text = SCRIPTS[script]
    assert t.rouge_l_recall([text], [text]) == 1.0 and t.verbatim_memorization([text], [text]) == 1.0
    assert t.rouge_l_recall([f"{text} {text}"], [text]) == 1.0
    assert t.rouge_l_recall(["Berlin"], [text]) == 0.0


def test_rouge_takes_letters_with_accents_for_letters():
    assert t.rouge_l_recall(["ngstr m"], ["Ångström"]) == 0.0
    assert t.rouge_l_recall(["a\u030angstro\u0308m"], ["ÅNGSTRÖM"]) == 1.0  # composed or not, large or small
    assert t.rouge_l_recall(["安娜住在柏林"], ["安娜住在罗马"]) == near(4 / 6)


@given(
    st.lists(st.text(alphabet=string.ascii_letters + string.digits + " .,;'-\n", max_size=30), min_size=2, max_size=2)
)
def test_rouge_of_ascii_is_that_of_the_library(pair):
    for stem in (False, True):
        scorer = RougeScorer(["rougeL"], use_stemmer=stem)
        expected = scorer.score(pair[1], pair[0])["rougeL"]
        (found,) = t._rouge_l([pair[0]], [pair[1]], stem)
        assert found == expected
