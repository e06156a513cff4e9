"""Topics, similarity, and the weights of several tasks."""

import pytest
import torch
from torch.nn import functional

from finetune.objectives.understanding import NO_TOPIC, TEMPERATURE, TaskWeights, similarity_loss, topic_loss


def test_texts_without_a_topic_do_not_count() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    both = topic_loss(logits, torch.tensor([2, NO_TOPIC, 0]))
    torch.testing.assert_close(both, functional.cross_entropy(logits[[0, 2]], torch.tensor([2, 0])))
    several = torch.tensor([[1.0, 0, 1, 0], [torch.nan] * 4, [0, 0, 0, 1]])
    expected = functional.binary_cross_entropy_with_logits(logits[[0, 2]], several[[0, 2]])
    torch.testing.assert_close(topic_loss(logits, several), expected)
    for none in (torch.full((3,), NO_TOPIC), torch.full((3, 4), torch.nan)):
        assert topic_loss(logits, none).item() == 0.0


def test_a_clicked_document_is_held_against_all_others_but_those_clicked_for_the_same_text() -> None:
    embeddings = functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    # Texts 0 and 1 are user texts; 2, 3 and 4 documents. User 0 clicked 2 and 3, user 1 clicked 4.
    queries, documents = torch.tensor([0, 0, 0, 1]), torch.tensor([2, 3, 4, 4])
    clicks = torch.tensor([1.0, 2.0, 0.0, 1.0])
    cosine = embeddings @ embeddings.T / TEMPERATURE
    expected = torch.stack([
        -cosine[0, 2] + torch.logsumexp(cosine[0, [2, 4]], 0),
        -cosine[0, 3] + torch.logsumexp(cosine[0, [3, 4]], 0),
        -cosine[1, 4] + torch.logsumexp(cosine[1, [2, 3, 4]], 0),
    ]).mean()  # fmt: skip
    torch.testing.assert_close(similarity_loss(embeddings, queries, documents, clicks), expected)
    assert similarity_loss(embeddings, queries - 5, documents, clicks).item() == 0.0, "empty user texts mean nothing"


def test_learned_weights_lean_away_from_the_task_whose_loss_stays_high() -> None:
    weights = TaskWeights(("click", "topic"), None)
    optimizer = torch.optim.Adam(weights.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        weights({"click": torch.tensor(0.25), "topic": torch.tensor(2.0)}).backward()
        optimizer.step()
    found = weights.weights()
    assert found == {"click": pytest.approx(4.0, rel=0.05), "topic": pytest.approx(0.5, rel=0.05)}


def test_given_weights_are_what_they_say() -> None:
    weights = TaskWeights(("click", "topic"), {"click": 1.0, "topic": 0.2})
    assert weights({"click": torch.tensor(3.0), "topic": torch.tensor(5.0)}).item() == pytest.approx(4.0)
    assert not list(weights.parameters())
