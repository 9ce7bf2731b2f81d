"""Where engine actors go, and why one that waits is waiting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raybatch.engines.base import EngineSpec

# A worker whose raylet is gone kills its own children, before it goes: the guardian, and the resource tracker
# that would unlink the shared memory of the others. The guardian ends them all, in the right order.
_LEAVE_CHILDREN = {"RAY_kill_child_processes_on_worker_exit": "false"}


def demand(spec: EngineSpec) -> dict[str, float]:
    """What one replica asks of one node, by Ray's resource names; zeros left out."""
    asked = {"GPU": spec.num_gpus, "CPU": spec.num_cpus, **spec.resources}
    return {name: amount for name, amount in asked.items() if amount > 0}


def create(actor_class: type, spec: EngineSpec) -> Any:
    """A handle of a new actor for `spec`; Ray places it when it can. Dies with the caller."""
    import ray

    options: dict[str, Any] = {
        "num_gpus": spec.num_gpus,
        "num_cpus": spec.num_cpus,
        "resources": dict(spec.resources) or None,
        "scheduling_strategy": "SPREAD",
        "max_restarts": 0,  # the pool replaces: only it knows of hung ones
        "max_concurrency": 1000,
        "runtime_env": {"env_vars": {**_LEAVE_CHILDREN, **spec.env}},
    }
    return ray.remote(actor_class).options(**options).remote(spec)


def on_node(node_id: str) -> Mapping[str, Any]:
    """Task options that pin it to a node and need nothing of it."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    return {"num_cpus": 0, "scheduling_strategy": strategy, "max_retries": 0}


def could_fit(spec: EngineSpec) -> bool:
    """Whether some node is large enough for one replica, were the node empty."""
    asked = demand(spec)
    return any(all(node.get(n, 0) >= a for n, a in asked.items()) for node in _nodes().values())


def explain(spec: EngineSpec) -> str:
    """One paragraph: what the engine asks for, and what each node has in total."""
    asked = ", ".join(f"{amount:g} {name}" for name, amount in demand(spec).items()) or "no resources"
    names = list(demand(spec)) or ["CPU", "GPU"]
    have = [
        f"    node {address}: " + ", ".join(f"{node.get(name, 0):g} {name}" for name in names)
        for address, node in _nodes().items()
    ]
    fits = "enough on one node, but in use" if could_fit(spec) else "more than any node has"
    head = f"engine {spec.kind} {spec.model} waits for a place: a replica asks for {asked} ({fits});"
    return "\n".join([f"{head} the cluster has", *have])


def _nodes() -> dict[str, Mapping[str, float]]:
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    return {f"{n['NodeManagerAddress']} ({n['NodeID'][:8]})": n["Resources"] for n in alive}
