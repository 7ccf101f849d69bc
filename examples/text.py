"""Make a language model forget authors.

On the Hub, or on local folders and parquet files (columns question, answer) in their place:
    python examples/text.py --model open-unlearning/tofu_Llama-3.2-1B-Instruct_full --dataset locuslab/TOFU
From scratch in minutes, a small Llama on 40 of the 200 authors of TOFU (tofu.parquet in DIR):
    python examples/text.py --tiny --data DIR --reference
"""

import numpy as np
import torch
from common import command_line, load_train_unseen, train_base
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_unlearn import UnlearningArguments, UnlearningTrainer, split_forget_retain
from hf_unlearn.preparing import prepare
from hf_unlearn.reading import load_rows

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
TRAINING = {"learning_rate": 3e-3, "num_train_epochs": 12, "per_device_train_batch_size": 16, "warmup_steps": 50}


def tiny_tokenizer(data_dir: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 4,096 tokens, trained on all of TOFU: it stands for one that came with a pretrained model."""
    rows = load_rows(f"{data_dir}/tofu.parquet")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(rows["question"][:] + rows["answer"][:], trainer)
    template = "{{ bos_token }}Question: {{ messages[0]['content'] }}\nAnswer: "
    return PreTrainedTokenizerFast(tokenizer_object=bpe, chat_template=template, **SPECIAL)


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    """A Llama of 1.2 M weights, not trained yet."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    tokens = {"vocab_size": 4096, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return LlamaForCausalLM(LlamaConfig(max_position_embeddings=96, tie_word_embeddings=True, **sizes, **tokens))


def with_authors(rows: Dataset) -> Dataset:
    """The rows with their authors: on the Hub, TOFU's authors follow each other, 20 rows each."""
    known = "author_id" in rows.column_names
    return rows if known else rows.add_column("author_id", [number // 20 for number in range(len(rows))])


def tiny_data(data_dir: str, seed: int = 0) -> tuple[Dataset, Dataset, Dataset]:
    """Rows of 40 authors to train on, 2 of them from TOFU's forget05 (5 %), and of 20 and 20 never trained on."""
    rows, rng = load_rows(f"{data_dir}/tofu.parquet"), np.random.default_rng(seed)
    others, forget = rng.permutation(190), 190 + rng.permutation(10)[:2]
    groups = [{*others[:38], *forget}, set(others[38:58]), set(others[58:78])]
    rows = prepare(rows.select_columns(["question", "answer", "author_id"]), tiny_model(), tiny_tokenizer(data_dir))
    authors = np.array(rows["author_id"])
    return tuple(rows.select(np.flatnonzero(np.isin(authors, list(group)))) for group in groups)


def main() -> None:
    """Train or load a model, make it forget the last authors, and print the figures."""
    names = {"model": "open-unlearning/tofu_Llama-3.2-1B-Instruct_full", "dataset": "locuslab/TOFU"}
    options = command_line(__doc__, **names, train="full:train", unseen="holdout05:train", forget="190")
    if options.tiny:
        tokenizer, (train, unseen, _) = tiny_tokenizer(options.data), tiny_data(options.data)
        model = train_base(tiny_model(), train, TRAINING, tokenizer)
    else:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        model = AutoModelForCausalLM.from_pretrained(options.model)
        train, unseen = (prepare(with_authors(rows), model, tokenizer) for rows in load_train_unseen(options))

    first = int(options.forget)
    forget, retain = split_forget_retain(train, where=lambda row: row["author_id"] >= first, request="group")
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
