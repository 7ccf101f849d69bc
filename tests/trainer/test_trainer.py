"""The trainer: the gradient that the optimizer gets, determinism, resume, logging, saving."""

import copy
import math

import pytest
import torch
from gradients import Gradients
from tiny import make, samples
from transformers import BatchEncoding, BatchFeature, TrainerCallback

from hf_unlearn import UnlearningArguments, UnlearningTrainer
from hf_unlearn.methods import METHODS
from hf_unlearn.trainer import guard
from hf_unlearn.trainer.surgery_step import SurgeryStep


def gradients(unlearn, batch, accumulation, **settings):
    kept = Gradients()
    trainer = unlearn(
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_grad_norm=0.0,
        dtype=torch.float64, callbacks=[kept], folder=f"{batch}x{accumulation}", **settings,
    )  # fmt: skip
    trainer.train()
    return kept.steps, trainer


def largest_difference(one, other):
    assert len(one) == len(other) > 0
    errors = []
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys() and a
        scale = max(float(g.norm()) for g in a.values())
        errors.append(max(float((a[n] - b[n]).norm()) for n in a) / scale)
    return max(errors)


def several_labels():
    """A ViT that decides on each of three labels by itself."""
    model = make("vit")[0]
    model.config.problem_type = "multi_label_classification"
    return model


CASES = [
    ("nabla_tau", {}),
    ("nabla_tau", {"forget_target": "mean"}),
    ("nabla_tau", {"forget_target": 9.0, "hinge": "linear"}),
    ("nabla_tau", {"forget_target": "masked_class", "request": "class"}),
    ("nabla_tau", {"model": several_labels(), "request": "class"}),
    ("nabla_tau", {"name": "gpt2"}),
    ("orthograd", {}),
    ("orthograd", {"name": "gpt2"}),
    ("orthograd", {"forgetting_loss": "grad_ascent", "projection_scope": "tensor"}),
    ("orthograd_adam", {}),
    ("nabla_tau_images", {}),
    ("grad_ascent", {}),
    ("grad_diff", {}),
    ("finetune", {}),
    ("neggrad_plus", {}),
    ("random_label", {}),
    ("bad_teacher", {}),
    ("scrub", {}),
    ("salun", {}),
    ("msg", {}),
    ("undo", {}),
    # Attention's key bias has no gradient but rounding, and the penalty looks at its sign: a model without.
    ("l1_sparse", {"name": "resnet"}),
    *(
        (method, {"name": "gpt2"})
        for method in ("npo", "simnpo", "wga", "satimp", "ceu", "kl", "undial", "rmu", "idk_dpo")
    ),
]


# No weight can matter ten times more to the forget samples than to all samples where they are over a tenth of them.
SETS = {"ssd": {"forget": 1, "retain": 30}}


@pytest.mark.parametrize(("method", "settings"), CASES)
def test_accumulation_changes_nothing(unlearn, method, settings):
    def one_class(forget, retain, unseen):
        if settings.get("request") == "class":
            labels = torch.tensor([0, 1, 1])
            if "model" in settings:  # all have the first label, and some the third
                labels = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
            for dataset, label in zip((forget, retain, unseen), labels, strict=True):
                dataset.items = [{**sample, "labels": label} for sample in dataset.items]
        return forget, retain, unseen

    found = {
        (batch, parts): gradients(unlearn, batch, parts, method=method, sets=one_class, **copy.deepcopy(settings))[0]
        for batch, parts in ((8, 1), (2, 4), (1, 8))
    }
    for split in ((2, 4), (1, 8)):
        assert largest_difference(found[8, 1], found[split]) < 1e-10


def test_orthograd_gets_the_gradient_of_the_paper(unlearn):
    """Against the formula on gradients of single samples, in the second step (LoRA's A has no gradient before)."""
    kept = Gradients()
    trainer = unlearn(
        "vit", method="orthograd", forgetting_loss="grad_ascent", retain_weight=0.3, dtype=torch.float64,
        max_grad_norm=0.0, callbacks=[kept], lr_scheduler_type="constant", stop_at_target=False,
    )  # fmt: skip
    seen = []

    class Spy(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append(copy.deepcopy(trainer.model))

    trainer.add_callback(Spy())
    trainer.train()
    model, data = seen[1].eval(), trainer.train_dataset
    pairs = [data[p] for p in range(4, 8)]

    def gradient(sample):
        model.zero_grad()
        batch = trainer.data_collator([sample])
        model(**batch).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    forget = [gradient(pair.forget) for pair in pairs]
    retain = [gradient(sample) for pair in pairs for sample in pair.retain]
    ascend = {n: -torch.stack([g[n] for g in forget]).mean(0) for n in forget[0]}
    basis = {n: torch.stack([g[n].flatten() for g in retain]) for n in ascend}
    matrix = torch.cat(list(basis.values()), 1).T
    q, _ = torch.linalg.qr(matrix)
    vector = torch.cat([g.flatten() for g in ascend.values()])
    expected = 0.7 * (vector - q @ (q.T @ vector)) + 0.3 * matrix.mean(1)
    found = torch.cat([kept.steps[1][n].flatten() for n in ascend])
    assert float((found - expected).norm() / expected.norm()) < 1e-8
    left = found - 0.3 * matrix.mean(1)
    cosines = (matrix.T @ left) / (matrix.norm(dim=0) * left.norm())
    assert cosines.abs().max() < 1e-5


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_same_run_twice_is_bitwise_equal(unlearn, method):
    states = []
    for folder in ("one", "two"):
        name = "gpt2" if "causal_lm" in METHODS[method].head_kinds else "vit"
        trainer = unlearn(name, method=method, max_steps=3, folder=folder, **SETS.get(method, {}))
        trainer.train()
        states.append(trainer.model.state_dict())
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


@pytest.mark.parametrize(
    ("name", "method", "settings"),
    [
        ("vit", "nabla_tau", {}),
        ("vit", "nabla_tau", {"forget_target": "mean", "gradient_accumulation_steps": 2}),
        ("vit", "orthograd", {}),
        ("whisper", "orthograd", {}),
        ("gpt2", "nabla_tau", {}),
        ("bert", "grad_diff", {}),
        ("vit", "random_label", {"stop_at_target": False}),
        ("gpt2", "npo", {"stop_at_target": False}),
        ("gpt2", "kl", {"stop_at_target": False}),
        ("gpt2", "rmu", {"stop_at_target": False}),
        ("gpt2", "idk_dpo", {"stop_at_target": False}),
        ("vit", "salun", {"stop_at_target": False, "weight_decay": 0.1}),
        ("vit", "msg", {"stop_at_target": False}),
        ("vit", "undo", {"stop_at_target": False}),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted_bitwise(unlearn, name, method, settings):
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                control.should_training_stop = True

    # 10 retain samples, batches of 4: the interruption comes in the second epoch.
    common = {"method": method, "max_steps": 7, "save_strategy": "steps", "save_steps": 4, **settings}
    whole = unlearn(name, folder="whole", **common)
    whole.train()
    unlearn(name, folder="parts", callbacks=[Interrupt()], **common).train()
    resumed = unlearn(name, folder="parts", **common)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 7
    one, two = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert resumed.unlearning_state.metrics_before == whole.unlearning_state.metrics_before


def test_best_model_is_loaded_right(unlearn):
    trainer = unlearn(
        "vit", max_steps=4, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1,
        load_best_model_at_end=True, metric_for_best_model="eval_retain_loss", greater_is_better=False,
    )  # fmt: skip
    trainer.train()
    losses = {e["step"]: e["eval_retain_loss"] for e in trainer.state.log_history if "eval_retain_loss" in e}
    assert trainer.state.best_global_step == min(losses, key=losses.get)
    assert trainer.evaluate()["eval_retain_loss"] == pytest.approx(min(losses.values()), abs=1e-7)


def test_logs_say_what_happens(unlearn):
    trainer = unlearn(method="orthograd", max_steps=3, retain=12)
    trainer.train()
    entry = next(e for e in trainer.state.log_history if "loss" in e)
    assert {
        "forget_loss",
        "retain_loss",
        "target",
        "retain_weight",
        "surviving_share",
        "effective_rank",
    } <= entry.keys()
    assert entry["retain_weight"] == 0.5 and 0 < entry["surviving_share"] <= 1 and entry["effective_rank"] == 4
    assert entry["target"] == pytest.approx(trainer.unlearning_state.metrics_before["unseen_loss"], rel=1e-6)
    distance = trainer.target.combine(torch.zeros(4)).item()
    assert math.isfinite(distance)


def test_the_logged_loss_is_the_objective(unlearn):
    trainer = unlearn(
        method="nabla_tau", forget_target=9.0, max_steps=1, gradient_accumulation_steps=2, retain_weight=0.25
    )
    trainer.train()
    entry = next(e for e in trainer.state.log_history if "loss" in e)
    expected = 0.75 * (9.0 - entry["forget_loss"]) ** 2 + 0.25 * entry["retain_loss"]
    assert entry["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_number_of_steps_follows_the_data(unlearn):
    def steps(name="vit", **settings):
        return unlearn(name, retain=40, max_steps=-1, **settings).args.max_steps

    assert steps(per_device_train_batch_size=1) == 40  # 2.5 times the sixteen in which the target should be reached
    assert steps(per_device_train_batch_size=1, method="finetune") == 160  # four passes over 40 samples
    assert steps("gpt2", per_device_train_batch_size=1, method="npo") == 40
    assert steps(per_device_train_batch_size=1, forget=20) == 50  # a pass over 20 samples, 2.5 times
    assert steps(per_device_train_batch_size=1, forget=20, gradient_accumulation_steps=2) == 40


@pytest.mark.parametrize("method", ["nabla_tau", "orthograd", "grad_diff"])
def test_a_target_from_unseen_data_stays(unlearn, method):
    trainer = unlearn(method=method, retain=12, max_steps=20, stop_at_target=False)
    trainer.train()
    targets = [e["target"] for e in trainer.state.log_history if "target" in e]
    assert len(targets) == 20 and len(set(targets)) == 1
    fixed = unlearn(method=method, max_steps=20, stop_at_target=False, forget_target=[1.0, 2.0])
    fixed.train()
    assert {e["target"] for e in fixed.state.log_history if "target" in e} == {1.5}


@pytest.mark.parametrize(("forget", "retain", "batch"), [(2, 9, 4), (9, 2, 4), (1, 1, 3)])
def test_sets_of_any_size(unlearn, forget, retain, batch):
    trainer = unlearn(
        forget=forget, retain=retain, per_device_train_batch_size=batch, max_steps=-1, num_train_epochs=1
    )
    trainer.train()
    assert trainer.state.global_step == math.ceil(max(forget, retain) / batch)


def test_retain_batch_size(unlearn):
    trainer = unlearn(per_device_train_batch_size=2, retain_batch_size=5)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["forget"]["labels"].shape[0] == 2 and batch["retain"]["labels"].shape[0] == 5


def test_default_batches_fit_model_and_data(unlearn, tmp_path):
    """A step takes a quarter of the forget set at most, of many tokens fewer; what the user says stands.

    And no more than is worth it: where training again takes few passes, the planned steps cost a part of these.
    """

    def batches(name="vit", forget=80, retain=40, batch=None, passes=1000, **settings):
        settings |= {"training_passes": passes, "per_device_train_batch_size": batch}
        trainer = unlearn(name, forget=forget, retain=retain, **settings)
        pair = next(iter(trainer.get_train_dataloader()))
        return tuple(len(pair[side]["labels"]) for side in ("forget", "retain"))

    assert batches() == (20, 20) and batches(forget=140, retain=30) == (32, 30)
    assert batches("gpt2", forget=80) == (16, 16) and batches("gpt2", forget=5, retain=9) == (4, 4)
    assert batches(forget=80, gradient_accumulation_steps=4) == (5, 5) and batches(forget=3) == (3, 4)
    assert batches(forget=20, retain_batch_size=50) == (5, 50)
    assert batches(forget=10, retain=3, gradient_accumulation_steps=4) == (1, 1)
    assert batches(forget=20, batch=32) == (32, 32) and batches("gpt2", batch=32) == (32, 32)

    assert batches(forget=80, retain=640, passes=3) == (9, 9) and batches(retain=640, passes=None) == (9, 9)
    assert batches(retain=640, passes=4) == (12, 12) and batches(passes=3) == (4, 4)

    def settled(args, forget, retain):
        data = unlearn(forget=forget, retain=retain)
        found = UnlearningTrainer(data.model, data.forget_ds, data.retain_ds, args, unseen_ds=data.unseen_ds).args
        return found, (found.per_device_train_batch_size, found.effective_retain_batch_size)

    args = UnlearningArguments(str(tmp_path), report_to="none", use_cpu=True, training_passes=1000)
    used, sizes = settled(args, 20, 40)
    assert sizes == (5, 5) and (args.per_device_train_batch_size, args.effective_retain_batch_size) == (64, 64)
    assert settled(used, 30, 50)[1] == (8, 8)
    assert settled(args.set_dataloader(train_batch_size=8), 20, 40)[1] == (8, 8)


def test_a_survey_goes_through_each_set_in_batches_of_its_own(unlearn):
    survey = unlearn(forget=3, retain=20, per_device_train_batch_size=3, retain_batch_size=10)._calibration_pass()
    sizes = {name: [len(batch["labels"]) for batch in survey.batches(name)] for name in ("forget", "retain")}
    assert sizes == {"forget": [3], "retain": [10, 10]}


def test_weight_decay_is_off_on_the_projected_part(unlearn):
    for method, decays in (("orthograd", False), ("nabla_tau", True)):
        trainer = unlearn(method=method, weight_decay=0.1)
        groups = trainer.create_optimizer().param_groups
        assert any(g["weight_decay"] > 0 and g["params"] for g in groups) == decays


def test_stops_at_the_target_and_at_the_guard(unlearn, caplog):
    trainer = unlearn(method="grad_diff", forget_target=2.5, learning_rate=1e-2, max_steps=200, logging_steps=200)
    trainer.train()
    assert trainer.state.global_step < 200
    assert trainer.unlearning_metrics()["forget_loss"] >= 2.5
    trainer = unlearn(method="grad_ascent", forget_target=1e9, learning_rate=1e-2, max_steps=200, logging_steps=200)
    trainer.train()
    assert trainer.state.global_step < 200 and "the retain loss rose from" in caplog.text
    trainer = unlearn(method="grad_diff", forget_target=0.0, max_steps=6, stop_at_target=False)
    trainer.train()
    assert trainer.state.global_step == 6


def test_dropout_is_off_and_batchnorm_frozen(unlearn):
    model, _ = make("resnet")
    before = {n: b.clone() for n, b in model.named_buffers()}
    trainer = unlearn("resnet", model=model)
    trainer.train()
    assert all(torch.equal(before[n], b) for n, b in trainer.model.named_buffers())
    model, _ = make("bert")
    assert model.config.hidden_dropout_prob > 0
    one = unlearn("bert", model=copy.deepcopy(model), folder="a", seed=1, data_seed=0)
    two = unlearn("bert", model=copy.deepcopy(model), folder="b", seed=2, data_seed=0)
    one.train(), two.train()
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))


def test_activation_checkpointing_changes_nothing(unlearn):
    # Older releases of transformers say gradient_checkpointing.
    new = hasattr(UnlearningArguments, "activation_checkpointing")
    name = "activation_checkpointing" if new else "gradient_checkpointing"
    models, calls = {}, {False: 0, True: 0}
    for flag in (False, True):
        settings = {name: flag, f"{name}_kwargs": {"use_reentrant": False}}
        trainer = unlearn("bert", folder=str(flag), **settings)

        def count(*_, flag=flag):
            calls[flag] += torch.is_grad_enabled()

        trainer.model.bert.encoder.layer[0].attention.register_forward_hook(count)
        trainer.train()
        models[flag] = trainer.model
    assert calls[True] == 2 * calls[False] > 0  # once forward, and once more on the way back
    pairs = zip(models[False].parameters(), models[True].parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_evaluate_has_the_figures_and_the_users_own(unlearn):
    model, batch = make("vit")
    flat = samples(batch(5, seed=9))
    trainer = unlearn(
        model=model, forget=12, retain=12, unseen=12, eval_dataset={"extra": flat},
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )  # fmt: skip
    found = trainer.evaluate()
    assert {"eval_extra_loss", "eval_extra_accuracy", "eval_forget_loss", "eval_retain_accuracy", "eval_unseen_loss",
            "eval_mia_accuracy"} <= found.keys()  # fmt: skip
    with torch.no_grad():
        outputs = model.eval()(**trainer.data_collator(trainer.forget_ds.items))
    assert found["eval_forget_loss"] == pytest.approx(outputs.loss.item(), rel=1e-5)
    assert "eval_forget_loss" not in trainer.evaluate(flat)
    assert trainer.predict(flat).predictions.shape[0] == 5


def test_the_seed_fixes_the_adapter_whatever_was_drawn_before(unlearn):
    found = []
    for drawn, seed in ((0, 3), (5, 3), (0, 4)):
        torch.manual_seed(7)
        model, _ = make("vit")
        torch.rand(drawn)
        found.append(unlearn(model=model, method="orthograd", seed=seed).model.state_dict())
    names = [name for name in found[0] if "lora_A" in name]
    assert names and all(torch.equal(found[0][name], found[1][name]) for name in names)
    assert not any(torch.equal(found[0][name], found[2][name]) for name in names)


def test_model_init_and_user_optimizer(unlearn):
    def fresh():
        return make("vit")[0]

    trainer = unlearn(model=fresh(), method="orthograd")
    from hf_unlearn import UnlearningTrainer

    again = UnlearningTrainer(None, trainer.forget_ds, trainer.retain_ds, trainer.args, unseen_ds=trainer.unseen_ds,
                              model_init=fresh)  # fmt: skip
    again.train()
    trainer.train()
    assert isinstance(trainer.step, SurgeryStep)
    one, two = trainer.model.state_dict(), again.model.state_dict()
    assert one.keys() == two.keys()


def test_word_error_rates_by_generation(unlearn):
    import jiwer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(40)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2")
    trainer = unlearn(
        "whisper", predict_with_generate=True, generation_max_length=8, generation_num_beams=1,
        processing_class=tokenizer,
    )  # fmt: skip
    found = trainer.evaluate()
    references, predictions = [], []
    for sample in trainer.forget_ds.items:
        batch = trainer.data_collator([sample])
        tokens = trainer.model.generate(input_features=batch["input_features"], max_length=8, num_beams=1)
        labels = [i for i in batch["labels"][0].tolist() if i != -100]
        references.append(tokenizer.decode(labels, skip_special_tokens=True))
        predictions.append(tokenizer.decode(tokens[0], skip_special_tokens=True))
    assert found["eval_forget_wer"] == pytest.approx(jiwer.wer(references, predictions))
    assert {"eval_retain_wer", "eval_unseen_wer"} <= found.keys()


def test_a_bfloat16_run_trains(unlearn):
    for method in ("nabla_tau", "orthograd"):
        trainer = unlearn("bert", method=method, bf16=True, folder=method)
        before = {n: p.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.train()
        moved = [n for n, p in trainer.model.named_parameters() if p.requires_grad and not torch.equal(p, before[n])]
        assert len(moved) > len(before) / 2 and all(p.isfinite().all() for p in trainer.model.parameters())


def test_weights_in_half_precision_are_named(unlearn, caplog):
    unlearn("llama", dtype=torch.bfloat16)
    assert "model: what trains is torch.bfloat16, in which small steps are lost to rounding; load it" in caplog.text
    caplog.clear()
    unlearn("llama", dtype=torch.bfloat16, method="orthograd")  # the adapter is float32
    assert "rounding" not in caplog.text


def test_the_guard_compares_a_sample_with_itself(unlearn, monkeypatch):
    monkeypatch.setattr(guard, "RETAIN_GUARD", 1e-4)
    settings = {"method": "grad_diff", "learning_rate": 1e-12, "forget_target": 1e9, "max_steps": 6}
    trainer = unlearn(**settings, save_steps=5, save_strategy="steps")
    trainer.train()
    assert trainer.state.global_step == 6
    again = unlearn(**settings)
    again.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-5")
    assert again.unlearning_state.metrics_before == trainer.unlearning_state.metrics_before


# DDP waits for these, unless it is told that they may go unused.
UNUSED = {"vit": set(), "dinov2": {"dinov2.embeddings.mask_token"}, "wav2vec2": {"wav2vec2.masked_spec_embed"}}


@pytest.mark.parametrize("name", UNUSED)
def test_parameters_without_use_are_found(unlearn, name):
    assert unlearn(name)._unused_parameters() == UNUSED[name]
    assert unlearn(name, method="orthograd")._unused_parameters() == set()  # adapters are where the layers are


def test_a_target_that_is_measured_again_is_the_one_that_is_descended(unlearn):
    trainer = unlearn(retain=14, method="nabla_tau_text", max_steps=10, learning_rate=1e-2)
    trainer.train()
    targets = [entry["target"] for entry in trainer.state.log_history if "target" in entry]
    assert len(set(targets)) > 1  # every five passes over the forget dataset
    assert trainer.step.objective is trainer.target


@pytest.mark.parametrize("method", ["nabla_tau", "orthograd", "npo", "kl"])
@pytest.mark.parametrize("batch_class", [BatchEncoding, BatchFeature])
def test_batches_of_the_collators_of_transformers(unlearn, method, batch_class):
    """`DataCollatorWithPadding` gives a BatchEncoding, a feature extractor's `pad` a BatchFeature: no dicts."""
    plain = unlearn("gpt2", method=method, max_steps=2)
    collator = plain.data_collator
    wrapped = unlearn("gpt2", method=method, max_steps=2, data_collator=lambda batch: batch_class(collator(batch)))
    for trainer in (plain, wrapped):
        trainer.train()
    for name, weight in plain.model.state_dict().items():
        torch.testing.assert_close(wrapped.model.state_dict()[name], weight, rtol=0, atol=0)
    assert wrapped.evaluate()["eval_forget_loss"] == plain.evaluate()["eval_forget_loss"]


@pytest.mark.parametrize("method", ["nabla_tau", "grad_diff"])
def test_forget_samples_have_left_the_graph_before_retain_samples_run(unlearn, method):
    """Half of the activations at a time: the gradient of the forget samples is there when retain samples run."""
    had_gradient = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            def note(module, given):
                had_gradient.append(any(p.grad is not None for p in model.parameters()))

            self.handle = model.register_forward_pre_hook(note)

        def on_step_end(self, *args, **kwargs):
            self.handle.remove()

    unlearn(method=method, max_steps=2, callbacks=[Watch()], stop_at_target=False).train()
    assert had_gradient == [False, True] * 2
