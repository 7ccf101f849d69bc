"""Calls that a type checker refuses, one a line; never run."""

import datasets
from transformers import PreTrainedModel

from hf_unlearn import AuditCallback, UnlearningArguments, UnlearningTrainer, audit, split_forget_retain
from hf_unlearn.data.preprocessing import prepare


def wrong(model: PreTrainedModel, ds: datasets.Dataset) -> None:
    UnlearningArguments("out", request="rows")  # wrong
    UnlearningArguments("out", hinge="cubic")  # wrong
    UnlearningArguments("out", projection="weights")  # wrong
    UnlearningArguments("out", method_kwargs=[0.1])  # wrong
    UnlearningTrainer(3, ds, ds)  # wrong
    UnlearningTrainer(model, 3, ds)  # wrong
    UnlearningTrainer(model, ds, ds, peft_config="lora")  # wrong
    UnlearningTrainer(model, ds, ds, holdout_ds=ds)  # wrong
    audit(model, forget=ds, retain=ds, unseen=ds)  # wrong
    audit(model, forget_ds=3, retain_ds=ds, unseen_ds=ds)  # wrong
    audit(model, forget_ds=ds, retain_ds=ds, unseen_ds=ds, retrained="me/retrained")  # wrong
    split_forget_retain(ds, column=3, values=[1])  # wrong
    UnlearningTrainer(model, ds, ds).push_to_hub(repo_id=7)  # wrong
    prepare(ds, model, 3)  # wrong
    trainer = UnlearningTrainer(model, ds, ds)
    trainer.evaluate(3)  # wrong
    trainer.audit(reference=model)  # wrong
    trainer.audit(retrained=3)  # wrong
    AuditCallback(trainer, reference=model)  # wrong
    trainer.push_to_hub("me/vit", licence="mit")  # wrong
