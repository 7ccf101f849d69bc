"""Code of a user of the library, as the README has it: checked by mypy in strict mode, never run."""

import datasets
import torch
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForImageClassification,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_unlearn import (
    AuditCallback,
    AuditReport,
    UnlearningArguments,
    UnlearningTrainer,
    audit,
    split_forget_retain,
    train_shadows,
)
from hf_unlearn.hub.record import verify
from hf_unlearn.methods import METHODS, Method
from hf_unlearn.targets import Ascent, ForgetTarget, Objective


class Pixels(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.zeros(1, 8, 8), "labels": torch.tensor(index)}


def shortest(model: PreTrainedModel, train_ds: datasets.Dataset) -> None:
    forget_ds, retain_ds = split_forget_retain(train_ds, column="label", values=[3])
    trainer = UnlearningTrainer(model, forget_ds, retain_ds)
    trainer.train()
    trainer.push_to_hub("me/model-that-forgot")


def every_way_to_split(train_ds: datasets.Dataset) -> None:
    split_forget_retain(train_ds, fraction=0.1, stratify_by="label", seed=1)
    split_forget_retain(train_ds, indices=[1, 2, 3], request="samples")
    split_forget_retain(Pixels(), where=lambda sample: bool(sample["labels"] == 3), request="class")


def whole(
    model: PreTrainedModel,
    original: PreTrainedModel,
    retrained: PeftModel,
    train_ds: datasets.Dataset,
    unseen_ds: datasets.Dataset,
    test_ds: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
) -> AuditReport:
    forget_ds, retain_ds = split_forget_retain(train_ds, column="speaker", values=["a", "b"])
    args = UnlearningArguments(
        "out", method="npo", method_kwargs={"beta": 0.2}, retain_weight=0.7, request="group", forget_target=2.5,
        hinge="linear", projection="update", projection_scope="tensor", gram_cache="keep", max_steps=50, bf16=True,
    )  # fmt: skip
    trainer = UnlearningTrainer(
        model, forget_ds, retain_ds, args, unseen_ds=unseen_ds, eval_dataset={"test": test_ds},
        processing_class=tokenizer, peft_config=LoraConfig(r=4), callbacks=[EarlyStoppingCallback()],
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1}),
        compute_metrics=lambda prediction: {"count": len(prediction.predictions)},
    )  # fmt: skip
    trainer.add_callback(AuditCallback(trainer, unseen_ds=test_ds, retrained=retrained))
    output = trainer.train(resume_from_checkpoint=False)
    print(output.metrics["forget_loss"], trainer.unlearning_metrics()["retain_accuracy"])
    trainer.save_model("out")
    trainer.save_release("out", forget_request="Everything of speaker a.")
    trainer.push_to_hub("me/whisper", commit_message="Forget", private=True, token=None, create_pr=True)
    report = audit(
        trainer.model, forget_ds=forget_ds, retain_ds=retain_ds, unseen_ds=test_ds, original=original,
        retrained=retrained, relearning=True,
    )  # fmt: skip
    print(report.verdict["sentence"], report.metrics["mia_loss_auc"], report.metrics_by_model["retrained"]["gap"])
    report.to_html("audit.html")
    report.to_json("audit.json")
    return trainer.audit(unseen_ds=test_ds, retrained=retrained, group_column="speaker")


def by_name(forget_ds: Pixels, retain_ds: Pixels) -> None:
    trainer = UnlearningTrainer("me/vit", forget_ds, retain_ds, UnlearningArguments("out", forget_target=[0.1, 0.2]))
    trainer.train()
    model = AutoModelForImageClassification.from_pretrained("me/vit")
    UnlearningTrainer(None, forget_ds, retain_ds, model_init=lambda: model)
    matches: bool = verify("out/unlearning.json", model="out", samples=forget_ds).matches
    print(matches)


class MyGradDiff(Method):
    """Descend `alpha L_r - (1 - alpha) L_f`."""

    name, title, paper = "my_grad_diff", "gradient difference", "Liu et al. 2022, arXiv 2203.12817"
    learning_rate, default_retain_weight = 3e-5, 0.9

    def objective(self, target: ForgetTarget, original: torch.Tensor | None) -> Objective:
        return Ascent()


METHODS[MyGradDiff.name] = MyGradDiff
SHADOWS = train_shadows
