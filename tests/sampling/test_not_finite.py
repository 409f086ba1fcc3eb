"""Numbers that are not finite end in an error that says where they began, not in a black video."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.sampling.test_pipeline import decoded, pipeline, requests  # noqa: F401
from tora2_jax.models.vae import tiling
from tora2_jax.sampling import command
from tora2_jax.sampling.pipeline import SampleSettings
from tora2_jax.sampling.progress import PHASES
from tora2_jax.system import feedback
from tora2_jax.system.finite import NotFiniteError, finite_rows, not_finite, reason

SHORT = SampleSettings(steps=3)


def _with_nan(state: nnx.State, path: str) -> nnx.State:
    """The state with one value of one variable that is not a number."""
    flat = nnx.to_flat_state(state)
    changed = []
    for place, variable in flat:
        value = variable.get_value()
        if ".".join(map(str, place)).endswith(path):
            value = value.ravel().at[0].set(jnp.nan).reshape(value.shape)
        changed.append((place, variable.replace(value)))
    return nnx.from_flat_state(changed)


@pytest.fixture
def damaged(pipeline, monkeypatch):  # noqa: F811
    """Damages a weight of the model or of the frozen networks for one test."""

    def damage(attribute: str, path: str) -> None:
        graph, state = getattr(pipeline, attribute)
        monkeypatch.setattr(pipeline, attribute, (graph, _with_nan(state, path)))

    return damage


def test_a_damaged_transformer_is_told_with_the_first_step_and_the_weight(
    pipeline,  # noqa: F811
    requests,  # noqa: F811
    damaged,
):
    done = []
    damaged("_model", "transformer.output_projection.kernel")
    with pytest.raises(NotFiniteError) as error:
        pipeline.generate(requests, settings=SHORT, progress=lambda *call: done.append(call))
    assert str(error.value) == (
        "requests[0], requests[1]: the latents are not finite from step 1 of 3 on (timestep 999); "
        "weights that are not finite: transformer.output_projection.kernel; the checkpoint is "
        "damaged: convert it or copy it again"
    )
    assert not done


def test_a_damaged_text_encoder_is_told_before_the_first_step(pipeline, requests, damaged):  # noqa: F811
    damaged("_networks", "final_norm.scale")
    with pytest.raises(NotFiniteError) as error:
        pipeline.generate(requests, settings=SHORT)
    told = str(error.value)
    assert told.startswith(
        "text, words, null text: not finite before the first step, where the fro"
    )
    assert "not finite: text.final_norm.scale; the checkpoint is damaged" in told


def test_numbers_that_grow_too_large_are_told_with_their_step(pipeline, requests, monkeypatch):  # noqa: F811
    step, calls = pipeline.programs.step, []

    def overflows(*arguments):
        calls.append(arguments)
        state, finite = step(*arguments)
        if len(calls) == 2:
            latents = state.latents.at[1].set(jnp.inf)
            state = state._replace(latents=latents)
            finite = finite_rows(latents)
        return state, finite

    monkeypatch.setattr(pipeline.programs, "step", overflows)
    done = []
    with pytest.raises(NotFiniteError) as error:
        pipeline.generate(requests, settings=SHORT, progress=lambda *call: done.append(call))
    assert str(error.value).startswith(
        "requests[1]: the latents are not finite from step 2 of 3 on (timestep 666); all weights "
        "are finite, so numbers grow too large on the way"
    )
    assert done == [(1, 3)]


def test_a_vae_that_makes_frames_of_nothing_is_told(pipeline, requests, monkeypatch):  # noqa: F811
    def decode(vae, latents, memory, tiles, progress):
        video = np.zeros((len(latents), 9, 32, 32, 3), np.float32)
        video[1, 5:, 3] = np.nan
        return video

    monkeypatch.setattr(tiling, "decode_latents", decode)
    with pytest.raises(NotFiniteError, match=r"requests\[1\]: .* is not finite from frame 5"):
        pipeline.generate(requests, settings=SHORT)


def test_the_command_ends_without_files_and_says_so(tmp_path, pipeline, requests, damaged):  # noqa: F811
    damaged("_model", "transformer.output_projection.kernel")
    options = command.Options(tmp_path, tmp_path / "a.json", tmp_path / "o.mp4", steps=3)
    loaded, inputs = pipeline.prepare(requests[:1])
    with pytest.raises(command.SamplingError, match="nothing was written:\n  requests") as error:
        command.sample(options, command.Job(pipeline, loaded, inputs, None))
    assert "not finite from step 1 of 3" in str(error.value)


def test_latents_that_are_given_have_to_be_finite(pipeline, requests):  # noqa: F811
    latents = np.zeros(pipeline.latent_shape(1, 9, 32, 32), np.float32)
    latents[0, 1] = np.inf
    with pytest.raises(NotFiniteError, match="initial latents: not finite as they are given"):
        pipeline.generate(requests[0], settings=SHORT, initial_latents=latents)


def test_latents_that_are_given_are_left_as_they_are(pipeline, requests):  # noqa: F811
    """As an array of JAX, too, which a step that takes its memory would delete."""
    shape = pipeline.latent_shape(1, 9, 32, 32)
    latents = jax.random.normal(jax.random.key(0), shape, jnp.float32)
    before = np.array(latents)
    samples = [
        pipeline.generate(requests[0], settings=SHORT, initial_latents=latents).latents
        for _ in range(2)
    ]
    assert not latents.is_deleted()
    np.testing.assert_array_equal(latents, before)
    np.testing.assert_array_equal(*samples)


def test_progress_is_told_of_steps_that_are_done(pipeline, requests, monkeypatch):  # noqa: F811
    """A step is told only after the device has its result, and the next one has been started."""
    step, events = pipeline.programs.step, []

    class Flag:
        def __init__(self, index, value):
            self.index, self.value = index, value

        def __array__(self, *_, **__):
            events.append(f"wait {self.index}")
            return np.asarray(self.value)

    def started(*arguments):
        index = arguments[-1]
        events.append(f"start {index}")
        state, finite = step(*arguments)
        return state, Flag(index, finite)

    monkeypatch.setattr(pipeline.programs, "step", started)
    pipeline.generate(
        requests[0], settings=SHORT, progress=lambda done, _: events.append(f"told {done}")
    )
    assert events == [
        *("start 1", "start 2", "wait 1", "told 1", "start 3", "wait 2", "told 2"),
        *("wait 3", "told 3"),
    ]


def test_every_phase_is_reported_from_its_start_to_its_end(pipeline, requests):  # noqa: F811
    told = []
    with feedback.Phases(PHASES) as phases:
        pipeline.generate(
            requests[0],
            settings=SHORT,
            report=lambda *call: (told.append(call), phases.report(*call)),
        )
    assert told[:3] == [("encoding", 0, 2), ("encoding", 1, 2), ("encoding", 2, 2)]
    assert told[3:] == [("sampling", done, 3) for done in range(4)]


def test_settings_are_checked_before_anything_is_made(pipeline, requests, monkeypatch):  # noqa: F811
    monkeypatch.setattr(pipeline, "prepare", None)
    wrong = SampleSettings(
        steps=0,
        guidance=float("nan"),
        dynamic_guidance=2,
        scheduler="euler",
        reference_guidance="1",
    )
    with pytest.raises(ValueError, match="cannot be sampled") as error:
        pipeline.generate(requests[0], settings=wrong, seed=-1)
    assert str(error.value).splitlines()[1:] == [
        "  settings.guidance: nan is not a finite number",
        "  settings.reference_guidance: '1' is not a finite number",
        "  settings.dynamic_guidance: 2 is neither True nor False",
        "  settings.scheduler: 'euler' is unknown; it must be dpm or ddim",
        "  settings.steps: 0 is not a whole number from 1 to 1000",
        "  seed: -1 is not a whole number from 0 to 4294967295",
    ]
    for steps in (1001, 2.5, True, "50"):
        with pytest.raises(ValueError, match=r"settings\.steps: .* is not a whole number"):
            pipeline.generate(requests[0], settings=SampleSettings(steps=steps))


def test_jaxs_search_for_nans_finds_none_in_a_healthy_pipeline(pipeline, requests):  # noqa: F811
    with jax.debug_nans(True):
        sample = pipeline.generate(requests, settings=SHORT)
    assert np.isfinite(sample.video).all()


def test_what_is_not_finite_is_named():
    arrays = {
        "masks": (jnp.array([True]), jnp.array([1])),
        "good": jnp.ones(3),
        "bad": [jnp.ones(2), jnp.array([1.0, jnp.inf])],
        "none": None,
        "half": jnp.array([jnp.nan], jnp.bfloat16),
    }
    assert not_finite(arrays) == ["bad", "half"]
    weights = {f"w{index}": jnp.array([jnp.nan]) for index in range(7)}
    assert "not finite: w0, w1, w2, w3, w4 and 2 more;" in reason(weights)
