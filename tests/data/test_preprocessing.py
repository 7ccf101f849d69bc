"""Loading from disk, preprocessing for every head, and forget requests written as text."""

import json
import logging

import datasets
import numpy as np
import pytest
import tiny_data
import torch
import transformers as tf
from datasets import Array3D, Audio, ClassLabel, Dataset, DatasetDict, Features, Value
from tiny import BOS, EOS, make
from tokenizers import Tokenizer, models, pre_tokenizers

from hf_unlearn.data.audio import waveform
from hf_unlearn.data.collator import readable_collator
from hf_unlearn.data.labels import label_settings
from hf_unlearn.data.loading import load_samples, parse_forget
from hf_unlearn.data.preprocessing import prepare
from hf_unlearn.data.splitting import split_forget_retain
from hf_unlearn.losses import head_of

pytestmark = pytest.mark.usefixtures("cache")


def raw(name, count=6):
    return tiny_data.HUB[name][1](count, np.random.default_rng(0))


def losses(model, ready, processor):
    """The model's loss on the samples: they are as it wants them."""
    batch = readable_collator(model, processor)(list(ready))
    head = head_of(model.eval())
    with torch.no_grad():
        sample_losses = head.losses(model(**head.inputs(batch)), batch)
    assert sample_losses.shape == (len(ready),) and sample_losses.isfinite().all()
    return batch


# ---- loading ---------------------------------------------------------------------------------------------------

SAMPLES = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 1]})


def test_one_file_of_any_kind(tmp_path):
    SAMPLES.to_parquet(tmp_path / "samples.parquet")
    SAMPLES.to_csv(tmp_path / "samples.csv")
    SAMPLES.to_json(tmp_path / "samples.jsonl")
    (tmp_path / "samples.json").write_text(json.dumps(SAMPLES.to_list()))
    for name in ("samples.parquet", "samples.csv", "samples.jsonl", "samples.json"):
        for split in (None, "train"):
            assert load_samples(str(tmp_path / name), split).to_dict() == SAMPLES.to_dict()
    assert load_samples(str(tmp_path / "samples.csv"), "train[1:]")["text"][:] == ["b", "c"]
    with pytest.raises(ValueError, match=r"^split: test is not in '.*samples.csv'; one file has the split 'train'$"):
        load_samples(str(tmp_path / "samples.csv"), "test")
    (tmp_path / "samples.txt").write_text("a")
    with pytest.raises(ValueError, match=r"^dataset: '.*samples.txt' is no data file; use one of .parquet, "):
        load_samples(str(tmp_path / "samples.txt"))


def test_a_folder_of_data_files(tmp_path):
    SAMPLES.to_parquet(tmp_path / "train.parquet")
    SAMPLES.select([2]).to_parquet(tmp_path / "test.parquet")
    assert load_samples(str(tmp_path))["text"][:] == ["a", "b", "c"]
    assert load_samples(str(tmp_path), "test")["text"][:] == ["c"]
    assert load_samples(str(tmp_path), "train[:2]")["text"][:] == ["a", "b"]
    with pytest.raises(ValueError, match=r"^split: 'dev' is not in '.*', which has \['train', 'test'\]$"):
        load_samples(str(tmp_path), "dev")


def test_configurations_of_a_folder(tmp_path):
    SAMPLES.to_parquet(tmp_path / "one.parquet")
    SAMPLES.select([2]).to_parquet(tmp_path / "two.parquet")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in ("one", "two"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert load_samples(str(tmp_path), "two:train")["text"][:] == ["c"]
    assert load_samples(str(tmp_path), "one:train[1:2]")["text"][:] == ["b"]
    with pytest.raises(ValueError, match=r"^dataset: '.*' does not load: .*three"):
        load_samples(str(tmp_path), "three:train")


def test_a_folder_that_was_saved(tmp_path):
    SAMPLES.save_to_disk(tmp_path / "samples")
    DatasetDict(dev=SAMPLES, test=SAMPLES.select([2])).save_to_disk(tmp_path / "splits")
    assert load_samples(str(tmp_path / "samples"))["text"][:] == ["a", "b", "c"]
    assert load_samples(str(tmp_path / "splits"), "test")["text"][:] == ["c"]
    with pytest.raises(ValueError, match=r"^split: say which one of '.*', which has \['dev', 'test'\]$"):
        load_samples(str(tmp_path / "splits"))
    with pytest.raises(ValueError, match=r"^split: 'train' is not in '.*', which has \['dev', 'test'\]$"):
        load_samples(str(tmp_path / "splits"), "train")


def test_no_such_dataset(tmp_path):
    with pytest.raises(ValueError, match=r"^dataset: 'no/such' is no file or folder here, and not found on the Hub"):
        load_samples("no/such")


def test_audio_is_not_decoded(tmp_path):
    raw("whisper").to_parquet(tmp_path / "samples.parquet")
    samples = load_samples(str(tmp_path / "samples.parquet"))
    assert samples.features["audio"].decode is False
    assert len(waveform(samples[0]["audio"], tiny_data.RATE)) == 200
    assert len(waveform(samples[0]["audio"], 2 * tiny_data.RATE)) == 400


# ---- preprocessing -------------------------------------------------------------------------------------------------


def test_images():
    model, processor = tiny_data.vit()
    samples = raw("vit").add_column("owner", list("abcabc"))
    ready = prepare(samples, model, processor)
    assert ready.features["pixel_values"] == Array3D((3, 32, 32), "float32")
    assert sorted(ready.column_names) == ["label", "owner", "pixel_values"] and ready["owner"][:] == list("abcabc")
    # cat, bird, ant in the dataset; ant, bird, cat in the model.
    assert ready.features["label"].names == tiny_data.MODEL_NAMES
    assert ready.with_format(None)["label"][:] == [2, 1, 0, 2, 1, 0]
    expected = processor(samples[1]["image"].convert("RGB"), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(ready[1]["pixel_values"], expected)
    losses(model, ready, processor)
    assert prepare(ready, model, None) is ready  # ready already


def test_grey_images_by_path(tmp_path):
    config = tf.ViTConfig(**{**make("vit")[0].config.to_dict(), "num_channels": 1})
    paths = []
    for i, sample in enumerate(raw("vit", 2)):
        sample["image"].save(tmp_path / f"{i}.png")
        paths.append(str(tmp_path / f"{i}.png"))
    processor = tf.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5], image_std=[0.5])
    model = tf.ViTForImageClassification(config)
    ready = prepare(Dataset.from_dict({"img": paths, "label": [0, 2]}), model, processor)
    assert ready[0]["pixel_values"].shape == (1, 32, 32)
    losses(model, ready, processor)


def test_audio():
    model, processor = tiny_data.audio_classification()
    ready = prepare(raw("audio_classification"), model, processor)
    assert sorted(ready.column_names) == ["input_values", "label"]
    assert [len(sample) for sample in ready["input_values"]] == [400, 456, 512] * 2  # resampled to twice the rate
    assert ready.with_format(None)["label"][:] == [2, 1, 0, 2, 1, 0]
    losses(model, ready, processor)
    spectrogram = tf.ASTFeatureExtractor(num_mel_bins=16, max_length=32)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    patches = {"num_mel_bins": 16, "max_length": 32, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}
    ast = tf.ASTForAudioClassification(tf.ASTConfig(num_labels=3, **patches, **sizes))
    ready = prepare(raw("audio_classification"), ast, spectrogram)
    assert ready[0]["input_values"].shape == (32, 16)
    losses(ast, ready, spectrogram)


def test_text_classes():
    model, tokenizer = tiny_data.text_classification()
    samples = raw("text_classification")
    ready = prepare(samples, model, tokenizer)
    assert ready["input_ids"][:] == [tokenizer(text).input_ids for text in samples["text"]]
    assert ready["label"][:] == [2, 1, 0, 2, 1, 0]
    losses(model, ready, tokenizer)
    # One column of strings is the text, whatever its name; two of them are named.
    assert prepare(samples.rename_column("text", "query"), model, tokenizer)["input_ids"][:] == ready["input_ids"][:]
    pairs = samples.add_column("other", samples["text"][::-1])
    columns = {"text": "text", "text_pair": "other"}
    expected = tokenizer(samples["text"][0], samples["text"][-1], truncation=True).input_ids
    ready = prepare(pairs, model, tokenizer, columns=columns)
    assert ready["input_ids"][0] == expected and ready.column_names == [
        "label", "input_ids", "token_type_ids", "attention_mask"
    ]  # fmt: skip


def test_text_is_cut_to_what_tokenizer_and_model_take():
    model, tokenizer = tiny_data.text_classification()
    samples = Dataset.from_dict({"text": ["who " * 90], "label": ["cat"]})
    assert len(prepare(samples, model, tokenizer)["input_ids"][0]) == tokenizer.model_max_length == 16
    tokenizer.model_max_length = 1000
    assert len(prepare(samples, model, tokenizer)["input_ids"][0]) == model.config.max_position_embeddings == 32


def test_labels():
    model, tokenizer = tiny_data.text_classification()

    def labels(values, feature=None, **settings):
        samples = Dataset.from_dict({"text": ["who"] * len(values), "label": values})
        samples = samples if feature is None else samples.cast_column("label", feature)
        return prepare(samples, model, tokenizer, **settings)

    for ready in (labels(["cat", "ant"]), labels([2, 0])):
        assert ready["label"][:] == [2, 0] and ready.features["label"].names == tiny_data.MODEL_NAMES
    assert labels([0, 1], ClassLabel(names=["CAT", "Ant"]))["label"][:] == [2, 0]  # some of them, in any case
    with pytest.raises(ValueError, match=r"^label: the model has no class 'dog'; its classes are "):
        labels(["cat", "dog"])
    with pytest.raises(ValueError, match=r"^label: the model has no class 3; "):
        labels([0, 3])
    model.config.id2label = {i: f"LABEL_{i}" for i in range(3)}  # a model that knows no names
    ready = labels([0, 1], ClassLabel(names=["cat", "ant"]))
    assert ready["label"][:] == [0, 1] and ready.features["label"].names == ["cat", "ant"]
    assert labels([0, 2]).features["label"] == Value("int64")


def test_several_labels_a_sample():
    model, tokenizer = tiny_data.HUB["text_classification"][0]()
    model.config.problem_type = "multi_label_classification"
    labels = datasets.List(ClassLabel(names=["a", "b", "c"]))
    samples = tiny_data.table(text=["one", "two", "ann"], labels=([[0, 2], [], [1]], labels))
    ready = prepare(samples, model, tokenizer)
    assert ready["label"][:] == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    losses(model, ready, tokenizer)
    spread = tiny_data.table(text=["one", "two"], labels=([[0, 1, 0], [1, 1, 0]], datasets.List(Value("float32"))))
    assert prepare(spread, model, tokenizer)["label"][:] == [[0, 1, 0], [1, 1, 0]]


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
def test_zeros_and_ones_of_any_type_are_no_lists_of_classes(dtype):
    model, tokenizer = tiny_data.text_classification()
    model.config.problem_type = "multi_label_classification"
    samples = tiny_data.table(text=["one", "two"], labels=([[0, 0, 1], [1, 0, 0]], datasets.List(Value(dtype))))
    ready = prepare(samples, model, tokenizer)
    assert ready["label"][:] == [[0, 0, 1], [1, 0, 0]] and ready.features["label"].feature.dtype == "float32"
    assert label_settings(samples) == {}  # as for floats: no two classes 0 and 1


def test_class_names_that_are_not_the_models(caplog):
    model, tokenizer = tiny_data.text_classification()
    samples = Dataset.from_dict({"text": ["who"], "label": [1]}).cast_column("label", ClassLabel(names=["x", "y"]))
    with caplog.at_level(logging.WARNING, logger="hf_unlearn.data.labels"):
        assert prepare(samples, model, tokenizer)["label"][:] == [1]
    assert "(x, y, ...) are not those of the model (ant, bird, cat, ...)" in caplog.text


def test_class_names_that_differ_by_their_case(caplog):
    model, tokenizer = tiny_data.text_classification()
    model.config.id2label, model.config.label2id = {0: "A", 1: "a"}, {"A": 0, "a": 1}
    samples = Dataset.from_dict({"text": ["who", "ann"], "label": [0, 1]})
    exact = prepare(samples.cast_column("label", ClassLabel(names=["a", "A"])), model, tokenizer)
    assert exact["label"][:] == [1, 0] and exact.features["label"].names == ["A", "a"]
    model.config.id2label, model.config.label2id = {0: "B", 1: "A"}, {"B": 0, "A": 1}
    assert prepare(samples.cast_column("label", ClassLabel(names=["a", "b"])), model, tokenizer)["label"][:] == [1, 0]
    with caplog.at_level(logging.WARNING, logger="hf_unlearn.data.labels"):
        prepare(samples.cast_column("label", ClassLabel(names=["a", "A"])), model, tokenizer)
    assert "the class numbers are used unchanged" in caplog.text


def test_questions_and_answers():
    model, tokenizer = tiny_data.text()
    samples = raw("text").add_column("author_id", list(range(6)))
    ready = prepare(samples, model, tokenizer)
    assert ready.column_names == ["author_id", "input_ids", "labels"]
    for sample, source in zip(ready, samples, strict=True):
        prompt = [BOS, *tokenizer.convert_tokens_to_ids([*source["question"].split(), ":"])]
        answer = [*tokenizer.convert_tokens_to_ids(source["answer"].split()), EOS]
        assert sample["input_ids"] == prompt + answer
        assert sample["labels"] == [-100] * len(prompt) + answer
    losses(model, ready, tokenizer)
    tokenizer.chat_template = None
    tokens = prepare(samples, model, tokenizer)[0]
    assert tokenizer.decode(tokens["input_ids"]).startswith("[UNK]")  # "Question:", which is no word of the tokenizer
    assert len(tokens["input_ids"]) == len(ready[0]["input_ids"]) - 2 + 2


def test_prompts_messages_and_plain_text():
    model, tokenizer = tiny_data.text()
    words = tokenizer.convert_tokens_to_ids
    spoken = [{"role": "user", "content": "who wrote"}, {"role": "assistant", "content": "ann"}]
    one = Dataset.from_dict({"prompt": ["who wrote"], "completion": ["ann"]})
    ready = prepare(one, model, tokenizer)[0]  # as they are, without the template
    assert ready["input_ids"] == words(["who", "wrote", "ann", "</s>"])
    assert ready["labels"] == [-100, -100, *words(["ann", "</s>"])]
    chats = (
        Dataset.from_dict({"messages": [spoken]}),
        Dataset.from_dict({"prompt": [spoken[:1]], "completion": ["ann"]}),
    )
    for chat in (*chats, Dataset.from_dict({"prompt": [spoken[:1]], "completion": [spoken[1:]]})):
        ready = prepare(chat, model, tokenizer)[0]
        assert ready["input_ids"] == words(["<s>", "who", "wrote", ":", "ann", "</s>"])
        assert ready["labels"] == [-100] * 4 + words(["ann", "</s>"])
    ready = prepare(Dataset.from_dict({"text": ["who wrote"]}), model, tokenizer)[0]
    assert ready["input_ids"] == ready["labels"] == words(["who", "wrote", "</s>"])
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"^processor: the tokenizer has no chat template"):
        prepare(chats[0], model, tokenizer)


def test_text_to_text():
    model, (_, tokenizer) = make("t5")[0], tiny_data.text()
    samples = Dataset.from_dict({"document": ["who wrote the book", "two"], "summary": ["ann", "bob bob"]})
    ready = prepare(samples, model, tokenizer)
    assert ready["labels"][:] == [tokenizer(text).input_ids for text in samples["summary"]]
    assert ready["input_ids"][:] == [tokenizer(text).input_ids for text in samples["document"]]
    losses(model, ready.select_columns(["input_ids", "attention_mask", "labels"]), tokenizer)


def test_whisper():
    model, processor = tiny_data.whisper()
    ready = prepare(raw("whisper"), model, processor)
    assert sorted(ready.column_names) == ["input_features", "labels", "speaker_id"]
    assert ready[0]["input_features"].shape == (8, 40)
    labels = ready.with_format(None)["labels"]
    assert not any(BOS in sample for sample in labels) and all(sample[-1] == EOS for sample in labels)
    transcripts = processor.tokenizer.batch_decode(labels[:], skip_special_tokens=True)
    assert [text.strip() for text in transcripts] == [text.lower() for text in raw("whisper")["text"]]
    losses(model, ready, processor)
    with pytest.raises(
        ValueError, match=r"^processor: a WhisperFeatureExtractor has no feature extractor or no tokenizer"
    ):
        prepare(raw("whisper"), model, processor.feature_extractor)


@pytest.mark.parametrize("letters", ["one tw", "ONE TW"])
def test_ctc_writes_in_its_own_letters(letters):
    model, _ = make("wav2vec2_ctc")
    pieces = {piece: i for i, piece in enumerate(["<pad>", "[UNK]", *sorted(set(letters + letters[-1]))])}
    vocabulary = Tokenizer(models.WordLevel({**pieces, "A" if letters.isupper() else "a": 20}, unk_token="[UNK]"))
    vocabulary.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>", unk_token="[UNK]")
    extractor = tf.Wav2Vec2FeatureExtractor(sampling_rate=16000)
    processor = tf.Wav2Vec2Processor(extractor, tokenizer)
    samples = raw("whisper", 2).remove_columns("text").add_column("sentence", ["One", "TWO"])
    ready = prepare(samples, model, processor)
    transcripts = ["".join(tokenizer.convert_ids_to_tokens(sample)) for sample in ready.with_format(None)["labels"]]
    assert transcripts == (["ONE", "TWO"] if letters.isupper() else ["one", "two"])
    batch = readable_collator(model, processor)(list(ready))
    assert batch["input_values"].shape == (2, 456)


def test_other_column_names_and_files(tmp_path):
    samples = raw("whisper", 2)
    paths = []
    for i, sample in enumerate(samples.cast_column("audio", Audio(decode=False))):
        (tmp_path / f"{i}.wav").write_bytes(sample["audio"]["bytes"])
        paths.append(str(tmp_path / f"{i}.wav"))
    model, processor = tiny_data.whisper()
    samples = samples.remove_columns("audio").rename_column("text", "said").add_column("where", paths)
    ready = prepare(samples, model, processor, columns={"audio": "where", "text": "said"})
    assert torch.equal(ready[1]["input_features"], prepare(raw("whisper", 2), model, processor)[1]["input_features"])


def test_preprocessed_samples_are_cached_on_disk(tmp_path):
    raw("vit").to_parquet(tmp_path / "samples.parquet")
    prepared = []
    for _ in range(2):
        model, processor = tiny_data.vit()
        prepared.append(prepare(load_samples(str(tmp_path / "samples.parquet")), model, processor))
    assert prepared[0].cache_files and prepared[0].cache_files == prepared[1].cache_files
    _, processor = tiny_data.vit()
    processor.image_mean = [0.1] * 3  # another processor, other samples
    other = prepare(load_samples(str(tmp_path / "samples.parquet")), model, processor)
    assert other.cache_files != prepared[0].cache_files
    assert not torch.equal(other[0]["pixel_values"], prepared[0][0]["pixel_values"])


def test_refuses_what_it_cannot_preprocess():
    model, processor = tiny_data.vit()
    samples = raw("vit")
    for settings, message in (
        ((samples, model, None), "^processor: is missing, and the samples hold no pixel_values"),
        ((samples.select([]), model, processor), "^samples: the dataset is empty"),
        ((samples.remove_columns("image"), model, processor), r"^columns: none of \['label'\] is known as image; say"),
        (
            (samples.remove_columns("labels"), model, processor),
            r"^columns: none of \['image'\] is known as label; say",
        ),
        (
            (samples, make("bert_lm")[0], processor),
            "^samples: cannot be prepared for BertForMaskedLM; give samples that have",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(*settings)
    for columns, message in (
        ({"picture": "image"}, r"^columns: 'picture' is no role of a column; use"),
        ({"image": "picture"}, "^columns: there is no column 'picture' for image, only"),
        ({"label": "shape"}, "^columns: label is 'shape', but there is another column 'label'"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(
                samples.add_column("shape", [0] * 6).rename_column("labels", "label"),
                model,
                processor,
                columns=columns,
            )


# ---- the forget request ----------------------------------------------------------------------------------------

TYPES = Features(
    {"label": ClassLabel(names=["Bag", "Sandal", "tench, tinca", "10"]), "speaker": Value("int64"),
     "author": Value("string"), "city": Value("string"), "share": Value("float32"), "given": Value("bool"),
     "many": datasets.List(Value("int64"))}
)  # fmt: skip
TYPED = Dataset.from_dict(
    {"label": [0, 1, 2, 3], "speaker": [84, 85, 86, 1272], "author": ["a", "190", "191", "b"],
     "city": ["Paris, Texas", "Paris", "Texas", "1..2"],
     "share": [0.5, 1.0, 2.0, 3.0], "given": [True, False, True, True], "many": [[1]] * 4}, features=TYPES,
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "column", "values"),
    [
        ("label=3", "label", [3]),
        (" label = Sandal ", "label", [1]),
        ("label=Sandal,0", "label", [1, 0]),
        ("label=tench, tinca", "label", [2]),
        ("label=10", "label", [3]),  # a name goes before a number
        ("label=0..2", "label", [0, 1, 2]),
        ("speaker=1272,84", "speaker", [1272, 84]),
        ("speaker=84..86,1272", "speaker", [84, 85, 86, 1272]),
        ("author=190..191,b", "author", ["190", "191", "b"]),
        ("city=Paris, Texas", "city", ["Paris, Texas"]),  # a text of the column goes before a list
        ("city=Texas, Paris", "city", ["Texas", "Paris"]),
        ("city=1..2", "city", ["1..2"]),
        ("share=0.5", "share", [0.5]),
        ("given=false", "given", [False]),
    ],
)
def test_forget_by_column(text, column, values):
    selection = parse_forget(text, TYPED)
    assert selection == {"column": column, "values": values}
    if len(values) < 4:
        assert set(split_forget_retain(TYPED, **selection)[0][column]) == set(values)


def test_forget_a_share_or_samples(tmp_path):
    assert parse_forget("10%", TYPED) == parse_forget("fraction=0.1", TYPED) == {"fraction": 0.1}
    assert parse_forget("2.5 %", TYPED) == {"fraction": 0.025}
    path = tmp_path / "samples.txt"
    path.write_text("0\n2, 3\n")
    assert parse_forget(f"indices={path}", TYPED) == {"indices": [0, 2, 3]}
    assert parse_forget("samples=1..2,5", TYPED) == {"indices": [1, 2, 5]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "^forget: '' is no forget request; use COLUMN=VALUE"),
        ("Sandal", "^forget: 'Sandal' is no forget request; use COLUMN=VALUE"),
        ("label=", "^forget: 'label=' is no forget request"),
        ("lable=3", r"^forget: there is no column 'lable', only \['label', "),
        ("label=Sandals", "^forget: there is no class 'Sandals'; the classes are Bag, Sandal"),
        ("label=4", "^forget: there is no class '4'"),
        ("label=³", "^forget: there is no class '³'"),
        ("speaker=84,4..2", "^forget: the range '4..2' is empty"),
        ("speaker=ann", "^forget: column 'speaker' holds values of type int64, not 'ann'$"),
        ("speaker=9..1", "^forget: the range '9..1' is empty"),
        (
            "speaker=0..99999999999",
            "^forget: the range '0..99999999999' has 100000000000 values for 4 samples",
        ),
        (
            "samples=0..99999999999",
            "^forget: the range '0..99999999999' has 100000000000 values for 4 samples",
        ),
        ("label=-99999999999..3", "^forget: the range '-99999999999..3' has 100000000003 values for 4 samples"),
        ("given=maybe", "^forget: column 'given' holds values of type bool, not 'maybe'$"),
        ("many=1", "^forget: column 'many' holds no plain values"),
        ("1.2.3%", "^forget: '1.2.3%' names no share"),
        ("fraction=half", "^forget: 'fraction=half' names no share"),
        ("indices=nowhere.txt", "^forget: 'nowhere.txt' does not open"),
        ("speaker=__import__('os')", "^forget: column 'speaker' holds values of type int64"),
    ],
)
def test_invalid_forget_requests(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_forget(text, TYPED)
    assert "\n" not in str(caught.value)


def test_invalid_forget_indices(tmp_path):
    path = tmp_path / "samples.txt"
    path.write_text("one two")
    with pytest.raises(ValueError, match="holds something else than sample numbers"):
        parse_forget(f"indices={path}", TYPED)
