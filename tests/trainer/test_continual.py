"""One request after the other on the same model: chained records, no earlier data, and nothing comes back."""

import copy
import gc
import weakref

import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from hf_unlearn import UnlearningArguments, UnlearningTrainer
from hf_unlearn.data.hashing import weights_hash
from hf_unlearn.data.splitting import in_memory
from hf_unlearn.demo import TRAINING, digits_data, digits_model
from hf_unlearn.hub.chain import find_break, record_hash, records_of
from hf_unlearn.hub.record import base_state, read_record, verify
from hf_unlearn.training import train_from_scratch

IMAGES = tiny.samples(tiny.make("vit")[1](30, seed=1))
UNSEEN = tiny.Samples(IMAGES[24:])


def part(first, last):
    return tiny.Samples([{name: torch.as_tensor(value) for name, value in s.items()} for s in IMAGES[first:last]])


def start(folder, model=None, forget=(0, 4), **settings):
    extra = {name: settings.pop(name) for name in ("peft_config", "after", "optimizers") if name in settings}
    args = UnlearningArguments(
        str(folder / "out"), max_steps=2, per_device_train_batch_size=4, report_to="none", disable_tqdm=True,
        use_cpu=True, **settings,
    )  # fmt: skip
    model = tiny.make("vit")[0] if model is None else model
    return UnlearningTrainer(model, part(*forget), part(forget[1], 24), args, unseen_ds=UNSEEN, **extra)


def finish(trainer, saved=True):
    trainer.train()
    if saved:
        trainer.save_release(audit=trainer.audit(resamples=10))
    return trainer


# ---- records ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize(("method", "added"), [("nabla_tau", False), ("orthograd", True)])
def test_records_are_chained(tmp_path, method, added, saved):
    trainer = finish(start(tmp_path, method=method), saved)
    for first in (4, 8):
        trainer = finish(trainer.continue_with(part(first, first + 4), part(first + 4, 24)), saved)
        assert isinstance(trainer.model, PeftModel) == added
    trainer.save_release()
    record = read_record(tmp_path / "out-3" / "unlearning.json")
    one, two, three = records_of(record)
    assert (two["previous"], three["previous"]) == (record_hash(one), record_hash(two)) and "previous" not in one
    assert one["weights"]["after"] == two["weights"]["before"] != two["weights"]["after"] == three["weights"]["before"]
    assert [each["request"]["samples"] for each in (one, two, three)] == [4, 4, 4]
    if saved:
        assert read_record(tmp_path / "out" / "unlearning.json") == one and two["audit"] is not None
    assert str(verify(record, tmp_path / "out-3", part(0, 12))).endswith(
        "samples: all 12 given are among the 12 forgotten samples of 3 requests; "
        "chain: 3 requests, each record follows the one before"
    )
    assert not verify(record, samples=part(8, 14)).matches


def test_broken_chains_are_named(tmp_path):
    trainer = finish(start(tmp_path))
    for first in (4, 8):
        trainer = finish(trainer.continue_with(part(first, first + 4), part(first + 4, 24)))
    record = read_record(tmp_path / "out-3" / "unlearning.json")
    one, two = record["chain"]

    def broken(chain, **changes):
        return str(verify({**record, "chain": chain, **changes}, samples=part(8, 12))).partition("chain: ")[2]

    assert broken([two, one]) == "record 1 of 3 follows a record that is missing"
    assert broken([two]) == "record 1 of 2 follows a record that is missing"
    assert broken([one]) == "record 2 of 2 does not follow record 1 of 2: one of them has changed"
    assert broken([one, two, two]) == "record 3 of 4 follows record 1 of 4: the order has changed"
    changed = {**one, "request": {**one["request"], "id": "x"}}
    assert broken([changed, two]) == "record 2 of 3 does not follow record 1 of 3 ('x'): one of them has changed"
    other = {**record["weights"], "before": "0" * 64}
    assert broken([one, two], weights=other) == "record 3 of 3 begins with other weights than record 2 of 3 ended with"
    for numbers, problem in (
        (["out", "out-2"], None),
        (["out-2", "out"], "record 2 of those given comes before record 1: the order has changed"),
    ):
        given = [tmp_path / number / "unlearning.json" for number in numbers]
        said = verify(record, samples=part(8, 12), earlier=given)
        assert said.matches == (problem is None) and (problem is None or problem in str(said))
    said = verify(one, samples=part(0, 4), earlier=[two])
    assert "record 1 of those given is not in the chain of the last" in str(said)


def test_a_model_from_a_folder_goes_on(tmp_path):
    first = finish(start(tmp_path))
    path = tmp_path / "out" / "unlearning.json"
    model = type(first.model).from_pretrained(tmp_path / "out")
    second = start(tmp_path / "later", model, forget=(4, 8), after=path)
    second.train()
    further = second.continue_with(part(8, 12), part(12, 24))
    assert len(records_of(further.after)) == 2 and find_break(further.after) is None
    assert further.args.output_dir == str(tmp_path / "later" / "out-3")
    with pytest.raises(ValueError, match=r"^after: is not the record of this model \(weights: those from BEFORE"):
        start(tmp_path / "other", tiny.make("vit")[0], forget=(4, 8), after=path)


def test_a_model_saved_in_half_precision_goes_on(tmp_path):
    model = tiny.make("vit")[0].to(torch.bfloat16)
    finish(start(tmp_path, model))
    # By its name it trains in float32: other hashes of the same weights.
    second = start(tmp_path / "later", str(tmp_path / "out"), forget=(4, 8), after=tmp_path / "out/unlearning.json")
    second.train()
    assert second.model.dtype == torch.float32
    assert find_break(second.continue_with(part(8, 12), part(12, 24)).after) is None


def test_samples_that_were_forgotten_are_refused(tmp_path):
    trainer = finish(start(tmp_path), saved=False)
    with pytest.raises(
        ValueError, match=r"^retain_ds: has 2 samples that were forgotten before \(sample 16 by record 1 "
    ):
        trainer.continue_with(part(4, 8), tiny.Samples([*part(8, 24), *part(1, 3)]))
    with pytest.raises(ValueError, match=r"^unseen_ds: has 1 samples that were forgotten before"):
        trainer.continue_with(part(4, 8), part(8, 24), unseen_ds=part(3, 4))
    trainer = finish(trainer.continue_with(part(4, 8), part(8, 24)), saved=False)
    with pytest.raises(ValueError, match=r"\(sample 1 by record 2 of 2\); take them out, they would come back$"):
        trainer.continue_with(part(8, 12), tiny.Samples([*part(12, 13), *part(4, 5)]))


# ---- the run ----------------------------------------------------------------------------------------------------


def test_nothing_is_kept_of_earlier_data(tmp_path):
    trainer = finish(start(tmp_path, method="kl"))
    first = weakref.ref(trainer.forget_ds)
    further = trainer.continue_with(part(4, 8), part(8, 24))
    del trainer
    gc.collect()
    assert first() is None
    finish(further)


def test_a_request_is_a_run_of_its_own(tmp_path):
    trainer = finish(start(tmp_path))
    model = copy.deepcopy(trainer.model)
    record = read_record(tmp_path / "out" / "unlearning.json")
    further = finish(trainer.continue_with(part(4, 8), part(8, 24)))
    anew = finish(start(tmp_path / "anew", model, forget=(4, 8), after=record))
    assert weights_hash(further.model.state_dict()) == weights_hash(anew.model.state_dict())
    assert further.target.value == anew.target.value and further.args.output_dir == str(tmp_path / "out-2")


def test_an_adapter_that_was_added_is_merged_and_a_users_own_goes_on(tmp_path):
    trainer = finish(start(tmp_path, method="orthograd"))
    further = trainer.continue_with(part(4, 8), part(8, 24))
    # Its original model, without the new adapter, has forgotten the first samples.
    assert further.added_adapter and weights_hash(base_state(further.model)) == further.after["weights"]["after"]
    mine = get_peft_model(tiny.make("vit")[0], LoraConfig(r=2, target_modules=["q_proj"]))
    own = finish(start(tmp_path / "own", mine))
    assert own.continue_with(part(4, 8), part(8, 24)).model is mine


def test_what_cannot_go_on_is_refused(tmp_path):
    trainer = start(tmp_path)
    with pytest.raises(RuntimeError, match=r"^continue_with: no run has ended; call train\(\) first"):
        trainer.continue_with(part(4, 8), part(8, 24))
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    trainer = finish(start(tmp_path / "sgd", trainer.model, optimizers=(optimizer, None)), saved=False)
    with pytest.raises(ValueError, match=r"^optimizers: are those of the last run; give optimizer_cls_and_kwargs"):
        trainer.continue_with(part(4, 8), part(8, 24))


def test_what_was_forgotten_stays_forgotten(tmp_path):
    data = digits_data()
    train, unseen, test = (in_memory(data[name]) for name in ("train", "unseen", "test"))
    model, labels = digits_model(), np.array(data["train"]["label"])
    train_from_scratch(model, train, output_dir=str(tmp_path), **{**TRAINING, "num_train_epochs": 12})
    args = UnlearningArguments(
        str(tmp_path / "out"), report_to="none", disable_tqdm=True, use_cpu=True, request="class"
    )
    trainer, left = None, np.arange(len(labels))
    for digit in (3, 5, 8):
        forget, left = left[labels[left] == digit], left[labels[left] != digit]
        sets = [torch.utils.data.Subset(train, numbers.tolist()) for numbers in (forget, left)]
        trainer = UnlearningTrainer(model, *sets, args, unseen_ds=unseen) if trainer is None else (
            trainer.continue_with(*sets)
        )  # fmt: skip
        trainer.train()
    pixels = torch.stack([torch.as_tensor(s["pixel_values"]) for s in [*train, *test]])
    truth = np.array([int(s["label"]) for s in [*train, *test]])
    with torch.no_grad():
        said = trainer.model.eval()(pixel_values=pixels).logits.argmax(-1).numpy()
    right = said == truth
    assert [right[truth == digit].mean() <= 0.02 for digit in (3, 5, 8)] == [True] * 3
    assert right[~np.isin(truth, (3, 5, 8))].mean() > 0.9
