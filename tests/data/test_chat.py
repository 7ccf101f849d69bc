"""Conversations, instructions and masks: which tokens of a causal language model are labels."""

import datetime

import pytest
import tiny_data
import torch
import transformers as tf
from datasets import Dataset
from tiny import make
from tokenizers import Tokenizer, models, pre_tokenizers

from hf_unlearn import UnlearningArguments, UnlearningTrainer
from hf_unlearn.data.collator import default_collator, readable_collator
from hf_unlearn.data.preprocessing import prepare
from hf_unlearn.hub.record import make_record, verify

pytestmark = pytest.mark.usefixtures("cache")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
DATED = "<|im_start|>system\nToday is {{ strftime_now('%d %b %Y') }}<|im_end|>\n" + CHATML
TURN = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann wrote."}]


def bytewise(template=CHATML):
    """A tokenizer of single characters, whose end of text is not what the template ends a turn with."""
    special = ["<pad>", "<eos>", "<|im_start|>", "<|im_end|>", "<think>", "[UNK]"]
    letters = sorted({chr(i) for i in range(32, 127)} | {"\n"})
    characters = Tokenizer(models.WordLevel({t: i for i, t in enumerate([*special, *letters])}, unk_token="[UNK]"))
    characters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    characters.add_special_tokens(special)
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=characters, chat_template=template, pad_token="<pad>", eos_token="<eos>", unk_token="[UNK]",
    )  # fmt: skip


def model_of(tokenizer):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **sizes))


def written(samples, tokenizer=None, **settings):
    """Prompt and answer of the first sample, as text."""
    tokenizer = tokenizer or bytewise()
    ready = prepare(Dataset.from_dict(samples), model_of(tokenizer), tokenizer, **settings)[0]
    start = sum(label == -100 for label in ready["labels"])
    assert ready["labels"][start:] == ready["input_ids"][start:]
    text = tokenizer.convert_ids_to_tokens(ready["input_ids"])
    return "".join(text[:start]), "".join(text[start:])


QUESTION = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
ANSWER = "Ann wrote.<|im_end|>\n"  # and not "<eos>"

FORMS = {
    "messages": {"messages": [TURN]},
    "ShareGPT": {"conversations": [[{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ann wrote."}]]},
    "parts": {
        "messages": [
            [{"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "o?"}]},
             {"role": "assistant", "content": [{"type": "text", "text": "Ann wrote."}]}]
        ]
    },
    "question": {"question": ["Who?"], "answer": ["Ann wrote."]},
    "Alpaca": {"instruction": ["Who?"], "input": [""], "output": ["Ann wrote."]},
    "prompt of messages": {"prompt": [TURN[:1]], "completion": [TURN[1:]]},
    "prompt of messages, text": {"prompt": [TURN[:1]], "completion": ["Ann wrote."]},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_answer_ends_as_the_template_ends_a_turn(form):
    assert written(FORMS[form]) == (QUESTION, ANSWER)


def test_a_template_that_opens_a_thought_for_generation():
    assert written(FORMS["messages"], bytewise(THINKING)) == (QUESTION, ANSWER)


def test_the_last_answer_is_the_label():
    longer = [*TURN, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
    prompt, answer = written({"messages": [longer]})
    assert prompt == QUESTION + ANSWER + "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    assert answer == "Yes.<|im_end|>\n"


def test_instructions_with_and_without_an_input():
    samples = {"instruction": ["Add."], "input": ["1 2"], "output": ["3"]}
    assert written(samples)[0] == "<|im_start|>user\nAdd.\n\n1 2<|im_end|>\n<|im_start|>assistant\n"
    plain = bytewise(None)
    prompt, answer = written(samples, plain)
    assert prompt.endswith("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n") and answer == "3<eos>"
    prompt, answer = written({**samples, "input": [None]}, plain)
    assert prompt.endswith("completes the request.\n\n### Instruction:\nAdd.\n\n### Response:\n")
    named = {"question": ["Add."], "text": ["1 2"], "answer": ["3"]}
    assert written(named, columns={"input": "text"})[0] == written(samples)[0]
    assert written(named, plain, columns={"input": "text"})[0] == "Question: Add.\n1 2\nAnswer:"


@pytest.mark.parametrize("template", [CHATML, None])
def test_an_input_is_read_whatever_the_name_of_its_instruction(template):
    samples = {"instruction": ["Add."], "input": ["1 2"], "output": ["3"]}
    expected = written(samples, bytewise(template))
    renamed = {"instr": ["Add."], "input": ["1 2"], "output": ["3"]}
    assert written(renamed, bytewise(template), columns={"prompt": "instr"}) == expected
    prompts = {"prompt": ["Add."], "ctx": ["1 2"], "output": ["3"]}
    assert written(prompts, bytewise(template), columns={"input": "ctx"}) == expected
    asked = {"input": ["Add."], "output": ["3"]}
    assert written(asked, bytewise(template), columns={"prompt": "input"}) == ("Add.", "3<eos>")


def test_what_would_be_dropped_is_refused():
    with pytest.raises(ValueError, match=r"^samples: sample 0, column 'completion': has 2 messages for a prompt that"):
        written({"prompt": ["Who?"], "completion": [[TURN[1], TURN[1]]]})
    with pytest.raises(ValueError, match=r"^samples: sample 0, column 'ctx': has an input beside a prompt of mess"):
        written({"prompt": [TURN[:1]], "ctx": ["1 2"], "completion": ["3"]}, columns={"input": "ctx"})


REFUSED = {
    "ends with the user": (TURN[:1], "ends with a message of 'user'"),
    "empty": ([], "holds no messages"),
    "an image": (
        [{"role": "user", "content": [{"type": "image"}]}], r"has parts of type \['image'\]; only text is read"
    ),
    "an empty answer": ([TURN[0], {"role": "assistant", "content": None}], "is empty"),
    "no role": ([{"text": "Who?"}], r"found \['text'\]; a message has role and content"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_conversations_that_are_refused(name):
    tokenizer = bytewise()
    messages, message = REFUSED[name]
    with pytest.raises(ValueError, match=rf"^samples: sample 0(, message \d)?, column 'messages': {message}"):
        prepare(Dataset.from_dict({"messages": [messages]}), model_of(tokenizer), tokenizer)


def test_what_a_template_refuses_is_named():
    tokenizer = bytewise("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match=r"'messages': the chat template does not take it \(roles must alternate\);"):
        prepare(Dataset.from_dict({"messages": [TURN]}), model_of(tokenizer), tokenizer)


def test_a_template_with_todays_date_gives_the_same_record_on_every_day(monkeypatch):
    from transformers.utils import chat_template_utils

    def prepared(year):
        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.datetime(year, 1, 5)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        tokenizer = bytewise(DATED)
        return prepare(Dataset.from_dict({"messages": [TURN]}), model_of(tokenizer), tokenizer)

    first = prepared(2026)
    record = make_record(
        forget_ds=first, columns=["input_ids", "labels"], request="samples", request_id=None, method={}, settings={},
        weights={"kind": "model", "before": None, "after": None}, report=None,
    )  # fmt: skip
    assert verify(record, samples=prepared(2027)).matches
    assert written({"messages": [TURN]}, bytewise(DATED))[0].startswith(
        "<|im_start|>system\nToday is 26 Jul 2024<|im_end"
    )


@pytest.mark.parametrize("masks", [("completion_mask",), ("assistant_masks",), ("completion_mask", "assistant_masks")])
def test_masks_say_which_tokens_are_labels(masks, tmp_path):
    model, _ = make("llama")
    ids, mask = [[5, 6, 7], [8, 9, 4]], [[0, 1, 1], [0, 0, 1]]
    samples = Dataset.from_dict({"input_ids": ids, **dict.fromkeys(masks, mask)})
    expected = [[-100, 6, 7], [-100, -100, 4]]
    for make_collator in (default_collator, readable_collator):
        batch = make_collator(model)(list(samples))
        assert sorted(batch) == ["input_ids", "labels"] and batch["labels"].tolist() == expected
    retain = Dataset.from_dict({"input_ids": [[3, 2, 1], [4, 4, 4]], **dict.fromkeys(masks, mask)})
    args = UnlearningArguments(
        str(tmp_path), method="grad_diff", max_steps=1, report_to="none", disable_tqdm=True, use_cpu=True,
        request="samples", per_device_train_batch_size=2,
    )  # fmt: skip
    trainer = UnlearningTrainer(model, samples, retain, args)
    batch = next(iter(trainer.get_train_dataloader()))["forget"]
    assert sorted(map(tuple, batch["labels"].tolist())) == sorted(map(tuple, expected))
    trainer.train()


def test_a_template_that_writes_questions_only_keeps_the_end_of_text():
    model, tokenizer = tiny_data.text()
    ready = prepare(Dataset.from_dict({"messages": [TURN]}), model, tokenizer)[0]
    assert ready["labels"][-1] == tokenizer.eos_token_id
    assert torch.tensor(ready["labels"]).ne(-100).sum() == 3
