"""Policy, reference, value and reward models on one base: each computes as on a base of its own, and disturbs none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor

from prefopt.data.templates import Encoder
from prefopt.models.actor_critic import ActorCritic, Ask, actor_critic
from prefopt.models.heads import new_reward_model, save_reward
from prefopt.models.reward_artefact import RewardArtefact, open_reward, write_artefact
from prefopt.models.roles import POLICY, REFERENCE, REWARD, activate_trained, left_as_found, save_adapter, set_active
from prefopt.records import Message
from prefopt.rewards.model import RewardModelScorer
from tests.tiny import tiny_llama, tiny_policy, tiny_tokenizer

MEMBERS = 3
PROMPTS = [(Message("user", text),) for text in ("the lamp", "is", "the chair costs nine euro")]
TEXTS = ["is red", "the lamp is nine euro", ""]
IDS = torch.randint(6, 300, (4, 11), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)


def randomised(model: torch.nn.Module, seed: int, what: str = "lora_B") -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if what in name:
                parameter.normal_(std=0.1, generator=generator)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble of different ranks."""
    folder = tmp_path_factory.mktemp("reward")
    names = []
    for number in range(MEMBERS):
        torch.manual_seed(number)
        lora = LoraConfig(r=2 + number, lora_alpha=8, target_modules="all-linear")
        model = new_reward_model(tiny_llama(), lora, None)
        randomised(model, number)
        names.append("adapter" if number == 0 else f"member_{number}")
        save_reward(model.peft, REWARD, model.score, folder / names[-1], "tiny")
    write_artefact(folder, RewardArtefact(adapters=tuple(names), offsets=(0.1, -0.3, 0.2)))
    return folder


def policy(tmp_path: Path, kind: str) -> PeftModel:
    """A policy that started from the base, from an adapter, or that stands on one."""
    if kind == "base":
        model = tiny_policy()
    else:
        first = tiny_policy(adapter="start" if kind == "stack" else POLICY)
        randomised(first, 7)
        save_adapter(first, "start" if kind == "stack" else POLICY, tmp_path / "init", "tiny")
        if kind == "adapter":
            model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "init", adapter_name=POLICY, is_trainable=True)
            model.load_adapter(tmp_path / "init", REFERENCE, is_trainable=False)
        else:
            model = tiny_policy()
            model.load_adapter(tmp_path / "init", "start", is_trainable=False)
        activate_trained(model, POLICY)
    return model


def scorer(base, artefact: Path, name: str = "reward") -> RewardModelScorer:
    tokenizer = tiny_tokenizer()
    model, described = open_reward(base, artefact, name)
    return RewardModelScorer(model, Encoder(tokenizer, 128), 0, name=name, artefact=described, batch_size=2)


def everything(model: ActorCritic) -> list[Tensor]:
    """All outputs of all roles."""
    with torch.no_grad():
        said = [model(IDS, MASK, 5, Ask(role)) for role in ("policy", "reference")]
        if not model.shared:
            said.append(model(IDS, MASK, 5, Ask("value")))
    return [each for outputs in said for each in outputs if each is not None]


def flags(model: torch.nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


KINDS = ["base", "adapter", "stack"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_ensemble_scores_as_on_a_base_of_its_own(tmp_path: Path, artefact: Path, kind: str) -> None:
    alone = scorer(tiny_llama(), artefact).score(PROMPTS, TEXTS)
    host = policy(tmp_path, kind)
    randomised(host, 1, "lora_B.policy")
    beside = scorer(host, artefact)
    critic = actor_critic(host, value="adapter")
    randomised(critic, 2, "lora_B.value")
    for _ in range(2):  # whoever was active before
        found = beside.score(PROMPTS, TEXTS)
        assert [each.value for each in found] == pytest.approx([each.value for each in alone], abs=1e-6)
        assert [each.std for each in found] == pytest.approx([each.std for each in alone], abs=1e-6)
        critic.activate("value")
    assert min(each.std for each in alone) > 1e-3
    assert len({round(each.value, 4) for each in alone}) == len(TEXTS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", ["adapter", "shared"])
def test_scoring_leaves_every_role_as_it_was(tmp_path: Path, artefact: Path, kind: str, value: str) -> None:
    host = policy(tmp_path, kind)
    critic = actor_critic(host, value=value)
    for number, what in enumerate(("lora_B.policy", "lora_B.value", "value_head")):
        randomised(critic, number, what)
    trained = {name for name, on in flags(critic).items() if on}
    assert trained and all(".policy." in n or ".value." in n or n.startswith("value_head") for n in trained)
    bare = everything(critic)

    reward, judge = scorer(host, artefact), scorer(host, artefact, "the.judge")
    assert {name for name, on in flags(critic).items() if on} == trained
    before, modes = everything(critic), None
    assert all(torch.equal(a, b) for a, b in zip(bare, before, strict=True))
    roles = ("policy",) if value == "shared" else ("policy", "value")
    for role in roles:
        for training in (True, False):
            critic.train(training)
            critic.activate(role)
            active, modes = list(host.active_adapters), [module.training for module in host.modules()]
            reward.score(PROMPTS, TEXTS)
            judge.score(PROMPTS, TEXTS)
            assert list(host.active_adapters) == active
            assert {name for name, on in flags(critic).items() if on} == trained
            assert [module.training for module in host.modules()] == modes
            assert all(torch.equal(a, b) for a, b in zip(before, everything(critic), strict=True))


def gradients(critic: ActorCritic, between) -> dict[str, Tensor]:
    """Of a loss of all roles, with something done before every pass."""
    critic.zero_grad()
    between()
    said = critic(IDS, MASK, 5, Ask("policy", entropy_gradient=True))
    loss = said.logps.square().sum() + said.entropy.sum()
    if critic.shared:
        loss = loss + said.values.square().sum()
    loss.backward()
    if not critic.shared:
        between()
        critic(IDS, MASK, 5, Ask("value")).values.square().sum().backward()
    return {name: p.grad.clone() for name, p in critic.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", ["adapter", "shared"])
@pytest.mark.parametrize("recompute", [False, True])
def test_every_trained_role_has_its_gradient_and_scoring_changes_none(
    tmp_path: Path, artefact: Path, kind: str, value: str, recompute: bool
) -> None:
    host = policy(tmp_path, kind)
    critic = actor_critic(host, value=value)
    for number, what in enumerate(("lora_B.policy", "lora_B.value", "value_head")):
        randomised(critic, number, what)
    plain = gradients(critic.train(), lambda: None)
    expected = {name for name, on in flags(critic).items() if on}
    assert plain.keys() == expected and all(gradient.any() for gradient in plain.values())
    reward = scorer(host, artefact)
    if recompute:
        base = host.get_base_model()
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    def between() -> None:
        reward.score(PROMPTS, TEXTS)
        with torch.no_grad():
            critic(IDS, MASK, 5, Ask("reference"))

    found = gradients(critic.train(), between)
    assert found.keys() == plain.keys()
    for name, gradient in plain.items():
        assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-6), name


def test_the_base_is_there_once(artefact: Path) -> None:
    host = tiny_policy()
    expected = {id(parameter) for parameter in host.parameters()}
    base = sum(parameter.numel() for name, parameter in host.named_parameters() if "lora_" not in name)
    before = sum(parameter.numel() for parameter in host.parameters())
    reward = scorer(host, artefact)
    critic = actor_critic(host, value="adapter")
    everyone = {id(p): (name, p.numel()) for m in (critic, reward._model) for name, p in m.named_parameters()}
    assert expected <= set(everyone)
    new = {key: each for key, each in everyone.items() if key not in expected}
    assert all("lora_" in name or name.startswith(("value_head", "heads.")) for name, _ in new.values())
    assert sum(size for name, size in everyone.values() if "lora_" not in name and "head" not in name) == base
    assert before < sum(size for _, size in everyone.values())


def test_what_is_done_in_the_block_is_undone_also_after_an_error(tmp_path: Path) -> None:
    host = policy(tmp_path, "stack")
    active, before = list(host.active_adapters), flags(host)
    assert active == ["start", POLICY]
    with pytest.raises(RuntimeError, match="in between"), left_as_found(host):
        set_active(host, ["start"])
        assert not any(flags(host).values())
        raise RuntimeError("in between")
    assert list(host.active_adapters) == active and flags(host) == before


def test_a_shared_value_alone_leaves_the_policy_without_a_gradient(tmp_path: Path) -> None:
    critic = actor_critic(policy(tmp_path, "adapter"), value="shared")
    randomised(critic, 3, "value_head")
    said = critic(IDS, MASK, 5, Ask("policy", value_alone=True))
    said.values.square().sum().backward()
    assert {name for name, p in critic.named_parameters() if p.grad is not None} == {
        "value_head.weight",
        "value_head.bias",
    }
    expected = critic(IDS, MASK, 5, Ask("policy")).values
    assert torch.equal(said.values, expected)


def test_a_reward_named_as_the_value_is_not_trained_for_it(artefact: Path) -> None:
    host = tiny_policy()
    scorer(host, artefact, "value")
    critic = actor_critic(host, value="adapter")
    assert not any(on for name, on in flags(critic).items() if ".value_0." in name)
    assert any(on for name, on in flags(critic).items() if ".value." in name)
