"""Make a text classifier forget a class: here, an intent of bank customers.

On the Hub, or on local folders and parquet files (columns text and label) in their place:
    python examples/text_classification.py --model philschmid/BERT-Banking77 --forget card_arrival
From scratch in minutes, a small BERT on Banking77 (banking77.parquet in DIR):
    python examples/text_classification.py --tiny --data DIR --retrained
"""

import _tiny
from common import command_line, load_train_unseen
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_unlearn import UnlearningArguments, UnlearningTrainer, split_forget_retain
from hf_unlearn.data.preprocessing import prepare


def main() -> None:
    """Load a model, make it forget an intent, and print the metrics."""
    # The revision is the Hub's own copy in parquet: datasets no longer runs the script of PolyAI/banking77.
    names = {"model": "philschmid/BERT-Banking77", "dataset": "PolyAI/banking77@refs/convert/parquet"}
    options = command_line(__doc__, **names, train=":train", unseen=":test", forget="card_arrival")
    if options.tiny:
        model, tokenizer, train_ds, unseen_ds = _tiny.TextClassifier.start(options.data)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(options.model)
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        train_ds, unseen_ds = (prepare(samples, model, tokenizer) for samples in load_train_unseen(options))

    label = train_ds.features["label"].str2int(options.forget)
    forget_ds, retain_ds = split_forget_retain(train_ds, column="label", values=[label])
    args = UnlearningArguments(options.output, method=options.method)
    trainer = UnlearningTrainer(model, forget_ds, retain_ds, args, unseen_ds=unseen_ds, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()

    if options.retrained:
        retrained = _tiny.TextClassifier.trained(retain_ds, tokenizer, seed=1)
        print("retrained without the forget dataset:")
        print(UnlearningTrainer(retrained, forget_ds, retain_ds, args, unseen_ds=unseen_ds).evaluate())


if __name__ == "__main__":
    main()
