from dataclasses import asdict, fields, replace

import pytest
import yaml

from papo_hub.config import (
    AT_LEAST_ONE,
    ConfigError,
    TrainConfig,
    build,
    check_processes,
    help_text,
    load_config,
    notices,
    parse_overrides,
    read_recipe,
)
from papo_hub.elsewhere import ELSEWHERE
from papo_hub.objectives import DAPO, PAPO_G, with_reduction

REQUIRED = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}


def config(**values):
    return build(REQUIRED | values)


def refusal(**values):
    with pytest.raises(ConfigError) as caught:
        config(**values)
    return str(caught.value)


def test_a_user_of_trl_is_told_how_vllm_is_chosen():
    assert refusal(use_vllm=True) == (
        "use_vllm is not a key here; write rollout_engine: vllm (or transformers, the built-in engine)."
    )
    assert refusal(rollout_engine="vlm").endswith("Did you mean vllm?")
    for share in (0, 1.5, float("nan")):
        assert refusal(vllm_gpu_memory_utilization=share).startswith("vllm_gpu_memory_utilization: ")


def test_a_vllm_server_has_an_address():
    there = {"rollout_engine": "vllm", "vllm_mode": "server", "vllm_server_base_url": "http://localhost:8000"}
    assert config(**there, vllm_server_weights_folder="w").vllm_mode == "server"
    assert "write rollout_engine: vllm" in refusal(**there | {"rollout_engine": "transformers"})
    assert refusal(**there | {"vllm_server_base_url": None}).startswith(
        "vllm_server_base_url goes with vllm_mode: server"
    )
    assert refusal(**there | {"vllm_mode": "colocate"}).startswith("vllm_server_base_url goes with vllm_mode: server")
    assert "stay within the process" in refusal(rollout_engine="vllm", vllm_server_weights_folder="w")


# --- types ------------------------------------------------------------------------------------------------------------


def test_yaml_reads_1e_6_as_text_and_it_is_a_number_here(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(REQUIRED) + "learning_rate: 1e-6\nmax_steps: 1e2\nweight_decay: 0\n")
    assert read_recipe(recipe)["learning_rate"] == "1e-6"
    loaded = load_config(recipe)
    assert (loaded.learning_rate, loaded.max_steps, loaded.weight_decay) == (1e-6, 100, 0.0)
    assert (type(loaded.max_steps), type(loaded.weight_decay)) == (int, float)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("log_completions", "false", False),
        ("log_completions", "No", False),
        ("log_completions", "0", False),
        ("log_completions", "TRUE", True),
        ("log_completions", True, True),
        ("report_to", "", ""),  # empty text is a value of its own: the default tracker
        ("report_to", None, None),
        ("report_to", "none", None),
        ("report_to", "null", None),
        ("prompt_suffix", "", ""),
        ("prompt_suffix", None, None),
        ("gamma_end", "0", 0.0),
        ("gamma_end", "None", None),
        ("delta", "null", None),
        ("reduction", "token", "token"),
        ("reduction", None, None),
        ("max_steps", "7", 7),
        ("max_steps", 7.0, 7),
        ("dataset_revision", 1, "1"),
        ("output_dir", "none", "none"),  # a key that cannot be null takes the word
    ],
)
def test_coercion(key, value, expected):
    found = getattr(config(**{"gamma": 0.01, key: value}), key)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("learning_rate", "fast", "learning_rate: 'fast' is not a number"),
        ("learning_rate", None, "learning_rate: None is not a number"),
        ("learning_rate", True, "learning_rate: True is not a number"),
        ("learning_rate", [1e-6], "learning_rate: [1e-06] is not a number"),
        ("learning_rate", 10**400, "is not a number"),
        ("num_generations", 2.5, "num_generations: 2.5 is not a whole number"),
        ("num_generations", "nan", "num_generations: 'nan' is not a whole number"),
        ("log_completions", "maybe", "log_completions: 'maybe' is neither true nor false"),
        ("log_completions", 1, "log_completions: 1 is neither true nor false"),
        ("output_dir", None, "output_dir: expected text, got None"),
        ("output_dir", {"a": 1}, "output_dir: expected text"),
        (
            "objective",
            "papo",
            "objective: 'papo' is none of grpo, dapo, papo_g, papo_d, dvrp, grpo_v. Did you mean papo_",
        ),
        ("objective", ["grpo"], "objective: ['grpo'] is none of"),
        ("masked_logprobs", "freezing", "Did you mean frozen?"),
        ("dtype", "zzz", "dtype: 'zzz' is none of float32, bfloat16."),
    ],
)
def test_wrong_types(key, value, words):
    assert words in refusal(**{key: value})


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "right"), [("gama", "gamma"), ("learningrate", "learning_rate"), ("num_generation", "num_generations")]
)
def test_unknown_key_names_the_nearest(wrong, right):
    assert refusal(**{wrong: 1}) == f"{wrong} is not a key of a recipe. Did you mean {right}?"


def test_unknown_key_without_a_neighbour():
    assert refusal(xyzzy=1) == "xyzzy is not a key of a recipe."
    with pytest.raises(ConfigError, match="7 is not a key"):
        build(REQUIRED | {7: 1})


@pytest.mark.parametrize("name", ELSEWHERE)
def test_keys_of_other_trainers_say_what_to_write(name):
    keys = {f.name for f in fields(TrainConfig)}
    assert name not in keys
    message = refusal(**{name: 1})
    assert message == f"{name} is not a key here; write {ELSEWHERE[name]}."
    first = ELSEWHERE[name].replace(":", " ").replace(",", " ").split()[0]
    assert first in keys | {"nothing"}


def test_missing_keys():
    with pytest.raises(ConfigError, match="lacks dataset_name, output_dir.*--dataset_name"):
        build({"model_name_or_path": "m"})


# --- contradictions ---------------------------------------------------------------------------------------------------

NAN = float("nan")
FLOATS = [f.name for f in fields(TrainConfig) if f.type.startswith("float")]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        *((key, {key: -0.1}) for key in ("gamma", "eta_clean", "eta_masked", "beta", "epsilon", "epsilon_high")),
        *((key, {key: -0.1}) for key in ("learning_rate", "weight_decay", "format_weight", "max_skipped_share")),
        *((key, {key: "inf"}) for key in ("gamma", "eta_clean", "eta_masked", "beta", "learning_rate")),
        *((key, {"gamma": 0.01, key: NAN}) for key in FLOATS),
        *((key, {key: 1.1}) for key in ("mask_ratio", "gamma_annealing_ratio", "format_weight", "top_p")),
        *(
            (key, {key: 0})
            for key in (
                *AT_LEAST_ONE,
                "max_completion_length",
                "mask_patch_size",
                "max_grad_norm",
                "max_steps",
                "eval_problems",
                "num_train_epochs",
                "temperature",
                "top_p",
            )
        ),
        ("save_steps", {"save_steps": -1}),
        ("alignment_steps", {"alignment_steps": -1}),
        ("dataloader_num_workers", {"dataloader_num_workers": -1}),
        ("min_completion_length", {"min_completion_length": -1}),
        ("min_completion_length", {"min_completion_length": 9, "max_completion_length": 8}),
        ("micro_batch_size", {"micro_batch_size": 0}),
        ("warmup_steps", {"warmup_steps": -1}),
        ("lora_rank", {"lora_rank": -1}),
        ("epsilon", {"epsilon": 1.0}),
        ("delta", {"delta": 1.0}),
        ("num_generations", {"num_generations": 1}),
        ("temperature", {"temperature": "inf"}),
        ("num_train_epochs", {"num_train_epochs": "inf"}),
        ("gamma_end", {"gamma": 0.01, "gamma_end": -0.01}),
        ("gamma_end", {"gamma_end": 0.01}),
        ("gamma_end", {"gamma": 0.01, "gamma_end": NAN}),
        ("mask_ratio", {"gamma": 0.01, "mask_ratio": 0}),
        ("prompts_per_update", {"prompts_per_step": 100, "prompts_per_update": 64}),
        ("prompts_per_step", {"prompts_per_step": 64, "prompts_per_update": 128}),
        *(("objective", {"objective": "grpo", key: 0.01}) for key in ("gamma", "eta_clean", "eta_masked")),
        ("beta", {"objective": "dapo", "beta": 0.01}),
        ("beta", {"objective": "papo_d", "beta": 0.01}),
    ],
)
def test_refused_with_the_key_named(key, values):
    assert key in refusal(**values)


def test_the_lists_of_keys_above_are_whole():
    assert {"beta", "delta", "gamma_end", "temperature"} < set(FLOATS)
    whole = {f.name for f in fields(TrainConfig) if f.type == "int"}
    elsewhere = {"num_generations", "max_completion_length", "mask_patch_size", "save_steps", "warmup_steps", "seed"}
    elsewhere |= {"min_completion_length", "dataloader_num_workers", "alignment_steps", "lora_rank"}
    assert set(AT_LEAST_ONE) == whole - elsewhere


def test_refusals_say_what_to_write():
    assert "write objective: papo_d" in refusal(objective="dapo", gamma=0.01)
    assert "write objective: papo_g" in refusal(objective="grpo", gamma=0.01)
    assert "write beta: 0" in refusal(objective="papo_d", beta=0.01)
    assert "write objective: dvrp" in refusal(objective="papo_d", robustness=0.1)
    assert "write masked_logprobs: live" in refusal(objective="grpo_v", robustness=0.1)
    assert "papo_g has no term of that weight; write robustness: 0." in refusal(objective="papo_g", robustness=0.1)


def test_edges_that_are_allowed():
    assert config(save_steps=0, warmup_steps=0, eval_problems=1, num_generations=2, top_p=1, mask_ratio=1).gamma == 0
    assert config(mask_ratio=0).mask_ratio == 0  # nothing reads the masked view
    assert config(max_steps=1, num_train_epochs=0).max_steps == 1
    assert config(epsilon=0, epsilon_high=0, gamma=0.01, gamma_end=0).epsilon == 0


def test_what_follows_from_the_keys():
    whole = config(objective="papo_d", prompts_per_step=384, prompts_per_update=128, beta=0, epsilon_high=0.28)
    assert whole.updates_per_step == 3
    assert whole.dynamic_sampling and not config(objective="papo_g").dynamic_sampling
    assert config(objective="dapo").dynamic_sampling and config(objective="dapo").algorithm == DAPO
    assert config(objective="papo_g", reduction="token").algorithm == with_reduction(PAPO_G, "token")
    weights = config(beta=0.04, epsilon=0.1, epsilon_high=0.28, delta=2, gamma=0.02).policy_weights
    assert (weights.beta, weights.epsilon, weights.epsilon_high, weights.delta) == (0.04, 0.1, 0.28, 2.0)
    assert weights.gamma == 0  # the perception plugin's business


# --- processes: the batch is shared out whole -------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 4, 128])
def test_batches_that_divide(processes):
    check_processes(config(), processes)  # 128 prompts an update


def test_batches_that_do_not_divide():
    with pytest.raises(ConfigError) as caught:
        check_processes(config(), 6)
    # 128 = 21 · 6 + 2
    assert "prompts_per_update: 128" in str(caught.value)
    assert "128 = 21 × 6 + 2" in str(caught.value)


# --- notices ----------------------------------------------------------------------------------------------------------


def test_a_plain_recipe_says_nothing():
    assert notices(config(gamma=0.02)) == []


def test_frozen_masked_entropy_is_said_to_train_nothing():
    frozen = config(gamma=0.02, eta_masked=0.03)
    (notice,) = notices(frozen)
    assert "eta_masked" in notice and "no gradient" in notice and "masked_logprobs: live" in notice


def test_live_net_weight_is_said_to_pull_the_views_together():
    live = config(gamma=0.02, eta_masked=0.03, masked_logprobs="live")
    (notice,) = notices(live)
    assert "0.03" in notice and "0.02" in notice and "towards the clean one" in notice
    assert notices(replace(live, eta_masked=0.02)) == []


def test_on_policy_entropy_is_said_to_have_no_expected_gradient():
    on_policy = config(eta_clean=0.03, prompts_per_step=128)
    (notice,) = notices(on_policy)
    assert "eta_clean" in notice and "expected gradient is zero" in notice
    assert notices(replace(on_policy, prompts_per_step=256)) == []


# --- recipe files and the command line --------------------------------------------------------------------------------


def test_overrides_in_their_three_forms():
    parsed = parse_overrides(["--gamma", "0.02", "--eta-clean=0.05", "--log_completions", "--learning_rate", "-1"])
    assert parsed == {"gamma": "0.02", "eta_clean": "0.05", "log_completions": "true", "learning_rate": "-1"}
    assert parse_overrides(["--prompt_suffix=", "--output_dir=a=b", "--activation_checkpointing"]) == {
        "prompt_suffix": "",
        "output_dir": "a=b",
        "activation_checkpointing": "true",
    }
    assert parse_overrides([]) == {}


@pytest.mark.parametrize("arguments", [["gamma", "0.02"], ["--gamma", "1", "2"], ["--"], ["-g", "1"]])
def test_overrides_that_are_none(arguments):
    with pytest.raises(ConfigError, match="Expected --key value"):
        parse_overrides(arguments)


def test_the_command_line_wins(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(REQUIRED | {"gamma": 0.01, "seed": 1}))
    loaded = load_config(recipe, parse_overrides(["--gamma", "0.02"]))
    assert (loaded.gamma, loaded.seed) == (0.02, 1)
    with pytest.raises(ConfigError, match="gama"):
        load_config(recipe, {"gama": "1"})


@pytest.mark.parametrize("content", ["- a\n- b\n", "text", "", "3"])
def test_a_recipe_must_be_a_mapping(tmp_path, content):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(content)
    with pytest.raises(ConfigError, match="must hold `key: value` lines"):
        read_recipe(recipe)


def test_a_recipe_that_is_not_there_or_no_yaml(tmp_path):
    with pytest.raises(ConfigError, match="no recipe at"):
        read_recipe(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="no recipe at"):
        read_recipe(tmp_path)
    broken = tmp_path / "r.yaml"
    broken.write_text("a: [1\nb: 2")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_recipe(broken)


def test_to_yaml_and_back():
    original = config(gamma=0.02, gamma_end=0, learning_rate="1e-6", report_to=None, prompt_suffix="γ: \\boxed{}")
    assert build(yaml.safe_load(original.to_yaml())) == original
    assert list(yaml.safe_load(original.to_yaml())) == list(asdict(original))


def test_help_has_a_line_a_key():
    lines = help_text().splitlines()
    assert [line.split()[0] for line in lines] == [f"--{f.name}" for f in fields(TrainConfig)]
    assert all(f.metadata["help"] for f in fields(TrainConfig))
    assert "required" in lines[0] and "(default 0.6)" in next(line for line in lines if "--mask_ratio" in line)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"warmup_steps": 5}, "constant_with_warmup"),
        ({"min_pixels": 784}, "min_pixels and max_pixels go together"),
        ({"lr_scheduler_type": "linaer"}, "Did you mean linear"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        build({"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"} | values)


def test_a_key_that_stands_twice_is_refused(tmp_path):
    recipe = tmp_path / "twice.yaml"
    recipe.write_text("gamma: 0.01\nbeta: 0.01\ngamma: 0.02\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="has gamma twice"):
        read_recipe(recipe)
