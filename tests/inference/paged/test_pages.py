"""Pages: lowest numbers first, owners, and what is found by its tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynscaling_jax.inference.paged.pages import Pool


def test_the_lowest_free_pages_are_taken_first():
    pool = Pool(5, 4)
    assert pool.take(3) == (0, 1, 2)
    pool.release((0, 2))
    assert pool.take(3) == (0, 2, 3)
    assert (pool.held, pool.available) == (4, 1)


def test_too_many_pages_are_refused_and_none_is_taken():
    pool = Pool(2, 4)
    with pytest.raises(ValueError, match="3 pages were asked for; 2 are"):
        pool.take(3)
    assert pool.available == 2


def test_a_page_is_free_when_its_last_owner_leaves():
    pool = Pool(2, 4)
    pages = pool.take(1)
    pool.share(pages)
    pool.release(pages)
    assert pool.held == 1
    pool.release(pages)
    assert (pool.held, pool.kept) == (0, 0)


def test_full_pages_are_found_by_what_they_and_those_before_hold():
    pool = Pool(9, 2)
    pages = pool.take(3)
    pool.name((1, 2, 3, 4, 5), pages)  # page 2 is not full
    assert pool.find((1, 2, 3, 4, 9, 9)) == (0, 1)
    assert pool.find((1, 2, 3)) == (0,)
    assert pool.find((3, 4)) == ()
    assert pool.find((1, 9, 3, 4)) == ()


def test_a_second_page_of_the_same_tokens_is_not_found():
    """But what continues it is, as the beginnings are the same."""
    pool = Pool(9, 2)
    first, second = pool.take(1), pool.take(2)
    pool.name((1, 2), first)
    pool.name((1, 2, 3, 4), second)
    assert pool.find((1, 2, 3, 4)) == (0, 2)
    pool.release(second)
    assert pool.kept == 1  # page 1 is free: page 0 is known for its tokens


def test_kept_pages_are_used_again_or_evicted_ends_of_chains_first():
    pool = Pool(4, 2)
    pages = pool.take(3)
    pool.name((1, 2, 3, 4, 5, 6), pages)
    pool.release(pages)
    assert (pool.held, pool.kept) == (0, 3)
    assert pool.take(2) == (3, 2)  # the free one, then the end of the chain
    assert pool.find((1, 2, 3, 4, 5, 6)) == (0, 1)
    pool.share((0, 1))
    assert (pool.held, pool.kept) == (4, 0)
    pool.release((0, 1))
    assert pool.take(1) == (1,)
    assert pool.find((1, 2, 3, 4)) == (0,)


def test_the_least_recently_used_chain_is_evicted_first():
    pool = Pool(2, 2)
    old, new = pool.take(1), pool.take(1)
    pool.name((1, 1), old)
    pool.name((2, 2), new)
    pool.release(new)
    pool.release(old)
    pool.share(new)  # found again
    pool.release(new)
    assert pool.take(1) == old
    assert pool.find((2, 2)) == new


def test_what_continued_an_evicted_page_is_not_found_behind_its_successor():
    """Page 0 held [1 2]; it now holds [7 7], and page 1 still [3 4]."""
    pool = Pool(2, 2)
    pages = pool.take(2)
    pool.name((1, 2, 3, 4), pages)
    pool.release(pages[:1])
    again = pool.take(1)
    pool.name((7, 7), again)
    assert again == (0,)
    assert pool.find((7, 7, 3, 4)) == (0,)
    assert pool.find((1, 2, 3, 4)) == ()


@given(st.data())
def test_a_pool_agrees_with_lists_of_owners(data):
    """Against a model that knows owners alone: no page is given out twice."""
    pool = Pool(data.draw(st.integers(1, 8)), 2)
    size, owned = pool.available, []
    text = st.lists(st.integers(0, 1), max_size=8)
    for _ in range(data.draw(st.integers(0, 30))):
        held = {page for pages in owned for page in pages}
        assert pool.held == len(held)
        assert pool.available == size - len(held)
        known = pool.find(ids := data.draw(text))
        match data.draw(st.sampled_from("take share release".split())):
            case "take":
                count = data.draw(st.integers(0, pool.available))
                taken = pool.take(count)
                assert not held & {*taken} and len({*taken}) == count
                pool.name(ids, taken)
                owned.append(taken)
            case "share":
                pool.share(known)
                owned.append(known)
            case "release" if owned:
                which = data.draw(st.integers(0, len(owned) - 1))
                pool.release(owned.pop(which))
    for pages in owned:
        pool.release(pages)
    assert pool.held == 0
