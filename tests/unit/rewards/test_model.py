"""A reward model as a scorer: text scores as its tokens did in training, in any company."""

from collections.abc import Sequence

import pytest
import torch
from peft import LoraConfig

from prefopt.data.templates import Encoder
from prefopt.data.toy import world
from prefopt.errors import DataError
from prefopt.models.batches import PairCollator
from prefopt.models.heads import RewardModel, new_reward_model
from prefopt.records import PreferencePair
from prefopt.rewards.model import RewardModelScorer
from prefopt.trainers.rows import pair_row
from tests.tiny import tiny_llama, tiny_tokenizer


def reward_model() -> RewardModel:
    torch.manual_seed(1)
    model = new_reward_model(tiny_llama(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"), None)
    return model.eval()


def scorer(batch_size: int = 128, max_length: int = 512) -> RewardModelScorer:
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, max_length)
    # The end token fills: it must not be taken for the end of a row.
    return RewardModelScorer(reward_model(), encoder, tokenizer.eos_token_id, name="reward", batch_size=batch_size)


def chosen_scores(scoring: RewardModelScorer, pairs: Sequence[PreferencePair]) -> list[float]:
    found = scoring.score([pair.prompt for pair in pairs], [pair.chosen for pair in pairs])
    return [score.value for score in found]


def test_text_scores_as_its_pair_does_in_training() -> None:
    pairs = world.preferences(6, 2)
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, 512)
    batch = PairCollator()([pair_row(pair, encoder) for pair in pairs])
    with torch.no_grad():
        chosen, _ = reward_model()(batch["input_ids"], lengths=batch["lengths"]).chunk(2)
    assert chosen_scores(scorer(), pairs) == pytest.approx(chosen.tolist(), abs=1e-5)
    assert chosen.std() > 1e-3


def test_scores_do_not_depend_on_the_batch_and_keep_their_order() -> None:
    pairs = world.preferences(7, 3)
    together = chosen_scores(scorer(), pairs)
    assert chosen_scores(scorer(batch_size=2), pairs) == pytest.approx(together, abs=1e-5)
    assert chosen_scores(scorer(), pairs[::-1]) == pytest.approx(together[::-1], abs=1e-5)
    assert chosen_scores(scorer(), []) == []


def test_an_answer_of_nothing_has_a_score_and_one_that_does_not_fit_has_none() -> None:
    prompt = world.prompts(1, 0)[0]
    assert len(scorer().score([prompt], [""])) == 1
    with pytest.raises(DataError, match="does not fit"):
        scorer(max_length=64).score([prompt], ["blue " * 100])


def test_scoring_leaves_dropout_and_gradients_as_they_were() -> None:
    scoring = scorer()
    scoring._model.train()
    chosen_scores(scoring, world.preferences(2, 1))
    assert scoring._model.training and all(parameter.grad is None for parameter in scoring._model.parameters())
