"""Text, its split, and batches that depend on nothing but seed and step."""

import torch

from fulgurite.demo.data import Corpus, library_sources, read_text


def test_library_sources_are_megabytes_of_python() -> None:
    text = library_sources()
    assert len(text) > 1 << 20
    assert b"def __init__(self" in text
    assert text == read_text(None)


def test_held_out_is_the_end_and_never_trained_on() -> None:
    text = bytes(range(200)) * 5 + bytes([255]) * 60
    corpus = Corpus.from_bytes(text, 32, "text")
    assert bytes(corpus.train.tolist()) + bytes(corpus.held_out.tolist()) == text
    assert len(corpus.held_out) == len(text) // 20
    assert all(corpus.batch(step, 8, 32, 0).max() < 255 for step in range(1, 30))


def test_shortest_text() -> None:
    corpus = Corpus.from_bytes(bytes(range(66)), 32, "text")
    assert corpus.batch(1, 2, 32, 0).tolist() == [list(range(33))] * 2
    assert corpus.held_out_sequences(16, 32).tolist() == [list(range(33, 66))]


def test_batches_are_a_function_of_seed_and_step() -> None:
    corpus = Corpus.from_bytes(bytes(range(256)) * 40, 32, "text")
    batch = corpus.batch(7, 4, 32, 1)
    assert batch.shape == (4, 33)
    assert torch.equal(batch, corpus.batch(7, 4, 32, 1))
    assert not torch.equal(batch, corpus.batch(8, 4, 32, 1))
    assert not torch.equal(batch, corpus.batch(7, 4, 32, 2))
    assert ((batch[:, 1:] - batch[:, :-1]) % 256 == 1).all()
