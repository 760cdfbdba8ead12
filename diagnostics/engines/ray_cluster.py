"""A Ray cluster: how its machines are divided into workers, and what each of them must find before work begins."""

import importlib.util
import logging
import os
import socket
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from teachdiag.diagnostics.engines.vllm_launch import require_vllm, weights
from teachdiag.diagnostics.models.pair import pinned, resolve_pair
from teachdiag.diagnostics.models.sources import Sources
from teachdiag.diagnostics.processes.devices import machine_facts, pick_device
from teachdiag.errors import InputError, ModelError, SettingsError, cause
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings

_QUIET = Reporter(quiet=True)
_SOON, _DAY = 60.0, 86_400.0  # seconds


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that is connected, and how its machines are divided into workers.

    Attributes:
        workers: how many there are.
        engines: vLLM engines among which they are divided while they sample.
        share: what each takes of its machine, as Ray calls it: `num_cpus`, or `num_gpus`.
        facts: what decides the last digits of the numbers: the workers' devices, and the threads of a CPU.
        model: what vLLM loads on every machine; '' where nothing is sampled.
    """

    workers: int
    engines: int
    share: dict[str, int]
    facts: dict[str, Any]
    model: str

    @property
    def on_cpu(self) -> bool:
        """Whether its workers have no GPU."""
        return "num_gpus" not in self.share


@contextmanager
def connected(settings: CaptureSettings, sources: Sources, reporter: Reporter) -> Iterator[Cluster]:
    """Connect to the cluster that `RAY_ADDRESS` names, or that runs on this machine, or start one here meanwhile.

    Raises:
        ModelError: Ray or vLLM is not installed, the cluster cannot be reached, or a machine of it has other weights.
        SettingsError: it has fewer processors than are asked for.
    """
    ray = require_ray()
    ours = not ray.is_initialized()
    with _quiet():
        if ours:
            try:
                ray.init(include_dashboard=False, log_to_driver=False)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                raise ModelError(f"no Ray cluster can be reached: {cause(error)}; see RAY_ADDRESS") from error
        try:
            machines = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
            workers, engines, share = divided(settings, [node["Resources"] for node in machines])
            resources = ", ".join(f"{number:g} {name.removeprefix('num_')}" for name, number in share.items())
            reporter.say(f"Ray {ray.__version__}: {workers} workers of {resources} on {len(machines)} machines")
            with errors_of_workers(), _settings_of_data():
                facts, model = _prepared(settings, sources, machines, share, reporter)
                yield Cluster(workers, engines, share, facts, model)
        finally:
            if ours:
                ray.shutdown()


def require_ray() -> Any:  # noqa: ANN401
    """Import Ray.

    Raises:
        ModelError: it is not installed, or lacks the parts that are needed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ModelError(
            "Ray is not installed: on every machine of the cluster, in an environment of its own that has teachdiag, "
            "pip install 'teachdiag[ray,vllm]', or for CPUs what vLLM needs there, and 'teachdiag[ray]'"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports home
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # no log lines between progress bars
    try:
        import ray
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig  # noqa: F401 (older ones have others)
    except (ImportError, RuntimeError) as error:
        raise ModelError(f"this Ray cannot be used: {cause(error)}; pip install 'ray[data]>=2.60'") from error
    return ray


def divided(settings: CaptureSettings, machines: list[dict[str, float]]) -> tuple[int, int, dict[str, int]]:
    """How many workers and engines there are, and what each worker takes of its machine.

    Args:
        settings: workers and devices that are asked for.
        machines: resources of each, as Ray calls them.

    Raises:
        ModelError: there is no machine.
        SettingsError: the cluster has fewer processors than are asked for.
    """
    if not machines:
        raise ModelError("the Ray cluster has no machine with a CPU: start some, or wait until they are up")
    gpus, cpus = (int(sum(resources.get(name, 0) for resources in machines)) for name in ("GPU", "CPU"))
    workers = settings.ray_workers or gpus or len(machines)
    if workers > (gpus or cpus):
        room = f"{gpus}, the GPUs" if gpus else f"{cpus}, the CPUs"
        raise SettingsError(f"--ray-workers is {workers}: it must be at most {room} of the cluster")
    if settings.tensor_parallel > max(1, min(gpus, workers)):
        raise SettingsError(
            f"--tensor-parallel is {settings.tensor_parallel}: the workers have {min(gpus, workers)} GPUs"
        )
    if gpus:  # an engine has its GPUs on one machine
        whole = sum(int(resources.get("GPU", 0)) // settings.tensor_parallel for resources in machines)
        if not whole:
            raise SettingsError(f"--tensor-parallel is {settings.tensor_parallel}: no machine has as many GPUs")
        return workers, min(workers // settings.tensor_parallel, whole), {"num_gpus": 1}
    on_one = -(-workers // len(machines))
    return workers, workers, {"num_cpus": max(1, int(min(resources["CPU"] for resources in machines)) // on_one)}


@contextmanager
def errors_of_workers() -> Iterator[None]:
    """Raise what a worker raised, without what Ray wraps it in.

    Raises:
        InputError: a worker raised it.
        ModelError: Ray gave up, since workers would not start, or nothing happened for a day.
    """
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayError

    try:
        yield
    except (RayError, ExecutionTimeoutError) as error:
        raised = getattr(error, "cause", None)
        if isinstance(raised, InputError):
            raise raised from None
        if isinstance(raised, Exception):
            raise raised from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        logs = "Ray's logs, by default in /tmp/ray/session_latest/logs of each machine, say more"
        raise ModelError(f"Ray gave up: {lines[-1]} ({logs})") from error


@contextmanager
def _settings_of_data() -> Iterator[None]:
    """Let Ray Data show no bars, raise what workers raise, and be patient with long rollouts and large shards."""
    import ray

    context = ray.data.DataContext.get_current()
    ours = {
        "enable_progress_bars": False,
        "raise_original_map_exception": True,
        "execution_no_progress_timeout_s": _DAY,
    }
    before = {name: getattr(context, name) for name in ours}
    try:
        for name, value in ours.items():
            setattr(context, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let no log lines come between progress bars: what Ray meets with is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _prepared(
    settings: CaptureSettings,
    sources: Sources,
    machines: list[dict[str, Any]],
    share: dict[str, int],
    reporter: Reporter,
) -> tuple[dict[str, Any], str]:
    """Let every machine find the models; return what they have in common."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    pins = [pinned(source) for source in sources]
    able = [node for node in machines if "num_gpus" not in share or node["Resources"].get("GPU")]
    ready = [
        ray.remote(_ready)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False), **share)
        .remote(settings, pins, share)
        for node in able
    ]
    _, silent = ray.wait(ready, num_returns=len(ready), timeout=_SOON)
    if silent:
        reporter.say(f"Ray: {len(silent)} of {len(ready)} machines have not answered yet: are they busy?")
    answers = ray.get(ready)
    models = sorted({model for _, model in answers})
    if len(models) > 1:
        raise ModelError(
            f"the machines keep the student in different places ({', '.join(models)}): give them the same "
            "TEACHDIAG_CACHE"
        )
    facts = [machine_facts for machine_facts, _ in answers]
    return {name: _common([machine_facts[name] for machine_facts in facts]) for name in facts[0]}, models[0]


def _ready(settings: CaptureSettings, pins: list[dict[str, Any]], share: dict[str, int]) -> tuple[dict[str, Any], str]:
    """On a worker: facts of its device, and where vLLM finds the student there."""
    keep_to(share)
    student, _ = same_models(settings, pins)
    facts = machine_facts(pick_device(settings.device))
    if settings.contexts:
        return facts, ""
    require_vllm()
    return facts, str(weights(student, _QUIET))


def keep_to(share: dict[str, int]) -> None:
    """On a worker: use no more threads than processors that it was given, whatever its environment says."""
    if "num_cpus" in share:
        torch.set_num_threads(share["num_cpus"])


def same_models(settings: CaptureSettings, pins: list[dict[str, Any]]) -> Sources:
    """On a worker: find the pair, which must be the very same there."""
    host = socket.gethostname()
    try:
        sources = resolve_pair(settings, _QUIET)
    except ModelError as error:
        raise ModelError(f"on machine {host}: {error}") from error
    for source, pin in zip(sources, pins, strict=True):
        if pinned(source) != pin:
            raise ModelError(f"machine {host} has other weights under the name {source.name!r}")
    return sources


def _common(values: Iterable[Any]) -> Any:  # noqa: ANN401
    """Return the one value that all machines share, or all values there are."""
    distinct = sorted(set(values), key=str)
    return distinct[0] if len(distinct) == 1 else ", ".join(map(str, distinct))
