"""Make a speech recogniser forget a speaker, and print the word error rate of every speaker.

On the Hub, or on local folders and parquet files (columns audio, text and speaker_id) in their place:
    python examples/whisper.py --model openai/whisper-tiny --dataset openslr/librispeech_asr --forget 1272
From scratch in minutes, a small Whisper on strings of spoken digits (fsdd.parquet, fsdd_strings_manifest.parquet):
    python examples/whisper.py --tiny --data DIR --forget george --retrained
"""

import re

import _tiny
import jiwer
from common import command_line, load_train_unseen
from datasets import Dataset, Value
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_unlearn import UnlearningArguments, UnlearningTrainer, split_forget_retain
from hf_unlearn.data.preprocessing import prepare


def ready(samples: Dataset, model: WhisperForConditionalGeneration, processor: WhisperProcessor) -> Dataset:
    """Features and labels of audio and text, and the speaker."""
    samples = samples.select_columns(["audio", "text", "speaker_id"]).rename_column("speaker_id", "speaker")
    return prepare(samples.cast_column("speaker", Value("string")), model, processor)


def word_error_rates(
    model: WhisperForConditionalGeneration, samples: Dataset, processor: WhisperProcessor
) -> dict[str, float]:
    """The word error rate of `model` on each speaker, in percent, without case and punctuation."""
    pairs: dict[str, tuple[list, list]] = {}
    for batch in samples.iter(32):
        heard = model.eval().generate(batch["input_features"].to(model.device))
        for speaker, *sequences in zip(batch["speaker"], batch["labels"], heard, strict=True):
            for texts, tokens in zip(pairs.setdefault(speaker, ([], [])), sequences, strict=True):
                text = processor.tokenizer.decode(tokens, skip_special_tokens=True)
                texts.append(re.sub(r"[^\w' ]", "", text.lower()).strip())
    return {speaker: round(100 * jiwer.wer(*texts), 1) for speaker, texts in sorted(pairs.items())}


def main() -> None:
    """Load a model, make it forget a speaker, and print word error rates by speaker."""
    names = {"model": "openai/whisper-tiny", "dataset": "openslr/librispeech_asr"}
    options = command_line(__doc__, **names, train="clean:validation", unseen="clean:test", forget="1272")
    if options.tiny:
        model, processor, train_ds, unseen_ds = _tiny.Whisper.start(options.data)
    else:
        model = WhisperForConditionalGeneration.from_pretrained(options.model)
        processor = WhisperProcessor.from_pretrained(options.model)
        train_ds, unseen_ds = (ready(samples, model, processor) for samples in load_train_unseen(options))

    print("word error rates before:", word_error_rates(model, train_ds, processor))
    forget_ds, retain_ds = split_forget_retain(train_ds, column="speaker", values=[options.forget])
    args = UnlearningArguments(options.output, method=options.method)
    trainer = UnlearningTrainer(model, forget_ds, retain_ds, args, unseen_ds=unseen_ds, processing_class=processor)
    trainer.train()
    trainer.save_model()
    print("after:", word_error_rates(trainer.model, train_ds, processor))

    if options.retrained:
        retrained = _tiny.Whisper.trained(retain_ds, processor, seed=1)
        print("retrained without the speaker:", word_error_rates(retrained, train_ds, processor))


if __name__ == "__main__":
    main()
