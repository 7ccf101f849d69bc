"""Make a text classifier forget a class: here, an intent of bank customers.

On the Hub, or on local folders and parquet files (columns text and label) in their place:
    python examples/text_classification.py --model philschmid/BERT-Banking77 --forget card_arrival
From scratch in minutes, a small BERT on Banking77 (banking77.parquet in DIR):
    python examples/text_classification.py --tiny --data DIR --reference
"""

import numpy as np
import torch
from common import command_line, load_train_unseen, train_base
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from hf_unlearn import UnlearningArguments, UnlearningTrainer, split_forget_retain
from hf_unlearn.preparing import prepare
from hf_unlearn.reading import load_rows

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
TRAINING = {"learning_rate": 1e-3, "num_train_epochs": 20, "per_device_train_batch_size": 64, "warmup_steps": 100}


def tiny_tokenizer(data_dir: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 2,000 lower-case tokens, trained on the texts of the training split.

    Not WordPiece, whose trainer breaks ties anew in every process: a model would be read with other tokens than it was
    trained with.
    """
    rows = load_rows(f"{data_dir}/banking77.parquet")
    bpe = Tokenizer(models.BPE())
    bpe.normalizer, bpe.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator((row["text"] for row in rows if row["split"] == "train"), trainer)
    bpe.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=64, **SPECIAL)


def tiny_model(seed: int = 0) -> BertForSequenceClassification:
    """A BERT of 0.6 M weights for 77 classes, not trained yet."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=2000, max_position_embeddings=64, num_labels=77, pad_token_id=0, **sizes)
    return BertForSequenceClassification(config)


def tiny_data(data_dir: str, seed: int = 0) -> tuple[Dataset, Dataset, Dataset]:
    """The training split, and the test split in two halves, for the forgetting target and for testing.

    Texts that come twice are there once: in the training split where it has them.
    """
    rows = load_rows(f"{data_dir}/banking77.parquet").shuffle(seed=seed)
    splits = np.array(rows["split"])
    rows = prepare(rows.select_columns(["text", "label"]), tiny_model(), tiny_tokenizer(data_dir))
    order = np.argsort(splits == "test", kind="stable")
    _, first = np.unique([" ".join(map(str, ids)) for ids in rows.select(order)["input_ids"]], return_index=True)
    rows, splits = rows.select(order[np.sort(first)]), splits[order[np.sort(first)]]
    test = rows.select(np.flatnonzero(splits == "test"))
    half = len(test) // 2
    train = rows.select(np.flatnonzero(splits == "train"))
    return train, test.select(range(half)), test.select(range(half, len(test)))


def main() -> None:
    """Train or load a model, make it forget an intent, and print the figures."""
    # The revision is the Hub's own copy in parquet: datasets no longer runs the script of PolyAI/banking77.
    names = {"model": "philschmid/BERT-Banking77", "dataset": "PolyAI/banking77@refs/convert/parquet"}
    options = command_line(__doc__, **names, train=":train", unseen=":test", forget="card_arrival")
    if options.tiny:
        tokenizer, (train, unseen, _) = tiny_tokenizer(options.data), tiny_data(options.data)
        model = train_base(tiny_model(), train, TRAINING, tokenizer)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(options.model)
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        train, unseen = (prepare(rows, model, tokenizer) for rows in load_train_unseen(options))

    label = train.features["label"].str2int(options.forget)
    forget, retain = split_forget_retain(train, column="label", values=[label])
    args = UnlearningArguments(options.output, method=options.method)
    trainer = UnlearningTrainer(model, forget, retain, args, unseen_ds=unseen, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    if options.reference:
        retrained = train_base(tiny_model(seed=1), retain, TRAINING, tokenizer, seed=1)
        print("retrained without the forget set:")
        print(UnlearningTrainer(retrained, forget, retain, args, unseen_ds=unseen).evaluate())


if __name__ == "__main__":
    main()
