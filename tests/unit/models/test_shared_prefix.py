"""Pairs that share their prompt say what padded rows say, on every family of decoders; where they cannot, we know."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_mask

from prefopt.models import pairs
from prefopt.models.actor_critic import Ask, actor_critic
from prefopt.models.batches import PairCollator, pad_rows
from prefopt.models.generate import Sampled
from prefopt.models.heads import RewardEnsemble, RewardModel, new_head
from prefopt.models.pair_policy import PairPolicy
from prefopt.models.pairs import PairLayout
from prefopt.models.shared_prefix import sharing_prompts, why_not_shared
from prefopt.trainers.rollouts import episodes
from tests.tiny import VOCABULARY, random_rows, tiny_llama

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING = ["sliding_attention", "full_attention"] * 2
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen2, sliding": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "layer_types": SLIDING}),
    "qwen3": ("Qwen3", {}),
    "gemma": ("Gemma", {}),
    "gemma3": ("Gemma3", {"sliding_window": 5, "layer_types": SLIDING}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral, sliding": ("Mistral", {"sliding_window": 5}),
    "granite": ("Granite", {"logits_scaling": 3.0}),
    "cohere": ("Cohere", {"logit_scale": 0.3}),
}


def decoder(family: str) -> PeftModel:
    """In float64, its norms as well, with an adapter whose both matrices are random."""
    name, more = FAMILIES[family]
    name = {"Gemma3": "Gemma3Text"}.get(name, name)
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **more})
    causal = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")
    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    model = get_peft_model(causal(config).eval(), lora, adapter_name="policy")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.double()


def long_rows(count: int) -> list[dict[str, list[int]]]:
    """Of several sizes: some that go through attention together, and some that are cut into their parts."""
    rows = random_rows(count)
    for row in rows[1::3]:
        row["prompt_ids"] = row["prompt_ids"] + [7 + i % 200 for i in range(300)]
    return rows


@pytest.fixture
def double_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms compute in float32 whatever they are given, which would hide what is to be seen here."""
    monkeypatch.setattr(Tensor, "float", lambda self: self.double())
    to = Tensor.to

    def keep(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        return to(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", keep)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.usefixtures("double_norms")
@pytest.mark.parametrize("family", FAMILIES)
def test_sums_and_gradients_are_those_of_padded_rows(family: str) -> None:
    policy = PairPolicy(decoder(family))
    assert why_not_shared(policy.peft) is None
    batch = PairCollator()(long_rows(7))
    found = []
    for policy.shares_prompts in (False, True):
        with sharing_prompts(policy.peft) if policy.shares_prompts else nullcontext():
            sums = policy(batch["input_ids"], batch["lengths"], tails=True, alignment=True, sequential_kl=True)
            (sums.logps.sin().sum() + sums.tail_logps.cos().sum() + sums.sequential_kl.sum()).backward()
        found.append((sums, gradients(policy)))
    (padded, expected), (shared, gradient) = found
    for name, one, other in zip(padded._fields, padded, shared, strict=True):
        if one is None:  # nothing is flagged
            assert other is None and name == "unlikelihood"
            continue
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-10), (name, float((one - other).abs().max()))
    assert gradient.keys() == expected.keys() and gradient
    for name in gradient:
        scale = float(expected[name].abs().max())
        assert float((gradient[name] - expected[name]).abs().max()) < 1e-9 * max(1.0, scale), name


@pytest.mark.usefixtures("double_norms")
def test_scores_are_those_of_padded_rows() -> None:
    peft = decoder("qwen2")
    model = RewardModel(peft, new_head(peft, 2).double())
    batch = PairCollator()(long_rows(7))
    expected = model(batch["input_ids"], lengths=batch["lengths"])
    with sharing_prompts(peft):
        model.shares_prompts = True
        found = model(batch["input_ids"], lengths=batch["lengths"])
    assert expected.shape == (14, 2) and torch.allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("double_norms")
@pytest.mark.parametrize("value", ["shared", "adapter"])
@pytest.mark.parametrize("family", FAMILIES)
def test_episodes_without_padding_are_those_of_padded_rows(family: str, value: str) -> None:
    model = actor_critic(decoder(family), value=value).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    rows = long_rows(7)
    samples = [Sampled(tuple(row["chosen_ids"]), "", True) for row in rows]
    batch = episodes([row["prompt_ids"] for row in rows], samples, 0)
    inputs = (batch.input_ids, batch.attention_mask, batch.prompt_length)
    found = []
    for model.shares_prompts in (False, True):
        with sharing_prompts(model.peft) if model.shares_prompts else nullcontext():
            said = model(*inputs, Ask("policy", 0.7, entropy_gradient=True))
            reference = model(*inputs, Ask("reference", policy_states=said.states.detach()))
            loss = said.logps.sin().sum() + said.entropy.sum() + (0 if said.values is None else said.values.cos().sum())
            loss.backward()
            if value == "adapter":
                said = said._replace(values=model(*inputs, Ask("value")).values)
                said.values.cos().sum().backward()
        found.append(((*said, reference.logps, reference.divergence), gradients(model)))
    (padded, expected), (unpadded, gradient) = found
    for one, other in zip(padded, unpadded, strict=True):
        assert (one is None and other is None) or torch.allclose(one, other, rtol=1e-10, atol=1e-10)
    assert torch.equal(padded[2] == 0, batch.mask == 0)
    assert gradient.keys() == expected.keys() and any("value_head" in name for name in gradient)
    for name in gradient:
        scale = float(expected[name].abs().max())
        assert float((gradient[name] - expected[name]).abs().max()) < 1e-9 * max(1.0, scale), name


@pytest.mark.usefixtures("double_norms")
def test_a_reward_model_scores_rows_without_padding_where_its_base_can() -> None:
    peft = decoder("qwen2")
    ensemble = RewardEnsemble(peft, {"policy": new_head(peft, 2).double()})
    rows = [row["prompt_ids"] + row["chosen_ids"] for row in long_rows(7)]
    ids, mask = pad_rows(rows, 0), pad_rows([[1] * len(row) for row in rows], 0)
    expected = ensemble(ids, mask)
    with sharing_prompts(peft):
        found = ensemble(ids, mask)
    assert expected.shape == (7, 2) and torch.allclose(found, expected, rtol=1e-10, atol=1e-10)
    assert not torch.equal(found, expected)  # the sums are others, so it did go another way


def test_no_attention_crosses_pairs_or_completions() -> None:
    """Each other token of the batch may change, and what is said of a completion stays, to the last bit."""
    policy = PairPolicy(decoder("llama"))
    rows = long_rows(4)
    policy.shares_prompts = True

    def said(rows: list[dict[str, list[int]]]) -> Tensor:
        batch = PairCollator()(rows)
        with sharing_prompts(policy.peft), torch.no_grad():
            return policy(batch["input_ids"], batch["lengths"]).logps

    before = said(rows)
    for pair in range(4):
        for side, name in enumerate(("rejected_ids", "chosen_ids")):
            changed = [dict(row) for row in rows]
            changed[pair][name] = [(token + 3) % VOCABULARY for token in changed[pair][name]]
            after = said(changed)
            other = pair + 4 * side  # the completion beside the one that changed
            same = [index for index in range(8) if index != pair + 4 * (1 - side)]
            assert torch.equal(after[other], before[other]) and torch.equal(after[same], before[same])
            assert not torch.equal(after, before)


def test_outside_the_block_attention_is_what_it_was() -> None:
    model = decoder("llama")
    ids = torch.randint(6, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9])
    before = model(input_ids=ids, attention_mask=mask).logits
    policy = PairPolicy(model)
    batch = PairCollator()(random_rows(3))
    with sharing_prompts(model):
        policy.shares_prompts = True
        policy(batch["input_ids"], batch["lengths"])  # leaves nothing behind
        inside = model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(inside, before)
    assert model.get_base_model().config._attn_implementation == "sdpa"


def test_a_model_that_cannot_share_says_why() -> None:
    eager = tiny_llama()
    eager.set_attn_implementation("eager")
    assert "'eager'" in str(why_not_shared(eager))
    state = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4)
    )
    assert "state" in str(why_not_shared(state))
    mixed = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SHAPE, layer_types=["full_attention"] * 4))
    mixed.config.layer_types = ["linear_attention", *mixed.config.layer_types[1:]]
    assert "linear_attention" in str(why_not_shared(mixed))


sizes = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6)


@given(lengths=sizes)
def test_every_completion_token_is_predicted_once_from_the_token_before_it(lengths: list[tuple[int, int, int]]) -> None:
    layout = PairLayout(torch.tensor(lengths), torch.device("cpu"))
    tokens = [(pair, part, i) for pair, sizes in enumerate(lengths) for part in range(3) for i in range(sizes[part])]
    expected = [
        (pair + side * len(lengths), offset)
        for side in (0, 1)
        for pair, sizes in enumerate(lengths)
        for offset in range(0 if sizes[0] else 1, sizes[1 + side])
    ]
    assert list(zip(layout.completion.tolist(), layout.offset.tolist(), strict=True)) == expected
    for state, target, (completion, offset) in zip(
        layout.states.tolist(), layout.targets.tolist(), expected, strict=True
    ):
        side, pair = divmod(completion, len(lengths))
        assert tokens[target] == (pair, 1 + side, offset)
        before = (pair, 1 + side, offset - 1) if offset else (pair, 0, lengths[pair][0] - 1)
        assert tokens[state] == before
        assert int(layout.position_ids[0, target]) == lengths[pair][0] + offset
    assert [tokens[i] for i in layout.last.tolist()] == [
        (pair, 1 + side, lengths[pair][1 + side] - 1) for side in (0, 1) for pair in range(len(lengths))
    ]


@given(lengths=sizes, window=st.sampled_from([None, 1, 3]), block=st.sampled_from([1, 8, 64]))
def test_masks_show_a_completion_its_prompt_and_itself(
    lengths: list[tuple[int, int, int]], window: int | None, block: int
) -> None:
    """Block masks, part masks and flex attention's mask all say what the definition says, token by token."""
    layout = PairLayout(torch.tensor(lengths), torch.device("cpu"))
    owner = [(pair, part) for pair, sizes in enumerate(lengths) for part in range(3) for _ in range(sizes[part])]
    position = layout.position_ids[0].tolist()

    def visible(query: int, key: int) -> bool:
        same = owner[query][0] == owner[key][0] and (owner[key][1] in (0, owner[query][1])) and key <= query
        return same and (window is None or position[query] - position[key] < window)

    count = layout.tokens
    expected = torch.tensor([[visible(query, key) for key in range(count)] for query in range(count)])
    size = layout.padded_tokens
    seen = layout._sees(window)
    flex = create_mask(lambda batch, head, query, key: seen(query, key), None, None, size, size, "cpu")
    assert torch.equal(flex[0, 0, :count, :count], expected) and not flex[0, 0, :count, count:].any()
    limit, pairs.BLOCK_TOKENS = pairs.BLOCK_TOKENS, block
    try:
        blocks = layout.blocks
        assert [token for each in blocks for token in range(each.start, each.end)] == list(range(count))
        for each in blocks:
            inside = slice(each.start, each.end)
            found = layout.block_mask(each, window, torch.float32)[0, 0] == 0
            assert torch.equal(found, expected[inside, inside])
            assert each.is_split == (each.end - each.start > block)
            prompt, chosen, _ = each.lengths
            run = layout.part_mask(chosen, prompt, window, torch.float32)[0, 0] == 0
            rows = slice(each.start + prompt, each.start + prompt + chosen)
            assert torch.equal(run, expected[rows, each.start : each.start + prompt + chosen])
    finally:
        pairs.BLOCK_TOKENS = limit
