"""The three lines of the README as they stand: no arguments, no unseen data, pushed, and loaded by a `pipeline`."""

import numpy as np
import pytest
import torch
import transformers as tf
from hub_server import TOKEN
from huggingface_hub import constants
from PIL import Image
from test_push import tokenizer
from tiny import Samples, make, samples

from hf_unlearn import UnlearningArguments, UnlearningTrainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of pipelines
]


def datasets(name):
    _, batch = make(name)
    data = [{k: torch.as_tensor(v) for k, v in sample.items()} for sample in samples(batch(16, seed=1))]
    return Samples(data[:6]), Samples(data[6:])


def image_classifier(repo):
    processor = tf.ViTImageProcessorPil(size={"height": 32, "width": 32})
    image = Image.fromarray(np.zeros((32, 32, 3), np.uint8))
    return tf.pipeline("image-classification", model=repo, image_processor=processor)(image)


def text_generator(repo):
    return tf.pipeline("text-generation", model=repo, tokenizer=tokenizer())("a b c", max_new_tokens=2)


def speech_recogniser(repo):
    extractor = tf.WhisperFeatureExtractor(feature_size=8, hop_length=1600, chunk_length=4)
    words = ["<|endoftext|>", *map(chr, range(97, 123)), *map(chr, range(65, 78))]
    words = tf.WhisperTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    recogniser = tf.pipeline("automatic-speech-recognition", model=repo, feature_extractor=extractor, tokenizer=words)
    return [recogniser(np.zeros(16_000, np.float32), generate_kwargs={"max_new_tokens": 2})]


PIPELINES = {"vit": image_classifier, "whisper": speech_recogniser, "llama": text_generator}


@pytest.fixture
def here(tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # What huggingface_hub has made of its endpoint and cache when it was imported.
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("name", PIPELINES)
def test_as_they_stand_twice_in_one_folder(here, name, caplog):
    for _ in range(2):
        model, (forget_ds, retain_ds) = make(name)[0], datasets(name)
        trainer = UnlearningTrainer(model, forget_ds, retain_ds)
        trainer.train()
        trainer.push_to_hub(f"me/three-lines-{name}")
        assert "No unseen_ds: there is no loss that the forget dataset should end with" in caplog.text
    loaded = type(model).from_pretrained(f"me/three-lines-{name}")
    for key, weight in trainer.model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], weight, rtol=0, atol=0)
    before = make(name)[0].state_dict()
    assert any(not torch.equal(weight, before[key]) for key, weight in loaded.state_dict().items())
    assert PIPELINES[name](f"me/three-lines-{name}")[0]


def test_loss_and_step_are_overridden_in_a_subclass_of_trainer():
    assert issubclass(UnlearningTrainer, tf.Trainer)
    for method in ("compute_loss", "training_step"):
        assert getattr(UnlearningTrainer, method) is not getattr(tf.Seq2SeqTrainer, method)


@pytest.mark.parametrize("name", PIPELINES)
def test_orthograd_trains_the_parameters_of_an_adapter_alone(here, name):
    model, (forget_ds, retain_ds) = make(name)[0], datasets(name)
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    args = UnlearningArguments("out", method="orthograd", max_steps=3, learning_rate=1e-2)
    trainer = UnlearningTrainer(model, forget_ds, retain_ds, args)
    trained = {key for key, p in trainer.model.named_parameters() if p.requires_grad}
    heads = {key for key in trained if "modules_to_save" in key}  # a classifier's, which are the task's own
    assert trained and all("lora_" in key for key in trained - heads)
    trainer.train()
    moved = {
        key for key, p in trainer.model.named_parameters() if key in trained and "lora_B" in key and p.abs().sum()
    }
    assert moved
    base = trainer.model.get_base_model().state_dict()
    frozen = {key.replace(".base_layer", ""): w for key, w in base.items() if "lora_" not in key}
    same = [key for key in before if key in frozen]
    assert len(same) > len(before) / 2 and all(torch.equal(frozen[key], before[key]) for key in same)
