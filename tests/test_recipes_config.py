"""The settings of a run: what the command line gives, and what it refuses in one sentence."""

import dataclasses
import json

import jax
import pytest

from r1jax.cli import main
from r1jax.errors import CheckpointError, ConfigError, DataError
from r1jax.recipes import r1_zero, reinforcement
from r1jax.recipes.config import PRESETS, MeshConfig, parse_r1_zero
from r1jax.recipes.r1_zero import check_layout
from r1jax.recipes.reinforcement import reward_functions
from r1jax.recipes.run_folder import open_run
from r1jax.rewards import exact_answer_reward, format_reward
from r1jax.sharding import make_mesh

NANO = PRESETS["nano"]


def test_what_is_given_lies_on_top_of_the_preset():
    config = parse_r1_zero(["--steps", "7", "--grpo.beta", "0.5", "--base.corpus.levels", "1", "2", "--no-resume"])
    want = dataclasses.replace(
        NANO, steps=7, resume=False, grpo=dataclasses.replace(NANO.grpo, beta=0.5),
        base=dataclasses.replace(NANO.base, corpus=dataclasses.replace(NANO.base.corpus, levels=(1, 2))),
    )  # fmt: skip
    assert config == want
    assert parse_r1_zero([]) == NANO


@pytest.mark.parametrize("args", [["--preset", "mini"], ["--preset=mini"], ["--seed", "3", "--preset", "mini"]])
def test_presets_are_chosen_first(args):
    config = parse_r1_zero(args)
    assert config.model == PRESETS["mini"].model != NANO.model
    assert config.run_dir == PRESETS["mini"].run_dir


@pytest.mark.parametrize(
    "args, message",
    [
        (["--preset", "nanno"], "preset='nanno': must be one of nano, mini"),
        (["--steps", "0"], "steps=0"),
        (["--grpo.num-generations", "1"], "num_generations=1"),
        (["--grpo.num-microbatches", "7"], "num_minibatches x num_microbatches=7"),
        (["--grpo.max-completion-length", "500"], "max_position_embeddings=512"),
        (["--reward.functions", "format", "--reward.weights", "1.0", "2.0"], "one weight for each of the 1"),
        (["--reward.weights", "1.0"], "one weight for each of the 2"),
        (["--eval.top-p", "0"], "eval.top_p=0"),
        (["--eval.temperature", "-1"], "eval.temperature=-1"),
        (["--reward.workers", "0"], "reward.workers=0"),
        (["--reward.timeout", "0"], "reward.timeout=0"),
        (["--reward.weights", "1.0", "nan"], "reward.weights=(1.0, nan)"),
        (["--base.rows", "0"], "base.rows=0"),
        (
            ["--reward.gate", "accuracy"],
            "reward.gate='accuracy': must be one of reward.functions: exact_answer, format",
        ),
        (["--reward.parameters", "formatt.strict=1"], "reward.parameters='formatt': no such function"),
        (["--reward.parameters", "format.strict"], "reward.parameters='format.strict': write FUNCTION.PARAMETER=VALUE"),
        (["--reward.domains", "formatt=general"], "reward.domains='formatt': no such function"),
        (["--reward.domains", "format"], "reward.domains='format': write FUNCTION=DOMAIN,DOMAIN"),
        (["--reward.domains", "format=general,"], "reward.domains='format=general,': write FUNCTION=DOMAIN,DOMAIN"),
    ],
)
def test_values_that_cannot_work_are_refused_on_the_command_line(args, message, capsys, monkeypatch):
    """By the command itself: one sentence on stderr and status 2, before anything is computed or written."""
    monkeypatch.setattr("r1jax.recipes.r1_zero.run", lambda config: pytest.fail(f"{args} would have been run"))
    with pytest.raises(SystemExit) as exit:
        main(["r1-zero", *args])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_help_lists_the_settings(capsys):
    with pytest.raises(SystemExit) as exit:
        parse_r1_zero(["--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    for option in ("--run-dir", "--seed", "--preset", "--steps", "--grpo.beta", "--mesh.fsdp"):
        assert option in text


# -------------------------------------------------------------------------------------------------- the same run


def test_a_run_may_go_further_and_lie_elsewhere(tmp_path):
    earlier = NANO.as_json()
    NANO.check_same_run(earlier)
    dataclasses.replace(NANO, steps=1000, run_dir=tmp_path, keep_checkpoints=5, save_every=3).check_same_run(earlier)
    dataclasses.replace(NANO, resume=False).check_same_run(earlier)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(seed=1), "seed=1: .* began with seed=0"),
        (dict(grpo=dataclasses.replace(NANO.grpo, beta=0.5)), r"grpo\.beta=0\.5: .* began with grpo\.beta=0\.001"),
        (dict(mesh=MeshConfig(fsdp=2)), "mesh.fsdp=2"),
        (dict(base=dataclasses.replace(NANO.base, steps=5)), "base.steps=5"),  # not the run's own steps
    ],
)
def test_a_changed_setting_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(NANO, **change).check_same_run(NANO.as_json())


def test_changed_code_is_named_as_well():
    """A field that only one of the two has, or a preset whose shape has changed since."""
    earlier = NANO.as_json()
    earlier["model"]["hidden_size"] = 64
    with pytest.raises(ConfigError, match=r"model\.hidden_size=128: .* model\.hidden_size=64"):
        NANO.check_same_run(earlier)
    earlier = NANO.as_json()
    del earlier["eval"]["k"]
    with pytest.raises(ConfigError, match=r"eval\.k="):
        NANO.check_same_run(earlier)
    earlier = NANO.as_json()
    earlier["eval"]["patience"] = 3
    with pytest.raises(ConfigError, match=r"eval\.patience=None: .* eval\.patience=3"):
        NANO.check_same_run(earlier)


def test_steps_may_not_change_under_a_schedule_that_depends_on_them():
    config = dataclasses.replace(NANO, optimizer=dataclasses.replace(NANO.optimizer, lr_scheduler_type="cosine"))
    config.check_same_run(config.as_json())
    with pytest.raises(ConfigError, match=r"steps=1000: .*cosine"):
        dataclasses.replace(config, steps=1000).check_same_run(config.as_json())


# ------------------------------------------------------------------------------------------------- the run's folder


def test_opening_a_run(tmp_path):
    config = dataclasses.replace(NANO, run_dir=tmp_path / "deep" / "run")
    assert open_run(config) == config.run_dir
    assert json.loads((config.run_dir / "config.json").read_text()) == config.as_json()
    open_run(dataclasses.replace(config, steps=NANO.steps + 1))
    assert json.loads((config.run_dir / "config.json").read_text())["steps"] == NANO.steps + 1
    with pytest.raises(ConfigError, match="already holds a run; choose another --run-dir, or resume"):
        open_run(dataclasses.replace(config, resume=False))
    before = (config.run_dir / "config.json").read_text()
    with pytest.raises(ConfigError, match="seed=9"):
        open_run(dataclasses.replace(config, seed=9))
    assert (config.run_dir / "config.json").read_text() == before
    (config.run_dir / "config.json").write_text(before[:40])
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        open_run(config)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run_dir='.*file/run': cannot be written"):
        open_run(dataclasses.replace(NANO, run_dir=tmp_path / "file" / "run"))


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        open_run(dataclasses.replace(NANO, run_dir=tmp_path / "run"))


# ------------------------------------------------------------------------------------------- before the device works


@pytest.mark.parametrize(
    "mesh, change, message",
    [
        ({"data": 8}, dict(grpo=dict(num_prompts=4)), r"grpo\.num_prompts=4: must be a multiple of 8.*data"),
        (
            {"data": 4, "expert": 2},
            dict(grpo=dict(num_generations=3, num_microbatches=1)),
            r"grpo\.num_generations=3.* 2, .*expert",
        ),
        (
            {"data": 8},
            dict(grpo=dict(num_prompts=8, num_generations=4, num_minibatches=2, num_microbatches=4)),
            r"microbatches=4: must be a multiple of 8",
        ),
        ({"fsdp": 8}, dict(base=dict(rows=12)), r"base\.rows=12: must be a multiple of 8"),
        ({"data": 4, "expert": 2}, dict(eval=dict(k=5)), r"eval\.k=5"),
        ({"data": 8}, dict(eval=dict(problems=10)), r"eval\.problems=10"),
    ],
)  # fmt: skip
def test_batches_that_do_not_divide_over_the_mesh_are_named(mesh, change, message):
    parts = {name: dataclasses.replace(getattr(NANO, name), **fields) for name, fields in change.items()}
    with pytest.raises(ConfigError, match=message):
        check_layout(dataclasses.replace(NANO, **parts), make_mesh(mesh))


def test_the_presets_fit_one_device_and_eight():
    for config in PRESETS.values():
        check_layout(config, make_mesh({"data": 1}, jax.devices()[:1]))
        check_layout(config, make_mesh({"data": 2, "expert": 2, "tensor": 2}))


def test_a_short_last_batch_of_evaluation_is_no_obstacle():
    """More problems than are sampled at a time: the last batch is filled up."""
    check_layout(dataclasses.replace(NANO, eval=dataclasses.replace(NANO.eval, problems=100)), make_mesh({"data": 8}))


def test_the_learning_rate_follows_steps_however_a_rollout_is_split(monkeypatch):
    class Made(Exception):
        pass

    def make_optimizer(config, total_steps, updates_per_step=1):
        raise Made(total_steps, updates_per_step)

    monkeypatch.setattr(reinforcement, "make_optimizer", make_optimizer)
    grpo = dataclasses.replace(NANO.grpo, num_minibatches=2, num_iterations=3)
    with pytest.raises(Made) as made:
        reinforcement.reinforce(dataclasses.replace(NANO, grpo=grpo), *[None] * 7)
    assert made.value.args == (NANO.steps, 6)


def test_reward_functions_are_looked_up_before_anything_is_trained():
    reward = dataclasses.replace(NANO.reward, functions=("exact_answer", "formatt"))
    with pytest.raises(ConfigError, match="formatt"):
        reward_functions(reward)
    twins = dataclasses.replace(NANO.reward, functions=("format", "r1jax.rewards:format_reward"))
    with pytest.raises(ConfigError, match="two are called 'format_reward'"):
        reward_functions(twins)
    functions = {"exact_answer_reward": exact_answer_reward, "format_reward": format_reward}
    assert reward_functions(NANO.reward) == functions


SOFT = "soft_overlong_punishment"


def test_parameters_of_reward_functions(tmp_path):
    """From the command line to a function that is called with them, by way of config.json."""
    args = ["--reward.functions", "exact_answer", SOFT, "cosine_scaled", "--reward.gate", "exact_answer"]
    args += ["--reward.parameters", f"{SOFT}.max_completion_len=40", f"{SOFT}.soft_punish_cache=8"]
    args += ["cosine_scaled.accuracy=exact_answer", "cosine_scaled.max_len=40"]
    config = parse_r1_zero(args).reward
    assert config.parameters == {
        SOFT: {"max_completion_len": 40, "soft_punish_cache": 8},
        "cosine_scaled": {"accuracy": "exact_answer", "max_len": 40},
    }
    assert config.gate == "exact_answer"
    functions = reward_functions(config)
    assert list(functions) == ["exact_answer_reward", "soft_overlong_punishment_reward", "cosine_scaled_reward"]
    soft = functions["soft_overlong_punishment_reward"]
    assert soft(prompts=["p"], completions=["c"], completion_ids=[[1] * 36], answer=["8"]) == [-0.5]
    kept = json.loads(json.dumps(parse_r1_zero(args).as_json()))["reward"]
    assert kept["parameters"] == config.parameters and kept["gate"] == "exact_answer"
    assert type(config)(**{**kept, "functions": tuple(kept["functions"]), "weights": tuple(kept["weights"])}) == (
        dataclasses.replace(config, weights=(1.0, 1.0, 1.0))
    )


@pytest.mark.parametrize(
    "functions, parameters, message",
    [
        (("format", SOFT), {}, f"'{SOFT}' needs max_completion_len and soft_punish_cache"),
        (("format",), {"format": {"strict": 1}}, "'format' has no parameter 'strict'; it takes none"),
        ((SOFT,), {SOFT: {"max_completion_len": 4, "soft_punish_cache": 9}}, "soft_punish_cache=9"),
        (("test_recipes_config:scaled",), {"test_recipes_config:scaled": {"scala": 2}}, "'scala'; it takes scale"),
    ],
)
def test_parameters_are_checked_before_anything_is_trained(functions, parameters, message, tmp_path, monkeypatch):
    reward = dataclasses.replace(NANO.reward, functions=functions, weights=None, parameters=parameters)
    monkeypatch.setattr(r1_zero, "open_run", lambda config: pytest.fail("the run has begun"))
    with pytest.raises(ConfigError, match=message):
        r1_zero.run(dataclasses.replace(NANO, run_dir=tmp_path, reward=reward))


def scaled(prompts, completions, scale=1.0, **columns):
    return [scale] * len(completions)


def test_parameters_of_one_s_own_function():
    name = f"{__name__}:scaled"
    config = parse_r1_zero(["--reward.functions", name, "--reward.parameters", f"{name}.scale=2.5"]).reward
    assert reward_functions(config)["scaled"](prompts=["p"], completions=["c"]) == [2.5]


def test_domains_of_reward_functions():
    domains = ["--reward.domains", "format=reasoning", "exact_answer=reasoning,logic", "exact_answer=code"]
    config = parse_r1_zero(domains)
    assert config.reward.domains == {"format": ("reasoning",), "exact_answer": ("reasoning", "logic", "code")}
    config.check_same_run(config.as_json())
    with pytest.raises(ConfigError, match=r"reward\.domains"):
        config.check_same_run(NANO.as_json())
    with pytest.raises(ConfigError, match=r"'format'.*give one domain or more"):
        dataclasses.replace(NANO.reward, domains={"format": "reasoning"})


def test_domains_that_problems_lack_are_refused_before_anything_is_trained(tmp_path, monkeypatch):
    reward = dataclasses.replace(NANO.reward, domains={"format": ("reasoning",)})
    monkeypatch.setattr(r1_zero, "pretrain", lambda *_: pytest.fail("the base is being trained"))
    with pytest.raises(DataError, match="this run's problems have no domain"):
        r1_zero.run(dataclasses.replace(NANO, run_dir=tmp_path, reward=reward))
    assert not (tmp_path / "config.json").exists()


def test_the_configuration_survives_json():
    values = NANO.as_json()
    assert json.loads(json.dumps(values)) == values
    assert values["model"]["hidden_size"] == NANO.model.hidden_size


def test_functions_of_ones_own_do_not_inherit_the_weights_of_others():
    assert parse_r1_zero([]).reward.all_weights == (1.0, 0.2)
    own = parse_r1_zero(["--reward.functions", "exact_answer", "my_module:mine"])
    assert own.reward.all_weights == (1.0, 1.0) and own.as_json()["reward"]["weights"] == [1.0, 1.0]
