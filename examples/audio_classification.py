"""Make an audio classifier forget a class: here, a spoken word.

On the Hub, or on local folders and parquet files (columns audio and label) in their place:
    python examples/audio_classification.py --model superb/hubert-base-superb-ks --forget yes
From scratch in minutes, a small audio spectrogram transformer on spoken digits (fsdd.parquet in DIR):
    python examples/audio_classification.py --tiny --data DIR --forget seven --retrained
"""

import _tiny
from common import command_line, load_train_unseen
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from hf_unlearn import UnlearningArguments, UnlearningTrainer, split_forget_retain
from hf_unlearn.data.preprocessing import prepare


def main() -> None:
    """Load a model, make it forget a word, and print the metrics."""
    names = {"model": "superb/hubert-base-superb-ks", "dataset": "regisss/superb_ks"}
    options = command_line(__doc__, **names, train=":train", unseen=":validation", forget="0")
    if options.tiny:
        model, extractor, train_ds, unseen_ds = _tiny.AudioClassifier.start(options.data)
    else:
        model = AutoModelForAudioClassification.from_pretrained(options.model)
        extractor = AutoFeatureExtractor.from_pretrained(options.model)
        train_ds, unseen_ds = (prepare(samples, model, extractor) for samples in load_train_unseen(options))

    label = train_ds.features["label"].str2int(options.forget)
    forget_ds, retain_ds = split_forget_retain(train_ds, column="label", values=[label])
    args = UnlearningArguments(options.output, method=options.method)
    trainer = UnlearningTrainer(model, forget_ds, retain_ds, args, unseen_ds=unseen_ds, processing_class=extractor)
    trainer.train()
    trainer.save_model()

    if options.retrained:
        retrained = _tiny.AudioClassifier.trained(retain_ds, extractor, seed=1)
        print("retrained without the forget dataset:")
        print(UnlearningTrainer(retrained, forget_ds, retain_ds, args, unseen_ds=unseen_ds).evaluate())


if __name__ == "__main__":
    main()
