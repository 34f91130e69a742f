"""A model that gives the samples of a replicate."""

from dynscaling_jax.types import Sample


def recorded_model(replicate):
    """A SampleFn that gives the samples of a draw."""

    def sample_fn(requests):
        for request in requests:
            q, n = int(request.query.id), request.index
            answer = int(replicate.answer_QN[q, n])
            yield Sample(
                request.query.id,
                n,
                request.round,
                request.parents,
                "",
                None if answer < 0 else str(answer),
                "stop",
                1,
                0,
                int(replicate.tokens_QN[q, n]),
                0.0,
                float(replicate.weight_QN[q, n]),
            )

    return sample_fn
