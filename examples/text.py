"""Make a language model forget authors.

On the Hub, or on local folders and parquet files (columns question, answer) in their place:
    python examples/text.py --model open-unlearning/tofu_Llama-3.2-1B-Instruct_full --dataset locuslab/TOFU
From scratch in minutes, a small Llama on 40 of the 200 authors of TOFU (tofu.parquet in DIR):
    python examples/text.py --tiny --data DIR --retrained
"""

import _tiny
from common import command_line, load_train_unseen
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_unlearn import UnlearningArguments, UnlearningTrainer, split_forget_retain
from hf_unlearn.data.preprocessing import prepare


def with_authors(samples: Dataset) -> Dataset:
    """The samples with their authors: on the Hub, TOFU's authors follow each other, 20 samples each."""
    has_authors = "author_id" in samples.column_names
    return samples if has_authors else samples.add_column("author_id", [i // 20 for i in range(len(samples))])


def main() -> None:
    """Load a model, make it forget the last authors, and print the metrics."""
    names = {"model": "open-unlearning/tofu_Llama-3.2-1B-Instruct_full", "dataset": "locuslab/TOFU"}
    options = command_line(__doc__, **names, train="full:train", unseen="holdout05:train", forget="190")
    if options.tiny:
        model, tokenizer, train_ds, unseen_ds = _tiny.Text.start(options.data)
    else:
        model = AutoModelForCausalLM.from_pretrained(options.model)
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        loaded = load_train_unseen(options)
        train_ds, unseen_ds = (prepare(with_authors(samples), model, tokenizer) for samples in loaded)

    first = int(options.forget)
    forget_ds, retain_ds = split_forget_retain(
        train_ds, where=lambda sample: sample["author_id"] >= first, request="group"
    )
    args = UnlearningArguments(options.output, method=options.method)
    trainer = UnlearningTrainer(model, forget_ds, retain_ds, args, unseen_ds=unseen_ds, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()

    if options.retrained:
        retrained = _tiny.Text.trained(retain_ds, tokenizer, seed=1)
        print("retrained without the forget dataset:")
        print(UnlearningTrainer(retrained, forget_ds, retain_ds, args, unseen_ds=unseen_ds).evaluate())


if __name__ == "__main__":
    main()
