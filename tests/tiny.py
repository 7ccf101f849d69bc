"""Tiny models with random weights, one function per architecture, and batches as their forward wants them."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch.nn.utils.rnn import pad_sequence

torch.set_num_threads(1)

Batch = dict[str, torch.Tensor]
BatchFn = Callable[..., Batch]  # (n, seed=0) -> batch
Built = tuple[tf.PreTrainedModel, BatchFn]

PAD, BOS, EOS, MASK = 0, 1, 2, 3
VOCAB = 40
NUM_LABELS = 3
CLASSES: dict[str, Any] = {"num_labels": NUM_LABELS}
SPECIAL: dict[str, Any] = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "vocab_size": VOCAB}


def _tokens(n: int, longest: int, generator: torch.Generator) -> list[torch.Tensor]:
    """n token samples; the first has the longest length, the next are one to three tokens shorter, by turns."""
    return [torch.randint(4, VOCAB, (longest - i % 4,), generator=generator) for i in range(n)]


def _pad(samples: list[torch.Tensor], value: float) -> torch.Tensor:
    return pad_sequence(samples, batch_first=True, padding_value=value)


def _text(n: int, seed: int) -> tuple[Batch, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    tokens = _tokens(n, 10, generator)
    mask = _pad([torch.ones_like(sample) for sample in tokens], 0)
    return {"input_ids": _pad(tokens, PAD), "attention_mask": mask}, generator


def _class_labels(n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(NUM_LABELS, (n,), generator=generator)


def images(n: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.randn(n, 3, 32, 32, generator=generator),
        "labels": _class_labels(n, generator),
    }


def text_classes(n: int, seed: int = 0) -> Batch:
    batch, generator = _text(n, seed)
    return batch | {"labels": _class_labels(n, generator)}


def causal_text(n: int, seed: int = 0) -> Batch:
    batch, _ = _text(n, seed)
    return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def masked_text(n: int, seed: int = 0) -> Batch:
    batch, _ = _text(n, seed)
    hidden = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    hidden[:, 1::3] = True
    hidden &= batch["attention_mask"] == 1
    labels = batch["input_ids"].masked_fill(~hidden, -100)
    return batch | {"input_ids": batch["input_ids"].masked_fill(hidden, MASK), "labels": labels}


def text_pairs(n: int, seed: int = 0) -> Batch:
    batch, generator = _text(n, seed)
    return batch | {"labels": _pad(_tokens(n, 6, generator), -100)}


def spectrograms(n: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, 8, 40, generator=generator)
    return {"input_features": features, "labels": _pad(_tokens(n, 6, generator), -100)}


def waveforms(n: int, seed: int = 0) -> Batch:
    """Waveforms of one length, without an attention mask, as models with feat_extract_norm="group" want them."""
    generator = torch.Generator().manual_seed(seed)
    return {"input_values": torch.randn(n, 400, generator=generator), "labels": _class_labels(n, generator)}


def _ragged_waveforms(n: int, seed: int) -> tuple[Batch, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    waves = [torch.randn(400 - 60 * (i % 3), generator=generator) for i in range(n)]
    mask = _pad([torch.ones_like(wave, dtype=torch.long) for wave in waves], 0)
    return {"input_values": _pad(waves, 0.0), "attention_mask": mask}, generator


def ragged_waveforms(n: int, seed: int = 0) -> Batch:
    batch, generator = _ragged_waveforms(n, seed)
    return batch | {"labels": _class_labels(n, generator)}


def transcribed_waveforms(n: int, seed: int = 0) -> Batch:
    batch, generator = _ragged_waveforms(n, seed)
    return batch | {"labels": _pad(_tokens(n, 6, generator), -100)}


BLOCKS: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
DECODER: dict[str, Any] = BLOCKS | SPECIAL | {"max_position_embeddings": 32}
GROUPED: dict[str, Any] = DECODER | {"num_key_value_heads": 1, "head_dim": 8}
PATCHES: dict[str, Any] = BLOCKS | {"image_size": 32, "patch_size": 8} | CLASSES
WAVES: dict[str, Any] = (
    BLOCKS
    | CLASSES
    | {
        "vocab_size": VOCAB,
        "pad_token_id": PAD,
        "conv_dim": (16, 16),
        "conv_kernel": (10, 3),
        "conv_stride": (5, 2),
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "classifier_proj_size": 16,
    }
)


def vit() -> Built:
    return tf.ViTForImageClassification(tf.ViTConfig(**PATCHES)), images


def deit() -> Built:
    return tf.DeiTForImageClassification(tf.DeiTConfig(**PATCHES)), images


def swin() -> Built:
    config = tf.SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=16,
        depths=[2, 1],
        num_heads=[2, 2],
        window_size=4,
        mlp_ratio=2.0,
        **CLASSES,
    )
    return tf.SwinForImageClassification(config), images


def convnext() -> Built:
    # layer_scale_init_value=1: the default 1e-6 hides the blocks of an untrained model from its loss.
    config = tf.ConvNextConfig(
        num_stages=2, hidden_sizes=[16, 32], depths=[1, 1], layer_scale_init_value=1.0, **CLASSES
    )
    return tf.ConvNextForImageClassification(config), images


def resnet() -> Built:
    config = tf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], **CLASSES)
    return tf.ResNetForImageClassification(config), images


def clip() -> Built:
    text = DECODER | {"projection_dim": 16}
    vision = {k: v for k, v in PATCHES.items() if k != "num_labels"} | {"projection_dim": 16}
    config = tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16, **CLASSES)
    return tf.CLIPForImageClassification(config), images


def dinov2() -> Built:
    return tf.Dinov2ForImageClassification(tf.Dinov2Config(**PATCHES, mlp_ratio=2)), images


def whisper() -> Built:
    config = tf.WhisperConfig(
        **SPECIAL,
        num_mel_bins=8,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=20,
        max_target_positions=32,
        decoder_start_token_id=BOS,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return tf.WhisperForConditionalGeneration(config), spectrograms


def wav2vec2() -> Built:
    config = tf.Wav2Vec2Config(**WAVES, feat_extract_norm="layer", do_stable_layer_norm=True)
    return tf.Wav2Vec2ForSequenceClassification(config), ragged_waveforms


def wav2vec2_ctc() -> Built:
    config = tf.Wav2Vec2Config(**WAVES, feat_extract_norm="layer", do_stable_layer_norm=True)
    return tf.Wav2Vec2ForCTC(config), transcribed_waveforms


def hubert() -> Built:
    return tf.HubertForSequenceClassification(tf.HubertConfig(**WAVES)), waveforms


def bert() -> Built:
    return tf.BertForSequenceClassification(tf.BertConfig(**DECODER, **CLASSES)), text_classes


def bert_lm() -> Built:
    return tf.BertForMaskedLM(tf.BertConfig(**DECODER)), masked_text


def distilbert() -> Built:
    config = tf.DistilBertConfig(
        vocab_size=VOCAB,
        pad_token_id=PAD,
        max_position_embeddings=32,
        dim=16,
        hidden_dim=32,
        n_layers=2,
        n_heads=2,
        **CLASSES,
    )
    return tf.DistilBertForSequenceClassification(config), text_classes


def roberta() -> Built:
    return tf.RobertaForSequenceClassification(tf.RobertaConfig(**DECODER, **CLASSES)), text_classes


def _gpt2_config() -> tf.GPT2Config:
    return tf.GPT2Config(**SPECIAL, n_positions=32, n_embd=16, n_layer=2, n_head=2, **CLASSES)


def gpt2() -> Built:
    return tf.GPT2LMHeadModel(_gpt2_config()), causal_text


def gpt2_classifier() -> Built:
    return tf.GPT2ForSequenceClassification(_gpt2_config()), text_classes


def llama() -> Built:
    return tf.LlamaForCausalLM(tf.LlamaConfig(**GROUPED)), causal_text


def qwen2() -> Built:
    return tf.Qwen2ForCausalLM(tf.Qwen2Config(**DECODER, num_key_value_heads=1)), causal_text


def qwen3() -> Built:
    return tf.Qwen3ForCausalLM(tf.Qwen3Config(**GROUPED)), causal_text


def gemma() -> Built:
    return tf.GemmaForCausalLM(tf.GemmaConfig(**GROUPED)), causal_text


def gemma3() -> Built:
    config = tf.Gemma3TextConfig(**GROUPED, sliding_window=4, layer_types=["sliding_attention", "full_attention"])
    return tf.Gemma3ForCausalLM(config), causal_text


def phi() -> Built:
    return tf.PhiForCausalLM(tf.PhiConfig(**DECODER)), causal_text


def phi3() -> Built:
    return tf.Phi3ForCausalLM(tf.Phi3Config(**DECODER)), causal_text


def t5() -> Built:
    config = tf.T5Config(
        **SPECIAL | {"decoder_start_token_id": PAD},
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
    )
    return tf.T5ForConditionalGeneration(config), text_pairs


def albert() -> Built:
    """Two layers that share their weights."""
    return tf.AlbertForSequenceClassification(tf.AlbertConfig(**DECODER, embedding_size=8, **CLASSES)), text_classes


def mixtral() -> Built:
    """A mixture of experts: tokens of all samples are sorted by expert, whose weights are one tensor of three axes."""
    return tf.MixtralForCausalLM(tf.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2)), causal_text


ARCHITECTURES: dict[str, Callable[[], Built]] = {
    build.__name__: build
    for build in (
        vit,
        deit,
        swin,
        convnext,
        resnet,
        clip,
        dinov2,
        whisper,
        wav2vec2,
        wav2vec2_ctc,
        hubert,
        bert,
        bert_lm,
        distilbert,
        roberta,
        gpt2,
        gpt2_classifier,
        llama,
        qwen2,
        qwen3,
        gemma,
        gemma3,
        phi,
        phi3,
        t5,
        albert,
        mixtral,
    )
}


def make(name: str) -> Built:
    """The model and the batch function of an architecture, always with the same weights."""
    torch.manual_seed(0)
    return ARCHITECTURES[name]()


def samples(batch: Batch) -> list[dict[str, Any]]:
    """The samples of a batch without padding: ints for single labels, lists for sequences, tensors for the rest."""
    mask = batch.get("attention_mask")
    samples = []
    for i in range(len(batch["labels"])):
        sample = {}
        for name, values in batch.items():
            value = values[i]
            if mask is not None and values.shape == mask.shape:
                value = value[mask[i] == 1]
            elif name == "labels" and value.ndim == 1:
                value = value[value != -100]
            sample[name] = value.tolist() if value.ndim < 2 else value
        samples.append(sample)
    return samples


class Samples(torch.utils.data.Dataset):
    """A list as a map-style dataset."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def named(datasets):
    """Datasets by their short names, as the arguments of the same name: `forget` as `forget_ds`."""
    return {
        f"{name}_ds" if name in ("forget", "retain", "unseen") else name: dataset for name, dataset in datasets.items()
    }
