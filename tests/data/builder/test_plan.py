"""How a corpus is split into shards, among machines, and which interrupted builds can be continued."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpnet_ds.data.builder.plan import Part, difference, parse_part, part_of_environment, plan_shards
from mpnet_ds.data.text.corpus import num_units
from mpnet_ds.data.text.source import Source
from mpnet_ds.errors import UserError

sources = st.builds(
    Source,
    path=st.just("a"),
    kind=st.sampled_from(["txt", "jsonl", "csv", "builtin-sample"]),
    num_bytes=st.integers(0, 5000),
    compression=st.sampled_from(["", "", "gz"]),
)
sets = st.builds(
    Source, path=st.just("b"), kind=st.just("datasets"), num_bytes=st.integers(0, 5000), units=st.integers(1, 90)
)


@given(st.lists(sources | sets, max_size=12), st.integers(1, 2000))
def test_shards_tile_every_source_in_order(all_sources, shard_bytes):
    ranges = [one for plan in plan_shards(all_sources, shard_bytes) for one in plan]
    for number, source in enumerate(all_sources):
        own = [one for one in ranges if one.source == number]
        expected = [0, num_units(source)] if num_units(source) else []
        assert [own[0].start, own[-1].end] == expected if own else not expected
        assert all(before.end == after.start for before, after in itertools.pairwise(own))
        assert all(one.start < one.end for one in own)
    assert ranges == sorted(ranges, key=lambda one: (one.source, one.start))


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=12), st.integers(1, 2000))
def test_all_shards_of_divisible_files_but_the_last_have_the_requested_size(sizes, shard_bytes):
    plans = plan_shards([Source("a", "txt", size) for size in sizes], shard_bytes)
    found = [sum(one.end - one.start for one in plan) for plan in plans]
    assert all(size == shard_bytes for size in found[:-1])
    assert sum(found) == sum(sizes)


@pytest.mark.parametrize(("megabytes", "shards"), [(0.5, 1), (10, 10), (128, 64), (8192, 128)])
def test_by_default_there_are_enough_shards_for_many_processes_and_not_too_many(megabytes, shards):
    assert len(plan_shards([Source("a", "txt", int(megabytes * 2**20))], None)) == shards


def test_small_files_share_a_shard_and_indivisible_ones_stay_whole():
    packed = [Source(name, "txt", 60, compression="gz") for name in "abc"]
    assert [[one.source for one in plan] for plan in plan_shards(packed, 130)] == [[0, 1], [2]]
    assert [[one.source for one in plan] for plan in plan_shards(packed, 10)] == [[0], [1], [2]]


@given(st.integers(1, 40), st.integers(0, 300))
def test_parts_take_every_shard_once_in_order(of, count):
    taken = itertools.chain.from_iterable(Part(i, of).shard_numbers(count) for i in range(1, of + 1))
    assert list(taken) == list(range(count))


def test_parts_are_counted_from_one():
    assert parse_part("2/8") == Part(2, 8)
    assert parse_part("2/8").folder_name == "part-00002-of-00008"
    for text in ("0/8", "9/8", "2", "a/b", "/", "2/8/1"):
        with pytest.raises(UserError, match="part"):
            parse_part(text)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),  # a batch script, not a task of it
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}, (2, 4)),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, (4, 4)),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, (1, 2)),
    ],
)
def test_a_launcher_says_which_part_this_is(environment, expected):
    part = part_of_environment(environment)
    assert (part and (part.number, part.of)) == expected


def array_task(task, first, last, count):
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
    return dict(zip(names, map(str, (task, first, last, count)), strict=True))


def test_a_task_of_a_slurm_array_is_a_part():
    parts = [part_of_environment(array_task(task, 5, 8, 4)) for task in range(5, 9)]
    assert [(part.number, part.of) for part in parts] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with pytest.raises(UserError, match="gaps"):
        part_of_environment(array_task(5, 1, 9, 3))


def settings(sources=(("a.txt", 10),), tokenizer="t", **options):
    listed = [{"path": path, "num_bytes": size, "modified": 0.0, "version": ""} for path, size in sources]
    return {"sources": listed, "tokenizer_fingerprint": tokenizer, "options": {"on_error": "stop", "holdout": 0.0} | options}


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (settings(tokenizer="u"), "the tokenizer was t and is now u"),
        (settings(holdout=0.1), "--holdout was 0.0 and is now 0.1"),
        (settings([("a.txt", 11)]), "a.txt has changed: it was 10 bytes and is now 11 bytes"),
        (settings([("b.txt", 10)]), "txt is"),
        (settings([("a.txt", 10), ("b.txt", 1)]), "b.txt is new"),
        (settings([]), "a.txt is gone"),
    ],
)
def test_the_difference_between_two_builds_is_named(now, words):
    assert words in difference(settings(), now)


def test_only_the_treatment_of_faults_may_change():
    assert difference(settings(), settings()) == ""
    assert difference(settings(), settings(on_error="skip")) == ""
    assert "--on_error" in difference(settings(on_error="skip"), settings())
    one, other = (settings([(name, 1) for name in names]) for names in ("ab", "ba"))
    assert "order" in difference(one, other)
