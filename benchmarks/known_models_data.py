"""Tasks, requests and training of the models whose state is known; see known_models.py."""

from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from hf_unlearn import split_forget_retain
from hf_unlearn.data.collator import default_collator
from hf_unlearn.demo import digits_data

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


def batches_of(samples, model):
    """All samples as one batch."""
    columns = [c for c in samples.column_names if c != "annotator"]
    return default_collator(model)([dict(sample) for sample in samples.select_columns(columns)])
