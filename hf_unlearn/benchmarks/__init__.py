"""Published benchmarks of unlearning, by name: their data, their metrics, and what open-unlearning adds to them."""

from hf_unlearn.benchmarks.running import BENCHMARKS, Benchmark, BenchmarkResult, default_retain_model, run_benchmark

__all__ = ["BENCHMARKS", "Benchmark", "BenchmarkResult", "default_retain_model", "run_benchmark"]
