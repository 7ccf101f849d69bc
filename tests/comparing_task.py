"""A task that trains in a second, for the tests of `compare`."""

import os
from typing import ClassVar

from transformers import ViTConfig, ViTForImageClassification, set_seed

from hf_unlearn.comparing import Task
from hf_unlearn.demo import digits_data


class Small(Task):
    training: ClassVar = {"num_train_epochs": 6, "learning_rate": 3e-3, "per_device_train_batch_size": 64}
    shadows = ()

    def load(self, samples=300):
        return {name: ds.select(range(min(samples, len(ds)))) for name, ds in digits_data(self.seed).items()}

    def build(self, seed):
        set_seed(seed)
        config = ViTConfig(
            image_size=8, patch_size=8, num_channels=1, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=64, num_labels=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        return ViTForImageClassification(config)

    def metrics(self, *models, **settings):
        return super().metrics(*models, resamples=20, **settings)


class Broken(Small):
    """Building its model fails on one seed."""

    def build(self, seed):
        if self.seed == 1:
            raise RuntimeError("no model")
        return super().build(seed)


class Overlapping(Small):
    """Its test samples are some of those that it trains on."""

    def load(self, samples=300):
        loaded = super().load(samples)
        return {**loaded, "test": loaded["train"].select(range(100))}


class Dying(Small):
    """Its process dies when it is asked for the forgetting target, on one seed."""

    training: ClassVar = {**Small.training, "num_train_epochs": 1}

    def target(self, forget, shadows):
        if self.seed == 1:
            os._exit(1)
        return super().target(forget, shadows)


class Shadowed(Small):
    """Its forgetting target comes from a shadow model."""

    shadows = ("shadow",)

    def shadow_samples(self, name, forget):
        return self.datasets["train"].select(range(150))

    def target(self, forget, shadows):
        model = shadows["shadow"]()
        assert not model.training
        return {"forget_target": 1.5, "retain_weight": 0.3}


class Restless(Small):
    """Its samples differ each time that they are loaded."""

    training: ClassVar = {**Small.training, "num_train_epochs": 1}

    def load(self):
        datasets_by_name = super().load()
        return {
            **datasets_by_name,
            "train": datasets_by_name["train"].shuffle(seed=int.from_bytes(os.urandom(4), "big")),
        }


class RestlessShadow(Shadowed):
    """The samples of its shadow model differ each time that they are loaded."""

    def shadow_samples(self, name, forget):
        return self.datasets["train"].shuffle(seed=int.from_bytes(os.urandom(4), "big"))
