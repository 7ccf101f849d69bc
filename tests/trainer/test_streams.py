"""Runs whose retain samples come from a stream."""

import logging

import datasets
import pytest
import torch
from tiny import make

from hf_unlearn.data.streaming import SamplesToForget, StreamReader


def stream(samples, parts=1):
    def read(parts):
        for part in parts:
            yield from samples[part]

    size = -(-len(samples) // parts)
    slices = [slice(i * size, (i + 1) * size) for i in range(parts)]
    return datasets.IterableDataset.from_generator(read, gen_kwargs={"parts": slices})


def streamed(among=(), parts=1, shuffle=False):
    """The datasets of the fixture, with the retain samples as a stream, and forget samples among them."""

    def sets(forget_ds, retain_ds, unseen_ds):
        samples = [retain_ds[i] for i in range(len(retain_ds))]
        for number in among:
            samples.insert(3 + number, forget_ds[number])
        retain = stream(samples, parts)
        return forget_ds, retain.shuffle(seed=1, buffer_size=4) if shuffle else retain, unseen_ds

    return sets


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


RUN = {"max_steps": 6, "retain_batch_size": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-3}


@pytest.mark.parametrize("method", ["nabla_tau", "orthograd"])
def test_a_forget_sample_in_the_stream_is_never_trained_on(unlearn, caplog, method, monkeypatch):
    clean = unlearn(sets=streamed(), method=method, folder="clean", **RUN)
    clean.train()
    assert "came along" not in caplog.text
    mixed = unlearn(sets=streamed(among=(0, 2)), method=method, folder="mixed", **RUN)
    mixed.train()
    assert equal(weights(clean), weights(mixed))
    # 24 retain samples of passes of 10: two whole passes, and four samples.
    assert caplog.text.count("retain_ds: samples to forget came along in the stream 5 times") == 1
    monkeypatch.setattr(SamplesToForget, "__contains__", lambda self, sample: False)
    with pytest.raises(ValueError, match=r"^forget_ds and retain_ds share 2 samples"):  # of the head
        unlearn(sets=streamed(among=(0, 2)), method=method, folder="shared", **RUN)


def test_far_down_in_the_stream_too(unlearn, monkeypatch):
    monkeypatch.setattr("hf_unlearn.data.streaming.HEAD_SAMPLES", 2)
    clean, mixed = (unlearn(sets=streamed(among), folder=f"{len(among)}", **RUN) for among in ((), (1,)))
    clean.train()
    mixed.train()
    assert equal(weights(clean), weights(mixed))
    monkeypatch.setattr(SamplesToForget, "__contains__", lambda self, sample: False)
    unprotected = unlearn(sets=streamed((1,)), folder="unprotected", **RUN)
    unprotected.train()
    assert not equal(weights(clean), weights(unprotected))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["plain", "shards", "shuffled"])
def test_a_run_is_resumed_in_the_middle_of_a_stream(unlearn, tmp_path, kind, workers):
    sets = streamed(among=(0,), parts=2 if kind == "shards" else 1, shuffle=kind == "shuffled")
    settings = {**RUN, "sets": sets, "save_steps": 3, "dataloader_num_workers": workers, "method": "nabla_tau"}
    whole = unlearn(**settings)
    whole.train()
    assert whole._stream_readers == (2 if kind == "shards" and workers else 1)
    resumed = unlearn(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert equal(weights(resumed), weights(whole))
    assert resumed._pairs.skipped == whole._pairs.skipped > 0


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_resumed_run_does_not_go_through_the_stream_again(unlearn, tmp_path, shuffle, monkeypatch):
    settings = {**RUN, "sets": streamed(shuffle=shuffle), "save_steps": 3}
    unlearn(**settings).train()
    resumed, taken = unlearn(**settings), []
    following = StreamReader._next
    monkeypatch.setattr(StreamReader, "_next", lambda self: taken.append(self.place) or following(self))
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert taken == list(range(12, 24))


def test_after_earlier_requests_a_stream_is_refused(unlearn):
    first = unlearn(**RUN)
    first.train()
    with pytest.raises(ValueError, match=r"^retain_ds: is a stream, in which samples that were forgotten before"):
        first.continue_with(first.forget_ds, stream([first.retain_ds[0]]))


def test_a_stream_of_other_parts_or_samples_is_no_resumed_run(unlearn, tmp_path):
    settings = {**RUN, "save_steps": 3}
    unlearn(sets=streamed(parts=2), **settings).train()
    with pytest.raises(ValueError, match=r"^parts of retain_ds: was 1 in the checkpoint, is 2"):
        unlearn(sets=streamed(parts=2), dataloader_num_workers=2, **settings).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"^retain_ds: had 10 samples in the checkpoint, has other samples"):
        unlearn(sets=streamed(shuffle=True), **settings).train(resume_from_checkpoint=True)


def test_it_begins_again_where_it_ends(unlearn):
    trainer = unlearn(sets=streamed(), **{**RUN, "max_steps": 7})
    trainer.train()
    (state,) = trainer._pairs.states.values()
    assert (state["pass"], state["read"], state["place"]) == (2, 8, 28)
    assert trainer.state.global_step == 7 and trainer.state.epoch == 1.0


def test_a_forgotten_class_is_left_out(unlearn, caplog):
    def sets(forget_ds, retain_ds, unseen_ds):
        forget = [{**forget_ds[i], "labels": 1} for i in range(len(forget_ds))]
        retain = [{**retain_ds[i], "labels": 2 * (i % 2) if i != 4 else 1} for i in range(len(retain_ds))]
        return forget, stream(retain), [{**unseen_ds[i], "labels": 0} for i in range(len(unseen_ds))]

    trainer = unlearn(sets=sets, request="class", **{**RUN, "max_steps": 2})
    assert {int(sample["labels"]) for sample in trainer.retain_ds} == {0, 2} and trainer.target_kind == "masked_class"
    trainer.train()
    assert "came along in the stream 1 times" in caplog.text


def test_what_retraining_costs_is_not_known_unless_the_length_is_given(unlearn):
    unknown = unlearn(sets=streamed(), training_passes=3, folder="unknown", **RUN)
    unknown.train()
    assert unknown.outcome.cost.retraining_passes is None
    assert "and retain_samples, of the stream, say what share of retraining" in unknown.outcome.sentence
    known = unlearn(sets=streamed(), training_passes=3, retain_samples=1000, folder="known", **RUN)
    known.train()
    assert known.outcome.cost.retraining_passes == 3 * 3 * 1000


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_steps": -1, "num_train_epochs": 2}, 6),  # over the forget dataset: 6 samples, 2 a step
        ({"max_steps": -1, "num_train_epochs": 2, "retain_samples": 100}, 50),
        ({"max_steps": -1, "method": "l1_sparse"}, 240),
        ({"max_steps": -1, "method": "l1_sparse", "retain_samples": 10}, 12),
    ],
)
def test_steps_by_default(unlearn, settings, steps):
    assert unlearn(sets=streamed(), **{**RUN, **settings}).args.max_steps == steps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "ssd"}, "method: ssd measures all of retain_ds before the first step, and it is a stream"),
        ({"method": "msg"}, "method: msg measures all of retain_ds before the first step, and it is a stream"),
        ({"method": "nabla_tau_text"}, "retain_samples: is missing; nabla_tau_text has its weights and passes"),
        ({"sets": None, "retain_samples": 10}, "retain_samples: is the length of a stream, and retain_ds is none"),
        ({"retain_samples": 0}, "retain_samples: must be at least 1"),
    ],
)
def test_what_a_stream_does_not_allow_is_refused(unlearn, settings, message):
    with pytest.raises(ValueError, match=f"^{message}") as raised:
        unlearn(**{"sets": streamed(), **settings})
    assert "\n" not in str(raised.value)


def test_published_forms_take_the_length_that_is_given(unlearn):
    trainer = unlearn(sets=streamed(), method="nabla_tau_text", retain_samples=30, max_steps=-1)
    assert trainer.args.max_steps == 3  # int(30 / 12) passes of six samples, four a step


def test_several_labels_take_the_whole_retain_dataset(unlearn):
    def sets(*several):
        forget, retain, unseen = ([{**d[i], "labels": [1.0, 0.0, 1.0]} for i in range(len(d))] for d in several)
        return forget, stream(retain), unseen

    model, _ = make("vit")
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match=r'^request: "class" with several labels a sample takes all of retain_ds'):
        unlearn(model=model, sets=sets, request="class")


def test_a_stream_is_measured_by_its_head(unlearn, monkeypatch, caplog):
    monkeypatch.setattr("hf_unlearn.data.streaming.HEAD_SAMPLES", 3)
    trainer = unlearn(sets=streamed(), **RUN)
    caplog.set_level(logging.WARNING)
    trainer.train()
    assert len(trainer.retain_ds) == 3
    assert trainer._draws["retain"].before == [0, 1, 2]
    report = trainer.audit(resamples=20)
    assert report.about["retain_samples"] == 3
