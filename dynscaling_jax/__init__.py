"""Verifier-free inference scaling of language models, native to JAX.

    import dynscaling_jax as ds

    engine = ds.Engine(ds.load_model("hf://Qwen/Qwen3-4B"))

Names are imported when they are first used, so that this import is quick.
"""

from etils import epy as _epy

__version__ = "0.1.0"

with _epy.lazy_api_imports(globals()):
    from dynscaling_jax import methods as methods
    from dynscaling_jax.analysis.bank import Bank as Bank
    from dynscaling_jax.checkpoints.model import Model as Model
    from dynscaling_jax.checkpoints.model import load_model as load_model
    from dynscaling_jax.experiments.bank import load_bank as load_bank
    from dynscaling_jax.experiments.replay import Study as Study
    from dynscaling_jax.experiments.replay import replay as replay
    from dynscaling_jax.experiments.run import Run as Run
    from dynscaling_jax.experiments.run import run as run
    from dynscaling_jax.experiments.scale import scale as scale
    from dynscaling_jax.inference.endpoint import Endpoint as Endpoint
    from dynscaling_jax.inference.engine import Engine as Engine
    from dynscaling_jax.models.config import ModelConfig as ModelConfig
    from dynscaling_jax.sampler import FunctionSampler as FunctionSampler
    from dynscaling_jax.sampler import tap as tap
    from dynscaling_jax.scaling import cancelling as cancelling
    from dynscaling_jax.scaling import policies as policies
    from dynscaling_jax.scaling import strategies as strategies
    from dynscaling_jax.scaling import votes as votes
    from dynscaling_jax.scaling.allocation import place as place
    from dynscaling_jax.scaling.allocation import scored as scored
    from dynscaling_jax.scaling.arrivals import run_arrivals as run_arrivals
    from dynscaling_jax.scaling.chains import Chain as Chain
    from dynscaling_jax.scaling.loop import Event as Event
    from dynscaling_jax.scaling.loop import Result as Result
    from dynscaling_jax.scaling.loop import Round as Round
    from dynscaling_jax.scaling.loop import run_rounds as run_rounds
    from dynscaling_jax.tasks import Comparer as Comparer
    from dynscaling_jax.tasks import Task as Task
    from dynscaling_jax.tasks import extract as extract
    from dynscaling_jax.tasks import grade as grade
    from dynscaling_jax.tasks import load_task as load_task
    from dynscaling_jax.tasks import with_answers as with_answers
    from dynscaling_jax.thinking import Thinking as Thinking
    from dynscaling_jax.types import Budget as Budget
    from dynscaling_jax.types import Cancel as Cancel
    from dynscaling_jax.types import Candidates as Candidates
    from dynscaling_jax.types import Flights as Flights
    from dynscaling_jax.types import Ledger as Ledger
    from dynscaling_jax.types import Message as Message
    from dynscaling_jax.types import Method as Method
    from dynscaling_jax.types import Policy as Policy
    from dynscaling_jax.types import Query as Query
    from dynscaling_jax.types import Reader as Reader
    from dynscaling_jax.types import Request as Request
    from dynscaling_jax.types import Sample as Sample
    from dynscaling_jax.types import Sampler as Sampler
    from dynscaling_jax.types import Schedule as Schedule
    from dynscaling_jax.types import Strategy as Strategy
    from dynscaling_jax.types import Vote as Vote
    from dynscaling_jax.types import Watch as Watch
