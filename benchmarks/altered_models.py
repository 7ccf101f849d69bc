"""Models that have not forgotten, or only seem to; see known_models.py.

Each function takes a model, which it changes, the datasets of its request, and a retrained model.
"""

import numpy as np
import torch
from known_models_data import batches_of


def head_of_classes(model):
    """The last linear layer."""
    return [
        m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == model.config.num_labels
    ][-1]


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
