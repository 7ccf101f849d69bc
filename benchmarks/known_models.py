"""Does the verdict of an audit hold on models of which it is known whether they have forgotten?

    python benchmarks/known_models.py train DIR --data DATA --minilm MODEL
    python benchmarks/known_models.py audit DIR OUT.json --data DATA --minilm MODEL --seeds 1 2 3

Both go on where they stopped. Tasks: a ViT of 74 k weights on scikit-learn's digits, from scratch; MiniLM (three
layers of it, the last of which trains) on 20 intents of Banking77. Requests: random samples, a class, and the samples
of one annotator. A fifth of the labels is wrong, so that there is something to remember of a sample, in a way that is
the annotator's own, so that there is something to remember of a group; unseen samples were labelled by other
annotators. Labels are right where a class is forgotten.

Each request has an original and several models retrained with other seeds. Every retrained model is audited as if it
were an unlearned one, with one and with two of the others as ground truth: a verdict that finds fault is a false
alarm. Models that have not forgotten, or only seem to, are made of the originals and of the retrained models
(`ALTERED`): a verdict that finds no fault is a miss. The constants of the audit were chosen on seed 0 of digits; the
seeds above 0 are for the report.
"""

import argparse
import copy
import json
import os
import platform
import time
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from scipy.stats import binomtest
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

import hf_unlearn
from hf_unlearn import audit, split_forget_retain
from hf_unlearn.data.collator import default_collator
from hf_unlearn.demo import digits_data
from hf_unlearn.training import quiet

WRONG = 0.2
ANNOTATORS = 10
INTENTS, SAMPLES_AN_INTENT, UNSEEN_AN_INTENT, LAYERS = 20, 25, 25, 3


# ---- tasks -----------------------------------------------------------------------------------------------------


class Digits:
    """A ViT on digits."""

    classes, steps, learning_rate, batch = 10, 400, 3e-3, 128

    def __init__(self, seed, options):
        self.seed = seed
        data = digits_data(seed)
        self.train, self.test = data["train"], datasets.concatenate_datasets([data["unseen"], data["test"]])

    def build(self, seed):
        set_seed(seed)
        config = ViTConfig(
            image_size=8, patch_size=8, num_channels=1, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=128, num_labels=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        return ViTForImageClassification(config).eval()

    def tail(self, model, batch):
        """What trains: the whole model."""
        return lambda some: model(batch["pixel_values"][some]).logits, list(model.parameters())

    def load(self, folder):
        return ViTForImageClassification.from_pretrained(folder)


class Banking:
    """MiniLM on intents."""

    classes, steps, learning_rate, batch = INTENTS, 200, 1e-3, 32

    def __init__(self, seed, options):
        self.seed, self.minilm = seed, options.minilm
        tokenizer = AutoTokenizer.from_pretrained(options.minilm)
        table = datasets.load_dataset(
            "parquet", data_files=str(Path(options.data) / "banking77.parquet"), split="train"
        )
        text, label = (next(c for c in table.column_names if c.startswith(name)) for name in ("text", "label"))
        generator, labels = np.random.default_rng(seed), np.array(table[label])
        chosen = [generator.permutation(np.flatnonzero(labels == i)) for i in range(INTENTS)]
        count = SAMPLES_AN_INTENT

        def some(part):
            indices = np.concatenate([of_class[part] for of_class in chosen])
            ids = tokenizer([table[text][int(i)] for i in indices], truncation=True, max_length=32)["input_ids"]
            return datasets.Dataset.from_dict({"input_ids": ids, "label": labels[indices]})

        self.train, self.test = some(slice(count)), some(slice(count, count + UNSEEN_AN_INTENT))

    def build(self, seed):
        set_seed(seed)
        return AutoModelForSequenceClassification.from_pretrained(
            self.minilm, num_labels=INTENTS, num_hidden_layers=LAYERS
        ).eval()

    def tail(self, model, batch):
        """What trains: the last layer, pooler and head; the layers below stay as they are."""
        *below, last = model.bert.encoder.layer
        mask = (1 - batch["attention_mask"][:, None, None, :]) * torch.finfo(torch.float32).min
        with torch.no_grad():
            states = model.bert.embeddings(input_ids=batch["input_ids"])
            for layer in below:
                states = layer(states, mask)
        lengths = batch["attention_mask"].sum(1)

        def logits(some):
            longest = int(lengths[some].max())
            return model.classifier(model.bert.pooler(last(states[some, :longest], mask[some][..., :longest])))

        return logits, [*last.parameters(), *model.bert.pooler.parameters(), *model.classifier.parameters()]

    def load(self, folder):
        return AutoModelForSequenceClassification.from_pretrained(folder)


TASKS = {"digits": Digits, "minilm": Banking}
# The number of models retrained for a request.
RETRAINED = {"digits": 4, "minilm": 3}
REQUESTS = ("samples", "class", "group")


def retrained_counts(task, seed):
    """Request to the number of its retrained models: 40 of digits on seeds 1 to 3, 20 of MiniLM on seeds 1 and 2."""
    counts = dict.fromkeys(REQUESTS, RETRAINED[task])
    if (task, seed) == ("digits", 1):
        counts["many samples"] = RETRAINED[task]
    if task == "minilm" and seed > 0:
        counts["samples"] = 4
    return counts


def labelled(samples, classes, seed, annotators):
    """The samples with an annotator each, a fifth of their labels wrong in the annotator's way."""
    generator, labels = np.random.default_rng(seed), np.array(samples["label"])
    by = generator.integers(0, len(annotators), len(labels))
    wrong = generator.random(len(labels)) < WRONG
    shifts = 1 + np.array(annotators)[by] % (classes - 1)
    changed = np.where(wrong, (labels + shifts) % classes, labels)
    samples = samples.remove_columns("label").add_column("label", changed)
    return samples.add_column("annotator", np.array(annotators)[by])


def request_datasets(task, request):
    """Forget, retain and unseen dataset of a request."""
    train, test, seed = task.train, task.test, task.seed
    if request == "class":
        forget, retain = split_forget_retain(train, column="label", values=[(3 + seed) % task.classes])
    else:
        train = labelled(train, task.classes, seed, list(range(ANNOTATORS)))
        test = labelled(test, task.classes, seed, list(range(ANNOTATORS, 2 * ANNOTATORS)))
        if request == "group":
            forget, retain = split_forget_retain(train, column="annotator", values=[seed % ANNOTATORS])
        else:
            share = 0.3 if request == "many samples" else 0.1
            forget, retain = split_forget_retain(train, fraction=share, seed=seed)
    return {"forget": forget, "retain": without(retain, forget), "unseen": without(test, train)}, train


def without(samples, others):
    """The samples that do not occur among others: a question is asked twice in Banking77."""
    if "input_ids" not in samples.column_names:
        return samples
    others_ids = {tuple(ids) for ids in others["input_ids"]}
    return samples.select([i for i, ids in enumerate(samples["input_ids"]) if tuple(ids) not in others_ids])


# ---- training --------------------------------------------------------------------------------------------------


def fit(task, model, batch, seed):
    """Train with AdamW on random batches."""
    logits, weights = task.tail(model, batch)
    generator, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    optimizer = torch.optim.AdamW(weights, task.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, task.learning_rate, total_steps=task.steps)
    for _ in range(task.steps):
        if len(order) < task.batch:
            order = torch.cat([order, torch.randperm(len(batch["labels"]), generator=generator)])
        some, order = order[: task.batch], order[task.batch :]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits(some), batch["labels"][some]).backward()
        optimizer.step()
        schedule.step()


def model_folders(options, seeds):
    """Every model to be had: folder, task, seed, request (None: an original), number."""
    for name in options.tasks:
        for seed in seeds:
            for kind in ("noisy", "clean"):
                yield Path(options.folder) / f"{name}-{seed}-original-{kind}", name, seed, kind, 0
            for request, count in retrained_counts(name, seed).items():
                for number in range(1, count + 1):
                    yield Path(options.folder) / f"{name}-{seed}-{request}-{number}", name, seed, request, number


def train(options):
    """Train every model that is not there."""
    folders = list(model_folders(options, options.seeds))
    for position, (folder, name, seed, request, number) in enumerate(folders):
        if folder.exists():
            continue
        task = TASKS[name](seed, options)
        of_request = {"noisy": "samples", "clean": "class"}.get(request, request)
        parts, whole = request_datasets(task, of_request)
        model = task.build(1000 * seed + number)
        samples = whole if number == 0 else parts["retain"]
        started = time.process_time()
        fit(task, model, batches_of(samples, model), 1000 * seed + number)
        seconds = time.process_time() - started
        partial = folder.with_name(f".{folder.name}")
        model.save_pretrained(partial)
        os.replace(partial, folder)
        print(f"{position + 1}/{len(folders)} {folder.name}: {seconds:.0f} s", flush=True)


# ---- models that have not forgotten, or only seem to ------------------------------------------------------------


def head_of_classes(model):
    """The last linear layer."""
    return [
        m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == model.config.num_labels
    ][-1]


def batches_of(samples, model):
    """All samples as one batch."""
    columns = [c for c in samples.column_names if c != "annotator"]
    return default_collator(model)([dict(sample) for sample in samples.select_columns(columns)])


def losses_of(model, batch):
    """Losses [n], with gradient."""
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    return torch.nn.functional.cross_entropy(model(**inputs).logits, batch["labels"], reduction="none")


@torch.no_grad()
def biased(model, parts, retrained, value=-100.0):
    """The class's output held down by its bias."""
    for label in set(parts["forget"]["label"]):
        head_of_classes(model).bias[int(label)] += value
    return model


def masked(model, parts, retrained):
    """The class's output masked, as generation masks tokens."""
    return biased(model, parts, retrained, torch.finfo(torch.float32).min / 2)


def filtered(model, parts, retrained):
    """Where the class would be answered, the answer is uniform: a filter behind the model."""
    forgotten = sorted({int(label) for label in parts["forget"]["label"]})

    def refuse(module, inputs, outputs):
        is_class = torch.isin(outputs.logits.argmax(-1), torch.tensor(forgotten))
        outputs.logits = outputs.logits.masked_fill(is_class[:, None], 0.0)
        return outputs

    model.register_forward_hook(refuse)
    return model


@torch.no_grad()
def scaled(model, parts, retrained):
    """Logits scaled down, until the mean loss of forget samples is that of unseen samples."""
    head, forget = head_of_classes(model), batches_of(parts["forget"], model)
    goal = losses_of(model, batches_of(parts["unseen"], model)).mean()
    for _ in range(60):
        if losses_of(model, forget).mean() >= goal:
            break
        head.weight.mul_(0.93)
        head.bias.mul_(0.93)
    return model


@torch.no_grad()
def noisy_head(model, parts, retrained):
    """The head swapped for noise."""
    head = head_of_classes(model)
    head.weight.normal_(0, float(head.weight.std()), generator=torch.Generator().manual_seed(0))
    return model


def over_forgotten(model, parts, retrained):
    """Ascent on forget samples, with retain samples beside them, to four times the loss of a retrained model."""
    forget, retain = (batches_of(parts[name], model) for name in ("forget", "retain"))
    with torch.no_grad():
        goal = 4 * float(losses_of(retrained, forget).mean())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        some = torch.randperm(len(retain["labels"]), generator=generator)[:128]
        forget_loss = losses_of(model, forget).mean()
        if forget_loss > goal:
            break
        optimizer.zero_grad()
        (2 * losses_of(model, {k: v[some] for k, v in retain.items()}).mean() - forget_loss).backward()
        optimizer.step()
    return model


@torch.no_grad()
def damaged(model, parts, retrained):
    """Noise on every weight, until 12 points of the accuracy on unseen samples of retained classes are lost."""
    labels = np.array(parts["unseen"]["label"])
    kept = np.isin(labels, np.unique(parts["retain"]["label"]))
    unseen = batches_of(parts["unseen"].select(np.flatnonzero(kept)), model)
    inputs = {name: values for name, values in unseen.items() if name != "labels"}

    def accuracy():
        return float((model(**inputs).logits.argmax(-1) == unseen["labels"]).float().mean())

    before, generator = accuracy(), torch.Generator().manual_seed(0)
    for _ in range(1000):
        if accuracy() < before - 0.12:
            break
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.add_(0.1 * weight.std() * torch.randn(weight.shape, generator=generator))
    return model


@torch.no_grad()
def not_a_number(model, parts, retrained):
    """One weight is NaN."""
    head_of_classes(model).weight[0, 0] = float("nan")
    return model


# Name to what is done, and whether to the original (else to a retrained model).
ALTERED = {
    "original": (lambda model, *_: model, True), "scaled": (scaled, True), "noisy head": (noisy_head, True),
    "over-forgotten": (over_forgotten, True), "damaged": (damaged, False), "NaN": (not_a_number, False),
}  # fmt: skip
ALTERED_CLASSES = {"biased": (biased, True), "masked": (masked, True), "filtered": (filtered, True)}
NO_FAULT = ("consistent", "unclear")
# Levels that are right; "unclear" never certifies, and is counted apart.
RIGHT = {
    "original": ("remembers",), "scaled": ("remembers", "over-forgotten", "damaged"), "noisy head": ("damaged",),
    "over-forgotten": ("over-forgotten", "damaged", "hidden"), "damaged": ("damaged",), "NaN": ("damaged",),
    "biased": ("hidden", "over-forgotten"), "masked": ("hidden", "over-forgotten"),
    "filtered": ("hidden", "over-forgotten", "remembers"),
}  # fmt: skip


# ---- audits ----------------------------------------------------------------------------------------------------


def audited_models(options, name, seed, request):
    """Every model to audit: name, model, retrained models that are ground truth, whether it has forgotten."""
    task = TASKS[name](seed, options)
    parts, _ = request_datasets(task, request)
    load = lambda *ids: task.load(Path(options.folder) / "-".join(map(str, (name, seed, *ids))))  # noqa: E731
    original = load("original", "clean" if request == "class" else "noisy")
    count = retrained_counts(name, seed)[request]
    retrained = [load(request, number) for number in range(1, count + 1)]
    for position in range(count):
        others = retrained[position + 1 :] + retrained[:position]
        yield f"retrained {position + 1}", copy.deepcopy(retrained[position]), original, others, parts, True
    for altered, (alter, of_original) in (ALTERED | (ALTERED_CLASSES if request == "class" else {})).items():
        model = alter(copy.deepcopy(original if of_original else retrained[-1]), parts, retrained[0])
        yield altered, model.eval(), original, retrained, parts, False


def audit_all(options):
    """Audit every model without, with one and with two retrained models; what OUT has is kept."""
    out = Path(options.out)
    results = json.loads(out.read_text())["audits"] if out.exists() else []
    done = {(r["task"], r["seed"], r["request"], r["model"]) for r in results}
    for name in options.tasks:
        for seed in options.seeds:
            if name == "minilm" and seed > 2:
                continue
            for request in retrained_counts(name, seed):
                for label, model, original, others, parts, has_forgotten in audited_models(
                    options, name, seed, request
                ):
                    if (name, seed, request, label) in done:
                        continue
                    started = time.perf_counter()
                    levels = {}
                    for count in range(3):
                        report = audit(
                            model, forget_ds=parts["forget"], retain_ds=parts["retain"], unseen_ds=parts["unseen"],
                            original=original, retrained=others[:count] or None, resamples=20, seed=seed,
                            # A filter is no weight, by which statistics are kept.
                            cache_dir=None if label == "filtered" else Path(options.folder) / "cache",
                            request=request if request in ("class", "group") else "samples",
                        )  # fmt: skip
                        levels[str(count)] = report.verdict
                        kept = {
                            k: v
                            for k, v in report.metrics.items()
                            if not k.endswith(("_low", "_high")) and "mia" not in k
                        }
                    results.append({
                        "task": name, "seed": seed, "request": request, "model": label, "has_forgotten": has_forgotten,
                        "verdicts": levels, "metrics": kept, "seconds": round(time.perf_counter() - started, 1),
                    })  # fmt: skip
                    print(name, seed, request, label, [levels[c]["level"] for c in levels], flush=True)
                    write(out, results)
    write(out, results)


def write(out, results):
    """The audits, and what they come to."""
    about = {
        "command": "python benchmarks/known_models.py audit", "device": "cpu", "python": platform.python_version(),
        "torch": torch.__version__, "transformers": transformers.__version__, "hf_unlearn": hf_unlearn.__version__,
        "seeds": sorted({r["seed"] for r in results}),
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"about": about, "summary": summary(results), "audits": results}, indent=1) + "\n")


def summary(results):
    """False alarms and misses by the number of retrained models, with exact binomial 95 % intervals."""
    lines = {}
    for count in ("0", "1", "2"):
        level = lambda r: r["verdicts"][count]["level"]  # noqa: B023, E731
        told = {
            (r["task"], r["seed"], r["request"]): level(r) != "unclear" for r in results if r["model"] == "original"
        }
        forgotten = [r for r in results if r["has_forgotten"]]
        others = [r for r in results if not r["has_forgotten"]]
        untold = [r for r in others if r["model"] == "original" and level(r) == "unclear"]
        judged = [r for r in others if r not in untold]
        lines[f"{count} retrained"] = {
            "false alarms": share([r for r in forgotten if level(r) not in NO_FAULT], forgotten),
            "retrained, unclear": share([r for r in forgotten if level(r) == "unclear"], forgotten),
            "misses, called consistent": share([r for r in judged if level(r) == "consistent"], judged),
            "misses, called consistent or unclear": share([r for r in judged if level(r) in NO_FAULT], judged),
            "another fault is named": share(
                [r for r in judged if level(r) not in (*RIGHT[r["model"]], *NO_FAULT)], judged
            ),
            "originals that cannot be told": len(untold), "requests whose original is told": sum(told.values()),
        }  # fmt: skip
    return lines


def share(some, of):
    """Count, total and the exact interval of the share."""
    if not of:
        return None
    interval = binomtest(len(some), len(of)).proportion_ci(method="exact")
    return {"count": len(some), "of": len(of), "interval": [round(interval.low, 4), round(interval.high, 4)]}


def main():
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "audit"))
    parser.add_argument("folder")
    parser.add_argument("out", nargs="?")
    parser.add_argument("--data", required=True)
    parser.add_argument("--minilm", required=True)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    {"train": train, "audit": audit_all}[options.command](options)


if __name__ == "__main__":
    main()
