from conftest import draw_few


def test_file_order_takes_shared_then_candidate_then_independent():
    subsets = draw_few()
    assert subsets.shared.tolist() == [0, 1, 2, 3, 4, 5]
    assert subsets.candidate.tolist() == [6, 7, 8] and subsets.independent.tolist() == [9, 10, 11]
    assert subsets.external.tolist() == [0, 1, 2, 3]  # of the test set
    assert subsets.training_set("candidate").tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert subsets.training_set("independent").tolist() == [0, 1, 2, 3, 4, 5, 9, 10, 11]


def test_shuffled_subsets_are_disjoint_repeatable_and_follow_their_seed():
    one, again, other = (draw_few(order="shuffled", seed=seed) for seed in (0, 0, 1))
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert len(set(one.train.tolist())) == 12
    assert max(one.train) > 100 and max(one.external) > 10  # from all over the data set


def test_training_and_test_images_are_shuffled_differently():
    subsets = draw_few(order="shuffled", shared=0, candidate=100, independent=100, external=200)
    both = [i for i in subsets.train if i < 256]  # the order of the test images, if it is the same
    assert both and both != subsets.external[: len(both)].tolist()


def test_disjoint_halves_share_nothing():
    subsets = draw_few(shared=0)
    assert subsets.training_set("candidate").tolist() == [0, 1, 2]
    assert subsets.training_set("independent").tolist() == [3, 4, 5]
