from prefopt.recipe.schema import DPOSpec, LoraSpec, ModelSpec
from prefopt.store.secrets import redact
from prefopt.tracking.redaction import allowed_config

ENVIRON = {
    "HF_TOKEN": "hf_abcdefghij",
    "MY_API_KEY": "hf_abcdefghijKLM",
    "PIN_PASSWORD": "1234",
    "EDITOR": "visual-editor",
}


def test_values_of_secret_variables_go_and_others_stay():
    text = "token hf_abcdefghij, key hf_abcdefghijKLM, 1234 visual-editor"
    assert redact(text, ENVIRON) == "token [redacted], key [redacted], 1234 visual-editor"


def test_credentials_in_urls_go():
    assert (
        redact("see https://me:pw@host:80/a and http://host/a@b", {})
        == "see https://[redacted]@host:80/a and http://host/a@b"
    )


def test_a_whole_dumped_spec_passes_but_for_local_folders():
    spec = DPOSpec(kind="dpo", data=("hh",), init="sft", max_length=64)
    config = allowed_config("dpo", {"stage": spec.model_dump(mode="json")}, {})
    assert config == spec.model_dump(mode="json")
    model = ModelSpec(model_name_or_path="/data/models/tiny", lora=LoraSpec(lora_target_modules=("q_proj",)))
    config = allowed_config("dpo", {"model": model.model_dump()}, {})
    assert config["model"]["model_name_or_path"] == "tiny"
    assert config["model"]["lora"]["lora_target_modules"] == ["q_proj"]


def test_long_settings_that_mention_tokens_are_no_secrets():
    assert allowed_config("evaluate", {"max_new_tokens": 32, "key": "abc"}, {}) == {"max_new_tokens": 32, "key": "abc"}


def test_an_unknown_kind_keeps_names_only():
    assert allowed_config("ppo", {"stage": {"beta": 1, "kind": "ppo"}, "model": "m", "data": ["d"]}, {}) == {
        "kind": "ppo",
        "model": "m",
        "data": ["d"],
    }
