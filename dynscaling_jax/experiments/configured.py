"""A run from its config: the fields to a sampler, a method and a budget."""

import dataclasses
import json
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from dynscaling_jax.checkpoints import load_model
from dynscaling_jax.experiments import identity
from dynscaling_jax.experiments.config import (
    EngineConfig,
    RunConfig,
    get_config,
    typed,
)
from dynscaling_jax.experiments.log import begun
from dynscaling_jax.experiments.run import Origin, run
from dynscaling_jax.experiments.shared import ALONE, Processes, nothing
from dynscaling_jax.inference import Engine, mesh
from dynscaling_jax.inference.batch import CHUNK
from dynscaling_jax.lines import dumps, loads, shown
from dynscaling_jax.methods import METHODS, WITHOUT_ROUNDS, in_rounds
from dynscaling_jax.sampler import tap
from dynscaling_jax.scaling import spec
from dynscaling_jax.scaling.cancelling import parse_cancel
from dynscaling_jax.scaling.loop import check
from dynscaling_jax.scaling.policies import POLICIES
from dynscaling_jax.scaling.strategies import STRATEGIES
from dynscaling_jax.scaling.votes import VOTES
from dynscaling_jax.tasks import load_task
from dynscaling_jax.thinking import Thinking, named
from dynscaling_jax.types import Budget, Method, Query, Sampler, Schedule

_PER_QUERY = ("samples_per_query", "round_per_query", "first_round_per_query")


def run_config(
    config: Any,
    workdir: Path,
    sampler: Sampler | None = None,
    fingerprints: Mapping[str, str] = {},
    processes: Processes = ALONE,
    tensorboard: bool = False,
) -> dict[str, Any]:
    """Runs what a ConfigDict of get_config says; returns its summary.

    Args:
      config: of get_config.
      workdir: as run.
      sampler: what answers; by default what the config says.
      fingerprints: of what a given sampler is made of.
      processes: as run.
      tensorboard: as run.

    Raises:
      ValueError, OSError, RuntimeError: as run.
    """
    origin = Origin(config_row(config), fingerprints, config_row(get_config()))
    fields = _as_begun(typed(config), workdir, processes)
    axes = method_axes(fields)
    task = load_task(**fields.task._asdict())
    budget = budget_of(fields, len(task.problems))
    method = method_of(fields, axes)
    queries = [problem.query for problem in task.problems]
    check(queries, method, budget)
    if sampler is None:
        sampler = open_sampler(fields, queries)
        origin = origin._replace(identity=model_identity(fields))
    done = run(
        task,
        dataclasses.replace(tap(sampler), name=fields.model),
        method,
        budget,
        workdir,
        seed=fields.seed,
        origin=origin,
        processes=processes,
        tensorboard=tensorboard,
    )
    return done.summary


def _as_begun(
    config: RunConfig, workdir: Path, processes: Processes
) -> RunConfig:
    """A config with the schedule of a run that goes on, if it names none.

    Some methods have no rounds today and had some when it began.
    """
    own = (workdir / "rounds.jsonl").exists() and begun(workdir)
    rounds = any(map(loads, processes.exchange(dumps(own), nothing)))
    if config.budget.schedule or not rounds:
        return config
    return config._replace(budget=config.budget._replace(schedule="rounds"))


def config_row(config: Any) -> dict[str, Any]:
    """Returns a config as JSON can hold it.

    No cap on samples, inf, is null. A run may go on with other values of the
    fields that are left out.
    """
    values = config.to_dict()
    if values["budget"]["samples_per_query"] == math.inf:
        values["budget"]["samples_per_query"] = None
    for name in ("concurrency", "timeout", "retries"):  # change no sample
        del values["endpoint"][name]
    return values


def method_axes(config: RunConfig) -> dict[str, str]:
    """The strategy, policy and vote that a config asks for, as text."""
    preset = spec.choose("method", config.method, METHODS)()
    axes = {
        name: getattr(config, name) or getattr(preset, name).name
        for name in ("strategy", "policy", "vote")
    }
    axes["strategy"] = spec.completed(
        axes["strategy"],
        STRATEGIES,
        "strategy",
        chain_options(config.chain._asdict()),
    )
    return axes


def chain_options(chain: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those options of chains that a config sets, sorted by name."""
    return {k: v for k, v in sorted(chain.items()) if v not in (None, "")}


def method_of(config: RunConfig, axes: Mapping[str, str]) -> Method:
    """The method that a config asks for; axes as method_axes gives them.

    Where nothing is learnt from one round for the next, as in parallel x
    uniform, all samples are one round.
    """
    preset = METHODS[config.method]()
    tables = {"strategy": STRATEGIES, "policy": POLICIES, "vote": VOTES}
    # a text is named as it stands, so that files of a run keep their bytes
    values = {
        axis: spec.parse(axes[axis], known, axis)._replace(name=axes[axis])
        for axis, known in tables.items()
    }
    learns = (axes["strategy"], axes["policy"]) != ("parallel", "uniform")
    schedule = _schedule_of(config, preset, learns)
    cancel = config.cancel or (preset.cancel.name if preset.cancel else "none")
    return Method(
        **values,
        schedule=schedule,
        name=config.method,
        cancel=parse_cancel(cancel) if schedule.concurrent else None,
    )


def _schedule_of(config: RunConfig, preset: Method, learns: bool) -> Schedule:
    """The schedule that a config asks for: else that of the preset.

    learns: whether anything is learnt from samples for the next ones.
    """
    caps = config.budget
    without_rounds = _is_async(config, preset)
    schedule = preset.schedule
    if without_rounds != bool(schedule.concurrent):
        schedule = (
            WITHOUT_ROUNDS if without_rounds else in_rounds(preset).schedule
        )
    first, later = schedule[:2]
    if not learns:
        first = later = math.inf
    elif first == math.inf:
        first = later = 1
    if caps.first_round_per_query is not None:
        first = caps.first_round_per_query
    if caps.round_per_query is not None:
        later = caps.round_per_query
    schedule = Schedule(first, later, caps.stale_rounds, caps.capacity)
    if without_rounds:
        schedule = schedule._replace(
            concurrent=caps.concurrent, poll_steps=caps.poll_steps
        )
    return schedule


def _is_async(config: RunConfig, preset: Method) -> bool:
    """Whether a config asks for a schedule without rounds.

    Raises:
      ValueError: an unknown schedule; a field that is of the other one.
    """
    caps = config.budget
    if caps.schedule not in ("", "rounds", "async"):
        raise ValueError(
            f"config.budget.schedule={caps.schedule!r}: expected rounds, "
            "async, or nothing for that of the method"
        )
    of_rounds = caps.round_per_query is not None or caps.stale_rounds
    if caps.schedule:
        found = caps.schedule == "async"
    else:
        found = bool(preset.schedule.concurrent) and not of_rounds
    if found and of_rounds:
        raise ValueError(
            "config.budget.round_per_query and stale_rounds are of rounds; "
            "leave them out, or set config.budget.schedule=rounds"
        )
    if found and caps.concurrent < 1:
        raise ValueError(
            f"config.budget.concurrent={caps.concurrent}: expected 1 or more "
            "samples under way at once"
        )
    if found and caps.poll_steps < 1:
        raise ValueError(
            f"config.budget.poll_steps={caps.poll_steps}: expected decode "
            "steps, 1 or more"
        )
    if not found and config.cancel not in ("", "none"):
        raise ValueError(
            f"config.cancel={config.cancel!r} ends samples in a schedule "
            "without rounds; set config.budget.schedule=async"
        )
    return found


def open_sampler(config: RunConfig, queries: Sequence[Query] = ()) -> Sampler:
    """A local model behind an engine, or an endpoint.

    Raises:
      ValueError: a field that it cannot have; a query whose prompt leaves no
        room for an answer.
    """
    if config.model.startswith("openai://"):
        return endpoint_sampler(config)
    engine = open_engine(config, mesh.build(config.mesh))
    engine.check(queries)
    return engine


def endpoint_sampler(config: RunConfig) -> Sampler:
    """What a server offers a run.

    Raises:
      ValueError: a field that only a local model can have.
    """
    defaults = RunConfig()
    local = ("dtype", "quantize", "mesh", "context", "adapter")
    for name in (*local, "template_variables"):
        value, default = getattr(config, name), getattr(defaults, name)
        if value != default:
            raise ValueError(
                f"config.{name}={value!r} is of local models; a server has "
                f"its own. Leave it at {default!r}, and see docs/endpoints.md"
            )
    from dynscaling_jax.inference.endpoint import Endpoint, parse_url

    fields = config.endpoint._asdict()
    fields["extra_body"] = json_object(config, "endpoint.extra_body")
    fields["seed"] = config.seed if fields["seed"] else None
    engine = config.engine
    if engine.max_thinking_tokens:
        raise ValueError(
            f"config.engine.max_thinking_tokens={engine.max_thinking_tokens} "
            "is of local models; what a server offers goes into "
            "config.endpoint.extra_body, see docs/endpoints.md"
        )
    for name in ("max_new_tokens", "temperature", "top_k", "top_p", "min_p"):
        fields[name] = getattr(engine, name)
    if config.strategy.partition("(")[0] == "deepconf":
        raise ValueError(
            f"config.strategy={config.strategy}: a server cannot end samples "
            "by their confidence; choose another strategy, or a local model"
        )
    model, url = parse_url(config.model)
    endpoint = Endpoint(model, url, stop=tuple(engine.stop), **fields)
    how = thinking_of(config, endpoint.thinking)
    return dataclasses.replace(tap(endpoint), thinking=how)


def thinking_of(
    config: RunConfig,
    found: Thinking = Thinking(),  # noqa: B008, immutable
) -> Thinking:
    """How thoughts are told: as found, unless the config says how."""
    end = config.end_of_thinking
    if end is None:
        return found
    return found._replace(marks=named(end), end=end)


def open_engine(
    config: RunConfig, on: Mesh | None, available: float | None = None
) -> Engine:
    """A local model on a mesh, or on one device; available as of Engine."""
    model = load_model(
        config.model,
        config.dtype,
        config.quantize,
        config.context,
        json_object(config, "template_variables"),
        on,
        config.adapter,
        stacked=mesh.scans(on),
    )
    return Engine(
        model,
        seed=config.seed,
        available=available,
        steps=polls_every(config),
        thinking=thinking_of(config, model.tokenizer.thinking),
        **engine_fields(config.engine),
    )


def polls_every(config: RunConfig) -> int:
    """Decode steps between two polls; an Engine cuts them at 16."""
    without_rounds = _is_async(config, METHODS[config.method]())
    return config.budget.poll_steps if without_rounds else CHUNK


def model_identity(config: RunConfig) -> dict[str, str]:
    """Fingerprints of a local model and its adapter."""
    if config.model.startswith("openai://"):
        return {}
    found = identity.of_model(config.model)
    if config.adapter:
        files = identity.of_model(config.adapter)
        found |= {f"{config.adapter}/{name}": of for name, of in files.items()}
    return found


def engine_fields(engine: EngineConfig) -> dict[str, Any]:
    """Returns what Engine takes."""
    fields = engine._asdict()
    groups = fields.pop("groups")
    if groups not in ("", "auto"):
        raise ValueError(
            f"config.engine.groups={groups!r}: expected auto, or nothing for "
            "config.engine.slots"
        )
    return {**fields, "slots": None} if groups else fields


def json_object(config: RunConfig, name: str) -> dict[str, Any]:
    """What a field that is JSON holds."""
    text = operator.attrgetter(name)(config)
    try:
        fields = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"config.{name}={text!r} is not JSON ({error})") from (
            None
        )
    if not isinstance(fields, dict):
        raise ValueError(
            f"config.{name}={text!r}: expected a JSON object, such as "
            '{"enable_thinking": false}'
        )
    return fields


def budget_of(config: RunConfig, queries: int) -> Budget:
    """The caps of a run."""
    if not 0 <= config.seed < 2**32:
        raise ValueError(
            f"config.seed={shown(config.seed)}: expected a whole number from 0 "
            "on, below 2^32"
        )
    fields = config.budget
    if fields.stale_rounds < 0:
        raise ValueError(
            f"budget.stale_rounds={fields.stale_rounds} is less than 0"
        )
    samples = fields.samples_per_query
    if not samples >= 1:
        raise ValueError(
            f"budget.samples_per_query={samples} is less than one sample for "
            "each question; raise it, or take fewer questions by task.limit"
        )
    for name in _PER_QUERY:
        value = getattr(fields, name)
        endless = name == "samples_per_query" and value == math.inf
        if value is not None and not endless:
            if not 0 < value * queries < 2**31:
                raise ValueError(
                    f"budget.{name}={shown(value)}: expected a number above 0, "
                    f"of which {queries} questions have fewer than 2^31"
                )
    return Budget(
        samples_per_query=None if samples == math.inf else samples,
        new_tokens=fields.new_tokens,
        total_tokens=fields.total_tokens,
        flops=fields.flops,
        seconds=fields.seconds,
    )
