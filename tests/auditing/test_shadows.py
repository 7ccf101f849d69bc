"""Shadow models: what they were trained on, interrupted and shared runs, and the attacks that need them."""

import shutil

import numpy as np
import pytest
import tiny
import torch
from forked import start
from torch.utils.data import ConcatDataset, Subset
from transformers import TrainingArguments, ViTForImageClassification

from hf_unlearn import audit
from hf_unlearn.auditing import shadows as module
from hf_unlearn.auditing.shadows import _train, train_shadows

SIZES = {"forget": 9, "retain": 6, "unseen": 10}


def build(seed):
    torch.manual_seed(seed)
    return tiny.vit()[0]


def make_datasets(sizes=SIZES, seed=1):
    items = [
        {k: torch.as_tensor(v) for k, v in sample.items()}
        for sample in tiny.samples(tiny.images(sum(sizes.values()), seed))
    ]
    starts = np.cumsum([0, *sizes.values()])
    return {name: Subset(items, range(starts[i], starts[i + 1])) for i, name in enumerate(sizes)}


def arguments(**settings):
    quick = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-3}
    return TrainingArguments(**quick, use_cpu=True, disable_tqdm=True, report_to="none", **settings)


def train(folder, count=4, **settings):
    return train_shadows(
        build,
        output_dir=folder,
        args=arguments(),
        **tiny.named(settings.pop("datasets", make_datasets())),
        count=count,
        **settings,
    )


def train_share(index, folder):
    train(folder, process_index=index, num_processes=2)


def weights(shadows):
    return [model.state_dict() for model in shadows.models()]


def assert_equal(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Four shadow models, and where they are; tests that write there take a copy."""
    folder = tmp_path_factory.mktemp("alone") / "shadows"
    return train(folder), folder


def test_every_sample_is_in_exactly_half_of_the_models(alone):
    shadows, folder = alone
    assert len(shadows) == len(shadows.folders) == 4
    for name, size in SIZES.items():
        members = shadows.members[name]
        assert members.shape == (4, size) and members.dtype == bool
        assert (members.sum(0) == 2).all()
        np.testing.assert_array_equal(shadows.unseen[name], ~members)
    # By chance, not always the same half.
    everything = np.concatenate([shadows.members[name] for name in SIZES], axis=1)
    assert len(np.unique(everything, axis=1).T) >= 4 and everything.sum(1).std() > 0
    assert sorted(path.name for path in folder.iterdir()) == ["plan.npz", *(f"shadow-00{i}" for i in range(4))]
    models = list(shadows.models())
    assert all(type(model) is ViTForImageClassification for model in models)
    assert not torch.equal(models[0].classifier.weight, models[1].classifier.weight)


def test_a_model_was_trained_on_its_members_and_on_nothing_else(tmp_path, monkeypatch):
    """The samples that reach the trainer, beside the masks that the attacks go by."""
    seen, whole = [], module._train
    monkeypatch.setattr(
        module, "_train", lambda model, samples, *more: seen.append(list(samples)) or whole(model, samples, *more)
    )
    data = make_datasets()
    shadows = train(tmp_path, datasets=data)
    for model, samples in enumerate(seen):
        chosen = [(name, i) for name in data for i in np.flatnonzero(shadows.members[name][model])]
        expected = [data[name][i]["pixel_values"] for name, i in chosen]
        assert len(samples) == len(expected) > 0
        assert all(
            torch.equal(sample["pixel_values"], pixels) for sample, pixels in zip(samples, expected, strict=True)
        )


def test_a_resumed_run_trains_only_what_is_missing(alone, tmp_path):
    shadows, folder = alone
    again = shutil.copytree(folder, tmp_path / "again")
    shutil.rmtree(again / "shadow-002")
    left = again / ".shadow-002.4711"  # cut off while it was written
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    (left / "config.json").write_bytes(b"{")
    times = {path: path.stat().st_mtime_ns for path in again.rglob("*") if path.is_file() and path.parent != left}
    built = []

    def watched(seed):
        built.append(seed)
        return build(seed)

    resumed = train_shadows(watched, **tiny.named(make_datasets()), output_dir=again, args=arguments(), count=4)
    assert built == [2] and not left.exists()
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert_equal(weights(resumed), weights(shadows))
    assert resumed.members.keys() == shadows.members.keys()
    for name in SIZES:
        np.testing.assert_array_equal(resumed.members[name], shadows.members[name])
    train_shadows(watched, **tiny.named(make_datasets()), output_dir=again, args=arguments(), count=4)
    assert built == [2]


def test_a_run_cut_off_in_training_goes_on(alone, tmp_path):
    def failing(seed):
        if seed == 2:
            raise KeyboardInterrupt
        return build(seed)

    with pytest.raises(KeyboardInterrupt):
        train_shadows(failing, **tiny.named(make_datasets()), output_dir=tmp_path, args=arguments(), count=4)
    assert sorted(path.name for path in tmp_path.glob("shadow*")) == ["shadow-000", "shadow-001"]
    assert_equal(weights(train(tmp_path)), weights(alone[0]))


def test_two_processes_train_what_one_does(alone, tmp_path):
    start(train_share, 2, tmp_path / "together")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "together").rglob("*") if path.is_file()}
    resumed = train(tmp_path / "together")
    assert {path: path.stat().st_mtime_ns for path in times} == times, "not all was there"
    assert_equal(weights(resumed), weights(alone[0]))


def test_a_process_trains_its_share_and_reports_what_is_there(alone, tmp_path):
    first = train(tmp_path, process_index=1, num_processes=2)
    assert [path.name for path in first.folders] == ["shadow-001", "shadow-003"] and len(first) == 2
    for name in SIZES:
        np.testing.assert_array_equal(first.members[name], alone[0].members[name][[1, 3]])
        np.testing.assert_array_equal(first.unseen[name], alone[0].unseen[name][[1, 3]])
    assert_equal(weights(first), weights(alone[0])[1::2])


def test_a_folder_of_other_shadow_models_is_refused(alone, tmp_path):
    folder = shutil.copytree(alone[1], tmp_path / "again")
    other = {**SIZES, "retain": 7}
    turned = {"unseen": 9, "retain": 6, "forget": 10}
    unlearning = {"unlearn": lambda model, forget, retain: model, "forget_share": 0.6, "count": 6}
    changed = [{"datasets": new} for new in (make_datasets(other), make_datasets(turned), make_datasets(seed=2))]
    for settings in ({"seed": 1}, {"count": 6}, *changed, unlearning):
        with pytest.raises(
            ValueError, match=r"output_dir: .*again holds shadow models of other datasets, count, seed"
        ):
            train(folder, **settings)
    assert_equal(weights(train(folder)), weights(alone[0]))


@pytest.mark.parametrize("count", [0, 1, 5, -2])
def test_an_odd_count_is_refused(count, tmp_path):
    with pytest.raises(ValueError, match=f"count: expected an even number of shadow models, got {count}"):
        train(tmp_path / "none", count=count)
    assert not (tmp_path / "none").exists()


def test_nothing_is_printed(tmp_path, capfd):
    train(tmp_path / "some", count=2)
    out, errors = capfd.readouterr()
    assert out == "" and "Training" not in errors and "train_loss" not in errors


def test_the_settings_of_a_run_that_evaluates_and_saves_will_do(tmp_path):
    args = arguments(
        output_dir=str(tmp_path / "runs"), eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
        seed=7,
    )  # fmt: skip
    shadows = train_shadows(build, **tiny.named(make_datasets()), output_dir=tmp_path / "shadows", args=args, count=2)
    assert len(shadows) == 2 and not list(tmp_path.rglob("checkpoint-*"))
    assert (args.seed, args.save_strategy, args.eval_strategy) == (7, "epoch", "epoch")
    assert args.load_best_model_at_end


def test_unlearned_shadow_models_tell_forgotten_retained_and_unseen_samples_apart(tmp_path):
    data, calls = make_datasets(), []

    def unlearn(model, forget, retain):
        calls.append(([sample["pixel_values"] for sample in forget], [sample["pixel_values"] for sample in retain]))
        with torch.no_grad():
            model.classifier.bias.fill_(len(calls))
        return model

    shadows = train(tmp_path, datasets=data, unlearn=unlearn, forget_share=0.6, count=6)
    assert [model.classifier.bias[0].item() for model in shadows.models()] == [1, 2, 3, 4, 5, 6]
    assert len(calls) == 6
    for model, (forget, retain) in enumerate(calls):
        samples = {"forgotten": [], "retain": [], "unseen": []}
        for name in SIZES:
            members, unseen = shadows.members[name][model], shadows.unseen[name][model]
            assert not (members & unseen).any()
            for sample, forgotten, never in zip(data[name], members, unseen, strict=True):
                samples["forgotten" if forgotten else "unseen" if never else "retain"].append(sample["pixel_values"])
        for expected, got in ((samples["forgotten"], forget), (samples["retain"], retain)):
            assert len(expected) == len(got) > 0
            assert all(torch.equal(one, other) for one, other in zip(expected, got, strict=True))
    everything = [
        np.concatenate([masks[name] for name in SIZES], axis=1) for masks in (shadows.members, shadows.unseen)
    ]
    assert (everything[1].sum(0) == 3).all() and (everything[0].sum(0) == 2).all()
    assert everything[0].sum(1).std() > 0  # by chance


@pytest.mark.parametrize(
    ("count", "share", "advice"),
    [
        (16, 0.1, "0.1 of the 8 models .* makes 1 that forget it; .*: use count=30, or forget_share=0.25$"),
        (4, 0.5, "0.5 of the 2 models .* makes 1 that forget it; .*: use count=6$"),
        (6, 0.95, "0.95 of the 3 models .* makes 3 that forget it; .*: use count=22, or forget_share=0.67$"),
        (16, 1.0, "must lie between 0 and 1, got 1.0"),
    ],
)
def test_too_few_models_that_forget_a_sample_are_refused_before_training(count, share, advice, tmp_path):
    with pytest.raises(ValueError, match=f"^forget_share: {advice}"):
        train(tmp_path / "none", count=count, unlearn=lambda model, forget, retain: model, forget_share=share)
    assert not (tmp_path / "none").exists()
    if advice.endswith("$"):
        for number, of_it in ((int(advice.split("count=")[1].rstrip("$").split(",")[0]), share), (16, 0.25)):
            assert 2 <= module._forgetting_models(number, of_it) < number // 2


@pytest.fixture(scope="module")
def memorised(tmp_path_factory):
    """Models that memorised random labels, without those of the unseen samples; shadow models on the same datasets."""
    data = make_datasets({"forget": 20, "retain": 6, "unseen": 20}, seed=5)
    args = arguments()
    args.num_train_epochs, args.learning_rate, args.per_device_train_batch_size = 25, 1e-2, 12
    shadows = train_shadows(
        build, **tiny.named(data), output_dir=tmp_path_factory.mktemp("shadows"), args=args, count=6
    )
    train_ds = [data["forget"], data["retain"]]
    original, retrained = (
        _train(build(90), ConcatDataset(samples), args, 90, None) for samples in (train_ds, [data["retain"]])
    )
    return data, shadows, original, retrained


def test_an_audit_with_shadow_models_finds_what_was_memorised(memorised):
    data, shadows, original, retrained = memorised
    for model, remembers in ((original, True), (retrained, False)):
        metrics = audit(model, **tiny.named(data), shadows=shadows, resamples=100).metrics
        for attack in ("lira", "rmia"):
            low, value, high = (metrics[f"mia_{attack}_auc{end}"] for end in ("_low", "", "_high"))
            assert low <= value <= high
            assert (value > 0.85 and low > 0.7) if remembers else low <= 0.5 <= high, (attack, remembers, metrics)
    assert "mia_lira_auc" not in audit(original, **tiny.named(data), resamples=2).metrics


def test_an_audit_with_unlearned_shadow_models(tmp_path):
    data = make_datasets({"forget": 8, "retain": 2, "unseen": 16}, seed=5)
    shadows = train(tmp_path, count=6, datasets=data, unlearn=lambda model, forget, retain: model, forget_share=0.6)
    metrics = audit(build(0), **tiny.named(data), shadows=shadows, resamples=2).metrics
    assert 0 <= metrics["mia_lira_auc"] <= 1 and 0 <= metrics["mia_rmia_auc"] <= 1


def test_an_audit_of_other_datasets_than_those_of_the_shadow_models_is_refused(alone):
    for name, size, count in (("forget", 8, 9), ("unseen", 11, 10)):
        with pytest.raises(ValueError, match=f"shadows: know {count} {name} samples, the dataset has {size}; give"):
            audit(build(0), **tiny.named(make_datasets({**SIZES, name: size})), shadows=alone[0], resamples=2)
    others = {name: list(samples)[::-1] for name, samples in make_datasets().items()}
    with pytest.raises(
        ValueError, match="shadows: know other forget samples than the dataset has; give train_shadows the"
    ):
        audit(build(0), **tiny.named(others), shadows=alone[0], resamples=2)
