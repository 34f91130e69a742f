"""The methods: they know no model, no file and no reference answer."""

from dynscaling_jax.scaling.loop import Result as Result
from dynscaling_jax.scaling.loop import Round as Round
from dynscaling_jax.scaling.loop import scale as scale
from dynscaling_jax.scaling.policies import POLICIES as POLICIES
from dynscaling_jax.scaling.policies import parse_policy as parse_policy
from dynscaling_jax.scaling.strategies import STRATEGIES as STRATEGIES
from dynscaling_jax.scaling.strategies import integrated as integrated
from dynscaling_jax.scaling.strategies import parallel as parallel
from dynscaling_jax.scaling.votes import VOTES as VOTES
from dynscaling_jax.scaling.votes import Vote as Vote
from dynscaling_jax.scaling.votes import majority as majority
