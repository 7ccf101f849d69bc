"""Make an image classifier forget a class.

On the Hub, or on local folders and parquet files (columns image and label) in their place:
    python examples/vit.py --model nateraw/vit-base-beans --dataset AI-Lab-Makerere/beans --forget bean_rust
From scratch in minutes, a small ViT on 6,000 images of Fashion-MNIST (fashion_mnist_{train,test}.parquet in DIR):
    python examples/vit.py --tiny --data DIR --forget Sandal --retrained
"""

import _tiny
from common import command_line, load_train_unseen
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_unlearn import UnlearningArguments, UnlearningTrainer, split_forget_retain
from hf_unlearn.data.preprocessing import prepare


def main() -> None:
    """Load a model, make it forget a class, and print the metrics."""
    names = {"model": "nateraw/vit-base-beans", "dataset": "AI-Lab-Makerere/beans"}
    options = command_line(__doc__, **names, train=":train", unseen=":validation", forget="0")
    if options.tiny:
        model, processor, train_ds, unseen_ds = _tiny.Vit.start(options.data)
    else:
        model = AutoModelForImageClassification.from_pretrained(options.model)
        processor = AutoImageProcessor.from_pretrained(options.model)
        train_ds, unseen_ds = (prepare(samples, model, processor) for samples in load_train_unseen(options))

    label = train_ds.features["label"].str2int(options.forget)
    forget_ds, retain_ds = split_forget_retain(train_ds, column="label", values=[label])
    args = UnlearningArguments(options.output, method=options.method)
    trainer = UnlearningTrainer(model, forget_ds, retain_ds, args, unseen_ds=unseen_ds, processing_class=processor)
    trainer.train()
    trainer.save_model()

    if options.retrained:
        retrained = _tiny.Vit.trained(retain_ds, processor, seed=1)
        print("retrained without the forget dataset:")
        print(UnlearningTrainer(retrained, forget_ds, retain_ds, args, unseen_ds=unseen_ds).evaluate())


if __name__ == "__main__":
    main()
