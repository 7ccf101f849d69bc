"""Signatures that say the same thing twice, held to each other."""

import inspect

from transformers import Trainer

from hf_unlearn import UnlearningTrainer, audit
from hf_unlearn.auditing.audit import AuditOptions
from hf_unlearn.trainer.hub import CARD_KEYWORDS, CardKeywords


def test_options_of_an_audit_are_its_optional_arguments():
    parameters = inspect.signature(audit).parameters.values()
    assert set(AuditOptions.__annotations__) == {p.name for p in parameters if p.default is not p.empty}


def test_keywords_of_a_card():
    assert set(CardKeywords.__annotations__) == set(CARD_KEYWORDS)


def test_every_argument_of_trainer_is_there_but_the_training_dataset():
    stock, own = (set(inspect.signature(cls.__init__).parameters) for cls in (Trainer, UnlearningTrainer))
    assert stock - own == {"train_dataset"}
