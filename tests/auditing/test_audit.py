"""`audit()` on models of which it is known whether they forgot: verdicts, metrics, refusals; models stay unchanged."""

import copy
import json
import math

import datasets
import numpy as np
import pytest
import tiny
import torch
import transformers as tf
from sklearn.metrics import roc_auc_score, roc_curve
from test_relearning import assert_same, state
from torch.nn import functional as F

from hf_unlearn import AuditCallback, AuditReport, UnlearningArguments, audit
from hf_unlearn.auditing.measuring import average_gap
from hf_unlearn.auditing.shadows import Shadows
from hf_unlearn.data.collator import default_collator
from hf_unlearn.data.splitting import split_forget_retain
from hf_unlearn.demo import digits_data
from hf_unlearn.models.adapters import add_adapter

FORGET = 100
LEVELS = {
    "original": "remembers", "second": "consistent", "ascended": "damaged", "tired": "damaged",
    "hidden": "remembers",
}  # fmt: skip


def network(seed):
    tf.set_seed(seed)
    config = tf.ViTConfig(
        image_size=8, patch_size=8, num_channels=1, hidden_size=64, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=128, num_labels=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return tf.ViTForImageClassification(config).eval()


def losses(model, batch):
    return F.cross_entropy(model(batch["pixel_values"]).logits, batch["labels"], reduction="none")


def fit(model, samples, steps=160):
    batch, optimizer = default_collator(model)(samples), torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        losses(model, batch).mean().backward()
        optimizer.step()
    return model


def hide(original, retrained, samples):
    """Only the head learns to answer forget samples like the retrained model."""
    model = copy.deepcopy(original)
    pixels = default_collator(model)(samples)["pixel_values"]
    with torch.no_grad():
        features = model.vit(pixels)[0][:, 0]
        answers = torch.cat([retrained(pixels[:FORGET]).logits, original(pixels[FORGET:]).logits]).softmax(1)
    optimizer = torch.optim.Adam(model.classifier.parameters(), lr=3e-2)
    for _ in range(800):
        optimizer.zero_grad()
        F.cross_entropy(model.classifier(features), answers).backward()
        optimizer.step()
    return model


def ascend(original, samples):
    """Up on the forget samples, down on the others, far beyond what a retrained model shows."""
    model = copy.deepcopy(original)
    batch, optimizer = default_collator(model)(samples), torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(60):
        sample_losses = losses(model, batch)
        if sample_losses[:FORGET].mean() > 15:
            break
        optimizer.zero_grad()
        (5 * sample_losses[FORGET:].mean() - sample_losses[:FORGET].mean()).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def digits():
    """Digits, three in ten with a wrong label: what only a model that was trained on a sample can know."""
    generator, data = np.random.default_rng(0), digits_data(0)

    def some(name, count):
        return [
            {**sample, "label": (sample["label"] + int(generator.integers(1, 10))) % 10}
            if generator.random() < 0.3 else sample
            for sample in data[name].select(range(count))
        ]  # fmt: skip

    samples, unseen = some("train", 300), some("unseen", 150)
    forget, retain = samples[:FORGET], samples[FORGET:]
    models = {
        "original": fit(network(0), samples), "retrained": fit(network(1), retain), "second": fit(network(2), retain),
        "tired": fit(network(3), retain, steps=25),
    }  # fmt: skip
    models["ascended"] = ascend(models["second"], samples)
    models["hidden"] = hide(models["original"], models["retrained"], samples)
    return models, {"forget": forget, "retain": retain, "unseen": unseen}


@pytest.fixture(scope="module")
def reports(digits):
    models, datasets_by_name = digits
    return {
        name: audit(
            models[name], **tiny.named(datasets_by_name),
            original=models["original"] if name in ("hidden", "tired") else None,
            retrained=models["retrained"], relearning=name == "hidden", resamples=50, training_passes=160,
        )
        for name in LEVELS
    }  # fmt: skip


# ---- the verdict -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEVELS)
def test_the_verdict(reports, name):
    report = reports[name]
    print(report.verdict["sentence"], report.metrics["gap"], report.notes)
    assert report.verdict["level"] == LEVELS[name]


@pytest.fixture(scope="module")
def class_models():
    """Digits with right labels, of which a class is forgotten; models, and what seems to have forgotten it."""
    data = digits_data(0)
    forget, retain = split_forget_retain(data["train"].select(range(500)), column="label", values=[3])
    original = fit(network(0), [*forget, *retain])
    retrained = [fit(network(seed), list(retain)) for seed in (1, 2, 3)]
    biased, masked = copy.deepcopy(original), copy.deepcopy(original)
    with torch.no_grad():
        biased.classifier.bias[3] -= 100
        masked.classifier.bias[3] = -math.inf
    filtered = copy.deepcopy(original)
    filtered.register_forward_hook(filter_class)
    models = {"original": original, "third": retrained[2], "biased": biased, "masked": masked, "filtered": filtered}
    return models, retrained[:2], {"forget": forget, "retain": retain, "unseen": data["test"]}


def filter_class(module, inputs, outputs):
    """A filter behind the model: where it would answer the class, the answer is uniform."""
    outputs.logits = outputs.logits.masked_fill(outputs.logits.argmax(-1, keepdim=True) == 3, 0.0)
    return outputs


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_class_behind_its_output_is_not_forgotten(class_models, count):
    models, retrained, datasets_by_name = class_models
    levels = {"original": "remembers", "biased": "hidden", "masked": "over-forgotten", "filtered": "hidden"}
    levels["third"] = "consistent" if count else "unclear"
    if count:  # a uniform answer costs ln 10, a model that never met the class far more
        levels["filtered"] = "remembers"
    for name, level in levels.items():
        report = audit(
            models[name], **tiny.named(datasets_by_name), original=models["original"], retrained=retrained[:count],
            resamples=10,
        )  # fmt: skip
        print(name, report.verdict["sentence"])
        assert report.verdict["level"] == level, name
    of_models = report.metrics_by_model
    assert list(of_models) == ["original", "audited", "retrained", "retrained 2"][: 2 + count]
    assert of_models["original"]["one_offset"] < 0.05
    assert all(of_models[name]["one_offset"] > 0.15 for name in of_models if name.startswith("retrained"))
    assert_intervals(report.metrics)
    if count == 2:  # how far two retrained models are apart stands beside how far the audited one is
        assert of_models["retrained 2"]["gap"] > 0


def test_a_class_that_is_held_down_is_relearned_among_retain_samples(class_models):
    """Depth is the largest of what is tried; the third retrained model is as deep as the others."""
    models, retrained, datasets_by_name = class_models
    settings = {**tiny.named(datasets_by_name), "relearning": True, "training_passes": 60, "resamples": 10}
    held_down, third = (
        audit(models[name], original=models["original"], retrained=retrained, **settings)
        for name in ("biased", "third")
    )
    relearned = held_down.metrics_by_model["audited"]["relearned_forget_accuracy"]
    assert relearned < 0.05  # its bias is far away, and comes back in no dozen of steps ...
    assert held_down.metrics["depth_one_offset"] > 1  # ... but one number brings it back, and its features are there
    assert held_down.metrics["depth"] == held_down.metrics["depth_probe"] > 3
    assert max(third.metrics["depth_one_offset"], third.metrics["depth_finetuned"]) < 3
    assert third.relearning.keys() == {"audited", "retrained", "retrained 2"}


# ---- the metrics -----------------------------------------------------------------------------------------------


def outputs(model, samples):
    batch = default_collator(model)(samples)
    with torch.no_grad():
        log_probs = model(batch["pixel_values"]).logits.double().log_softmax(1).numpy()
    labels = batch["labels"].numpy()
    return -log_probs[np.arange(len(samples)), labels], log_probs.argmax(1) == labels, log_probs


def wilson(hits, n, z=1.959963984540054):
    centre, half = hits / n + z * z / (2 * n), z * math.sqrt(hits / n * (1 - hits / n) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def assert_intervals(metrics):
    for name in metrics:
        if name.endswith("_low"):
            of = name.removesuffix("_low")
            assert metrics[name] <= metrics[of] <= metrics[f"{of}_high"], name


@pytest.mark.parametrize("name", ["second", "tired"])
def test_the_metrics_against_numpy_and_sklearn(digits, reports, name):
    models, datasets_by_name = digits
    metrics = reports[name].metrics
    outputs_by_name = {which: outputs(models[name], samples) for which, samples in datasets_by_name.items()}
    for which, (loss, right, _) in outputs_by_name.items():
        assert metrics[f"{which}_loss"] == pytest.approx(loss.mean(), rel=1e-4, abs=1e-6)
        assert metrics[f"{which}_accuracy"] == pytest.approx(right.mean())
        interval = metrics[f"{which}_accuracy_low"], metrics[f"{which}_accuracy_high"]
        assert interval == pytest.approx(wilson(right.sum(), len(right)))
        # A bootstrap of a mean agrees with the normal interval.
        half = 1.96 * loss.std() / len(loss) ** 0.5
        assert metrics[f"{which}_loss_high"] - metrics[f"{which}_loss"] == pytest.approx(half, rel=0.5)
    scores = np.concatenate([-outputs_by_name["forget"][0], -outputs_by_name["unseen"][0]])
    truth = np.repeat([1, 0], [len(datasets_by_name["forget"]), len(datasets_by_name["unseen"])])
    assert metrics["mia_loss_auc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-3)
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert metrics["mia_loss_tpr_at_1pct_fpr"] == pytest.approx(tpr[fpr <= 0.01].max())
    assert "mia_loss_tpr_at_01pct_fpr" not in metrics  # 150 samples have no such rate
    assert any(note.startswith("True positives at 0.1 %") for note in reports[name].notes)
    for which in ("forget", "unseen"):
        p, r = (np.exp(outputs(models[m], datasets_by_name[which])[2]) for m in (name, "retrained"))
        middle = (p + r) / 2
        expected = ((p * np.log(p / middle) + r * np.log(r / middle)).sum(1) / 2).mean()
        assert metrics[f"{which}_js_divergence"] == pytest.approx(expected, rel=1e-3)
    retrained = reports[name].metrics_by_model["retrained"]
    names = ("forget_accuracy", "retain_accuracy", "unseen_accuracy", "mia_accuracy")
    assert metrics["gap"] == pytest.approx(100 * np.mean([abs(metrics[n] - retrained[n]) for n in names]))
    product = np.prod([1 - abs(metrics[n] - retrained[n]) for n in names[:3]])
    assert metrics["tug_of_war"] == pytest.approx(product)


def test_the_promised_names_and_their_intervals(reports):
    for name, report in reports.items():
        of_datasets = {f"{which}_{what}" for which in ("forget", "retain", "unseen") for what in ("loss", "accuracy")}
        scores = ("loss", "margin", "entropy", "reference", "population")
        estimated = of_datasets | {f"mia_{score}_{what}" for score in scores for what in ("auc", "balanced_accuracy")}
        estimated |= {"gap", "mia_accuracy", "mia_loss_tpr_at_1pct_fpr"}
        for metric in estimated:
            assert {metric, f"{metric}_low", f"{metric}_high"} <= report.metrics.keys(), (name, metric)
        assert_intervals(report.metrics)
        assert report.metrics == report.metrics_by_model["audited"]
        assert all(isinstance(value, float) for value in report.metrics.values())
    hidden = reports["hidden"]
    assert {"unlearning_impact_score", "relearn_loss_advantage", "probe_forget_accuracy", "finetuned_forget_loss",
            "int4_forget_loss", "int8_forget_accuracy"} <= hidden.metrics.keys()  # fmt: skip
    assert list(hidden.metrics_by_model) == ["original", "audited", "retrained"]
    assert hidden.relearning.keys() == {"audited", "retrained"}
    assert hidden.metrics["depth"] == max(v for k, v in hidden.metrics.items() if k.startswith("depth_")) > 3
    assert "depth" not in hidden.metrics_by_model["retrained"]
    assert (
        hidden.metrics["probe_forget_accuracy_low"]
        > hidden.metrics_by_model["retrained"]["probe_forget_accuracy_high"]
    )
    assert (
        "gap" not in hidden.metrics_by_model["retrained"]
        and hidden.metrics_by_model["original"]["gap"] > hidden.metrics["gap"]
    )
    before, now = (hidden.metrics_by_model[which] for which in ("original", "audited"))
    relative = [abs(before["unseen_accuracy"] - now[f"{which}_accuracy"]) for which in ("unseen", "forget")]
    assert now["unlearning_impact_score"] == pytest.approx(sum(relative) / 2 / before["unseen_accuracy"])


def test_curves_counts_and_groups(digits, reports):
    models, datasets_by_name = digits
    report = reports["second"]
    for curve in report.roc.values():
        assert (curve["fpr"][0], curve["tpr"][0], curve["fpr"][-1], curve["tpr"][-1]) == (0, 0, 1, 1)
    edges = np.array(report.histograms["edges"])
    for model, counts in report.histograms["counts"].items():
        for which, samples in datasets_by_name.items():
            assert sum(counts[which]) == len(samples)
            near = np.abs(
                outputs(models["second" if model == "audited" else model], samples)[0][:, None] - edges
            ).min()
            if near > 1e-5:
                expected = np.histogram(outputs(models["second"], samples)[0], edges)[0].tolist()
                assert model != "audited" or counts[which] == expected
    entries = [entry for entry in report.breakdown if entry["dataset"] == "forget"]
    assert sum(entry["samples"] for entry in entries) == FORGET
    mean = sum(entry["samples"] * entry["audited"] for entry in entries) / FORGET
    assert mean == pytest.approx(report.metrics["forget_accuracy"])


def test_a_class_is_compared_with_unseen_samples_of_the_class(digits):
    models, datasets_by_name = digits
    model, everything = models["second"], datasets_by_name["forget"] + datasets_by_name["retain"]
    forget, retain = split_forget_retain(tiny.Samples(everything), column="label", values=[3])
    of_class = [sample for sample in datasets_by_name["unseen"] if int(sample["label"]) == 3]
    others = [sample for sample in datasets_by_name["unseen"] if int(sample["label"]) != 3]
    assert min(len(of_class), len(others), len(forget)) >= 8
    report = audit(model, forget_ds=forget, retain_ds=retain, unseen_ds=datasets_by_name["unseen"], resamples=10)
    members, matched = (outputs(model, list(samples))[0] for samples in (forget, of_class))
    truth = np.repeat([1, 0], [len(members), len(matched)])
    expected = roc_auc_score(truth, -np.concatenate([members, matched]))
    assert report.metrics["mia_loss_auc"] == pytest.approx(expected, abs=1e-3)
    assert report.metrics["unseen_accuracy"] == pytest.approx(outputs(model, others)[1].mean())
    assert report.about["request"] == "class" and report.verdict["level"] == "remembers"
    assert sum(report.histograms["counts"]["audited"]["unseen"]) == len(of_class)
    # The metrics are of the other classes, the attacks of this one, the population attack of one half of it.
    assert report.about["measured"] == {"forget": len(forget), "retain": len(retain), "unseen": len(others)}
    assert report.about["attacked"]["loss"] == {"forget": len(forget), "unseen": len(of_class)}
    assert report.about["attacked"]["population"]["unseen"] == -(-len(of_class) // 2)
    assert report.about["unseen_samples"] == len(datasets_by_name["unseen"]) and report.about["groups"] == 10
    # As many samples as the attack has, not as the set has.
    assert f"True positives at 1 % false positives need 100 unseen samples; there are {len(of_class)}." in report.notes


def test_no_unseen_sample_of_the_class(digits):
    models, datasets_by_name = digits
    forget, retain = split_forget_retain(
        tiny.Samples(datasets_by_name["forget"] + datasets_by_name["retain"]), column="label", values=[3]
    )
    others = [sample for sample in datasets_by_name["unseen"] if int(sample["label"]) != 3]
    report = audit(
        models["second"], forget_ds=forget, retain_ds=retain, unseen_ds=others, retrained=models["retrained"]
    )
    assert not any(name.startswith("mia") for name in report.metrics) and report.verdict["level"] == "unclear"
    assert report.metrics["unseen_accuracy"] == pytest.approx(outputs(models["second"], others)[1].mean())


def test_the_report_is_kept_shown_and_read_again(reports, tmp_path, capsys):
    report = reports["hidden"]
    path = report.to_json(tmp_path / "audit.json")
    assert AuditReport.from_json(path) == report
    assert json.loads(path.read_text())["metrics"]["gap"] == report.metrics["gap"]
    page = report.to_html(tmp_path / "audit.html").read_text()
    assert page.startswith("<!doctype html>") and "Still remembers" in page
    report.print()
    assert "Still remembers" in " ".join(capsys.readouterr().out.split())


def test_the_audit_changes_no_model_and_repeats(digits):
    models, datasets_by_name = digits
    given = {name: copy.deepcopy(models[name]) for name in ("second", "original", "retrained")}
    for model in given.values():
        model.train()
        model.vit.layers[0].eval()
        model.classifier.weight.requires_grad_(False)
    before = {name: state(model) for name, model in given.items()}
    small = {name: samples[:40] for name, samples in datasets_by_name.items()}

    def again():
        return audit(
            given["second"], **tiny.named(small), original=given["original"], retrained=given["retrained"],
            relearning=True, resamples=10,
        )  # fmt: skip

    first = again()
    for name, model in given.items():
        assert_same(before[name], state(model))
    assert again() == first


def test_a_second_audit_with_a_cache_runs_no_model(digits, tmp_path):
    models, datasets_by_name = digits
    given = [copy.deepcopy(models[name]) for name in ("second", "retrained")]
    options = {"resamples": 10, "cache_dir": tmp_path / "kept"}
    first = audit(given[0], **tiny.named(datasets_by_name), retrained=given[1], **options)

    def refuse(module, inputs):
        raise AssertionError("a forward pass")

    hooks = [model.register_forward_pre_hook(refuse) for model in given]
    assert audit(given[0], **tiny.named(datasets_by_name), retrained=given[1], **options) == first
    for hook in hooks:
        hook.remove()
    # Another weight, another sample: measured again.
    with torch.no_grad():
        given[0].classifier.bias[0] += 5
    changed = audit(given[0], **tiny.named(datasets_by_name), retrained=given[1], **options)
    assert (
        changed.metrics
        == audit(given[0], **tiny.named(datasets_by_name), retrained=given[1], resamples=10).metrics
        != first.metrics
    )
    fewer = {**datasets_by_name, "forget": datasets_by_name["forget"][:-1]}
    assert (
        audit(given[0], **tiny.named(fewer), **options).metrics
        == audit(given[0], **tiny.named(fewer), resamples=10).metrics
    )


def test_cached_statistics_are_those_of_the_active_adapter(tmp_path):
    model, batch = tiny.make("vit")
    samples = tiny.samples(batch(30))
    datasets_by_name = {"forget": samples[:10], "retain": samples[10:20], "unseen": samples[20:]}
    adapted = add_adapter(model)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(len(name)))
    options = {"resamples": 10, "cache_dir": tmp_path}
    with_it = audit(adapted, **tiny.named(datasets_by_name), **options).metrics
    with adapted.disable_adapter():
        without = audit(adapted, **tiny.named(datasets_by_name), **options).metrics
        assert without == audit(adapted, **tiny.named(datasets_by_name), resamples=10).metrics
    assert without["forget_loss"] != with_it["forget_loss"]


# ---- heads -----------------------------------------------------------------------------------------------------


def split(samples, first=12, second=24):
    return {"forget": samples[:first], "retain": samples[first:second], "unseen": samples[second:]}


def words():
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = Tokenizer(models.WordLevel({f"secret{i}": i for i in range(tiny.VOCAB)}, unk_token="secret0"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, pad_token="secret0", bos_token="secret1", eos_token="secret2"
    )


@pytest.mark.parametrize("name", ["gpt2", "bert_lm"])
def test_language_models(name, tmp_path):
    model, batch = tiny.make(name)
    retrained = type(model)(model.config)
    datasets_by_name, cache_dir = split(tiny.samples(batch(40))), tmp_path / "kept"
    report = audit(
        model,
        **tiny.named(datasets_by_name),
        retrained=retrained,
        relearning=True,
        processing_class=words(),
        resamples=10,
        cache_dir=cache_dir,
    )
    scores = {"loss", "entropy", "min_k", "min_k_plus_plus", "zlib", "reference", "population"}
    assert scores == report.roc.keys() and "forget_wer" not in report.metrics
    assert "probe_forget_accuracy" not in report.metrics and report.relearning["audited"]["steps"][-1] == 12
    assert report.metrics["forget_loss"] == pytest.approx(math.log(tiny.VOCAB), rel=0.2)
    assert_intervals(report.metrics)
    # Nothing of any sample is in the report.
    written = report.to_json(tmp_path / "audit.json").read_bytes()
    assert b"secret" not in written and not any(b"secret" in path.read_bytes() for path in cache_dir.iterdir())


@pytest.mark.parametrize("name", ["whisper", "t5"])
def test_word_error_rates_of_sequence_models(name, tmp_path):
    import jiwer

    model, batch = tiny.make(name)
    model.generation_config.max_length = 8
    model.train()
    datasets_by_name, tokenizer = split(tiny.samples(batch(36))), words()
    report = audit(model, **tiny.named(datasets_by_name), processing_class=tokenizer, resamples=10)
    assert model.training
    model.eval()
    transcripts, references = [], []
    for sample in datasets_by_name["forget"]:
        inputs = default_collator(model)([sample])
        labels = inputs.pop("labels")
        transcripts.append(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))
        references.append(tokenizer.decode(labels[0], skip_special_tokens=True))
    assert report.metrics["forget_wer"] == pytest.approx(jiwer.wer(references, transcripts), abs=0.02)
    assert {"retain_wer", "unseen_wer_low", "unseen_wer_high"} <= report.metrics.keys()
    assert_intervals(report.metrics)
    assert b"secret" not in report.to_json(tmp_path / "audit.json").read_bytes()


def test_word_error_rates_of_ctc(tmp_path):
    import jiwer

    tf.set_seed(0)
    model, batch = tiny.make("wav2vec2_ctc")
    vocabulary = {"<pad>": 0, "|": 1, "<unk>": 2, **{chr(94 + i): i for i in range(3, tiny.VOCAB)}}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = tf.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), pad_token="<pad>", unk_token="<unk>")
    datasets_by_name = split(tiny.samples(batch(36)))
    report = audit(model, **tiny.named(datasets_by_name), processing_class=tokenizer, resamples=10)
    inputs = default_collator(model)(datasets_by_name["retain"])
    labels = inputs.pop("labels")
    with torch.no_grad():
        recognised = tokenizer.batch_decode(model.eval()(**inputs).logits.argmax(-1), skip_special_tokens=True)
    spelled = [tokenizer.decode(s[s != -100], skip_special_tokens=True, group_tokens=False) for s in labels]
    # A letter that stands twice in a label was said twice.
    assert any((sample[1:] == sample[:-1]).any() for sample in labels)
    assert report.metrics["retain_wer"] == pytest.approx(jiwer.wer(spelled, recognised), abs=1e-6)


def test_a_recogniser_that_runs_away_is_damaged(unlearn):
    """Its tokens and losses are what they were: only what it says tells."""
    processor = type("Processor", (), {"tokenizer": words()})()
    trainer = unlearn("whisper", method="grad_diff", max_steps=1, learning_rate=1e-9)
    trainer.processing_class = processor
    trainer.train()
    report, original = trainer.audit(resamples=10), trainer._original_statistics()
    assert {"retain_wer", "unseen_wer"} <= {difference["metric"] for difference in report.differences}
    assert report.metrics["retain_wer"] == report.metrics_by_model["original"]["retain_wer"]
    # The same tokens given the tokens before them; said by itself, one word over and over.
    trainer.model.generation_config.suppress_tokens = [t for t in range(tiny.VOCAB) if t != 5]
    report = trainer.audit(resamples=10, original=original)
    assert report.verdict["level"] == "damaged" and "retain WER" in report.verdict["sentence"]


def classifier(problem_type, labels):
    tf.set_seed(0)
    settings = tiny.DECODER | {"num_hidden_layers": 1, "num_labels": labels, "problem_type": problem_type}
    return tf.BertForSequenceClassification(tf.BertConfig(**settings))


def labelled(kind, count=36):
    samples = tiny.samples(tiny.text_classes(count))
    generator = torch.Generator().manual_seed(0)
    for sample in samples:
        if kind == "token":
            sample["labels"] = [i % 3 for i in sample["input_ids"]]
        else:
            sample["labels"] = torch.rand(() if kind == "regression" else 3, generator=generator).round().float()
    return samples


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification", None, "token"])
def test_other_heads_leave_out_metrics_that_are_not_available(problem_type, tmp_path):
    """None: float labels alone make it a head of several labels."""
    if problem_type == "token":
        tf.set_seed(0)
        model = tf.BertForTokenClassification(
            tf.BertConfig(**tiny.DECODER | {"num_hidden_layers": 1, "num_labels": 3})
        )
    else:
        model = classifier(problem_type, 1 if problem_type == "regression" else 3)
    datasets_by_name = split(labelled(problem_type))
    retrained = type(model)(model.config)
    report = audit(
        model, **tiny.named(datasets_by_name), retrained=retrained, original=retrained, relearning=True, resamples=10
    )
    assert ("forget_accuracy" in report.metrics) == (problem_type != "regression")
    assert {"forget_loss", "mia_loss_auc", "gap"} <= report.metrics.keys()
    assert not {"probe_forget_accuracy", "forget_js_divergence", "mia_margin_auc"} & report.metrics.keys()
    assert_intervals(report.metrics)
    assert AuditReport.from_json(report.to_json(tmp_path / "audit.json")) == report


def test_infinite_losses_are_left_out_and_counted(tmp_path):
    model, batch = tiny.make("wav2vec2_ctc")
    samples = tiny.samples(batch(36))
    for sample in samples[:2]:
        sample["labels"] = [5, 6] * 30  # more than there are frames
    report = audit(model, **tiny.named(split(samples)), retrained=copy.deepcopy(model), relearning=True, resamples=10)
    assert "loss: 2 samples without a finite score were left out." in report.notes
    assert "mia_loss_auc" in report.metrics and report.roc["loss"]["tpr"][-1] == 1
    assert "forget_loss" not in report.metrics and "unseen_loss" in report.metrics
    assert AuditReport.from_json(report.to_json(tmp_path / "audit.json")) == report


def test_a_diverged_model_is_damaged(digits, tmp_path):
    models, datasets_by_name = digits
    model = copy.deepcopy(models["second"])
    with torch.no_grad():
        model.classifier.weight.fill_(torch.nan)
    report = audit(
        model, **tiny.named(datasets_by_name), retrained=models["retrained"], original=models["original"], resamples=10
    )
    assert report.verdict["level"] == "damaged" and "forget_loss" not in report.metrics
    report.to_json(tmp_path / "audit.json")


# ---- bad input -------------------------------------------------------------------------------------------------


class Silent(tf.ViTForImageClassification):
    def forward(self, pixel_values=None, labels=None, **kwargs):
        raise AssertionError("a forward pass")


def test_bad_input_is_refused_before_any_forward_pass(digits, tmp_path):
    models, datasets_by_name = digits
    model = Silent(models["second"].config)
    larger = Silent(
        tf.ViTConfig(**{**model.config.to_dict(), "id2label": {i: str(i) for i in range(11)}, "label2id": None})
    )
    masks = {name: np.ones((4, len(samples)), bool) for name, samples in datasets_by_name.items()}
    others = Shadows((), masks | {"forget": np.ones((4, 7), bool)}, masks)
    forget, retain, unseen = datasets_by_name.values()
    for settings, message in (
        (
            {"unseen": None},
            "unseen_ds: is missing; forgotten samples are compared with samples that were never trained on",
        ),
        ({"unseen": []}, "unseen_ds: is empty"),
        ({"forget": []}, "forget_ds: is empty"),
        (
            {"unseen": [*unseen, forget[3]]},
            r"unseen_ds and forget_ds share 1 samples \(sample 150 of unseen_ds is sample 3 of forget_ds\)",
        ),
        ({"unseen": [*unseen, *retain[:2]]}, "unseen_ds and retain_ds share 2 samples"),
        ({"retain": [*retain, forget[0]]}, "forget_ds and retain_ds share 1 samples"),
        ({"retrained": models["second"]}, "retrained: is a ViTForImageClassification, the model a Silent"),
        ({"original": larger}, "original: has num_labels=11, the model 10"),
        ({"shadows": others}, "shadows: know 7 forget samples, the dataset has 100"),
        ({"request": "classes"}, "request: "),
    ):
        with pytest.raises(ValueError, match=f"^{message}") as raised:
            audit(model, **tiny.named(datasets_by_name | settings))
        assert "\n" not in str(raised.value)
    with pytest.raises(AssertionError, match="a forward pass"):
        audit(model, **tiny.named(datasets_by_name))
    regression = classifier("regression", 1)
    masks = {name: np.ones((4, 12), bool) for name in datasets_by_name}
    with pytest.raises(ValueError, match=r"^shadows: LiRA and RMIA need likelihoods, and a regression head has none"):
        audit(regression, **tiny.named(split(labelled("regression"))), shadows=Shadows((), masks, masks))


@pytest.mark.parametrize("name", ["vit", "gpt2"])
def test_one_forget_sample(name):
    model, batch = tiny.make(name)
    samples = tiny.samples(batch(13))
    datasets_by_name = {"forget": samples[:1], "retain": samples[1:12], "unseen": samples[12:]}
    retrained = type(model)(model.config)
    report = audit(
        model, **tiny.named(datasets_by_name), retrained=retrained, original=retrained, relearning=True, resamples=10
    )
    assert not any(metric.startswith("mia") for metric in report.metrics) and report.roc == {}
    with torch.no_grad():
        expected = float(model.eval()(**default_collator(model)(samples[:1])).loss)
    assert report.metrics["forget_loss"] == pytest.approx(expected, rel=1e-4)
    assert report.verdict["level"] == "unclear"
    assert "Attack by loss: 1 forget and 1 unseen samples are too few for a metric; 8 are the least." in report.notes
    assert "True positives at 1 % false positives need 100 unseen samples; there are 1." in report.notes


def test_one_sample_without_accuracies_has_no_gap():
    datasets_by_name = split(labelled("regression"), first=1)
    model = classifier("regression", 1)
    report = audit(model, **tiny.named(datasets_by_name), retrained=classifier("regression", 1))
    assert "gap" not in report.metrics and report.verdict["level"] == "unclear"


# ---- the trainer -----------------------------------------------------------------------------------------------


def test_the_audit_of_a_trainer(unlearn):
    trainer = unlearn(forget=10, unseen=20, max_steps=3, method="grad_diff")
    trainer.train()
    other = tiny.samples(tiny.images(10, seed=7))
    report = trainer.audit(resamples=10)
    assert report.about["method"] == "grad_diff" and report.about["unseen_samples"] == 20
    logged = [entry for entry in trainer.state.log_history if "forget_loss" in entry]
    assert [entry["step"] for entry in report.training] == [1, 2, 3]
    assert [entry["forget_loss"] for entry in report.training] == [entry["forget_loss"] for entry in logged]
    note = "The unseen samples set the target of forgetting: samples that did not would say more."
    assert note in report.notes
    assert report.metrics["forget_loss"] == pytest.approx(trainer.unlearning_metrics()["forget_loss"])
    other = [{name: torch.as_tensor(value) for name, value in sample.items()} for sample in other]
    with_others = trainer.audit(unseen_ds=other, resamples=10)
    assert note not in with_others.notes and with_others.about["unseen_samples"] == 10
    with pytest.raises(ValueError, match=r"^unseen_ds: is missing"):
        unlearn(unseen=0, method="grad_ascent").audit()


def test_the_gap_is_better_when_smaller(tmp_path):
    def better(metric, **settings):
        return UnlearningArguments(str(tmp_path), metric_for_best_model=metric, **settings).greater_is_better

    assert better("gap") is False and better("eval_gap") is False and better("gap", greater_is_better=True) is True
    assert better("eval_forget_accuracy") is True and better("forget_loss") is False


@pytest.mark.parametrize("eval_dataset", [False, True])
def test_the_best_checkpoint_is_the_one_nearest_to_a_retrained_model(digits, unlearn, eval_dataset):
    models, datasets_by_name = digits
    samples = {name: tiny.Samples(dataset[:60]) for name, dataset in datasets_by_name.items()}
    trainer = unlearn(
        model=copy.deepcopy(models["original"]), sets=lambda *_: tuple(samples.values()), method="grad_ascent",
        learning_rate=2e-4, max_steps=6, stop_at_target=False, per_device_train_batch_size=60,
        lr_scheduler_type="constant", eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
        metric_for_best_model="gap", load_best_model_at_end=True,
        **({"eval_dataset": tiny.Samples(datasets_by_name["unseen"][60:80])} if eval_dataset else {}),
    )  # fmt: skip
    callback = AuditCallback(trainer, retrained=models["retrained"], resamples=10)
    trainer.add_callback(callback)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "eval_gap" in entry]
    assert [entry["step"] for entry in logged] == [2, 4, 6]  # one audit an evaluation
    gaps = {entry["step"]: entry["eval_gap"] for entry in logged}
    assert [report.metrics["gap"] for report in callback.reports] == list(gaps.values())
    assert "eval_mia_loss_auc" in logged[0] and not any(name.endswith("_low") for name in logged[0])
    best = min(gaps, key=gaps.get)
    print(gaps)
    assert best not in (6, max(gaps, key=gaps.get))  # pushed too far at the end
    assert trainer.state.best_metric == gaps[best]
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    final = trainer.audit(retrained=models["retrained"], resamples=10)
    assert final.metrics["gap"] == gaps[best]
    expected = average_gap(final.metrics, final.metrics_by_model["retrained"])
    assert final.metrics["gap"] == pytest.approx(expected)


def test_a_trainer_audits_by_a_column_that_the_model_does_not_read(unlearn):
    def named(*sets):
        samples = [[{key: value.tolist() for key, value in sample.items()} for sample in each] for each in sets]
        people = [
            [{**sample, "person": f"p{i % 2}", "path": "a.wav"} for i, sample in enumerate(split_)]
            for split_ in samples
        ]
        return [datasets.Dataset.from_list(split_) for split_ in people]

    trainer = unlearn(sets=named, max_steps=1)
    report = trainer.audit(group_column="person", resamples=2)
    assert {entry["group"] for entry in report.breakdown} == {"p0", "p1"}
    with pytest.raises(ValueError, match=r"^group_column: 'speaker' is not in the dataset"):
        trainer.audit(group_column="speaker", resamples=2)
