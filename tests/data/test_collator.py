"""The default collator."""

import torch
from tiny import make

from hf_unlearn.data.collator import default_collator


def test_collator_pads_for_every_modality():
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        Wav2Vec2Config,
        Wav2Vec2ForSequenceClassification,
    )

    bert = BertForSequenceClassification(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, pad_token_id=3)
    )
    batch = default_collator(bert)([{"input_ids": [5, 6], "label": 1}, {"input_ids": [7], "label": 0}])
    assert batch["input_ids"].tolist() == [[5, 6], [7, 3]] and batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [1, 0]
    padded = {"input_ids": [0, 5, 6, 0], "attention_mask": [0, 1, 1, 0]}
    assert default_collator(make("gpt2")[0])([padded])["labels"].tolist() == [[-100, 5, 6, -100]]
    tokens = default_collator(bert)([{"input_ids": [5, 6], "labels": [1, 0]}, {"input_ids": [7], "labels": [2]}])
    assert tokens["labels"].tolist() == [[1, 0], [2, -100]]
    images = default_collator(bert)([{"pixel_values": torch.ones(1, 2, 2, dtype=torch.float64)}] * 2)
    assert images["pixel_values"].shape == (2, 1, 2, 2) and images["pixel_values"].dtype == torch.float64
    for norm, masked in (("layer", True), ("group", False)):
        config = Wav2Vec2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, feat_extract_norm=norm,
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
            conv_dim=(8,), conv_stride=(2,), conv_kernel=(2,),
        )  # fmt: skip
        audio = default_collator(Wav2Vec2ForSequenceClassification(config))
        batch = audio([{"input_values": [0.1, 0.2, 0.3], "label": 0}, {"input_values": [0.4], "label": 1}])
        assert batch["input_values"].shape == (2, 3) and ("attention_mask" in batch) == masked
