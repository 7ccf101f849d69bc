"""What exact gradient surgery costs: this library's engine ("hooks") and four others that compute the same update.

    python benchmarks/per_sample.py --case vit-lora --k 8 32
    python benchmarks/table.py                       # the table of RESULTS.md, from the results

Every engine gets the same model, the same forget batch and the same retain batch of k samples each, and computes
OrthoGrad's update; "grad_diff" is the plain gradient-difference step, to which time and memory are relative. Engines
alternate within one process; results are medians. Memory is the peak of the step above what was allocated before it:
of the allocator on a GPU, otherwise of the process (every engine is measured in its own). Opacus and TorchJD are
included where they are installed and can run the model.
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers as tf
from accelerate import Accelerator

from hf_unlearn.losses import head_of
from hf_unlearn.methods import METHODS, RunInfo
from hf_unlearn.methods.surgery import Geometry
from hf_unlearn.models.adapters import add_adapter
from hf_unlearn.per_sample.basis import Basis
from hf_unlearn.per_sample.factors import Dense, Recording
from hf_unlearn.targets import DistributionTarget
from hf_unlearn.trainer.loss_step import LossStep
from hf_unlearn.trainer.surgery_step import SurgeryStep, combined_gradient

RESULTS = Path(__file__).parent / "results" / "per_sample"
VIT = {"num_labels": 10, "image_size": 224, "patch_size": 16}
SMALL = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
SEED = 0
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def images(k, seed):
    generator = torch.Generator().manual_seed(seed)
    return {"pixel_values": torch.randn(k, 3, 224, 224, generator=generator), "labels": torch.arange(k) % 10}


def speech(k, seed):
    """Ten seconds."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(k, 80, 1000, generator=generator)
    return {"input_features": features, "labels": torch.randint(10, 50000, (k, 24), generator=generator)}


def text(tokens, vocabulary=49152):
    def batch(k, seed):
        ids = torch.randint(10, vocabulary, (k, tokens), generator=torch.Generator().manual_seed(seed))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    return batch


def vit(layers, **size):
    return lambda: tf.ViTForImageClassification(tf.ViTConfig(**VIT, **size, num_hidden_layers=layers))


def whisper():
    return tf.WhisperForConditionalGeneration(tf.WhisperConfig(
        d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6, decoder_attention_heads=6,
        encoder_ffn_dim=1536, decoder_ffn_dim=1536, max_source_positions=500,
    ))  # fmt: skip


def gpt2(**size):
    return lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**size))


# A decoder whose output layer is most of its work, as in language models of a hundred million weights.
DECODER = {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 3, "num_key_value_heads": 3}


def llama():
    return tf.LlamaForCausalLM(tf.LlamaConfig(**DECODER, vocab_size=49152, num_hidden_layers=4))


def mixtral():
    return tf.MixtralForCausalLM(
        tf.MixtralConfig(**DECODER, vocab_size=4096, num_hidden_layers=2, num_local_experts=8, num_experts_per_tok=2)
    )


def mamba():
    return tf.MambaForCausalLM(tf.MambaConfig(hidden_size=192, vocab_size=4096, num_hidden_layers=2))


# name: (description, model, batch, with adapters)
CASES = {
    "vit-lora": ("ViT-base, LoRA, 197 tokens", vit(12), images, True),
    "vit-lora-4": ("ViT-base, 4 of its 12 layers, LoRA, 197 tokens", vit(4), images, True),
    "whisper-lora": ("Whisper-tiny, LoRA, 500 frames", whisper, speech, True),
    "vit-all": ("ViT of 11 M weights, all of them, 197 tokens", vit(6, **SMALL), images, False),
    "vit-all-2": ("ViT of 11 M weights, 2 of its 6 layers, all of them, 197 tokens", vit(2, **SMALL), images, False),
    "vit-all-1": ("ViT of 11 M weights, 1 of its 6 layers, all of them, 197 tokens", vit(1, **SMALL), images, False),
    "vit-lora-1": ("ViT of 11 M weights, 1 of its 6 layers, LoRA, 197 tokens", vit(1, **SMALL), images, True),
    "gpt2-lora": ("GPT-2 of 124 M weights, LoRA, 512 tokens", gpt2(), text(512), True),
    "gpt2-all": ("GPT-2 of 124 M weights, all of them, 512 tokens", gpt2(), text(512), False),
    "gpt2-small": (
        "GPT-2 of 3 M weights, all of them, 64 tokens", gpt2(n_layer=2, n_embd=256, n_head=4, vocab_size=4096),
        text(64, 4096), False,
    ),
    "llama-lora": ("Llama of 4 layers, width 192, 49 k words, LoRA, 16 tokens", llama, text(16), True),
    "mixtral-all": (
        "Mixtral of 2 layers, width 192, 8 experts, all weights, 64 tokens", mixtral, text(64, 4096), False
    ),
    "mamba-all": ("Mamba of 2 layers, width 192, all weights, 64 tokens", mamba, text(64, 4096), False),
}  # fmt: skip


class Setup:
    """A model and its two batches; every engine is a method without arguments that returns the update."""

    def __init__(self, case, k):
        _, build, batch, adapters = CASES[case]
        torch.manual_seed(SEED)
        model = build()
        if adapters:
            model = add_adapter(model)
            for name, p in model.named_parameters():
                if "lora_B" in name:  # zeros in a fresh adapter: half of the gradients would be zero as well
                    torch.nn.init.normal_(p, std=0.02)
        self.model = model.to(DEVICE).eval()
        self.forget, self.retain = ({n: v.to(DEVICE) for n, v in batch(k, seed).items()} for seed in (1, 2))
        self.k, self.head, self.accelerator = k, head_of(self.model), Accelerator(cpu=DEVICE == "cpu")
        self.parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.pairs = {"forget": self.forget, "retain": self.retain, "index": torch.arange(k, device=DEVICE)}
        self.wrapped = None

    def method(self, name):
        args = SimpleNamespace(
            forgetting_loss="grad_ascent", retain_weight=0.5, projection="gradient", forget_target="auto",
            method_kwargs=None,
        )  # fmt: skip
        return METHODS[name](args, RunInfo(self.k, self.k))

    def losses(self, batch):
        return self.head.losses(self.model(**self.head.inputs(batch)), batch)

    def descend(self, name, target=None):
        method = self.method(name)
        step = LossStep(method, self.head, self.accelerator, method.objective(target, None))
        # As in a first step whose samples are all there are.
        step.latest_scores, step.score_ages = torch.full((self.k,), torch.nan), torch.full((self.k,), -1.0)
        step.prepare_step(self.model, [self.pairs], 0.5)
        step.loss(self.model, self.pairs, 0.5, is_last=True).backward()
        return self.take_gradients()

    def grad_diff(self):
        return self.descend("grad_diff")

    def nabla_tau(self):
        return self.descend("nabla_tau", DistributionTarget(torch.linspace(0.0, 5.0, 64, device=DEVICE)))

    def hooks(self):
        return self.orthograd("hooks")

    def loop(self):
        return self.orthograd("loop")

    def orthograd(self, engine):
        if getattr(self, "engine", None) != engine:  # the engine checks its first batch only
            self.engine = engine
            method = self.method("orthograd")
            self.step = SurgeryStep(
                method, self.head, self.accelerator, method.objective(None, None),
                model=self.model, engine=engine, per_tensor=False,
            )  # fmt: skip
        self.step.prepare_step(self.model, [self.pairs], 0.5)
        self.step.loss(self.model, self.pairs, 0.5, is_last=True)
        self.step.on_optimizer_step()
        return self.take_gradients()

    def vmap(self):
        from torch.func import functional_call, grad, vmap

        rest = {n: p.detach() for n, p in self.model.named_parameters() if n not in self.parameters}

        def loss(parameters, sample):
            batch = {n: v[None] for n, v in sample.items()}
            outputs = functional_call(self.model, {**rest, **parameters}, (), self.head.inputs(batch))
            return self.head.losses(outputs, batch).sum()

        parameters = {n: p.detach() for n, p in self.parameters.items()}
        return self.from_per_sample(vmap(grad(loss), in_dims=(None, 0))(parameters, self.retain))

    def opacus(self):
        from opacus import GradSampleModule

        if self.wrapped is None:  # it records in train mode only; these models have no dropout
            self.wrapped = GradSampleModule(self.model.train(), strict=False, loss_reduction="sum")
        self.wrapped.enable_hooks()
        self.losses(self.retain).sum().backward()
        # Parameters that it has no per-sample gradients of: zeros, which the error shows.
        gradients = {
            n: p.new_zeros(self.k, *p.shape) if getattr(p, "grad_sample", None) is None else p.grad_sample
            for n, p in self.parameters.items()
        }
        for p in self.parameters.values():
            p.grad = p.grad_sample = None
        self.wrapped.disable_hooks()
        for name, g in gradients.items():
            if len(g) != self.k:
                raise ValueError(f"{name} has gradients of {len(g)} of {self.k} samples")
        return self.from_per_sample(gradients)

    def torchjd(self):
        """The Gram matrix of forget and retain samples together, then one backward pass with the weights it gives."""
        from torchjd.autogram import Engine

        if self.wrapped is None:
            self.wrapped = Engine(self.model, batch_dim=0)
        both = {n: torch.cat([self.forget[n], v]) for n, v in self.retain.items()}
        losses = self.losses(both)
        gram = self.wrapped.compute_gramian(losses).double()
        forget, k = torch.full((self.k,), -1 / self.k, device=DEVICE).double(), self.k
        gramian, slopes = gram[k:, k:], gram[k:, :k] @ forget
        combination = self.method("orthograd").combine(
            Geometry(gramian, slopes, float(forget @ gram[:k, :k] @ forget), 0), 0.5
        )
        weights = torch.cat([combination.forget * forget, combination.retain]).to(losses)
        grads = torch.autograd.grad(losses, list(self.parameters.values()), weights)
        return dict(zip(self.parameters, grads, strict=True))

    def from_per_sample(self, gradients):
        grads = torch.autograd.grad(-self.losses(self.forget).mean(), list(self.parameters.values()))
        recording = Recording(torch.zeros(self.k), {n: [Dense(g)] for n, g in gradients.items()})
        forget = dict(zip(self.parameters, grads, strict=True))
        basis = Basis(None)
        basis.recordings = [recording]
        return combined_gradient(self.method("orthograd"), basis, forget, basis.gram(forget, per_tensor=False), 0.5)[0]

    def take_gradients(self):
        gradients = {n: p.grad for n, p in self.parameters.items()}
        for p in self.parameters.values():
            p.grad = None
        return gradients


ENGINES = ("grad_diff", "nabla_tau", "hooks", "loop", "vmap", "opacus", "torchjd")


def run(case, k, engines, repeats, peaks):
    setup, steps, expected = Setup(case, k), {}, None
    results = {engine: {} for engine in engines}
    for engine, result in results.items():
        # An engine that wraps the model gets a model of its own, with the same weights.
        own_setup = Setup(case, k) if engine in ("opacus", "torchjd", "loop") else setup
        try:
            update = getattr(own_setup, engine)()
        except Exception as error:  # a library that cannot run this model is reported as such
            result["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
            continue
        steps[engine] = getattr(own_setup, engine)
        if engine == "hooks":
            expected = Setup(case, k).loop()
        if engine not in ("grad_diff", "nabla_tau") and expected:
            norm = torch.stack([g.square().sum() for g in expected.values()]).sum().sqrt()
            error = torch.stack([(update[n] - g).square().sum() for n, g in expected.items()]).sum().sqrt()
            result["error"] = float(error / norm)
    seconds = {engine: [] for engine in steps}
    for _ in range(repeats):
        for engine, step in steps.items():
            seconds[engine].append(timed(step))
    for engine, values in seconds.items():
        results[engine]["seconds"] = statistics.median(values)
        results[engine]["peak_bytes"] = peaks[case, k, engine]
    for result in results.values():
        if "seconds" in result:
            for name, key in (("time", "seconds"), ("memory", "peak_bytes")):
                result[name] = result[key] / results["grad_diff"][key]
    return {"case": CASES[case][0], "k": k, "engines": results}


def timed(step):
    """Seconds of a step: on a CPU processor time, which does not count what else the machine does."""
    if DEVICE == "cpu":
        started = time.process_time()
        step()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def peak(case, k, engine):
    """Peak memory of a step above what was there before it; on a CPU in a process of its own, which is forked."""
    if DEVICE == "cuda":
        step = getattr(Setup(case, k), engine)
        step()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=send_peak, args=(sender, case, k, engine))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:  # it has failed, as it will in this process, which says why
        return None
    finally:
        process.join()


def send_peak(sender, case, k, engine):
    # Freed memory must be returned at once, or the peak would be that of an earlier step.
    libc = ctypes.CDLL(None)
    for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        libc.mallopt(option, 2**16)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    step = getattr(Setup(case, k), engine)
    step()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    step()
    sender.send(resident("VmHWM") - before)


def resident(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def save(results, command):
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    path = RESULTS / f"{device.lower().replace(' ', '-')}.json"
    report = json.loads(path.read_text()) if path.exists() else {"results": []}
    names = [
        name
        for name in ("hf-unlearn", "torch", "transformers", "opacus", "torchjd")
        if find_spec(name.replace("-", "_"))
    ]
    report |= {"device": device if DEVICE == "cuda" else platform.machine(), "seed": SEED}
    report["versions"] = {name: version(name) for name in names}
    report["threads"] = torch.get_num_threads()
    for result in results:
        result["command"] = command
        key = (result["case"], result["k"])
        report["results"] = [other for other in report["results"] if (other["case"], other["k"]) != key] + [result]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, nargs="+", required=True)
    parser.add_argument("--k", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gigabytes", type=int, default=14, help="address space of a process, on a CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if DEVICE == "cpu":  # an engine that needs more fails, instead of all that runs on this machine
        resource.setrlimit(resource.RLIMIT_AS, (options.gigabytes * 2**30,) * 2)
    rows = [(case, k) for case in options.case for k in options.k]
    # Before this process has made any model, or it would have memory to give to a process that it forks.
    peaks = {(*row, engine): peak(*row, engine) for row in rows for engine in options.engines}
    for case, k in rows:
        result = run(case, k, options.engines, options.repeats, peaks)
        save([result], "python benchmarks/per_sample.py " + " ".join(sys.argv[1:]))
        print(json.dumps(result, indent=1), flush=True)


if __name__ == "__main__":
    main()
