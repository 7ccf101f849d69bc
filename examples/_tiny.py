"""Small models and data for `--tiny`: what stands in for your own trained model, from scratch in minutes.

None of this is unlearning: read the example itself, and start from a model that you have.
"""

import io
from typing import Any, ClassVar

import numpy as np
import soundfile
import tokenizers
import torch
from datasets import Array3D, ClassLabel, Dataset, Features, Value
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from hf_unlearn.data.audio import waveform
from hf_unlearn.data.collator import default_collator
from hf_unlearn.data.loading import load_samples
from hf_unlearn.data.preprocessing import prepare

Datasets = tuple[Dataset, Dataset, Dataset]


class Tiny:
    """A model, its processor, and three datasets: to train on, unseen, and to test on."""

    training: ClassVar[dict[str, Any]]

    @staticmethod
    def model(seed: int = 0) -> Any:
        """The model, not trained yet."""
        raise NotImplementedError

    @staticmethod
    def processor(data_dir: str) -> Any:
        """Its processor, where it needs one."""

    @staticmethod
    def data(data_dir: str, seed: int = 0) -> Datasets:
        """Samples ready for the model."""
        raise NotImplementedError

    @classmethod
    def start(cls, data_dir: str) -> tuple[Any, Any, Dataset, Dataset]:
        """A trained model, its processor, the samples that it was trained on, and unseen ones."""
        train_ds, unseen_ds, _ = cls.data(data_dir)
        processor = cls.processor(data_dir)
        return cls.trained(train_ds, processor), processor, train_ds, unseen_ds

    @classmethod
    def trained(cls, train_ds: Dataset, processor: Any, seed: int = 0) -> Any:
        """A model trained from scratch with `transformers.Trainer`."""
        return train_base(cls.model(seed), train_ds, cls.training, processor, seed)


def train_base(model: PreTrainedModel, train_ds: Dataset, training: dict, processor: Any = None, seed: int = 0) -> Any:
    """Train `model` in place with the settings in `training`; returns it."""
    if isinstance(train_ds.features.get("label"), ClassLabel):
        model.config.id2label = dict(enumerate(train_ds.features["label"].names))
        model.config.label2id = {name: number for number, name in model.config.id2label.items()}
    args = TrainingArguments("out/base", seed=seed, save_strategy="no", report_to="none", **training)
    Trainer(model, args, train_dataset=train_ds, data_collator=default_collator(model, processor)).train()
    return model


# ---- images ------------------------------------------------------------------------------------------------------


class Vit(Tiny):
    """A ViT of 307 k weights on Fashion-MNIST (fashion_mnist_train.parquet, fashion_mnist_test.parquet)."""

    training: ClassVar = {"learning_rate": 1e-3, "num_train_epochs": 20, "per_device_train_batch_size": 64}
    MEAN, STD = 0.286, 0.353  # of the pixels, scaled to [0, 1]

    @staticmethod
    def model(seed: int = 0) -> ViTForImageClassification:
        """For 28 x 28 grey images."""
        torch.manual_seed(seed)
        images = {"image_size": 28, "patch_size": 7, "num_channels": 1, "num_labels": 10}
        sizes = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4}
        return ViTForImageClassification(ViTConfig(**images, **sizes))

    @classmethod
    def data(cls, data_dir: str, seed: int = 0) -> Datasets:
        """6,000 training samples, 2,000 unseen ones that set the forgetting target, and 2,000 others for testing."""
        parts = (("train", 0, 6000), ("test", 0, 2000), ("test", 2000, 4000))
        return tuple(cls.ready(data_dir, *part, seed) for part in parts)  # type: ignore[return-value]

    @classmethod
    def ready(cls, data_dir: str, split: str, first: int, last: int, seed: int) -> Dataset:
        """Pixels and labels of a part of a split, in the order of a seed."""
        samples = load_samples(f"{data_dir}/fashion_mnist_{split}.parquet")
        samples = samples.select(np.random.default_rng(seed).permutation(len(samples))[first:last])
        pixels = np.stack([np.asarray(image, dtype=np.float32) for image in samples["image"]])[:, None]
        columns = {"pixel_values": (pixels / 255 - cls.MEAN) / cls.STD, "label": samples["label"]}
        features = Features({"pixel_values": Array3D((1, 28, 28), "float32"), "label": samples.features["label"]})
        return Dataset.from_dict(columns, features=features).with_format("torch")


# ---- sound -------------------------------------------------------------------------------------------------------


class AudioClassifier(Tiny):
    """An audio spectrogram transformer of 0.3 M weights on spoken digits (fsdd.parquet)."""

    training: ClassVar = {
        "learning_rate": 1e-3, "num_train_epochs": 16, "per_device_train_batch_size": 32, "warmup_steps": 100,
    }  # fmt: skip

    @staticmethod
    def model(seed: int = 0) -> ASTForAudioClassification:
        """For one second of sound."""
        torch.manual_seed(seed)
        patches = {"num_mel_bins": 64, "max_length": 96, "patch_size": 16, "frequency_stride": 16, "time_stride": 8}
        sizes = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4}
        return ASTForAudioClassification(ASTConfig(num_labels=10, **patches, **sizes))

    @staticmethod
    def processor(data_dir: str = "") -> ASTFeatureExtractor:
        """One second of 64 mel bands at 100 frames a second."""
        return ASTFeatureExtractor(num_mel_bins=64, max_length=96)

    @classmethod
    def data(cls, data_dir: str, seed: int = 0) -> Datasets:
        """2,000 of the 3,000 samples to train on, 500 for the forgetting target and 500 for testing.

        A good model errs on a few of a hundred: fewer than some hundred samples are no target, and no test.
        """
        samples = load_samples(f"{data_dir}/fsdd.parquet").shuffle(seed=seed)
        samples = prepare(samples.select_columns(["audio", "label", "speaker"]), cls.model(), cls.processor())
        return samples.select(range(2000)), samples.select(range(2000, 2500)), samples.select(range(2500, 3000))


class Whisper(Tiny):
    """A Whisper of 269 k weights on strings of spoken digits (fsdd.parquet, fsdd_strings_manifest.parquet)."""

    training: ClassVar = {
        "learning_rate": 2e-3, "num_train_epochs": 28, "per_device_train_batch_size": 32, "warmup_steps": 100,
    }  # fmt: skip
    PAD, START, END = "<pad>", "<|startoftranscript|>", "<|endoftext|>"
    DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

    @staticmethod
    def model(seed: int = 0) -> WhisperForConditionalGeneration:
        """For four seconds of sound."""
        torch.manual_seed(seed)
        sizes = {"layers": 2, "attention_heads": 4, "ffn_dim": 256}
        halves = {f"{half}_{name}": size for half in ("encoder", "decoder") for name, size in sizes.items()}
        lengths = {"max_source_positions": 100, "max_target_positions": 16}
        tokens = {"vocab_size": 13, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        tokens |= {"decoder_start_token_id": 1, "begin_suppress_tokens": None}
        config = WhisperConfig(d_model=64, **halves, **lengths, **tokens)
        model = WhisperForConditionalGeneration(config)
        model.generation_config.max_length = 12
        return model

    @classmethod
    def processor(cls, data_dir: str = "") -> WhisperProcessor:
        """Four seconds of 80 mel features at 50 frames a second, and a vocabulary of the ten digits."""
        vocabulary = {word: i for i, word in enumerate([cls.PAD, cls.START, cls.END, *cls.DIGITS])}
        words = Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=cls.PAD))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        words.post_processor = processors.TemplateProcessing(
            f"{cls.START} $A {cls.END}", special_tokens=[(cls.START, 1), (cls.END, 2)]
        )
        special = {"pad_token": cls.PAD, "bos_token": cls.START, "eos_token": cls.END}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)
        return WhisperProcessor(WhisperFeatureExtractor(feature_size=80, hop_length=320, chunk_length=4), tokenizer)

    @classmethod
    def data(cls, data_dir: str, seed: int = 0, held_out: str = "yweweler") -> Datasets:
        """Strings of 3 to 6 digits: samples to train on, of a speaker held out from training, and to test on."""
        parts = cls.strings(data_dir, seed, held_out)
        return tuple(cls.ready(part) if len(part) else part for part in parts)  # nobody need be held out

    @staticmethod
    def strings(data_dir: str, seed: int, held_out: str) -> Datasets:
        """The same as sound and text."""
        sound = {audio["path"]: waveform(audio, 16000) for audio in load_samples(f"{data_dir}/fsdd.parquet")["audio"]}
        samples = load_samples(f"{data_dir}/fsdd_strings_manifest.parquet").shuffle(seed=seed)
        speakers = np.array(samples.features["speaker"].int2str(samples["speaker"][:]))
        splits = np.array(samples["split"])
        samples = samples.add_column("speaker_id", speakers.tolist())

        def say(sample: dict) -> dict:
            pause = np.zeros(16 * sample["gap_ms"], dtype=np.float32)
            parts = np.concatenate([part for name in sample["files"] for part in (sound[name], pause)])
            soundfile.write(file := io.BytesIO(), parts, 16000, format="WAV", subtype="FLOAT")
            return {"audio": {"bytes": file.getvalue(), "path": ""}}

        short, held = np.array(samples["duration"]) <= 4, speakers == held_out
        sides = (short & ~held & (splits == "train"), short & held, short & ~held & (splits == "test"))
        return tuple(samples.select(np.flatnonzero(side)).map(say) for side in sides)  # type: ignore[return-value]

    @classmethod
    def ready(cls, samples: Dataset) -> Dataset:
        """Features and labels of audio and text, and the speaker."""
        return prepare(cls.spoken(samples), cls.model(), cls.processor())

    @staticmethod
    def spoken(samples: Dataset) -> Dataset:
        """Sound, text and speaker alone."""
        samples = samples.select_columns(["audio", "text", "speaker_id"]).rename_column("speaker_id", "speaker")
        return samples.cast_column("speaker", Value("string"))


# ---- text --------------------------------------------------------------------------------------------------------


class Text(Tiny):
    """A Llama of 1.2 M weights on 40 of the 200 authors of TOFU (tofu.parquet)."""

    training: ClassVar = {
        "learning_rate": 3e-3, "num_train_epochs": 12, "per_device_train_batch_size": 16, "warmup_steps": 50,
    }  # fmt: skip
    SPECIAL: ClassVar = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}

    @staticmethod
    def model(seed: int = 0) -> LlamaForCausalLM:
        """For 96 tokens."""
        torch.manual_seed(seed)
        sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
        tokens = {"vocab_size": 4096, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        return LlamaForCausalLM(LlamaConfig(max_position_embeddings=96, tie_word_embeddings=True, **sizes, **tokens))

    @classmethod
    def processor(cls, data_dir: str) -> PreTrainedTokenizerFast:
        """Byte-level BPE of 4,096 tokens, trained on all of TOFU: it stands for one of a pretrained model."""
        samples = load_samples(f"{data_dir}/tofu.parquet")
        bpe = Tokenizer(tokenizers.models.BPE())
        bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        train_bpe(bpe, 4096, list(cls.SPECIAL.values()), samples["question"][:] + samples["answer"][:])
        template = "{{ bos_token }}Question: {{ messages[0]['content'] }}\nAnswer: "
        return PreTrainedTokenizerFast(tokenizer_object=bpe, chat_template=template, **cls.SPECIAL)

    @classmethod
    def data(cls, data_dir: str, seed: int = 0) -> Datasets:
        """Samples of 40 authors to train on, 2 of them from TOFU's forget05 (5 %), and of 20 and 20 others."""
        samples, rng = load_samples(f"{data_dir}/tofu.parquet"), np.random.default_rng(seed)
        others, forget = rng.permutation(190), 190 + rng.permutation(10)[:2]
        groups = [{*others[:38], *forget}, set(others[38:58]), set(others[58:78])]
        samples = samples.select_columns(["question", "answer", "author_id"])
        samples = prepare(samples, cls.model(), cls.processor(data_dir))
        authors = np.array(samples["author_id"])
        return tuple(samples.select(np.flatnonzero(np.isin(authors, list(group)))) for group in groups)


class TextClassifier(Tiny):
    """A BERT of 0.6 M weights for the 77 classes of Banking77 (banking77.parquet)."""

    training: ClassVar = {
        "learning_rate": 1e-3, "num_train_epochs": 20, "per_device_train_batch_size": 64, "warmup_steps": 100,
    }  # fmt: skip
    SPECIAL: ClassVar = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}

    @staticmethod
    def model(seed: int = 0) -> BertForSequenceClassification:
        """For 64 tokens."""
        torch.manual_seed(seed)
        sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = BertConfig(vocab_size=2000, max_position_embeddings=64, num_labels=77, pad_token_id=0, **sizes)
        return BertForSequenceClassification(config)

    @classmethod
    def processor(cls, data_dir: str) -> PreTrainedTokenizerFast:
        """Byte-level BPE of 2,000 lower-case tokens, trained on the texts of the training split.

        Not WordPiece, whose trainer breaks ties anew in every process: a model would be read with other tokens than it
        was trained with.
        """
        samples = load_samples(f"{data_dir}/banking77.parquet")
        bpe = Tokenizer(tokenizers.models.BPE())
        bpe.normalizer, bpe.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.ByteLevel()
        train_bpe(bpe, 2000, list(cls.SPECIAL.values()), (s["text"] for s in samples if s["split"] == "train"))
        bpe.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=64, **cls.SPECIAL)

    @classmethod
    def data(cls, data_dir: str, seed: int = 0) -> Datasets:
        """The training split, and the test split in two halves, for the forgetting target and for testing.

        Texts that come twice are there once: in the training split where it has them.
        """
        samples = load_samples(f"{data_dir}/banking77.parquet").shuffle(seed=seed)
        splits = np.array(samples["split"])
        samples = prepare(samples.select_columns(["text", "label"]), cls.model(), cls.processor(data_dir))
        order = np.argsort(splits == "test", kind="stable")
        texts = [" ".join(map(str, ids)) for ids in samples.select(order)["input_ids"]]
        _, first = np.unique(texts, return_index=True)
        samples, splits = samples.select(order[np.sort(first)]), splits[order[np.sort(first)]]
        test = samples.select(np.flatnonzero(splits == "test"))
        half = len(test) // 2
        train = samples.select(np.flatnonzero(splits == "train"))
        return train, test.select(range(half)), test.select(range(half, len(test)))


def train_bpe(bpe: Tokenizer, size: int, special: list[str], texts: Any) -> None:
    """Train a byte-level tokenizer in place."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
