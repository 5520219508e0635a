from mpnet_ds.attention_backends import AUTO, BACKENDS
from mpnet_ds.models.attention import backend


def test_the_names_of_the_command_line_are_those_of_the_back_ends():
    assert set(BACKENDS) == {AUTO, *backend._BACKENDS}
    assert all(backend._BACKENDS[name].name == name for name in backend._BACKENDS)
